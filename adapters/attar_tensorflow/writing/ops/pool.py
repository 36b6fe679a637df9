"""Pooling. Images are channels-last in here."""

from __future__ import annotations

import itertools

import numpy as np
import tensorflow as tf

from attar_tensorflow.writing.context import Ctx, Lowering, Tensor, View
from attar_tensorflow.writing.ops.conv import spatial_pad
from attar_tensorflow.writing.tensors import dims, images, rank_of, stack
from attar_tensorflow.writing.windows import Window, window_of


def _window(x: Tensor, view: View) -> tuple[Window, list[int | None]]:
    kernel = tuple(view.attr("kernel_shape"))
    if rank_of(x, view) != len(kernel) + 2 or len(kernel) not in (1, 2, 3):
        raise view.refuse(f"pooling over {len(kernel)} spatial axes")
    sizes = x.shape.as_list()[1:-1]
    window = window_of(view, kernel, sizes)
    if None in sizes and (window.ceil and max(window.strides) > 1):
        raise view.refuse("ceil_mode for sizes that are known only while the model runs")
    return window, sizes


def _padded(x: Tensor, window: Window, sizes: list[int | None], value: float | Tensor) -> Tensor:
    """`x` padded so that a VALID pooling gives the output, `ceil_mode` included."""
    extra = window.beyond(sizes) if None not in sizes else [0] * len(sizes)
    return spatial_pad(x, tuple((a, b + e) for (a, b), e in zip(window.pads, extra, strict=True)), value)


def lowest(dtype: tf.DType) -> float | int:
    return -np.inf if dtype.is_floating else int(dtype.min)


def _max_pool(ctx: Ctx, view: View) -> object:
    x = ctx[0]
    window, sizes = _window(x, view)
    if view.wants(1):
        return _max_with_places(x, window, sizes, view)
    if not x.dtype.is_floating:  # bytes are exact in float32
        if x.dtype.size > 2:
            raise view.refuse(f"pooling of {x.dtype.name}")
        return tf.cast(_max(tf.cast(x, tf.float32), window, sizes), x.dtype)
    return _max(x, window, sizes)


def _max(x: Tensor, window: Window, sizes: list[int | None]) -> Tensor:
    if max(window.dilations) > 1:
        taps = _taps(_padded(x, window, sizes, lowest(x.dtype)), window)
        best = taps[0]
        for tap in taps[1:]:
            best = tf.maximum(best, tap)
        return best
    if window.same:
        return tf.nn.pool(x, window.kernel, "MAX", window.strides, "SAME")
    return tf.nn.pool(
        _padded(x, window, sizes, lowest(x.dtype)), window.kernel, "MAX", window.strides, "VALID"
    )


