"""Choosing by index, and making ranges and constants."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from attar_tensorflow.tflite.lowering.shaping import place
from attar_tensorflow.tflite.outop import Lowering, OutOp


def gather(op: OutOp) -> None:
    """Indices count from the end where they are negative; TFLite's do not."""
    axis = int(op.view.attr("axis", 0)) % op.rank()
    known = op.view.const(1)
    x = op.operand(0)
    if known is not None:
        size = op.dims(0)[axis]
        if (known < 0).any():
            if size is None:
                raise op.refuse("it counts from the end of an axis whose size is not known")
            known = np.where(known < 0, known + size, known)
        indices = op.const(known.astype(np.int32), f"{op.label}_indices")
    else:
        indices = op.operand(1, real=True)
    op.result("GATHER", [x, indices], {"axis": axis}, like=x if op.integer else None)


def gather_nd(op: OutOp) -> None:
    if op.view.attr("batch_dims", 0):
        raise op.refuse("it has batch axes")
    op.result("GATHER_ND", [op.operand(0), op.operand(1, real=True)])


def _best(kind: str) -> Callable[[OutOp], None]:
    def write(op: OutOp) -> None:
        if op.view.attr("select_last_index", 0):
            raise op.refuse("it gives the last of several")
        rank, last = op.rank(), op.is_last(0)
        axis = int(op.view.attr("axis", 0)) % rank
        keep = bool(op.view.attr("keepdims", 1))
        last = last and axis == 1
        x = op.operand(0, last=last, real=not op.has_codes(0))
        at = op.ints(place(axis, rank, last), "axis")
        options = {"output_type": 4}
        if not keep:
            op.result(kind, [x, at], options)
            return
        dims = op.out_dims()
        flat = op.make(
            kind, [x, at], tuple(d for a, d in enumerate(dims) if a != axis), options, dtype=np.int64
        )
        op.result("EXPAND_DIMS", [flat, op.ints(axis, "axis")])

    return write


def top_k(op: OutOp) -> None:
    if not op.view.attr("largest", 1) or int(op.view.attr("axis", -1)) % op.rank() != op.rank() - 1:
        raise op.refuse("it gives the smallest, or not along the last axis")
    (k,) = op.index(1, "how many it gives")
    values = op.fresh(0)
    dims = op.out_dims(1)
    small = op.w.emitter.tensor(f"{op.label}_indices", dims, np.int32)
    op.w.emitter.operator("TOPK_V2", [op.operand(0), op.ints(k, "k")], [values, small])
    op.give(values)
    if op.view.wants(1):
        wide = op.fresh(1)
        op.w.emitter.operator("CAST", [small], [wide])
        op.give(wide, 1)


def one_hot(op: OutOp) -> None:
    depth, values = op.index(1, "its depth")[0], op.view.need_const(2, "its values")
    indices, axis, rank = op.operand(0, real=True), int(op.view.attr("axis", -1)), op.rank()
    dtype = op.view.out_dtype()
    if indices.dtype.kind == "f":
        raise op.refuse("its indices are real numbers")
    # ONNX counts negative indices from the end; adding the depth and taking the remainder does.
    shifted = op.make(
        "ADD", [indices, op.const(np.asarray(depth, indices.dtype))], indices.dims, dtype=indices.dtype
    )
    below = op.make("LESS", [indices, op.const(np.asarray(0, indices.dtype))], indices.dims, dtype=np.bool_)
    right = op.make("SELECT_V2", [below, shifted, indices], indices.dims, dtype=indices.dtype)
    small = right if right.dtype == np.int32 else op.make("CAST", [right], indices.dims, dtype=np.int32)
    off, on = (op.const(np.asarray(v, dtype)) for v in np.asarray(values).reshape(-1))
    axis = -1 if axis % (rank + 1) == rank else axis % (rank + 1)
    op.result("ONE_HOT", [small, op.ints(depth, "depth"), on, off], {"axis": axis})


def cumsum(op: OutOp) -> None:
    axis = op.index(1, "its axis")[0] % op.rank()
    options = {k: bool(op.view.attr(k, 0)) for k in ("exclusive", "reverse")}
    op.result("CUMSUM", [op.operand(0), op.ints(axis, "axis")], options)


def range_(op: OutOp) -> None:
    op.result("RANGE", [op.operand(i) for i in range(3)])


def constant_of_shape(op: OutOp) -> None:
    value = op.view.attr("value")
    fill = np.zeros((), np.float32) if value is None else np.asarray(value).reshape(())
    op.result("FILL", [op.operand(0, real=True), op.const(fill)])


LOWERINGS = {
    "Gather": Lowering(gather, "move", (0,)),
    "GatherND": Lowering(gather_nd),
    "ArgMax": Lowering(_best("ARG_MAX")),
    "ArgMin": Lowering(_best("ARG_MIN")),
    "TopK": Lowering(top_k),
    "OneHot": Lowering(one_hot),
    "CumSum": Lowering(cumsum),
    "Range": Lowering(range_),
    "ConstantOfShape": Lowering(constant_of_shape),
}
