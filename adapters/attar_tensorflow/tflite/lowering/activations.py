"""Functions of one operand."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import onnx_ir as ir

from attar_tensorflow.tflite.emit import Params, Slot
from attar_tensorflow.tflite.outop import Lowering, OutOp

Write = Callable[[OutOp], None]


class Chain:
    """A formula of float operators on one operand, in its layout; `end` makes the result."""

    def __init__(self, op: OutOp) -> None:
        self.op, self.last = op, op.is_last(0)
        op.integer = False
        self.x = op.operand(0, last=self.last)
        if self.x.dtype != np.float32:
            raise op.refuse(f"it computes in {self.x.dtype}")

    def do(self, kind: str, *inputs: Slot | float, **options: Any) -> Slot:
        return self.op.make(kind, [self._slot(i) for i in inputs], self.x.dims, options)

    def end(self, kind: str, *inputs: Slot | float, **options: Any) -> None:
        self.op.result(kind, [self._slot(i) for i in inputs], options, last=self.last)

    def _slot(self, what: Slot | float) -> Slot:
        return what if isinstance(what, Slot) else self.op.const(np.float32(what), "number")


def _plain(kind: str, **options: Any) -> Write:
    def write(op: OutOp) -> None:
        last = op.is_last(0)
        op.result(kind, [op.operand(0, last=last)], options, last=last)

    return write


def _fixed(kind: str, scale: float, zero: int) -> Write:
    """Functions whose codes TFLite fixes, because their range is known."""

    def write(op: OutOp) -> None:
        last = op.is_last(0)
        x = op.operand(0, last=last)
        params = None
        if op.integer and x.dtype.itemsize == 1:
            shift = 128 if op.w.unsigned else 0
            params = Params(np.asarray(np.float32(scale)), np.asarray(zero + shift))
        op.result(kind, [x], {}, last=last, params=params)

    return write


def softmax(op: OutOp) -> None:
    """Along the last axis of the file."""
    axis, rank, last = int(op.view.attr("axis", -1)) % op.rank(), op.rank(), op.is_last(0)
    kind = "SOFTMAX" if op.view.op == "Softmax" else "LOG_SOFTMAX"
    fixed = Params(np.asarray(np.float32(1 / 256)), np.asarray(0 if op.w.unsigned else -128))
    if kind == "LOG_SOFTMAX":
        op.integer = False
    options = {"beta": 1.0} if kind == "SOFTMAX" else {}
    if rank > 2 and axis == 1:
        last = True  # the channels, which are last then
    elif axis == rank - 1:
        last = False
    else:
        x = op.operand(0)
        order = [a for a in range(rank) if a != axis] + [axis]
        moved = op.w.transposed(x, order, f"{op.label}_moved")
        params = fixed if op.integer else None
        dtype = moved.dtype if op.integer else np.float32
        value = op.make(kind, [moved], moved.dims, options, dtype=dtype, params=params)
        op.give(op.w.transposed(value, [order.index(a) for a in range(rank)], op.label))
        return
    op.result(kind, [op.operand(0, last=last)], options, last=last, params=fixed if op.integer else None)


def relu(op: OutOp) -> None:
    last = op.is_last(0)
    x = op.operand(0, last=last)
    op.result("RELU", [x], {}, last=last, like=x if op.integer else None)


def clip(op: OutOp) -> None:
    """Named ones have operators; other bounds are a MAXIMUM and a MINIMUM."""
    low, high = (op.view.option(i, n) for i, n in ((1, "min"), (2, "max")))
    if op.view.dtype(0) not in (np.float32, np.int32, np.int64):
        raise op.refuse(f"it clips {op.view.dtype(0)}")
    bounds = (
        None if low is None else np.asarray(low).item(),
        None if high is None else np.asarray(high).item(),
    )
    named = {(0.0, 6.0): "RELU6", (-1.0, 1.0): "RELU_N1_TO_1", (0.0, None): "RELU"}
    last = op.is_last(0)
    x = op.operand(0, last=last)
    like = x if op.integer else None
    if bounds in named and (x.dtype.kind == "f" or like is not None):
        op.result(named[bounds], [x], {}, last=last, like=like)
        return
    if op.integer:
        # A code that stands for the bound, or is nearest to it from within what the result can hold.
        assert x.params is not None
        limits = np.iinfo(x.dtype)
    steps = [(k, b) for k, b in (("MAXIMUM", bounds[0]), ("MINIMUM", bounds[1])) if b is not None]
    for i, (kind, bound) in enumerate(steps):
        if op.integer:
            assert x.params is not None
            code = round(bound / float(x.params.scale)) + int(x.params.zero)
            operand = op.const(np.asarray(np.clip(code, limits.min, limits.max), x.dtype), "bound", x.params)
        else:
            operand = op.const(np.asarray(bound, x.dtype), "bound")
        if i == len(steps) - 1:
            op.result(kind, [x, operand], {}, last=last, like=like)
            return
        x = op.make(kind, [x, operand], x.dims, dtype=x.dtype, params=x.params)
    op.give(x, last=last)


def leaky_relu(op: OutOp) -> None:
    last = op.is_last(0)
    op.result(
        "LEAKY_RELU", [op.operand(0, last=last)], {"alpha": float(op.view.attr("alpha", 0.01))}, last=last
    )


def prelu(op: OutOp) -> None:
    slots, last = op.aligned(0, 1)
    slope = slots[1]
    if (
        len(slope.dims) == len(slots[0].dims)
        and len(slope.dims) > 1
        and slope.dims[0] == 1
        and not op.integer
    ):
        array = op.w.constant(op.value(1))
        if array is not None and array[1] is None:  # TFLite's slopes have no batch
            shape = slope.dims[1:]
            content = np.asarray(array[0], np.float32).reshape(-1)
            if content.size == max(int(np.prod([d or 1 for d in shape])), 1) and [
                d for d in shape if d != 1
            ] in (
                [content.size],
                [],
            ):
                slope = op.const(content.reshape([d or 1 for d in shape]), op.value(1).name)
    op.result("PRELU", [slots[0], slope], {}, last=last)


def elu(op: OutOp) -> None:
    alpha = float(op.view.attr("alpha", 1.0))
    if alpha == 1.0:
        _plain("ELU")(op)
        return
    c = Chain(op)  # the negative part, scaled
    positive = c.do("RELU", c.x)
    negative = c.do("SUB", c.do("ELU", c.x), positive)
    c.end("ADD", positive, c.do("MUL", negative, alpha))


def selu(op: OutOp) -> None:
    alpha, gamma = float(op.view.attr("alpha", 1.6732632)), float(op.view.attr("gamma", 1.0507))
    c = Chain(op)
    positive = c.do("RELU", c.x)
    negative = c.do("SUB", c.do("ELU", c.x), positive)
    c.end("MUL", c.do("ADD", positive, c.do("MUL", negative, alpha)), gamma)


def celu(op: OutOp) -> None:
    alpha = float(op.view.attr("alpha", 1.0))
    c = Chain(op)
    positive = c.do("RELU", c.x)
    scaled = c.do("MUL", c.x, 1 / alpha)
    negative = c.do("SUB", c.do("ELU", scaled), c.do("RELU", scaled))
    c.end("ADD", positive, c.do("MUL", negative, alpha))


def gelu(op: OutOp) -> None:
    approximate = op.view.attr("approximate", "none") == "tanh"
    _plain("GELU", approximate=approximate)(op)


def hard_sigmoid(op: OutOp) -> None:
    alpha, beta = float(op.view.attr("alpha", 0.2)), float(op.view.attr("beta", 0.5))
    c = Chain(op)
    line = c.do("ADD", c.do("MUL", c.x, alpha), beta)
    c.end("MINIMUM", c.do("MAXIMUM", line, 0.0), 1.0)


def softplus(op: OutOp) -> None:
    """max(x, 0) + log(1 + exp(-|x|)), which cannot overflow."""
    c = Chain(op)
    small = c.do("EXP", c.do("NEG", c.do("ABS", c.x)))
    c.end("ADD", c.do("RELU", c.x), c.do("LOG", c.do("ADD", small, 1.0)))


def softsign(op: OutOp) -> None:
    c = Chain(op)
    c.end("DIV", c.x, c.do("ADD", c.do("ABS", c.x), 1.0))


def reciprocal(op: OutOp) -> None:
    c = Chain(op)
    c.end("DIV", 1.0, c.x)


def thresholded_relu(op: OutOp) -> None:
    c = Chain(op)
    above = op.make(
        "GREATER", [c.x, op.const(np.float32(op.view.attr("alpha", 1.0)))], c.x.dims, dtype=np.bool_
    )
    c.end("SELECT_V2", above, c.x, 0.0)


def cast(op: OutOp) -> None:
    to = np.dtype(ir.DataType(int(op.view.attr("to"))).numpy())
    last = op.is_last(0)
    x = op.operand(0, last=last)
    known = (np.float32, np.int32, np.int64, np.bool_, np.uint8, np.int8)
    if (
        to not in known
        or x.dtype not in known
        or (x.dtype.kind == "f" and to.itemsize == 1 and to != np.bool_)
    ):
        raise op.refuse(f"{x.dtype} to {to}")
    op.result("CAST", [x], {}, last=last)


LOWERINGS = {
    "Relu": Lowering(relu, "move", (0,)),
    "Clip": Lowering(clip, "move", (0,)),
    "LeakyRelu": Lowering(leaky_relu, "arithmetic", (0,)),
    "PRelu": Lowering(prelu, "arithmetic", (0, 1)),
    "Sigmoid": Lowering(_fixed("LOGISTIC", 1 / 256, -128), "arithmetic", (0,)),
    "Tanh": Lowering(_fixed("TANH", 1 / 128, 0), "arithmetic", (0,)),
    "Softmax": Lowering(softmax, "arithmetic", (0,)),
    "LogSoftmax": Lowering(softmax),
    "HardSwish": Lowering(_plain("HARD_SWISH"), "arithmetic", (0,)),
    "Elu": Lowering(elu),
    "Selu": Lowering(selu),
    "Celu": Lowering(celu),
    "Gelu": Lowering(gelu),
    "HardSigmoid": Lowering(hard_sigmoid),
    "Softplus": Lowering(softplus),
    "Softsign": Lowering(softsign),
    "ThresholdedRelu": Lowering(thresholded_relu),
    "Reciprocal": Lowering(reciprocal),
    "Abs": Lowering(_plain("ABS")),
    "Neg": Lowering(_plain("NEG")),
    "Exp": Lowering(_plain("EXP")),
    "Log": Lowering(_plain("LOG")),
    "Sqrt": Lowering(_plain("SQRT")),
    "Sin": Lowering(_plain("SIN")),
    "Cos": Lowering(_plain("COS")),
    "Floor": Lowering(_plain("FLOOR")),
    "Ceil": Lowering(_plain("CEIL")),
    "Round": Lowering(_plain("ROUND")),
    "Sign": Lowering(_plain("SIGN")),
    "Not": Lowering(_plain("LOGICAL_NOT")),
    "Cast": Lowering(cast),
}
