"""Operators that work number by number: one input, two inputs, an input and a number."""

from __future__ import annotations

import math
from collections.abc import Callable

import numpy as np
import onnx_ir as ir

from attar_mxnet.reading.builder import Builder
from attar_mxnet.reading.operation import Operation
from attar_mxnet.reading.table import Lift, Table

table = Table()

Unary = Callable[[Builder, ir.Value], ir.Value]
Binary = Callable[[Builder, ir.Value, ir.Value], ir.Value]


def _one(name: str) -> Unary:
    return lambda ctx, x: ctx.emit(name, x)


def _two(name: str) -> Binary:
    return lambda ctx, a, b: ctx.emit(name, a, b)


def _times(factor: float) -> Unary:
    return lambda ctx, x: ctx.emit("Mul", x, ctx.scalar(factor, x))


def _log(base: float) -> Unary:
    return lambda ctx, x: ctx.emit("Mul", ctx.emit("Log", x), ctx.scalar(1 / math.log(base), x))


def _cbrt(ctx: Builder, x: ir.Value) -> ir.Value:
    root = ctx.emit("Pow", ctx.emit("Abs", x), ctx.scalar(1 / 3, x))
    return ctx.emit("Mul", ctx.emit("Sign", x), root)


def _fix(ctx: Builder, x: ir.Value) -> ir.Value:
    """Towards zero."""
    return ctx.emit("Mul", ctx.emit("Sign", x), ctx.emit("Floor", ctx.emit("Abs", x)))


def _round(ctx: Builder, x: ir.Value) -> ir.Value:
    """To the nearest, halves away from zero."""
    size = ctx.emit("Abs", x)
    low = ctx.emit("Floor", size)
    up = ctx.cast(ctx.emit("GreaterOrEqual", ctx.emit("Sub", size, low), ctx.scalar(0.5, x)), ctx.dtype(x))
    return ctx.emit("Mul", ctx.emit("Sign", x), ctx.emit("Add", low, up))


def _rint(ctx: Builder, x: ir.Value) -> ir.Value:
    """To the nearest, halves down."""
    return ctx.emit("Ceil", ctx.emit("Sub", x, ctx.scalar(0.5, x)))


# Operators on floats; on integers MXNet's results depend on the operator, so those are refused.
_FLOAT: dict[str, Unary] = {
    "exp": _one("Exp"),
    "log": _one("Log"),
    "log2": _log(2),
    "log10": _log(10),
    "log1p": lambda ctx, x: ctx.emit("Log", ctx.emit("Add", x, ctx.scalar(1, x))),
    "expm1": lambda ctx, x: ctx.emit("Sub", ctx.emit("Exp", x), ctx.scalar(1, x)),
    "sqrt": _one("Sqrt"),
    "rsqrt": lambda ctx, x: ctx.emit("Reciprocal", ctx.emit("Sqrt", x)),
    "cbrt": _cbrt,
    "rcbrt": lambda ctx, x: ctx.emit("Reciprocal", _cbrt(ctx, x)),
    "sin": _one("Sin"),
    "cos": _one("Cos"),
    "tan": _one("Tan"),
    "arcsin": _one("Asin"),
    "arccos": _one("Acos"),
    "arctan": _one("Atan"),
    "sinh": _one("Sinh"),
    "cosh": _one("Cosh"),
    "tanh": _one("Tanh"),
    "arcsinh": _one("Asinh"),
    "arccosh": _one("Acosh"),
    "arctanh": _one("Atanh"),
    "sigmoid": _one("Sigmoid"),
    "softsign": _one("Softsign"),
    "erf": _one("Erf"),
    "reciprocal": _one("Reciprocal"),
    "degrees": _times(180 / math.pi),
    "radians": _times(math.pi / 180),
}
# Operators on every type of number.
_ANY: dict[str, Unary] = {
    "abs": _one("Abs"),
    "absolute": _one("Abs"),
    "negative": _one("Neg"),
    "sign": _one("Sign"),
    "relu": _one("Relu"),
    "square": lambda ctx, x: ctx.emit("Mul", x, x),
}
# Operators that leave integers as they are.
_ROUNDING: dict[str, Unary] = {
    "ceil": _one("Ceil"),
    "floor": _one("Floor"),
    "fix": _fix,
    "trunc": _fix,
    "round": _round,
    "rint": _rint,
}


