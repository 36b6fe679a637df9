"""Operators on single elements: arithmetic, mathematics, comparison and logic."""

from __future__ import annotations

import math
from collections.abc import Callable
from functools import partial

import numpy as np

from attar.conversion import NodeView
from attar_mxnet.symbol_json import Entry
from attar_mxnet.writing.context import Lowering, WriteContext

_EXACT_INT = 1 << 53
_EXACT_FLOAT = 1 << 24


def unary(op: str, ctx: WriteContext, view: NodeView) -> Entry:
    """An operator that MXNet has under another name; on floats only."""
    if view.dtype().kind != "f":
        raise view.refuse(f"MXNet computes it in floating point, the input is {view.dtype()}")
    return ctx.op(op, ctx.get(view))


def absolute(ctx: WriteContext, view: NodeView) -> Entry:
    x = ctx.get(view)
    if view.dtype() == np.int64:  # `abs` goes through a double
        return ctx.op("broadcast_maximum", x, ctx.op("negative", x))
    return x if view.dtype() == np.uint8 else ctx.op("abs", x)


def negate(ctx: WriteContext, view: NodeView) -> Entry:
    return ctx.op("negative", ctx.get(view))


def whole(op: str, ctx: WriteContext, view: NodeView) -> Entry:
    """Rounding. `_npi_around` rounds halves to even, as ONNX does; `round` and `rint` do not."""
    x = ctx.get(view)
    return x if view.dtype().kind != "f" else ctx.op(op, x)


def is_nan(ctx: WriteContext, view: NodeView) -> Entry:
    return ctx.op("_npi_isnan", ctx.get(view))


def is_inf(ctx: WriteContext, view: NodeView) -> Entry:
    up, down = view.attr("detect_positive", 1), view.attr("detect_negative", 1)
    if not up and not down:
        raise view.refuse("it detects nothing")
    op = "_npi_isinf" if up and down else "_npi_isposinf" if up else "_npi_isneginf"
    return ctx.op(op, ctx.get(view))


def operands(ctx: WriteContext, view: NodeView, count: int, *, learn: bool = False) -> list[Entry]:
    """Inputs at one rank, as the `broadcast_` operators want them."""
    ranks = [ctx.rank(view, i) for i in range(count)]
    take = ctx.learnt if learn else ctx.get
    return [ctx.lift(take(view, i), ranks[i], max(ranks)) for i in range(count)]


_SCALAR = {
    "broadcast_add": ("_plus_scalar", "_plus_scalar"),
    "broadcast_sub": ("_minus_scalar", "_rminus_scalar"),
    "broadcast_mul": ("_mul_scalar", "_mul_scalar"),
    "broadcast_div": ("_div_scalar", "_rdiv_scalar"),
    "broadcast_power": ("_power_scalar", "_rpower_scalar"),
    "broadcast_maximum": ("_maximum_scalar", "_maximum_scalar"),
    "broadcast_minimum": ("_minimum_scalar", "_minimum_scalar"),
}


def scalar_of(ctx: WriteContext, view: NodeView, index: int) -> float | None:
    """Input `index` if it is one finite number that a double holds and that does not raise the rank of the
    other."""
    array = ctx.array(view, index)
    if array is None or array.size != 1 or array.dtype.kind not in "fiu":
        return None
    if array.ndim > ctx.rank(view, 1 - index):
        return None
    value = array.reshape(()).item()
    return float(value) if math.isfinite(value) and abs(value) < _EXACT_INT else None


def arithmetic(op: str, learn: bool, ctx: WriteContext, view: NodeView) -> Entry:
    dtype = view.dtype()
    if dtype.kind == "b":
        raise view.refuse("it computes with bool")
    for index in (0, 1):
        value = scalar_of(ctx, view, index)
        if value is not None and ctx.array(view, 1 - index) is None:
            if op == "broadcast_div" and dtype.kind != "f" and (index == 0 or value == 0):
                break
            return ctx.scalar(_SCALAR[op][1 - index], ctx.get(view, 1 - index), value)
    return ctx.op(op, *operands(ctx, view, 2, learn=learn))


