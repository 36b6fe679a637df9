"""Every type a quantizer knows: against float64 formulas, the ONNX reference evaluator and ONNX's packing."""

from __future__ import annotations

from typing import Any

import ml_dtypes
import numpy as np
import onnx
import onnx_ir as ir
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from onnx.reference import ReferenceEvaluator

from attar.errors import InputError
from attar_quantize.scheme import FORMATS, QParams, QType, params_of_range, weight_params
from attar_quantize.storage import Store, packed

Array = np.ndarray[Any, Any]
INTEGERS = [f"{u}int{b}" for b in (2, 3, 4, 5, 7, 8, 9, 12, 16) for u in ("", "u")]
SCALED = [f for f in FORMATS if not f.endswith("float16")]
seeds = st.integers(0, 2**32 - 1)


def drawn(seed: int, *shape: int, spread: float = 2.0) -> Array:
    rng = np.random.default_rng(seed)
    return (rng.standard_normal(shape) * 10 ** rng.uniform(-spread, spread, shape)).astype(np.float32)


def test_names_say_what_the_type_is() -> None:
    for name in (*INTEGERS, *FORMATS):
        assert QType.of(name).name == name
    assert (QType.of("int4").qmin, QType.of("int4").qmax) == (-8, 7)
    assert (QType.of("uint2").qmin, QType.of("uint2").qmax) == (0, 3)
    assert (QType.of("int16").qmin, QType.of("uint16").qmax) == (-32768, 65535)
    assert QType.of("float8e4m3fn").qmax == 448
    assert QType.of("float8e5m2").qmax == 57344
    assert QType.of("float4e2m1").qmax == 6


def test_codes_live_in_the_narrowest_type_that_holds_them() -> None:
    stored = {name: QType.of(name).stored.name for name in ("int2", "uint3", "int4", "int5", "uint8", "int9")}
    assert stored == {
        "int2": "INT2", "uint3": "UINT4", "int4": "INT4", "int5": "INT8", "uint8": "UINT8", "int9": "INT16",
    }  # fmt: skip
    assert QType.of("uint3").dtype == np.uint8
    assert QType.of("int12").dtype == np.int16
    assert [QType.of(n).opset for n in ("int8", "int4", "uint2", "float4e2m1")] == [21, 21, 25, 23]


@pytest.mark.parametrize(
    ("make", "said"),
    [
        (lambda: QType.of("int17"), "1 to 16 bits"),
        (lambda: QType.of("in8"), "no type 'in8'"),
        (lambda: QType.of("float9"), "no type"),
        (lambda: QType(format="fp8"), "no float format"),
        (lambda: QType(bits=0), "1 to 16 bits"),
        (lambda: QType(signed=True, symmetric=True, bits=1), "2 bits"),
        (lambda: QType(block=-1), "at least one"),
    ],
)
def test_what_is_no_type_is_refused(make: Any, said: str) -> None:
    with pytest.raises(InputError, match=said):
        make()


@given(seeds, st.sampled_from(INTEGERS), st.booleans(), st.booleans())
def test_codes_of_any_width_are_the_nearest(seed: int, name: str, symmetric: bool, two: bool) -> None:
    qtype = QType.of(name, symmetric=symmetric, power_of_two=two)
    x = drawn(seed, 64)
    params = weight_params(x, qtype, None)
    codes = params.quantize(x)
    assert codes.min() >= qtype.qmin
    assert codes.max() <= qtype.qmax
    assert float(params.dequantize(params.quantize(np.zeros(1)))[0]) == 0.0
    scale, zero = float(params.scale), int(params.zero_point)
    if two:
        assert np.frexp(scale)[0] == 0.5
    # By brute force over all codes of the type.
    grid = (np.arange(qtype.qmin, qtype.qmax + 1, dtype=np.float64) - zero) * scale
    best = np.array([np.abs(grid - v).min() for v in x.astype(np.float64)])
    np.testing.assert_allclose(np.abs(params.dequantize(codes) - x), best, rtol=1e-9, atol=1e-9 * scale)
    if qtype.bits > 2 or not symmetric:  # two symmetric bits have one code above zero and two below
        assert best.max() <= (0.5001 + (qtype.qmax - qtype.qmin) * 2.0**-23) * scale


@given(seeds, st.sampled_from(SCALED))
def test_small_floats_are_rounded_half_to_even_and_saturate(seed: int, name: str) -> None:
    qtype = QType.of(name)
    x = drawn(seed, 200)
    params = weight_params(x, qtype, None)
    codes = params.quantize(x)
    # All numbers of the format, by their bits.
    bits = qtype.stored.bitwidth
    if bits == 8:
        grid = np.arange(256, dtype=np.uint8).view(qtype.dtype).astype(np.float64)
    else:
        grid = np.arange(16, dtype=np.uint8).astype(np.uint8).view(ml_dtypes.float4_e2m1fn).astype(np.float64)
    grid = np.unique(grid[np.isfinite(grid)]) * float(params.scale)
    best = np.array([np.abs(grid - v).min() for v in x.astype(np.float64)])
    np.testing.assert_allclose(np.abs(params.dequantize(codes) - x), best, rtol=1e-7, atol=1e-12)
    beyond = params.quantize(np.array([1e30, -1e30]))
    assert params.dequantize(beyond).tolist() == [params.high, params.low]
    assert params.dequantize(params.quantize(np.zeros(1)))[0] == 0.0


