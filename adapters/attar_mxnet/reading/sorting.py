"""The largest or smallest elements, and orders."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import onnx_ir as ir

from attar_mxnet.reading.builder import Builder
from attar_mxnet.reading.dims import product
from attar_mxnet.reading.operation import Operation
from attar_mxnet.reading.table import Table

table = Table()


def _ordered(
    ctx: Builder, op: Operation, k: int, ascending: bool
) -> tuple[ir.Value, ir.Value, ir.Value, int]:
    """The input, the sorted values and their places, and the axis. `k` < 1 means all."""
    x = op.input(0)
    if not op.has("axis") and op.raw("axis").strip() == "None":
        x = ctx.reshape(x, [product(ctx.shape(x))])
    axis = op.whole("axis", -1) % ctx.rank(x)
    size = ctx.shape(x)[axis]
    count = ctx.size(size) if k < 1 else ctx.const([k], np.int64)
    if isinstance(size, int) and k > size:
        raise op.refuse(f"the largest {k} of {size}")
    known = list(ctx.shape(x))
    known[axis] = size if k < 1 else k
    values, places = ctx.emit_many(
        "TopK", x, count, outputs=2, shapes=[known, known], axis=axis, largest=int(not ascending), sorted=1
    )
    return x, values, places, axis


@table("topk", "_npx_topk")
def topk(ctx: Builder, op: Operation) -> ir.Value | Sequence[ir.Value]:
    kind = op.text("ret_typ", "indices")
    x, values, places, axis = _ordered(ctx, op, op.whole("k", 1), op.flag("is_ascend"))
    if kind == "value":
        return values
    if kind == "mask":
        ones = ctx.emit("Expand", ctx.scalar(1, x), ctx.emit("Shape", places), shape=ctx.shape(places))
        zeros = ctx.emit("Expand", ctx.scalar(0, x), ctx.emit("Shape", x), shape=ctx.shape(x))
        return ctx.emit("ScatterElements", zeros, places, ones, axis=axis)
    indices = ctx.cast(places, op.dtype("dtype", np.dtype(np.float32)))
    return (values, indices) if kind == "both" else indices


@table("sort", "_npi_sort")
def sort(ctx: Builder, op: Operation) -> ir.Value:
    return _ordered(ctx, op, 0, op.flag("is_ascend", True))[1]


@table("argsort", "_npi_argsort")
def argsort(ctx: Builder, op: Operation) -> ir.Value:
    default = np.dtype(np.int64 if op.op.startswith("_np") else np.float32)
    return ctx.cast(_ordered(ctx, op, 0, op.flag("is_ascend", True))[2], op.dtype("dtype", default))
