"""Convolutions of one, two and three dimensions. Kernels are stored as ONNX has them: [out, in, ...]."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from attar_tensorflow.reading.lifter import Lift, Lifter
from attar_tensorflow.reading.values import Const, Tensor, channels_first
from attar_tensorflow.reading.view import OpView


def spatial(view: OpView, values: Sequence[int], rank: int) -> list[int]:
    """The entries of a list with one number an axis that belong to height, width, ..."""
    values = [int(v) for v in values]
    return values[2:] if str(view.attr("data_format", "NHWC")).startswith("NC") else values[1 : rank - 1]


def is_first(view: OpView) -> bool:
    """Whether the operation has its channels on axis 1."""
    return str(view.attr("data_format", "NHWC")).startswith("NC")


def as_nchw(ctx: Lifter, view: OpView, i: int) -> tuple[Any, list[int | None]]:
    """Input `i` as an IR value in NCHW, and its height, width, ..."""
    x = view.input(i)
    view.rank(i)
    if is_first(view):
        return ctx.plain(x), list(x.shape[2:])
    return ctx.image(x), list(x.shape[1:-1])


def as_output(view: OpView, value: Any, like: Any, shape: Any = None) -> Tensor:
    """An IR value in NCHW as the operation's output."""
    shape = view.out_shape() if shape is None else shape
    rank = len(shape) if shape is not None else view.rank(0)
    return Tensor(value, like.dtype, shape, None if is_first(view) else channels_first(rank))


