"""Resize: for every output element the input elements it is made of and their weights, one axis after the
other.

The formulas are those of the ONNX specification of Resize (opset 19).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import tensorflow as tf

from attar_tensorflow.writing.context import Ctx, Lowering, Tensor, View
from attar_tensorflow.writing.tensors import axis_of, rank_of, scale_of


@dataclass(frozen=True)
class Axis:
    """How one axis is resized.

    Attributes:
        axis: which one.
        size, out: elements before and after; size None where it is known only at run time.
        scale: out / size as the node gives it.
        roi: (start, end) of tf_crop_and_resize, as fractions.
    """

    axis: int
    size: int | None
    out: int | None
    scale: float
    roi: tuple[float, float] = (0.0, 1.0)

    @property
    def idle(self) -> bool:
        return self.scale == 1 and self.size == self.out and self.roi == (0.0, 1.0)


def axes_of(view: View, sizes: Sequence[int | None]) -> list[Axis]:
    """The axes that a Resize or Upsample node changes; refused where sizes or scales are computed."""
    rank = len(sizes)
    upsample = view.node.op_type == "Upsample"
    axes = [axis_of(a, rank) for a in view.attr("axes") or range(rank)] if not upsample else list(range(rank))
    scales, wanted = None, None
    where = 1 if upsample else 2
    if view.has(where) and (view.shape(where) != (0,)):
        scales = [float(s) for s in view.need_const(where, "scales")] or None
    if not upsample and view.has(3):
        wanted = [int(s) for s in view.need_const(3, "sizes")] or None
    if scales is None and wanted is None:
        raise view.refuse("neither scales nor sizes are given")
    roi = [0.0] * len(axes) + [1.0] * len(axes)
    if not upsample and view.attr("coordinate_transformation_mode") == "tf_crop_and_resize":
        roi = [float(r) for r in view.need_const(1, "roi")]
    found = []
    policy = "stretch" if upsample else view.attr("keep_aspect_ratio_policy", "stretch") or "stretch"
    if wanted is not None:
        if any(sizes[a] is None for a in axes if wanted[axes.index(a)] != sizes[a]):
            raise view.refuse("sizes for an axis whose own size is known only while the model runs")
        ratios = [1.0 if sizes[a] is None else w / sizes[a] for a, w in zip(axes, wanted, strict=True)]
        if policy != "stretch":
            common = min(ratios) if policy == "not_larger" else max(ratios)
            ratios = [common] * len(axes)
            wanted = [int(np.floor(common * sizes[a] + 0.5)) for a in axes]
    else:
        ratios = scales
        wanted = [None if sizes[a] is None else int(sizes[a] * s) for a, s in zip(axes, scales, strict=True)]
    for i, (axis, scale, out) in enumerate(zip(axes, ratios, wanted, strict=True)):
        here = Axis(axis, sizes[axis], out, scale, (roi[i], roi[i + len(axes)]))
        if not here.idle and not (scale == 1 and out is None):
            found.append(here)
    return found


def _places(a: Axis, mode: str, view: View) -> np.ndarray:
    """Where each output element lies on the input axis."""
    x = np.arange(a.out, dtype=np.float64)
    exact = abs(a.scale * a.size - a.out) < 1e-4
    if mode == "half_pixel":
        return (x + 0.5) / a.scale - 0.5
    if mode == "half_pixel_symmetric":
        adjustment = a.out / (a.scale * a.size)
        return a.size / 2 * (1 - adjustment) + (x + 0.5) / a.scale - 0.5
    if mode == "pytorch_half_pixel":
        if a.out == 1:
            raise view.refuse("pytorch_half_pixel to a single element, on which runtimes disagree")
        return (x + 0.5) / a.scale - 0.5
    if mode == "asymmetric":
        return x / a.scale
    if mode == "align_corners":
        if not exact:
            raise view.refuse("align_corners with a scale that is no whole size, on which runtimes disagree")
        return x * 0 if a.out == 1 else x * (a.size - 1) / (a.out - 1)
    if mode == "tf_crop_and_resize":
        start, end = a.roi
        if a.out == 1:
            return x * 0 + 0.5 * (start + end) * (a.size - 1)
        if not exact and view.has(2) and view.shape(2) != (0,):
            raise view.refuse("tf_crop_and_resize with a scale that is no whole size")
        return start * (a.size - 1) + x * (end - start) * (a.size - 1) / (a.out - 1)
    raise view.refuse(f"unknown coordinate_transformation_mode {mode!r}")


def _cubic(t: np.ndarray, a: float) -> np.ndarray:
    t = np.abs(t)
    near = (a + 2) * t**3 - (a + 3) * t**2 + 1
    far = a * t**3 - 5 * a * t**2 + 8 * a * t - 4 * a
    return np.where(t <= 1, near, np.where(t < 2, far, 0.0))


def taps(a: Axis, view: View) -> tuple[np.ndarray, np.ndarray | None]:
    """Input elements (out, k) and weights (out, k) for each output element; no weights for nearest."""
    upsample = view.node.op_type == "Upsample"
    mode = view.attr("mode", "nearest")
    places = _places(a, "asymmetric" if upsample else view.attr("coordinate_transformation_mode"), view)
    if mode == "nearest":
        return np.clip(_nearest(places, "floor" if upsample else view.attr("nearest_mode")), 0, a.size - 1)[
            :, None
        ].astype(np.int64), None
    base = np.floor(places)
    fraction = places - base
    support = 1 if mode == "linear" else 2
    shrink = min(a.scale, 1.0) if not upsample and view.attr("antialias", 0) else 1.0
    reach = int(np.ceil(support / shrink))
    offsets = np.arange(1 - reach, reach + 1)
    distance = (offsets[None] - fraction[:, None]) * shrink
    if mode == "linear":
        weights = np.maximum(1 - np.abs(distance), 0)
    else:
        weights = _cubic(distance, view.attr("cubic_coeff_a", -0.75))
    index = base[:, None].astype(np.int64) + offsets[None]
    outside = (index < 0) | (index >= a.size)
    if not upsample and view.attr("exclude_outside", 0):
        weights = np.where(outside, 0, weights)
    weights = weights / weights.sum(1, keepdims=True)
    return np.clip(index, 0, a.size - 1), weights


def _nearest(places: np.ndarray, mode: str) -> np.ndarray:
    if mode == "round_prefer_floor":
        return np.ceil(places - 0.5)
    if mode == "round_prefer_ceil":
        return np.floor(places + 0.5)
    return np.floor(places) if mode == "floor" else np.ceil(places)


def repeats(a: Axis, view: View) -> int | None:
    """The whole number of times that nearest resizing repeats each element, if that is what it does."""
    if view.attr("mode", "nearest") != "nearest" or a.scale != int(a.scale) or a.roi != (0.0, 1.0):
        return None
    if view.node.op_type == "Upsample":
        return int(a.scale)
    how, mode = view.attr("coordinate_transformation_mode"), view.attr("nearest_mode")
    if (how == "asymmetric" and mode == "floor") or (
        how in ("half_pixel", "half_pixel_symmetric") and mode.startswith("round_prefer")
    ):
        # Places lie strictly between k - 0.5 and k + 0.5, or at both of its ends for none.
        return int(a.scale)
    return None


def _resize(ctx: Ctx, view: View) -> Tensor:
    x = ctx[0]
    rank_of(x, view)
    mode = view.attr("mode", "nearest")
    if mode != "nearest" and not x.dtype.is_floating:
        raise view.refuse("interpolation of integers, on whose rounding runtimes disagree")
    outside = []
    for a in axes_of(view, x.shape.as_list()):
        times = repeats(a, view)
        if times is not None:
            x = tf.repeat(x, times, axis=a.axis)
            continue
        if a.size is None or a.out is None:
            raise view.refuse("interpolation over a size that is known only while the model runs")
        index, weights = taps(a, view)
        outside.append((a, _beyond(a, view)))
        x = _mix(x, a.axis, index, weights)
    for a, mask in outside:
        if mask is not None and mask.any():
            value = tf.cast(view.attr("extrapolation_value", 0.0), x.dtype)
            x = tf.where(scale_of(tf.constant(mask), x.shape.rank, a.axis), value, x)
    return x


def _beyond(a: Axis, view: View) -> np.ndarray | None:
    if view.attr("coordinate_transformation_mode") != "tf_crop_and_resize":
        return None
    places = _places(a, "tf_crop_and_resize", view)
    return (places < 0) | (places > a.size - 1)


def _mix(x: Tensor, axis: int, index: np.ndarray, weights: np.ndarray | None) -> Tensor:
    if weights is None:
        return tf.gather(x, index[:, 0], axis=axis)
    total = 0
    for k in range(index.shape[1]):
        if np.any(weights[:, k]):
            weight = scale_of(tf.constant(weights[:, k], x.dtype), x.shape.rank, axis)
            total += tf.gather(x, index[:, k], axis=axis) * weight
    return total


LOWERINGS: dict[str, Lowering] = {"Resize": _resize, "Upsample": _resize}
