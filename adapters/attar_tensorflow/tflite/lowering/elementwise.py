"""Element by element with broadcasting: arithmetic, comparisons, logic, choice."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from attar_tensorflow.tflite.emit import Slot
from attar_tensorflow.tflite.lift import to_last
from attar_tensorflow.tflite.outop import Lowering, OutOp

Write = Callable[[OutOp], None]
_NUMBERS = {
    "ADD": (np.float32, np.int32, np.int64), "SUB": (np.float32, np.int32, np.int64),
    "MUL": (np.float32, np.int32, np.int64), "DIV": (np.float32, np.int32), "POW": (np.float32, np.int32),
}  # fmt: skip


def _arithmetic(kind: str, fused: bool = True) -> Write:
    def write(op: OutOp) -> None:
        allowed = _NUMBERS.get(kind)
        if allowed is not None and op.view.dtype(0) not in [np.dtype(t) for t in allowed]:
            raise op.refuse(f"{kind} does not take {op.view.dtype(0)}")
        if kind == "POW" and op.view.dtype(1) != op.view.dtype(0):
            exponent = op.view.const(1)
            if exponent is None or exponent.size != 1 or op.view.dtype(0) != np.float32:
                raise op.refuse("base and exponent are of different types")
            last = op.is_last(0)
            number = op.const(np.asarray(exponent, np.float32).reshape(()))
            op.result("POW", [op.operand(0, last=last), number], {}, last=last)
            return
        _check_infinities(op)
        slots, last = op.aligned(0, 1)
        op.result(kind, slots, {"fused_activation_function": op.activation()} if fused else {}, last=last)

    return write


_HARMLESS = {
    "Add",
    "Cast",
    "Identity",
    "Where",
    "Reshape",
    "Transpose",
    "Dropout",
    "Expand",
    "Unsqueeze",
    "Squeeze",
}


def _check_infinities(op: OutOp) -> None:
    """TFLite's arithmetic gives the largest finite number for an infinite one, which only a softmax does not
    tell apart."""
    constants = [op.w.constant(v) for v in op.view.inputs]
    if not any(c is not None and c[0].dtype.kind == "f" and np.isinf(c[0]).any() for c in constants):
        return
    pending, seen = [*op.group.outputs], set()
    while pending:
        value = pending.pop()
        if value.is_graph_output():
            raise op.refuse("one of its constants is infinite")
        for user, _ in value.uses():
            if user.op_type in _HARMLESS and user not in seen:
                seen.add(user)
                pending += user.outputs
            elif user.op_type not in _HARMLESS and user.op_type != "Softmax":
                raise op.refuse("one of its constants is infinite")


def _extreme(kind: str) -> Write:
    """Max and Min of any number of operands; codes have to be of one scale, that of the result."""

    def write(op: OutOp) -> None:
        count = len(op.view.inputs)
        slots, last = op.aligned(*range(count), like=op.wanted() if op.integer else None)
        _chain(op, kind, slots, last)

    return write


def sum_(op: OutOp) -> None:
    slots, last = op.aligned(*range(len(op.view.inputs)))
    _chain(op, "ADD", slots, last)


def mean(op: OutOp) -> None:
    slots, last = op.aligned(*range(len(op.view.inputs)))
    total = slots[0]
    for slot in slots[1:]:
        total = op.make("ADD", [total, slot], _joined(op, last))
    op.result("MUL", [total, op.const(np.float32(1 / len(slots)))], {}, last=last)


def _joined(op: OutOp, last: bool) -> tuple[int | None, ...]:
    dims = op.out_dims()
    return tuple(dims[a] for a in to_last(len(dims))) if last and len(dims) > 2 else dims


def _chain(op: OutOp, kind: str, slots: list[Slot], last: bool) -> None:
    total = slots[0]
    if len(slots) == 1:
        op.give(total, last=last)
        return
    for slot in slots[1:-1]:
        total = op.make(kind, [total, slot], _joined(op, last), dtype=total.dtype, params=total.params)
    op.result(kind, [total, slots[-1]], {}, last=last)


def _compare(kind: str) -> Write:
    def write(op: OutOp) -> None:
        slots, last = op.aligned(0, 1)
        op.result(kind, slots, {}, last=last)

    return write


def modulo(op: OutOp) -> None:
    """The remainder with the sign of the divisor; with `fmod`, of the dividend: not there."""
    if op.view.attr("fmod", 0):
        raise op.refuse("it has the sign of the dividend (fmod)")
    slots, last = op.aligned(0, 1)
    op.result("FLOOR_MOD", slots, {}, last=last)


def where(op: OutOp) -> None:
    slots, last = op.aligned(0, 1, 2)
    op.result("SELECT_V2", slots, {}, last=last)


def expand(op: OutOp) -> None:
    """Broadcasting both ways, to the shape that the IR infers."""
    dims = op.out_dims()
    if op.rank(0) == len(dims) and op.dims(0) == dims and None not in dims:
        op.give(op.operand(0))
        return
    if None in dims:
        shape = op.view.const(1)
        if shape is None or op.rank(0) > len(shape):
            raise op.refuse("its shape is computed while the model runs")
        ones = op.const(np.ones([int(n) for n in shape], op.view.dtype(0)))
        if op.view.dtype(0) not in (np.float32, np.int32, np.int64):
            raise op.refuse("its shape is dynamic")
        op.result("MUL", [op.operand(0, real=True), ones], {})
        return
    op.result("BROADCAST_TO", [op.operand(0), op.ints([int(d or 0) for d in dims], "shape")])


LOWERINGS = {
    "Add": Lowering(_arithmetic("ADD"), "arithmetic", fuses=True),
    "Sub": Lowering(_arithmetic("SUB"), "arithmetic", fuses=True),
    "Mul": Lowering(_arithmetic("MUL"), "arithmetic", fuses=True),
    "Div": Lowering(_arithmetic("DIV"), fuses=True),
    "Pow": Lowering(_arithmetic("POW", fused=False)),
    "Max": Lowering(_extreme("MAXIMUM"), "arithmetic"),
    "Min": Lowering(_extreme("MINIMUM"), "arithmetic"),
    "Sum": Lowering(sum_),
    "Mean": Lowering(mean),
    "Mod": Lowering(modulo),
    "And": Lowering(_compare("LOGICAL_AND")),
    "Or": Lowering(_compare("LOGICAL_OR")),
    "Xor": Lowering(_compare("NOT_EQUAL")),
    "Equal": Lowering(_compare("EQUAL")),
    "Less": Lowering(_compare("LESS")),
    "LessOrEqual": Lowering(_compare("LESS_EQUAL")),
    "Greater": Lowering(_compare("GREATER")),
    "GreaterOrEqual": Lowering(_compare("GREATER_EQUAL")),
    "Where": Lowering(where),
    "Expand": Lowering(expand),
}
