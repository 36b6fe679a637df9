"""Padding of sliding windows: ONNX's four numbers as SAME, VALID, or a PAD of its own."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from attar_tensorflow.tflite.emit import Dims, Slot
from attar_tensorflow.tflite.outop import OutOp

SAME, VALID = 0, 1


def pads_of(
    op: OutOp, sizes: Dims, kernel: Sequence[int], strides: Sequence[int], dilations: Sequence[int]
) -> list[int]:
    """How much is padded before and after each spatial axis, whatever `auto_pad` says."""
    auto = op.view.attr("auto_pad", "NOTSET")
    rank = len(kernel)
    if auto == "VALID":
        return [0] * (2 * rank)
    if auto == "NOTSET":
        given = op.view.attr("pads") or [0] * (2 * rank)
        return [int(p) for p in given]
    begins, ends = [], []
    for size, k, s, d in zip(sizes, kernel, strides, dilations, strict=True):
        if size is None and s != 1:
            raise op.refuse("it pads by a size that is not known")
        reach = (k - 1) * d + 1
        total = reach - 1 if size is None else max((-(-size // s) - 1) * s + reach - size, 0)
        small = total // 2
        begins.append(small if auto == "SAME_UPPER" else total - small)
        ends.append(total - small if auto == "SAME_UPPER" else small)
    return begins + ends


def is_same(
    sizes: Dims, kernel: Sequence[int], strides: Sequence[int], dilations: Sequence[int], pads: Sequence[int]
) -> bool:
    """Whether TFLite's SAME pads exactly so."""
    for i, (size, k, s, d) in enumerate(zip(sizes, kernel, strides, dilations, strict=True)):
        reach = (k - 1) * d + 1
        if size is None and s != 1:
            return False
        total = reach - 1 if size is None else max((-(-size // s) - 1) * s + reach - size, 0)
        if (pads[i], pads[i + len(kernel)]) != (total // 2, total - total // 2):
            return False
    return True


def padded(op: OutOp, x: Slot, pads: Sequence[int], fill: float | None = None) -> Slot:
    """`x` (channels-last) with a border of zeros, or of `fill`; codes are padded with what stands for
    zero."""
    count = len(pads) // 2
    if min(pads) < 0:
        raise op.refuse("it pads by a negative number")
    amounts = [[0, 0], *([int(pads[i]), int(pads[i + count])] for i in range(count)), [0, 0]]
    dims = tuple(None if d is None else d + sum(p) for d, p in zip(x.dims, amounts, strict=True))
    inputs = [x, op.ints(amounts, "pads")]
    if fill is not None:
        inputs.append(op.const(np.asarray([fill], x.dtype), "fill", x.params))
    kind = "PAD" if fill is None else "PADV2"
    return op.make(kind, inputs, dims, dtype=x.dtype, params=x.params, base=f"{op.label}_padded")
