"""Single layers in integers: weights, biases, operators that move values, and what is left alone."""

from __future__ import annotations

from typing import Any

import numpy as np
import onnx_ir as ir
import pytest
from quantize_models import (
    activation_steps,
    constant,
    dequantize_of,
    is_quantized,
    kernels,
    node_of,
    normal,
    one_layer,
    quantize,
    run,
    small_cnn,
    sqnr,
    steps_apart,
)

from attar import graph
from attar.errors import Refused
from attar.testing import ZOO
from attar.testing.build import HALF, Net
from attar_fuse import Fuse

Array = np.ndarray[Any, Any]


# -- weights and biases ----------------------------------------------------------------------------------


def test_shared_weight_and_bias_are_stored_once_and_read_with_each_scale() -> None:
    net = Net("shared", 36)
    weight, bias = net.weight(8, 8, 3, 3, name="w"), net.vector(8, -2, 2, "b")
    x = net.input("x", "N", 8, 8, 8)
    for _ in range(2):
        x = net.op("Relu", net.op("Conv", x, weight, bias, pads=[1, 1, 1, 1]))
    model = net.model(y=x)
    feeds = normal("x", 4, 8, 8, 8)
    quantized, _ = quantize(model, feeds, bias_correction=False)
    first, second = (n for n in quantized.graph if n.op_type == "Conv")
    assert dequantize_of(first.inputs[1]).inputs[0] is dequantize_of(second.inputs[1]).inputs[0]
    for conv in (first, second):
        stored = dequantize_of(conv.inputs[2])
        back = constant(stored.inputs[0]) * constant(stored.inputs[1]).astype(np.float64)
        np.testing.assert_allclose(back, constant(bias), atol=float(constant(stored.inputs[1]).max()))
        product = constant(dequantize_of(conv.inputs[0]).inputs[1]) * constant(
            dequantize_of(conv.inputs[1]).inputs[1]
        )
        np.testing.assert_allclose(constant(stored.inputs[1]), product, rtol=1e-6)
    assert sqnr(run(model, feeds[0])[0], run(quantized, feeds[0])[0]) > 25


def test_tied_weights_read_along_both_axes() -> None:
    """An autoencoder whose decoder is its encoder transposed: outputs lie along both axes of one weight."""
    net = Net("tied", 37)
    weight = net.weight(6, 10, name="w")
    code = net.op("Relu", net.op("Gemm", net.input("x", "N", 10), weight, net.vector(6, -1, 1), transB=1))
    model = net.model(y=net.op("Gemm", code, weight, net.vector(10, -1, 1)))
    feeds = normal("x", 32, 10)
    quantized, _ = quantize(model, feeds)
    assert all(is_quantized(n) for n in quantized.graph if n.op_type == "Gemm")
    assert sqnr(run(model, feeds[0])[0], run(quantized, feeds[0])[0]) > 25


def test_one_value_read_by_layers_along_different_axes() -> None:
    net = Net("torn", 38)
    x = net.input("x", "N", 12, 10)
    model = net.model(a=net.conv(x, 12, 8, (3,)), b=net.dense(x, 10, 5, gemm=False))
    feeds = [{"x": f["x"] + np.arange(12, dtype=np.float32)[:, None]} for f in normal("x", 8, 12, 10)]
    quantized, _ = quantize(model, feeds)
    for before, after in zip(run(model, feeds[0]), run(quantized, feeds[0]), strict=True):
        assert sqnr(before, after) > 30


LAYERS: dict[str, Any] = {
    "conv": (lambda net, x: net.conv(x, 8, 12), ("N", 8, 7, 9), 0, 12),
    "conv without bias": (lambda net, x: net.conv(x, 8, 12, bias=False), ("N", 8, 7, 9), 0, 12),
    "depthwise": (lambda net, x: net.conv(x, 8, 16, group=8), ("N", 8, 7, 9), 0, 16),
    "grouped": (lambda net, x: net.conv(x, 8, 12, group=4), ("N", 8, 7, 9), 0, 12),
    "strided 1d": (lambda net, x: net.conv(x, 8, 12, (5,), stride=2), ("N", 8, 21), 0, 12),
    "3d": (lambda net, x: net.conv(x, 3, 9, (3, 3, 3)), ("N", 3, 5, 6, 7), 0, 9),
    "gemm transB": (lambda net, x: net.dense(x, 8, 12), ("N", 8), 0, 12),
    "gemm": (lambda net, x: net.op("Gemm", x, net.weight(8, 12), net.vector(12, -1, 1)), ("N", 8), 1, 12),
    "gemm with a row": (
        lambda net, x: net.op("Gemm", x, net.weight(8, 12), net.const(np.ones((1, 12), np.float32))),
        ("N", 8),
        1,
        12,
    ),
    "gemm without C": (lambda net, x: net.op("Gemm", x, net.weight(8, 12)), ("N", 8), 1, 12),
    "matmul": (lambda net, x: net.op("MatMul", x, net.weight(8, 12)), ("N", "S", 8), 1, 12),
    "matmul with bias": (lambda net, x: net.dense(x, 8, 12, gemm=False), ("N", "S", 8), 1, 12),
    "matmul 4d": (lambda net, x: net.dense(x, 8, 12, gemm=False), ("N", 2, 3, 8), 1, 12),
}


