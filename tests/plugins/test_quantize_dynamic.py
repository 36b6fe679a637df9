"""`quantize.dynamic`: arithmetic against its definition, fused kernels, and what it refuses."""

from __future__ import annotations

from typing import Any

import numpy as np
import onnx_ir as ir
import pytest

from attar import graph
from attar.context import Context, Measured
from attar.costs import CostTable
from attar.errors import RecipeError, Refused
from attar.registry import default_registry
from attar.run import run_pass
from attar.runtime import OnnxRuntime
from attar.testing import ZOO
from attar.testing.build import Net
from attar_quantize.dynamic import Dynamic

Array = np.ndarray[Any, Any]
RUNTIME, REGISTRY = OnnxRuntime(), default_registry()
EVERYTHING = Dynamic(plan="everything")


def context(feeds: dict[str, Array] | None = None, target: str = "cpu-vnni", **more: Any) -> Context:
    return Context(REGISTRY, REGISTRY.get_target(target), RUNTIME, feeds=feeds, **more)


def layer(*, gemm: bool, bias: bool, shape: tuple[int, ...] = (5, 24)) -> ir.Model:
    net = Net("layer", 7)
    x = net.input("x", *shape)
    b = net.vector(8, -1, 1, "b")
    if gemm:
        y = net.op("Gemm", x, net.weight(8, 24, name="w"), *([b] if bias else []), transB=1)
    else:
        y = net.op("MatMul", x, net.const(net.array(8, 24).T.copy(), "w"))
        y = net.op("Add", y, b) if bias else y
    return net.model(y=y)


def by_hand(x: Array, w: Array, bits: int = 8, *, per_channel: bool = True) -> Array:
    """DynamicQuantizeLinear and symmetric weights by their formulas, in float64 and exact integers."""
    low, high = min(float(x.min()), 0.0), max(float(x.max()), 0.0)
    scale = np.float32((np.float32(high) - np.float32(low)) / np.float32(255))
    zero = np.clip(np.rint(-np.float32(low) / scale), 0, 255)
    q = np.clip(np.rint(x / scale) + zero, 0, 255).astype(np.int64)
    top = 2 ** (bits - 1) - 1
    reach = np.abs(w).max(axis=0) if per_channel else np.abs(w).max()
    steps = np.float32(reach / top)
    codes = np.clip(np.rint(w / steps), -top, top).astype(np.int64)
    return ((q - int(zero)) @ codes) * (np.float64(scale) * steps)


@pytest.mark.parametrize("gemm", [False, True])
@pytest.mark.parametrize("bias", [False, True])
@pytest.mark.parametrize("granularity", ["per_channel", "per_tensor"])
def test_the_arithmetic_is_that_of_the_definition(gemm: bool, bias: bool, granularity: str) -> None:
    model = layer(gemm=gemm, bias=bias)
    feeds = {"x": np.random.default_rng(1).standard_normal((5, 24)).astype(np.float32)}
    weight = graph.const_array(model.graph.initializers["w"])
    assert weight is not None
    step = Dynamic(plan="everything", granularity=granularity)
    result, _ = run_pass(step, model, context(feeds), feeds)
    expected = by_hand(feeds["x"], weight.T if gemm else weight, per_channel=granularity == "per_channel")
    if bias:
        expected = expected + graph.const_array(model.graph.initializers["b"])
    for optimize in (False, True):
        got = RUNTIME.open(result, optimize=optimize).run(feeds)[0]
        np.testing.assert_allclose(got, expected, rtol=1e-4, atol=1e-4)
    ops = [k.op for k in RUNTIME.open(result).kernels()]
    assert ops == ["DynamicQuantizeMatMul"]  # the bias is in it


def test_layers_that_read_one_value_quantize_it_once() -> None:
    net = Net("three", 2)
    x = net.input("x", "N", 10, 32)
    outputs = {n: net.op("MatMul", x, net.weight(32, 16, name=f"w{n}")) for n in "qkv"}
    model = net.model(**outputs)
    feeds = {"x": np.random.default_rng(0).standard_normal((2, 10, 32)).astype(np.float32)}
    result, _ = run_pass(EVERYTHING, model, context(feeds), feeds)
    assert [n.op_type for n in result.graph].count("DynamicQuantizeLinear") == 1
    assert [v.name for v in result.graph.outputs] == ["q", "k", "v"]
    before, after = (RUNTIME.open(m).run(feeds) for m in (model, result))
    for a, b in zip(before, after, strict=True):
        assert np.abs(a - b).max() < 0.03 * np.abs(a).max()


