"""Quantization in floating point: codes are whole numbers, which float32 holds, and rounding is to even."""

from __future__ import annotations

from typing import Any

import numpy as np

from attar.conversion import NodeView
from attar_mxnet.symbol_json import Entry
from attar_mxnet.writing.context import Array, Lowering, WriteContext
from attar_mxnet.writing.shaping import known_shape

_NOTE = "quantized weights are stored as the floating point numbers that they stand for"


def _spread(view: NodeView, array: Array, shape: tuple[Any, ...]) -> Array:
    """A scale or zero point as it stands against a value of `shape`: for all, along an axis, or by block."""
    block = int(view.attr("block_size", 0) or 0)
    axis = int(view.attr("axis", 1))
    if array.ndim == 0 or (array.size == 1 and not block):
        return array.reshape([1] * max(len(shape), 1))
    axis %= len(shape)
    if block:
        if not isinstance(shape[axis], int):
            raise view.refuse("the axis of its blocks is not fixed")
        return np.repeat(array, block, axis)[
            tuple(slice(n) if i == axis else slice(None) for i, n in enumerate(shape))
        ]
    lined = [1] * len(shape)
    lined[axis] = -1
    return array.reshape(lined)


def dequantize(ctx: WriteContext, view: NodeView) -> tuple[Entry | None]:
    """(code - zero point) * scale. A constant becomes a weight: the floats are what its users learn."""
    wanted = view.out_dtype()
    scale = view.need_const(1, "the scale")
    zero = view.need_const(2, "the zero point") if view.has(2) else None
    codes = view.const(0)
    shape = codes.shape if codes is not None else known_shape(view)
    factor = _spread(view, scale, shape).astype(np.float32)
    offset = None if zero is None or not np.any(zero.astype(np.float32)) else _spread(view, zero, shape)
    if codes is not None:
        # int32 codes (biases) exceed what float32 holds: subtract first, as integers.
        base = codes.astype(np.int64) if codes.dtype.kind in "iu" else codes.astype(np.float32)
        less = np.zeros((), base.dtype) if offset is None else offset.astype(base.dtype)
        floats = (np.subtract(base, less).astype(np.float32) * factor).astype(wanted)
        ctx.fold(view.outputs[0], floats.reshape(shape), (view.input(0) or view.outputs[0]).name)
        ctx.note(_NOTE)
        return (None,)
    x = ctx.cast(ctx.get(view), np.float32)
    if offset is not None:
        x = _combine(ctx, view, "sub", x, offset.astype(np.float32))
    x = _combine(ctx, view, "mul", x, factor)
    return (x if wanted == np.float32 else ctx.cast(x, wanted),)


def _combine(ctx: WriteContext, view: NodeView, what: str, x: Entry, by: Array) -> Entry:
    if by.size == 1:
        scalar = {"sub": "_minus_scalar", "mul": "_mul_scalar", "div": "_div_scalar", "add": "_plus_scalar"}
        return ctx.scalar(scalar[what], x, float(by.reshape(())))
    return ctx.op(f"broadcast_{what}", x, ctx.constant(by, f"{view.name}_{what}", view=view))


def quantize(ctx: WriteContext, view: NodeView) -> Entry:
    """clip(round(x / scale) + zero point)"""
    wanted = view.out_dtype()
    if wanted not in (np.dtype(np.int8), np.dtype(np.uint8)):
        raise view.refuse(f"MXNet 1 has no arrays of {wanted}")
    shape = known_shape(view)
    scale = _spread(view, view.need_const(1, "the scale"), shape).astype(np.float32)
    x = ctx.get(view) if ctx.dtype(view) == np.float32 else ctx.cast(ctx.get(view), np.float32)
    x = ctx.op("_npi_around", _combine(ctx, view, "div", x, scale))
    if view.has(2):
        zero = _spread(view, view.need_const(2, "the zero point"), shape).astype(np.float32)
        x = x if not zero.any() else _combine(ctx, view, "add", x, zero)
    limits = np.iinfo(wanted)
    return ctx.cast(ctx.op("clip", x, a_min=float(limits.min), a_max=float(limits.max)), wanted)


TABLE: dict[str, Lowering] = {"QuantizeLinear": quantize, "DequantizeLinear": dequantize}
