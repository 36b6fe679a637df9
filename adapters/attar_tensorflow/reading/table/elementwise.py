"""Functions of each element: arithmetic, activations, comparisons."""

from __future__ import annotations

from typing import Any

import numpy as np
import onnx_ir as ir

from attar_tensorflow.reading.lifter import Lift, Lifter
from attar_tensorflow.reading.table.fused import with_bias
from attar_tensorflow.reading.table.norm import affine
from attar_tensorflow.reading.values import Const, Tensor
from attar_tensorflow.reading.view import OpView


def scalar(view: OpView, number: float, i: int = 0) -> Const:
    """A number in the element type of input `i`."""
    return Const(np.array(number, view.dtype(i)))


def simple(op_type: str, **attributes: Any) -> Lift:
    """The lifting of an operator that ONNX has under another name."""

    def lift(ctx: Lifter, view: OpView) -> Tensor:
        inputs = [view.input(k) for k in range(len(view.inputs))]
        return ctx.map(op_type, *inputs, dtype=_numeric(view), **attributes)

    return lift


def compare(op_type: str, negated: bool = False) -> Lift:
    """A comparison; `negated` for what ONNX has only the opposite of."""

    def lift(ctx: Lifter, view: OpView) -> Tensor:
        out = ctx.map(op_type, view.input(0), view.input(1), dtype=bool)
        return ctx.map("Not", out, dtype=bool) if negated else out

    return lift


def _numeric(view: OpView) -> np.dtype[Any]:
    return view.out_dtype()


def add(ctx: Lifter, view: OpView) -> Any:
    """Add, which may be the end of a normalization or the bias of a layer."""
    a, b = view.input(0), view.input(1)
    return affine(ctx, view, a, b) or _prelu(ctx, a, b) or with_bias(ctx, view) or ctx.map("Add", a, b)


def _prelu(ctx: Lifter, a: Any, b: Any) -> Tensor | None:
    """relu(x) + (-slope) * relu(-x), which is how Keras writes PReLU."""
    for positive, negative in ((a, b), (b, a)):
        if not (isinstance(positive, Tensor) and isinstance(negative, Tensor)):
            return None
        if positive.op == "Relu" and negative.op == "Mul":
            for slope, part in (negative.args, negative.args[::-1]):
                if (
                    isinstance(slope, Const)
                    and slope.op == "Neg"
                    and isinstance(part, Tensor)
                    and part.op == "Relu"
                ):
                    inner = part.args[0]
                    if isinstance(inner, Tensor) and inner.op == "Neg" and inner.args[0] is positive.args[0]:
                        return ctx.map("PRelu", inner.args[0], slope.args[0])
    return None


def add_n(ctx: Lifter, view: OpView) -> Any:
    total = view.input(0)
    for k in range(1, len(view.inputs)):
        total = ctx.map("Add", total, view.input(k))
    return total


def relu6(ctx: Lifter, view: OpView) -> Tensor:
    return ctx.map("Clip", view.input(0), scalar(view, 0), scalar(view, 6))


def leaky_relu(ctx: Lifter, view: OpView) -> Tensor:
    return ctx.map("LeakyRelu", view.input(0), alpha=float(view.attr("alpha", 0.2)))


def clip(ctx: Lifter, view: OpView) -> Any:
    """ClipByValue; ONNX wants scalar bounds, anything else is Max and Min."""
    low, high = view.input(1), view.input(2)
    if all(isinstance(b, Const) and b.array.ndim == 0 for b in (low, high)):
        return ctx.map("Clip", view.input(0), low, high)
    return ctx.map("Min", ctx.map("Max", view.input(0), low), high)


def maximum(ctx: Lifter, view: OpView) -> Tensor:
    """Maximum; with a constant 0 it is Relu, and Minimum(Relu(x), c) is Clip."""
    a, b = view.input(0), view.input(1)
    x, c = (a, b) if isinstance(b, Const) else (b, a)
    if isinstance(c, Const) and isinstance(x, Tensor) and c.array.ndim == 0 and x.dtype.kind == "f":
        if c.array == 0:
            return ctx.map("Relu", x)
        return ctx.map("Clip", x, c)
    return ctx.map("Max", a, b)


def minimum(ctx: Lifter, view: OpView) -> Tensor:
    a, b = view.input(0), view.input(1)
    x, c = (a, b) if isinstance(b, Const) else (b, a)
    if isinstance(c, Const) and isinstance(x, Tensor) and c.array.ndim == 0 and x.dtype.kind == "f":
        low = _lower_bound(x)
        if low is not None and low[1].array <= c.array:
            return ctx.map("Clip", low[0], low[1], c)
        return ctx.map("Clip", x, None, c)
    return ctx.map("Min", a, b)


