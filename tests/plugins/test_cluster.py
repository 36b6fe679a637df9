"""`cluster.weights` and the k-means behind it."""

from __future__ import annotations

import itertools
from typing import Any

import numpy as np
import pytest

import attar
from attar import bundle, graph
from attar.calibration import as_data
from attar.context import Context
from attar.errors import RecipeError, Refused
from attar.registry import default_registry
from attar.run import run_pass, run_recipe
from attar.runtime import OnnxRuntime
from attar.specs import input_specs
from attar.testing import conformance
from attar.testing.build import Net
from attar_cluster.kmeans import kmeans, nearest
from attar_cluster.weights import Weights

RNG = np.random.default_rng(0)
REGISTRY, RUNTIME = default_registry(), OnnxRuntime()


def error(numbers: Any, centroids: Any, weights: Any = 1.0) -> float:
    return float((weights * (numbers - centroids[nearest(numbers, centroids)]) ** 2).sum())


@pytest.mark.parametrize("seed", range(5))
def test_it_is_the_best_partition_of_few_numbers(seed: int) -> None:
    rng = np.random.default_rng(seed)
    numbers, weights = np.sort(rng.standard_normal(14)), rng.random(14) + 0.1
    best = min(
        sum(
            float((w * (p - np.average(p, weights=w)) ** 2).sum())
            for p, w in zip(np.split(numbers, cut), np.split(weights, cut), strict=True)
        )
        for cut in itertools.combinations(range(1, 14), 3)
    )
    assert error(numbers, kmeans(numbers, 4, weights), weights) == pytest.approx(best, rel=1e-9)


def test_it_reaches_the_known_optimum_of_a_normal_distribution() -> None:
    numbers = RNG.standard_normal(200_000)
    found = error(numbers, kmeans(numbers, 32)) / numbers.size
    assert found == pytest.approx(0.002499, rel=0.02)  # Max 1960, table I: 32 levels


@pytest.mark.parametrize("numbers", [[], [3.0], [1.0, 1.0, 2.0], [5e20, -5e20, 0.0]])
def test_few_numbers_are_their_own_centroids(numbers: list[float]) -> None:
    assert kmeans(np.array(numbers), 8).tolist() == sorted(set(numbers))


def test_numbers_without_weight_pull_nothing() -> None:
    found = kmeans(np.array([0.0, 1, 10, 11, 500]), 2, np.array([1.0, 1, 1, 1, 0]))
    assert found[:1] == pytest.approx([0.5])
    assert error(np.array([0.0, 1, 10, 11]), found) < 1.5


def network() -> Any:
    net = Net("n", 3)
    x = net.input("x", "N", 4, 12, 12)
    y = net.op("Relu", net.conv(x, 4, 24))
    y = net.op("Relu", net.conv(y, 24, 32))
    return net.model(y=net.dense(net.pooled(y), 32, 40))


def context(model: Any, *, data: bool = True) -> Context:
    batches = [{"x": RNG.standard_normal((8, 4, 12, 12)).astype(np.float32)} for _ in range(4)]
    given = as_data(batches, input_specs(model)) if data else None
    return Context(REGISTRY, REGISTRY.get_target("cpu"), RUNTIME, given)


def weights_of(model: Any) -> dict[str, Any]:
    return {str(n.name): graph.const_array(n.inputs[1]) for n in model.graph if n.op_type in ("Conv", "Gemm")}


@pytest.mark.parametrize("data", [False, True])
@pytest.mark.parametrize("granularity", ["tensor", "channel"])
def test_it_leaves_that_many_values(granularity: str, data: bool) -> None:
    model = network()
    step = Weights(values=8, granularity=granularity, smallest=100)
    after, record = run_pass(step, model, context(model, data=data))
    for array in weights_of(after).values():
        parts = [array] if granularity == "tensor" else list(array)
        assert max(len(np.unique(part)) for part in parts) <= 8
    assert "at most 8 values" in record.changes[0]


def test_zeros_are_a_cluster_of_their_own() -> None:
    model = network()
    for node in model.graph:
        if node.op_type == "Conv":
            array = np.array(graph.const_array(node.inputs[1]))
            graph.replace_weight(node.inputs[1], np.where(RNG.random(array.shape) < 0.4, 0, array))
    before = weights_of(model)
    after, _ = run_pass(Weights(values=8, smallest=100), model, context(model))
    for name, array in weights_of(after).items():
        assert not array[before[name] == 0].any()
        assert len(np.unique(array)) <= 8


def test_data_make_the_outputs_nearer() -> None:
    model = network()
    scales = np.linspace(0.05, 2, 4, dtype=np.float32)[None, :, None, None]  # inputs of unlike sizes
    batches = [{"x": RNG.standard_normal((16, 4, 12, 12)).astype(np.float32) * scales} for _ in range(5)]
    data = as_data(batches[:4], input_specs(model))
    wanted = RUNTIME.open(model).run(batches[4])[0]
    errors = []
    for given in (None, data):
        ctx = Context(REGISTRY, REGISTRY.get_target("cpu"), RUNTIME, given)
        after, _ = run_pass(Weights(values=6, smallest=100), model, ctx)
        errors.append(float(((RUNTIME.open(after).run(batches[4])[0] - wanted) ** 2).mean()))
    assert errors[1] < 0.8 * errors[0]


def test_the_bundle_really_shrinks(tmp_path: Any) -> None:
    net = Net("big", 1)
    x = net.input("x", "N", 300)
    model = net.model(y=net.dense(x, 300, 300))
    after, _ = run_pass(Weights(), model, context(model, data=False))
    made = bundle.write(after, tmp_path / "m.attar")
    assert made.ratio < 0.17  # 5 of 32 bits
    loaded = attar.load(tmp_path / "m.attar")
    assert all(
        np.array_equal(a, b)
        for a, b in zip(weights_of(loaded).values(), weights_of(after).values(), strict=True)
    )


def test_int8_keeps_zeros_and_the_number_of_values() -> None:
    from attar_prune import Weights as Sparse
    from attar_quantize import Static

    model = network()
    recipe = [
        Sparse(method="magnitude"),
        Weights(values=16, smallest=100),
        Static(rounding="nearest", plan="everything"),
    ]
    after, steps, _ = run_recipe(recipe, model, context(model))
    assert not any(s.refused for s in steps)
    codes = [
        t.const_value.numpy()
        for t in after.graph.initializers.values()
        if str(t.name).endswith("weight_quantized")
    ]
    assert len(codes) == 3
    for array in codes:
        assert (array == 0).mean() >= 0.49
        assert max(len(np.unique(row)) for row in np.moveaxis(array, 0, 0)) <= 16


def test_what_it_refuses_and_leaves() -> None:
    model = network()
    with pytest.raises(Refused, match="too small"):
        run_pass(Weights(smallest=10**6), model, context(model))
    with pytest.raises(RecipeError, match="matches no weight"):
        run_pass(Weights(keep=("nothing*",)), model, context(model))
    with pytest.raises(RecipeError, match="did you mean"):
        Weights(operators=("Convv",))
    _, record = run_pass(Weights(smallest=100, keep=("gemm*",)), model, context(model))
    assert any(s.reason == "kept by option keep" for s in record.skipped)


@conformance(
    Weights(values=4, smallest=16),
    models=[
        "residual_cnn",
        "shared_weight",
        "weight_in_if",
        "half",
        "attention",
        "weight_is_output",
        "external_data",
        "quantized",
    ],
)
def test_conformance() -> None:
    pass
