"""Biases in the accumulator's unit, and their correction, against sums written out in float64."""

from __future__ import annotations

from typing import Any

import numpy as np
import onnx_ir as ir
import pytest
from hypothesis import given
from hypothesis import strategies as st
from quantize_models import normal, one_layer, quantize, run

from attar.testing.build import Net
from attar_quantize.bias import bias_codes, correction, weight_scales_for_bias

Array = np.ndarray[Any, Any]


@given(st.integers(0, 2**32 - 1))
def test_bias_codes_are_within_half_a_unit(seed: int) -> None:
    rng = np.random.default_rng(seed)
    bias = rng.standard_normal(9)
    weight_scale, input_scale = (
        rng.uniform(1e-4, 1e-1, 9).astype(np.float32),
        np.float32(rng.uniform(1e-3, 1)),
    )
    codes, scale = bias_codes(bias, weight_scale, input_scale)
    assert codes.dtype == np.int32
    assert scale.dtype == np.float32
    np.testing.assert_allclose(scale, weight_scale.astype(np.float64) * input_scale, rtol=1e-6)
    assert (np.abs(codes * scale.astype(np.float64) - bias) <= scale * 0.5001).all()


@given(st.integers(0, 2**32 - 1), st.booleans())
def test_scales_leave_room_for_the_bias(seed: int, per_channel: bool) -> None:
    rng = np.random.default_rng(seed)
    bias = rng.standard_normal(6) * 10.0 ** rng.uniform(-3, 12, 6)
    scale = (10.0 ** rng.uniform(-30, 0, 6)).astype(np.float32)
    scale = scale if per_channel else scale[0]
    input_scale = np.float32(10 ** rng.uniform(-6, 2))
    raised = weight_scales_for_bias(np.asarray(scale), bias, input_scale)
    assert (raised >= scale).all()
    assert raised.dtype == np.float32
    room = raised.astype(np.float64) * input_scale * (2**31 - 1)
    assert (np.abs(bias) <= room * 0.51).all()
    untouched = np.abs(bias) * 2 < np.asarray(scale, np.float64) * input_scale * (2**31 - 1)
    if per_channel:
        np.testing.assert_array_equal(raised[untouched], scale[untouched])
    np.testing.assert_array_equal(weight_scales_for_bias(np.asarray(scale), None, input_scale), scale)


@pytest.mark.parametrize("groups", [1, 2, 4, 8])
@pytest.mark.parametrize("kernel", [(3,), (3, 3), (2, 3, 2)])
def test_correction_is_the_mean_of_the_error_of_a_convolution(groups: int, kernel: tuple[int, ...]) -> None:
    """Inputs that are constant per channel and a kernel without padding: the mean is exact, by convolving."""
    rng = np.random.default_rng(0)
    error, mean = rng.standard_normal((16, 8 // groups, *kernel)), rng.standard_normal(8)
    node = ir.node("Conv", [None, None], attributes={"group": groups})
    inside, outside = 8 // groups, 16 // groups
    expected = np.zeros(16)
    for o in range(16):
        for i in range(inside):
            expected[o] += error[o, i].sum() * mean[(o // outside) * inside + i]
    np.testing.assert_allclose(correction(node, error, mean), expected, rtol=1e-12)
    by_einsum = np.einsum(
        "goik,gi->go", error.reshape(groups, outside, inside, -1), mean.reshape(groups, inside)
    )
    np.testing.assert_allclose(correction(node, error, mean), by_einsum.reshape(-1), rtol=1e-12)


def test_correction_of_matrices() -> None:
    rng = np.random.default_rng(1)
    error, mean = rng.standard_normal((5, 7)), rng.standard_normal(5)
    np.testing.assert_allclose(correction(ir.node("MatMul", [None, None]), error, mean), mean @ error)
    transposed = ir.node("Gemm", [None, None], attributes={"transB": 1})
    np.testing.assert_allclose(correction(transposed, np.ascontiguousarray(error.T), mean), mean @ error)


LAYERS: dict[str, tuple[Any, tuple[int, ...]]] = {
    "conv": (lambda net, x: net.conv(x, 16, 12), (4, 16, 16, 16)),
    "conv without bias": (lambda net, x: net.conv(x, 16, 12, (1, 1), bias=False), (4, 16, 16, 16)),
    "grouped": (lambda net, x: net.conv(x, 16, 12, group=4), (4, 16, 16, 16)),
    "depthwise": (lambda net, x: net.conv(x, 16, 16, group=16), (4, 16, 16, 16)),
    "gemm": (lambda net, x: net.dense(x, 64, 12), (256, 64)),
    "matmul with bias": (lambda net, x: net.dense(x, 64, 12, gemm=False), (256, 64)),
}


@pytest.mark.parametrize("name", LAYERS)
def test_means_of_the_outputs_come_nearer(name: str) -> None:
    """Weights of 7 bits in one scale, inputs far from zero: rounding shifts means, correcting takes that out.

    Measured at float outputs behind the layer: the mean over data of quantized minus float, by channel.
    """
    make, shape = LAYERS[name]

    def spread(net: Net, x: ir.Value) -> ir.Value:
        y = make(net, x)
        weight = next(v for v in net.initializers if (v.name or "").endswith("weight"))
        array = weight.const_value.numpy().copy()  # type: ignore[union-attr]
        array.reshape(-1)[0] = 4.0  # one large weight makes the common step coarse
        weight.const_value = ir.tensor(array, name=weight.name)
        return y

    model = one_layer(spread, "N", *shape[1:])
    feeds = [{"x": np.abs(f["x"]) + 1} for f in normal("x", *shape, batches=3)]
    shifts = {}
    for corrected in (False, True):
        quantized, _ = quantize(
            model,
            feeds,
            bias_correction=corrected,
            granularity="per_tensor",
            reduce_range=True,
            observer="minmax",
        )
        inner = (slice(None), slice(None)) + (slice(1, -1),) * (len(shape) - 2)  # borders see padding
        difference = np.concatenate([run(quantized, f)[0][inner] - run(model, f)[0][inner] for f in feeds])
        axes = tuple(a for a in range(difference.ndim) if a != 1)
        shifts[corrected] = float(np.abs(difference.mean(axis=axes)).mean())
    assert shifts[True] < 0.35 * shifts[False], shifts