def _unary(function: Unary, integers: str) -> Lift:
    def lift(ctx: Builder, op: Operation) -> ir.Value:
        x = op.input(0)
        if not ctx.is_float(x):
            if integers == "same":
                return x
            if integers == "refused":
                raise op.refuse(f"numbers of type {ctx.dtype(x)}")
        return function(ctx, x)

    return lift


for _names, _kind in ((_FLOAT, "refused"), (_ANY, "kept"), (_ROUNDING, "same")):
    for _name, _function in _names.items():
        table(_name, f"_npi_{_name}", f"_npx_{_name}", f"_sparse_{_name}")(_unary(_function, _kind))


@table("_npi_around")
def around(ctx: Builder, op: Operation) -> ir.Value:
    x = op.input(0)
    if op.whole("decimals", 0) != 0:
        raise op.refuse("decimals")
    return ctx.emit("Round", x) if ctx.is_float(x) else x  # halves to even, unlike `round`


def truth(ctx: Builder, x: ir.Value) -> ir.Value:
    """x != 0, as bool."""
    return ctx.cast(x, np.bool_)


def _floor_mod(ctx: Builder, a: ir.Value, b: ir.Value) -> ir.Value:
    """The remainder with the sign of the divisor; 0 where that is 0."""
    if not ctx.is_float(a):
        return ctx.emit("Mod", a, b)
    zero = ctx.emit("Equal", b, ctx.scalar(0, b))
    safe = ctx.emit("Where", zero, ctx.scalar(1, b), b)
    rest = ctx.emit("Mod", a, safe, fmod=1)
    wrong = ctx.emit("Less", ctx.emit("Mul", rest, safe), ctx.scalar(0, rest))
    rest = ctx.emit("Where", wrong, ctx.emit("Add", rest, safe), rest)
    return ctx.emit("Where", zero, ctx.scalar(0, rest), rest)


def _hypot(ctx: Builder, a: ir.Value, b: ir.Value) -> ir.Value:
    return ctx.emit("Sqrt", ctx.emit("Add", ctx.emit("Mul", a, a), ctx.emit("Mul", b, b)))


def _swapped(function: Binary) -> Binary:
    return lambda ctx, a, b: function(ctx, b, a)


def _true_divide(ctx: Builder, a: ir.Value, b: ir.Value) -> ir.Value:
    return ctx.emit("Div", a, b)


ARITHMETIC: dict[str, Binary] = {
    "add": _two("Add"),
    "sub": _two("Sub"),
    "mul": _two("Mul"),
    "div": _two("Div"),
    "mod": _floor_mod,
    "power": _two("Pow"),
    "maximum": _two("Max"),
    "minimum": _two("Min"),
    "hypot": _hypot,
}
COMPARISONS: dict[str, Binary] = {
    "equal": _two("Equal"),
    "not_equal": lambda ctx, a, b: ctx.emit("Not", ctx.emit("Equal", a, b)),
    "greater": _two("Greater"),
    "greater_equal": _two("GreaterOrEqual"),
    "lesser": _two("Less"),
    "lesser_equal": _two("LessOrEqual"),
    "logical_and": lambda ctx, a, b: ctx.emit("And", truth(ctx, a), truth(ctx, b)),
    "logical_or": lambda ctx, a, b: ctx.emit("Or", truth(ctx, a), truth(ctx, b)),
    "logical_xor": lambda ctx, a, b: ctx.emit("Xor", truth(ctx, a), truth(ctx, b)),
}