def power(ctx: WriteContext, view: NodeView) -> Entry:
    if view.dtype(0).kind != "f" or view.dtype(1).kind != "f":
        exponent = scalar_of(ctx, view, 1)
        if view.dtype(0).kind == "f" and exponent is not None:
            return ctx.scalar("_power_scalar", ctx.get(view), exponent)
        whole_numbers = view.const(1)
        if (
            view.dtype(0).kind == "f"
            and whole_numbers is not None
            and (abs(whole_numbers) < _EXACT_FLOAT).all()
        ):
            table = ctx.constant(whole_numbers.astype(ctx.dtype(view)), f"{view.name}_exponent", view=view)
            rank = max(ctx.rank(view), ctx.rank(view, 1))
            base = ctx.lift(ctx.get(view), ctx.rank(view), rank)
            return ctx.op("broadcast_power", base, ctx.lift(table, ctx.rank(view, 1), rank))
        raise view.refuse(f"{view.dtype(0)} to the power of {view.dtype(1)}; MXNet computes powers of floats")
    if view.dtype(0) != view.dtype(1):
        raise view.refuse(f"base and exponent differ in type: {view.dtype(0)} and {view.dtype(1)}")
    if scalar_of(ctx, view, 1) == 2:
        return ctx.op("square", ctx.get(view))
    return arithmetic("broadcast_power", False, ctx, view)


def modulo(ctx: WriteContext, view: NodeView) -> Entry:
    """`broadcast_mod` has Python's sign, as ONNX does without `fmod`. With it, the sign is the dividend's."""
    a, b = operands(ctx, view, 2)
    if not view.attr("fmod", 0):
        if view.dtype().kind == "f":
            raise view.refuse("MXNet's remainder of floats differs at infinities")
        return ctx.op("broadcast_mod", a, b)
    if view.dtype().kind != "f":
        raise view.refuse("fmod on integers")
    size = ctx.op("broadcast_mod", ctx.op("abs", a), ctx.op("abs", b))
    return ctx.op("broadcast_mul", ctx.op("sign", a), size)


def variadic(op: str, ctx: WriteContext, view: NodeView) -> Entry:
    count = len(view.inputs)
    inputs = operands(ctx, view, count)
    total = inputs[0]
    for other in inputs[1:]:
        total = ctx.op(op, total, other)
    return ctx.op("identity", total) if count == 1 else total


def mean(ctx: WriteContext, view: NodeView) -> Entry:
    return ctx.scalar("_div_scalar", variadic("broadcast_add", ctx, view), len(view.inputs))


def compare(op: str, ctx: WriteContext, view: NodeView) -> Entry:
    """MXNet's comparisons give numbers of the inputs' type, so they are cast."""
    a, b = operands(ctx, view, 2)
    if view.dtype().kind == "b":
        a, b = ctx.cast(a, np.uint8), ctx.cast(b, np.uint8)
    return ctx.cast(ctx.op(op, a, b), np.bool_)


def logical(op: str, ctx: WriteContext, view: NodeView) -> Entry:
    a, b = (ctx.cast(x, np.uint8) for x in operands(ctx, view, 2))
    return ctx.cast(ctx.op(op, a, b), np.bool_)


def logical_not(ctx: WriteContext, view: NodeView) -> Entry:
    return ctx.cast(ctx.op("logical_not", ctx.cast(ctx.get(view), np.uint8)), np.bool_)


def where(ctx: WriteContext, view: NodeView) -> Entry:
    """`_npi_where` broadcasts and takes a bool condition; the classic `where` does neither."""
    if view.dtype(1).kind == "b":
        x, y = (ctx.cast(ctx.get(view, i), np.uint8) for i in (1, 2))
        return ctx.cast(ctx.op("_npi_where", ctx.get(view), x, y), np.bool_)
    return ctx.op("_npi_where", ctx.get(view), ctx.get(view, 1), ctx.get(view, 2))


