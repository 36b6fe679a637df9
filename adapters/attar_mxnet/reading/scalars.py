"""Operators with a number as their other input, clipping and casting."""

from __future__ import annotations

import numpy as np
import onnx_ir as ir

from attar_mxnet.reading.builder import Builder
from attar_mxnet.reading.elementwise import ARITHMETIC, COMPARISONS, Binary, truth
from attar_mxnet.reading.operation import Operation
from attar_mxnet.reading.table import Lift, Table

table = Table()


def _arithmetic(function: Binary, turned: bool, divides: bool) -> Lift:
    def lift(ctx: Builder, op: Operation) -> ir.Value:
        x, number = op.input(0), op.number("scalar", 1.0)
        whole = op.flag("is_int", True) and number == int(number)
        if not ctx.is_float(x) and not whole:
            x = ctx.cast(x, np.float64)  # MXNet's rules: an integer and a float give a double,
        elif not ctx.is_float(x) and divides and op.op.startswith("_np"):
            x = ctx.cast(x, np.float32)  # and numpy's division of integers a float
        other = ctx.scalar(number, x)
        return function(ctx, other, x) if turned else function(ctx, x, other)

    return lift


def _comparison(function: Binary) -> Lift:
    def lift(ctx: Builder, op: Operation) -> ir.Value:
        x, number = op.input(0), op.number("scalar", 1.0)
        dtype = ctx.dtype(x)
        if not ctx.is_float(x) and number != int(number):
            x = ctx.cast(x, np.float64)
        answer = function(ctx, x, ctx.scalar(number, x))
        return answer if op.op.startswith("_np") else ctx.cast(answer, dtype)

    return lift


_OLD = {"add": "Plus", "sub": "Minus", "mul": "Mul", "div": "Div", "mod": "Mod", "power": "Power"}
_WORDS = {"add": "plus", "sub": "minus"}
_NUMPY = {
    "sub": "subtract",
    "mul": "multiply",
    "div": "true_divide",
    "lesser": "less",
    "lesser_equal": "less_equal",
}
_CAMEL = {
    "maximum": "Maximum",
    "minimum": "Minimum",
    "hypot": "Hypot",
    "equal": "Equal",
    "not_equal": "NotEqual",
    "greater": "Greater",
    "greater_equal": "GreaterEqual",
    "lesser": "Lesser",
    "lesser_equal": "LesserEqual",
    "logical_and": "LogicalAnd",
    "logical_or": "LogicalOr",
    "logical_xor": "LogicalXor",
}
for _name, _function in ARITHMETIC.items():
    _old = _OLD.get(_name) or _CAMEL[_name]
    _lift = _arithmetic(_function, False, _name == "div")
    table(f"_{_WORDS.get(_name, _name)}_scalar", f"_{_old}Scalar", f"_npi_{_NUMPY.get(_name, _name)}_scalar")(
        _lift
    )
    if _name in ("sub", "div", "mod", "power"):
        _lift = _arithmetic(_function, True, _name == "div")
        _word = _WORDS.get(_name, _name)
        table(f"_r{_word}_scalar", f"_R{_old}Scalar", f"_npi_r{_NUMPY.get(_name, _name)}_scalar")(_lift)
for _name, _function in COMPARISONS.items():
    _lift = _comparison(_function)
    table(f"_{_name}_scalar", f"_{_CAMEL[_name]}Scalar", f"_npi_{_NUMPY.get(_name, _name)}_scalar")(_lift)
table("_scatter_plus_scalar")(table["_plus_scalar"])
table("_scatter_minus_scalar")(table["_minus_scalar"])


@table("clip", "_npi_clip", "_sparse_clip")
def clip(ctx: Builder, op: Operation) -> ir.Value:
    x = op.input(0)
    low, high = op.number("a_min", -np.inf), op.number("a_max", np.inf)
    if not ctx.is_float(x):
        info = np.iinfo(ctx.dtype(x))
        low, high = max(low, float(info.min)), min(high, float(info.max))
        if low != int(low) or high != int(high):
            raise op.refuse("bounds that are not whole on integers")
        if not np.issubdtype(ctx.dtype(x), np.integer):
            raise op.refuse(f"numbers of type {ctx.dtype(x)}")
    bounds = [
        None if np.isinf(b) else ctx.const(np.array(b).astype(ctx.dtype(x)), name="bound")
        for b in (low, high)
    ]
    return ctx.emit("Clip", x, *bounds)


@table("Cast", "cast", "_npi_cast", "_npx_cast", "amp_cast")
def cast(ctx: Builder, op: Operation) -> ir.Value:
    x, dtype = op.input(0), op.dtype("dtype")
    return truth(ctx, x) if dtype == np.bool_ else ctx.cast(x, dtype)


@table("amp_multicast")
def amp_multicast(ctx: Builder, op: Operation) -> list[ir.Value]:
    """All inputs in the widest (or narrowest) of their types."""
    widths = [ctx.dtype(v) for v in op.inputs]
    choose = min if op.flag("cast_narrow") else max
    dtype = choose(widths, key=lambda t: t.itemsize)
    return [ctx.cast(v, dtype) for v in op.inputs]