def together(ctx: Builder, op: Operation, a: ir.Value, b: ir.Value) -> tuple[ir.Value, ir.Value]:
    """Both inputs in one type. Only MXNet's numpy operators take two types."""
    first, second = ctx.dtype(a), ctx.dtype(b)
    if first == second:
        return a, b
    if not op.op.startswith("_np"):
        raise op.refuse(f"inputs of types {first} and {second}")
    if ctx.is_float(a) != ctx.is_float(b):  # the float decides, whatever its width
        dtype = first if ctx.is_float(a) else second
    else:
        dtype = np.promote_types(first, second)
    return ctx.cast(a, dtype), ctx.cast(b, dtype)


def _arithmetic(function: Binary, floats: bool = False) -> Lift:
    def lift(ctx: Builder, op: Operation) -> ir.Value:
        a, b = together(ctx, op, op.input(0), op.input(1))
        if floats and not ctx.is_float(a):
            a, b = ctx.cast(a, np.float32), ctx.cast(b, np.float32)
        if ctx.dtype(a) == np.bool_:
            raise op.refuse("arithmetic on bools")
        return function(ctx, a, b)

    return lift


def _comparison(function: Binary) -> Lift:
    def lift(ctx: Builder, op: Operation) -> ir.Value:
        a, b = together(ctx, op, op.input(0), op.input(1))
        answer = function(ctx, a, b)
        return answer if op.op.startswith("_np") else ctx.cast(answer, ctx.dtype(a))

    return lift


_OLD = {"add": "_Plus", "sub": "_Minus", "mul": "_Mul", "div": "_Div", "mod": "_Mod", "power": "_Power"} | {
    "maximum": "_Maximum",
    "minimum": "_Minimum",
    "hypot": "_Hypot",
    "equal": "_Equal",
    "not_equal": "_Not_Equal",
    "greater": "_Greater",
    "greater_equal": "_Greater_Equal",
    "lesser": "_Lesser",
    "lesser_equal": "_Lesser_Equal",
    "logical_and": "_Logical_And",
    "logical_or": "_Logical_Or",
    "logical_xor": "_Logical_Xor",
}
_MORE = {
    "add": [
        "elemwise_add",
        "_add",
        "_plus",
        "_grad_add",
        "broadcast_plus",
        "_sparse_elemwise_add",
        "_npi_add",
    ],
    "sub": ["elemwise_sub", "_sub", "_minus", "broadcast_minus", "_sparse_elemwise_sub", "_npi_subtract"],
    "mul": ["elemwise_mul", "_mul", "_sparse_elemwise_mul", "_npi_multiply"],
    "div": ["elemwise_div", "_div", "_sparse_elemwise_div"],
    "lesser": ["_npi_less"],
    "lesser_equal": ["_npi_less_equal"],
}
for _name, _binary in ARITHMETIC.items():
    _spellings = {f"broadcast_{_name}", f"_{_name}", _OLD[_name], *_MORE.get(_name, [])}
    if _name in ("mod", "power", "maximum", "minimum", "hypot"):
        _spellings.add(f"_npi_{_name}")
    table(*sorted(_spellings))(_arithmetic(_binary))
for _name, _binary in COMPARISONS.items():
    _spellings = {f"broadcast_{_name}", f"_{_name}", _OLD[_name], *_MORE.get(_name, [])}
    if "lesser" not in _name:
        _spellings.add(f"_npi_{_name}")
    table(*sorted(_spellings))(_comparison(_binary))
table("_npi_true_divide")(_arithmetic(_true_divide, floats=True))


@table("logical_not", "_npi_logical_not")
def logical_not(ctx: Builder, op: Operation) -> ir.Value:
    x = op.input(0)
    answer = ctx.emit("Not", truth(ctx, x))
    return answer if op.op.startswith("_np") else ctx.cast(answer, ctx.dtype(x))


@table("add_n", "ElementWiseSum", "_sparse_add_n", "_sparse_ElementWiseSum")
def add_n(ctx: Builder, op: Operation) -> ir.Value:
    values = op.inputs
    return values[0] if len(values) == 1 else ctx.emit("Sum", *values)
