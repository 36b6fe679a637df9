"""QDQ written as integer operators: ONNX Runtime's own fusion, and ONNX's reference, within a code."""

from __future__ import annotations

import dataclasses
from typing import Any

import numpy as np
import onnx_ir as ir
import pytest
from onnx.reference import ReferenceEvaluator

from attar import graph
from attar.calibration import as_data
from attar.context import Context
from attar.errors import InputError
from attar.integer_operators import integer_operators
from attar.lowering import lower
from attar.registry import default_registry
from attar.run import run_pass
from attar.runtime import OnnxRuntime
from attar.specs import input_specs
from attar.targets import builtin_targets
from attar.testing.build import Net

Array = np.ndarray[Any, Any]
QOPERATOR = next(t for t in builtin_targets() if t.name == "cpu-qoperator")


def pair(net: Net, x: ir.Value, scale: float, zero: int | None, kind: Any = np.uint8) -> ir.Value:
    given = [net.const(np.float32(scale))] + ([] if zero is None else [net.const(kind(zero))])
    return net.op("DequantizeLinear", net.op("QuantizeLinear", x, *given), *given)


def weight(net: Net, shape: tuple[int, ...], axis: int | None) -> tuple[ir.Value, Array]:
    codes = net.rng.integers(-127, 128, shape).astype(np.int8)
    scale = (
        np.float32(0.013) if axis is None else net.rng.uniform(0.005, 0.02, shape[axis]).astype(np.float32)
    )
    given = [net.const(codes), net.const(np.asarray(scale)), net.const(np.zeros(np.shape(scale), np.int8))]
    extra = {} if axis is None else {"axis": axis}
    return net.op("DequantizeLinear", *given, **extra), np.asarray(scale)


def bias(net: Net, count: int, scale: Array) -> ir.Value:
    codes = net.const(net.rng.integers(-5000, 5000, count).astype(np.int32))
    zero = net.const(np.zeros(scale.shape, np.int32))
    extra = {"axis": 0} if scale.ndim else {}
    return net.op("DequantizeLinear", codes, net.const(scale.astype(np.float32)), zero, **extra)


