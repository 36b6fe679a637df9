"""`factor.lowrank`: exact at full rank, within its budget, and leaving alone what it should."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import numpy as np
import onnx_ir as ir
import pytest
from hypothesis import HealthCheck, assume, given, settings
from hypothesis import strategies as st

from attar import graph
from attar.calibration import as_data
from attar.context import Context
from attar.errors import InputError, RecipeError
from attar.ops import model_macs
from attar.passes import Pass
from attar.registry import default_registry
from attar.report import Step
from attar.run import run_recipe
from attar.runtime import OnnxRuntime
from attar.specs import input_specs
from attar.testing.build import Net
from attar_factor import LowRank
from attar_quantize import Static

Array = np.ndarray[Any, np.dtype[Any]]
RUNTIME = OnnxRuntime()
quick = settings(deadline=None, max_examples=8, suppress_health_check=[HealthCheck.too_slow])


def context(model: ir.Model, batches: Iterable[Array] | None) -> Context:
    registry = default_registry()
    data = None if batches is None else as_data(list(batches), input_specs(model))
    feeds = next(iter(data)).inputs if data is not None else None
    return Context(registry, registry.get_target("cpu-vnni"), RUNTIME, data, feeds=feeds)


def apply(model: ir.Model, step: Pass, batches: Iterable[Array] | None = None) -> tuple[ir.Model, Step]:
    before = graph.to_bytes(model)
    result, steps, _ = run_recipe([step], model, context(model, batches))
    assert graph.to_bytes(model) == before
    return result, steps[-1]


def outputs(model: ir.Model, x: Array) -> list[Array]:
    return RUNTIME.open(model).run({input_specs(model)[0].name: x})


def distance(model: ir.Model, other: ir.Model, x: Array) -> float:
    """Largest relative difference of an output."""
    pairs = zip(outputs(model, x), outputs(other, x), strict=True)
    return max(float(np.abs(a - b).max() / np.abs(a).max()) for a, b in pairs)


def noise(model: ir.Model, other: ir.Model, x: Array) -> float:
    pairs = zip(outputs(model, x), outputs(other, x), strict=True)
    return max(float(np.mean((a - b) ** 2) / np.mean((a - a.mean(0)) ** 2)) for a, b in pairs)


def images(count: int, seed: int, shape: tuple[int, ...] = (3, 12, 12)) -> list[Array]:
    """Smooth images: neighbouring pixels are alike, as in photographs."""
    rng = np.random.default_rng(seed)
    x = rng.standard_normal((count, 8, *shape)).astype(np.float32)
    for axis in range(3, x.ndim):
        x = (x + np.roll(x, 1, axis) + np.roll(x, -1, axis)) / np.float32(1.7)
    return list(x)


def cnn() -> ir.Model:
    net = Net("cnn", 3)
    h = net.op("Relu", net.conv(net.input("x", "N", 3, 12, 12), 3, 16))
    h = net.op("Relu", net.conv(h, 16, 32, stride=2))
    h = net.op("Relu", net.op("Add", net.conv(h, 32, 32), h))
    h = net.op("Relu", net.conv(h, 32, 48, (1, 1)))
    return net.model(y=net.dense(net.pooled(h), 48, 10))


@quick
@given(
    method=st.sampled_from(["svd", "spatial", "tucker", "cp"]),
    group=st.sampled_from([1, 1, 2]),
    kernel=st.tuples(st.integers(1, 3), st.integers(1, 3)),
    strides=st.tuples(st.integers(1, 2), st.integers(1, 2)),
    dilations=st.tuples(st.integers(1, 2), st.integers(1, 2)),
    padding=st.one_of(
        st.tuples(*[st.integers(0, 2)] * 4), st.sampled_from(["SAME_UPPER", "SAME_LOWER", "VALID"])
    ),
    bias=st.booleans(),
    aware=st.booleans(),
    seed=st.integers(0, 1000),
)
def test_any_convolution_is_exact_at_full_rank(  # noqa: PLR0917
    method: str,
    group: int,
    kernel: tuple[int, int],
    strides: tuple[int, int],
    dilations: tuple[int, int],
    padding: tuple[int, ...] | str,
    bias: bool,
    aware: bool,
    seed: int,
) -> None:
    net = Net("conv", seed)
    x = net.input("x", "N", 4, 9, 8)
    inputs = [x, net.weight(6, 4 // group, *kernel)] + ([net.vector(6, -1, 1)] if bias else [])
    pads = {"auto_pad": padding} if isinstance(padding, str) else {"pads": list(padding)}
    if "SAME" in str(padding):
        dilations = (1, 1)  # the runtime has no kernel for both
    model = net.model(
        y=net.op("Conv", *inputs, strides=list(strides), dilations=list(dilations), group=group, **pads)
    )
    step = LowRank(energy=1.0, force=True, method=method, data_aware=aware, refit="off", multiple=99)
    if method == "cp":
        step = LowRank(rank=99, force=True, method=method, data_aware=aware, refit="off")
    result, record = apply(model, step, images(2, seed, (4, 9, 8)) if aware else None)
    if record.refused:  # what has no such form is told so
        assert record.skipped[0].reason.startswith((method, "no rank"))
        assume(False)
    assert sum(n.op_type == "Conv" for n in result.graph) > 1
    assert distance(model, result, images(1, 5, (4, 9, 8))[0]) < 1e-5


@quick
@given(
    n_in=st.integers(1, 20),
    n_out=st.integers(1, 20),
    kind=st.sampled_from(["Gemm", "GemmT", "GemmAB", "MatMul", "MatMul+Add"]),
    aware=st.booleans(),
    seed=st.integers(0, 1000),
)
def test_any_linear_layer_is_exact_at_full_rank(
    n_in: int, n_out: int, kind: str, aware: bool, seed: int
) -> None:
    net = Net("linear", seed)
    gemm = kind.startswith("Gemm")
    x = net.input("x", "N", n_in) if gemm else net.input("x", "N", 5, n_in)
    weight = net.weight(n_out, n_in) if kind == "GemmT" else net.weight(n_in, n_out)
    scales = {"alpha": 0.5, "beta": 2.0} if kind == "GemmAB" else {}
    if gemm:
        y = net.op("Gemm", x, weight, net.vector(n_out, -1, 1), transB=int(kind == "GemmT"), **scales)
    else:
        y = net.op("MatMul", x, weight)
        y = net.op("Add", net.vector(n_out, -1, 1), y) if "Add" in kind else y
    model = net.model(y=y)
    shape = (n_in,) if gemm else (5, n_in)
    step = LowRank(energy=1.0, force=True, data_aware=aware, refit="off", multiple=99)
    result, _ = apply(model, step, images(40, seed, shape) if aware else None)
    operators = [n.op_type for n in result.graph]
    assert operators.count("Gemm" if gemm else "MatMul") == 2
    assert distance(model, result, images(1, 5, shape)[0]) < 1e-5


@pytest.mark.parametrize("method", ["svd", "spatial", "tucker"])
def test_a_network_is_exact_at_full_rank_after_the_refit(method: str) -> None:
    step = LowRank(energy=1.0, force=True, method=method, multiple=999)
    result, record = apply(cnn(), step, images(4, 0))
    assert distance(cnn(), result, images(1, 9)[0]) < 1e-5
    assert "5 products refitted" in " ".join(record.changes)
    names = {n.name for n in result.graph}
    first = next(n.name for n in cnn().graph)
    assert {f"{first}.first", f"{first}.second"} <= names


@pytest.mark.parametrize("of", ["parameters", "macs", "latency"])
def test_the_budget_is_kept_and_data_lowers_the_loss(of: str) -> None:
    model, seen, unseen = cnn(), images(16, 0), np.concatenate(images(8, 99))
    plain, _ = apply(model, LowRank(ratio=0.7, of=of, data_aware=False, refit="off"), seen)
    aware, _ = apply(model, LowRank(ratio=0.7, of=of, refit="off"), seen)
    fitted, record = apply(model, LowRank(ratio=0.7, of=of), seen)
    if of == "parameters":
        assert graph.byte_size(fitted) < 0.73 * graph.byte_size(model)  # biases stay
    if of == "macs":
        assert model_macs(fitted) <= 0.7 * model_macs(model)
    if of == "latency":  # ranks are those that the target's blocked kernels take
        ranks = [n.inputs[1].shape[0] for n in fitted.graph if (n.name or "").endswith(".first")]
        assert ranks and all(r % 16 == 0 for r in ranks)  # noqa: PT018
    assert noise(model, aware, unseen) < 0.7 * noise(model, plain, unseen)
    assert noise(model, fitted, unseen) <= 1.06 * noise(model, aware, unseen)
    assert record.skipped and all(s.reason for s in record.skipped)  # noqa: PT018


def test_the_refit_makes_good_what_the_layers_before_lost() -> None:
    """Layers behind each other, all cut hard: those that come later see changed inputs."""
    net = Net("deep", 4)
    x = net.input("x", "N", 32)
    for _ in range(6):
        x = net.op("Tanh", net.dense(x, 32, 32))
    model = net.model(y=x)
    rng = np.random.default_rng(0)
    mix = rng.standard_normal((10, 32))
    seen, unseen = (((rng.standard_normal((600, 10)) @ mix) / 3).astype(np.float32) for _ in range(2))
    lost = {}
    for refit in ("off", "once", "sequential"):
        step = LowRank(ratio=0.4, refit=refit, sensitivity=False)
        result, _ = apply(model, step, [seen[:300], seen[300:]])
        lost[refit] = noise(model, result, unseen)
    assert lost["sequential"] < 0.9 * lost["off"]
    assert lost["sequential"] <= lost["once"] * 1.05


def test_layers_that_the_outputs_hardly_hear_are_cut_first() -> None:
    """Two equal branches, of which one comes to the output a hundred times weaker."""
    net = Net("branches", 4)
    x = net.input("x", "N", 32)
    weak = net.op("Mul", net.dense(x, 32, 32), net.const(np.float32(0.01)))
    model = net.model(y=net.op("Add", net.op("Tanh", net.dense(x, 32, 32)), weak))
    seen, unseen = np.random.default_rng(0).standard_normal((2, 400, 32)).astype(np.float32)
    lost = []
    for sensitivity in (False, True):
        step = LowRank(ratio=0.7, refit="off", sensitivity=sensitivity)
        lost.append(noise(model, apply(model, step, [seen])[0], unseen))
    assert lost[1] < 0.1 * lost[0]


def test_energy_keeps_what_it_says() -> None:
    model, seen = cnn(), images(8, 0)
    for energy in (0.8, 0.95):
        result, record = apply(model, LowRank(energy=energy, refit="off"), seen)
        kept = [float(c.split(", ")[1].split("%")[0]) / 100 for c in record.changes if "energy kept" in c]
        assert kept and min(kept) >= energy - 1e-4  # noqa: PT018
        assert graph.byte_size(result) < graph.byte_size(model)


def test_shared_weights_stay_shared() -> None:
    net = Net("shared", 2)
    x = net.input("x", "N", 5, 24)
    weight = net.weight(24, 24, name="w")
    h = net.op("Relu", net.op("MatMul", x, weight))
    model = net.model(y=net.op("MatMul", net.op("Tanh", h), weight))
    result, _ = apply(model, LowRank(ratio=0.6), images(6, 0, (5, 24)))
    assert graph.byte_size(result) <= 0.6 * graph.byte_size(model)
    weights = [n.inputs[1] for n in result.graph if n.op_type == "MatMul"]
    assert len(weights) == 4
    assert weights[0] is weights[2]
    assert weights[1] is weights[3]
    exact, _ = apply(model, LowRank(energy=1.0, force=True, multiple=99), images(6, 0, (5, 24)))
    assert distance(model, exact, images(1, 3, (5, 24))[0]) < 1e-5


def test_what_cannot_be_factored_is_told() -> None:
    net = Net("odd", 2)
    x = net.input("x", 8, 24)
    table = net.weight(24, 24, name="table")
    tied = net.op("MatMul", x, table)
    picked = net.op("Gather", table, net.ints([0, 3]))
    left = net.op("MatMul", net.weight(8, 8), tied)
    transposed = net.op("Gemm", left, net.weight(8, 24), transA=1)
    activations = net.op("MatMul", tied, net.op("Transpose", transposed))
    good = net.op("MatMul", tied, net.weight(24, 24))
    model = net.model(y=activations, z=picked, g=good)
    _, record = apply(model, LowRank(ratio=0.6, data_aware=False))
    reasons = " | ".join(s.reason for s in record.skipped)
    for part in ("also used by Gather", "on the left", "transA", "not constant"):
        assert part in reasons
    assert sum("of rank" in c for c in record.changes) == 1


def test_quantized_weights_are_refused_with_the_way_out() -> None:
    model, data = cnn(), images(8, 0)
    quantized, _ = apply(model, Static(plan="everything"), data)
    _, record = apply(quantized, LowRank(), data)
    assert record.refused
    assert "factor first, quantize afterwards" in " ".join(s.reason for s in record.skipped)


def test_factored_layers_are_quantized_like_all_others() -> None:
    model, data, unseen = cnn(), images(8, 0), np.concatenate(images(4, 77))
    recipe = [LowRank(ratio=0.6), Static(plan="everything")]
    result, steps, _ = run_recipe(recipe, model, context(model, data))
    assert not [s for s in steps if s.refused and not s.implied]
    factored, _ = apply(model, recipe[0], data)
    convolutions = [n for n in result.graph if n.op_type == "Conv"]
    assert len(convolutions) > sum(n.op_type == "Conv" for n in model.graph)
    for node in convolutions:
        assert [node.inputs[i].producer().op_type for i in (0, 1)] == ["DequantizeLinear"] * 2
    assert noise(factored, result, unseen) < 0.02
    assert noise(model, result, unseen) < noise(model, factored, unseen) + 0.02


def test_keep_and_depthwise_and_odd_options() -> None:
    net = Net("depthwise", 1)
    h = net.op("Relu", net.conv(net.input("x", "N", 3, 12, 12), 3, 16))
    h = net.op("Relu", net.conv(h, 16, 16, group=16))
    model = net.model(y=net.conv(h, 16, 64, (1, 1)))
    last = [n for n in model.graph if n.op_type == "Conv"][-1]
    _, record = apply(model, LowRank(energy=0.5, keep=("y",), data_aware=False))
    reasons = {s.name: s.reason for s in record.skipped}
    assert reasons[last.name] == "kept by option keep"
    assert "a depthwise convolution has nothing to factor" in reasons.values()
    with pytest.raises(RecipeError, match="matches no layer"):
        apply(model, LowRank(keep=("nothing*",)))
    with pytest.raises(RecipeError, match="not both"):
        LowRank(ratio=0.5, rank=3)
    with pytest.raises(RecipeError, match="'force' needs"):
        LowRank(force=True)
    with pytest.raises(InputError, match="needs calibration data"):
        apply(model, LowRank(data_aware=True))
    _, record = apply(model, LowRank(ratio=0.01))
    assert "the layers can go down to" in (record.refused or "")


def test_factors_that_are_to_save_time_aim_at_speed() -> None:
    assert LowRank.aim == "size"
    assert LowRank().aim == "size"
    assert LowRank(of="latency").aim == "speed"
