"""Operators over axes: reductions, extremes, running sums, sorting."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import tensorflow as tf

from attar_tensorflow.writing.context import Ctx, Lowering, Tensor, View
from attar_tensorflow.writing.tensors import axis_of, dims, product, rank_of, through, wide

Reduction = Callable[[Tensor, "list[int] | Tensor", bool], Tensor]


def _reduction(function: Reduction) -> Lowering:
    def lower(ctx: Ctx, view: View) -> Tensor:
        x, keep = ctx[0], bool(view.attr("keepdims", 1))
        if view.has(1) and not view.is_const(1):
            if not keep:
                raise view.refuse("the axes are computed while the model runs")
            axes = tf.math.floormod(tf.cast(ctx[1], tf.int32), rank_of(x, view))
            return function(x, axes, keep)
        axes = view.option(1, "axes")
        chosen = [] if axes is None else [int(a) for a in np.asarray(axes).reshape(-1)]
        if not chosen:
            if view.attr("noop_with_empty_axes", 0):
                return _without_axes(x, function)
            chosen = list(range(rank_of(x, view)))
        return function(x, chosen, keep)

    return lower


def _without_axes(x: Tensor, function: Reduction) -> Tensor:
    """What is left of a reduction over no axis: its operation on each element."""
    return tf.squeeze(function(tf.expand_dims(x, 0), [0], True), 0)


def _plain(reduce: Callable[..., Tensor]) -> Reduction:
    return lambda x, axes, keep: wide(lambda x: reduce(x, axes, keepdims=keep), x)


def _after(reduce: Callable[..., Tensor], before: Callable[[Tensor], Tensor]) -> Reduction:
    return lambda x, axes, keep: wide(lambda x: reduce(before(x), axes, keepdims=keep), x)


def _l2(x: Tensor, axes: list[int], keep: bool) -> Tensor:
    def norm(x: Tensor) -> Tensor:
        return tf.sqrt(tf.reduce_sum(tf.square(x), axes, keepdims=keep))

    return norm(x) if x.dtype.is_floating else through(tf.float64, norm, x)


def _log_sum(x: Tensor, axes: list[int], keep: bool) -> Tensor:
    return tf.math.log(tf.reduce_sum(x, axes, keepdims=keep))


def _log_sum_exp(x: Tensor, axes: list[int], keep: bool) -> Tensor:
    return tf.reduce_logsumexp(x, axes, keepdims=keep)


def _extreme(numbers: Callable[..., Tensor], truths: Callable[..., Tensor]) -> Reduction:
    def function(x: Tensor, axes: list[int], keep: bool) -> Tensor:
        if x.dtype == tf.bool:
            return truths(x, axes, keepdims=keep)
        return wide(lambda x: numbers(x, axes, keepdims=keep), x)

    return function


def _arg(function: Callable[..., Tensor]) -> Lowering:
    def lower(ctx: Ctx, view: View) -> Tensor:
        x = ctx[0]
        axis = axis_of(view.attr("axis", 0), rank_of(x, view))
        if view.attr("select_last_index", 0):
            last = tf.cast(tf.shape(x)[axis] - 1, tf.int64)
            found = last - function(tf.reverse(x, [axis]), axis)
        else:
            found = function(x, axis)
        return tf.expand_dims(found, axis) if view.attr("keepdims", 1) else found

    return lower


def _running(function: Callable[..., Tensor]) -> Lowering:
    def lower(ctx: Ctx, view: View) -> Tensor:
        axis = int(view.need_const(1, "the axis").reshape(()))
        exclusive, reverse = bool(view.attr("exclusive", 0)), bool(view.attr("reverse", 0))
        return wide(lambda x: function(x, axis, exclusive=exclusive, reverse=reverse), ctx[0])

    return lower


def _top_k(ctx: Ctx, view: View) -> tuple[Tensor, Tensor]:
    x = ctx[0]
    rank = rank_of(x, view)
    axis = axis_of(view.attr("axis", -1), rank)
    k = tf.reshape(ctx[1], []) if not view.is_const(1) else int(view.need_const(1, "k").reshape(()))
    perm = [a for a in range(rank) if a != axis] + [axis]
    x = x if axis == rank - 1 else tf.transpose(x, perm)
    if view.attr("largest", 1):
        values, indices = tf.math.top_k(x, tf.cast(k, tf.int32), sorted=True)
    elif x.dtype.is_floating:
        values, indices = tf.math.top_k(-x, tf.cast(k, tf.int32), sorted=True)
        values = -values
    else:  # negation overflows
        indices = tf.argsort(tf.cast(x, tf.int64), stable=True)[..., :k]
        values = tf.gather(x, indices, axis=-1, batch_dims=rank - 1)
    back = [perm.index(a) for a in range(rank)]
    if axis != rank - 1:
        values, indices = tf.transpose(values, back), tf.transpose(indices, back)
    return values, tf.cast(indices, tf.int64)


def _lp_normalization(ctx: Ctx, view: View) -> Tensor:
    x, axis = ctx[0], view.attr("axis", -1)
    if view.attr("p", 2) == 1:
        norm = tf.reduce_sum(tf.abs(x), axis, keepdims=True)
    else:
        norm = tf.sqrt(tf.reduce_sum(tf.square(x), axis, keepdims=True))
    return tf.math.divide_no_nan(x, norm)


def _compress(ctx: Ctx, view: View) -> Tensor:
    x, keep = ctx[0], ctx[1]
    axis = view.attr("axis")
    if axis is None:
        x, axis = tf.reshape(x, [-1]), 0
    return tf.gather(x, tf.reshape(tf.where(keep), [-1]), axis=axis)


def _non_zero(ctx: Ctx, view: View) -> Tensor:
    return tf.transpose(tf.where(tf.not_equal(ctx[0], tf.zeros([], ctx[0].dtype))))


def _unique(ctx: Ctx, view: View) -> tuple[Tensor, ...]:
    x, axis = ctx[0], view.attr("axis")
    if axis is None:
        x, axis = tf.reshape(x, [-1]), 0
    axis = axis_of(axis, rank_of(x, view))
    values, inverse, counts = tf.raw_ops.UniqueWithCountsV2(x=x, axis=[axis], out_idx=tf.int64)
    values.set_shape([None if a == axis else d for a, d in enumerate(x.shape.as_list())])
    size = tf.size(counts)
    places = tf.range(tf.size(inverse, out_type=tf.int64))
    first = tf.math.unsorted_segment_min(places, inverse, size)
    if view.attr("sorted", 1):
        order = _lexical(values, axis)
        values = tf.gather(values, order, axis=axis)
        counts, first = tf.gather(counts, order), tf.gather(first, order)
        inverse = tf.gather(tf.argsort(order), inverse)
    return values, first, tf.cast(inverse, tf.int64), counts


def _lexical(values: Tensor, axis: int) -> Tensor:
    """The order that sorts the slices of `values` along `axis`, their first elements counting most."""
    rank = values.shape.rank
    flat = tf.transpose(values, [axis, *(a for a in range(rank) if a != axis)])
    width = product(dims(flat)[1:])
    flat = tf.reshape(flat, [tf.shape(flat)[0], width])
    order = tf.range(tf.shape(flat)[0])
    if not isinstance(width, int):
        raise ValueError("sorting slices whose size is known only while the model runs")
    for column in reversed(range(width)):
        order = tf.gather(order, tf.argsort(tf.gather(flat[:, column], order), stable=True))
    return order


LOWERINGS: dict[str, Lowering] = {
    "ArgMax": _arg(tf.argmax),
    "ArgMin": _arg(tf.argmin),
    "Compress": _compress,
    "CumProd": _running(tf.math.cumprod),
    "CumSum": _running(tf.cumsum),
    "LpNormalization": _lp_normalization,
    "NonZero": _non_zero,
    "ReduceL1": _reduction(_after(tf.reduce_sum, tf.abs)),
    "ReduceL2": _reduction(_l2),
    "ReduceLogSum": _reduction(_log_sum),
    "ReduceLogSumExp": _reduction(_log_sum_exp),
    "ReduceMax": _reduction(_extreme(tf.reduce_max, tf.reduce_any)),
    "ReduceMean": _reduction(_plain(tf.reduce_mean)),
    "ReduceMin": _reduction(_extreme(tf.reduce_min, tf.reduce_all)),
    "ReduceProd": _reduction(_plain(tf.reduce_prod)),
    "ReduceSum": _reduction(_plain(tf.reduce_sum)),
    "ReduceSumSquare": _reduction(_after(tf.reduce_sum, tf.square)),
    "TopK": _top_k,
    "Unique": _unique,
}
