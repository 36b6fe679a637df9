"""Convolutions and pooling. SAME pads so that the output has ceil(size / stride) elements, the odd one at the
end."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from attar_tensorflow.tflite import schema
from attar_tensorflow.tflite.liftop import Op


def _padding(
    op: Op, kernel: Sequence[int], strides: Sequence[int], dilations: Sequence[int]
) -> dict[str, Any]:
    """The attributes for a window over the spatial axes of input 0."""
    if schema.PADDINGS[op.option("padding") & 1] == "VALID":
        return {"pads": [0] * (2 * len(kernel))}
    begins, ends = [], []
    for size, k, s, d in zip(op.shape(0)[1:-1], kernel, strides, dilations, strict=True):
        reach = (k - 1) * d + 1
        if size is None:
            if s != 1:
                return {"auto_pad": "SAME_UPPER"}  # the same rule, worked out when the size is known
            total = reach - 1
        else:
            total = max((-(-size // s) - 1) * s + reach - size, 0)
        begins.append(total // 2)
        ends.append(total - total // 2)
    return {"pads": begins + ends}


def _steps(op: Op) -> tuple[list[int], list[int]]:
    strides = [op.option("stride_h"), op.option("stride_w")]
    dilations = [op.option("dilation_h_factor", 1), op.option("dilation_w_factor", 1)]
    if min(strides + dilations) < 1:
        raise op.refuse("its strides or dilations are not positive")
    return strides, dilations


def conv_2d(op: Op) -> None:
    """Weights (out, height, width, in / groups)."""
    if op.rank(0) != 4 or op.rank(1) != 4:
        raise op.refuse("it does not have 4 axes")
    strides, dilations = _steps(op)
    _, height, width, depth = (int(d or 0) for d in op.shape(1))
    channels = op.shape(0)[-1]
    if channels is None or not depth or channels % depth:
        raise op.refuse(f"{channels} channels do not fit weights for {depth}")
    inputs = [op.real(0, first=True), op.weight(1, (0, 3, 1, 2)), op.bias(2, 1)]
    value = op.emit(
        "Conv", inputs[: 2 + op.has(2)], kernel_shape=[height, width], strides=strides, dilations=dilations,
        group=channels // depth, **_padding(op, (height, width), strides, dilations),
    )  # fmt: skip
    op.give(value, first=True)


def depthwise_conv_2d(op: Op) -> None:
    """Weights (1, height, width, in * multiplier)."""
    if op.rank(0) != 4 or op.rank(1) != 4:
        raise op.refuse("it does not have 4 axes")
    strides, dilations = _steps(op)
    one, height, width, depth = (int(d or 0) for d in op.shape(1))
    channels = op.shape(0)[-1]
    if one != 1 or not channels or depth % channels:
        raise op.refuse(f"{channels} channels do not fit weights of shape {list(op.shape(1))}")
    inputs = [op.real(0, first=True), op.weight(1, (3, 0, 1, 2)), op.bias(2, 1)]
    value = op.emit(
        "Conv", inputs[: 2 + op.has(2)], kernel_shape=[height, width], strides=strides, dilations=dilations,
        group=channels, **_padding(op, (height, width), strides, dilations),
    )  # fmt: skip
    op.give(value, first=True)


def conv_3d(op: Op) -> None:
    """Weights (depth, height, width, in / groups, out)."""
    strides = [op.option(f"stride_{a}") for a in "dhw"]
    dilations = [op.option(f"dilation_{a}_factor", 1) for a in "dhw"]
    kernel = [int(d or 0) for d in op.shape(1)[:3]]
    channels, depth = op.shape(0)[-1], int(op.shape(1)[3] or 0)
    if min(strides + dilations) < 1 or channels is None or not depth or channels % depth:
        raise op.refuse("its strides, dilations or channels do not fit")
    inputs = [op.real(0, first=True), op.weight(1, (4, 3, 0, 1, 2)), op.bias(2, 1)]
    value = op.emit(
        "Conv", inputs[: 2 + op.has(2)], kernel_shape=kernel, strides=strides, dilations=dilations,
        group=channels // depth, **_padding(op, kernel, strides, dilations),
    )  # fmt: skip
    op.give(value, first=True)


def transpose_conv(op: Op) -> None:
    """Inputs are the output's shape, weights (out, height, width, in), then the data.

    The padding is that of the convolution which this one turns round, from the output to the input.
    """
    wanted = op.whole(0, "its output's shape")
    strides = [op.option("stride_h"), op.option("stride_w")]
    kernel = [int(d or 0) for d in op.shape(1)[1:3]]
    sizes = op.shape(2)[1:3]
    if len(wanted) != 4 or min(strides) < 1 or None in sizes:
        raise op.refuse("its sizes are not known")
    begins, ends, extra = [], [], []
    for size, goal, k, s in zip(sizes, wanted[1:3], kernel, strides, strict=True):
        total = (int(size or 0) - 1) * s + k - goal
        begins.append(max(total, 0) // 2)
        ends.append(max(total, 0) - max(total, 0) // 2)
        extra.append(max(-total, 0))
    if any(e >= s for e, s in zip(extra, strides, strict=True)):
        raise op.refuse("its output is larger than its weights reach")
    inputs = [op.real(2, first=True), op.weight(1, (3, 0, 1, 2)), op.bias(3, 1)]
    value = op.emit(
        "ConvTranspose", inputs[: 2 + op.has(3)], kernel_shape=kernel, strides=strides, pads=begins + ends,
        output_padding=extra,
    )  # fmt: skip
    op.give(value, first=True)


def _pool(op: Op, kind: str, **attributes: int) -> None:
    kernel = [op.option("filter_height"), op.option("filter_width")]
    strides = [op.option("stride_h"), op.option("stride_w")]
    if min(kernel + strides) < 1 or op.rank(0) != 4:
        raise op.refuse("its window or strides are not positive")
    padding = _padding(op, kernel, strides, (1, 1))
    whole = list(op.shape(0)[1:3]) == kernel and not any(padding.get("pads", [1]))
    if kind == "AveragePool" and whole:
        value = op.emit("GlobalAveragePool", [op.real(0, first=True)])
    else:
        value = op.emit(
            kind, [op.real(0, first=True)], kernel_shape=kernel, strides=strides, **padding, **attributes
        )
    op.give(value, first=True)


def average_pool_2d(op: Op) -> None:
    """Padding does not count."""
    _pool(op, "AveragePool", count_include_pad=0)


def max_pool_2d(op: Op) -> None:
    _pool(op, "MaxPool")


def local_response_normalization(op: Op) -> None:
    """x / (bias + alpha * sum of squares over 2 radius + 1 channels) ^ beta; ONNX divides alpha by their
    number."""
    size = 2 * op.option("radius") + 1
    value = op.emit(
        "LRN", [op.real(0, first=True)], size=size, alpha=op.option("alpha") * size, beta=op.option("beta"),
        bias=op.option("bias"),
    )  # fmt: skip
    op.give(value, first=True)


LIFTINGS = {
    "CONV_2D": conv_2d,
    "DEPTHWISE_CONV_2D": depthwise_conv_2d,
    "CONV_3D": conv_3d,
    "TRANSPOSE_CONV": transpose_conv,
    "AVERAGE_POOL_2D": average_pool_2d,
    "MAX_POOL_2D": max_pool_2d,
    "LOCAL_RESPONSE_NORMALIZATION": local_response_normalization,
}
