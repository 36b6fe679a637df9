"""The mathematics of affine quantization: plain functions over numpy arrays.

    q = clip(round(x / s) + z, qmin, qmax)        x' = s (q - z)

Rounding is half to even, as ONNX's QuantizeLinear has it; zero is always exactly representable, because
padding, ReLU and masks put exact zeros into every network. `docs/quantization.md` derives s and z.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np

Array = np.ndarray[Any, np.dtype[Any]]


@dataclass(frozen=True)
class QType:
    """An integer type as a quantizer uses it.

    Attributes:
        signed: int8 rather than uint8.
        bits: how many of the 8 bits are used (7 where 16-bit sums saturate).
        symmetric: zero point fixed at the middle: 0 for signed, 128 for unsigned types.
        narrow: the lowest code is left out, so that the range is symmetric about zero (weights).
    """

    signed: bool = False
    bits: int = 8
    symmetric: bool = False
    narrow: bool = False

    @property
    def dtype(self) -> np.dtype[Any]:
        return np.dtype(np.int8 if self.signed else np.uint8)

    @property
    def qmin(self) -> int:
        low = -(1 << (self.bits - 1)) if self.signed else 0
        return low + 1 if self.narrow else low

    @property
    def qmax(self) -> int:
        return (1 << (self.bits - 1)) - 1 if self.signed else (1 << self.bits) - 1

    @property
    def middle(self) -> int:
        return 0 if self.signed else 1 << (self.bits - 1)


@dataclass(frozen=True, eq=False)
class QParams:
    """Scale and zero point of one tensor: scalars, or one each along `axis`."""

    qtype: QType
    scale: Array
    zero_point: Array
    axis: int | None = None

    @property
    def low(self) -> float:
        """The smallest real number that is representable."""
        return float(np.min(self.scale * (self.qtype.qmin - self.zero_point.astype(np.int64))))

    @property
    def high(self) -> float:
        """The largest real number that is representable."""
        return float(np.max(self.scale * (self.qtype.qmax - self.zero_point.astype(np.int64))))

    def quantize(self, x: Array) -> Array:
        """Real numbers to codes."""
        scale, zero = self._along(x.ndim)
        codes = np.rint(np.asarray(x, np.float64) / scale) + zero
        return np.clip(codes, self.qtype.qmin, self.qtype.qmax).astype(self.qtype.dtype)

    def dequantize(self, codes: Array) -> Array:
        """Codes to real numbers, float64."""
        scale, zero = self._along(codes.ndim)
        return (codes.astype(np.float64) - zero) * scale

    def _along(self, ndim: int) -> tuple[Array, Array]:
        if self.axis is None:
            return self.scale.astype(np.float64), self.zero_point.astype(np.int64)
        shape = [1] * ndim
        shape[self.axis] = -1
        return (
            self.scale.astype(np.float64).reshape(shape),
            self.zero_point.astype(np.int64).reshape(shape),
        )


def params_of_range(low: Any, high: Any, qtype: QType, axis: int | None = None) -> QParams:
    """Scale and zero point that cover [low, high] and zero.

    Args:
        low, high: numbers, or arrays of one per channel along `axis`.

    The zero point is rounded first and the scale is kept, so that zero is exact and the error of the
    range's ends is at most half a step. A range of zero width gets scale 1: everything in it is zero.
    """
    low = np.minimum(np.asarray(low, np.float64), 0.0)
    high = np.maximum(np.asarray(high, np.float64), 0.0)
    if qtype.symmetric:
        reach = np.maximum(-low, high)
        scale = reach / (qtype.qmax - qtype.middle)
        zero = np.full_like(scale, qtype.middle)
    else:
        scale = (high - low) / (qtype.qmax - qtype.qmin)
        safe = np.where(scale > 0, scale, 1.0)
        zero = np.clip(np.rint(qtype.qmin - low / safe), qtype.qmin, qtype.qmax)
    # Below the smallest normal float32 a scale would be flushed to zero by kernels.
    scale = np.where(scale > np.finfo(np.float32).tiny, scale, 1.0)
    return QParams(qtype, scale.astype(np.float32), zero.astype(qtype.dtype), axis)


def weight_params(weight: Array, qtype: QType, axis: int | None) -> QParams:
    """Parameters of a weight from its extremes, per channel along `axis` or for the whole tensor (`axis`
    None)."""
    if axis is None:
        return params_of_range(weight.min(initial=0.0), weight.max(initial=0.0), qtype)
    others = tuple(a for a in range(weight.ndim) if a != axis)
    return params_of_range(
        weight.min(axis=others, initial=0.0), weight.max(axis=others, initial=0.0), qtype, axis
    )
