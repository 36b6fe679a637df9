"""Sampling of images at computed places, and boxes."""

from __future__ import annotations

import itertools

import numpy as np
import tensorflow as tf

from attar_tensorflow.writing.context import Ctx, Lowering, Tensor, View
from attar_tensorflow.writing.tensors import dims, rank_of, stack, static_dims


def _grid_sample(ctx: Ctx, view: View) -> Tensor:
    x, grid = ctx[0], ctx[1]
    rank = rank_of(x, view) - 2
    sizes = static_dims(x, range(2, rank + 2), view, "the size of the image")
    align, mode = bool(view.attr("align_corners", 0)), view.attr("mode", "linear")
    border = view.attr("padding_mode", "zeros")
    if mode in ("cubic", "bicubic") and rank != 2:
        raise view.refuse("cubic sampling of volumes")
    places = []
    for axis, size in enumerate(sizes):  # the grid names the last axis first
        g = grid[..., rank - 1 - axis]
        place = (g + 1) / 2 * (size - 1) if align else ((g + 1) * size - 1) / 2
        if border == "border" and mode not in ("cubic", "bicubic"):
            place = tf.clip_by_value(place, 0, size - 1)
        elif border == "reflection" and mode not in ("cubic", "bicubic"):
            place = _reflect(place, size, align)
        places.append(place)
    if mode == "nearest":
        taps = [[(tf.round(p), tf.ones_like(p))] for p in places]
    elif mode in ("linear", "bilinear"):
        taps = [[(tf.floor(p) + k, 1 - tf.abs(p - tf.floor(p) - k)) for k in (0, 1)] for p in places]
    else:
        taps = [[(tf.floor(p) + k, _cubic(p - tf.floor(p) - k)) for k in (-1, 0, 1, 2)] for p in places]
    channels = dims(x)[1]
    pixels = tf.transpose(tf.reshape(x, stack([dims(x)[0], channels, int(np.prod(sizes))])), [0, 2, 1])
    total = 0
    for choice in itertools.product(*taps):
        flat, weight = 0, 1
        for (place, share), size in zip(choice, sizes, strict=True):
            index = _reflect(place, size, align) if border == "reflection" else place
            flat = flat * size + tf.cast(tf.clip_by_value(index, 0, size - 1), tf.int32)
            if border == "zeros":
                weight = weight * tf.where((place >= 0) & (place <= size - 1), share, tf.zeros_like(share))
            else:
                weight = weight * share
        count = tf.reshape(flat, stack([dims(x)[0], -1]))
        value = tf.gather(pixels, count, axis=1, batch_dims=1)
        total += value * tf.reshape(weight, stack([dims(x)[0], -1, 1]))
    out = tf.reshape(total, stack([dims(x)[0], *dims(grid)[1:-1], channels]))
    return tf.transpose(out, [0, rank + 1, *range(1, rank + 1)])


def _reflect(place: Tensor, size: int, align: bool) -> Tensor:
    low, high = (0.0, size - 1.0) if align else (-0.5, size - 0.5)
    span = high - low
    if span == 0:
        return tf.zeros_like(place)
    phase = tf.math.floormod(place - low, 2 * span)
    return low + tf.minimum(phase, 2 * span - phase)


def _cubic(t: Tensor, a: float = -0.75) -> Tensor:
    t = tf.abs(t)
    near = (a + 2) * t**3 - (a + 3) * t**2 + 1
    return tf.where(t <= 1, near, a * t**3 - 5 * a * t**2 + 8 * a * t - 4 * a)


def _non_max(ctx: Ctx, view: View) -> Tensor:
    boxes, scores = ctx[0], ctx[1]
    batch, classes = static_dims(scores, [0, 1], view, "the number of images or classes")
    most = tf.constant(0) if ctx[2] is None else tf.cast(tf.reshape(ctx[2], []), tf.int32)
    overlap = tf.constant(0.0) if ctx[3] is None else tf.reshape(ctx[3], [])
    least = tf.constant(-np.inf, tf.float32) if ctx[4] is None else tf.reshape(ctx[4], [])
    if view.attr("center_point_box", 0):
        cx, cy, w, h = tf.unstack(boxes, axis=-1)
        boxes = tf.stack([cy - h / 2, cx - w / 2, cy + h / 2, cx + w / 2], -1)
    found = []
    for n in range(batch):
        for c in range(classes):
            chosen = tf.image.non_max_suppression(boxes[n], scores[n, c], most, overlap, least)
            chosen = tf.cast(chosen, tf.int64)[:, None]
            found.append(tf.concat([tf.ones_like(chosen) * n, tf.ones_like(chosen) * c, chosen], 1))
    return tf.concat(found, 0)


