"""Operators that read and write by index."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import tensorflow as tf

from attar_tensorflow.writing.context import Ctx, Lowering, Tensor, View
from attar_tensorflow.writing.tensors import axis_of, dims, product, rank_of, stack


def _from_zero(ctx: Ctx, view: View, index: int, size: int | Tensor) -> Tensor:
    """Indices counted from the front; ONNX lets negative ones count from the back."""
    if view.is_const(index):
        array = view.need_const(index, "the indices")
        if (array >= 0).all():
            return tf.constant(array)
        if isinstance(size, int):
            return tf.constant(np.where(array < 0, array + size, array).astype(array.dtype))
    indices = ctx[index]
    return tf.where(indices < 0, indices + tf.cast(size, indices.dtype), indices)


def _gather(ctx: Ctx, view: View) -> Tensor:
    x = ctx[0]
    axis = axis_of(view.attr("axis", 0), rank_of(x, view))
    return tf.gather(x, _from_zero(ctx, view, 1, dims(x)[axis]), axis=axis)


def _along(indices: Tensor, axis: int) -> Tensor:
    """Full coordinates, (..., rank), of the elements that `indices` name along `axis`."""
    sizes, rank = dims(indices), indices.shape.rank
    axes = []
    for a in range(rank):
        if a == axis:
            axes.append(tf.cast(indices, tf.int64))
            continue
        steps = tf.reshape(tf.range(tf.cast(sizes[a], tf.int64)), [-1 if i == a else 1 for i in range(rank)])
        axes.append(tf.broadcast_to(steps, stack(sizes)))
    return tf.stack(axes, -1)


def _gather_elements(ctx: Ctx, view: View) -> Tensor:
    x = ctx[0]
    axis = axis_of(view.attr("axis", 0), rank_of(x, view))
    return tf.gather_nd(x, _along(_from_zero(ctx, view, 1, dims(x)[axis]), axis))


def _gather_nd(ctx: Ctx, view: View) -> Tensor:
    x, batch = ctx[0], view.attr("batch_dims", 0)
    indices = _coordinates(ctx, view, 1, x, batch)
    return tf.gather_nd(x, indices, batch_dims=batch)


def _coordinates(ctx: Ctx, view: View, index: int, x: Tensor, batch: int = 0) -> Tensor:
    indices = ctx[index]
    width = indices.shape[-1]
    if width is None:
        raise view.refuse("the length of an index is known only while the model runs")
    if view.is_const(index) and (view.need_const(index, "the indices") >= 0).all():
        return tf.constant(view.need_const(index, "the indices"))
    sizes = stack(dims(x)[batch : batch + width], tf.int64)
    indices = tf.cast(indices, tf.int64)
    return tf.where(indices < 0, indices + sizes, indices)


_WRITE: dict[str, Callable[..., Tensor]] = {
    "none": tf.tensor_scatter_nd_update,
    "add": tf.tensor_scatter_nd_add,
    "max": tf.tensor_scatter_nd_max,
    "min": tf.tensor_scatter_nd_min,
}


def _write(x: Tensor, coordinates: Tensor, updates: Tensor, how: str, view: View) -> Tensor:
    if how in _WRITE:
        return _WRITE[how](x, coordinates, updates)
    if how != "mul":
        raise view.refuse(f"unknown reduction {how!r}")
    width = coordinates.shape[-1]
    sizes = dims(x)
    strides = [product(sizes[a + 1 : width]) for a in range(width)]
    places = tf.reduce_sum(tf.cast(coordinates, tf.int64) * stack(strides, tf.int64), -1)
    inner = sizes[width:]
    count = product(sizes[:width])
    factors = tf.math.unsorted_segment_prod(  # 1 where nothing is written
        tf.reshape(updates, stack([-1, *inner])), tf.reshape(places, [-1]), count
    )
    return x * tf.reshape(factors, stack(sizes))


def _scatter_elements(ctx: Ctx, view: View) -> Tensor:
    x = ctx[0]
    axis = axis_of(view.attr("axis", 0), rank_of(x, view))
    coordinates = _along(_from_zero(ctx, view, 1, dims(x)[axis]), axis)
    return _write(x, coordinates, ctx[2], view.attr("reduction") or "none", view)


def _scatter_nd(ctx: Ctx, view: View) -> Tensor:
    x = ctx[0]
    return _write(x, _coordinates(ctx, view, 1, x), ctx[2], view.attr("reduction") or "none", view)


def _tensor_scatter(ctx: Ctx, view: View) -> Tensor:
    """Opset 24: `update` written into a cache from the place that each batch entry names."""
    cache, update = ctx[0], ctx[1]
    rank = rank_of(cache, view)
    axis = axis_of(view.attr("axis", -2), rank)
    sizes, length = dims(cache), dims(update)[axis]
    starts = ctx[2] if ctx[2] is not None else tf.zeros(stack([sizes[0]]), tf.int64)
    places = tf.cast(starts, tf.int64)[:, None] + tf.range(tf.cast(length, tf.int64))[None, :]
    if view.attr("mode", "linear") == "circular":
        places = tf.math.floormod(places, tf.cast(sizes[axis], tf.int64))
    shape = [-1 if a == 0 else 1 for a in range(rank)]
    shape[axis] = length
    places = tf.broadcast_to(tf.reshape(places, stack(shape)), tf.shape(update))
    return tf.tensor_scatter_nd_update(cache, _along(places, axis), update)


LOWERINGS: dict[str, Lowering] = {
    "Gather": _gather,
    "GatherElements": _gather_elements,
    "GatherND": _gather_nd,
    "Scatter": _scatter_elements,
    "ScatterElements": _scatter_elements,
    "ScatterND": _scatter_nd,
    "TensorScatter": _tensor_scatter,
}
