"""Elementwise arithmetic."""

from __future__ import annotations

import operator
from collections.abc import Callable
from typing import Any

import torch

from attar.conversion import NodeView
from attar_torch.writing.context import Context
from attar_torch.writing.dtypes import FLOATING
from attar_torch.writing.table import ORDINARY, Table

TABLE = Table()

_UNARY = {
    "Abs": torch.abs, "Acos": torch.acos, "Acosh": torch.acosh, "Asin": torch.asin, "Asinh": torch.asinh,
    "Atan": torch.atan, "Atanh": torch.atanh, "Ceil": torch.ceil, "Cos": torch.cos, "Cosh": torch.cosh,
    "Erf": torch.erf, "Exp": torch.exp, "Floor": torch.floor, "Log": torch.log, "Neg": torch.neg,
    "Reciprocal": torch.reciprocal, "Round": torch.round, "Sin": torch.sin, "Sinh": torch.sinh,
    "Sqrt": torch.sqrt, "Tan": torch.tan, "Det": torch.linalg.det,
}  # fmt: skip


def _unary(function: Callable[..., Any]) -> Callable[[Context, NodeView], Any]:
    def lower(ctx: Context, view: NodeView) -> Any:
        return ctx.call(function, ctx.tensor(view))

    return lower


for _name, _function in _UNARY.items():
    TABLE.op(_name)(_unary(_function))


@TABLE.op("Sign")
def sign(ctx: Context, view: NodeView) -> Any:
    """torch.sign makes 0 of NaN, ONNX leaves it."""
    return ctx.call(torch.sign, ctx.tensor(view))


def weight_like(ctx: Context, view: NodeView, index: int, other: int) -> Any:
    """An operand of Add or Mul: a bias, a gain or a position table is trainable.

    Numbers, masks (infinite or hugely negative) and what is applied to the model's input itself (the mean of
    the data) are not.
    """
    array = view.const(index)
    if array is None or array.size == 1 or view.input(index).dtype not in FLOATING:  # type: ignore[union-attr]
        return ctx.operand(view, index, other)
    beside = view.input(other)
    raw = beside is not None and beside.is_graph_input()
    if raw or not (abs(array.astype("float32")) < 1e4).all() or array.min() == array.max() == 0:
        return ctx.tensor(view, index)
    return ctx.parameter(view, index)


@TABLE.op("Add")
def add(ctx: Context, view: NodeView) -> Any:
    return ctx.call(operator.add, weight_like(ctx, view, 0, 1), weight_like(ctx, view, 1, 0))


@TABLE.op("Mul")
def mul(ctx: Context, view: NodeView) -> Any:
    return ctx.call(operator.mul, weight_like(ctx, view, 0, 1), weight_like(ctx, view, 1, 0))


@TABLE.op("Sub")
def sub(ctx: Context, view: NodeView) -> Any:
    return ctx.call(operator.sub, ctx.operand(view, 0, 1), ctx.operand(view, 1, 0))


@TABLE.op("Div")
def div(ctx: Context, view: NodeView) -> Any:
    a, b = ctx.operand(view, 0, 1), ctx.operand(view, 1, 0)
    if view.outputs[0].dtype in FLOATING:
        return ctx.call(operator.truediv, a, b)
    if isinstance(a, int):
        a = ctx.tensor(view, 0)
    return ctx.call(torch.div, a, b, rounding_mode="trunc")


@TABLE.op("Mod")
def mod(ctx: Context, view: NodeView) -> Any:
    function = torch.fmod if view.attr("fmod", 0) else torch.remainder
    return ctx.call(function, ctx.tensor(view, 0), ctx.operand(view, 1, 0))


@TABLE.op("Pow", any_type=True)
def power(ctx: Context, view: NodeView) -> Any:
    """The result has the type of the base; integers go by way of double, as in ONNX Runtime."""
    base, exponent = view.outputs[0].dtype, view.input(1).dtype  # type: ignore[union-attr]
    kind = ctx.dtype(view.outputs[0])
    if base not in ORDINARY:
        raise view.refuse("torch does not raise numbers of this type to a power")
    if base in FLOATING and exponent in ORDINARY:
        if exponent not in FLOATING or exponent == base:
            made = ctx.call(operator.pow, ctx.tensor(view, 0), ctx.operand(view, 1, 0))
            return made
        made = ctx.call(torch.pow, ctx.tensor(view, 0), ctx.tensor(view, 1))
        return ctx.method("to", made, kind)
    wide = [ctx.method("to", ctx.tensor(view, k), torch.float64) for k in (0, 1)]
    return ctx.method("to", ctx.call(torch.pow, *wide), kind)


def _chain(function: Callable[..., Any]) -> Callable[[Context, NodeView], Any]:
    def lower(ctx: Context, view: NodeView) -> Any:
        result = ctx.tensor(view, 0)
        for index in range(1, len(view.inputs)):
            result = ctx.call(function, result, ctx.tensor(view, index))
        return result

    return lower


TABLE.op("Sum")(_chain(operator.add))
TABLE.op("Max")(_chain(torch.maximum))
TABLE.op("Min")(_chain(torch.minimum))


@TABLE.op("Mean")
def mean(ctx: Context, view: NodeView) -> Any:
    return ctx.call(operator.truediv, _chain(operator.add)(ctx, view), len(view.inputs))


@TABLE.op("Clip")
def clip(ctx: Context, view: NodeView) -> Any:
    if not view.has(1) and not view.has(2):
        return ctx.tensor(view)
    limits = [ctx.operand(view, k, 0) if view.has(k) else None for k in (1, 2)]
    if limits == [0.0, 6.0] and view.outputs[0].dtype in FLOATING:
        return ctx.layer(view, torch.nn.ReLU6(), ctx.tensor(view))
    if len({isinstance(limit, torch.fx.Node) for limit in limits if limit is not None}) > 1:
        limits = [ctx.tensor(view, k) if view.has(k) else None for k in (1, 2)]
    return ctx.call(torch.clamp, ctx.tensor(view), *limits)


@TABLE.op("CumSum")
def cumsum(ctx: Context, view: NodeView) -> Any:
    return _running(ctx, view, torch.cumsum, 0)


@TABLE.op("CumProd")
def cumprod(ctx: Context, view: NodeView) -> Any:
    return _running(ctx, view, torch.cumprod, 1)


def _running(ctx: Context, view: NodeView, function: Callable[..., Any], neutral: int) -> Any:
    from attar_torch.writing.functions.indexing import shifted

    axis = int(view.need_const(1, "the axis").reshape(-1)[0])
    x = ctx.tensor(view)
    if view.attr("reverse", 0):
        x = ctx.call(torch.flip, x, [axis])
    if view.attr("exclusive", 0):
        x = ctx.call(shifted, x, axis, neutral)
    x = ctx.call(function, x, axis, dtype=ctx.dtype(view.outputs[0]))
    return ctx.call(torch.flip, x, [axis]) if view.attr("reverse", 0) else x


@TABLE.op("Einsum")
def einsum(ctx: Context, view: NodeView) -> Any:
    equation = str(view.attr("equation")).replace(" ", "")
    return ctx.call(torch.einsum, equation, *[ctx.parameter(view, k) for k in range(len(view.inputs))])
