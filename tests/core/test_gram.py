"""Gram matrices, against the layers themselves: what they say a change of weights costs is what it costs."""

from __future__ import annotations

import resource
from typing import Any

import numpy as np
import onnx_ir as ir
import pytest

from attar import gram, graph
from attar.calibration import as_data
from attar.context import Context
from attar.errors import InputError
from attar.layer_inputs import positions_of, vectors
from attar.registry import default_registry
from attar.runtime import OnnxRuntime
from attar.specs import input_specs
from attar.targets import builtin_targets
from attar.testing.build import Net

Array = np.ndarray[Any, Any]
RUNTIME = OnnxRuntime()


def layer(kind: str, *weight: int, shape: tuple[int | str, ...], **attributes: Any) -> ir.Model:
    """A model of one operator with a weight, input `x`, output `y`."""
    net = Net(kind)
    x = net.input("x", *shape)
    return net.model(y=net.op(kind, x, net.weight(*weight, name="w"), **attributes))


def node_of(model: ir.Model) -> ir.Node:
    return next(n for n in model.graph if len(n.inputs) > 1)


def wanted(model: ir.Model) -> gram.LayerInput:
    found = gram.layer_input(node_of(model))
    assert found is not None
    return found


def of(model: ir.Model, feeds: list[dict[str, Array]], **options: Any) -> gram.Gram:
    item = wanted(model)
    return gram.collect(model, [item], as_data(feeds, input_specs(model)), RUNTIME, **options)[item]


LAYERS: dict[str, tuple[ir.Model, tuple[int, ...]]] = {
    "conv": (layer("Conv", 5, 4, 3, 3, shape=("N", 4, 7, 6), pads=[1, 0, 2, 1]), (3, 4, 7, 6)),
    "stride and dilation": (
        layer("Conv", 5, 2, 3, 2, shape=("N", 2, 9, 8), strides=[2, 3], dilations=[2, 1], pads=[1] * 4),
        (3, 2, 9, 8),
    ),
    "grouped": (layer("Conv", 6, 2, 3, 3, shape=("N", 4, 5, 5), group=2), (3, 4, 5, 5)),
    "depthwise": (layer("Conv", 4, 1, 3, 3, shape=("N", 4, 5, 5), group=4, pads=[1] * 4), (3, 4, 5, 5)),
    "same upper": (
        layer("Conv", 5, 3, 4, 4, shape=("N", 3, 7, 8), strides=[2, 2], auto_pad="SAME_UPPER"),
        (3, 3, 7, 8),
    ),
    "same lower": (layer("Conv", 5, 3, 4, 4, shape=("N", 3, 7, 8), auto_pad="SAME_LOWER"), (3, 3, 7, 8)),
    "valid": (layer("Conv", 5, 3, 3, 3, shape=("N", 3, 7, 8), auto_pad="VALID"), (3, 3, 7, 8)),
    "one axis": (layer("Conv", 5, 3, 3, shape=("N", 3, 11), pads=[2, 1]), (3, 3, 11)),
    "three axes": (layer("Conv", 2, 2, 2, 2, 2, shape=("N", 2, 4, 3, 4)), (3, 2, 4, 3, 4)),
    "gemm": (layer("Gemm", 6, 4, shape=("N", 6)), (9, 6)),
    "gemm transposed": (layer("Gemm", 4, 6, shape=("N", 6), transB=1), (9, 6)),
    "matmul": (layer("MatMul", 6, 4, shape=("N", "S", 6)), (3, 5, 6)),
}


@pytest.mark.parametrize("name", LAYERS)
def test_the_cost_of_a_change_is_that_of_the_layer_run_with_it(name: str) -> None:
    """Sum of squares of the outputs that the runtime computes for a random weight = sum over rows of w G w^T;
    the sum of the outputs = W times the sum of inputs."""
    model, sizes = LAYERS[name]
    rng = np.random.default_rng(0)
    feeds = [{"x": rng.standard_normal(sizes).astype(np.float32) + 0.5} for _ in range(2)]
    found = of(model, feeds)
    node = node_of(model)
    weight = graph.const_array(node.inputs[1])
    assert weight is not None
    rows = gram.rows_of(node, weight).astype(np.float64)
    np.testing.assert_array_equal(gram.from_rows(node, rows, weight.shape).astype(np.float32), weight)
    outputs = [RUNTIME.open(model).run(f)[0].astype(np.float64) for f in feeds]
    channels = 1 if node.op_type == "Conv" else -1
    axes = tuple(a for a in range(outputs[0].ndim) if a != channels % outputs[0].ndim)
    squares = sum((o**2).sum(axis=axes) for o in outputs)
    sums = sum(o.sum(axis=axes) for o in outputs)
    predicted = np.einsum("gok,gkl,gol->go", rows, found.matrix, rows).reshape(-1)
    np.testing.assert_allclose(predicted, squares, rtol=1e-5)
    np.testing.assert_allclose(
        np.einsum("gok,gk->go", rows, found.total).reshape(-1),
        sums,
        rtol=1e-5,
        atol=1e-6 * np.abs(sums).max(),
    )
    assert found.count == sum(o.size for o in outputs) // rows.shape[0] // rows.shape[1]


