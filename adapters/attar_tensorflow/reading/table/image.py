"""Resizing, space to depth, and dilated convolutions in their old form."""

from __future__ import annotations

from typing import Any

import numpy as np

from attar_tensorflow.reading.lifter import Lift, Lifter, numbers_of
from attar_tensorflow.reading.table.conv import as_nchw, as_output
from attar_tensorflow.reading.table.shape import int64, vector
from attar_tensorflow.reading.values import Const, Tensor
from attar_tensorflow.reading.view import OpView


def resize(mode: str) -> Lift:
    """Resizing to a height and width. `half_pixel_centers` and `align_corners` name ONNX's coordinate
    modes.
    """

    def lift(ctx: Lifter, view: OpView) -> Tensor:
        x = view.input(0)
        value, sizes = as_nchw(ctx, view, 0)
        if x.dtype.kind != "f":
            value = ctx.node("Cast", [value], to=1)[0]
        half, corners = bool(view.attr("half_pixel_centers", False)), bool(view.attr("align_corners", False))
        where = "align_corners" if corners else "half_pixel" if half else "asymmetric"
        more: dict[str, Any] = {}
        if mode == "nearest":
            # TensorFlow rounds half up with align_corners, and cuts otherwise: with half_pixel_centers it
            # takes
            # floor((i + 0.5) * scale), which is half_pixel's coordinate, half a pixel on.
            more["nearest_mode"] = "round_prefer_ceil" if corners else "floor"
            if half and not corners:
                where, more["nearest_mode"] = "half_pixel", "round_prefer_ceil"
        wanted = numbers_of(view.inputs[1])
        scales = _whole_scales(sizes, wanted)
        if scales is not None:
            made = ctx.node(
                "Resize", [value, None, Const(np.array([1, 1, *scales], np.float32))], mode=mode,
                coordinate_transformation_mode=where, **more,
            )[0]  # fmt: skip
        else:
            # All four sizes, the first two as they are: with `axes`, ONNX Runtime loses them when a Transpose
            # comes before.
            lead = ctx.node("Shape", [value], start=0, end=2)[0]
            known = wanted is not None and all(isinstance(n, int) for n in wanted)
            numbers = [n for n in wanted or () if isinstance(n, int)]
            last = vector(numbers) if known else int64(ctx, view.input(1))
            whole = ctx.node("Concat", [lead, last], axis=0)[0]
            made = ctx.node(
                "Resize", [value, None, None, whole], mode=mode, coordinate_transformation_mode=where, **more
            )[0]
        out = as_output(view, made, x)
        out.dtype = view.out_dtype()
        if x.dtype.kind != "f" and mode == "nearest":
            out.value = ctx.node("Cast", [made], to=_code(x.dtype))[0]
        return out

    return lift


def resize_cubic(ctx: Lifter, view: OpView) -> Tensor:
    raise view.refuse(
        "TensorFlow takes its cubic weights from a table, which ONNX's differ from by up to 1e-3"
    )


def _whole_scales(sizes: Any, wanted: Any) -> list[float] | None:
    """The factors, where every size is multiplied by a whole number."""
    if (
        wanted is None
        or None in sizes
        or not all(isinstance(w, int) for w in wanted)
        or len(wanted) != len(sizes)
    ):
        return None
    if any(w % s for w, s in zip(wanted, sizes, strict=True)):
        return None
    return [w / s for w, s in zip(wanted, sizes, strict=True)]


def _code(dtype: Any) -> int:
    import onnx_ir as ir

    return int(ir.DataType.from_numpy(np.dtype(dtype)))


def depth_to_space(ctx: Lifter, view: OpView) -> Tensor:
    value, _ = as_nchw(ctx, view, 0)
    made = ctx.node("DepthToSpace", [value], blocksize=int(view.attr("block_size")), mode="DCR")[0]
    return as_output(view, made, view.input(0))


def space_to_depth(ctx: Lifter, view: OpView) -> Tensor:
    value, _ = as_nchw(ctx, view, 0)
    made = ctx.node("SpaceToDepth", [value], blocksize=int(view.attr("block_size")))[0]
    return as_output(view, made, view.input(0))


