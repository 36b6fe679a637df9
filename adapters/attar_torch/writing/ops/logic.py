"""Comparisons, logic, bits, choices and casts."""

from __future__ import annotations

import operator
from collections.abc import Callable
from typing import Any

import onnx_ir as ir
import torch

from attar.conversion import NodeView
from attar_torch.writing.context import Context
from attar_torch.writing.dtypes import FLOAT8, FLOATING, torch_dtype
from attar_torch.writing.functions.basic import saturated
from attar_torch.writing.table import ORDINARY, Table

TABLE = Table()

_BINARY = {
    "And": torch.logical_and, "Or": torch.logical_or, "Xor": torch.logical_xor, "Equal": operator.eq,
    "Greater": operator.gt, "GreaterOrEqual": operator.ge, "Less": operator.lt, "LessOrEqual": operator.le,
    "BitwiseAnd": torch.bitwise_and, "BitwiseOr": torch.bitwise_or, "BitwiseXor": torch.bitwise_xor,
}  # fmt: skip


def _binary(function: Callable[..., Any]) -> Callable[[Context, NodeView], Any]:
    def lower(ctx: Context, view: NodeView) -> Any:
        return ctx.call(function, ctx.operand(view, 0, 1), ctx.operand(view, 1, 0))

    return lower


for _name, _function in _BINARY.items():
    TABLE.op(_name)(_binary(_function))


def _strict(function: Callable[..., Any]) -> Callable[[Context, NodeView], Any]:
    def lower(ctx: Context, view: NodeView) -> Any:
        return ctx.call(function, ctx.tensor(view, 0), ctx.tensor(view, 1))

    return lower


for _name in ("And", "Or", "Xor", "BitwiseAnd", "BitwiseOr", "BitwiseXor"):
    TABLE.op(_name)(_strict(_BINARY[_name]))


@TABLE.op("Not")
def logical_not(ctx: Context, view: NodeView) -> Any:
    return ctx.call(torch.logical_not, ctx.tensor(view))


@TABLE.op("BitwiseNot")
def bitwise_not(ctx: Context, view: NodeView) -> Any:
    return ctx.call(torch.bitwise_not, ctx.tensor(view))


@TABLE.op("BitShift")
def bit_shift(ctx: Context, view: NodeView) -> Any:
    left = view.attr("direction") == "LEFT"
    function = torch.bitwise_left_shift if left else torch.bitwise_right_shift
    return ctx.call(function, ctx.tensor(view, 0), ctx.tensor(view, 1))


@TABLE.op("IsNaN")
def is_nan(ctx: Context, view: NodeView) -> Any:
    return ctx.call(torch.isnan, ctx.tensor(view))


@TABLE.op("IsInf")
def is_inf(ctx: Context, view: NodeView) -> Any:
    negative, positive = view.attr("detect_negative", 1), view.attr("detect_positive", 1)
    if negative and positive:
        return ctx.call(torch.isinf, ctx.tensor(view))
    if positive:
        return ctx.call(torch.isposinf, ctx.tensor(view))
    if negative:
        return ctx.call(torch.isneginf, ctx.tensor(view))
    return ctx.call(torch.zeros_like, ctx.tensor(view), dtype=torch.bool)


@TABLE.op("Where")
def where(ctx: Context, view: NodeView) -> Any:
    condition = ctx.tensor(view, 0)
    a, b = ctx.operand(view, 1, 2), ctx.operand(view, 2, 1)
    return ctx.call(torch.where, condition, a, b)


@TABLE.op("Cast", "CastLike", any_type=True)
def cast(ctx: Context, view: NodeView) -> Any:
    source, target = view.input(0).dtype, view.outputs[0].dtype  # type: ignore[union-attr]
    kind = torch_dtype(target)
    if target in FLOAT8 and source in ORDINARY:
        if source not in FLOATING:
            raise view.refuse("torch does not round integers to 8-bit floats as ONNX does")
        return ctx.call(saturated, ctx.tensor(view), kind, bool(view.attr("saturate", 1)))
    unsigned = (ir.DataType.UINT16, ir.DataType.UINT32, ir.DataType.UINT64)
    if source in FLOAT8 and target in FLOATING:
        return ctx.method("to", ctx.tensor(view), kind)
    known = ORDINARY | set(unsigned)
    if target not in known or (source not in known and source not in (ir.DataType.INT4, ir.DataType.UINT4)):
        raise view.refuse(f"from {source and source.name} to {target and target.name}".lower())
    if source == target:
        return ctx.tensor(view)
    return ctx.method("to", ctx.tensor(view), kind)


@TABLE.op("BitCast", any_type=True)
def bit_cast(ctx: Context, view: NodeView) -> Any:
    source, target = view.input(0).dtype, view.outputs[0].dtype  # type: ignore[union-attr]
    kind = torch_dtype(target)
    if kind is None or torch_dtype(source) is None or source.itemsize != target.itemsize:  # type: ignore[union-attr]
        raise view.refuse("its types are not of one size in torch")
    return ctx.method("view", ctx.tensor(view), kind)