def test_half_to_even_between_neighbours_of_a_float_format() -> None:
    params = QParams(QType.of("float4e2m1"), np.float32(1), np.zeros((), ml_dtypes.float4_e2m1fn))
    # Neighbours: 0, 0.5, 1, 1.5, 2, 3, 4, 6; even ones are those with an even last bit: 0, 1, 2, 4.
    halfway = np.array([0.25, 0.75, 1.25, 1.75, 2.5, 3.5, 5.0])
    assert params.dequantize(params.quantize(halfway)).tolist() == [0, 1, 1, 2, 2, 4, 4]


def test_sixteen_bit_floats_are_a_cast() -> None:
    x = np.array([1e-3, 3.14159, -60000.0], np.float32)
    for name, dtype in (("float16", np.float16), ("bfloat16", ml_dtypes.bfloat16)):
        params = weight_params(x, QType.of(name), None)
        assert float(params.scale) == 1.0
        np.testing.assert_array_equal(params.quantize(x), x.astype(dtype))


@settings(deadline=None)
@given(
    seeds,
    st.sampled_from(["int2", "uint4", "int4", "int8", "uint8", "int16", "float8e4m3fn"]),
    st.integers(1, 9),
    st.sampled_from([0, 1, 2, -1]),
)
def test_blocks_are_tensors_of_their_own(seed: int, name: str, block: int, axis: int) -> None:
    weight = drawn(seed, 5, 7, 6)
    qtype = QType.of(name, block=block)
    whole = weight_params(weight, qtype, axis)
    codes = whole.quantize(weight)
    size = weight.shape[axis]
    assert whole.scale.shape[axis] == -(-size // block)
    for start in range(0, size, block):
        some = np.arange(start, min(size, start + block))
        part = np.take(weight, some, axis)
        # Column by column: every run of the block has a scale of its own.
        others = np.moveaxis(part, axis, -1).reshape(-1, len(some))
        mine = np.moveaxis(np.take(codes, some, axis), axis, -1).reshape(-1, len(some))
        for row, got in zip(others, mine, strict=True):
            alone = weight_params(row, qtype, None)
            np.testing.assert_array_equal(got, alone.quantize(row))
    error = np.abs(whole.dequantize(codes) - weight)
    if not qtype.format:
        steps = np.take(whole.scale, np.arange(size) // block, axis)
        # The scale is rounded to float32, which counts for each of the codes.
        assert (error <= (0.5001 + (qtype.qmax - qtype.qmin) * 2.0**-23) * steps).all()


def _dequantized_by_reference(codes: ir.TensorProtocol, params: QParams, opset: int) -> Array:
    zero = Store().tensor(np.atleast_1d(params.zero_point), params.qtype, "z")
    zero_shape = params.zero_point.shape
    tensors = [
        ir.serde.serialize_tensor(codes),
        onnx.numpy_helper.from_array(params.scale, "s"),
        ir.serde.serialize_tensor(zero),
    ]
    del tensors[2].dims[:]
    tensors[2].dims.extend(zero_shape)
    attributes: dict[str, int] = {} if params.axis is None else {"axis": params.axis}
    if params.block:
        attributes["block_size"] = params.block
    node = onnx.helper.make_node("DequantizeLinear", ["q", "s", "z"], ["y"], **attributes)
    out = onnx.helper.make_tensor_value_info("y", onnx.TensorProto.FLOAT, list(codes.shape.numpy()))
    made = onnx.helper.make_graph([node], "g", [], [out], tensors)
    model = onnx.helper.make_model(made, opset_imports=[onnx.helper.make_opsetid("", opset)])
    onnx.checker.check_model(model)
    return np.asarray(ReferenceEvaluator(model).run(None, {})[0])


@settings(deadline=None, max_examples=60)
@given(
    seeds,
    st.sampled_from(["int2", "uint2", "int4", "uint4", "int8", "uint8", "int16", "uint16", *SCALED[:1]]),
    st.sampled_from(["tensor", "channel", "block"]),
    st.booleans(),
)
def test_what_is_stored_is_what_onnx_reads(seed: int, name: str, share: str, symmetric: bool) -> None:
    qtype = QType.of(name, block=3 if share == "block" else 0, symmetric=symmetric)
    weight = drawn(seed, 6, 5)
    params = weight_params(weight, qtype, None if share == "tensor" else 0)
    codes = params.quantize(weight)
    stored = Store().tensor(codes, qtype, "q")
    assert stored.dtype == qtype.stored
    got = _dequantized_by_reference(stored, params, 25)
    expected = params.dequantize(codes)
    np.testing.assert_allclose(got, expected, rtol=1e-6)


@given(seeds, st.integers(0, 40), st.sampled_from(["int2", "uint2", "int4", "uint4"]))
def test_packing_is_onnx_s(seed: int, size: int, name: str) -> None:
    qtype = QType.of(name)
    codes = np.random.default_rng(seed).integers(qtype.qmin, qtype.qmax + 1, size).astype(qtype.dtype)
    tensor = ir.serde.serialize_tensor(ir.tensor(codes.astype(qtype.stored.numpy()), dtype=qtype.stored))
    assert packed(codes, qtype.stored).tobytes() == tensor.raw_data


def test_power_of_two_covers_the_range_and_is_not_wasteful() -> None:
    for reach in (1.0, 0.99, 1.01, 127.0, 128.0, 3e-5):
        params = params_of_range(-reach, reach, QType.of("int8", symmetric=True, power_of_two=True))
        exact = reach / 127
        assert exact <= float(params.scale) < 2 * exact * (1 + 1e-6)
        assert np.frexp(float(params.scale))[0] == 0.5
