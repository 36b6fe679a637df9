"""The mathematics of quantization: what codes a type has, and the way from numbers to codes and back.

    q = clip(round(x / s) + z, qmin, qmax)        x' = s (q - z)

Rounding is half to even, as ONNX's QuantizeLinear has it; zero is always exactly representable, because
padding, ReLU and masks put exact zeros into every network. `docs/quantization.md` derives s and z. Types of
small floats (`format`) have a grid of their own: q is then the nearest such number to x / s, and z is 0.
"""

from __future__ import annotations

import re
from dataclasses import dataclass, replace
from typing import Any

import ml_dtypes
import numpy as np
import onnx_ir as ir

from attar.errors import InputError, did_you_mean

Array = np.ndarray[Any, np.dtype[Any]]

FORMATS: dict[str, ir.DataType] = {
    "float16": ir.DataType.FLOAT16,
    "bfloat16": ir.DataType.BFLOAT16,
    "float8e4m3fn": ir.DataType.FLOAT8E4M3FN,
    "float8e4m3fnuz": ir.DataType.FLOAT8E4M3FNUZ,
    "float8e5m2": ir.DataType.FLOAT8E5M2,
    "float8e5m2fnuz": ir.DataType.FLOAT8E5M2FNUZ,
    "float4e2m1": ir.DataType.FLOAT4E2M1,
}
"""Floats of 16 bits and fewer, by name: stored as they are, scaled so that the range fits."""

_SCALELESS = ("float16", "bfloat16")  # 5 and 8 bits of exponent: a cast, not a quantization
_NAME = re.compile(r"(u?)int(\d+)")
# Codes are stored in the narrowest type of ONNX that holds them.
_WIDTHS = (2, 4, 8, 16)


@dataclass(frozen=True)
class QType:
    """A type as a quantizer uses it: its codes, where its zero lies, and what shares a scale.

    Attributes:
        signed: int8 rather than uint8.
        bits: how many bits are used, 1 to 16; those that ONNX has no type for live in the next wider one
            (7 where 16-bit sums saturate).
        symmetric: zero point fixed at the middle: 0 for signed, 128 for unsigned types.
        narrow: the lowest code is left out, so that the range is symmetric about zero (weights).
        format: a float format of `FORMATS` instead of integers; it is signed and symmetric.
        block: so many neighbours along an axis share a scale; 0: a whole channel or tensor does.
        power_of_two: scales are rounded up to powers of two, which hardware multiplies with by shifting.
    """

    signed: bool = False
    bits: int = 8
    symmetric: bool = False
    narrow: bool = False
    format: str = ""
    block: int = 0
    power_of_two: bool = False

    def __post_init__(self) -> None:
        if self.format:
            if self.format not in FORMATS:
                raise InputError(
                    f"no float format {self.format!r}", hint=did_you_mean(self.format, list(FORMATS))
                )
            for name, value in (("signed", True), ("symmetric", True), ("bits", self.stored.bitwidth)):
                object.__setattr__(self, name, value)
        if not 1 <= self.bits <= 16:
            raise InputError(f"a quantized type has 1 to 16 bits, not {self.bits}")
        if self.symmetric and self.signed and self.bits < 2:
            raise InputError("a symmetric type needs 2 bits: one bit has no code on both sides of zero")
        if self.block < 0:
            raise InputError(f"a block has at least one element, not {self.block}")

    @classmethod
    def of(cls, name: str, **changes: Any) -> QType:
        """The type called `name`: int2 ... uint16 or a float format, with other attributes by name.

        Raises:
            InputError: there is no such type, or an attribute does not fit it.
        """
        if name in FORMATS:
            return cls(format=name, **changes)
        found = _NAME.fullmatch(name)
        if not found:
            known = [f"{u}int{b}" for b in _WIDTHS for u in ("", "u")]
            raise InputError(f"no type {name!r}", hint=did_you_mean(name, [*known, *FORMATS]))
        return cls(signed=not found[1], bits=int(found[2]), **changes)

    @property
    def name(self) -> str:
        """As `of` takes it."""
        return self.format or f"{'' if self.signed else 'u'}int{self.bits}"

    @property
    def dtype(self) -> np.dtype[Any]:
        """The numpy type in which codes are handled."""
        if self.format:
            return np.dtype(self.stored.numpy())
        width = 8 if self.bits <= 8 else 16
        return np.dtype(f"{'' if self.signed else 'u'}int{width}")

    @property
    def stored(self) -> ir.DataType:
        """The ONNX type in which codes are stored."""
        if self.format:
            return FORMATS[self.format]
        width = next(w for w in _WIDTHS if w >= self.bits)
        return ir.DataType[f"{'' if self.signed else 'U'}INT{width}"]

    @property
    def element(self) -> ir.DataType:
        """The ONNX type of activations: whole bytes, which kernels read and write."""
        return (
            self.stored
            if self.format
            else ir.DataType[f"{'' if self.signed else 'U'}INT{8 if self.bits <= 8 else 16}"]
        )

    @property
    def is_clipped(self) -> bool:
        """Whether its codes end before those of its element type, where QuantizeLinear saturates."""
        return not self.format and self.bits not in (8, 16)

    @property
    def opset(self) -> int:
        """The first opset whose DequantizeLinear takes it."""
        if self.stored in (ir.DataType.INT2, ir.DataType.UINT2):
            return 25
        return 23 if self.stored == ir.DataType.FLOAT4E2M1 else 21

    @property
    def qmin(self) -> Any:
        if self.format:
            return -self.qmax
        low = -(1 << (self.bits - 1)) if self.signed else 0
        return low + 1 if self.narrow else low

    @property
    def qmax(self) -> Any:
        if self.format:
            return largest(self.stored)
        return (1 << (self.bits - 1)) - 1 if self.signed else (1 << self.bits) - 1

    @property
    def middle(self) -> int:
        return 0 if self.signed else 1 << (self.bits - 1)


