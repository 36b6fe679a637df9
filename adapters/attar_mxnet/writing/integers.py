"""Operators on integer codes: exact sums in float64, then the scaling in float32 that ONNX Runtime does."""

from __future__ import annotations

import math

import numpy as np

from attar.conversion import NodeView
from attar_mxnet.symbol_json import Entry
from attar_mxnet.writing.context import Array, Lowering, WriteContext
from attar_mxnet.writing.layers import convolution
from attar_mxnet.writing.shaping import known_shape


def _centred(ctx: WriteContext, view: NodeView, index: int, zero: int, axis: int) -> Entry:
    """Input `index` less its zero point, input `zero`, which may be one number or a row along `axis`."""
    rank = view.need_rank(index)
    point = np.zeros(()) if not view.has(zero) else view.need_const(zero, "the zero point").astype(np.float64)
    lined = [1] * rank
    if point.size > 1:
        lined[axis] = -1
    constant = view.const(index)
    if constant is not None:
        return ctx.constant(
            constant.astype(np.float64) - point.reshape(lined), f"{view.name}_weight", view=view
        )
    x = ctx.cast(ctx.get(view, index), np.float64)
    if not point.any():
        return x
    return ctx.op("broadcast_sub", x, ctx.constant(point.reshape(lined), f"{view.name}_zero", view=view))


def _product(ctx: WriteContext, view: NodeView, left: tuple[int, int], right: tuple[int, int]) -> Entry:
    if view.need_rank(left[0]) < 2 or view.need_rank(right[0]) < 2:
        raise view.refuse("an operand is a vector")
    a, b = _centred(ctx, view, *left, axis=-2), _centred(ctx, view, *right, axis=-1)
    return ctx.op("dot" if view.need_rank(right[0]) == 2 else "_npi_matmul", a, b)


def _summed(
    ctx: WriteContext, view: NodeView, image: tuple[int, int], weight: tuple[int, int], bias: int
) -> Entry:
    shape = known_shape(view, weight[0])
    if any(not isinstance(d, int) for d in shape) or math.prod(shape[1:]) << 16 >= 1 << 31:
        raise view.refuse("its sums may leave 32 bits")
    inputs = [_centred(ctx, view, *image, axis=1), _centred(ctx, view, *weight, axis=0)]
    if view.has(bias):
        inputs.append(ctx.cast(ctx.get(view, bias), np.float64))
    return convolution(ctx, view, inputs, weight[0])


def matmul_integer(ctx: WriteContext, view: NodeView) -> Entry:
    return ctx.cast(_product(ctx, view, (0, 2), (1, 3)), np.int32)


def conv_integer(ctx: WriteContext, view: NodeView) -> Entry:
    return ctx.cast(_summed(ctx, view, (0, 2), (1, 3), 9), np.int32)


def _scaled(ctx: WriteContext, view: NodeView, total: Entry, factor: Array, place: int) -> Entry:
    """clip(round(total * factor) + zero point), the zero point being input `place`."""
    wanted = view.out_dtype()
    zero = float(view.need_const(place, "the zero point").reshape(-1)[0]) if view.has(place) else 0.0
    x = ctx.cast(total, np.float32)
    if factor.size == 1:
        x = ctx.scalar("_mul_scalar", x, float(factor.reshape(())))
    else:
        x = ctx.op("broadcast_mul", x, ctx.constant(factor, f"{view.name}_factor", view=view))
    x = ctx.op("_npi_around", x)
    x = ctx.scalar("_plus_scalar", x, zero) if zero else x
    limits = np.iinfo(wanted)
    return ctx.cast(ctx.op("clip", x, a_min=float(limits.min), a_max=float(limits.max)), wanted)


def _factor(view: NodeView, left: int, right: int, out: int) -> Array:
    a, b, y = (view.need_const(i, "a scale").astype(np.float32) for i in (left, right, out))
    return np.asarray(a * b / y, np.float32)


def qlinear_matmul(ctx: WriteContext, view: NodeView) -> Entry:
    if view.need_const(1, "a scale").size > 1:
        raise view.refuse("a scale for each row")
    return _scaled(ctx, view, _product(ctx, view, (0, 2), (3, 5)), _factor(view, 1, 4, 6), 7)


def qlinear_conv(ctx: WriteContext, view: NodeView) -> Entry:
    factor = _factor(view, 1, 4, 6)
    if factor.size > 1:
        factor = factor.reshape([-1] + [1] * (view.need_rank() - 2))
    return _scaled(ctx, view, _summed(ctx, view, (0, 2), (3, 5), 8), factor, 7)


TABLE: dict[str, Lowering] = {
    "MatMulInteger": matmul_integer,
    "ConvInteger": conv_integer,
    "QLinearMatMul": qlinear_matmul,
    "QLinearConv": qlinear_conv,
}
