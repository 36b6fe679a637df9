"""Quantization: torch's `quantized_decomposed` operators, and arithmetic for what they cannot say."""

from __future__ import annotations

import operator
from typing import Any

import numpy as np
import onnx_ir as ir
import torch

from attar.conversion import NodeView
from attar_torch.writing.context import Context
from attar_torch.writing.dtypes import FLOAT8, NARROW, RANGES, number, torch_dtype
from attar_torch.writing.functions import quantize as functions
from attar_torch.writing.ops.conv import flat_pads, spatial_rank, text
from attar_torch.writing.table import Table

TABLE = Table()

_OPERATORS = (torch.uint8, torch.int8, torch.uint16, torch.int16, torch.int32)


def _decomposed(name: str) -> Any:
    """An operator of torch's reference representation of quantized models."""
    import torch.ao.quantization.fx._decomposed  # registers them

    return getattr(getattr(torch.ops.quantized_decomposed, name), "default")  # noqa: B009


def _axis(view: NodeView) -> int:
    axis = view.attr("axis", 1)
    rank = view.rank(0)
    if axis < 0 and rank is None:
        raise view.refuse("the rank of its input is unknown")
    return axis + rank if axis < 0 else axis  # type: ignore[operator]


def _per_tensor(scale: Any, view: NodeView) -> bool:
    return scale is not None and scale.size == 1 and scale.ndim < 2 and not view.attr("block_size", 0)


@TABLE.op("QuantizeLinear", any_type=True)
def quantize_linear(ctx: Context, view: NodeView) -> Any:
    """torch multiplies by 1 / scale where ONNX divides, so that halves may be rounded otherwise; where the
    two differ by construction, which is everything but float32 and fixed scales, arithmetic says it."""
    target, block = view.outputs[0].dtype, view.attr("block_size", 0)
    source = view.input(0)
    assert source is not None
    if source.dtype not in (ir.DataType.FLOAT, ir.DataType.FLOAT16):
        raise view.refuse("it quantizes neither float32 nor float16")
    scale, zero = view.const(1), view.const(2) if view.has(2) else None
    axis = _axis(view)
    kind = torch_dtype(target)
    if target in FLOAT8:
        if zero is not None and zero.astype(np.float32).any():
            raise view.refuse("8-bit floats with a zero point")
        saturate = bool(view.attr("saturate", 1))
        return ctx.call(
            functions.quantize_float8, ctx.tensor(view), ctx.tensor(view, 1), axis, block, kind, saturate
        )
    if target not in RANGES or view.attr("precision", 0) not in (0, None, 1):
        raise view.refuse(f"torch has no {target.name.lower() if target else 'such type'}")
    low, high = RANGES[target]
    settled = scale is not None and (zero is not None or not view.has(2))
    plain = settled and not block and source.dtype == ir.DataType.FLOAT and kind in _OPERATORS
    if plain and target not in NARROW and target != ir.DataType.INT32:
        assert scale is not None
        if _per_tensor(scale, view):
            offset = 0 if zero is None else number(zero)
            return ctx.call(
                _decomposed("quantize_per_tensor"), ctx.tensor(view), number(scale), offset, low, high, kind
            )
        if scale.ndim == 1:
            offsets = np.zeros(scale.shape, np.int32) if zero is None else zero.astype(np.int32)
            return ctx.call(
                _decomposed("quantize_per_channel"), ctx.tensor(view), ctx.tensor(view, 1),
                ctx.own(view, "zero_point", offsets), axis, low, high, kind,
            )  # fmt: skip
    return ctx.call(
        functions.quantize, ctx.tensor(view), ctx.tensor(view, 1), ctx.optional(view, 2), axis, block, low,
        high, kind,
    )  # fmt: skip