def _taps(x: Tensor, window: Window) -> list[Tensor]:
    """The padded input as each tap of the window sees it: one strided slice a tap, row by row."""
    found = []
    sizes = dims(x)[1:-1]
    out = [(s - r) // step + 1 for s, r, step in zip(sizes, window.reach, window.strides, strict=True)]
    for tap in itertools.product(*map(range, window.kernel)):
        cuts = []
        for t, rate, step, count in zip(tap, window.dilations, window.strides, out, strict=True):
            cuts.append(slice(t * rate, t * rate + (count - 1) * step + 1, step))
        found.append(x[(slice(None), *cuts, slice(None))])
    return found


def _max_with_places(x: Tensor, window: Window, sizes: list[int | None], view: View) -> tuple[Tensor, Tensor]:
    """Largest values and where they are in the input, counted as ONNX counts: over N, C and the axes."""
    if None in x.shape.as_list()[1:] or window.pads is None:
        raise view.refuse("indices of sizes that are known only while the model runs")
    channels = x.shape[-1]
    strides = [1] * len(sizes)
    order = range(len(sizes)) if view.attr("storage_order", 0) else reversed(range(len(sizes)))
    step = 1
    for axis in order:
        strides[axis] = step
        step *= sizes[axis]
    places = np.zeros(sizes, np.int64)
    for axis, stride in enumerate(strides):
        shape = [-1 if a == axis else 1 for a in range(len(sizes))]
        places = places + np.arange(sizes[axis]).reshape(shape) * stride
    place_map = tf.constant(places[None, ..., None])
    # Padding is lower than anything and never chosen: the comparison is strict and a window has an element.
    images_, indices = _taps(_padded(x, window, sizes, lowest(x.dtype)), window), []
    indices = _taps(_padded(place_map, window, sizes, -1), window)
    best, where = images_[0], tf.broadcast_to(indices[0], tf.shape(images_[0]))
    for tap, index in zip(images_[1:], indices[1:], strict=True):
        better = (tap > best) | (where < 0)
        best, where = tf.where(better, tap, best), tf.where(better, index, where)
    plane = tf.range(tf.cast(dims(x)[0], tf.int64))[:, None] * channels + np.arange(channels)[None]
    shape = stack([dims(x)[0], *[1] * len(sizes), channels])
    return best, where + tf.reshape(plane, shape) * int(np.prod(sizes))


def _average_pool(ctx: Ctx, view: View) -> Tensor:
    x = ctx[0]
    window, sizes = _window(x, view)
    include = bool(view.attr("count_include_pad", 0))
    if max(window.dilations) == 1:
        if window.plain and not window.ceil:
            return tf.nn.pool(x, window.kernel, "AVG", window.strides, "VALID")
        if window.same and not include:
            return tf.nn.pool(x, window.kernel, "AVG", window.strides, "SAME")
    if window.pads is None or None in sizes:
        if include and window.pads is not None and not window.ceil and max(window.dilations) == 1:
            x = spatial_pad(x, window.pads)
            return tf.nn.pool(x, window.kernel, "AVG", window.strides, "VALID")
        if window.pads is None or window.ceil:
            raise view.refuse("padding of sizes that are known only while the model runs")
        return _sum(x, window, sizes) / _sum(tf.ones_like(x[:1, ..., :1]), window, sizes)
    return _sum(x, window, sizes) / tf.constant(_counts(window, sizes, include), x.dtype)


def _sum(x: Tensor, window: Window, sizes: list[int | None]) -> Tensor:
    x = _padded(x, window, sizes, 0)
    if max(window.dilations) > 1:
        return tf.add_n(_taps(x, window))
    return tf.nn.pool(x, window.kernel, "AVG", window.strides, "VALID") * float(np.prod(window.kernel))


def _counts(window: Window, sizes: list[int], include: bool) -> np.ndarray:
    """How many elements each average is over: those of the input, and of its padding if `include`."""
    total = np.ones(1)
    for i, count in enumerate(window.output(sizes)):
        before, after = window.pads[i]
        starts = np.arange(count)[:, None] * window.strides[i] - before
        taps = starts + np.arange(window.kernel[i]) * window.dilations[i]
        low, high = (-before, sizes[i] + after) if include else (0, sizes[i])
        total = np.multiply.outer(total, ((taps >= low) & (taps < high)).sum(1))
    return total.reshape(1, *total.shape[1:], 1)


def _lp_pool(ctx: Ctx, view: View) -> Tensor:
    x, p = ctx[0], view.attr("p", 2)
    window, sizes = _window(x, view)
    if window.pads is None:
        raise view.refuse("padding of sizes that are known only while the model runs")
    raised = tf.square(x) if p == 2 else tf.pow(tf.abs(x), tf.cast(p, x.dtype))
    total = _sum(raised, window, sizes)
    return tf.sqrt(total) if p == 2 else tf.pow(total, tf.cast(1 / p, x.dtype))


def _over_all(function: object) -> Lowering:
    def lower(ctx: Ctx, view: View) -> Tensor:
        x = ctx[0]
        return function(x, list(range(1, rank_of(x, view) - 1)), view)

    return images(lower)


def _global_lp(x: Tensor, axes: list[int], view: View) -> Tensor:
    p = view.attr("p", 2)
    total = tf.reduce_sum(tf.pow(tf.abs(x), tf.cast(p, x.dtype)), axes, keepdims=True)
    return tf.pow(total, tf.cast(1 / p, x.dtype))


def _max_unpool(ctx: Ctx, view: View) -> Tensor:
    x, places = ctx[0], ctx[1]
    kernel, sizes = view.attr("kernel_shape"), x.shape.as_list()
    if None in sizes:
        raise view.refuse("sizes that are known only while the model runs")
    rank = len(kernel)
    strides, pads = view.attr("strides") or [1] * rank, view.attr("pads") or [0] * 2 * rank
    spatial = [(sizes[i + 2] - 1) * strides[i] + kernel[i] - pads[i] - pads[i + rank] for i in range(rank)]
    shape = [*sizes[:2], *spatial]
    if view.has(2) and [int(s) for s in view.need_const(2, "the output's shape")] != shape:
        raise view.refuse("an output of another shape, in which runtimes place the elements differently")
    flat = tf.scatter_nd(tf.reshape(places, [-1, 1]), tf.reshape(x, [-1]), [int(np.prod(shape))])
    return tf.reshape(flat, shape)


LOWERINGS: dict[str, Lowering] = {
    "AveragePool": images(_average_pool),
    "GlobalAveragePool": _over_all(lambda x, axes, view: tf.reduce_mean(x, axes, keepdims=True)),
    "GlobalLpPool": _over_all(_global_lp),
    "GlobalMaxPool": _over_all(lambda x, axes, view: tf.reduce_max(x, axes, keepdims=True)),
    "LpPool": images(_lp_pool),
    "MaxPool": images(_max_pool),
    "MaxUnpool": _max_unpool,
}