@pytest.mark.parametrize("name", LAYERS)
def test_layers(name: str) -> None:
    make, shape, axis, channels = LAYERS[name]
    model = one_layer(make, *shape)
    sizes = [{"N": 4, "S": 5}.get(s, s) for s in shape]
    feeds = normal("x", *sizes)
    quantized, _ = quantize(model, feeds)
    main = next(n for n in quantized.graph if n.op_type in ("Conv", "Gemm", "MatMul"))
    assert is_quantized(main)
    weight = dequantize_of(main.inputs[1])
    assert constant(weight.inputs[0]).dtype == np.int8
    assert weight.attributes["axis"].value == axis
    assert constant(weight.inputs[1]).shape == (channels,)
    for optimize in (False, True):
        assert sqnr(run(model, feeds[0])[0], run(quantized, feeds[0], optimize=optimize)[0]) > 30


def test_a_square_gemm_whose_c_is_a_column_is_not_taken_for_a_bias() -> None:
    def make(net: Net, x: ir.Value) -> ir.Value:
        return net.op("Gemm", x, net.weight(4, 4), net.const(np.arange(4, dtype=np.float32)[:, None] * 10))

    model = one_layer(make, 4, 4)
    with pytest.raises(Refused) as refusal:
        quantize(model, normal("x", 4, 4))
    assert [why for _, why in refusal.value.nodes] == ["its C is not a bias vector"]


@pytest.mark.parametrize("bias", [1e3, 1e9])
def test_a_dead_channel_with_a_large_bias_does_not_overflow_32_bits(bias: float) -> None:
    def make(net: Net, x: ir.Value) -> ir.Value:
        weight = net.array(8, 4, 3, 3)
        weight[0], weight[1] = 0, 1e-12
        offsets = np.linspace(-1, 1, 8).astype(np.float32)
        offsets[:2] = bias, -bias
        return net.op("Conv", x, net.const(weight), net.const(offsets))

    model, feeds = one_layer(make, "N", 4, 8, 8), normal("x", 2, 4, 8, 8)
    quantized, _ = quantize(model, feeds, observer="minmax")
    stored = dequantize_of(node_of(quantized, "Conv").inputs[2])
    codes, scale = constant(stored.inputs[0]).astype(np.int64), constant(stored.inputs[1]).astype(np.float64)
    assert np.abs(codes).max() < 2**31 - 1
    np.testing.assert_allclose((codes * scale)[:2], [bias, -bias], rtol=1e-3)
    step = max(activation_steps(quantized))
    for optimize in (False, True):
        for channel in (0, 1):
            got = run(quantized, feeds[0], optimize=optimize)[0][:, channel]
            np.testing.assert_allclose(got, (bias, -bias)[channel], atol=step + 1e-3 * bias)


# -- movers, concat --------------------------------------------------------------------------------------


MOVES: dict[str, Any] = {
    "MaxPool": lambda net, x: net.op("MaxPool", x, kernel_shape=[2, 2]),
    "Reshape": lambda net, x: net.op("Reshape", x, net.ints([0, 8, 4, 16])),
    "Transpose": lambda net, x: net.op("Transpose", x, perm=[0, 1, 3, 2]),
    "Slice": lambda net, x: net.op("Slice", x, net.ints([1]), net.ints([6]), net.ints([2])),
    "Pad": lambda net, x: net.op("Pad", x, net.ints([0, 0, 1, 1, 0, 0, 1, 1])),
    "Split": lambda net, x: net.op("Concat", *net.ops("Split", x, count=2, axis=2, num_outputs=2), axis=2),
}


@pytest.mark.parametrize("name", MOVES)
def test_moves_keep_the_scale(name: str) -> None:
    def make(net: Net, x: ir.Value) -> ir.Value:
        return net.conv(MOVES[name](net, net.op("Relu", net.conv(x, 4, 8))), 8, 8)

    model, feeds = one_layer(make, "N", 4, 8, 8), normal("x", 2, 4, 8, 8)
    quantized, _ = quantize(model, feeds)
    (mover,) = (n for n in quantized.graph if n.op_type == name)
    before = dequantize_of(mover.inputs[0])
    for output in mover.outputs:
        for reader, _ in output.uses():
            assert reader.op_type == "QuantizeLinear"
            assert [constant(v).tolist() for v in reader.inputs[1:]] == [
                constant(v).tolist() for v in before.inputs[1:]
            ]
    plain, fused = run(quantized, feeds[0], optimize=False), run(quantized, feeds[0])
    assert steps_apart(quantized, plain, fused) <= 3


