"""Images: resizing, sampling, regions and boxes."""

from __future__ import annotations

from typing import Any

from torch.nn import functional

from attar.conversion import NodeView
from attar_torch.writing.context import Context
from attar_torch.writing.functions import boxes
from attar_torch.writing.ops.conv import text
from attar_torch.writing.ops.resize import resize
from attar_torch.writing.table import Table

TABLE = Table()
TABLE.op("Resize")(resize)


@TABLE.op("GridSample")
def grid_sample(ctx: Context, view: NodeView) -> Any:
    names = {"linear": "bilinear", "cubic": "bicubic", "bilinear": "bilinear", "bicubic": "bicubic"}
    mode = names.get(text(view.attr("mode")), "nearest")
    rank = view.need_rank(0)
    if rank not in (4, 5) or (rank == 5 and mode == "bicubic"):
        raise view.refuse(f"torch does not sample {mode} in {rank - 2} dimensions")
    return ctx.call(
        functional.grid_sample, ctx.tensor(view), ctx.tensor(view, 1), mode=mode,
        padding_mode=text(view.attr("padding_mode")), align_corners=bool(view.attr("align_corners")),
    )  # fmt: skip


@TABLE.op("AffineGrid")
def affine_grid(ctx: Context, view: NodeView) -> Any:
    corners = bool(view.attr("align_corners", 0))
    return ctx.call(functional.affine_grid, ctx.tensor(view), tuple(ctx.ints(view, 1)), align_corners=corners)


@TABLE.op("RoiAlign")
def roi_align(ctx: Context, view: NodeView) -> Any:
    return ctx.call(
        boxes.roi_align, *(ctx.tensor(view, k) for k in range(3)), mode=text(view.attr("mode")),
        height=view.attr("output_height"), width=view.attr("output_width"), ratio=view.attr("sampling_ratio"),
        scale=view.attr("spatial_scale"),
        offset=text(view.attr("coordinate_transformation_mode")) == "half_pixel",
    )  # fmt: skip


@TABLE.op("NonMaxSuppression")
def non_max_suppression(ctx: Context, view: NodeView) -> Any:
    count = int(view.need_const(2, "the number of boxes").reshape(-1)[0]) if view.has(2) else 0
    overlap = float(view.need_const(3, "the threshold").reshape(-1)[0]) if view.has(3) else 0.0
    least = float(view.need_const(4, "the threshold").reshape(-1)[0]) if view.has(4) else None
    return ctx.call(
        boxes.non_max_suppression, ctx.tensor(view), ctx.tensor(view, 1), count, overlap, least,
        bool(view.attr("center_point_box", 0)),
    )  # fmt: skip


@TABLE.op("Col2Im")
def col2im(ctx: Context, view: NodeView) -> Any:
    shape = [int(d) for d in view.need_const(1, "the size of the image")]
    block = [int(d) for d in view.need_const(2, "the size of its blocks")]
    count = len(shape)
    pads = view.attr("pads") or [0] * 2 * count
    return ctx.call(
        boxes.col2im, ctx.tensor(view), shape, block, view.attr("strides") or [1] * count, pads,
        view.attr("dilations") or [1] * count,
    )  # fmt: skip