def _lower_bound(x: Tensor) -> tuple[Tensor, Const] | None:
    if x.op == "Relu":
        return x.args[0], Const(np.array(0, x.dtype))
    if x.op == "Maximum":
        a, b = x.args
        inner, c = (a, b) if isinstance(b, Const) else (b, a)
        if isinstance(c, Const) and c.array.ndim == 0:
            return inner, c
    return None


def rsqrt(ctx: Lifter, view: OpView) -> Tensor:
    return ctx.map("Reciprocal", ctx.map("Sqrt", view.input(0)))


def square(ctx: Lifter, view: OpView) -> Tensor:
    return ctx.map("Mul", view.input(0), view.input(0))


def squared_difference(ctx: Lifter, view: OpView) -> Tensor:
    gap = ctx.map("Sub", view.input(0), view.input(1))
    return ctx.map("Mul", gap, gap)


def mul(ctx: Lifter, view: OpView) -> Tensor:
    """Mul, which may be the end of a GELU, or of x * sigmoid(x)."""
    a, b = view.input(0), view.input(1)
    for x, c in ((a, b), (b, a)):
        if isinstance(x, Tensor) and isinstance(c, Const) and c.array.ndim == 0 and c.array == 1:
            return x
    gelu = _gelu(a, b) or _gelu(b, a)
    if gelu is not None:
        return ctx.map("Gelu", gelu)
    return ctx.map("Mul", a, b)


def _gelu(half: Any, tail: Any) -> Tensor | None:
    """X of (x * 0.5) * erfc(-x * sqrt(0.5)), which is how TensorFlow writes the exact GELU."""
    if not (isinstance(half, Tensor) and isinstance(tail, Tensor) and half.op == "Mul" and tail.op == "Erfc"):
        return None
    x = _times(half, 0.5)
    inner = tail.args[0]
    if x is None or not isinstance(inner, Tensor) or inner.op != "Mul":
        return None
    minus = _times(inner, float(np.sqrt(0.5)))
    if minus is not None and minus.op == "Neg" and minus.args[0] is x:
        return x
    return x if _times(inner, -float(np.sqrt(0.5))) is x else None


def _times(product: Tensor, factor: float) -> Tensor | None:
    """X of x * factor."""
    for x, c in (product.args, product.args[::-1]):
        if isinstance(x, Tensor) and isinstance(c, Const) and c.array.size == 1:
            return x if np.isclose(float(c.array.reshape(())), factor, rtol=1e-6) else None
    return None


def erfc(ctx: Lifter, view: OpView) -> Tensor:
    return ctx.map("Sub", scalar(view, 1), ctx.map("Erf", view.input(0)))


def log1p(ctx: Lifter, view: OpView) -> Tensor:
    return ctx.map("Log", ctx.map("Add", view.input(0), scalar(view, 1)))


def expm1(ctx: Lifter, view: OpView) -> Tensor:
    return ctx.map("Sub", ctx.map("Exp", view.input(0)), scalar(view, 1))


def selu(ctx: Lifter, view: OpView) -> Tensor:
    return ctx.map("Selu", view.input(0), alpha=1.6732632423543772, gamma=1.0507009873554805)


def floor_div(ctx: Lifter, view: OpView) -> Tensor:
    """Rounds down, where ONNX's Div of integers cuts: what the remainder's sign tells is taken off."""
    a, b = view.input(0), view.input(1)
    quotient = ctx.map("Div", a, b)
    if view.dtype(0).kind == "f":
        return ctx.map("Floor", quotient)
    if view.dtype(0).kind == "u":
        return quotient
    rest = ctx.map("Sub", a, ctx.map("Mul", quotient, b))
    zero = scalar(view, 0)
    odd = ctx.map("Not", ctx.map("Equal", rest, zero, dtype=bool), dtype=bool)
    signs = ctx.map(
        "Xor", ctx.map("Less", rest, zero, dtype=bool), ctx.map("Less", b, zero, dtype=bool), dtype=bool
    )
    down = ctx.map("And", odd, signs, dtype=bool)
    kind = int(ir.DataType.from_numpy(view.dtype(0)))
    return ctx.map("Sub", quotient, ctx.map("Cast", down, dtype=view.dtype(0), to=kind))


