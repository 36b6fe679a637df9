"""Normalisations, written out: TFLite has no operators for them."""

from __future__ import annotations

import numpy as np

from attar_tensorflow.tflite.emit import Slot
from attar_tensorflow.tflite.outop import Lowering, OutOp


def _centred(
    op: OutOp, x: Slot, axes: Slot, epsilon: float, reduced: tuple[int | None, ...]
) -> tuple[Slot, Slot, Slot]:
    """(x - mean) / sqrt(variance + epsilon) over `axes`, the mean, and 1 / sqrt(variance + epsilon)."""
    mean = op.make("MEAN", [x, axes], reduced, {"keep_dims": True})
    off = op.make("SUB", [x, mean], x.dims)
    variance = op.make("MEAN", [op.make("SQUARE", [off], x.dims), axes], reduced, {"keep_dims": True})
    spread = op.make("RSQRT", [op.make("ADD", [variance, op.const(np.float32(epsilon))], reduced)], reduced)
    return op.make("MUL", [off, spread], x.dims), mean, spread


def layer_normalization(op: OutOp) -> None:
    rank = op.rank()
    axis = int(op.view.attr("axis", -1)) % rank
    x = op.operand(0)
    axes = list(range(axis, rank))
    reduced = tuple(1 if a in axes else d for a, d in enumerate(x.dims))
    epsilon = float(op.view.attr("epsilon", 1e-5))
    value, *statistics = _centred(op, x, op.ints(axes, "axes"), epsilon, reduced)
    for k, slot in enumerate(statistics, 1):
        if op.view.wants(k):
            op.give(slot, k)
    if op.view.has(2):
        scaled = op.make("MUL", [value, op.operand(1)], x.dims)
        op.result("ADD", [scaled, op.operand(2)])
    else:
        op.result("MUL", [value, op.operand(1)])


def _channels(op: OutOp, i: int, rank: int, last: bool) -> np.ndarray:
    array = np.asarray(op.view.need_const(i, "one of its parameters"), np.float64)
    return array if last or rank == 2 else array.reshape([-1] + [1] * (rank - 2))


def batch_normalization(op: OutOp) -> None:
    """A factor and an offset for each channel."""
    if op.view.attr("training_mode", 0) or len([o for o in op.view.outputs if o.uses()]) > 1:
        raise op.refuse("it is in training mode")
    rank = op.rank()
    last = rank > 2
    x = op.operand(0, last=last)
    scale, shift, mean, variance = (_channels(op, i, rank, last) for i in (1, 2, 3, 4))
    factor = scale / np.sqrt(variance + float(op.view.attr("epsilon", 1e-5)))
    offset = shift - mean * factor
    scaled = op.make("MUL", [x, op.const(factor.astype(np.float32), f"{op.label}_factor")], x.dims)
    op.result("ADD", [scaled, op.const(offset.astype(np.float32), f"{op.label}_offset")], {}, last=last)


def instance_normalization(op: OutOp) -> None:
    rank = op.rank()
    x = op.operand(0, last=True)
    axes = list(range(1, rank - 1))
    reduced = tuple(1 if a in axes else d for a, d in enumerate(x.dims))
    value, _, _ = _centred(op, x, op.ints(axes, "axes"), float(op.view.attr("epsilon", 1e-5)), reduced)
    scaled = op.make("MUL", [value, op.operand(1)], x.dims)
    op.result("ADD", [scaled, op.operand(2)], {}, last=True)


def lrn(op: OutOp) -> None:
    """Over an odd number of channels, which are last here; TFLite's alpha is that of one channel."""
    size = int(op.view.attr("size"))
    if op.rank() != 4 or size % 2 == 0:
        raise op.refuse("it reaches over an even number of channels, or has not 4 axes")
    options = {
        "radius": size // 2,
        "bias": float(op.view.attr("bias", 1.0)),
        "beta": float(op.view.attr("beta", 0.75)),
        "alpha": float(op.view.attr("alpha", 1e-4)) / size,
    }
    op.result("LOCAL_RESPONSE_NORMALIZATION", [op.operand(0, last=True)], options, last=True)


LOWERINGS = {
    "LayerNormalization": Lowering(layer_normalization),
    "BatchNormalization": Lowering(batch_normalization),
    "InstanceNormalization": Lowering(instance_normalization),
    "LRN": Lowering(lrn),
}
