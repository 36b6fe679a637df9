"""Reductions."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch

from attar.conversion import NodeView
from attar_torch.writing.context import Context
from attar_torch.writing.dtypes import FLOATING
from attar_torch.writing.functions import reduce as functions
from attar_torch.writing.table import Table

TABLE = Table()


def _reduction(
    function: Callable[..., Any], *, floating: bool = False, elementwise: Callable[..., Any] | None = None
) -> Callable[[Context, NodeView], Any]:
    """A lowering by `function(x, axes, keep)`.

    Args:
        floating: it is exact for floating-point types only.
        elementwise: what it does to every element even without axes.
    """

    def lower(ctx: Context, view: NodeView) -> Any:
        if floating and view.outputs[0].dtype not in FLOATING:
            raise view.refuse("torch has it for floating-point types only")
        axes = ctx.int_option(view, 1, "axes")
        rank = view.rank(0)
        x = ctx.tensor(view)
        if not axes:
            if view.attr("noop_with_empty_axes", 0):
                return x if elementwise is None else ctx.call(elementwise, x)
            if rank is None:
                raise view.refuse("the rank of its input is unknown")
            axes = list(range(rank))
        if not axes:
            return x if elementwise is None else ctx.call(elementwise, x)
        return ctx.call(function, x, tuple(axes), bool(view.attr("keepdims", 1)))

    return lower


def _identity_of(view: NodeView) -> bool:
    shape = view.shape(0)
    return shape is None or 0 in shape


TABLE.op("ReduceMean")(_reduction(torch.mean, floating=True))
TABLE.op("ReduceSum")(_reduction(functions.total))
TABLE.op("ReduceSumSquare")(_reduction(functions.sum_square, elementwise=torch.square))
TABLE.op("ReduceL1")(_reduction(functions.sum_abs, elementwise=torch.abs))
TABLE.op("ReduceL2")(_reduction(functions.norm, floating=True, elementwise=torch.abs))
TABLE.op("ReduceLogSum")(_reduction(functions.log_sum, floating=True, elementwise=torch.log))
TABLE.op("ReduceLogSumExp")(_reduction(torch.logsumexp, floating=True))
TABLE.op("ReduceProd")(_reduction(functions.product))


def _extreme(function: Callable[..., Any], careful: Callable[..., Any]) -> Callable[[Context, NodeView], Any]:
    def lower(ctx: Context, view: NodeView) -> Any:
        return _reduction(careful if _identity_of(view) else function)(ctx, view)

    return lower


TABLE.op("ReduceMax")(_extreme(torch.amax, functions.largest))
TABLE.op("ReduceMin")(_extreme(torch.amin, functions.smallest))
