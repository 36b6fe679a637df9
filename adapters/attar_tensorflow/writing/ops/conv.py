"""Convolutions, their transposes, and their integer forms. Images are channels-last in here."""

from __future__ import annotations

import numpy as np
import tensorflow as tf

from attar_tensorflow.writing.context import Ctx, Lowering, Tensor, View
from attar_tensorflow.writing.tensors import dims, images, rank_of, stack
from attar_tensorflow.writing.windows import Window, window_of


def kernel_last(w: Tensor) -> Tensor:
    """(O, I, ...) -> (..., I, O), as TensorFlow keeps kernels."""
    rank = w.shape.rank
    return tf.transpose(w, [*range(2, rank), 1, 0])


def spatial_pad(x: Tensor, pads: tuple[tuple[int, int], ...], value: float | Tensor = 0) -> Tensor:
    """Pad the spatial axes of a channels-last tensor; negative amounts crop."""
    if not any(map(any, pads)):
        return x
    cuts = [slice(max(-a, 0), min(b, 0) or None) for a, b in pads]
    if any(a < 0 or b < 0 for a, b in pads):
        x = x[(slice(None), *cuts, slice(None))]
    grow = [(0, 0), *((max(a, 0), max(b, 0)) for a, b in pads), (0, 0)]
    return tf.pad(x, grow, constant_values=tf.cast(value, x.dtype))


def _conv(ctx: Ctx, view: View) -> Tensor:
    y = convolve(ctx[0], ctx[1], view)
    return y if ctx[2] is None else tf.nn.bias_add(y, ctx[2])


def convolve(x: Tensor, w: Tensor, view: View) -> Tensor:
    """The convolution of `view` without bias, of a channels-last image with a kernel in ONNX's layout."""
    rank = rank_of(w, view) - 2
    if rank not in (1, 2, 3) or rank_of(x, view) != rank + 2:
        raise view.refuse(f"convolution over {rank} spatial axes")
    if None in w.shape.as_list():
        raise view.refuse("the shape of its weight is known only while the model runs")
    window = window_of(view, tuple(w.shape[2:]), x.shape.as_list()[1:-1])
    groups = view.attr("group", 1)
    if rank == 1:  # as an image of height 1
        window = _with_height(window)
        return tf.squeeze(_convolve(tf.expand_dims(x, 1), tf.expand_dims(w, 2), window, groups), 1)
    return _convolve(x, w, window, groups)


def _with_height(window: Window) -> Window:
    pads = None if window.pads is None else ((0, 0), *window.pads)
    return Window(
        (1, *window.kernel), (1, *window.strides), (1, *window.dilations), pads, window.same, window.ceil
    )


