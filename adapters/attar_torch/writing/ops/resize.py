"""Resize: torch's interpolation where it is the same, the definition's weights elsewhere."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import torch
from torch.nn import functional

from attar.conversion import NodeView
from attar_torch.writing.context import Context
from attar_torch.writing.dtypes import FLOATING
from attar_torch.writing.functions import resize as functions
from attar_torch.writing.functions.resize import Rule
from attar_torch.writing.ops.conv import text

_LINEAR = {3: "linear", 4: "bilinear", 5: "trilinear"}


def resize(ctx: Context, view: NodeView) -> Any:
    """ONNX Resize."""
    rank = view.need_rank(0)
    rule = Rule(
        text(view.attr("mode")), text(view.attr("coordinate_transformation_mode")),
        text(view.attr("nearest_mode")), view.attr("cubic_coeff_a"), bool(view.attr("exclude_outside", 0)),
        bool(view.attr("antialias", 0)),
    )  # fmt: skip
    axes = [a % rank for a in (view.attr("axes") or range(rank))]
    x = ctx.tensor(view)
    if view.outputs[0].dtype not in FLOATING and rule.mode != "nearest":
        raise view.refuse("integers are not interpolated exactly")
    scales, sizes = _targets(ctx, view, axes)
    roi = _roi(view, axes) if rule.coordinates == "tf_crop_and_resize" else {}
    shape = view.shape(0)
    assert shape is not None
    axes = [a for a in axes if not _stays(shape[a], scales.get(a), sizes.get(a), roi.get(a))]
    if not axes:
        return x
    direct = _direct(ctx, view, x, rule, axes, scales, sizes)
    if direct is not None:
        return direct
    masks = []
    for axis in axes:
        size, scale, out = shape[axis], scales.get(axis), sizes.get(axis)
        if not isinstance(size, int) or not (out is None or isinstance(out, int)):
            if roi:
                raise view.refuse("it crops an axis whose size is not known")
            if rule.coordinates == "align_corners" and scale is not None and scale != int(scale):
                raise view.refuse("what align_corners means for a broken scale is not agreed upon")
            x = ctx.call(functions.resize_axis, x, axis, out, scale, *vars(rule).values())
            continue
        number = math.floor(size * scale) if out is None else out  # type: ignore[operator]
        if scale is not None and scale * size != number and rule.coordinates == "align_corners":
            raise view.refuse("what align_corners means for a broken size is not agreed upon")
        taps = functions.rows(
            size, number, number / size if scale is None else scale, rule, roi.get(axis, (0.0, 1.0))
        )
        if rule.mode == "nearest":
            chosen = np.array([row[0][0] if row else 0 for row in taps], np.int64)
            x = ctx.call(torch.index_select, x, axis, ctx.own(view, f"index_{axis}", chosen))
        else:
            weights = torch.tensor(functions.matrix(taps, size), dtype=ctx.dtype(view.outputs[0]))
            x = ctx.call(functions.along, x, ctx.own(view, f"taps_{axis}", weights), axis)
        if not all(taps):
            masks.append((axis, np.array([not row for row in taps])))
    for axis, mask in masks:
        value = view.attr("extrapolation_value", 0.0)
        x = ctx.call(functions.outside, x, ctx.own(view, f"outside_{axis}", mask), axis, value)
    return x


def _targets(ctx: Context, view: NodeView, axes: list[int]) -> tuple[dict[int, float], dict[int, Any]]:
    """Scale or size of every axis."""
    if not view.has(3):
        given = view.need_const(2, "its scales").reshape(-1)
        return dict(zip(axes, (float(s) for s in given), strict=True)), {}
    sizes = ctx.ints(view, 3)
    policy = text(view.attr("keep_aspect_ratio_policy") or "stretch")
    if policy == "stretch":
        return {}, dict(zip(axes, sizes, strict=True))
    shape = view.shape(0)
    have = [None if shape is None else shape[a] for a in axes]
    if any(not isinstance(n, int) for n in (*sizes, *have)):
        raise view.refuse("its aspect ratio is known only while the model runs")
    ratios = [s / h for s, h in zip(sizes, have, strict=True)]  # type: ignore[operator]
    scale = min(ratios) if policy == "not_larger" else max(ratios)
    wanted = [math.floor(scale * h + 0.5) for h in have]  # type: ignore[operator]
    if any(w != scale * h for w, h in zip(wanted, have, strict=True)):  # type: ignore[operator]
        # One scale for all axes, though their sizes are rounded.
        rounded = dict(zip(axes, wanted, strict=True))
        return dict.fromkeys(axes, scale), rounded
    return {}, dict(zip(axes, wanted, strict=True))


def _roi(view: NodeView, axes: list[int]) -> dict[int, tuple[float, float]]:
    roi = [float(v) for v in view.need_const(1, "its region")]
    return {a: (roi[k], roi[k + len(axes)]) for k, a in enumerate(axes)}


def _stays(size: Any, scale: float | None, out: Any, roi: Any) -> bool:
    if roi not in (None, (0.0, 1.0)):
        return False
    return scale == 1 if out is None else (isinstance(out, int) and out == size)


def _direct(  # noqa: PLR0917
    ctx: Context,
    view: NodeView,
    x: Any,
    rule: Rule,
    axes: list[int],
    scales: dict[int, float],
    sizes: dict[int, Any],
) -> Any:
    """torch's own interpolation, None where it computes something else."""
    rank = view.need_rank(0)
    if rank not in _LINEAR or min(axes) < 2 or rule.antialias or (scales and sizes):
        return None
    if view.outputs[0].dtype not in FLOATING:
        return None
    spatial = range(2, rank)
    whole = bool(scales) and all(scales.get(a, 1.0) == int(scales.get(a, 1.0)) for a in spatial)
    if rule.mode == "nearest":
        plain = rule.coordinates == "asymmetric" and rule.nearest == "floor"
        middle = rule.coordinates == "half_pixel" and rule.nearest.startswith("round")
        # By a whole number every pixel becomes a block, whichever way it is rounded.
        if not (whole and (plain or middle)):
            return None
        options: dict[str, Any] = {"mode": "nearest"}
    else:
        corners = rule.coordinates == "align_corners"
        if rule.coordinates not in ("half_pixel", "align_corners") or rule.exclude_outside:
            return None
        if corners and scales and not whole:
            return None
        if rule.mode == "cubic" and (rank != 4 or rule.cubic != -0.75):
            return None
        mode = _LINEAR[rank] if rule.mode == "linear" else "bicubic"
        options = {"mode": mode, "align_corners": corners}
    if scales:
        options["scale_factor"] = tuple(scales.get(a, 1.0) for a in spatial)
    else:
        shape = view.shape(0)
        assert shape is not None
        ask = [sizes.get(a, shape[a]) for a in spatial]
        options["size"] = tuple(
            ctx.size(x, a) if isinstance(s, str) or s is None else s
            for a, s in zip(spatial, ask, strict=True)
        )
    return ctx.call(functional.interpolate, x, **options)
