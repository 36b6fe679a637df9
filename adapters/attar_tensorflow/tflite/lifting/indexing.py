"""Choosing by index, and making shapes, ranges and constants."""

from __future__ import annotations

import numpy as np
import onnx_ir as ir

from attar_tensorflow.tflite.lifting.moving import axis_of
from attar_tensorflow.tflite.liftop import Op


def _as_wanted(op: Op, value: ir.Value, k: int = 0) -> ir.Value:
    """ONNX's int64 result in the type that the file gives it."""
    dtype = op.out(k).dtype
    return value if dtype == np.int64 else op.emit("Cast", [value], to=int(ir.DataType.from_numpy(dtype)))


def gather(op: Op) -> None:
    batch, rank = op.option("batch_dims"), op.rank(0)
    axis = axis_of(op, op.option("axis"), rank, False)
    if batch < 0:
        batch += op.rank(1)
    if batch:
        if (
            batch == axis and batch == op.rank(1) - 1
        ):  # one row of indices each: GatherElements after broadcasting
            indices = op.long(1)
            if axis == rank - 1:
                op.give(op.emit("GatherElements", [op.real(0), indices], axis=axis))
                return
        if batch == axis:
            deeper = op.emit("Unsqueeze", [op.long(1), np.asarray([op.rank(1)])])
            op.give(op.emit("GatherND", [op.real(0), deeper], batch_dims=batch))
            return
        raise op.refuse("its batch axes do not lie just before its axis")
    op.give(op.emit("Gather", [op.real(0), op.raw(1)], axis=axis))


def gather_nd(op: Op) -> None:
    op.give(op.emit("GatherND", [op.real(0), op.long(1)]))


def scatter_nd(op: Op) -> None:
    """Updates added up in a tensor of zeros."""
    if op.gives_codes():
        raise op.refuse("it is quantized")
    zero = np.zeros(1, op.tensor(1).dtype)
    empty = op.emit("ConstantOfShape", [op.long(2)], value=ir.Tensor(zero))
    op.give(op.emit("ScatterND", [empty, op.long(0), op.real(1)], reduction="add"))


def one_hot(op: Op) -> None:
    """Indices that are out of range give a row of "off"; ONNX counts negative ones from the end, so they are
    kept out."""
    (depth,) = op.whole(1, "its depth")
    wanted = op.out().quantization
    for q in (op.quantized(2), op.quantized(3)):
        if op.gives_codes() and (
            q is None or wanted is None or (q.scale, q.zero_point) != (wanted.scale, wanted.zero_point)
        ):
            raise op.refuse("it moves codes from one scale to another unchanged")
    indices = op.long(0)
    outside = op.emit("Less", [indices, np.int64(0)])
    safe = op.emit("Where", [outside, np.int64(depth), indices])
    hot = op.emit("OneHot", [safe, np.int64(depth), np.asarray([0, 1], np.int64)], axis=op.option("axis", -1))
    op.give(op.emit("Where", [op.emit("Cast", [hot], to=int(ir.DataType.BOOL)), op.real(2), op.real(3)]))


def top_k(op: Op) -> None:
    k = op.emit("Reshape", [op.long(1), np.asarray([1])])
    values, indices = op.emits("TopK", [op.real(0), k], 2, axis=-1)
    op.give(values)
    op.give(_as_wanted(op, indices, 1), 1)


def shape(op: Op) -> None:
    op.give(_as_wanted(op, op.emit("Shape", [op.raw(0)])))


def rank_(op: Op) -> None:
    op.fold(np.asarray(op.rank(0), op.out().dtype))


def fill(op: Op) -> None:
    op.give(op.emit("Expand", [op.real(1), op.long(0)]))


def zeros_like(op: Op) -> None:
    zero = np.zeros((), op.tensor(0).dtype if op.quantized(0) is None else np.float32)
    op.give(op.emit("Expand", [zero, op.emit("Shape", [op.raw(0)])]))


def range_(op: Op) -> None:
    inputs = [op.real(i) if op.rank(i) == 0 else op.emit("Squeeze", [op.real(i)]) for i in range(3)]
    op.give(op.emit("Range", inputs))


def where(op: Op) -> None:
    """Indices of the true elements, one row each."""
    if op.count != 1:
        raise op.refuse("it chooses between tensors")
    op.give(_as_wanted(op, op.emit("Transpose", [op.emit("NonZero", [op.real(0)])], perm=[1, 0])))


def _best(kind: str):  # type: ignore[no-untyped-def]
    def lift(op: Op) -> None:
        (axis,) = op.whole(1, "its axis")
        rank = op.rank(0)
        axis = axis_of(op, axis, rank, False)
        last = (
            axis == rank - 1 and rank > 2 and op.is_first(0)
        )  # the others keep their order without the channels
        value = op.emit(kind, [op.real(0, last)], axis=1 if last else axis, keepdims=0)
        op.give(_as_wanted(op, value))

    return lift


LIFTINGS = {
    "GATHER": gather,
    "GATHER_ND": gather_nd,
    "SCATTER_ND": scatter_nd,
    "ONE_HOT": one_hot,
    "TOPK_V2": top_k,
    "SHAPE": shape,
    "RANK": rank_,
    "FILL": fill,
    "ZEROS_LIKE": zeros_like,
    "RANGE": range_,
    "WHERE": where,
    "ARG_MAX": _best("ArgMax"),
    "ARG_MIN": _best("ArgMin"),
}
