"""Picking elements by index or by condition, and sequences of different lengths."""

from __future__ import annotations

import numpy as np
import onnx_ir as ir

from attar_mxnet.reading.activations import length_mask
from attar_mxnet.reading.builder import Builder
from attar_mxnet.reading.dims import product
from attar_mxnet.reading.elementwise import together, truth
from attar_mxnet.reading.layers import gather
from attar_mxnet.reading.operation import Operation
from attar_mxnet.reading.table import Table

table = Table()
_LARGEST = 1 << 22  # elements of a constant


@table("take", "_npi_take")
def take(ctx: Builder, op: Operation) -> ir.Value:
    x = op.input(0)
    axis = op.whole("axis", 0) % ctx.rank(x)
    return gather(ctx, op, x, op.input(1), axis=axis, mode=op.text("mode", "clip"))


@table("pick", "_npx_pick", "choose_element_0index")
def pick(ctx: Builder, op: Operation) -> ir.Value:
    """One element along `axis` for each place of the other axes."""
    x, index = op.input(0), op.input(1)
    if not op.has("axis") and op.raw("axis").strip() == "None":
        raise op.refuse("no axis")
    axis, keep, mode = op.whole("axis", -1) % ctx.rank(x), op.flag("keepdims"), op.text("mode", "clip")
    if ctx.rank(index) < ctx.rank(x):
        index = ctx.emit("Unsqueeze", index, [axis])
    places = ctx.cast(index, np.int64)
    size = ctx.size(ctx.shape(x)[axis])
    if mode == "wrap":
        places = ctx.emit("Mod", places, size)
    else:
        places = ctx.emit("Min", ctx.emit("Max", places, [0]), ctx.emit("Sub", size, [1]))
    y = ctx.emit("GatherElements", x, places, axis=axis)
    return _less_axis(ctx, op, y, axis, keep)


def _less_axis(ctx: Builder, op: Operation, y: ir.Value, axis: int, keep: bool) -> ir.Value:
    if keep or (ctx.rank(y) == 1 and not op.np_shape):
        return y
    return ctx.emit("Squeeze", y, [axis])


@table("batch_take")
def batch_take(ctx: Builder, op: Operation) -> ir.Value:
    x, index = op.input(0), ctx.cast(op.input(1), np.int64)
    last = ctx.emit("Sub", ctx.size(ctx.shape(x)[1]), [1])
    index = ctx.emit("Min", ctx.emit("Max", index, [0]), last)
    return ctx.emit("Squeeze", ctx.emit("GatherElements", x, ctx.emit("Unsqueeze", index, [1]), axis=1), [1])


@table("gather_nd", "_npx_gather_nd", "_npi_gather_nd")
def gather_nd(ctx: Builder, op: Operation) -> ir.Value:
    """MXNet's indices have the coordinates along the first axis, ONNX's along the last."""
    x, index = op.input(0), ctx.cast(op.input(1), np.int64)
    rank = ctx.rank(index)
    if not isinstance(ctx.shape(index)[0], int):
        raise op.refuse("an unknown number of coordinates")
    return ctx.emit("GatherND", x, ctx.emit("Transpose", index, perm=[*range(1, rank), 0]))


@table("one_hot", "_npx_one_hot")
def one_hot(ctx: Builder, op: Operation) -> ir.Value:
    """Indices outside the range give a row of `off_value`, where ONNX counts negative ones from the end."""
    index = ctx.cast(op.input(0), np.int64)
    depth = op.whole("depth")
    if depth > _LARGEST:
        raise op.refuse(f"depth {depth}")
    dtype = op.dtype("dtype", np.dtype(np.float32))
    values = np.array([op.number("off_value", 0.0), op.number("on_value", 1.0)]).astype(dtype)
    shape = [*ctx.shape(index), depth]
    rank = ctx.rank(index)
    places = ctx.const(np.arange(depth, dtype=np.int64).reshape([1] * rank + [depth]))
    same = ctx.emit("Equal", ctx.emit("Unsqueeze", index, [rank]), places, shape=shape)
    return ctx.emit("Where", same, ctx.const(values[1]), ctx.const(values[0]), shape=shape)