def layers(net: Net, name: str) -> ir.Value:
    """One layer between quantizers."""
    if name in ("MatMul", "Gemm", "GemmT"):
        x = pair(net, net.input("x", "N", 24), 0.05, 120)
        if name == "MatMul":
            y = net.op("MatMul", x, weight(net, (24, 16), 1)[0])
        else:
            t = name == "GemmT"
            w, scale = weight(net, (16, 24) if t else (24, 16), 0 if t else 1)
            b = bias(net, 16, np.float32(0.05) * np.float32(0.5) * scale)
            y = net.op("Gemm", x, w, b, alpha=0.5, transB=int(t))
        return pair(net, y, 0.2, 130)
    x = pair(net, net.input("x", "N", 8, 7, 7), 0.05, 120)
    other = pair(net, net.op("Neg", x), 0.04, 117)
    ops: dict[str, Any] = {
        "Add": lambda: pair(net, net.op("Add", x, other), 0.07, 128),
        "Mul": lambda: pair(net, net.op("Mul", x, other), 0.2, 128),
        "Sigmoid": lambda: pair(net, net.op("Sigmoid", x), 1 / 256, 0),
        "LeakyRelu": lambda: pair(net, net.op("LeakyRelu", x, alpha=0.1), 0.04, 20),
        "GlobalAveragePool": lambda: pair(net, net.op("GlobalAveragePool", x), 0.02, 128),
        "AveragePool": lambda: pair(net, net.op("AveragePool", x, kernel_shape=[3, 3]), 0.04, 128),
        "Concat": lambda: pair(net, net.op("Concat", x, other, axis=1), 0.05, 125),
        "MaxPool": lambda: pair(net, net.op("MaxPool", x, kernel_shape=[2, 2], strides=[2, 2]), 0.05, 120),
        "Transpose": lambda: pair(net, net.op("Transpose", x, perm=[0, 2, 3, 1]), 0.05, 120),
        "Flatten": lambda: pair(net, net.op("Flatten", x), 0.05, 120),
        "Reshape": lambda: pair(net, net.op("Reshape", x, net.const(np.int64([0, 56, -1]))), 0.05, 120),
    }
    if name in ops:
        out: ir.Value = ops[name]()
        return out
    axis = None if name == "ConvTensor" else 0
    group = 8 if name == "ConvDepthwise" else 1
    w, scale = weight(net, (8, 8 // group, 3, 3), axis)
    b = bias(net, 8, np.broadcast_to(np.float32(0.05) * scale, scale.shape))
    y = net.op("Conv", x, w, b, pads=[1, 1, 1, 1], kernel_shape=[3, 3], group=group)
    if name == "ConvRelu":
        return pair(net, net.op("Relu", y), 0.03, 0)
    return pair(net, y, 0.06, 126)


EXPECTED = {
    "Conv": "QLinearConv", "ConvTensor": "QLinearConv", "ConvDepthwise": "QLinearConv",
    "ConvRelu": "QLinearConv",
    "MatMul": "QLinearMatMul", "Gemm": "QGemm", "GemmT": "QGemm", "Add": "QLinearAdd", "Mul": "QLinearMul",
    "Sigmoid": "QLinearSigmoid", "LeakyRelu": "QLinearLeakyRelu", "Concat": "QLinearConcat",
    "GlobalAveragePool": "QLinearGlobalAveragePool", "AveragePool": "QLinearAveragePool",
    "MaxPool": "MaxPool", "Transpose": "Transpose", "Flatten": "Flatten", "Reshape": "Reshape",
}  # fmt: skip


def between(model: ir.Model) -> list[str]:
    return [n.op_type for n in model.graph if n.op_type not in ("QuantizeLinear", "DequantizeLinear", "Neg")]


@pytest.mark.parametrize("name", EXPECTED)
def test_an_operator_is_written_out_and_gives_the_bits_of_the_fused_one(name: str) -> None:
    net = Net(name, 3)
    before = net.model(y=layers(net, name))
    after = graph.clone(before)
    assert integer_operators(after) == 1
    graph.tidy(after)
    assert between(after) == [EXPECTED[name]]
    feeds = {"x": np.random.default_rng(0).normal(0, 2, [4, *input_shape(before)]).astype(np.float32)}
    fused = OnnxRuntime().open(before).run(feeds)[0]
    written = OnnxRuntime().open(after, optimize=False).run(feeds)[0]
    plain = OnnxRuntime().open(before, optimize=False).run(feeds)[0]
    # Kernels round sums in integers or floats: the two may differ by one code of the output, and no more.
    step = scale_of(before)
    assert np.abs(written - fused).max() <= 1.001 * step
    assert np.abs(written - plain).max() <= 1.001 * step
    assert (written != fused).mean() <= 0.01


def input_shape(model: ir.Model) -> list[int]:
    shape = model.graph.inputs[0].shape
    assert shape is not None
    return [int(d) for d in shape.dims[1:]]  # type: ignore[arg-type]


def scale_of(model: ir.Model) -> float:
    made = model.graph.outputs[0].producer()
    assert made is not None
    scale = graph.const_array(made.inputs[1])
    assert scale is not None
    return float(scale)


@pytest.mark.parametrize("name", ["Conv", "ConvTensor", "ConvRelu", "MatMul"])
def test_the_operators_of_the_standard_agree_with_its_reference(name: str) -> None:
    net = Net(name, 5)
    model = net.model(y=layers(net, name))
    integer_operators(model)
    graph.tidy(model)
    feeds = {"x": np.random.default_rng(1).normal(0, 2, [2, *input_shape(model)]).astype(np.float32)}
    expected = ReferenceEvaluator(ir.to_proto(model)).run(None, feeds)[0]
    got = OnnxRuntime().open(model, optimize=False).run(feeds)[0]
    assert np.abs(got - expected).max() <= 1.001 * scale_of(model)


def test_what_gives_float_or_has_an_unfit_bias_keeps_its_form() -> None:
    net = Net("kept", 1)
    x = pair(net, net.input("x", "N", 8, 7, 7), 0.05, 120)
    w, scale = weight(net, (8, 8, 3, 3), 0)
    to_float = net.op("Conv", x, w, kernel_shape=[3, 3])
    odd_bias = net.op("Conv", x, w, bias(net, 8, scale * 0.06), kernel_shape=[3, 3])
    float_bias = net.op("Conv", x, w, net.vector(8, -1, 1), kernel_shape=[3, 3])
    moved = net.op("MaxPool", x, kernel_shape=[2, 2])
    low = net.op("Relu", net.op("Conv", x, w, kernel_shape=[3, 3]))
    model = net.model(
        a=net.op("Neg", to_float), b=pair(net, odd_bias, 0.1, 128), c=pair(net, float_bias, 0.1, 128),
        d=pair(net, moved, 0.06, 120), e=pair(net, low, 0.1, 3),
    )  # fmt: skip
    nodes = len(list(model.graph))
    assert integer_operators(model) == 0
    assert len(list(model.graph)) == nodes


def test_a_missing_zero_point_is_written() -> None:
    net = Net("bare", 2)
    x = pair(net, net.input("x", "N", 4), 0.05, None)
    model = net.model(y=pair(net, net.op("Add", x, x), 0.1, None))
    assert integer_operators(model) == 1
    graph.tidy(model)
    node = next(n for n in model.graph if n.op_type == "QLinearAdd")
    assert all(v is not None for v in node.inputs)
    feeds = {"x": np.float32([[0, 0.1, 3, 9]])}
    np.testing.assert_allclose(
        OnnxRuntime().open(model, optimize=False).run(feeds)[0], [[0, 0.2, 6, 18]], 1e-6
    )


def test_a_whole_network_for_the_target() -> None:
    """Convolutions, a residual sum, pools and a classifier, for the target."""
    net = Net("whole", 4)
    x = net.input("x", "N", 3, 16, 16)
    a = net.op("Relu", net.conv(x, 3, 16))
    b = net.op("Relu", net.op("Add", a, net.conv(a, 16, 16)))
    c = net.op(
        "Flatten", net.op("GlobalAveragePool", net.op("MaxPool", b, kernel_shape=[2, 2], strides=[2, 2]))
    )
    model = net.model(y=net.op("Gemm", c, net.weight(16, 10), net.vector(10, -1, 1)))
    data = [np.random.default_rng(i).normal(size=(4, 3, 16, 16)).astype(np.float32) for i in range(8)]
    registry = default_registry()
    source = as_data(data, input_specs(model))
    context = Context(registry, QOPERATOR, OnnxRuntime(), source, feeds={"x": data[0]})
    small, _ = run_pass(registry.get_pass("quantize.static")(plan="everything"), model, context)
    written, done = lower(small, QOPERATOR)
    assert any(d.startswith("integer-operators") for d in done)
    found = [n.op_type for n in written.graph]
    assert found.count("QLinearConv") == 2
    assert {"QLinearAdd", "QLinearGlobalAveragePool"} <= set(found)
    assert "Conv" not in found
    session, reference = OnnxRuntime().open(written, optimize=False), OnnxRuntime().open(model)
    got = np.concatenate([session.run({"x": d})[0] for d in data])
    expected = np.concatenate([reference.run({"x": d})[0] for d in data])
    assert 10 * np.log10((expected**2).sum() / ((got - expected) ** 2).sum()) > 25


def test_the_target_is_found_by_name_and_an_unknown_lowering_is_named() -> None:
    registry = default_registry()
    assert registry.get_target("cpu-qoperator").lowerings[-1] == "integer-operators"
    net = Net("none")
    model = net.model(y=net.op("Relu", net.input("x", "N", 4)))
    with pytest.raises(InputError, match="integer-operators"):
        lower(model, dataclasses.replace(QOPERATOR, lowerings=("integer-operator",)))
