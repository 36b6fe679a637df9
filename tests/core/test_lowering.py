"""Lowerings change how a model runs and not one bit of what it computes."""

from __future__ import annotations

import dataclasses
from typing import Any

import numpy as np
import onnx_ir as ir
import pytest

from attar import graph
from attar.errors import InputError
from attar.lowering import average_pools_as_convolutions, integer_pads, lower, widen_thin_convolutions
from attar.runtime import OnnxRuntime
from attar.targets import builtin_targets
from attar.testing.build import Net

Array = np.ndarray[Any, Any]
VNNI = next(t for t in builtin_targets() if t.name == "cpu-vnni")


def pair(net: Net, x: ir.Value, scale: float, zero: int, signed: bool = False) -> ir.Value:
    given = net.const(np.float32(scale)), net.const((np.int8 if signed else np.uint8)(zero))
    return net.op("DequantizeLinear", net.op("QuantizeLinear", x, *given), *given)


def thin_conv(
    channels: int,
    dims: int,
    *,
    per_channel: bool = True,
    weight_zero: int = 0,
    outputs: int = 8,
    axis: int = 0,
) -> ir.Model:
    """Quantize, convolve, quantize."""
    net = Net("thin", channels)
    x = pair(net, net.input("x", "N", channels, *[9] * dims), 0.03, 117)
    codes = net.const(net.rng.integers(-127, 128, (outputs, channels, *[3] * dims)).astype(np.int8))
    if per_channel:
        count = outputs if axis == 0 else channels
        scale, zero = net.vector(count, 0.01, 0.05), net.const(np.full(count, weight_zero, np.int8))
        weight = net.op("DequantizeLinear", codes, scale, zero, axis=axis)
    else:
        weight = net.op(
            "DequantizeLinear", codes, net.const(np.float32(0.02)), net.const(np.int8(weight_zero))
        )
    bias = net.vector(outputs, -1, 1)
    y = net.op("Conv", x, weight, bias, pads=[1] * (2 * dims), strides=[2] * dims, kernel_shape=[3] * dims)
    return net.model(y=pair(net, y, 0.07, 120))


def same_bits(before: ir.Model, after: ir.Model, feeds: dict[str, Array]) -> None:
    """Equal outputs with optimizations off and on. The two levels may differ from each other by rounding."""
    for optimize in (False, True):
        expected = OnnxRuntime().open(before, optimize=optimize).run(feeds)
        got = OnnxRuntime().open(after, optimize=optimize).run(feeds)
        for e, g in zip(expected, got, strict=True):
            np.testing.assert_array_equal(e, g)


@pytest.mark.parametrize("per_channel", [True, False])
@pytest.mark.parametrize("dims", [1, 2, 3])
@pytest.mark.parametrize("channels", [1, 2, 3])
def test_widened_convolutions_give_the_same_bits(channels: int, dims: int, per_channel: bool) -> None:
    model = thin_conv(channels, dims, per_channel=per_channel)
    widened = graph.clone(model)
    assert widen_thin_convolutions(widened) == 1
    graph.tidy(widened)
    graph.refresh_shapes(widened)
    (conv,) = (n for n in widened.graph if n.op_type == "Conv")
    assert conv.inputs[0] is not None
    assert conv.inputs[0].shape is not None
    assert conv.inputs[0].shape[1] == 4
    assert conv.inputs[1] is not None
    assert conv.inputs[1].shape is not None
    assert conv.inputs[1].shape[1] == 4
    x = np.random.default_rng(0).standard_normal((2, channels, *[9] * dims)).astype(np.float32)
    same_bits(model, widened, {"x": x})


@pytest.mark.parametrize(
    "model",
    [
        thin_conv(4, 2),
        thin_conv(3, 2, weight_zero=5),
        thin_conv(3, 2, weight_zero=5, per_channel=False),
        thin_conv(3, 2, outputs=4),
        thin_conv(3, 2, axis=1),
    ],
    ids=["wide already", "zero points", "zero point", "few outputs", "scales along inputs"],
)
def test_other_convolutions_are_left_alone(model: ir.Model) -> None:
    before = graph.to_bytes(model)
    assert widen_thin_convolutions(model) == 0
    assert graph.to_bytes(model) == before


def test_grouped_and_float_convolutions_are_left_alone() -> None:
    net = Net("grouped")
    x = pair(net, net.input("x", "N", 4, 8, 8), 0.03, 117)
    codes = net.const(np.ones((8, 2, 3, 3), np.int8))
    weight = net.op("DequantizeLinear", codes, net.const(np.float32(0.02)), net.const(np.int8(0)))
    grouped = net.op("Conv", x, weight, group=2)
    model = net.model(y=grouped, z=net.conv(net.input("f", "N", 3, 8, 8), 3, 8))
    assert widen_thin_convolutions(model) == 0


def padded(
    pads: list[int],
    *,
    mode: str = "constant",
    value: float | None = None,
    axes: list[int] | None = None,
    after: tuple[float, int] = (0.05, 77),
    signed: bool = False,
) -> ir.Model:
    net = Net("padded")
    before = (0.05, 77)
    x = pair(net, net.input("x", "N", 3, 6, 7), *before, signed)
    fill = None if value is None else net.const(np.float32(value))
    more = [fill, net.ints(axes)] if axes is not None else ([fill] if fill is not None else [])
    y = net.op("Pad", x, net.ints(pads), *more, mode=mode)
    return net.model(y=pair(net, y, *after, signed))


ALL = [0, 0, 1, 2, 0, 0, 3, 1]


