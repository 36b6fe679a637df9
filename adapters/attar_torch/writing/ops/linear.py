"""Matrix products."""

from __future__ import annotations

import operator
from typing import Any

import numpy as np
import onnx_ir as ir
import torch
from torch.nn import functional

from attar.conversion import NodeView
from attar.graph import const_array
from attar_torch.writing.context import Context
from attar_torch.writing.dtypes import FLOATING, torch_dtype
from attar_torch.writing.table import Table

TABLE = Table()


def transposed(array: Any) -> Any:
    """A matrix with its axes exchanged."""
    return np.ascontiguousarray(array.T)


def row(array: Any) -> Any:
    """A vector."""
    return array.reshape(-1)


def _linear(ctx: Context, view: NodeView, x: Any, weight: Any, shape: tuple[int, int], bias: Any) -> Any:  # noqa: PLR0917
    value = weight[0] if isinstance(weight, tuple) else weight
    kind = torch_dtype(value.dtype)
    module = torch.nn.Linear(shape[1], shape[0], bias=bias is not None, device="meta", dtype=kind)
    weights = {"weight": weight} | ({} if bias is None else {"bias": bias})
    return ctx.layer(view, module, x, weights=weights)


@TABLE.op("MatMul")
def matmul(ctx: Context, view: NodeView) -> Any:
    """A constant matrix on the right is an nn.Linear; an Add of a constant vector behind it is its bias."""
    weight = view.const(1)
    if (
        weight is None
        or weight.ndim != 2
        or view.outputs[0].dtype not in FLOATING
        or view.const(0) is not None
    ):
        return ctx.call(torch.matmul, ctx.parameter(view, 0), ctx.parameter(view, 1))
    shape = (weight.shape[1], weight.shape[0])
    add, bias = _bias_behind(view, shape[0])
    made = _linear(ctx, view, ctx.tensor(view, 0), (view.input(1), transposed), shape, bias)
    if add is not None:
        ctx.done.add(add)
        ctx.values[add.outputs[0]] = made
    return made


def _bias_behind(view: NodeView, count: int) -> tuple[ir.Node | None, Any]:
    """The Add that is the only reader of the product, and the vector that it adds."""
    uses = list(view.outputs[0].uses())
    if len(uses) != 1 or view.outputs[0].is_graph_output():
        return None, None
    add = uses[0].node
    if add.op_type != "Add" or add.domain != "" or add.graph is not view.node.graph:
        return None, None
    value = add.inputs[1 - uses[0].idx]
    array = const_array(value)
    if array is None or array.shape != (count,):
        return None, None
    return add, value


@TABLE.op("Gemm")
def gemm(ctx: Context, view: NodeView) -> Any:
    alpha, beta = view.attr("alpha", 1.0), view.attr("beta", 1.0)
    x = ctx.tensor(view, 0)
    if view.attr("transA", 0):
        x = ctx.method("t", x)
    weight = view.const(1)
    bias = view.const(2) if view.has(2) else None
    if weight is not None and alpha == 1 and view.outputs[0].dtype in FLOATING:
        kept = bool(view.attr("transB", 0))
        shape = weight.shape if kept else weight.shape[::-1]
        fits = bias is not None and beta == 1 and bias.size == shape[0] and bias.shape[-1] == shape[0]
        if not view.has(2) or fits:
            source = view.input(1) if kept else (view.input(1), transposed)
            vector = None if bias is None else view.input(2) if bias.ndim == 1 else (view.input(2), row)
            return _linear(ctx, view, x, source, (shape[0], shape[1]), vector)
    b = ctx.parameter(view, 1)
    if view.attr("transB", 0) and alpha == beta == 1 and view.rank(2) in (None, 1):
        shape, count = view.shape(2), view.out_shape(0)
        if not view.has(2) or (shape is not None and count is not None and shape[0] == count[1]):
            return ctx.call(functional.linear, x, b, ctx.parameter(view, 2) if view.has(2) else None)
    if view.attr("transB", 0):
        b = ctx.method("t", b)
    made = ctx.call(torch.matmul, x, b)
    if alpha != 1:
        made = ctx.call(operator.mul, made, _factor(view, alpha))
    if not view.has(2):
        return made
    c = ctx.parameter(view, 2)
    return ctx.call(operator.add, made, c if beta == 1 else ctx.call(operator.mul, c, _factor(view, beta)))


def _factor(view: NodeView, number: float) -> float | int:
    if view.outputs[0].dtype in FLOATING:
        return number
    if number != int(number):
        raise view.refuse("integers times a fraction")
    return int(number)