def _roi_align(ctx: Ctx, view: View) -> Tensor:
    x, rois, owner = ctx[0], ctx[1], ctx[2]
    height, width = static_dims(x, [2, 3], view, "the size of the image")
    oh, ow, ratio = (
        view.attr("output_height", 1),
        view.attr("output_width", 1),
        view.attr("sampling_ratio", 0),
    )
    if ratio <= 0:
        raise view.refuse("as many samples as each region is large (sampling_ratio 0)")
    half = view.attr("coordinate_transformation_mode", "half_pixel") == "half_pixel"
    corners = rois * view.attr("spatial_scale", 1.0) - (0.5 if half else 0.0)
    x1, y1, x2, y2 = tf.unstack(corners, axis=-1)
    w, h = x2 - x1, y2 - y1
    if not half:
        w, h = tf.maximum(w, 1.0), tf.maximum(h, 1.0)

    def steps(start: Tensor, extent: Tensor, cells: int) -> Tensor:
        at = (np.arange(cells * ratio) + 0.5) / ratio / cells
        return start[:, None] + extent[:, None] * tf.constant(at, tf.float32)

    ys, xs = steps(y1, h, oh), steps(x1, w, ow)
    images = tf.transpose(tf.gather(x, owner), [0, 2, 3, 1])
    rows, row_inside = _two_taps(ys, height)
    columns, column_inside = _two_taps(xs, width)
    parts = []
    for (r, wr), (c, wc) in itertools.product(rows, columns):
        value = tf.gather(tf.gather(images, r, axis=1, batch_dims=1), c, axis=2, batch_dims=1)
        parts.append(value * wr[:, :, None, None] * wc[:, None, :, None])
    largest = view.attr("mode", "avg") == "max"  # ONNX then takes the largest weighted tap
    value = tf.reduce_max(tf.stack(parts), 0) if largest else tf.add_n(parts)
    inside = row_inside[:, :, None] & column_inside[:, None, :]
    value = tf.where(inside[..., None], value, tf.zeros_like(value))
    channels = x.shape[1]
    cells = tf.reshape(value, stack([dims(rois)[0], oh, ratio, ow, ratio, channels]))
    reduce = tf.reduce_max if largest else tf.reduce_mean
    return tf.transpose(reduce(cells, [2, 4]), [0, 3, 1, 2])


def _two_taps(places: Tensor, size: int) -> tuple[list[tuple[Tensor, Tensor]], Tensor]:
    inside = (places >= -1) & (places <= size)
    places = tf.clip_by_value(places, 0, size - 1)
    low = tf.floor(places)
    high = tf.minimum(low + 1, size - 1)
    share = places - low
    return [(tf.cast(low, tf.int32), 1 - share), (tf.cast(high, tf.int32), share)], inside


def _col2im(ctx: Ctx, view: View) -> Tensor:
    x = ctx[0]
    image = [int(s) for s in view.need_const(1, "image_shape")]
    block = [int(s) for s in view.need_const(2, "block_shape")]
    rank = len(image)
    strides, dilations = view.attr("strides") or [1] * rank, view.attr("dilations") or [1] * rank
    pads = view.attr("pads") or [0] * (2 * rank)
    _, columns, length = static_dims(x, [-1, 1, 2], view)
    starts, taps = [], []
    for i in range(rank):
        reach = (block[i] - 1) * dilations[i] + 1
        count = (image[i] + pads[i] + pads[i + rank] - reach) // strides[i] + 1
        starts.append(np.arange(count) * strides[i] - pads[i])
        taps.append(np.arange(block[i]) * dilations[i])
    flat, inside = np.zeros(1, np.int64), np.ones(1, bool)
    mesh = np.meshgrid(*taps, *starts, indexing="ij")
    flat, inside = 0, True
    for i in range(rank):
        place = mesh[i] + mesh[i + rank]
        inside = inside & (place >= 0) & (place < image[i])
        flat = flat * image[i] + place
    total = int(np.prod(image))
    target = np.where(inside, flat, total).reshape(-1)
    channels = columns // int(np.prod(block))
    values = tf.transpose(
        tf.reshape(x, stack([dims(x)[0], channels, int(np.prod(block)) * length])), [2, 0, 1]
    )
    summed = tf.math.unsorted_segment_sum(values, target, total + 1)[:total]
    return tf.reshape(tf.transpose(summed, [1, 2, 0]), stack([dims(x)[0], channels, *image]))


LOWERINGS: dict[str, Lowering] = {
    "Col2Im": _col2im,
    "GridSample": _grid_sample,
    "NonMaxSuppression": _non_max,
    "RoiAlign": _roi_align,
}
