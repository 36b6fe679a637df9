"""Operators that rearrange elements: reshape, transpose, concat, split, slice, expand, tile."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import tensorflow as tf

from attar_tensorflow.writing.context import Ctx, Lowering, Tensor, View
from attar_tensorflow.writing.tensors import all_static, axis_of, dims, product, rank_of, stack, wide

_FAR = 2**31 - 1  # slice bounds are int32 in TensorFlow; ONNX says "to the end" with int64's largest


def _reshape(ctx: Ctx, view: View) -> Tensor:
    x = ctx[0]
    if not view.is_const(1):
        shape = tf.cast(ctx[1], tf.int32)
        if not view.attr("allowzero", 0) and x.shape.rank:
            size = tf.shape(shape)[0]
            here = tf.pad(tf.shape(x), [[0, tf.maximum(size - x.shape.rank, 0)]])[:size]
            shape = tf.where(shape == 0, here, shape)
        return tf.reshape(x, shape)
    wanted = [int(d) for d in view.need_const(1, "the shape")]
    if view.attr("allowzero", 0) or 0 not in wanted:
        return tf.reshape(x, wanted)
    sizes = dims(x)
    new = [sizes[i] if d == 0 else d for i, d in enumerate(wanted)]
    known = [d for d in new if isinstance(d, int)]
    if len(known) == len(new) - 1 and all(d > 0 for d in known):  # keeps the shape static elsewhere
        new = [d if isinstance(d, int) else -1 for d in new]
    return tf.reshape(x, stack(new))


def _flatten(ctx: Ctx, view: View) -> Tensor:
    x = ctx[0]
    axis = axis_of(view.attr("axis", 1), rank_of(x, view))
    sizes = dims(x)
    rows, columns = sizes[:axis], sizes[axis:]
    if all_static(columns):
        width = product(columns)
        return tf.reshape(x, [-1, width] if width else stack([product(rows), 0]))
    return tf.reshape(x, stack([product(rows), product(columns)]))


def _axes(view: View, what: str = "axes") -> list[int] | None:
    found = view.option(1, "axes")
    return None if found is None else [int(a) for a in np.asarray(found).reshape(-1)]


def _squeeze(ctx: Ctx, view: View) -> Tensor:
    x, axes = ctx[0], _axes(view)
    if axes is None:
        if x.shape.rank is None or None in x.shape.as_list():
            raise view.refuse("which axes to remove depends on the data")
        return tf.squeeze(x)
    return tf.squeeze(x, axes) if axes else tf.identity(x)


def _unsqueeze(ctx: Ctx, view: View) -> Tensor:
    x, axes = ctx[0], _axes(view) or []
    rank = rank_of(x, view) + len(axes)
    for axis in sorted(axis_of(a, rank) for a in axes):
        x = tf.expand_dims(x, axis)
    return x


def _transpose(ctx: Ctx, view: View) -> Tensor:
    return tf.transpose(ctx[0], view.attr("perm"))


def _concat(ctx: Ctx, view: View) -> Tensor:
    return tf.concat(ctx.all, view.attr("axis", 1))


def _split(ctx: Ctx, view: View) -> object:
    x, count = ctx[0], len(view.outputs)
    axis = axis_of(view.attr("axis", 0), rank_of(x, view))
    sizes = view.option(1, "split")
    if sizes is not None:
        return tuple(tf.split(x, [int(s) for s in sizes], axis))
    size = x.shape[axis]
    if size is None:
        raise view.refuse("the size of the axis to split is known only while the model runs")
    chunk = -(-size // count)
    return tuple(tf.split(x, [min(chunk, max(size - chunk * k, 0)) for k in range(count)], axis))


def _slice(ctx: Ctx, view: View) -> Tensor:
    x = ctx[0]
    rank = rank_of(x, view)
    steps = [int(s) for s in view.need_const(4, "the step")] if view.has(4) else None
    if view.has(3):
        axes = [axis_of(int(a), rank) for a in view.need_const(3, "axes")]
    elif view.is_const(1):
        axes = list(range(len(view.need_const(1, "starts"))))
    else:
        axes = list(range(int(ctx[1].shape[0] or rank)))
    steps = steps or [1] * len(axes)
    starts, ends = _bounds(ctx, view, 1, len(axes)), _bounds(ctx, view, 2, len(axes))
    begin: list[object] = [0] * rank
    end: list[object] = [0] * rank
    stride = [1] * rank
    masked = sum(1 << a for a in range(rank) if a not in axes)
    for axis, low, high, step in zip(axes, starts, ends, steps, strict=True):
        begin[axis], end[axis], stride[axis] = low, high, step
    return tf.strided_slice(x, stack(begin), stack(end), stride, begin_mask=masked, end_mask=masked)


def _bounds(ctx: Ctx, view: View, index: int, count: int) -> list[object]:
    if view.is_const(index):
        return [int(np.clip(b, -_FAR, _FAR)) for b in view.need_const(index, "a bound")]
    bounds = tf.cast(tf.clip_by_value(ctx[index], -_FAR, _FAR), tf.int32)
    return [bounds[i] for i in range(count)]


def _expand(ctx: Ctx, view: View) -> Tensor:
    x = ctx[0]
    if not view.is_const(1):
        return tf.broadcast_to(x, tf.broadcast_dynamic_shape(tf.shape(x), tf.cast(ctx[1], tf.int32)))
    return broadcast(x, [int(d) for d in view.need_const(1, "the shape")])


def broadcast(x: Tensor, shape: Sequence[int]) -> Tensor:
    """`x` broadcast against `shape`, both ways, as ONNX's Expand does."""
    sizes: list[object] = list(dims(x))
    rank = max(len(sizes), len(shape))
    sizes = [1] * (rank - len(sizes)) + sizes
    wanted = [1] * (rank - len(shape)) + list(shape)
    out = [have if want == 1 else want for have, want in zip(sizes, wanted, strict=True)]
    return tf.broadcast_to(x, stack(out))


