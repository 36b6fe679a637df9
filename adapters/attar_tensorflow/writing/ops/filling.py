"""Operators that make or change types of tensors: casts, ranges, constants, padding."""

from __future__ import annotations

import numpy as np
import tensorflow as tf

from attar_tensorflow.writing.context import Ctx, Lowering, Tensor, View
from attar_tensorflow.writing.tensors import axis_of, dims, rank_of, stack, static_dims

_PLAIN = {np.dtype(f"{sign}int{bits}") for sign in ("", "u") for bits in (8, 16, 32, 64)}
_PLAIN |= {np.dtype(name) for name in ("bool", "float16", "float32", "float64")}


def _tf_type(dtype: np.dtype, view: View) -> tf.DType:
    if dtype in _PLAIN or dtype.name == "bfloat16":
        return tf.as_dtype(dtype)
    raise view.refuse(f"TensorFlow's casts to and from {dtype} round in other ways")


def _cast(ctx: Ctx, view: View) -> Tensor:
    return _cast_to(ctx[0], view.out_dtype(), view)


def _cast_to(x: Tensor, dtype: np.dtype, view: View) -> Tensor:
    wanted = _tf_type(dtype, view)
    if x.dtype == tf.string:
        raise view.refuse("texts are not numbers")
    _tf_type(np.dtype(x.dtype.as_numpy_dtype), view)
    if wanted == tf.bool:
        return tf.not_equal(x, tf.zeros([], x.dtype)) if x.dtype != tf.bool else tf.identity(x)
    return tf.cast(x, wanted)


def _bit_cast(ctx: Ctx, view: View) -> Tensor:
    return tf.bitcast(ctx[0], _tf_type(view.out_dtype(), view))


def _constant(ctx: Ctx, view: View) -> Tensor:
    array = view.attr("value")
    if array is None:
        raise view.refuse("its value is not a tensor")
    return tf.constant(array)


def _constant_of_shape(ctx: Ctx, view: View) -> Tensor:
    value = view.attr("value")
    value = np.zeros([1], np.float32) if value is None else np.asarray(value)
    return tf.fill(tf.cast(ctx[0], tf.int32), tf.constant(value.reshape(())))


def _range(ctx: Ctx, view: View) -> Tensor:
    return tf.range(*(tf.reshape(t, []) for t in ctx.all))


def _eye_like(ctx: Ctx, view: View) -> Tensor:
    rows, columns = dims(ctx[0])
    here = tf.range(columns)[None, :] - tf.range(rows)[:, None] == view.attr("k", 0)
    return tf.cast(here, _tf_type(view.out_dtype(), view))


def _pad(ctx: Ctx, view: View) -> Tensor:
    x = ctx[0]
    rank = rank_of(x, view)
    pads = [int(p) for p in view.option(1, "pads")]
    axes = [axis_of(int(a), rank) for a in view.need_const(3, "axes")] if view.has(3) else list(range(rank))
    if len(pads) != 2 * len(axes):
        raise view.refuse(f"{len(pads)} pads for {len(axes)} axes")
    amounts = [(0, 0)] * rank
    for i, axis in enumerate(axes):
        amounts[axis] = (pads[i], pads[i + len(axes)])
    mode = view.attr("mode", "constant")
    if mode == "constant":
        value = tf.zeros([], x.dtype)
        if ctx[2] is not None:
            value = tf.cast(tf.reshape(ctx[2], []), x.dtype)
        elif view.attr("value"):
            value = tf.cast(view.attr("value"), x.dtype)
        x = _crop(x, amounts)
        grow = [(max(a, 0), max(b, 0)) for a, b in amounts]
        return tf.pad(x, grow, constant_values=value) if any(map(any, grow)) else x
    for axis, (before, after) in enumerate(amounts):
        if before or after:
            x = tf.gather(x, _sources(x, axis, (before, after), mode, view), axis=axis)
    return x


