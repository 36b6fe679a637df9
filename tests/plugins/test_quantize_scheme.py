"""Scale, zero point and rounding against the definition, in float64, and against ONNX Runtime."""

from __future__ import annotations

import itertools
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from quantize_models import RUNTIME

from attar.testing.build import Net
from attar_quantize.scheme import QParams, QType, params_of_range, weight_params

Array = np.ndarray[Any, Any]
TYPES = [
    QType(signed=s, bits=b, symmetric=y, narrow=n)
    for s, b, y, n in itertools.product((False, True), (7, 8), (False, True), (False, True))
    if not n or (s and y)
]
TINY = float(np.finfo(np.float32).tiny)
numbers = st.floats(-(2.0**100), 2.0**100, width=32, allow_subnormal=True)
qtypes = st.sampled_from(TYPES)


def codes(qtype: QType) -> Array:
    return np.arange(qtype.qmin, qtype.qmax + 1)


def test_code_ranges_are_those_of_the_integer_types() -> None:
    assert (QType().qmin, QType().qmax) == (0, 255)
    assert (QType(signed=True).qmin, QType(signed=True).qmax) == (-128, 127)
    assert (QType(signed=True, narrow=True).qmin, QType(signed=True, narrow=True).qmax) == (-127, 127)
    assert (QType(signed=True, bits=7).qmin, QType(signed=True, bits=7).qmax) == (-64, 63)
    assert (QType(bits=7).qmin, QType(bits=7).qmax) == (0, 127)


@given(numbers, numbers, qtypes)
def test_zero_is_exact_and_the_range_is_covered(a: float, b: float, qtype: QType) -> None:
    low, high = min(a, b), max(a, b)
    params = params_of_range(low, high, qtype)
    assert params.scale.dtype == np.float32
    assert params.zero_point.dtype == qtype.dtype
    assert np.isfinite(params.scale)
    assert params.scale >= TINY
    assert qtype.qmin <= int(params.zero_point) <= qtype.qmax
    assert params.dequantize(params.quantize(np.zeros(1)))[0] == 0.0
    if qtype.symmetric:
        assert int(params.zero_point) == qtype.middle
    low, high = min(low, 0.0), max(high, 0.0)
    if high - low > 1e3 * TINY * 256:
        slack = float(params.scale) * 0.5001
        assert params.low - slack <= low
        assert high <= params.high + slack
        # Not wider than asked for either: the codes are not wasted.
        width = 2 * max(-low, high) if qtype.symmetric else high - low
        steps = 2 * (qtype.qmax - qtype.middle) if qtype.symmetric else qtype.qmax - qtype.qmin
        assert float(params.scale) == pytest.approx(width / steps, rel=1e-6)


@given(numbers, numbers, qtypes, st.lists(st.floats(0, 1), min_size=1, max_size=20))
def test_codes_are_the_nearest_ones(a: float, b: float, qtype: QType, shares: list[float]) -> None:
    low, high = min(a, b, 0.0), max(a, b, 0.0)
    params = params_of_range(low, high, qtype)
    x = np.array([low + s * (high - low) for s in shares])
    scale, zero = float(params.scale), int(params.zero_point)
    error = np.abs(params.dequantize(params.quantize(x)) - x)
    # By brute force: no other code is nearer, and none in the range is further away than half a step.
    grid = (codes(qtype).astype(np.float64) - zero) * scale
    best = np.abs(x[:, None] - grid[None, :]).min(axis=1)
    np.testing.assert_allclose(error, best, rtol=1e-9, atol=scale * 1e-9)
    assert (error <= scale * 0.5001).all()


@pytest.mark.parametrize("qtype", TYPES, ids=str)
@pytest.mark.parametrize(
    ("low", "high"), [(0, 0), (-3, -1), (2, 5), (7, 7), (-1e-45, 1e-45), (0, 1e-40), (-3e38, 3e38)]
)
def test_degenerate_ranges(qtype: QType, low: float, high: float) -> None:
    params = params_of_range(low, high, qtype)
    assert np.isfinite(params.scale)
    assert params.scale > 0
    for x in (low, high, 0.0):
        back = float(params.dequantize(params.quantize(np.array([x])))[0])
        assert abs(back - x) <= float(params.scale) * 0.5001


@pytest.mark.parametrize("signed", [False, True])
def test_rounding_is_that_of_onnx_runtime(signed: bool) -> None:
    params = params_of_range(-4.0, 255 / 32 - 4.0, QType(signed=signed))  # step 1/32: halves are exact
    assert float(params.scale) == 1 / 32
    x = np.concatenate([np.arange(-400, 400) / 64, [0.0, -0.0, 1e9, -1e9]]).astype(np.float32)
    net = Net("rounding")
    scale, zero = net.const(params.scale), net.const(params.zero_point)
    given_x = net.input("x", len(x))
    quantized = net.op("QuantizeLinear", given_x, scale, zero)
    model = net.model(q=quantized, back=net.op("DequantizeLinear", quantized, scale, zero))
    for optimize in (False, True):
        q, back = RUNTIME.open(model, optimize=optimize).run({"x": x})
        np.testing.assert_array_equal(q, params.quantize(x))
        np.testing.assert_array_equal(back, params.dequantize(q).astype(np.float32))
    assert params.quantize(np.array([0.5, 1.5, 2.5]) / 32).astype(int).tolist() == [
        int(params.zero_point) + k for k in (0, 2, 2)
    ]


@given(st.integers(0, 2**32 - 1), qtypes, st.sampled_from([0, 1, 2]))
def test_per_channel_is_each_channel_alone(seed: int, qtype: QType, axis: int) -> None:
    rng = np.random.default_rng(seed)
    weight = (rng.standard_normal((3, 4, 5)) * 10 ** rng.uniform(-6, 3, (3, 4, 5))).astype(np.float32)
    weight[0] = weight[:, 0] = weight[:, :, 0] = 0.0  # dead in whichever axis
    whole = weight_params(weight, qtype, axis)
    assert whole.scale.shape == whole.zero_point.shape == (weight.shape[axis],)
    for i in range(weight.shape[axis]):
        channel = np.take(weight, i, axis)
        alone = weight_params(channel, qtype, None)
        assert whole.scale[i] == alone.scale
        assert whole.zero_point[i] == alone.zero_point
        np.testing.assert_array_equal(np.take(whole.quantize(weight), i, axis), alone.quantize(channel))
    np.testing.assert_allclose(
        np.take(whole.dequantize(whole.quantize(weight)), 0, axis), np.take(weight, 0, axis), atol=0
    )


def test_negative_axis_and_layout_of_dequantized_values() -> None:
    weight = np.array([[1.0, -100.0], [-0.5, 50.0]], np.float32)
    params = weight_params(weight, QType(signed=True, symmetric=True, narrow=True), 1)
    np.testing.assert_allclose(params.scale, [1 / 127, 100 / 127], rtol=1e-6)
    np.testing.assert_array_equal(params.quantize(weight), [[127, -127], [-64, 64]])
    by_hand = QParams(params.qtype, params.scale, params.zero_point, 1)
    np.testing.assert_allclose(by_hand.dequantize(by_hand.quantize(weight)), weight, atol=50 / 127)
