"""Resize: nearest by picking indices, linear and cubic by a matrix for each axis, as they are separable."""

from __future__ import annotations

import numpy as np

from attar.conversion import NodeView
from attar_mxnet.symbol_json import Entry
from attar_mxnet.writing.context import Array, Lowering, WriteContext
from attar_mxnet.writing.layers import floats_only
from attar_mxnet.writing.shaping import known_shape

_LARGEST_MATRIX = 1 << 24


def resize(ctx: WriteContext, view: NodeView) -> Entry:
    shape = known_shape(view)
    rank = len(shape)
    chosen = [int(a) % rank for a in view.attr("axes", None) or range(rank)]
    scales, sizes = _targets(view, shape, chosen)
    x, inside = ctx.get(view), []
    mode = view.attr("mode", "nearest")
    if mode != "nearest":
        floats_only(view)
    roi = view.const(1) if view.has(1) else None
    for place, axis in enumerate(chosen):
        have, scale, want = shape[axis], scales[place], sizes[place]
        crops = view.attr("coordinate_transformation_mode", "half_pixel") == "tf_crop_and_resize"
        if scale == 1 and not crops and (want is None or want == have):
            continue
        if not isinstance(have, int) or want is None:
            if mode == "nearest" and _repeats(view, scale):
                x = ctx.op("repeat", x, repeats=int(scale), axis=axis)
                continue
            raise view.refuse(f"the size of axis {axis} is not fixed")
        span = None if roi is None or not roi.size else (float(roi[place]), float(roi[place + len(chosen)]))
        points = coordinates(view, have, want, scale, span)
        if crops:
            inside.append((axis, (points >= 0) & (points <= have - 1)))
        if mode == "nearest":
            x = _picked(ctx, view, x, axis, nearest(view, points, have))
        else:
            x = _applied(ctx, view, x, axis, interpolation(view, points, have, scale))
    x = _outside(ctx, view, x, rank, inside)
    return ctx.op("identity", x) if x == ctx.get(view) else x


def _targets(
    view: NodeView, shape: tuple[object, ...], chosen: list[int]
) -> tuple[list[float], list[int | None]]:
    """Scale and new size for each chosen axis."""
    scales = view.const(2) if view.has(2) else None
    given = view.const(3) if view.has(3) else None
    if (scales is None or not scales.size) and (given is None or not given.size):
        raise view.refuse("the new size is computed while the model runs")
    have = [shape[a] for a in chosen]
    if scales is not None and scales.size:
        factors = [float(s) for s in scales]
        return factors, [
            int(np.floor(np.float32(h) * np.float32(f))) if isinstance(h, int) else None
            for h, f in zip(have, factors, strict=True)
        ]
    assert given is not None
    want = [int(g) for g in given]
    ratios = [
        float(np.float32(w) / np.float32(h)) if isinstance(h, int) else None
        for w, h in zip(want, have, strict=True)
    ]
    if any(r is None for r in ratios):
        raise view.refuse("the size of an axis is not fixed")
    known = [r for r in ratios if r is not None]
    policy = view.attr("keep_aspect_ratio_policy", "stretch")
    if policy == "stretch":
        return known, list(want)
    one = min(known) if policy == "not_larger" else max(known)
    return [one] * len(known), [int(np.floor(one * h + 0.5)) for h in have if isinstance(h, int)]


def _repeats(view: NodeView, scale: float) -> bool:
    """Whether nearest neighbours of an axis of any size are each element `scale` times."""
    if scale != int(scale):
        return False
    mode = str(view.attr("coordinate_transformation_mode", "half_pixel"))
    rounding = str(view.attr("nearest_mode", "round_prefer_floor"))
    if mode == "asymmetric":
        return rounding == "floor"
    return mode in ("half_pixel", "half_pixel_symmetric") and rounding.startswith("round")


def coordinates(
    view: NodeView, have: int, want: int, scale: float, span: tuple[float, float] | None
) -> Array:
    """Where the elements of the result lie in the source, by the formulas of the specification, in float32 as
    ONNX Runtime computes them."""
    mode = view.attr("coordinate_transformation_mode", "half_pixel")
    x, s = np.arange(want, dtype=np.float32), np.float32(scale)
    if mode in ("align_corners", "tf_crop_and_resize") and abs(scale * have - want) > 1e-3:
        # The specification's reference divides by the length before it is cut to a whole number, runtimes by
        # the one after.
        raise view.refuse(f"{mode} where the scale {scale:g} times the size {have} is no whole number")
    half = (x + np.float32(0.5)) / s - np.float32(0.5)
    if mode == "half_pixel":
        return half
    if mode == "half_pixel_symmetric":
        adjust = np.float32(want) / (s * np.float32(have))
        return np.float32(have / 2) * (1 - adjust) + half
    if mode == "pytorch_half_pixel":
        return half if want > 1 else np.zeros(1, np.float32)
    if mode == "align_corners":
        return x * np.float32(have - 1) / np.float32(want - 1) if want > 1 else np.zeros(1, np.float32)
    if mode == "asymmetric":
        return x / s
    if mode == "tf_crop_and_resize" and span is not None:
        start, end = np.float32(span[0]), np.float32(span[1])
        if want > 1:
            return start * (have - 1) + x * (end - start) * np.float32(have - 1) / np.float32(want - 1)
        return np.full(1, 0.5 * (start + end) * (have - 1), np.float32)
    raise view.refuse(f"coordinate_transformation_mode={mode}")