@pytest.mark.parametrize(
    "model",
    [
        padded(ALL),
        padded(ALL, signed=True),
        padded(ALL, value=0.0),
        padded([0, 2, 1, 0, 0, 1, 0, 2]),
        padded([0, 0, -1, 2, 0, 0, 3, -2]),
        padded(ALL, mode="reflect"),
        padded(ALL, mode="edge"),
        padded(ALL, mode="wrap"),
        padded([1, 2, 3, 0], axes=[2, 3]),
        padded([2, 1], axes=[-1], value=0.0),
    ],
    ids=[
        "plain",
        "signed",
        "zero",
        "channels",
        "negative",
        "reflect",
        "edge",
        "wrap",
        "axes",
        "negative-axis",
    ],
)
def test_integer_pads_give_the_same_bits(model: ir.Model) -> None:
    lowered = graph.clone(model)
    assert integer_pads(lowered) == 1
    graph.tidy(lowered)
    graph.refresh_shapes(lowered)
    (pad,) = (n for n in lowered.graph if n.op_type == "Pad")
    assert pad.outputs[0].dtype in (ir.DataType.UINT8, ir.DataType.INT8)
    x = np.random.default_rng(1).standard_normal((2, 3, 6, 7)).astype(np.float32) * 4
    same_bits(model, lowered, {"x": x})


@pytest.mark.parametrize(
    "model",
    [padded(ALL, value=1.0), padded(ALL, after=(0.06, 77)), padded(ALL, after=(0.05, 78))],
    ids=["a value", "another scale", "another zero point"],
)
def test_pads_that_are_not_the_same_on_integers_are_left_alone(model: ir.Model) -> None:
    before = graph.to_bytes(model)
    assert integer_pads(model) == 0
    assert graph.to_bytes(model) == before


def test_a_pad_that_others_read_in_float_is_left_alone() -> None:
    net = Net("shared")
    y = net.op("Pad", pair(net, net.input("x", "N", 3, 6, 7), 0.05, 7), net.ints(ALL))
    model = net.model(y=pair(net, y, 0.05, 7), z=net.op("Tanh", y))
    assert integer_pads(model) == 0


def averaged(extra: bool = False, **attributes: Any) -> ir.Model:
    net = Net("averaged")
    x = pair(net, net.input("x", "N", 5, 9, 11), 0.05, 77)
    y = net.op("AveragePool", x, **attributes)
    outputs = {"y": pair(net, y, 0.05, 77)}
    return net.model(**outputs, **({"z": net.op("Tanh", y)} if extra else {}))


@pytest.mark.parametrize(
    "attributes",
    [
        {"kernel_shape": [3, 3]},
        {"kernel_shape": [2, 3], "strides": [2, 1]},
        {"kernel_shape": [3, 3], "pads": [1, 1, 1, 1], "count_include_pad": 1},
        {"kernel_shape": [2, 2], "dilations": [2, 3]},
        {"kernel_shape": [3, 2], "auto_pad": "VALID"},
    ],
    ids=str,
)
def test_integer_average_pools_as_convolutions(attributes: dict[str, Any]) -> None:
    """The mean is the same; codes next to a tie may round to the neighbour."""
    model = averaged(**attributes)
    lowered = graph.clone(model)
    assert average_pools_as_convolutions(lowered) == 1
    graph.tidy(lowered)
    graph.refresh_shapes(lowered)
    assert not any(n.op_type == "AveragePool" for n in lowered.graph)
    x = np.random.default_rng(2).standard_normal((2, 5, 9, 11)).astype(np.float32) * 3
    (expected,) = OnnxRuntime().open(model, optimize=False).run({"x": x})
    for optimize in (False, True):
        (got,) = OnnxRuntime().open(lowered, optimize=optimize).run({"x": x})
        assert got.shape == expected.shape
        steps = np.abs(got - expected) / 0.05
        assert steps.max() <= 1.001
        assert steps.mean() < 0.3
        exact = np.isclose(steps, 0, atol=1e-3) | np.isclose(steps, 1, atol=1e-3)
        assert exact.all()
    kinds = [k.op for k in OnnxRuntime().open(lowered).kernels()]
    assert "QLinearConv" in kinds


@pytest.mark.parametrize(
    "model",
    [
        averaged(kernel_shape=[3, 3], pads=[1, 1, 1, 1]),
        averaged(kernel_shape=[3, 3], ceil_mode=1, strides=[2, 2]),
        averaged(kernel_shape=[3, 3], auto_pad="SAME_UPPER"),
        averaged(extra=True, kernel_shape=[3, 3]),
    ],
    ids=["borders count less", "ceil mode", "auto pad", "read in float"],
)
def test_average_pools_of_another_divisor_or_use_are_left_alone(model: ir.Model) -> None:
    before = graph.to_bytes(model)
    assert average_pools_as_convolutions(model) == 0
    assert graph.to_bytes(model) == before


def test_lowering_works_on_a_copy_and_says_what_it_did() -> None:
    model = thin_conv(3, 2)
    before = graph.to_bytes(model)
    lowered, done = lower(model, VNNI)
    assert done == ["widen-thin-convolutions (1)"]
    assert graph.to_bytes(model) == before
    same_bits(model, lowered, {"x": np.ones((1, 3, 9, 9), np.float32)})
    assert lower(thin_conv(4, 2), VNNI)[1] == []


def test_an_unknown_lowering_is_an_error() -> None:
    target = dataclasses.replace(VNNI, lowerings=("integer-pad",))
    with pytest.raises(InputError, match="unknown lowering 'integer-pad'") as caught:
        lower(thin_conv(3, 2), target)
    assert "integer-pads" in str(caught.value)