def test_a_sample_of_positions_tells_the_same_within_its_noise() -> None:
    model = layer("Conv", 4, 3, 3, 3, shape=("N", 3, 96, 96), pads=[1] * 4)
    rng = np.random.default_rng(1)
    level = np.array([0.0, 1.0, 3.0])[:, None, None]
    feeds = [{"x": (rng.standard_normal((4, 3, 96, 96)) + level).astype(np.float32)} for _ in range(8)]
    found = of(model, feeds)
    assert 1500 < found.count < 32 * 96 * 96 / 50
    whole = np.zeros((27, 27))
    for f in feeds:
        x = vectors(f["x"], wanted(model), 96 * 96, np.random.default_rng(0))[0].astype(np.float64)
        assert len(x) == 4 * 96 * 96
        whole += x.T @ x
    np.testing.assert_allclose(found.moment[0], whole / (32 * 96 * 96), atol=0.3)
    assert np.linalg.norm(found.moment[0] - whole / (32 * 96 * 96)) < 0.05 * np.linalg.norm(found.moment[0])


def test_how_many_positions_are_looked_at() -> None:
    assert positions_of(9, 10_000) == 8  # never fewer
    assert positions_of(512, 32) == 128  # 8 K vectors in all
    assert positions_of(8192, 4) == 8  # large matrices cost too much
    assert positions_of(64, None) == 64  # nobody knows how many samples there will be


