"""Pooling and resizing of images."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import onnx_ir as ir

from attar_mxnet.reading.builder import Builder
from attar_mxnet.reading.layers import channels_first, spatial
from attar_mxnet.reading.operation import Operation
from attar_mxnet.reading.table import Table

table = Table()
_LARGEST = 1 << 22  # elements of a constant


@table("Pooling", "Pooling_v1", "_npx_pooling")
def pooling(ctx: Builder, op: Operation) -> ir.Value:
    x, back = channels_first(ctx, op, op.input(0))
    kind = op.text("pool_type", "max")
    y = _global(ctx, op, x, kind) if op.flag("global_pool") else _windows(ctx, op, x, kind)
    return y if back is None else ctx.emit("Transpose", y, perm=back)


def _global(ctx: Builder, op: Operation, x: ir.Value, kind: str) -> ir.Value:
    if kind == "avg":
        return ctx.emit("GlobalAveragePool", x)
    if kind == "max":
        return ctx.emit("GlobalMaxPool", x)
    axes = list(range(2, ctx.rank(x)))
    if kind == "sum":
        return ctx.emit("ReduceSum", x, axes, keepdims=1)
    if kind == "lp":
        return ctx.emit("GlobalLpPool", x, p=op.whole("p_value"))
    raise op.refuse(f"pool_type {kind}")


def _windows(ctx: Builder, op: Operation, x: ir.Value, kind: str) -> ir.Value:
    kernel = list(op.wholes("kernel"))
    count = len(kernel)
    stride, pad = spatial(op, "stride", count, 1), spatial(op, "pad", count, 0)
    convention = op.text("pooling_convention", "valid")
    sizes = ctx.shape(x)[2:]
    if convention == "full" and not all(isinstance(s, int) for s in sizes):
        return _ceil_mode(ctx, op, x, kind, kernel=kernel, stride=stride, pad=pad)
    if convention not in ("valid", "full"):
        raise op.refuse(f"pooling_convention {convention}")
    # The windows of `full` may reach beyond the padding at the end; so much more is padded there.
    more = [0] * count
    for axis, size in enumerate(sizes if convention == "full" else ()):
        k, s, p = kernel[axis], stride[axis], pad[axis]
        windows = 1 - (-(int(size) + 2 * p - k) // s)
        if windows > _LARGEST:
            raise op.refuse(f"{windows} windows")
        more[axis] = max(0, (windows - 1) * s + k - int(size) - 2 * p)
    return _padded(ctx, op, x, kind, kernel=kernel, stride=stride, pad=pad, more=more)


def _padded(
    ctx: Builder,
    op: Operation,
    x: ir.Value,
    kind: str,
    *,
    kernel: Sequence[int],
    stride: Sequence[int],
    pad: Sequence[int],
    more: Sequence[int],
) -> ir.Value:
    end = [p + m for p, m in zip(pad, more, strict=True)]
    settings: dict[str, Any] = {"kernel_shape": list(kernel), "strides": list(stride)}
    fits = all(max(p, e) < k for p, e, k in zip(pad, end, kernel, strict=True))
    if kind == "max":
        if not fits:  # ONNX wants pads smaller than the kernel
            lowest = (
                float(np.finfo(ctx.dtype(x)).min) if ctx.is_float(x) else float(np.iinfo(ctx.dtype(x)).min)
            )
            return ctx.emit("MaxPool", _around(ctx, x, pad, end, lowest), **settings)
        return ctx.emit("MaxPool", x, pads=[*pad, *end], **settings)
    if kind == "lp":
        if any(pad) or any(more):
            raise op.refuse("lp pooling with padding")
        return ctx.emit("LpPool", x, p=op.whole("p_value"), **settings)
    if kind not in ("avg", "sum"):
        raise op.refuse(f"pool_type {kind}")
    counted = op.flag("count_include_pad", True) or kind == "sum"
    sizes = ctx.shape(x)[2:]
    if any(more) and kind == "avg":
        share = _share([int(d) for d in sizes], kernel, stride, pad, more)
        if not share.all():
            raise op.refuse("windows that lie beyond the image, the mean of nothing")
    if any(more) and counted and kind == "avg":
        # MXNet divides by the part of a window that lies within the image and its padding, not beyond.
        y = ctx.emit("AveragePool", _around(ctx, x, pad, end, 0.0), **settings)
        return ctx.emit("Div", y, ctx.const(share.astype(ctx.dtype(x)), name="share"))
    if counted and not fits:
        x, pad, end = _around(ctx, x, pad, end, 0.0), [0] * len(pad), [0] * len(pad)
    elif not fits:
        raise op.refuse("padding as large as the window")
    y = ctx.emit("AveragePool", x, pads=[*pad, *end], count_include_pad=int(counted), **settings)
    return ctx.emit("Mul", y, ctx.scalar(float(np.prod(kernel)), y)) if kind == "sum" else y


def _share(
    sizes: Sequence[int],
    kernel: Sequence[int],
    stride: Sequence[int],
    pad: Sequence[int],
    more: Sequence[int],
) -> np.ndarray[Any, Any]:
    """Which part of each window lies within the image and its padding."""
    share = np.ones((1,) * len(sizes))
    for axis, (n, k, s, p, m) in enumerate(zip(sizes, kernel, stride, pad, more, strict=True)):
        starts = np.arange((n + 2 * p + m - k) // s + 1) * s
        part = (np.minimum(starts + k, n + 2 * p) - starts) / k
        share = share * part.reshape([-1 if a == axis else 1 for a in range(len(sizes))])
    return share


def _around(ctx: Builder, x: ir.Value, pad: Sequence[int], end: Sequence[int], number: float) -> ir.Value:
    if not any(pad) and not any(end):
        return x
    return ctx.emit("Pad", x, [0, 0, *pad, 0, 0, *end], ctx.scalar(number, x), mode="constant")


def _ceil_mode(
    ctx: Builder,
    op: Operation,
    x: ir.Value,
    kind: str,
    *,
    kernel: Sequence[int],
    stride: Sequence[int],
    pad: Sequence[int],
) -> ir.Value:
    """`full` on images of any size. ONNX drops windows that start beyond the image, MXNet keeps them."""
    kept = all(s - 1 + p < k for k, s, p in zip(kernel, stride, pad, strict=True))
    if kind != "max" or not kept:
        raise op.refuse("pooling_convention 'full' on an image of unknown size; give shapes={...}")
    return ctx.emit(
        "MaxPool", x, kernel_shape=list(kernel), strides=list(stride), pads=[*pad, *pad], ceil_mode=1
    )


@table("_contrib_AdaptiveAvgPooling2D")
def adaptive_pooling(ctx: Builder, op: Operation) -> ir.Value:
    """Each output is the mean over its share of the image: rows floor(i*H/h) to ceil((i+1)*H/h)."""
    x = op.input(0)
    wanted = op.wholes("output_size", ()) or (1, 1)
    height, width = wanted if len(wanted) == 2 else (wanted[0], wanted[0])
    if (height, width) == (1, 1):
        return ctx.emit("GlobalAveragePool", x)
    sizes = ctx.shape(x)[2:]
    if not all(isinstance(s, int) for s in sizes):
        raise op.refuse("output sizes above 1 on an image of unknown size; give shapes={...}")
    h, w = int(sizes[0]), int(sizes[1])
    if h % height == 0 and w % width == 0:
        steps = [h // height, w // width]
        return ctx.emit("AveragePool", x, kernel_shape=steps, strides=steps)
    if max(h * height, w * width) > _LARGEST:
        raise op.refuse(f"output_size {height} x {width}")
    rows, columns = _means(h, height).astype(ctx.dtype(x)), _means(w, width).T.astype(ctx.dtype(x))
    across = ctx.emit("MatMul", x, ctx.const(columns, name="columns"))
    return ctx.emit("MatMul", ctx.const(rows, name="rows"), across)


def _means(size: int, parts: int) -> np.ndarray[Any, Any]:
    matrix = np.zeros((parts, size))
    for i in range(parts):
        start, end = i * size // parts, -(-(i + 1) * size // parts)
        matrix[i, start:end] = 1 / (end - start)
    return matrix


@table("UpSampling")
def up_sampling(ctx: Builder, op: Operation) -> ir.Value:
    scale, kind = op.whole("scale"), op.text("sample_type", "nearest")
    if kind == "bilinear":
        # A transposed convolution of each channel by itself, with a weight that MXNet stores.
        x, kernel = op.input(0), 2 * scale - scale % 2
        pad = int(np.ceil((scale - 1) / 2))
        channels = ctx.shape(x)[1]
        if not isinstance(channels, int):
            raise op.refuse("an unknown number of channels")
        return ctx.emit(
            "ConvTranspose",
            x,
            op.input(1),
            kernel_shape=[kernel] * 2,
            strides=[scale] * 2,
            pads=[pad] * 4,
            group=channels,
        )
    if len(op) > 1 and op.text("num_args", "1") != "1":
        raise op.refuse("several inputs")
    x = op.input(0)
    return ctx.emit(
        "Resize",
        x,
        None,
        ctx.const([1, 1, scale, scale], np.float32),
        mode="nearest",
        coordinate_transformation_mode="asymmetric",
        nearest_mode="floor",
    )


@table("_contrib_BilinearResize2D")
def bilinear_resize(ctx: Builder, op: Operation) -> ir.Value:
    x = op.input(0)
    mode = op.text("mode", "size")
    corners = op.flag("align_corners", True)
    sizes = ctx.shape(x)
    if mode == "like":
        wanted = list(ctx.shape(op.input(1))[2:])
    elif mode != "size":
        raise op.refuse(f"mode {mode}")
    elif op.has("scale_height"):
        if not all(isinstance(s, int) for s in sizes[2:]):
            raise op.refuse("scales on an image of unknown size; give shapes={...}")
        factors = (op.number("scale_height"), op.number("scale_width"))
        wanted = [int(f * int(s)) for f, s in zip(factors, sizes[2:], strict=True)]
    else:
        wanted = [op.whole("height", 1), op.whole("width", 1)]
    how = "align_corners" if corners else "half_pixel"
    dims = [*sizes[:2], *wanted]
    return ctx.emit(
        "Resize",
        x,
        None,
        None,
        ctx.sizes(dims),
        mode="linear",
        coordinate_transformation_mode=how,
        shape=dims,
    )