def joined(gain: float) -> ir.Model:
    def make(net: Net, x: ir.Value) -> ir.Value:
        weight = net.array(8, 4, 3, 3)
        same = {"pads": [1, 1, 1, 1]}
        left = net.op("Conv", x, net.const(weight), **same)
        right = net.op("Conv", x, net.const((weight * gain).astype(np.float32)), **same)
        return net.conv(net.op("Concat", left, right, axis=1), 16, 8)

    return one_layer(make, "N", 4, 8, 8)


@pytest.mark.parametrize(("gain", "shared"), [(1.05, True), (8.0, False)])
def test_concat_shares_a_scale_only_where_little_is_lost(gain: float, shared: bool) -> None:
    feeds = normal("x", 2, 4, 8, 8)
    model = joined(gain)
    quantized, _ = quantize(model, feeds)
    concat = node_of(quantized, "Concat")
    left, right = (float(constant(dequantize_of(v).inputs[1])) for v in concat.inputs)
    assert (left == right) == shared
    if not shared:
        assert right / left == pytest.approx(gain, rel=0.2)
    assert sqnr(run(model, feeds[0])[0], run(quantized, feeds[0])[0]) > 25


# -- left alone ------------------------------------------------------------------------------------------


def reasons(model: ir.Model, feeds: list[dict[str, Array]]) -> list[str]:
    with pytest.raises(Refused) as refusal:
        quantize(model, feeds)
    return [why for _, why in refusal.value.nodes]


def test_what_has_no_integer_kernel_is_left_with_a_reason() -> None:
    net = Net("dynamic", 39)
    x, w = net.input("x", 1, 4, 8, 8), net.input("w", 8, 4, 3, 3)
    model = net.model(y=net.op("Conv", x, w))
    rng = np.random.default_rng(0)
    feeds = [{"x": rng.random((1, 4, 8, 8), np.float32), "w": rng.random((8, 4, 3, 3), np.float32)}]
    assert reasons(model, feeds) == ["its weight is not constant"]
    half = ZOO["half"]
    found = reasons(half.build(), [half.inputs()])
    assert len(found) == 2
    assert all("float32" in why and "FLOAT16" in why for why in found)


def test_a_mask_of_minus_infinity_stays_in_float() -> None:
    mask = np.zeros((1, 1, 8), np.float32)
    mask[..., 5] = -np.inf

    def make(net: Net, x: ir.Value) -> ir.Value:
        scores = net.op("Add", net.dense(net.op("Tanh", x), 8, 8, gemm=False), net.const(mask, "mask"))
        return net.op("MatMul", net.op("Softmax", scores), net.weight(8, 4))

    model, feeds = one_layer(make, "N", 6, 8), normal("x", 4, 6, 8)
    quantized, _ = quantize(model, feeds)
    assert "mask" in quantized.graph.initializers
    assert sqnr(run(model, feeds[0])[0], run(quantized, feeds[0])[0]) > 25


def test_a_weight_that_is_not_finite_is_left_in_float() -> None:
    weight = np.ones((8, 4), np.float32)
    weight[3, 2] = np.inf
    model = one_layer(lambda net, x: net.op("MatMul", x, net.const(weight)), "N", 8)
    assert reasons(model, normal("x", 4, 8)) == ["its weight has NaN or infinite elements"]


def test_a_quantized_model_is_not_quantized_twice() -> None:
    feeds = normal("x", 2, 3, 8, 8)
    once, _ = quantize(small_cnn(), feeds)
    with pytest.raises(Refused):
        quantize(once, feeds)


def test_half_precision_inside_a_float_graph() -> None:
    """Only the float32 part becomes integer."""
    net = Net("mixed", 40)
    x = net.op("Relu", net.conv(net.input("x", "N", 4, 8, 8), 4, 8))
    low = net.op("Cast", x, to=HALF.value)
    weight = net.const(net.array(8, 8, 1, 1).astype(np.float16))
    model = net.model(y=net.op("Conv", low, weight))
    quantized, ctx = quantize(model, normal("x", 2, 4, 8, 8))
    assert [is_quantized(n) for n in quantized.graph if n.op_type == "Conv"] == [True, False]
    assert len(ctx.step.skipped) == 1
    assert "FLOAT16" in ctx.step.skipped[0].reason


# -- integer kernels -------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "name", [n for n, z in ZOO.items() if "conv" in z.tags and not {"half", "quantized"} & z.tags]
)
def test_onnx_runtime_runs_every_quantized_convolution_on_integers(name: str) -> None:
    zoo = ZOO[name]
    model = zoo.build()
    graph.normalize(model)
    feeds = [zoo.inputs(seed=i) for i in range(2)]
    fused, _ = quantize(model, feeds, Fuse())
    quantized, _ = quantize(fused, feeds)
    convs = [n for n in quantized.graph if n.op_type == "Conv"]
    assert convs
    assert all(is_quantized(n) for n in convs)
    found = kernels(quantized)
    assert found["QLinearConv"] == len(convs), found
    assert not {"Conv", "FusedConv", "NhwcFusedConv"} & set(found)
