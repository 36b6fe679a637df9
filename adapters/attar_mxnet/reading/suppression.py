"""Non-maximum suppression: of boxes that overlap, the one with the best score stays."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import onnx_ir as ir

from attar_mxnet.reading.builder import Builder
from attar_mxnet.reading.dims import product, safe_name
from attar_mxnet.reading.operation import Operation
from attar_mxnet.reading.table import Table

table = Table()


@table("_contrib_box_nms", "_contrib_box_non_maximum_suppression", "_npx_box_nms")
def box_nms(ctx: Builder, op: Operation) -> ir.Value:
    """The boxes that stay, best first, and rows of -1 for the others.

    Boxes count if their score is above `valid_thresh` and their class is not the background; the best `topk`
    of them are gone through in order, and each one takes out those behind it, of its class unless
    `force_suppress`, with which it has more than `overlap_thresh` of their union in common.
    """
    whole = op.input(0)
    shape = ctx.shape(whole)
    count, width = shape[-2], shape[-1]
    x = whole if len(shape) == 3 else ctx.reshape(whole, [product(shape[:-2]), count, width])
    most, kind = op.whole("topk", -1), op.whole("id_index", -1)
    if most == 0:
        return ctx.emit("Identity", whole)

    def column(boxes: ir.Value, index: int) -> ir.Value:
        return ctx.emit("Squeeze", ctx.emit("Slice", boxes, [index], [index + 1], [2]), [2])

    scores = column(x, op.whole("score_index", 1))
    counts = ctx.emit("Greater", scores, ctx.scalar(op.number("valid_thresh", 0.0), x))
    if kind >= 0:
        background = ctx.scalar(op.whole("background_id", -1), x)
        counts = ctx.emit("And", counts, ctx.emit("Not", ctx.emit("Equal", column(x, kind), background)))
    lowest = ctx.scalar(-np.inf, x)
    keys = ctx.emit("Where", counts, scores, lowest)
    best = [ctx.shape(x)[0], count]
    tried = ctx.size(count)
    if most > 0 and isinstance(count, int):
        best[1] = min(count, most)
        tried = ctx.size(best[1])
    elif most > 0:
        best[1] = safe_name(f"{ctx.here}.tried")
        tried = ctx.emit("Min", tried, ctx.const([most], np.int64))
    top, order = ctx.emit_many("TopK", keys, tried, outputs=2, shapes=[best, best], axis=1)
    boxes = ctx.emit("GatherND", x, ctx.emit("Unsqueeze", order, [2]), batch_dims=1)
    start = op.whole("coord_start", 2)
    corners = [column(boxes, start + i) for i in range(4)]
    over = _overlaps(
        ctx, corners, op.text("in_format", "corner") == "center", op.number("overlap_thresh", 0.5)
    )
    if kind >= 0 and not op.flag("force_suppress"):
        number = ctx.cast(column(boxes, kind), np.int32)
        left, right = ctx.emit("Unsqueeze", number, [2]), ctx.emit("Unsqueeze", number, [1])
        over = ctx.emit("And", over, ctx.emit("Equal", left, right))
    stays = _survivors(ctx, ctx.emit("Greater", top, lowest), over)
    return _packed(ctx, op, boxes, stays, shape)


def _overlaps(ctx: Builder, box: Sequence[ir.Value], centered: bool, limit: float) -> ir.Value:
    """[batch, a, b]: whether boxes a and b have more than `limit` of their union in common."""
    zero, two = ctx.scalar(0, box[0]), ctx.scalar(2, box[0])
    low, high, size = [], [], []
    for start, end in ((box[0], box[2]), (box[1], box[3])):
        if centered:
            reach = ctx.emit("Div", end, two)
            low.append(ctx.emit("Sub", start, reach))
            high.append(ctx.emit("Add", start, reach))
            size.append(end)
        else:
            low.append(start)
            high.append(end)
            size.append(ctx.emit("Sub", end, start))
    nothing = ctx.emit("Or", ctx.emit("Less", size[0], zero), ctx.emit("Less", size[1], zero))
    area = ctx.emit("Where", nothing, zero, ctx.emit("Mul", *size))

    def pairs(op: str, value: ir.Value) -> ir.Value:
        return ctx.emit(op, ctx.emit("Unsqueeze", value, [2]), ctx.emit("Unsqueeze", value, [1]))

    sides = [
        ctx.emit("Max", ctx.emit("Sub", pairs("Min", b), pairs("Max", a)), zero)
        for a, b in zip(low, high, strict=True)
    ]
    common = ctx.emit("Mul", *sides)
    union = ctx.emit("Sub", pairs("Add", area), common)
    return ctx.emit("Greater", ctx.emit("Div", common, union), ctx.scalar(limit, box[0]))


def _survivors(ctx: Builder, counts: ir.Value, over: ir.Value) -> ir.Value:
    """Goes through the boxes in order (a Scan): what still stays takes out what overlaps it behind it."""
    batch, size = ctx.shape(counts)
    zero, one = ctx.const(0, np.int64), ctx.const(1, np.int64)
    places = ctx.emit("Range", zero, ctx.emit("Squeeze", ctx.size(size), [0]), one, shape=[size])
    earlier, later = ctx.emit("Unsqueeze", places, [1]), ctx.emit("Unsqueeze", places, [0])
    takes = ctx.emit("And", over, ctx.emit("Less", earlier, later))
    rows = ctx.emit("Transpose", takes, perm=[1, 0, 2])

    nodes: list[ir.Node] = []

    def value(name: str, kind: ir.DataType, *dims: int | str) -> ir.Value:
        return ir.Value(name=f"{ctx.here}.{name}", type=ir.TensorType(kind), shape=ir.Shape(dims))

    def node(op: str, inputs: Sequence[ir.Value], name: str, *dims: int | str, **attrs: Any) -> ir.Value:
        kind = ir.DataType.INT64 if op == "Constant" else ir.DataType.BOOL
        out = value(name, kind, *dims)
        nodes.append(ir.node(op, inputs, attributes=attrs, outputs=[out], name=out.name))
        return out

    stays, row = (value(name, ir.DataType.BOOL, batch, size) for name in ("stays", "row"))
    place = value("place", ir.DataType.INT64)
    axis = node("Constant", [], "axis", 1, value=ir.tensor(np.array([1], np.int64)))
    itself = node(
        "Unsqueeze", [node("Gather", [stays, place], "at", batch, axis=1), axis], "itself", batch, 1
    )
    gone = node("And", [row, itself], "gone", batch, size)
    left = node("And", [stays, node("Not", [gone], "spared", batch, size)], "left", batch, size)
    body = ir.Graph([stays, place, row], [left], nodes=nodes, name=f"{ctx.here}.suppress")
    return ctx.emit("Scan", counts, places, rows, shape=[batch, size], body=body, num_scan_inputs=2)


def _packed(
    ctx: Builder, op: Operation, boxes: ir.Value, stays: ir.Value, shape: Sequence[int | str]
) -> ir.Value:
    """What stays at the front in its order, behind it rows of -1, in the shape of the input."""
    batch, size, width = ctx.shape(boxes)
    none = ctx.scalar(-1, boxes)
    marks = ctx.cast(stays, np.int32)
    # TopK takes the earlier one of equals, so that the order among those that stay is kept.
    count = ctx.size(size)
    flags, order = ctx.emit_many(
        "TopK", marks, count, outputs=2, shapes=[[batch, size], [batch, size]], axis=1
    )
    front = ctx.emit("GatherND", boxes, ctx.emit("Unsqueeze", order, [2]), batch_dims=1)
    front = _recoded(ctx, op, front)
    kept = ctx.emit("Unsqueeze", ctx.cast(flags, np.bool_), [2])
    found = ctx.emit("Where", kept, front, none, shape=[batch, size, width])
    if size != shape[-2]:
        rest = ctx.emit("Sub", ctx.size(shape[-2]), count)
        zero = ctx.const([0], np.int64)
        pads = ctx.emit("Concat", *(zero,) * 4, rest, zero, axis=0)
        found = ctx.emit("Pad", found, pads, none, shape=[batch, shape[-2], width])
    return found if len(shape) == 3 else ctx.reshape(found, list(shape))


def _recoded(ctx: Builder, op: Operation, boxes: ir.Value) -> ir.Value:
    """Corners as centers or the other way round; a box whose first number is negative stays as it is."""
    given, wanted = op.text("in_format", "corner"), op.text("out_format", "corner")
    if given == wanted:
        return boxes
    start, width = op.whole("coord_start", 2), ctx.shape(boxes)[2]
    two = ctx.scalar(2, boxes)
    a, b, c, d = (ctx.emit("Slice", boxes, [start + i], [start + i + 1], [2]) for i in range(4))
    if wanted == "center":
        coded = [ctx.emit("Div", ctx.emit("Add", p, q), two) for p, q in ((a, c), (b, d))]
        coded += [ctx.emit("Sub", q, p) for p, q in ((a, c), (b, d))]
    else:
        halves = [ctx.emit("Div", side, two) for side in (c, d)]
        coded = [ctx.emit("Sub", p, h) for p, h in zip((a, b), halves, strict=True)]
        coded += [ctx.emit("Add", p, h) for p, h in zip((a, b), halves, strict=True)]
    parts = [ctx.emit("Slice", boxes, [0], [start], [2])] if start else []
    parts += coded
    if not isinstance(width, int) or start + 4 < width:
        parts.append(ctx.emit("Slice", boxes, [start + 4], [1 << 30], [2]))
    moved = ctx.emit("Concat", *parts, axis=2, shape=ctx.shape(boxes))
    return ctx.emit("Where", ctx.emit("Less", a, ctx.scalar(0, boxes)), boxes, moved, shape=ctx.shape(boxes))