def space_to_batch(ctx: Lifter, view: OpView) -> Any:
    """Left for BatchToSpaceND, which knows whether a convolution stood between; on its own it is done in
    full.
    """
    block, pads = view.ints(1, "the block"), view.need_const(2, "the padding").reshape(-1, 2)
    x, full = view.input(0), view.rank(0)
    shape = view.shape(0) or ()
    if full < len(block) + 1:
        raise view.refuse("the rank is too small")
    pairs = np.zeros((full, 2), np.int64)
    pairs[1 : 1 + len(block)] = pads
    padded = ctx.op("Pad", x, vector(pairs.T.reshape(-1)), shape=None)
    sizes = [None if d is None else int(d + p.sum()) for d, p in zip(shape, pairs, strict=True)]
    if any(d is None for d in sizes[1:]):
        return Tensor(padded.value, x.dtype, view.out_shape(), op="SpaceToBatchND", args=tuple(view.inputs),
                      facts={"unfinished": True})  # fmt: skip
    n = len(block)
    split = [
        -1,
        *(v for d, b in zip(sizes[1 : 1 + n], block, strict=True) for v in (d // b, b)),
        *sizes[1 + n :],
    ]  # type: ignore[operator]
    perm = [*range(2, 2 * n + 1, 2), 0, *range(1, 2 * n, 2), *range(2 * n + 1, 2 * n + 1 + full - 1 - n)]
    whole = ctx.node("Reshape", [padded, vector(split)])[0]  # type: ignore[arg-type]
    moved = ctx.node("Transpose", [whole], perm=perm)[0]
    final = [-1, *(d // b for d, b in zip(sizes[1 : 1 + n], block, strict=True)), *sizes[1 + n :]]  # type: ignore[operator]
    return ctx.op("Reshape", moved, vector(final), dtype=x.dtype)  # type: ignore[arg-type]


def batch_to_space(ctx: Lifter, view: OpView) -> Any:
    """After SpaceToBatchND and a convolution without padding: that convolution with dilations."""
    block, crops = view.ints(1, "the block"), view.need_const(2, "the crops").reshape(-1, 2)
    x = view.input(0)
    dilated = _dilated(ctx, view, x, block, crops)
    if dilated is not None:
        return dilated
    if isinstance(x, Tensor) and x.facts.get("unfinished"):
        raise view.refuse("images of unknown size")
    full, shape, n = view.rank(0), list(view.shape(0) or ()), len(block)
    if any(d is None for d in shape[1:]):
        raise view.refuse("images of unknown size")
    first = ctx.node("Reshape", [x, vector([*block, -1, *shape[1:]])])[0]
    perm = [n, *(v for k in range(n) for v in (n + 1 + k, k)), *range(2 * n + 1, full + n)]
    moved = ctx.node("Transpose", [first], perm=perm)[0]
    grown = [d * b for d, b in zip(shape[1 : 1 + n], block, strict=True)]
    whole = ctx.node("Reshape", [moved, vector([-1, *grown, *shape[1 + n :]])])[0]
    ends = [g - int(c[1]) for g, c in zip(grown, crops, strict=True)]
    axes = vector(range(1, 1 + n))
    return ctx.op("Slice", whole, vector([int(c[0]) for c in crops]), vector(ends), axes, dtype=x.dtype)


def _dilated(ctx: Lifter, view: OpView, x: Any, block: list[int], crops: Any) -> Tensor | None:
    node = x.value.producer() if isinstance(x, Tensor) else None
    if node is None or node.op_type != "Conv" or not x.args or len(block) != len(x.shape or ()) - 2:
        return None
    before = x.args[0]
    if not isinstance(before, Tensor) or before.op != "SpaceToBatchND":
        return None
    source, blocks, pads = before.args
    given = {a.name: a.value for a in node.attributes.values()}
    plain = all(v == 1 for v in (*given["strides"], *given["dilations"])) and not any(given.get("pads", [1]))
    pairs = np.asarray(pads.array).reshape(-1, 2) - crops
    if (
        not plain
        or [int(b) for b in blocks.array] != block
        or (pairs < 0).any()
        or not isinstance(source, Tensor)
    ):
        return None
    given.update(dilations=block, pads=[int(p) for p in pairs.T.reshape(-1)])
    given.pop("auto_pad", None)
    made = ctx.node("Conv", [ctx.image(source), *node.inputs[1:]], **given)[0]
    out = ctx.as_image(made, x, view.out_shape())
    out.facts.update(x.facts)
    return out


LIFTINGS: dict[str, Lift] = {
    **{"ResizeBilinear": resize("linear"), "ResizeNearestNeighbor": resize("nearest")},
    **{"ResizeBicubic": resize_cubic, "DepthToSpace": depth_to_space, "SpaceToDepth": space_to_depth},
    **{"SpaceToBatchND": space_to_batch, "BatchToSpaceND": batch_to_space},
}