def _convolve(x: Tensor, w: Tensor, window: Window, groups: int) -> Tensor:
    padding = "SAME" if window.same else "VALID"
    if not window.same:
        x = spatial_pad(x, window.pads)
    if len(window.kernel) == 3:
        parts = zip(tf.split(x, groups, -1), tf.split(w, groups, 0), strict=True)
        return _join([_convolve_3d(a, kernel_last(b), window, padding) for a, b in parts])
    step, dilation = window.strides, window.dilations
    depthwise = groups > 1 and w.shape[1] == 1
    # TensorFlow's depthwise kernel wants equal strides, and gives a wrong size when it strides and dilates.
    if depthwise and step[0] == step[1] and (max(step) == 1 or max(dilation) == 1):
        kernel = tf.transpose(w, [2, 3, 0, 1])
        kernel = tf.reshape(kernel, [*window.kernel, groups, w.shape[0] // groups])
        return tf.nn.depthwise_conv2d(x, kernel, [1, *step, 1], padding, dilations=list(dilation))
    return tf.nn.conv2d(x, kernel_last(w), list(step), padding, dilations=list(dilation))


def _convolve_3d(x: Tensor, kernel: Tensor, window: Window, padding: str) -> Tensor:
    if max(window.dilations) == 1:
        return tf.nn.conv3d(x, kernel, [1, *window.strides, 1], padding)
    if max(window.strides) == 1:
        return tf.nn.convolution(x, kernel, [1, 1, 1], padding, dilations=list(window.dilations))
    return tf.nn.conv3d(x, _spread(kernel, window.dilations), [1, *window.strides, 1], padding)


def _join(parts: list[Tensor]) -> Tensor:
    return parts[0] if len(parts) == 1 else tf.concat(parts, -1)


def _spread(kernel: Tensor, dilations: tuple[int, ...]) -> Tensor:
    """A channels-last kernel with zeros between its taps."""
    for axis, rate in enumerate(dilations):
        if rate == 1:
            continue
        size = kernel.shape[axis]
        kernel = tf.expand_dims(kernel, axis + 1)
        grow = [(0, 0)] * kernel.shape.rank
        grow[axis + 1] = (0, rate - 1)
        kernel = tf.pad(kernel, grow)
        shape = kernel.shape.as_list()
        kernel = tf.reshape(kernel, [*shape[:axis], size * rate, *shape[axis + 2 :]])
        cut = [slice(None)] * kernel.shape.rank
        cut[axis] = slice(0, (size - 1) * rate + 1)
        kernel = kernel[tuple(cut)]
    return kernel


def _conv_transpose(ctx: Ctx, view: View) -> Tensor:
    x, w = ctx[0], ctx[1]
    rank = rank_of(w, view) - 2
    if rank not in (1, 2, 3):
        raise view.refuse(f"convolution over {rank} spatial axes")
    if None in w.shape.as_list():
        raise view.refuse("the shape of its weight is known only while the model runs")
    strides = list(view.attr("strides") or [1] * rank)
    dilations = tuple(view.attr("dilations") or [1] * rank)
    groups = view.attr("group", 1)
    reach = [(k - 1) * d + 1 for k, d in zip(w.shape[2:], dilations, strict=True)]
    pads, extra = transposed_pads(view, x.shape.as_list()[1:-1], strides, reach)
    kernels = []
    for part in tf.split(w, groups, 0):
        kernel = tf.transpose(part, [*range(2, rank + 2), 1, 0])  # (..., out, in)
        kernels.append(_spread(kernel, dilations))
    if rank == 1:
        x, kernels = tf.expand_dims(x, 1), [tf.expand_dims(k, 0) for k in kernels]
        strides, reach = [1, *strides], [1, *reach]
    sizes = dims(x)
    whole = [(s - 1) * step + r for s, step, r in zip(sizes[1:-1], strides, reach, strict=True)]
    function = tf.nn.conv3d_transpose if len(strides) == 3 else tf.nn.conv2d_transpose
    shape = stack([sizes[0], *whole, w.shape[1]])
    parts = zip(tf.split(x, groups, -1), kernels, strict=True)
    y = _join([function(a, k, shape, [1, *strides, 1], "VALID") for a, k in parts])
    if rank == 1:
        y = tf.squeeze(y, 1)
    # What lies beyond the last tap is zero; what the pads name is cut away.
    y = spatial_pad(y, tuple((0, e) for e in extra))
    y = spatial_pad(y, tuple((-a, -b) for a, b in pads))
    return y if ctx[2] is None else tf.nn.bias_add(y, ctx[2])


def transposed_pads(
    view: View, sizes: list[int | None], strides: list[int], reach: list[int]
) -> tuple[list[tuple[int, int]], list[int]]:
    """What a transposed convolution cuts, (before, after) an axis, and adds after the end first."""
    rank = len(strides)
    extra = list(view.attr("output_padding") or [0] * rank)
    auto = view.attr("auto_pad", "NOTSET") or "NOTSET"
    wanted = view.attr("output_shape")
    if wanted is None and auto in ("NOTSET", "VALID"):
        flat = view.attr("pads") or [0] * (2 * rank)
        flat = flat if auto == "NOTSET" else [0] * (2 * rank)
        return [(flat[i], flat[i + rank]) for i in range(rank)], extra
    pads = []
    for i in range(rank):
        size = sizes[i]
        if wanted is None:
            total = reach[i] - strides[i] + extra[i]  # so that the output is size * stride
        elif size is None:
            raise view.refuse("output_shape for sizes that are known only while the model runs")
        else:
            total = strides[i] * (size - 1) + extra[i] + reach[i] - wanted[-rank:][i]
        if total < 0:  # an output larger than the taps reach ends in zeros
            extra[i] -= total
            total = 0
        small, large = total // 2, total - total // 2
        pads.append((small, large) if auto == "SAME_UPPER" else (large, small))
    return pads, extra


def _conv_integer(ctx: Ctx, view: View) -> Tensor:
    # float64 holds every sum of products of bytes exactly.
    x, w = tf.cast(ctx[0], tf.float64), tf.cast(ctx[1], tf.float64)
    if ctx[2] is not None:
        x -= tf.cast(tf.reshape(ctx[2], []), tf.float64)
    if ctx[3] is not None:
        zero = tf.cast(ctx[3], tf.float64)
        w -= tf.reshape(zero, [-1, *[1] * (w.shape.rank - 1)])
    return tf.cast(convolve(x, w, view), tf.int32)


def _deform_conv(ctx: Ctx, view: View) -> Tensor:
    """Deformable convolution by bilinear sampling of each tap; the images stay channels-first here."""
    x, w, offset, bias, mask = (ctx[i] for i in range(5))
    if rank_of(x, view) != 4 or None in x.shape.as_list()[1:]:
        raise view.refuse("sizes that are known only while the model runs")
    channels, height, width = x.shape.as_list()[1:]
    kh, kw = w.shape[2:]
    window = window_of(view, (kh, kw), [height, width])
    oh, ow = window.output([height, width])
    groups, shared = view.attr("group", 1), view.attr("offset_group", 1)
    n = dims(x)[0]
    moves = tf.reshape(offset, stack([n, shared, kh * kw, 2, oh, ow]))
    taps = np.stack(np.meshgrid(np.arange(kh), np.arange(kw), indexing="ij"), -1).reshape(-1, 2)
    start = np.array([p[0] for p in window.pads])
    step, dilation = np.array(window.strides), np.array(window.dilations)
    cells = np.stack(np.meshgrid(np.arange(oh), np.arange(ow), indexing="ij"))  # 2, oh, ow
    base = (cells * step[:, None, None] - start[:, None, None])[None] + (taps * dilation)[:, :, None, None]
    place = moves + tf.constant(base[None, None], x.dtype)  # n, shared, taps, 2, oh, ow
    image = tf.transpose(
        tf.reshape(x, stack([n, shared, channels // shared, height, width])), [0, 1, 3, 4, 2]
    )
    sampled = bilinear(image, place[:, :, :, 0], place[:, :, :, 1])  # n, shared, taps, oh, ow, c
    if mask is not None:
        sampled *= tf.reshape(mask, stack([n, shared, kh * kw, oh, ow, 1]))
    columns = tf.transpose(sampled, [0, 1, 5, 2, 3, 4])
    columns = tf.reshape(columns, stack([n, groups, channels // groups * kh * kw, oh * ow]))
    kernel = tf.reshape(w, [groups, w.shape[0] // groups, -1])
    y = tf.reshape(tf.matmul(kernel[None], columns), stack([n, w.shape[0], oh, ow]))
    return y if bias is None else y + tf.reshape(bias, [1, -1, 1, 1])


def bilinear(image: Tensor, rows: Tensor, columns: Tensor) -> Tensor:
    """`image` (n, g, h, w, c) at fractional places (n, g, ...), zero outside."""
    height, width = image.shape[2:4]
    top, left = tf.floor(rows), tf.floor(columns)
    total = 0
    for dy in (0, 1):
        for dx in (0, 1):
            r, c = top + dy, left + dx
            weight = (1 - tf.abs(rows - r)) * (1 - tf.abs(columns - c))
            inside = (r >= 0) & (r < height) & (c >= 0) & (c < width)
            flat = tf.clip_by_value(r, 0, height - 1) * width + tf.clip_by_value(c, 0, width - 1)
            pixels = tf.reshape(image, stack([*dims(image)[:2], height * width, image.shape[4]]))
            value = tf.gather(pixels, tf.cast(flat, tf.int32), axis=2, batch_dims=2)
            total += value * tf.where(inside, weight, tf.zeros_like(weight))[..., None]
    return total


LOWERINGS: dict[str, Lowering] = {
    "Conv": images(_conv),
    "ConvInteger": images(_conv_integer),
    "ConvTranspose": images(_conv_transpose),
    "DeformConv": _deform_conv,
}
