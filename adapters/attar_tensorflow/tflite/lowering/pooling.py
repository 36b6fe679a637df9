"""Pooling over windows and over whole images."""

from __future__ import annotations

import math
from typing import Any

import numpy as np

from attar_tensorflow.tflite.emit import Params, Slot
from attar_tensorflow.tflite.lowering.windows import SAME, VALID, is_same, padded, pads_of
from attar_tensorflow.tflite.outop import Lowering, OutOp


def _window(op: OutOp) -> tuple[Slot, list[int], list[int], list[int]]:
    """The input (channels-last, two spatial axes), window, strides and pads."""
    rank = op.rank()
    if rank not in (3, 4):
        raise op.refuse(f"it has {rank - 2} spatial axes")
    kernel = [int(k) for k in op.view.attr("kernel_shape")]
    strides = [int(s) for s in op.view.attr("strides") or [1] * len(kernel)]
    if any(int(d) != 1 for d in op.view.attr("dilations") or [1]):
        raise op.refuse("its window is dilated")
    x = op.operand(0, last=True)
    pads = pads_of(op, x.dims[1:-1], kernel, strides, [1] * len(kernel))
    if op.view.attr("ceil_mode", 0):
        pads = _ceiled(op, x.dims[1:-1], kernel, strides, pads)
    if rank == 3:
        kernel, strides, pads = [1, *kernel], [1, *strides], [0, pads[0], 0, pads[1]]
        dims = (x.dims[0], 1, *x.dims[1:])
        x = op.make("EXPAND_DIMS", [x, op.ints(1, "axis")], dims, dtype=x.dtype, params=x.params)
    return x, kernel, strides, pads


def _ceiled(op: OutOp, sizes: Any, kernel: list[int], strides: list[int], pads: list[int]) -> list[int]:
    """Pads with which rounding down gives what rounding up gives without."""
    count, found = len(kernel), list(pads)
    for i, (size, k, s) in enumerate(zip(sizes, kernel, strides, strict=True)):
        if size is None:
            raise op.refuse("it rounds up a size that is not known")
        reach = size + pads[i] + pads[i + count] - k
        if reach % s:
            steps = -(-reach // s)
            if steps * s >= size + pads[i]:
                steps -= 1  # a window may not begin behind the end
            found[i + count] = max(pads[i + count], steps * s + k - size - pads[i])
            if found[i + count] > pads[i + count] and op.view.op == "AveragePool":
                raise op.refuse("its last window is cut off")
    return found


def _finish(op: OutOp, kind: str, x: Slot, options: dict[str, Any], same_codes: bool) -> None:
    like = x if same_codes and op.integer else None
    if op.rank() == 4:
        op.result(kind, [x], options, last=True, like=like)
        return
    final = op.fresh(0, last=True, like=like)
    wide = op.w.emitter.tensor(
        f"{op.label}_wide", (final.dims[0], 1, *final.dims[1:]), final.dtype, final.params
    )
    op.w.emitter.operator(kind, [x], [wide], options)
    op.w.emitter.operator("SQUEEZE", [wide], [final], {"squeeze_dims": [1]})
    op.give(final, last=True)


def _options(op: OutOp, kernel: list[int], strides: list[int], padding: int) -> dict[str, Any]:
    return {
        "padding": padding, "stride_h": strides[0], "stride_w": strides[1], "filter_height": kernel[0],
        "filter_width": kernel[1], "fused_activation_function": op.activation(),
    }  # fmt: skip


def max_pool(op: OutOp) -> None:
    if op.view.wants(1):
        raise op.refuse("its second output, the indices, is used")
    x, kernel, strides, pads = _window(op)
    padding = VALID
    if any(pads):
        if is_same(x.dims[1:-1], kernel, strides, [1, 1], pads):
            padding = SAME
        else:
            least = np.finfo(np.float32).min if x.dtype.kind == "f" else np.iinfo(x.dtype).min
            x = padded(op, x, pads, fill=least)
    _finish(op, "MAX_POOL_2D", x, _options(op, kernel, strides, padding), same_codes=True)


def average_pool(op: OutOp) -> None:
    """TFLite's kernel leaves padding out of the mean, and keeps the scale."""
    x, kernel, strides, pads = _window(op)
    padding = VALID
    if any(pads):
        if op.view.attr("count_include_pad", 0):
            x = padded(op, x, pads)
        elif is_same(x.dims[1:-1], kernel, strides, [1, 1], pads):
            padding = SAME
        else:
            raise op.refuse("its padding does not count, and is not that of TensorFlow")
    wanted = op.wanted() if op.integer else None
    if wanted is not None and padding == VALID and _by_convolution(op, x, kernel, strides, wanted[0]):
        return
    _finish(op, "AVERAGE_POOL_2D", x, _options(op, kernel, strides, padding), same_codes=True)


def _by_convolution(op: OutOp, x: Slot, kernel: list[int], strides: list[int], wanted: Params) -> bool:
    """Where the scale changes, a depthwise convolution with equal weights rounds once; the pooling kernel
    would round to
    the scale of its input first. False if that does not apply."""
    channels, count = x.dims[-1], math.prod(kernel)
    if x.dtype != np.int8 or x.params is None or wanted.same(x.params) or channels is None or op.rank() != 4:
        return False
    weights = Params(np.asarray(np.float32(1 / count)), np.asarray(0))
    ones = op.const(np.ones((1, *kernel, channels), np.int8), f"{op.label}_ones", weights)
    scale = np.asarray(np.float32(x.params.scale) * np.float32(1 / count))
    zero = op.const(np.zeros(channels, np.int32), f"{op.label}_zero", Params(scale, np.asarray(0)))
    options = {
        "padding": VALID, "stride_h": strides[0], "stride_w": strides[1], "depth_multiplier": 1,
        "fused_activation_function": op.activation(), "dilation_h_factor": 1, "dilation_w_factor": 1,
    }  # fmt: skip
    op.result("DEPTHWISE_CONV_2D", [x, ones, zero], options, last=True)
    return True


def global_average_pool(op: OutOp) -> None:
    """AVERAGE_POOL_2D where codes keep their scale, else MEAN, which has an output scale of its own."""
    x = op.operand(0, last=True)
    sizes = x.dims[1:-1]
    wanted = op.wanted() if op.integer else None
    if wanted is not None and len(sizes) == 2 and None not in sizes and wanted[0].same(x.params):
        kernel = [int(n or 1) for n in sizes]
        op.result("AVERAGE_POOL_2D", [x], _options(op, kernel, kernel, VALID), last=True, like=x)
        return
    axes = op.ints(list(range(1, op.rank() - 1)), "axes")
    op.result("MEAN", [x, axes], {"keep_dims": True}, last=True)


def global_max_pool(op: OutOp) -> None:
    x = op.operand(0, last=True)
    like = x if op.integer else None
    axes = op.ints(list(range(1, op.rank() - 1)), "axes")
    op.result("REDUCE_MAX", [x, axes], {"keep_dims": True}, last=True, like=like)


LOWERINGS = {
    "MaxPool": Lowering(max_pool, "move", (0,), fuses=True),
    "AveragePool": Lowering(average_pool, "arithmetic", (0,), fuses=True),
    "GlobalAveragePool": Lowering(global_average_pool, "arithmetic", (0,)),
    "GlobalMaxPool": Lowering(global_max_pool, "move", (0,)),
}