def _crop(x: Tensor, amounts: list[tuple[int, int]]) -> Tensor:
    if all(a >= 0 and b >= 0 for a, b in amounts):
        return x
    cuts = tuple(slice(max(-a, 0), min(b, 0) or None) for a, b in amounts)
    return x[cuts]


def _sources(x: Tensor, axis: int, pads: tuple[int, int], mode: str, view: View) -> Tensor:
    """Where each element along a padded axis comes from."""
    (before, after), size = pads, dims(x)[axis]
    places = tf.range(-before, size + after)
    if mode == "edge":
        return tf.clip_by_value(places, 0, size - 1)
    if mode == "wrap":
        return tf.math.floormod(places, size)
    if mode == "reflect":  # a triangle wave of period 2 (size - 1)
        (known,) = static_dims(x, [axis], view, "the size to reflect")
        if known == 1:
            return tf.zeros_like(places)
        period = 2 * (known - 1)
        phase = tf.math.floormod(places, period)
        return tf.minimum(phase, period - phase)
    raise view.refuse(f"unknown padding {mode!r}")


def _center_crop_pad(ctx: Ctx, view: View) -> Tensor:
    x = ctx[0]
    rank = rank_of(x, view)
    axes = [axis_of(a, rank) for a in view.attr("axes") or range(rank)]
    wanted = [int(s) for s in view.need_const(1, "the shape")]
    for axis, size, now in zip(axes, wanted, static_dims(x, axes, view), strict=True):
        gap = size - now
        before = gap // 2 if gap > 0 else -((-gap) // 2)
        amounts = [(0, 0)] * rank
        amounts[axis] = (before, gap - before)
        x = _crop(x, amounts) if gap < 0 else tf.pad(x, amounts)
    return x


def _bernoulli_like(ctx: Ctx, view: View) -> Tensor:
    raise view.refuse("its result is random")


def _onehot(ctx: Ctx, view: View) -> Tensor:
    indices, depth, values = ctx[0], tf.reshape(ctx[1], []), ctx[2]
    if view.is_const(1):
        depth = tf.constant(int(view.need_const(1, "the depth").reshape(())), tf.int64)
    index = tf.cast(indices, tf.int64)
    depth = tf.cast(depth, tf.int64)
    index = tf.where(index < 0, index + depth, index)
    axis = axis_of(view.attr("axis", -1), rank_of(indices, view) + 1)
    return tf.one_hot(index, tf.cast(depth, tf.int32), on_value=values[1], off_value=values[0], axis=axis)


def _affine_grid(ctx: Ctx, view: View) -> Tensor:
    theta = ctx[0]
    size = [int(s) for s in view.need_const(1, "the size")]
    axes = []
    for length in size[2:]:
        steps = np.linspace(-1, 1, length) if length > 1 else np.zeros(1)
        if not view.attr("align_corners", 0):
            steps = (2 * np.arange(length) + 1) / length - 1
        elif length == 1:
            steps = np.array([-1.0])
        axes.append(steps.astype(np.float32))
    mesh = np.meshgrid(*axes, indexing="ij")
    grid = np.stack([*reversed(mesh), np.ones_like(mesh[0])], -1).reshape(-1, len(axes) + 1)
    moved = tf.matmul(tf.cast(grid, theta.dtype)[None], theta, transpose_b=True)
    return tf.reshape(moved, stack([dims(theta)[0], *size[2:], len(axes)]))


RANDOM = [
    "Bernoulli",
    "Multinomial",
    "RandomNormal",
    "RandomNormalLike",
    "RandomUniform",
    "RandomUniformLike",
]

LOWERINGS: dict[str, Lowering] = {
    **dict.fromkeys(RANDOM, _bernoulli_like),
    "AffineGrid": _affine_grid,
    "BitCast": _bit_cast,
    "Cast": _cast,
    "CastLike": _cast,
    "CenterCropPad": _center_crop_pad,
    "Constant": _constant,
    "ConstantOfShape": _constant_of_shape,
    "EyeLike": _eye_like,
    "OneHot": _onehot,
    "Pad": _pad,
    "Range": _range,
}
