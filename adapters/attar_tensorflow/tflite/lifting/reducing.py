"""Reductions along axes."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import onnx_ir as ir

from attar_tensorflow.tflite.lifting.moving import axis_of
from attar_tensorflow.tflite.liftop import Op


def _plan(op: Op) -> tuple[list[int], bool, bool]:
    """Axes (of the form that is used), whether the input is taken channels-first, and whether the result
    is."""
    rank, keep = op.rank(0), bool(op.option("keep_dims"))
    axes = sorted({axis_of(op, a, rank, False) for a in op.whole(1, "its axes")})
    left = [a for a in range(rank) if a not in axes]
    first = op.is_first(0) and rank > 2
    gives_first = first and (keep or (len(left) > 2 and {0, rank - 1} <= set(left)))
    # Without batch or without channels the rest has one order only if the channels go or nothing else stays.
    if first and not gives_first and rank - 1 in left and left not in ([rank - 1], [0, rank - 1]):
        first = False
    return sorted(axis_of(op, a, rank, first) for a in axes), first, gives_first


def _reduce(kind: str) -> Callable[[Op], None]:
    def lift(op: Op) -> None:
        axes, first, gives_first = _plan(op)
        keep = int(bool(op.option("keep_dims")))
        value = op.emit(kind, [op.real(0, first), np.asarray(axes, np.int64)], keepdims=keep)
        op.give(value, first=gives_first)

    return lift


def mean(op: Op) -> None:
    """Over height and width it is a global pooling, which runtimes have an integer kernel for."""
    axes, first, gives_first = _plan(op)
    keep, rank = bool(op.option("keep_dims")), op.rank(0)
    if op.tensor(0).dtype.kind == "i" and op.quantized(0) is None:
        raise op.refuse("it is the mean of whole numbers")
    if first and rank == 4 and axes == [2, 3]:
        value = op.emit("GlobalAveragePool", [op.real(0, True)])
        if not keep:
            value = op.emit("Squeeze", [op.rounded(value), np.asarray([2, 3])])
    else:
        value = op.emit("ReduceMean", [op.real(0, first), np.asarray(axes, np.int64)], keepdims=int(keep))
    op.give(value, first=gives_first)


def _logical(kind: str) -> Callable[[Op], None]:
    def lift(op: Op) -> None:
        axes, first, gives_first = _plan(op)
        number = op.emit("Cast", [op.real(0, first)], to=int(ir.DataType.INT32))
        value = op.emit(
            kind, [number, np.asarray(axes, np.int64)], keepdims=int(bool(op.option("keep_dims")))
        )
        op.give(op.emit("Cast", [value], to=int(ir.DataType.BOOL)), first=gives_first)

    return lift


def cumsum(op: Op) -> None:
    (axis,) = op.whole(1, "its axis")
    flags = {"exclusive": int(op.option("exclusive")), "reverse": int(op.option("reverse"))}
    op.give(op.emit("CumSum", [op.real(0), np.int64(axis_of(op, axis, op.rank(0), False))], **flags))


LIFTINGS = {
    "MEAN": mean,
    "SUM": _reduce("ReduceSum"),
    "REDUCE_MAX": _reduce("ReduceMax"),
    "REDUCE_MIN": _reduce("ReduceMin"),
    "REDUCE_PROD": _reduce("ReduceProd"),
    "REDUCE_ANY": _logical("ReduceMax"),
    "REDUCE_ALL": _logical("ReduceMin"),
    "CUMSUM": cumsum,
}
