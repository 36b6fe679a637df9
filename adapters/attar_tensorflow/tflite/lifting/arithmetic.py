"""Element by element: arithmetic with broadcasting, comparisons, and functions of one operand."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import onnx_ir as ir

from attar_tensorflow.tflite.liftop import Op

Lifting = Callable[[Op], None]


def _binary(kind: str) -> Lifting:
    def lift(op: Op) -> None:
        (a, b), first = op.aligned(0, 1)
        op.give(op.emit(kind, [a, b]), first=first)

    return lift


def _compare(kind: str, negated: bool = False) -> Lifting:
    def lift(op: Op) -> None:
        (a, b), first = op.aligned(0, 1)
        value = op.emit(kind, [a, b])
        op.give(op.emit("Not", [value]) if negated else value, first=first)

    return lift


def _unary(kind: str, **attributes: float | str) -> Lifting:
    def lift(op: Op) -> None:
        first = op.is_first(0)
        op.give(op.emit(kind, [op.real(0, first)], **attributes), first=first)

    return lift


def _clip(low: float, high: float | None) -> Lifting:
    def lift(op: Op) -> None:
        first = op.is_first(0)
        op.give(op.clip(op.real(0, first), low, high, index=op.out().index), first=first)

    return lift


def square(op: Op) -> None:
    first = op.is_first(0)
    x = op.real(0, first)
    op.give(op.emit("Mul", [x, x]), first=first)


def rsqrt(op: Op) -> None:
    first = op.is_first(0)
    op.give(op.emit("Reciprocal", [op.emit("Sqrt", [op.real(0, first)])]), first=first)


def squared_difference(op: Op) -> None:
    (a, b), first = op.aligned(0, 1)
    difference = op.emit("Sub", [a, b])
    op.give(op.emit("Mul", [difference, difference]), first=first)


def floor_div(op: Op) -> None:
    """Rounds towards minus infinity, where ONNX's whole-number division rounds towards zero."""
    (a, b), first = op.aligned(0, 1)
    if op.tensor(0).dtype.kind == "f":
        op.give(op.emit("Floor", [op.emit("Div", [a, b])]), first=first)
        return
    exact = op.emit("Sub", [a, op.emit("Mod", [a, b])])
    op.give(op.emit("Div", [exact, b]), first=first)


def floor_mod(op: Op) -> None:
    """The remainder with the sign of the divisor."""
    (a, b), first = op.aligned(0, 1)
    if op.tensor(0).dtype.kind != "f":
        op.give(op.emit("Mod", [a, b]), first=first)
        return
    rest, zero = op.emit("Mod", [a, b], fmod=1), np.float32(0)
    signs = op.emit("Xor", [op.emit("Less", [rest, zero]), op.emit("Less", [b, zero])])
    wrong = op.emit("And", [signs, op.emit("Not", [op.emit("Equal", [rest, zero])])])
    op.give(op.emit("Where", [wrong, op.emit("Add", [rest, b]), rest]), first=first)


def add_n(op: Op) -> None:
    values, first = op.aligned(*range(op.count))
    op.give(op.emit("Sum", values), first=first)


def leaky_relu(op: Op) -> None:
    first = op.is_first(0)
    op.give(op.emit("LeakyRelu", [op.real(0, first)], alpha=float(op.option("alpha"))), first=first)


def prelu(op: Op) -> None:
    (x, slope), first = op.aligned(0, 1)
    op.give(op.emit("PRelu", [x, slope]), first=first)


def gelu(op: Op) -> None:
    first = op.is_first(0)
    kind = "tanh" if op.option("approximate") else "none"
    op.give(op.emit("Gelu", [op.real(0, first)], approximate=kind), first=first)


def cast(op: Op) -> None:
    """Real numbers to whole ones are cut off, as in C."""
    first = op.is_first(0)
    to = op.out().dtype
    if to == np.object_ or op.tensor(0).dtype == np.object_:
        raise op.refuse(f"{op.tensor(0).type} to {op.out().type}")
    op.give(op.emit("Cast", [op.raw(0, first)], to=int(ir.DataType.from_numpy(to))), first=first)


def select(op: Op) -> None:
    """Where; the first version's condition of rank 1 chooses along the first axis instead of the last."""
    if op.kind == "SELECT" and op.rank(0) == 1 and op.rank(1) > 1:
        axes = np.arange(1, op.rank(1))
        condition = op.emit("Unsqueeze", [op.real(0), axes])
        op.give(op.emit("Where", [condition, op.real(1), op.real(2)]))
        return
    (condition, a, b), first = op.aligned(0, 1, 2)
    op.give(op.emit("Where", [condition, a, b]), first=first)


LIFTINGS: dict[str, Lifting] = {
    "ADD": _binary("Add"),
    "SUB": _binary("Sub"),
    "MUL": _binary("Mul"),
    "DIV": _binary("Div"),
    "POW": _binary("Pow"),
    "MAXIMUM": _binary("Max"),
    "MINIMUM": _binary("Min"),
    "LOGICAL_AND": _binary("And"),
    "LOGICAL_OR": _binary("Or"),
    "BITWISE_XOR": _binary("BitwiseXor"),
    "SQUARED_DIFFERENCE": squared_difference,
    "FLOOR_DIV": floor_div,
    "FLOOR_MOD": floor_mod,
    "ADD_N": add_n,
    "EQUAL": _compare("Equal"),
    "NOT_EQUAL": _compare("Equal", negated=True),
    "LESS": _compare("Less"),
    "LESS_EQUAL": _compare("LessOrEqual"),
    "GREATER": _compare("Greater"),
    "GREATER_EQUAL": _compare("GreaterOrEqual"),
    "ABS": _unary("Abs"),
    "NEG": _unary("Neg"),
    "EXP": _unary("Exp"),
    "LOG": _unary("Log"),
    "SQRT": _unary("Sqrt"),
    "RSQRT": rsqrt,
    "SQUARE": square,
    "FLOOR": _unary("Floor"),
    "CEIL": _unary("Ceil"),
    "ROUND": _unary("Round"),
    "SIN": _unary("Sin"),
    "COS": _unary("Cos"),
    "SIGN": _unary("Sign"),
    "LOGICAL_NOT": _unary("Not"),
    "LOGISTIC": _unary("Sigmoid"),
    "TANH": _unary("Tanh"),
    "HARD_SWISH": _unary("HardSwish"),
    "ELU": _unary("Elu"),
    "RELU": _clip(0.0, None),
    "RELU6": _clip(0.0, 6.0),
    "RELU_N1_TO_1": _clip(-1.0, 1.0),
    "RELU_0_TO_1": _clip(0.0, 1.0),
    "LEAKY_RELU": leaky_relu,
    "PRELU": prelu,
    "GELU": gelu,
    "CAST": cast,
    "SELECT": select,
    "SELECT_V2": select,
}
