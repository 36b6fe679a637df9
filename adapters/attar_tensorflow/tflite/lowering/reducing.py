"""Reductions along axes."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from attar_tensorflow.tflite.emit import Slot
from attar_tensorflow.tflite.lowering.shaping import place
from attar_tensorflow.tflite.outop import Lowering, OutOp


def _operands(op: OutOp) -> tuple[Slot, Slot, bool, bool]:
    """Input, axes, whether axes are kept, and whether the result is channels-last."""
    rank, last = op.rank(), op.is_last(0)
    if 0 in op.dims(0):
        raise op.refuse("it reduces a tensor without elements")
    axes = op.view.option(1, "axes")
    keep = bool(op.view.attr("keepdims", 1))
    if axes is None or not np.asarray(axes).size:
        if op.view.attr("noop_with_empty_axes", 0):
            raise op.refuse("it reduces nothing")
        axes = range(rank)
    chosen = sorted({int(a) % rank for a in np.asarray(axes).reshape(-1)})
    left = [a for a in range(rank) if a not in chosen]
    gives_last = last and (keep or (len(left) > 2 and left[:2] == [0, 1]))
    # What is left has one order only if the channels go, or no spatial axis stays.
    if last and not gives_last and 1 in left and any(a > 1 for a in left):
        last = False
    x = op.operand(0, last=last)
    return x, op.ints([place(a, rank, last) for a in chosen], "axes"), keep, gives_last


def _reduce(kind: str, move: bool = False) -> Callable[[OutOp], None]:
    def write(op: OutOp) -> None:
        x, axes, keep, last = _operands(op)
        if kind == "MEAN" and x.dtype.kind in "iu" and not op.integer:
            raise op.refuse("it is the mean of whole numbers")
        op.result(kind, [x, axes], {"keep_dims": keep}, last=last, like=x if move and op.integer else None)

    return write


def _of_squares(end: str | None) -> Callable[[OutOp], None]:
    def write(op: OutOp) -> None:
        x, axes, keep, last = _operands(op)
        square = op.make("SQUARE", [x], x.dims)
        if end is None:
            op.result("SUM", [square, axes], {"keep_dims": keep}, last=last)
            return
        final = op.fresh(0, last=last)
        total = op.make("SUM", [square, axes], final.dims, {"keep_dims": keep})
        op.w.emitter.operator(end, [total], [final])
        op.give(final, last=last)

    return write


def l1(op: OutOp) -> None:
    x, axes, keep, last = _operands(op)
    op.result("SUM", [op.make("ABS", [x], x.dims), axes], {"keep_dims": keep}, last=last)


LOWERINGS = {
    "ReduceMean": Lowering(_reduce("MEAN"), "arithmetic", (0,)),
    "ReduceSum": Lowering(_reduce("SUM")),
    "ReduceMax": Lowering(_reduce("REDUCE_MAX", move=True), "move", (0,)),
    "ReduceMin": Lowering(_reduce("REDUCE_MIN", move=True), "move", (0,)),
    "ReduceProd": Lowering(_reduce("REDUCE_PROD")),
    "ReduceL1": Lowering(l1),
    "ReduceL2": Lowering(_of_squares("SQRT")),
    "ReduceSumSquare": Lowering(_of_squares(None)),
}
