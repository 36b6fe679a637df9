"""Picking and putting elements by index."""

from __future__ import annotations

import operator
from collections.abc import Callable
from typing import Any

import numpy as np
import torch

from attar.conversion import NodeView
from attar_torch.writing.context import Context
from attar_torch.writing.dtypes import FLOATING
from attar_torch.writing.functions import indexing as functions
from attar_torch.writing.functions.basic import wrapped
from attar_torch.writing.table import Table

TABLE = Table()


def _from_start(ctx: Context, view: NodeView, index: int, size: Any) -> Any:
    """Input `index` as indices that count from the start."""
    array = view.const(index)
    if array is not None and (array.size == 0 or array.min() >= 0):
        made = ctx.tensor(view, index)
        return made if array.dtype == np.int64 else ctx.method("long", made)
    source = view.input(index).producer()  # type: ignore[union-attr]
    if source is not None and source.op_type in ("ArgMax", "ArgMin", "Range", "NonZero"):
        return ctx.method("long", ctx.tensor(view, index))
    return ctx.call(wrapped, ctx.tensor(view, index), size)


@TABLE.op("Gather")
def gather(ctx: Context, view: NodeView) -> Any:
    """A trainable table along axis 0 is an nn.Embedding."""
    axis, table, chosen = view.attr("axis", 0), view.const(0), view.const(1)
    kind = view.outputs[0].dtype
    if table is not None and kind in FLOATING and table.ndim == 2 and axis in (0, -2) and chosen is None:
        module = torch.nn.Embedding(*table.shape, device="meta")
        ids = _from_start(ctx, view, 1, table.shape[0])
        return ctx.layer(view, module, ids, weights={"weight": view.input(0)})
    x = ctx.parameter(view, 0)
    if axis < 0:
        axis += view.need_rank(0)
    before = (slice(None),) * axis
    if chosen is not None and chosen.ndim == 0:
        return ctx.call(operator.getitem, x, (*before, int(chosen)))
    dims = ctx.dims(view, 1)
    if dims is not None and dims.scalar:
        return ctx.call(operator.getitem, x, (*before, dims.items[0]))
    shape = view.shape(0)
    known = shape[axis] if shape is not None and isinstance(shape[axis], int) else None
    ids = _from_start(ctx, view, 1, known if known is not None else ctx.size(x, axis))
    if view.rank(1) == 1:
        return ctx.call(torch.index_select, x, axis, ids)
    return ctx.call(operator.getitem, x, (*before, ids))


@TABLE.op("GatherElements")
def gather_elements(ctx: Context, view: NodeView) -> Any:
    x, axis = ctx.tensor(view), view.attr("axis", 0)
    return ctx.call(torch.gather, x, axis, _from_start(ctx, view, 1, ctx.size(x, axis)))


@TABLE.op("GatherND")
def gather_nd(ctx: Context, view: NodeView) -> Any:
    return ctx.call(functions.gather_nd, ctx.tensor(view), ctx.tensor(view, 1), view.attr("batch_dims", 0))


@TABLE.op("ScatterElements", "Scatter")
def scatter_elements(ctx: Context, view: NodeView) -> Any:
    x, axis, how = ctx.tensor(view), view.attr("axis", 0), view.attr("reduction") or "none"
    ids = _from_start(ctx, view, 1, ctx.size(x, axis))
    updates = ctx.tensor(view, 2)
    if how == "none":
        return ctx.call(torch.scatter, x, axis, ids, updates)
    names = {"add": "sum", "mul": "prod", "max": "amax", "min": "amin"}
    return ctx.call(torch.scatter_reduce, x, axis, ids, updates, names[how])


@TABLE.op("ScatterND")
def scatter_nd(ctx: Context, view: NodeView) -> Any:
    how = view.attr("reduction") or "none"
    return ctx.call(functions.scatter_nd, *(ctx.tensor(view, k) for k in range(3)), how)


@TABLE.op("TensorScatter")
def tensor_scatter(ctx: Context, view: NodeView) -> Any:
    mode, axis = view.attr("mode", "linear"), view.attr("axis", -2)
    return ctx.call(
        functions.tensor_scatter, ctx.tensor(view), ctx.tensor(view, 1), ctx.optional(view, 2), mode, axis
    )


@TABLE.op("OneHot")
def one_hot(ctx: Context, view: NodeView) -> Any:
    depth = ctx.ints(view, 1)[0] if view.dtype(1).kind in "iu" else int(view.need_const(1, "depth").item())
    return ctx.call(functions.one_hot, ctx.tensor(view), depth, ctx.tensor(view, 2), view.attr("axis", -1))


@TABLE.op("NonZero")
def non_zero(ctx: Context, view: NodeView) -> Any:
    return ctx.method("t", ctx.call(torch.nonzero, ctx.tensor(view)))


@TABLE.op("Compress")
def compress(ctx: Context, view: NodeView) -> Any:
    axis = view.attr("axis") if "axis" in view.node.attributes else None
    return ctx.call(functions.compress, ctx.tensor(view), ctx.tensor(view, 1), axis)


@TABLE.op("Unique")
def unique(ctx: Context, view: NodeView) -> Any:
    axis = view.attr("axis") if "axis" in view.node.attributes else None
    made = ctx.call(functions.unique, ctx.tensor(view), axis, bool(view.attr("sorted", 1)))
    return tuple(ctx.call(operator.getitem, made, k) for k in range(len(view.outputs)))


def _extreme(function: Callable[..., Any]) -> Callable[[Context, NodeView], Any]:
    def lower(ctx: Context, view: NodeView) -> Any:
        axis, keep = view.attr("axis", 0), bool(view.attr("keepdims", 1))
        if view.attr("select_last_index", 0):
            return ctx.call(functions.last_extreme, ctx.tensor(view), axis, keep, function is torch.argmax)
        return ctx.call(function, ctx.tensor(view), axis, keep)

    return lower


TABLE.op("ArgMax")(_extreme(torch.argmax))
TABLE.op("ArgMin")(_extreme(torch.argmin))


@TABLE.op("TopK")
def top_k(ctx: Context, view: NodeView) -> Any:
    """By a stable sort: of equal elements the first comes first."""
    k = ctx.ints(view, 1)[0]
    largest = bool(view.attr("largest", 1))
    made = ctx.call(functions.top_k, ctx.tensor(view), k, view.attr("axis", -1), largest)
    return tuple(ctx.call(operator.getitem, made, i) for i in range(2))


@TABLE.op("ReverseSequence")
def reverse_sequence(ctx: Context, view: NodeView) -> Any:
    return ctx.call(
        functions.reverse_sequence, ctx.tensor(view), ctx.tensor(view, 1), view.attr("batch_axis", 1)
    )
