"""Quantization as ONNX defines it, for what torch's own operators do not cover."""

from __future__ import annotations

import torch
from torch.nn import functional

from attar_torch.writing.leaf import leaf


def spread(vector: torch.Tensor, x: torch.Tensor, axis: int, block: int) -> torch.Tensor:
    """Scales or zero points, one a tensor, an entry of `axis`, or a block of it, against `x`."""
    if block:
        wide = vector.repeat_interleave(block, axis)
        return wide.narrow(axis, 0, x.size(axis))
    if vector.numel() == 1 and vector.dim() < 2:
        return vector.reshape(())
    shape = [1] * x.dim()
    shape[axis] = -1
    return vector.reshape(shape)


@leaf
def quantize(  # noqa: PLR0917
    x: torch.Tensor,
    scale: torch.Tensor,
    zero_point: torch.Tensor | None,
    axis: int,
    block: int,
    low: int,
    high: int,
    dtype: torch.dtype,
) -> torch.Tensor:
    """ONNX QuantizeLinear to integers: x / scale, rounded half to even, plus the zero point, cut to range."""
    made = torch.round(x / spread(scale, x, axis, block))
    if zero_point is not None:
        made = made + spread(zero_point, x, axis, block).to(made.dtype)
    return made.clamp(low, high).to(dtype)


@leaf
def quantize_float8(  # noqa: PLR0917
    x: torch.Tensor, scale: torch.Tensor, axis: int, block: int, dtype: torch.dtype, saturate: bool
) -> torch.Tensor:
    """ONNX QuantizeLinear to 8-bit floats."""
    made = x / spread(scale, x, axis, block)
    if saturate:
        info = torch.finfo(dtype)
        made = made.clamp(info.min, info.max)
    return made.to(dtype)


@leaf
def dequantize(
    q: torch.Tensor,
    scale: torch.Tensor,
    zero_point: torch.Tensor | None,
    axis: int,
    block: int,
) -> torch.Tensor:
    """ONNX DequantizeLinear: (q - zero point) * scale, in the type of the scale."""
    wide = q.to(scale.dtype) if q.is_floating_point() else q.to(torch.int32)
    if zero_point is not None:
        wide = wide - spread(zero_point, q, axis, block).to(wide.dtype)
    return wide.to(scale.dtype) * spread(scale, q, axis, block)


@leaf
def dynamic_quantize(x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """ONNX DynamicQuantizeLinear: `x` in uint8 over its own range, its scale and its zero point."""
    low, high = x.min().clamp(max=0), x.max().clamp(min=0)
    scale = (high - low) / 255
    scale = torch.where(scale == 0, torch.ones_like(scale), scale)
    zero = torch.round((0 - low / scale).clamp(0, 255))
    made = (torch.round(x / scale) + zero).clamp(0, 255)
    return made.to(torch.uint8), scale, zero.to(torch.uint8)


def _whole(x: torch.Tensor, zero_point: torch.Tensor | None, axis: int) -> torch.Tensor:
    """Integers without their zero point, in float64, which holds their sums exactly."""
    wide = x.to(torch.float64)
    if zero_point is None:
        return wide
    zero = zero_point.to(torch.float64)
    if zero.numel() == 1:
        return wide - zero.reshape(())
    if zero.dim() == x.dim():
        return wide - zero
    shape = [1] * x.dim()
    shape[axis] = -1
    return wide - zero.reshape(shape)


@leaf
def integer_matmul(
    a: torch.Tensor, b: torch.Tensor, a_zero: torch.Tensor | None, b_zero: torch.Tensor | None
) -> torch.Tensor:
    """ONNX MatMulInteger: zero points one a tensor, a row of `a` or a column of `b`."""
    made = torch.matmul(_whole(a, a_zero, max(a.dim() - 2, 0)), _whole(b, b_zero, b.dim() - 1))
    return made.to(torch.int32)


@leaf
def integer_conv(  # noqa: PLR0917
    x: torch.Tensor, w: torch.Tensor, x_zero: torch.Tensor | None, w_zero: torch.Tensor | None,
    bias: torch.Tensor | None, pads: list[int], strides: list[int], dilations: list[int], groups: int,
) -> torch.Tensor:  # fmt: skip
    """The int32 sums of a convolution of integers; `pads` as `functional.pad` takes them."""
    conv = (functional.conv1d, functional.conv2d, functional.conv3d)[x.dim() - 3]
    wide = functional.pad(_whole(x, x_zero, 0), pads)
    made = conv(
        wide, _whole(w, w_zero, 0), None if bias is None else bias.to(torch.float64), tuple(strides), 0,
        tuple(dilations), groups,
    )  # fmt: skip
    return made.to(torch.int32)


@leaf
def requantize(  # noqa: PLR0917
    sums: torch.Tensor, a_scale: torch.Tensor, b_scale: torch.Tensor, y_scale: torch.Tensor,
    y_zero: torch.Tensor, axis: int, low: int, high: int,
) -> torch.Tensor:  # fmt: skip
    """Integer sums at scale `a_scale * b_scale`, in the output's scale and type."""
    scale = a_scale.to(torch.float32).reshape(-1) * b_scale.to(torch.float32).reshape(-1)
    factor = scale / y_scale.to(torch.float32).reshape(-1)
    shape = [1] * sums.dim()
    if factor.numel() > 1:
        shape[axis] = -1
    made = torch.round(sums.to(torch.float32) * factor.reshape(shape))
    return (made + y_zero.to(torch.float32).reshape(())).clamp(low, high).to(y_zero.dtype)