def floor_mod(ctx: Lifter, view: OpView) -> Tensor:
    """The remainder with the divisor's sign: ONNX's Mod for integers, x - floor(x / y) * y for floats."""
    a, b = view.input(0), view.input(1)
    if view.dtype(0).kind in "iu":
        return ctx.map("Mod", a, b)
    rest = ctx.map("Mod", a, b, fmod=1)
    zero = scalar(view, 0)
    odd = ctx.map("Not", ctx.map("Equal", rest, zero, dtype=bool), dtype=bool)
    signs = ctx.map(
        "Xor", ctx.map("Less", rest, zero, dtype=bool), ctx.map("Less", b, zero, dtype=bool), dtype=bool
    )
    return ctx.map(
        "Where", ctx.map("And", odd, signs, dtype=bool), ctx.map("Add", rest, b), rest, dtype=a.dtype
    )


def div_no_nan(ctx: Lifter, view: OpView) -> Tensor:
    a, b = view.input(0), view.input(1)
    zero = ctx.map("Equal", b, scalar(view, 0), dtype=bool)
    safe = ctx.map("Where", zero, scalar(view, 1), b, dtype=a.dtype)
    return ctx.map("Where", zero, scalar(view, 0), ctx.map("Div", a, safe), dtype=a.dtype)


def cast(ctx: Lifter, view: OpView) -> Any:
    """Cast; floats to unsigned integers go by the signed ones, as TensorFlow's kernels do."""
    x, to = view.input(0), view.out_dtype()
    if x.dtype == to:
        return x
    if to.kind == "O":
        raise view.refuse("strings are not supported")
    return ctx.map("Cast", x, dtype=to, to=int(ir.DataType.from_numpy(to)))


def is_finite(ctx: Lifter, view: OpView) -> Tensor:
    x = view.input(0)
    bad = ctx.map("Or", ctx.map("IsNaN", x, dtype=bool), ctx.map("IsInf", x, dtype=bool), dtype=bool)
    return ctx.map("Not", bad, dtype=bool)


def zeros_like(number: float) -> Lift:
    def lift(ctx: Lifter, view: OpView) -> Tensor:
        x = view.input(0)
        value = x.value if isinstance(x, Tensor) else ctx.plain(x)
        fill = ir.tensor(np.full((1,), number, x.dtype))
        made = ctx.node("ConstantOfShape", [ctx.node("Shape", [value])[0]], value=fill)[0]
        return Tensor(made, x.dtype, x.shape, x.order if isinstance(x, Tensor) else None)

    return lift


LIFTINGS: dict[str, Lift] = {
    **{op: simple(op) for op in ("Sub", "Div", "Neg", "Abs", "Exp", "Log", "Sqrt", "Floor", "Ceil", "Sign")},
    **{
        op: simple(op)
        for op in ("Sin", "Cos", "Tan", "Asin", "Acos", "Atan", "Sinh", "Cosh", "Asinh", "Acosh")
    },
    **{op: simple(op) for op in ("Atanh", "Tanh", "Sigmoid", "Relu", "Softplus", "Softsign", "Erf", "Pow")},
    **{"RealDiv": simple("Div"), "Rint": simple("Round"), "Round": simple("Round"), "Elu": simple("Elu")},
    **{"Reciprocal": simple("Reciprocal"), "Inv": simple("Reciprocal"), "TruncateDiv": simple("Div")},
    **{"LogicalNot": simple("Not"), "LogicalAnd": simple("And"), "LogicalOr": simple("Or")},
    **{"IsNan": simple("IsNaN"), "IsInf": simple("IsInf"), "IsFinite": is_finite},
    **{"BitwiseAnd": simple("BitwiseAnd"), "BitwiseOr": simple("BitwiseOr"), "Invert": simple("BitwiseNot")},
    **{"Less": compare("Less"), "Greater": compare("Greater"), "Equal": compare("Equal")},
    **{"LessEqual": compare("LessOrEqual"), "GreaterEqual": compare("GreaterOrEqual")},
    **{"NotEqual": compare("Equal", negated=True), "BitwiseXor": simple("BitwiseXor")},
    **{"Add": add, "AddV2": add, "BiasAdd": add, "AddN": add_n, "Mul": mul, "Cast": cast},
    **{"Relu6": relu6, "LeakyRelu": leaky_relu, "Selu": selu, "ClipByValue": clip},
    **{"Maximum": maximum, "Minimum": minimum, "Rsqrt": rsqrt, "Square": square},
    **{"SquaredDifference": squared_difference, "Erfc": erfc, "Log1p": log1p, "Expm1": expm1},
    **{"FloorDiv": floor_div, "FloorMod": floor_mod, "DivNoNan": div_no_nan},
    **{"ZerosLike": zeros_like(0), "OnesLike": zeros_like(1)},
}