def _tile(ctx: Ctx, view: View) -> Tensor:
    repeats = ctx[1]
    if view.is_const(1):
        repeats = view.need_const(1, "repeats").astype(np.int32)
    return wide(lambda x: tf.tile(x, repeats), ctx[0])


def _shape(ctx: Ctx, view: View) -> Tensor:
    shape = tf.shape(ctx[0], out_type=tf.int64)
    return shape[view.attr("start", 0) : view.node.attributes.get_int("end", None)]


def _size(ctx: Ctx, view: View) -> Tensor:
    return tf.size(ctx[0], out_type=tf.int64)


def _depth_to_space(ctx: Ctx, view: View) -> Tensor:
    x, b = ctx[0], view.attr("blocksize")
    n, *_ = sizes = dims(x)
    if view.last:
        _, h, w, c = sizes
        if view.attr("mode") == "DCR":
            return tf.nn.depth_to_space(x, b)
        x = tf.transpose(tf.reshape(x, stack([n, h, w, c // (b * b), b, b])), [0, 1, 4, 2, 5, 3])
        return tf.reshape(x, stack([n, h * b, w * b, c // (b * b)]))
    _, c, h, w = sizes
    if view.attr("mode") == "DCR":
        x = tf.transpose(tf.reshape(x, stack([n, b, b, c // (b * b), h, w])), [0, 3, 4, 1, 5, 2])
    else:
        x = tf.transpose(tf.reshape(x, stack([n, c // (b * b), b, b, h, w])), [0, 1, 4, 2, 5, 3])
    return tf.reshape(x, stack([n, c // (b * b), h * b, w * b]))


def _space_to_depth(ctx: Ctx, view: View) -> Tensor:
    x, b = ctx[0], view.attr("blocksize")
    depth_first = (view.attr("mode") or "DCR") == "DCR"
    if view.last:
        if depth_first:
            return tf.nn.space_to_depth(x, b)
        n, h, w, c = dims(x)
        x = tf.transpose(tf.reshape(x, stack([n, h // b, b, w // b, b, c])), [0, 1, 3, 5, 2, 4])
        return tf.reshape(x, stack([n, h // b, w // b, c * b * b]))
    n, c, h, w = dims(x)
    x = tf.reshape(x, stack([n, c, h // b, b, w // b, b]))
    x = tf.transpose(x, [0, 3, 5, 1, 2, 4] if depth_first else [0, 1, 3, 5, 2, 4])
    return tf.reshape(x, stack([n, c * b * b, h // b, w // b]))


def _reverse_sequence(ctx: Ctx, view: View) -> Tensor:
    return tf.reverse_sequence(
        ctx[0], ctx[1], seq_axis=view.attr("time_axis", 0), batch_axis=view.attr("batch_axis", 1)
    )


def _trilu(ctx: Ctx, view: View) -> Tensor:
    x = ctx[0]
    k = int(np.asarray(view.option(1, "k", 0)).reshape(()))
    *_, rows, columns = dims(x)
    gap = tf.range(columns)[None, :] - tf.range(rows)[:, None]
    return tf.where(gap >= k if view.attr("upper", 1) else gap <= k, x, tf.zeros_like(x))


LOWERINGS: dict[str, Lowering] = {
    "Concat": _concat,
    "DepthToSpace": _depth_to_space,
    "Expand": _expand,
    "Flatten": _flatten,
    "Reshape": _reshape,
    "ReverseSequence": _reverse_sequence,
    "Shape": _shape,
    "Size": _size,
    "Slice": _slice,
    "SpaceToDepth": _space_to_depth,
    "Split": _split,
    "Squeeze": _squeeze,
    "Tile": _tile,
    "Transpose": _transpose,
    "Trilu": _trilu,
    "Unsqueeze": _unsqueeze,
}
