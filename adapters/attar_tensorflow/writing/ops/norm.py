"""Normalizations."""

from __future__ import annotations

import tensorflow as tf

from attar_tensorflow.writing.context import Ctx, Lowering, Tensor, View
from attar_tensorflow.writing.tensors import axis_of, dims, rank_of, scale_of, stack


def _batch_norm(ctx: Ctx, view: View) -> object:
    x, scale, bias, mean, variance = (ctx[i] for i in range(5))
    rank = rank_of(x, view)
    axis = rank - 1 if view.last else min(1, rank - 1)
    epsilon = view.attr("epsilon", 1e-5)
    if view.attr("training_mode", 0):
        axes = [a for a in range(rank) if a != axis]
        now, spread = tf.nn.moments(x, axes)
        keep = view.attr("momentum", 0.9)
        y = _normalized(x, (scale, bias), (now, spread), epsilon, axis)
        return y, mean * keep + now * (1 - keep), variance * keep + spread * (1 - keep)
    return _normalized(x, (scale, bias), (mean, variance), epsilon, axis)


def _normalized(
    x: Tensor, affine: tuple[Tensor, Tensor], moments: tuple[Tensor, Tensor], epsilon: float, axis: int
) -> Tensor:
    (scale, bias), (mean, variance) = affine, moments
    factor = tf.cast(scale, variance.dtype) * tf.math.rsqrt(variance + epsilon)
    shift = tf.cast(bias, variance.dtype) - mean * factor
    rank = x.shape.rank
    return x * tf.cast(scale_of(factor, rank, axis), x.dtype) + tf.cast(scale_of(shift, rank, axis), x.dtype)


def _layer_norm(ctx: Ctx, view: View) -> object:
    x, scale, bias = ctx[0], ctx[1], ctx[2]
    rank = rank_of(x, view)
    axes = list(range(axis_of(view.attr("axis", -1), rank), rank))
    wide = tf.cast(x, tf.float32) if view.attr("stash_type", 1) == 1 else x
    mean = tf.reduce_mean(wide, axes, keepdims=True)
    centred = wide - mean
    inverse = tf.math.rsqrt(
        tf.reduce_mean(tf.square(centred), axes, keepdims=True) + view.attr("epsilon", 1e-5)
    )
    y = tf.cast(centred * inverse, x.dtype) * scale
    y = y if bias is None else y + bias
    return (y, mean, inverse) if len(view.outputs) > 1 else y


def _rms_norm(ctx: Ctx, view: View) -> Tensor:
    x, scale = ctx[0], ctx[1]
    rank = rank_of(x, view)
    axes = list(range(axis_of(view.attr("axis", -1), rank), rank))
    wide = tf.cast(x, tf.float32) if view.attr("stash_type", 1) == 1 else x
    inverse = tf.math.rsqrt(tf.reduce_mean(tf.square(wide), axes, keepdims=True) + view.attr("epsilon", 1e-5))
    return tf.cast(wide * inverse, x.dtype) * tf.cast(scale, x.dtype)


def _instance_norm(ctx: Ctx, view: View) -> Tensor:
    x = ctx[0]
    rank = rank_of(x, view)
    axis = rank - 1 if view.last else 1
    axes = [a for a in range(1, rank) if a != axis]
    return _centred(x, axes, view.attr("epsilon", 1e-5)) * scale_of(ctx[1], rank, axis) + scale_of(
        ctx[2], rank, axis
    )


def _centred(x: Tensor, axes: list[int], epsilon: float) -> Tensor:
    mean = tf.reduce_mean(x, axes, keepdims=True)
    centred = x - mean
    return centred * tf.math.rsqrt(tf.reduce_mean(tf.square(centred), axes, keepdims=True) + epsilon)


def _group_norm(ctx: Ctx, view: View) -> Tensor:
    x, groups = ctx[0], view.attr("num_groups")
    rank = rank_of(x, view)
    axis = rank - 1 if view.last else 1
    sizes = dims(x)
    channels = x.shape[axis]
    if channels is None:
        raise view.refuse("the number of channels is known only while the model runs")
    split = stack([*sizes[:axis], groups, channels // groups, *sizes[axis + 1 :]])
    axes = [a for a in range(1, rank + 1) if a != axis]
    y = tf.reshape(_centred(tf.reshape(x, split), axes, view.attr("epsilon", 1e-5)), stack(sizes))
    scale, bias = ctx[1], ctx[2]
    if scale.shape[0] != channels:  # opset 18 to 20: one number a group
        scale, bias = (tf.repeat(t, channels // groups) for t in (scale, bias))
    return y * scale_of(scale, rank, axis) + scale_of(bias, rank, axis)


def _mean_variance(ctx: Ctx, view: View) -> Tensor:
    x, axes = ctx[0], view.attr("axes", [0, 2, 3])
    mean = tf.reduce_mean(x, axes, keepdims=True)
    spread = tf.sqrt(tf.reduce_mean(tf.square(x), axes, keepdims=True) - tf.square(mean))
    return (x - mean) / (spread + 1e-9)


def _lrn(ctx: Ctx, view: View) -> Tensor:
    x, size = ctx[0], view.attr("size")
    rank = rank_of(x, view)
    axis = rank - 1 if view.last else 1
    alpha, beta, bias = view.attr("alpha", 1e-4), view.attr("beta", 0.75), view.attr("bias", 1.0)
    before, after = (size - 1) // 2, size - 1 - (size - 1) // 2
    if rank == 4 and before == after and axis == 3:
        return tf.nn.local_response_normalization(x, before, bias, alpha / size, beta)
    grow = [(0, 0)] * rank
    grow[axis] = (before, after)
    squares, channels = tf.pad(tf.square(x), grow), dims(x)[axis]
    total = 0
    for start in range(size):
        cut = [slice(None)] * rank
        cut[axis] = slice(start, start + channels)
        total += squares[tuple(cut)]
    return x / tf.pow(bias + alpha / size * total, beta)


LOWERINGS: dict[str, Lowering] = {
    "BatchNormalization": _batch_norm,
    "GroupNormalization": _group_norm,
    "InstanceNormalization": _instance_norm,
    "LRN": _lrn,
    "LayerNormalization": _layer_norm,
    "MeanVarianceNormalization": _mean_variance,
    "RMSNormalization": _rms_norm,
}