def same_pads(
    sizes: Sequence[int | None], kernel: Sequence[int], strides: Sequence[int], dilations: Sequence[int]
) -> list[int] | None:
    """TensorFlow's SAME: ceil(size / stride) outputs, the odd one of the padding at the end.

    Returns:
        The begins, then the ends; None where they hang on a size that is not known.
    """
    begins, ends = [], []
    for size, k, s, d in zip(sizes, kernel, strides, dilations, strict=True):
        reach = (k - 1) * d + 1
        if size is None:
            if s != 1:
                return None
            total = reach - 1
        else:
            total = max((-(-size // s) - 1) * s + reach - size, 0)
        begins.append(total // 2)
        ends.append(total - total // 2)
    return begins + ends


def padding(view: OpView, sizes: Any, kernel: Any, strides: Any, dilations: Any) -> dict[str, Any]:
    """The attributes that say an operation's padding."""
    kind = view.attr("padding")
    if kind == "VALID":
        return {"pads": [0] * (2 * len(kernel))}
    if kind == "EXPLICIT":
        pairs = [int(p) for p in view.attr("explicit_paddings")]
        begins, ends = pairs[0::2], pairs[1::2]
        rank = len(begins)
        return {"pads": spatial(view, begins, rank) + spatial(view, ends, rank)}
    pads = same_pads(sizes, kernel, strides, dilations)
    return {"auto_pad": "SAME_UPPER"} if pads is None else {"pads": pads}


def conv(ctx: Lifter, view: OpView) -> Tensor:
    """Conv2D and Conv3D; groups show in the kernel's depth."""
    flat = _one_dimensional(ctx, view)
    if flat is not None:
        return flat
    kernel = view.input(1)
    rank = view.rank(0)
    x, sizes = as_nchw(ctx, view, 0)
    shape = list(kernel.shape)
    strides = spatial(view, view.attr("strides"), rank)
    dilations = spatial(view, view.attr("dilations", [1] * rank), rank)
    depth = view.shape(0)[1 if is_first(view) else -1]  # type: ignore[index]
    if depth is None or shape[-2] is None or any(d is None for d in shape):
        raise view.refuse("the number of channels is unknown")
    weight = _oihw(ctx, kernel)
    attributes = padding(view, sizes, shape[:-2], strides, dilations)
    made = ctx.node(
        "Conv", [x, weight], strides=strides, dilations=dilations, group=depth // shape[-2],
        kernel_shape=shape[:-2], **attributes,
    )[0]  # fmt: skip
    out = as_output(view, made, view.input(0))
    out.facts.update(channels=(shape[-1], 1 if is_first(view) else -1))
    return out


def _oihw(ctx: Lifter, kernel: Any) -> Any:
    """[height, width, in, out] -> [out, in, height, width]."""
    rank = len(kernel.shape)
    perm = (rank - 1, rank - 2, *range(rank - 2))
    if isinstance(kernel, Const):
        return ctx.derived(kernel, "oihw", lambda a: a.transpose(perm))
    return ctx.node("Transpose", [kernel], perm=list(perm))[0]


def _one_dimensional(ctx: Lifter, view: OpView) -> Tensor | None:
    """A convolution over time, which TensorFlow writes as ExpandDims, Conv2D, Squeeze: as Conv of one
    dimension.

    The image that Conv2D would give is handed on too; whoever squeezes it finds what was made here.
    """
    x, kernel = view.input(0), view.input(1)
    if not (isinstance(x, Tensor) and x.op == "ExpandDims" and isinstance(kernel, Const)) or is_first(view):
        return None
    before, where = x.args[0], x.args[1]
    if not isinstance(before, Tensor) or before.rank != 3 or view.attr("padding") == "EXPLICIT":
        return None
    axis = int(where.array.reshape(())) % 4
    if axis not in (1, 2) or kernel.array.shape[axis - 1] != 1 or view.rank(0) != 4:
        return None
    kept = 2 - axis  # of height and width, the one that is time
    strides, dilations = (spatial(view, view.attr(n), 4) for n in ("strides", "dilations"))
    if strides[1 - kept] != 1 or before.shape is None or before.shape[-1] is None:
        return None
    size = [kernel.array.shape[kept]]
    weight = ctx.derived(kernel, ("oiw", axis), lambda a: a.squeeze(axis - 1).transpose(2, 1, 0))
    attributes = padding(view, [before.shape[1]], size, [strides[kept]], [dilations[kept]])
    made = ctx.node(
        "Conv", [ctx.image(before), weight], strides=[strides[kept]], dilations=[dilations[kept]],
        group=before.shape[-1] // kernel.array.shape[2], kernel_shape=size, **attributes,
    )[0]  # fmt: skip
    full = view.out_shape()
    shape = None if full is None else tuple(d for a, d in enumerate(full) if a != axis)
    flat = ctx.as_image(made, before, shape or (None,) * 3)
    flat.facts.update(channels=(kernel.array.shape[-1], -1))
    flat.op, flat.args = "Conv2D", (before, kernel)
    return as_flat_image(ctx, flat, where, full)


def as_flat_image(ctx: Lifter, flat: Tensor, where: Const, full: Any) -> Tensor:
    """`flat`, [batch, time, channels], as the image that TensorFlow makes of it on the way: time is one of
    the sides.

    Whoever squeezes it finds `flat`.
    """
    axis = int(where.array.reshape(())) % 4
    stored = channels_first(4).index(axis)
    image = ctx.node("Unsqueeze", [flat.value, Const(_int64([stored]))])[0]
    return Tensor(image, flat.dtype, full, channels_first(4), op="ExpandDims", args=(flat, where))


def _int64(values: Sequence[int]) -> Any:
    import numpy as np

    return np.array(values, np.int64)


def depthwise(ctx: Lifter, view: OpView) -> Tensor:
    """DepthwiseConv2dNative: kernel [height, width, in, multiplier], output channel in * multiplier + m."""
    kernel = view.input(1)
    if not isinstance(kernel, Const):
        raise view.refuse("the kernel must be constant")
    x, sizes = as_nchw(ctx, view, 0)
    height, width, depth, many = kernel.array.shape
    weight = ctx.derived(
        kernel, "depthwise", lambda a: a.transpose(2, 3, 0, 1).reshape(depth * many, 1, height, width)
    )
    strides = spatial(view, view.attr("strides"), 4)
    dilations = spatial(view, view.attr("dilations", [1] * 4), 4)
    attributes = padding(view, sizes, [height, width], strides, dilations)
    made = ctx.node(
        "Conv", [x, weight], strides=strides, dilations=dilations, group=depth, kernel_shape=[height, width],
        **attributes,
    )[0]  # fmt: skip
    out = as_output(view, made, view.input(0))
    out.facts.update(channels=(depth * many, 1 if is_first(view) else -1))
    return out


def transposed(ctx: Lifter, view: OpView) -> Tensor:
    """Conv2DBackpropInput and its 3-D form: kernel [height, width, out, in] -> ConvTranspose's [in, out,
    ...].
    """
    kernel, x = view.input(1), view.input(2)
    rank = view.rank(2)
    value, sizes = as_nchw(ctx, view, 2)
    shape = list(kernel.shape)
    perm = (rank - 1, rank - 2, *range(rank - 2))
    if not isinstance(kernel, Const):
        raise view.refuse("the kernel must be constant")
    weight = ctx.derived(kernel, "transposed", lambda a: a.transpose(perm))
    strides = spatial(view, view.attr("strides"), rank)
    dilations = spatial(view, view.attr("dilations", [1] * rank), rank)
    wanted = _target(view, sizes, shape[:-2], strides, dilations)
    begins, ends, extra = [], [], []
    for size, k, s, d, target in zip(sizes, shape[:-2], strides, dilations, wanted, strict=True):
        reach = (k - 1) * d + 1
        # Both sizes grow by the stride together, so where they are unknown a size of 8 tells the difference.
        have, want = (8, 8 * s + (target or 0)) if size is None else (size, target)
        total = max((have - 1) * s + reach - want, 0) if view.attr("padding") != "VALID" else 0
        begins.append(total // 2)
        ends.append(total - total // 2)
        extra.append(want - ((have - 1) * s + reach - total))
    if any(not 0 <= e < max(s, d) for e, s, d in zip(extra, strides, dilations, strict=True)):
        raise view.refuse(f"its output size {wanted} does not follow from its input size {sizes}")
    made = ctx.node(
        "ConvTranspose", [value, weight], strides=strides, dilations=dilations, kernel_shape=shape[:-2],
        pads=begins + ends, output_padding=extra,
    )[0]  # fmt: skip
    out = as_output(view, made, x)
    out.facts.update(channels=(shape[-2], 1 if is_first(view) else -1))
    return out


def _target(view: OpView, sizes: Any, kernel: Any, strides: Any, dilations: Any) -> list[Any]:
    """The sizes of the output; where a size is unknown, by how much it exceeds size * stride."""
    if view.attr("padding") == "EXPLICIT":
        raise view.refuse("explicit paddings are not supported")
    shape = view.out_shape()
    full = (
        [None] * len(sizes) if shape is None else (list(shape[2:]) if is_first(view) else list(shape[1:-1]))
    )
    wanted = []
    for size, found, k, s, d in zip(sizes, full, kernel, strides, dilations, strict=True):
        if size is not None and found is None:
            raise view.refuse("its output size is computed while the model runs")
        if size is None:
            same = view.attr("padding") == "SAME"
            wanted.append(0 if same else max((k - 1) * d + 1 - s, 0))
        else:
            wanted.append(found)
    return wanted


LIFTINGS: dict[str, Lift] = {
    **dict.fromkeys(("Conv2D", "Conv3D"), conv),
    "DepthwiseConv2dNative": depthwise,
    **dict.fromkeys(("Conv2DBackpropInput", "Conv3DBackpropInputV2"), transposed),
}
