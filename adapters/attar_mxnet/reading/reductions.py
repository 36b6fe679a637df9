"""Sums, means, extremes, norms, and the places of extremes."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import onnx_ir as ir

from attar_mxnet.reading import values
from attar_mxnet.reading.builder import Builder
from attar_mxnet.reading.dims import Dim, product
from attar_mxnet.reading.operation import Operation
from attar_mxnet.reading.table import Lift, Table

table = Table()


def axes_of(ctx: Builder, op: Operation, name: str = "axis") -> list[int]:
    """The axes to reduce: none given means all, and `exclude` means the others."""
    rank = ctx.rank(op.input(0))
    given = op.wholes(name, ())
    if not given and op.np_shape and op.raw(name) and not values.is_none(op.raw(name)):
        raise op.refuse("an empty list of axes")
    if any(not -rank <= a < rank for a in given):
        raise op.refuse(f"axes {given} of {rank}")
    axes = sorted({a % rank for a in given})
    if op.flag("exclude") and axes:
        return [a for a in range(rank) if a not in axes]
    return axes or list(range(rank))


def reduced(ctx: Builder, op: Operation, kind: str, x: ir.Value, axes: Sequence[int]) -> ir.Value:
    """One reduction. Outside numpy's shapes MXNet has no scalars: a full reduction gives one element."""
    keep = op.flag("keepdims")
    if not axes:
        return x
    y = ctx.emit(kind, x, list(axes), keepdims=int(keep))
    return ctx.reshape(y, [1]) if ctx.rank(y) == 0 and not op.np_shape else y


def _reduction(kind: str, needs_float: bool = False) -> Lift:
    def lift(ctx: Builder, op: Operation) -> ir.Value:
        x = op.input(0)
        if op.has("initial"):
            raise op.refuse("an initial value")
        dtype = op.dtype("dtype", None)
        if dtype is not None:
            x = ctx.cast(x, dtype)
        if not ctx.is_float(x):
            if ctx.dtype(x) == np.bool_ or needs_float:
                if not op.op.startswith("_np"):
                    raise op.refuse(f"numbers of type {ctx.dtype(x)}")
                x = ctx.cast(x, np.float32 if needs_float else np.int64)
            elif op.op.startswith("_np") and kind in ("ReduceSum", "ReduceProd") and dtype is None:
                x = ctx.cast(x, np.int64)
        return reduced(ctx, op, kind, x, axes_of(ctx, op))

    return lift


table("sum", "sum_axis", "_np_sum", "_sparse_sum")(_reduction("ReduceSum"))
table("mean", "_npi_mean", "_sparse_mean")(_reduction("ReduceMean", needs_float=True))
table("prod", "_np_prod", "_np_product")(_reduction("ReduceProd"))
table("max", "max_axis", "_np_max", "_np_amax")(_reduction("ReduceMax"))
table("min", "min_axis", "_np_min", "_np_amin")(_reduction("ReduceMin"))


def _without_nan(kind: str, instead: float) -> Lift:
    def lift(ctx: Builder, op: Operation) -> ir.Value:
        x = op.input(0)
        if ctx.is_float(x):
            x = ctx.emit("Where", ctx.emit("IsNaN", x), ctx.scalar(instead, x), x)
        return reduced(ctx, op, kind, x, axes_of(ctx, op))

    return lift


table("nansum")(_without_nan("ReduceSum", 0.0))
table("nanprod")(_without_nan("ReduceProd", 1.0))


@table("_square_sum")
def square_sum(ctx: Builder, op: Operation) -> ir.Value:
    return reduced(ctx, op, "ReduceSumSquare", op.input(0), axes_of(ctx, op))


@table("norm", "_sparse_norm")
def norm(ctx: Builder, op: Operation) -> ir.Value:
    x, order = op.input(0), op.whole("ord", 2)
    if op.has("out_dtype"):
        x = ctx.cast(x, op.dtype("out_dtype"))
    if order not in (1, 2) or not ctx.is_float(x):
        raise op.refuse(f"order {order} on {ctx.dtype(x)}")
    return reduced(ctx, op, f"ReduceL{order}", x, axes_of(ctx, op))


def _spread(root: bool) -> Lift:
    def lift(ctx: Builder, op: Operation) -> ir.Value:
        """The mean square distance from the mean, with `ddof` taken off the count."""
        x = ctx.cast(op.input(0), op.dtype("dtype", None) or np.float32)
        axes, ddof = axes_of(ctx, op), op.whole("ddof", 0)
        apart = ctx.emit("Sub", x, ctx.emit("ReduceMean", x, axes, keepdims=1))
        y = reduced(ctx, op, "ReduceMean", ctx.emit("Mul", apart, apart), axes)
        if ddof:
            sizes = [ctx.shape(x)[a] for a in axes]
            if not all(isinstance(s, int) for s in sizes):
                raise op.refuse("ddof over an axis of unknown size")
            count = int(np.prod([int(s) for s in sizes]))
            if count <= ddof:
                raise op.refuse(f"ddof {ddof} of {count} numbers")
            y = ctx.emit("Mul", y, ctx.scalar(count / (count - ddof), y))
        return ctx.emit("Sqrt", y) if root else y

    return lift


table("_npi_var")(_spread(root=False))
table("_npi_std")(_spread(root=True))


def _place(kind: str) -> Lift:
    def lift(ctx: Builder, op: Operation) -> ir.Value:
        """The place of the first extreme: a float outside numpy's operators."""
        x, keep = op.input(0), op.flag("keepdims")
        rank = ctx.rank(x)
        if op.has("axis"):
            y = ctx.emit(kind, x, axis=op.whole("axis") % rank, keepdims=int(keep))
        else:
            y = ctx.emit(kind, ctx.reshape(x, [_count(ctx, x)]), axis=0, keepdims=0)
            y = ctx.reshape(y, [1] * rank) if keep else y
        if ctx.rank(y) == 0 and not op.np_shape:
            y = ctx.reshape(y, [1])
        return y if op.op.startswith("_npi") else ctx.cast(y, np.float32)

    return lift


def _count(ctx: Builder, x: ir.Value) -> Dim:
    return product(ctx.shape(x))


table("argmax", "_npi_argmax")(_place("ArgMax"))
table("argmin", "_npi_argmin")(_place("ArgMin"))


@table("argmax_channel")
def argmax_channel(ctx: Builder, op: Operation) -> ir.Value:
    return ctx.cast(ctx.emit("ArgMax", op.input(0), axis=1, keepdims=0), np.float32)