def test_merging_is_seeing_all_and_halves_add_up() -> None:
    model, sizes = LAYERS["conv"]
    rng = np.random.default_rng(2)
    feeds = [{"x": rng.standard_normal((4, *sizes[1:])).astype(np.float32)} for _ in range(4)]
    whole, left, right = of(model, feeds), of(model, feeds[:1]), of(model, feeds[1:])
    left.merge(right)
    assert left.count == whole.count
    np.testing.assert_allclose(left.matrix, whole.matrix, rtol=1e-12, atol=1e-12 * np.abs(whole.matrix).max())
    np.testing.assert_allclose(left.total, whole.total, rtol=1e-12, atol=1e-12 * np.abs(whole.total).max())
    halves = whole.halves
    assert halves is not None
    assert [h.count for h in halves] == [whole.count // 2] * 2
    np.testing.assert_allclose(halves[0].matrix + halves[1].matrix, whole.matrix)


@pytest.mark.parametrize("batch", [1, 2, 3])
def test_halves_hold_different_samples(batch: int) -> None:
    """Each sample is one number times ones, so that its vectors are known by their sums."""
    model = layer("Gemm", 1, 1, shape=("N", 1))
    values = np.arange(1, 13, dtype=np.float32)[:, None]
    feeds = [{"x": values[i : i + batch]} for i in range(0, 12, batch)]
    halves = of(model, feeds).halves
    assert halves is not None
    assert sum(h.count for h in halves) == 12
    assert sum(h.total.sum() for h in halves) == pytest.approx(78)
    assert min(h.count for h in halves) >= 3


def test_covariance_is_the_moment_about_the_mean() -> None:
    model, _ = LAYERS["gemm"]
    x = (np.random.default_rng(3).standard_normal((50, 6)) + 5).astype(np.float32)
    found = of(model, [{"x": x}])
    np.testing.assert_allclose(
        found.covariance[0], np.cov(x.T, bias=True), rtol=0, atol=4e-6
    )  # of 25 + 1 in float32
    np.testing.assert_allclose(found.mean[0], x.mean(axis=0), rtol=1e-5)


def test_a_reference_is_looked_at_in_the_same_positions() -> None:
    net = Net("two")
    x = net.input("x", "N", 3, 40, 40)
    hidden = net.conv(x, 3, 4)
    model = net.model(y=net.conv(hidden, 4, 2))
    other = graph.clone(model)
    first = next(iter(other.graph))
    weight, bias = (graph.const_array(v) for v in first.inputs[1:3])
    assert weight is not None
    assert bias is not None
    graph.replace_weight(first.inputs[1], (2 * weight).astype(np.float32))  # type: ignore[arg-type]
    graph.replace_weight(first.inputs[2], (2 * bias).astype(np.float32))  # type: ignore[arg-type]
    item = gram.layer_input(list(model.graph)[1])
    assert item is not None
    data = as_data([np.ones((2, 3, 40, 40), np.float32)], input_specs(model))
    found = gram.collect(other, [item], data, RUNTIME, reference=model)[item]
    assert found.cross is not None
    assert found.twin is not None
    np.testing.assert_allclose(found.cross, found.matrix / 2, rtol=1e-5)
    np.testing.assert_allclose(found.twin, found.total / 2, rtol=1e-5)


def test_what_has_no_gram_matrix() -> None:
    net = Net("odd")
    x = net.input("x", 4, 6)
    cases = [
        net.op("Gemm", x, net.weight(4, 3), transA=1),
        net.op("MatMul", net.weight(3, 4), x),
        net.op("MatMul", x, net.op("Transpose", x)),
        net.op("Relu", x),
        net.op("Conv", net.op("Reshape", x, net.ints([1, 4, 6])), net.op("Reshape", x, net.ints([4, 4, -1]))),
    ]
    for value in cases:
        node = value.producer()
        assert node is not None
        assert gram.layer_input(node) is None, node.op_type


def test_layers_that_read_alike_share_one() -> None:
    net = Net("shared")
    x = net.input("x", "N", 6)
    model = net.model(a=net.op("MatMul", x, net.weight(6, 3)), b=net.op("MatMul", x, net.weight(6, 5)))
    assert len({gram.layer_input(n) for n in model.graph}) == 1


def test_sweeps_stay_within_the_budget() -> None:
    items = [gram.LayerInput(f"v{i}", depth) for i, depth in enumerate([100, 200, 50, 900, 10, 20])]
    budget = items[1].nbytes + items[0].nbytes
    parts = list(gram.sweeps(items, budget))
    assert [i for part in parts for i in part] == items
    assert all(len(part) == 1 or sum(i.nbytes for i in part) <= budget for part in parts)
    assert [len(p) for p in parts] == [2, 1, 1, 2]


def test_the_context_keeps_what_fits(monkeypatch: pytest.MonkeyPatch) -> None:
    model, sizes = LAYERS["conv"]
    runs = []
    feeds = [{"x": np.ones(sizes, np.float32)}]

    def source() -> Any:
        runs.append(1)
        return iter(feeds)

    data = as_data(source, input_specs(model))
    target = next(t for t in builtin_targets() if t.name == "cpu-vnni")
    ctx = Context(default_registry(), target, RUNTIME, data)
    before = len(runs)
    first = dict(ctx.grams(model, [wanted(model)]))
    after = len(runs)
    again = dict(ctx.grams(graph.clone(model), [wanted(model)]))
    assert after > before
    assert len(runs) == after
    assert again == first
    monkeypatch.setattr(gram, "BUDGET", 10)
    ctx.cache.clear()
    assert list(dict(ctx.grams(model, [wanted(model)]))) == [wanted(model)]
    assert dict(ctx.cache[("grams", graph.fingerprint(model))]) == {}


def test_infinite_vectors_are_left_out_and_nan_is_named() -> None:
    """Log of 0 is minus infinity, Log of a negative number is not a number."""
    net = Net("logs")
    model = net.model(y=net.op("Gemm", net.op("Log", net.input("x", "N", 6)), net.weight(6, 4)))
    x = np.ones((4, 6), np.float32)
    x[2, 3] = 0
    node = list(model.graph)[1]
    item = gram.layer_input(node)
    assert item is not None
    found = gram.collect(model, [item], as_data([{"x": x}], input_specs(model)), RUNTIME)[item]
    assert found.count == 3
    x[1, 1] = -1
    with pytest.raises(InputError, match="becomes NaN on calibration batch 0"):
        gram.collect(model, [item], as_data([{"x": x}], input_specs(model)), RUNTIME)


def test_an_unknown_value_is_named_and_nothing_wanted_is_nothing() -> None:
    model, _ = LAYERS["gemm"]
    data = as_data([{"x": np.ones((4, 6), np.float32)}], input_specs(model))
    with pytest.raises(InputError, match="no value 'muddle'"):
        gram.collect(model, [gram.LayerInput("muddle", 6)], data, RUNTIME)
    assert gram.collect(model, [], data, RUNTIME) == {}


def test_memory_does_not_grow_with_the_data() -> None:
    model = layer("Conv", 8, 16, 3, 3, shape=("N", 16, 64, 64), pads=[1] * 4)
    x = np.random.default_rng(5).standard_normal((8, 16, 64, 64)).astype(np.float32)

    def stream(count: int) -> Any:
        return lambda: ({"x": x} for _ in range(count))

    of(model, stream(4))
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    of(model, stream(40))
    grown = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before
    assert grown * 1024 < 20e6