def test_seven_bits_where_sums_saturate() -> None:
    for target, most in (("cpu-vnni", 127), ("cpu-avx2", 63)):
        model = layer(gemm=True, bias=False)
        EVERYTHING.apply(model, context(target=target))
        codes = graph.const_array(model.graph.initializers["w_quantized"])
        assert codes is not None
        assert codes.shape == (24, 8)
        assert int(np.abs(codes.astype(int)).max()) == most


def test_nothing_without_a_quick_kernel_is_written() -> None:
    model = ZOO["residual_cnn"].build()
    graph.normalize(model)
    feeds = ZOO["residual_cnn"].inputs(seed=0)
    result, record = run_pass(EVERYTHING, model, context(feeds), feeds)
    assert not {"ConvInteger"} & {n.op_type for n in graph.all_nodes(result)}
    skipped = {s.op: s.reason for s in record.skipped}
    assert "ConvInteger is several times slower" in skipped["Conv"]


def test_refusals_list_every_reason() -> None:
    net = Net("none", 4)
    x = net.input("x", 3, 8)
    a = net.op("MatMul", x, net.input("w", 8, 8))
    a = net.op("Gemm", a, net.weight(8, 8), alpha=2.0)
    b = net.op("MatMul", net.input("t", 2, 3, 8), net.weight(2, 8, 8))
    with pytest.raises(Refused) as caught:
        EVERYTHING.apply(net.model(y=a, z=b), context())
    said = " | ".join(reason for _, reason in caught.value.nodes)
    assert "its weight is not constant" in said
    assert "alpha, beta or transA is set" in said
    assert "3 dimensions" in said


def test_the_planner_weighs_the_table_and_what_was_measured() -> None:
    net = Net("big", 1)
    big = net.op("MatMul", net.input("x", 128, 256), net.weight(256, 512))
    model = net.model(y=big)
    feeds = {"x": np.ones((128, 256), np.float32)}
    copy = graph.clone(model)
    Dynamic().apply(copy, context(feeds))
    assert "MatMulInteger" in {n.op_type for n in copy.graph}
    slow = Measured({"y": 100.0}, {"y": 300.0})
    with pytest.raises(Refused) as caught:
        Dynamic().apply(graph.clone(model), context(feeds, measured=slow))
    assert "100 us against 3" in caught.value.nodes[0][1]
    unknown = context(feeds)
    unknown.target = type(unknown.target)(**{**vars(unknown.target), "costs": CostTable({})})
    with pytest.raises(Refused) as caught:
        Dynamic().apply(graph.clone(model), unknown)
    assert "no measured times" in caught.value.nodes[0][1]


def test_keep_float() -> None:
    model = ZOO["attention"].build()
    graph.normalize(model)
    feeds = ZOO["attention"].inputs(seed=0)
    name = next(n.name for n in model.graph if n.op_type == "MatMul" and n.inputs[1].is_initializer())
    step = Dynamic(plan="everything", keep_float=(name or "",))
    result, record = run_pass(step, model, context(feeds), feeds)
    assert name in {n.name for n in result.graph}
    assert ("kept in float by option keep_float") in {s.reason for s in record.skipped}
    with pytest.raises(RecipeError, match="matches no node"):
        Dynamic(keep_float=("no_such_*",)).apply(model, context(feeds))


@pytest.mark.parametrize(
    "name", ["encoder", "mlp", "lstm", "shared_weight", "weight_is_output", "external_data"]
)
def test_networks_stay_near(name: str) -> None:
    model = ZOO[name].build()
    graph.normalize(model)
    feeds = ZOO[name].inputs(seed=3)
    result, _ = run_pass(EVERYTHING, model, context(feeds), feeds)
    for a, b in zip(RUNTIME.open(model).run(feeds), RUNTIME.open(result).run(feeds), strict=True):
        assert np.abs(a - b).max() < 0.05 * np.abs(a).max()