@dataclass(frozen=True, eq=False)
class QParams:
    """Scale and zero point of one tensor: scalars, one each along `axis`, or (blockwise types) arrays of the
    tensor's rank with ceil(n / block) entries along `axis`."""

    qtype: QType
    scale: Array
    zero_point: Array
    axis: int | None = None

    @property
    def low(self) -> float:
        """The smallest real number that is representable."""
        return float(np.min(self.scale * (self.qtype.qmin - self._zero)))

    @property
    def high(self) -> float:
        """The largest real number that is representable."""
        return float(np.max(self.scale * (self.qtype.qmax - self._zero)))

    @property
    def block(self) -> int:
        """Elements along `axis` that share a scale; 0: the parameters are not blockwise."""
        return self.qtype.block if self.axis is not None and self.scale.ndim > 1 else 0

    def quantize(self, x: Array) -> Array:
        """Real numbers to codes."""
        scale, zero = self._along(x.shape)
        ratio = np.asarray(x, np.float64) / scale
        if self.qtype.format:
            # Beyond the ends these formats know infinity or NaN; quantization saturates.
            return np.asarray(np.clip(ratio, self.qtype.qmin, self.qtype.qmax).astype(self.qtype.dtype))
        codes = np.rint(ratio) + zero
        return np.clip(codes, self.qtype.qmin, self.qtype.qmax).astype(self.qtype.dtype)

    def dequantize(self, codes: Array) -> Array:
        """Codes to real numbers, float64."""
        scale, zero = self._along(codes.shape)
        return np.asarray((codes.astype(np.float64) - zero) * scale)

    @property
    def _zero(self) -> Array:
        return self.zero_point.astype(np.float64 if self.qtype.format else np.int64)

    def _along(self, shape: tuple[int, ...]) -> tuple[Array, Array]:
        scale, zero = self.scale.astype(np.float64), self._zero
        if self.axis is None:
            return scale, zero
        if self.block:
            axis = self.axis % len(shape)
            index = np.arange(shape[axis]) // self.block
            return scale.take(index, axis), zero.take(index, axis)
        along = [1] * len(shape)
        along[self.axis] = -1
        return scale.reshape(along), zero.reshape(along)


def largest(kind: ir.DataType) -> float:
    """The largest finite number of a float format."""
    return float(ml_dtypes.finfo(kind.numpy()).max)  # type: ignore[no-untyped-call]


def params_of_range(low: Any, high: Any, qtype: QType, axis: int | None = None) -> QParams:
    """Scale and zero point that cover [low, high] and zero.

    Args:
        low, high: numbers, or arrays of one per channel along `axis`, or one per block.

    The zero point is rounded first and the scale is kept, so that zero is exact and the error of the
    range's ends is at most half a step. A range of zero width gets scale 1: everything in it is zero.
    """
    low = np.minimum(np.asarray(low, np.float64), 0.0)
    high = np.maximum(np.asarray(high, np.float64), 0.0)
    if qtype.format in _SCALELESS:
        ones = np.ones_like(low)
        return QParams(qtype, ones.astype(np.float32), np.zeros_like(low).astype(qtype.dtype), axis)
    if qtype.symmetric:
        reach = np.maximum(-low, high)
        scale = power_of_two(reach / (qtype.qmax - qtype.middle), qtype)
        zero = np.full_like(scale, qtype.middle)
    else:
        scale = power_of_two((high - low) / (qtype.qmax - qtype.qmin), qtype)
        safe = np.where(scale > 0, scale, 1.0)
        zero = np.clip(np.rint(qtype.qmin - low / safe), qtype.qmin, qtype.qmax)
    # Below the smallest normal float32 a scale would be flushed to zero by kernels.
    scale = np.where(scale > np.finfo(np.float32).tiny, scale, 1.0)
    return QParams(qtype, scale.astype(np.float32), zero.astype(qtype.dtype), axis)


def weight_params(weight: Array, qtype: QType, axis: int | None) -> QParams:
    """Parameters of a weight from its extremes: per channel along `axis`, for the whole tensor (`axis` None),
    or, with a type that has a block, for each run of that many elements along `axis`."""
    if axis is None:
        return params_of_range(weight.min(initial=0.0), weight.max(initial=0.0), replace(qtype, block=0))
    if qtype.block:
        starts = np.arange(0, weight.shape[axis], qtype.block)
        lows, highs = (f.reduceat(weight, starts, axis=axis) for f in (np.minimum, np.maximum))
        if weight.ndim == 1:
            # One axis leaves no room to tell blocks from channels.
            raise InputError("a vector cannot be quantized blockwise; give it one scale")
        return params_of_range(lows, highs, qtype, axis)
    others = tuple(a for a in range(weight.ndim) if a != axis)
    return params_of_range(
        weight.min(axis=others, initial=0.0), weight.max(axis=others, initial=0.0), qtype, axis
    )


def is_wide(qtype: QType) -> bool:
    """Whether no integer kernel multiplies such codes and adds a 32-bit bias: more than 8 bits, or floats."""
    return bool(qtype.format) or qtype.bits > 8


def power_of_two(scale: Array, qtype: QType) -> Array:
    """`scale`, or the next power of two from it on up, so that the range stays covered."""
    if not qtype.power_of_two:
        return scale
    mantissa, exponent = np.frexp(scale)  # scale = mantissa 2^exponent with mantissa in [0.5, 1)
    exact = np.ldexp(1.0, exponent - (mantissa == 0.5))
    return np.where(scale > 0, exact, 0.0)