@table("where", "_npi_where", "_sparse_where")
def where(ctx: Builder, op: Operation) -> ir.Value:
    condition = op.input(0)
    x, y = together(ctx, op, op.input(1), op.input(2))
    chosen = truth(ctx, condition)
    if ctx.rank(chosen) == 1 and ctx.rank(x) > 1 and not op.op.startswith("_np"):  # picks whole rows
        chosen = ctx.reshape(chosen, [*ctx.shape(chosen), *([1] * (ctx.rank(x) - 1))])
    return ctx.emit("Where", chosen, x, y)


@table("_npi_where_lscalar")
def where_left(ctx: Builder, op: Operation) -> ir.Value:
    x = op.input(1)
    return ctx.emit("Where", truth(ctx, op.input(0)), ctx.scalar(op.number("scalar", 0.0), x), x)


@table("_npi_where_rscalar")
def where_right(ctx: Builder, op: Operation) -> ir.Value:
    x = op.input(1)
    return ctx.emit("Where", truth(ctx, op.input(0)), x, ctx.scalar(op.number("scalar", 0.0), x))


@table("_contrib_boolean_mask", "_npi_boolean_mask")
def boolean_mask(ctx: Builder, op: Operation) -> ir.Value:
    x = op.input(0)
    axis = op.whole("axis", 0) % ctx.rank(x)
    return ctx.emit("Compress", x, truth(ctx, op.input(1)), axis=axis)


@table("cumsum", "_np_cumsum")
def cumsum(ctx: Builder, op: Operation) -> ir.Value:
    x = op.input(0)
    if op.has("dtype"):
        x = ctx.cast(x, op.dtype("dtype"))
    if not op.has("axis"):
        x = ctx.reshape(x, [product(ctx.shape(x))])
    return ctx.emit("CumSum", x, ctx.const(op.whole("axis", 0) % ctx.rank(x), np.int64))


# -- sequences: time on `axis` (0 or 1), the batch on the other ----------------------------------------------


def _time_first(ctx: Builder, x: ir.Value, axis: int) -> ir.Value:
    if axis == 0:
        return x
    return ctx.emit("Transpose", x, perm=[1, 0, *range(2, ctx.rank(x))])


@table("SequenceMask", "_npx_sequence_mask")
def sequence_mask(ctx: Builder, op: Operation) -> ir.Value:
    x = op.input(0)
    if not op.flag("use_sequence_length"):
        return x
    axis = op.whole("axis", 0)
    length = op.input(1)
    rank = ctx.rank(x)
    # length_mask wants the lengths in the shape of the other axes.
    length = ctx.reshape(length, [*ctx.shape(length), *([1] * (rank - 2))])
    mask = length_mask(ctx, x, length, axis)
    return ctx.emit("Where", mask, x, ctx.scalar(op.number("value", 0.0), x))


@table("SequenceLast")
def sequence_last(ctx: Builder, op: Operation) -> ir.Value:
    x = op.input(0)
    axis = op.whole("axis", 0)
    if not op.flag("use_sequence_length"):
        last = ctx.emit("Slice", x, [-1], [np.iinfo(np.int64).max], [axis])
        return ctx.emit("Squeeze", last, [axis])
    batch_first = _time_first(ctx, x, 1 - axis)
    place = ctx.emit("Sub", ctx.cast(op.input(1), np.int64), [1])
    return ctx.emit("GatherND", batch_first, ctx.emit("Unsqueeze", place, [1]), batch_dims=1)


@table("SequenceReverse")
def sequence_reverse(ctx: Builder, op: Operation) -> ir.Value:
    x = op.input(0)
    axis = op.whole("axis", 0)
    if not op.flag("use_sequence_length"):
        return ctx.emit("Slice", x, [-1], [-np.iinfo(np.int64).max], [axis], [-1])
    return ctx.emit(
        "ReverseSequence", x, ctx.cast(op.input(1), np.int64), time_axis=axis, batch_axis=1 - axis
    )
