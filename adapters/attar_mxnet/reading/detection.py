"""Boxes and regions of interest."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import onnx_ir as ir

from attar_mxnet.reading.builder import Builder
from attar_mxnet.reading.operation import Operation
from attar_mxnet.reading.table import Table

table = Table()


def _regions(ctx: Builder, rois: ir.Value) -> tuple[ir.Value, ir.Value]:
    """[batch index, x1, y1, x2, y2] as indices and corners."""
    index = ctx.emit("Slice", rois, [0], [1], [1])
    corners = ctx.emit("Slice", rois, [1], [5], [1])
    return ctx.cast(ctx.emit("Squeeze", index, [1]), np.int64), corners


@table("ROIPooling", "_npx_roi_pooling")
def roi_pooling(ctx: Builder, op: Operation) -> ir.Value:
    """The largest value in each part of each region, whose corners are rounded."""
    height, width = op.wholes("pooled_size")
    return ctx.emit(
        "MaxRoiPool",
        op.input(0),
        op.input(1),
        pooled_shape=[height, width],
        spatial_scale=op.number("spatial_scale"),
    )


@table("_contrib_ROIAlign")
def roi_align(ctx: Builder, op: Operation) -> ir.Value:
    """Means of samples between the pixels; without a number of samples it follows from each region."""
    if op.flag("position_sensitive"):
        raise op.refuse("position_sensitive")
    height, width = op.wholes("pooled_size")
    index, corners = _regions(ctx, op.input(1))
    return ctx.emit(
        "RoiAlign",
        op.input(0),
        corners,
        index,
        output_height=height,
        output_width=width,
        spatial_scale=op.number("spatial_scale"),
        sampling_ratio=max(0, op.whole("sample_ratio", -1)),
        coordinate_transformation_mode="half_pixel" if op.flag("aligned") else "output_half_pixel",
        mode="avg",
    )


def _columns(ctx: Builder, x: ir.Value) -> Sequence[ir.Value]:
    """The four numbers of the last axis, an axis of one each."""
    return ctx.emit_many("Split", x, outputs=4, axis=-1, num_outputs=4)


@table("_contrib_box_decode")
def box_decode(ctx: Builder, op: Operation) -> ir.Value:
    """Boxes from offsets and anchors: centers move by parts of the anchor, sizes grow by exponentials."""
    offsets, anchors = op.input(0), op.input(1)
    ax, ay, aw, ah = _columns(ctx, anchors)
    if op.text("format", "center") == "corner":
        aw, ah = ctx.emit("Sub", aw, ax), ctx.emit("Sub", ah, ay)
        half = ctx.scalar(0.5, offsets)
        ax = ctx.emit("Add", ax, ctx.emit("Mul", aw, half))
        ay = ctx.emit("Add", ay, ctx.emit("Mul", ah, half))
    scaled = [
        ctx.emit("Mul", part, ctx.scalar(op.number(f"std{i}", 1.0), part))
        for i, part in enumerate(_columns(ctx, offsets))
    ]
    limit = op.number("clip", -1.0)
    sizes = [ctx.emit("Min", s, ctx.scalar(limit, s)) if limit > 0 else s for s in scaled[2:]]
    half = ctx.scalar(0.5, offsets)
    centers = [
        ctx.emit("Add", ctx.emit("Mul", s, size), place)
        for s, size, place in zip(scaled[:2], (aw, ah), (ax, ay), strict=True)
    ]
    halves = [
        ctx.emit("Mul", ctx.emit("Mul", ctx.emit("Exp", s), size), half)
        for s, size in zip(sizes, (aw, ah), strict=True)
    ]
    low = [ctx.emit("Sub", c, h) for c, h in zip(centers, halves, strict=True)]
    high = [ctx.emit("Add", c, h) for c, h in zip(centers, halves, strict=True)]
    return ctx.emit("Concat", *low, *high, axis=-1)


@table("_contrib_box_iou")
def box_iou(ctx: Builder, op: Operation) -> ir.Value:
    """Intersection over union of all pairs of boxes: [*left, *right]."""
    if op.text("format", "corner") != "corner":
        raise op.refuse("format center")
    left, right = op.input(0), op.input(1)
    if ctx.rank(left) != 2 or ctx.rank(right) != 2:
        raise op.refuse("more than two axes")
    a = [ctx.emit("Slice", left, [i], [i + 1], [1]) for i in range(4)]
    b = [ctx.emit("Transpose", ctx.emit("Slice", right, [i], [i + 1], [1]), perm=[1, 0]) for i in range(4)]
    zero = ctx.scalar(0, left)

    def side(low: ir.Value, high: ir.Value) -> ir.Value:
        return ctx.emit("Max", ctx.emit("Sub", high, low), zero)

    def area(box: Sequence[ir.Value]) -> ir.Value:
        return ctx.emit("Mul", side(box[0], box[2]), side(box[1], box[3]))

    edges = [ctx.emit("Max", p, q) for p, q in zip(a[:2], b[:2], strict=True)]
    edges += [ctx.emit("Min", p, q) for p, q in zip(a[2:], b[2:], strict=True)]
    common = area(edges)
    union = ctx.emit("Sub", ctx.emit("Add", area(a), area(b)), common)
    empty = ctx.emit("LessOrEqual", common, zero)
    return ctx.emit("Where", empty, zero, ctx.emit("Div", common, union))


@table("_contrib_MultiBoxPrior", "_npx_multibox_prior")
def multibox_prior(ctx: Builder, op: Operation) -> ir.Value:
    """Anchors around every pixel: each size with the first ratio, then the first size with the other ratios.

    They follow from the size of the image alone, so they are a constant.
    """
    shape = ctx.shape(op.input(0))
    if not all(isinstance(d, int) for d in shape[2:]):
        raise op.refuse("an image of unknown size; give shapes={...}")
    rows, columns = int(shape[2]), int(shape[3])
    if rows * columns > 1 << 20:
        raise op.refuse(f"an image of {rows} x {columns}")
    sizes, ratios = op.numbers("sizes", (1.0,)), op.numbers("ratios", (1.0,))
    steps, offsets = op.numbers("steps", (-1.0, -1.0)), op.numbers("offsets", (0.5, 0.5))
    step_y = steps[0] if steps[0] > 0 else 1 / rows
    step_x = steps[1] if steps[1] > 0 else 1 / columns
    root = np.sqrt(ratios[0])
    halves = [(s * rows / columns * root / 2, s / root / 2) for s in sizes]
    halves += [(sizes[0] * rows / columns * np.sqrt(r) / 2, sizes[0] / np.sqrt(r) / 2) for r in ratios[1:]]
    y, x = np.meshgrid(
        (np.arange(rows) + offsets[0]) * step_y, (np.arange(columns) + offsets[1]) * step_x, indexing="ij"
    )
    boxes = np.stack([np.stack([x - w, y - h, x + w, y + h], -1) for w, h in halves], 2).reshape(1, -1, 4)
    if op.flag("clip"):
        boxes = boxes.clip(0, 1)
    return ctx.const(boxes.astype(ctx.dtype(op.input(0))), name="anchors")