def clip(ctx: WriteContext, view: NodeView) -> Entry:
    """`clip` holds its bounds as float32; other types are clipped with maximum and minimum. A lower bound
    above the upper one gives the upper one."""
    x, dtype = ctx.get(view), ctx.dtype(view)
    low, high = (view.const(i) if view.has(i) else None for i in (1, 2))
    fixed = all(not view.has(i) or view.const(i) is not None for i in (1, 2))
    if (
        fixed
        and dtype == np.float32
        and low is not None
        and high is not None
        and -np.inf < low <= high < np.inf
    ):
        return ctx.op("clip", x, a_min=float(low), a_max=float(high))
    for index, op in ((1, "broadcast_maximum"), (2, "broadcast_minimum")):
        if not view.has(index):
            continue
        value = view.const(index)
        if value is not None and abs(float(value)) < _EXACT_INT:
            x = ctx.scalar(_SCALAR[op][0], x, float(value))
        elif value is None or not np.isinf(value):
            x = ctx.op(op, x, ctx.lift(ctx.get(view, index), 1, ctx.rank(view)))
        elif (value > 0) == (index == 1):
            raise view.refuse("a bound at the wrong infinity")
    return ctx.op("identity", x) if x == ctx.get(view) else x


def cast(ctx: WriteContext, view: NodeView) -> Entry:
    wanted = view.out_dtype()
    if view.dtype().kind == "f" and wanted.kind in "iu" and wanted.itemsize < 4:
        # C leaves open what an out-of-range float becomes; through int32 it wraps, as ONNX Runtime does.
        return ctx.cast(ctx.cast(ctx.get(view), np.int32), wanted)
    return ctx.cast(ctx.get(view), wanted)


def identity(ctx: WriteContext, view: NodeView) -> Entry:
    return ctx.op("identity", ctx.get(view))


def dropout(ctx: WriteContext, view: NodeView) -> tuple[Entry | None, ...]:
    """Active under `autograd.record()` only; at inference the identity."""
    training = view.const(2) if view.has(2) else None
    ratio = view.option(1, "ratio", 0.5)
    share = float(np.asarray(ratio).reshape(()))
    if view.has(2) and (training is None or bool(training)) and share:
        raise view.refuse("it is in training mode")
    x = ctx.get(view)
    kept = ctx.op("Dropout", x, p=share) if 0 < share < 1 else ctx.op("identity", x)
    if not view.wants(1):
        return (kept, None)
    return kept, ctx.cast(ctx.op("ones_like", x), np.bool_)


_UNARY = {
    "Sqrt": "sqrt", "Exp": "exp", "Log": "log", "Sin": "sin", "Cos": "cos", "Tan": "tan", "Asin": "arcsin",
    "Acos": "arccos", "Atan": "arctan", "Sinh": "sinh", "Cosh": "cosh", "Asinh": "arcsinh",
    "Acosh": "arccosh", "Atanh": "arctanh", "Erf": "erf", "Reciprocal": "reciprocal",
}  # fmt: skip
_COMPARE = {
    "Equal": "broadcast_equal", "Greater": "broadcast_greater", "Less": "broadcast_lesser",
    "GreaterOrEqual": "broadcast_greater_equal", "LessOrEqual": "broadcast_lesser_equal",
}  # fmt: skip


def _bind(function: Callable[..., Entry], *arguments: object) -> Lowering:
    return partial(function, *arguments)


TABLE: dict[str, Lowering] = {
    **{op: _bind(unary, name) for op, name in _UNARY.items()},
    **{op: _bind(compare, name) for op, name in _COMPARE.items()},
    "Abs": absolute,
    "Neg": negate,
    "Sign": _bind(unary, "sign"),
    "Ceil": _bind(whole, "ceil"),
    "Floor": _bind(whole, "floor"),
    "Round": _bind(whole, "_npi_around"),
    "IsNaN": is_nan,
    "IsInf": is_inf,
    "Add": _bind(arithmetic, "broadcast_add", True),
    "Sub": _bind(arithmetic, "broadcast_sub", True),
    "Mul": _bind(arithmetic, "broadcast_mul", True),
    "Div": _bind(arithmetic, "broadcast_div", False),
    "Pow": power,
    "Mod": modulo,
    "Max": _bind(variadic, "broadcast_maximum"),
    "Min": _bind(variadic, "broadcast_minimum"),
    "Sum": _bind(variadic, "broadcast_add"),
    "Mean": mean,
    "And": _bind(logical, "broadcast_logical_and"),
    "Or": _bind(logical, "broadcast_logical_or"),
    "Xor": _bind(logical, "broadcast_logical_xor"),
    "Not": logical_not,
    "Where": where,
    "Clip": clip,
    "Cast": cast,
    "CastLike": cast,
    "Identity": identity,
    "Dropout": dropout,
}