@TABLE.op("DequantizeLinear", any_type=True)
def dequantize_linear(ctx: Context, view: NodeView) -> Any:
    source, block = view.input(0), view.attr("block_size", 0)
    assert source is not None
    kind = torch_dtype(source.dtype)
    scale, zero = view.const(1), view.const(2) if view.has(2) else None
    if kind is None or (source.dtype not in RANGES and source.dtype not in FLOAT8):
        raise view.refuse(f"torch has no {source.dtype.name.lower() if source.dtype else 'such type'}")
    axis = _axis(view) if scale is None or not _per_tensor(scale, view) else 0
    settled = scale is not None and (zero is not None or not view.has(2))
    if settled and not block and view.outputs[0].dtype == ir.DataType.FLOAT and kind in _OPERATORS:
        assert scale is not None
        low, high = RANGES[source.dtype]
        if _per_tensor(scale, view):
            offset = 0 if zero is None else number(zero)
            return ctx.call(
                _decomposed("dequantize_per_tensor"), ctx.tensor(view), number(scale), offset, low, high, kind
            )
        if scale.ndim == 1:
            offsets = np.zeros(scale.shape, np.int32) if zero is None else zero.astype(np.int32)
            return ctx.call(
                _decomposed("dequantize_per_channel"), ctx.tensor(view), ctx.tensor(view, 1),
                ctx.own(view, "zero_point", offsets), axis, low, high, kind,
            )  # fmt: skip
    return ctx.call(
        functions.dequantize, ctx.tensor(view), ctx.tensor(view, 1), ctx.optional(view, 2), axis, block
    )


@TABLE.op("DynamicQuantizeLinear")
def dynamic_quantize_linear(ctx: Context, view: NodeView) -> Any:
    made = ctx.call(functions.dynamic_quantize, ctx.tensor(view))
    return tuple(ctx.call(operator.getitem, made, k) for k in range(3))


@TABLE.op("MatMulInteger")
def matmul_integer(ctx: Context, view: NodeView) -> Any:
    return ctx.call(
        functions.integer_matmul, ctx.tensor(view), ctx.tensor(view, 1), ctx.optional(view, 2),
        ctx.optional(view, 3),
    )  # fmt: skip


def _integer_conv(ctx: Context, view: NodeView, w: int, x_zero: int, w_zero: int, bias: int) -> Any:  # noqa: PLR0917
    count = spatial_rank(view)
    shape = view.shape(w)
    kernel = list(shape[2:]) if shape is not None else []
    strides = view.attr("strides") or [1] * count
    dilations = view.attr("dilations") or [1] * count
    pads = _pads(view, kernel, strides, dilations)
    return ctx.call(
        functions.integer_conv, ctx.tensor(view), ctx.tensor(view, w), ctx.optional(view, x_zero),
        ctx.optional(view, w_zero), ctx.optional(view, bias), flat_pads(pads), strides, dilations,
        view.attr("group", 1),
    )  # fmt: skip


def _pads(view: NodeView, kernel: list[Any], strides: list[int], dilations: list[int]) -> list[int]:
    mode, count = text(view.attr("auto_pad") or "NOTSET"), len(kernel)
    if mode == "NOTSET":
        return list(view.attr("pads") or [0] * 2 * count)
    if mode == "VALID":
        return [0] * 2 * count
    shape = view.shape(0)
    sizes = [] if shape is None else shape[2:]
    if len(sizes) != count or any(not isinstance(n, int) for n in (*sizes, *kernel)):
        raise view.refuse("auto_pad depends on a size that is not known")
    totals = [
        max((-(-n // s) - 1) * s + (k - 1) * d + 1 - n, 0)  # type: ignore[operator]
        for n, s, k, d in zip(sizes, strides, kernel, dilations, strict=True)
    ]
    small = [t // 2 for t in totals]
    large = [t - s for t, s in zip(totals, small, strict=True)]
    return [*small, *large] if mode == "SAME_UPPER" else [*large, *small]


@TABLE.op("ConvInteger")
def conv_integer(ctx: Context, view: NodeView) -> Any:
    return _integer_conv(ctx, view, 1, 2, 3, 99)


@TABLE.op("QLinearConv")
def qlinear_conv(ctx: Context, view: NodeView) -> Any:
    sums = _integer_conv(ctx, view, 3, 2, 5, 8)
    low, high = RANGES[view.outputs[0].dtype]  # type: ignore[index]
    scales = [ctx.tensor(view, k) for k in (1, 4, 6, 7)]
    return ctx.call(functions.requantize, sums, *scales, 1, low, high)


@TABLE.op("QLinearMatMul")
def qlinear_matmul(ctx: Context, view: NodeView) -> Any:
    if any((view.const(k) is None or view.const(k).size != 1) for k in (1, 4)):  # type: ignore[union-attr]
        raise view.refuse("its scales are not one a tensor")
    sums = ctx.call(functions.integer_matmul, *(ctx.tensor(view, k) for k in (0, 3, 2, 5)))
    low, high = RANGES[view.outputs[0].dtype]  # type: ignore[index]
    scales = [ctx.tensor(view, k) for k in (1, 4, 6, 7)]
    return ctx.call(functions.requantize, sums, *scales, 1, low, high)
