"""Sums, means and extremes over axes, and what is built of them."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import numpy as np

from attar.conversion import NodeView
from attar_mxnet.symbol_json import Entry
from attar_mxnet.writing.context import Lowering, WriteContext

Make = Callable[[WriteContext, Entry, dict[str, Any]], Entry]


def reduction(make: Make, needs_floats: bool, ctx: WriteContext, view: NodeView) -> Entry:
    rank = ctx.rank(view)
    axes = view.option(1, "axes")
    chosen = [] if axes is None else sorted({int(a) % rank for a in np.asarray(axes).reshape(-1)})
    if not chosen and view.attr("noop_with_empty_axes", 0):
        chosen_all = False
    else:
        chosen_all, chosen = True, chosen or list(range(rank))
    if view.dtype().kind != "f" and (needs_floats or view.dtype().itemsize < 4):
        raise view.refuse(f"MXNet computes it in floating point, the input is {view.dtype()}")
    x = ctx.get(view)
    if not chosen_all:  # each element is a group of its own
        x, chosen = ctx.op("expand_dims", x, axis=0), [0]
        return make(ctx, x, {"axis": (0,), "keepdims": False})
    keep = bool(view.attr("keepdims", 1)) and view.need_rank() > 0
    return make(ctx, x, {"axis": tuple(chosen), "keepdims": keep})


def plain(op: str, ctx: WriteContext, x: Entry, over: dict[str, Any]) -> Entry:
    return ctx.op(op, x, **over)


def after(unary: str, ctx: WriteContext, x: Entry, over: dict[str, Any]) -> Entry:
    """The sum of a function of the elements."""
    return ctx.op("sum", ctx.op(unary, x), **over)


def l2(ctx: WriteContext, x: Entry, over: dict[str, Any]) -> Entry:
    return ctx.op("sqrt", after("square", ctx, x, over))


def log_sum(ctx: WriteContext, x: Entry, over: dict[str, Any]) -> Entry:
    return ctx.op("log", ctx.op("sum", x, **over))


def log_sum_exp(ctx: WriteContext, x: Entry, over: dict[str, Any]) -> Entry:
    """max + log(sum(exp(x - max))), with an infinite maximum taken as 0 so that inf - inf does not appear."""
    top = ctx.op("max", x, axis=over["axis"], keepdims=True)
    lowest, highest = float(np.finfo(np.float32).min), float(np.finfo(np.float32).max)
    top = ctx.op("clip", top, a_min=lowest, a_max=highest)
    total = ctx.op("sum", ctx.op("exp", ctx.op("broadcast_sub", x, top)), axis=over["axis"], keepdims=True)
    found = ctx.op("broadcast_add", ctx.op("log", total), top)
    return found if over["keepdims"] else ctx.op("sum", found, **over)


def cumsum(ctx: WriteContext, view: NodeView) -> Entry:
    rank = ctx.rank(view)
    axis = int(np.asarray(view.need_const(1, "the axis")).reshape(())) % rank
    x = ctx.get(view)
    if view.attr("reverse", 0):
        x = ctx.op("reverse", x, axis=(axis,))
    total = ctx.op("cumsum", x, axis=axis)
    if view.attr("exclusive", 0):  # the sum before each element
        zeros = ctx.op("zeros_like", ctx.slice_axis(x, axis, 0, 1))
        shifted = ctx.op("Concat", zeros, total, num_args=2, dim=axis)
        total = ctx.slice_axis(shifted, axis, 0, -1)
    return ctx.op("reverse", total, axis=(axis,)) if view.attr("reverse", 0) else total


def lp_normalization(ctx: WriteContext, view: NodeView) -> Entry:
    """x / norm, and 0 where the norm is 0."""
    rank = ctx.rank(view)
    over = {"axis": (view.attr("axis", -1) % rank,), "keepdims": True}
    x = ctx.get(view)
    norm = l2(ctx, x, over) if view.attr("p", 2) == 2 else after("abs", ctx, x, over)
    is_zero = ctx.scalar("_equal_scalar", norm, 0.0)
    return ctx.op("broadcast_div", x, ctx.op("broadcast_add", norm, is_zero))


TABLE: dict[str, Lowering] = {
    "ReduceSum": partial(reduction, partial(plain, "sum"), False),
    "ReduceMax": partial(reduction, partial(plain, "max"), False),
    "ReduceMin": partial(reduction, partial(plain, "min"), False),
    "ReduceProd": partial(reduction, partial(plain, "prod"), True),
    "ReduceMean": partial(reduction, partial(plain, "mean"), True),
    "ReduceL1": partial(reduction, partial(after, "abs"), True),
    "ReduceL2": partial(reduction, l2, True),
    "ReduceSumSquare": partial(reduction, partial(after, "square"), True),
    "ReduceLogSum": partial(reduction, log_sum, True),
    "ReduceLogSumExp": partial(reduction, log_sum_exp, True),
    "CumSum": cumsum,
    "LpNormalization": lp_normalization,
}
