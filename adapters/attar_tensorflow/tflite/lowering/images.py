"""Resizing, and exchanging space for depth."""

from __future__ import annotations

import numpy as np

from attar_tensorflow.tflite.outop import Lowering, OutOp


def resize(op: OutOp) -> None:
    """Two spatial axes to a known size, in the ways that TFLite has."""
    view, rank = op.view, op.rank()
    mode, at = view.attr("mode", "nearest"), view.attr("coordinate_transformation_mode", "half_pixel")
    dims, out = op.dims(0), op.out_dims()
    if rank != 4 or None in out[2:] or dims[:2] != out[:2] or None in dims[2:]:
        raise op.refuse("it does not resize two spatial axes to known sizes")
    if (
        view.attr("antialias", 0)
        or view.attr("exclude_outside", 0)
        or view.attr("keep_aspect_ratio_policy", "stretch") != "stretch"
    ):
        raise op.refuse("it filters, or keeps proportions")
    if view.has(2) and not view.has(3):
        scales = np.asarray(view.need_const(2, "its scales"), np.float64).reshape(-1)
        factors = scales[-2:] if len(scales) >= 2 else scales
        exact = [int(n or 0) / int(d or 1) for n, d in zip(out[2:], dims[2:], strict=True)]
        if not np.allclose(factors, exact, rtol=1e-6):
            raise op.refuse("its scales do not divide its sizes")
    flags = {
        "half_pixel": (False, True), "pytorch_half_pixel": (False, True), "asymmetric": (False, False),
        "align_corners": (True, False),
    }.get(at)  # fmt: skip
    if flags is None or (at == "pytorch_half_pixel" and 1 in out[2:]):
        raise op.refuse(f"its pixels lie as {at!r}")
    if mode == "linear":
        kind = "RESIZE_BILINEAR"
        op.integer = op.integer and flags != (True, False)
    elif mode == "nearest":
        kind = "RESIZE_NEAREST_NEIGHBOR"
        rounding = view.attr("nearest_mode", "round_prefer_floor")
        wanted = {
            (False, True): "round_prefer_ceil",
            (False, False): "floor",
            (True, False): "round_prefer_ceil",
        }[flags]
        whole = all(int(n or 0) % int(d or 1) == 0 for n, d in zip(out[2:], dims[2:], strict=True))
        even = (
            whole and flags == (False, True) and rounding.startswith("round")
        )  # no ties when sizes are multiples
        odd = whole and flags == (False, False) and rounding == "floor"
        if rounding != wanted and not even and not odd:
            raise op.refuse(f"it rounds by {rounding!r}")
    else:
        raise op.refuse(f"it interpolates {mode!r}")
    x = op.operand(0, last=True)
    size = op.ints([int(n or 0) for n in out[2:]], "size")
    options = {"align_corners": flags[0], "half_pixel_centers": flags[1]}
    op.result(kind, [x, size], options, last=True, like=x if op.integer else None)


def depth_to_space(op: OutOp) -> None:
    if op.view.attr("mode", "DCR") != "DCR":
        raise op.refuse("it orders depth as columns and rows within channels (CRD)")
    x = op.operand(0, last=True)
    options = {"block_size": int(op.view.attr("blocksize"))}
    op.result("DEPTH_TO_SPACE", [x], options, last=True, like=x if op.integer else None)


def space_to_depth(op: OutOp) -> None:
    if op.view.attr("mode", "DCR") != "DCR":
        raise op.refuse("it orders depth as columns and rows within channels (CRD)")
    x = op.operand(0, last=True)
    options = {"block_size": int(op.view.attr("blocksize"))}
    op.result("SPACE_TO_DEPTH", [x], options, last=True, like=x if op.integer else None)


LOWERINGS = {
    "Resize": Lowering(resize, "move", (0,)),
    "DepthToSpace": Lowering(depth_to_space, "move", (0,)),
    "SpaceToDepth": Lowering(space_to_depth, "move", (0,)),
}