def nearest(view: NodeView, points: Array, have: int) -> Array:
    """Indices of the nearest elements."""
    mode = view.attr("nearest_mode", "round_prefer_floor")
    if mode == "round_prefer_floor":
        found = np.ceil(points - np.float32(0.5))
    elif mode == "round_prefer_ceil":
        found = np.floor(points + np.float32(0.5))
    else:
        found = np.floor(points) if mode == "floor" else np.ceil(points)
    return np.asarray(np.clip(found.astype(np.int64), 0, have - 1))


def interpolation(view: NodeView, points: Array, have: int, scale: float) -> Array:
    """The matrix (new size, size) that interpolates along one axis. Borders repeat, or do not count where
    `exclude_outside` says so."""
    if len(points) * have > _LARGEST_MATRIX:
        raise view.refuse(f"resizing {have} elements to {len(points)} by a matrix takes too much memory")
    matrix = np.zeros((len(points), have))
    # Antialiasing widens the window where the axis shrinks.
    stretch = min(scale, 1.0) if view.attr("antialias", 0) else 1.0
    cubic = view.attr("mode", "nearest") == "cubic"
    first = int(np.floor((-2 if cubic else -1) / stretch)) + 1
    count = 2 - 2 * first
    for row, point in enumerate(points.astype(np.float64)):
        base = int(np.ceil(point)) - 1  # strictly below the point
        places = base + first + np.arange(count)
        distance = np.abs(places - point) * stretch
        weights = (
            _cubic(distance, view.attr("cubic_coeff_a", -0.75)) if cubic else np.maximum(1 - distance, 0)
        )
        if view.attr("exclude_outside", 0):
            weights = np.where((places >= 0) & (places < have), weights, 0.0)
            weights = weights / weights.sum()
        elif stretch != 1:
            weights = weights / weights.sum()
        np.add.at(matrix[row], np.clip(places, 0, have - 1), weights)
    return matrix


def _cubic(distance: Array, a: float) -> Array:
    """Keys' kernel."""
    d = distance
    near = ((a + 2) * d - (a + 3)) * d * d + 1
    far = ((a * d - 5 * a) * d + 8 * a) * d - 4 * a
    return np.where(d <= 1, near, np.where(d < 2, far, 0.0))


def _picked(ctx: WriteContext, view: NodeView, x: Entry, axis: int, index: Array) -> Entry:
    places = ctx.constant(index.astype(np.int32), f"{view.name}_places", view=view)
    return ctx.through(x, view.dtype(), lambda e: ctx.op("take", e, places, axis=axis, mode="clip"))


def _applied(ctx: WriteContext, view: NodeView, x: Entry, axis: int, matrix: Array) -> Entry:
    rank = ctx.rank(view)
    weights = ctx.constant(matrix.astype(ctx.dtype(view)), f"{view.name}_interpolation", view=view)
    axes = [a for a in range(rank) if a != axis] + [axis]
    last = ctx.transpose(x, axes)
    made = ctx.op("FullyConnected", last, weights, num_hidden=len(matrix), no_bias=True, flatten=False)
    return ctx.transpose(made, [axes.index(a) for a in range(rank)])


def _outside(
    ctx: WriteContext, view: NodeView, x: Entry, rank: int, inside: list[tuple[int, Array]]
) -> Entry:
    """`extrapolation_value` where a coordinate left the source."""
    if all(mask.all() for _, mask in inside):
        return x
    grid = np.ones([1] * rank, bool)
    for axis, mask in inside:
        grid = grid & mask.reshape([-1 if a == axis else 1 for a in range(rank)])
    keep = ctx.constant(grid.astype(ctx.dtype(view)), f"{view.name}_inside", view=view)
    value = float(view.attr("extrapolation_value", 0.0))
    fill = ctx.constant((~grid * value).astype(ctx.dtype(view)), f"{view.name}_fill", view=view)
    return ctx.op("broadcast_add", ctx.op("broadcast_mul", x, keep), fill)


TABLE: dict[str, Lowering] = {"Resize": resize}
