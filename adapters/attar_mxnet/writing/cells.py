"""One step of the recurrent operators, by the formulas of the ONNX specification."""

from __future__ import annotations

from collections.abc import Callable

from attar.conversion import NodeView
from attar_mxnet.symbol_json import Entry
from attar_mxnet.writing.context import WriteContext

Function = Callable[[WriteContext, Entry], Entry]


def activation_of(view: NodeView, name: str, place: int) -> Function:
    """The activation `name`, the one at `place` in the node's list, with its parameters."""
    alphas, betas = (list(view.attr(f"activation_{w}", None) or []) for w in ("alpha", "beta"))
    alpha = alphas[place] if place < len(alphas) else None
    beta = betas[place] if place < len(betas) else None
    found = _ACTIVATIONS.get(name.lower())
    if found is None:
        raise view.refuse(f"the activation {name}")
    return lambda ctx, x: found(ctx, x, alpha, beta)


def _given(value: float | None, default: float) -> float:
    return default if value is None else value


Parametric = Callable[[WriteContext, Entry, float | None, float | None], Entry]
_ACTIVATIONS: dict[str, Parametric] = {
    "sigmoid": lambda c, x, a, b: c.op("Activation", x, act_type="sigmoid"),
    "tanh": lambda c, x, a, b: c.op("Activation", x, act_type="tanh"),
    "relu": lambda c, x, a, b: c.op("Activation", x, act_type="relu"),
    "softsign": lambda c, x, a, b: c.op("Activation", x, act_type="softsign"),
    "hardsigmoid": lambda c, x, a, b: c.op("hard_sigmoid", x, alpha=_given(a, 0.2), beta=_given(b, 0.5)),
    "leakyrelu": lambda c, x, a, b: c.op("LeakyReLU", x, act_type="leaky", slope=_given(a, 0.01)),
    "elu": lambda c, x, a, b: c.op("LeakyReLU", x, act_type="elu", slope=_given(a, 1.0)),
    "affine": lambda c, x, a, b: c.scalar(
        "_plus_scalar", c.scalar("_mul_scalar", x, _given(a, 1.0)), _given(b, 0.0)
    ),
}


class Cell:
    """Weights of one direction. `gates` runs of `hidden` rows each make up a weight matrix."""

    gates = 1

    def __init__(
        self, ctx: WriteContext, view: NodeView, place: int, hidden: int, functions: list[Function]
    ) -> None:
        self.ctx, self.view, self.hidden, self.functions = ctx, view, hidden, functions
        self.input_weight, self.state_weight = (self._own(i, place) for i in (1, 2))
        self.input_bias, self.state_bias = None, None
        if view.has(3):
            bias, rows = self._own(3, place), self.gates * hidden
            self.input_bias = ctx.slice_axis(bias, 0, 0, rows)
            self.state_bias = ctx.slice_axis(bias, 0, rows, 2 * rows)
        self.peepholes = self._own(7, place) if self.gates == 4 and view.has(7) else None
        self.clip = float(view.attr("clip", 0.0) or 0.0)

    def _own(self, index: int, place: int) -> Entry:
        """The part of a weight that belongs to the direction."""
        weight = self.ctx.weight(self.view, index)
        return self.ctx.op("squeeze", self.ctx.slice_axis(weight, 0, place, place + 1), axis=(0,))

    def drive(self, x: Entry) -> Entry:
        """What the inputs of all steps give to the gates: (steps, batch, gates * hidden)."""
        return self.full(x, self.input_weight, self.input_bias, self.gates)

    def step(self, drive: Entry, states: list[Entry]) -> list[Entry]:
        """New states, the output first."""
        raise NotImplementedError

    def full(self, x: Entry, weight: Entry, bias: Entry | None, gates: int) -> Entry:
        more = [] if bias is None else [bias]
        units = gates * self.hidden
        return self.ctx.op(
            "FullyConnected", x, weight, *more, num_hidden=units, no_bias=bias is None, flatten=False
        )

    def part(self, x: Entry, place: int, axis: int = 1) -> Entry:
        return self.ctx.slice_axis(x, axis, place * self.hidden, (place + 1) * self.hidden)

    def bent(self, which: int, x: Entry) -> Entry:
        """Activation number `which`, of clipped input."""
        if self.clip:
            x = self.ctx.op("clip", x, a_min=-self.clip, a_max=self.clip)
        return self.functions[which](self.ctx, x)

    def add(self, a: Entry, b: Entry) -> Entry:
        return self.ctx.op("elemwise_add", a, b)

    def mul(self, a: Entry, b: Entry) -> Entry:
        return self.ctx.op("elemwise_mul", a, b)

    def rest(self, a: Entry) -> Entry:
        return self.ctx.scalar("_rminus_scalar", a, 1.0)


class RnnCell(Cell):
    """H' = f(X W + H R + b)"""

    def step(self, drive: Entry, states: list[Entry]) -> list[Entry]:
        pushed = self.full(states[0], self.state_weight, self.state_bias, 1)
        return [self.bent(0, self.add(drive, pushed))]


class GruCell(Cell):
    """Gates z, r, h: H' = (1 - z) * h + z * H"""

    gates = 3

    def step(self, drive: Entry, states: list[Entry]) -> list[Entry]:
        state = states[0]
        after = bool(self.view.attr("linear_before_reset", 0))
        pushed = self.full(state, self.state_weight, self.state_bias, 3)
        update, reset = (self.bent(0, self.add(self.part(drive, i), self.part(pushed, i))) for i in (0, 1))
        if after:
            inner = self.mul(reset, self.part(pushed, 2))
        else:
            bias = None if self.state_bias is None else self.part(self.state_bias, 2, axis=0)
            inner = self.full(self.mul(reset, state), self.part(self.state_weight, 2, axis=0), bias, 1)
        fresh = self.bent(1, self.add(self.part(drive, 2), inner))
        return [self.add(self.mul(self.rest(update), fresh), self.mul(update, state))]


class LstmCell(Cell):
    """Gates i, o, f, c; peepholes i, o, f."""

    gates = 4

    def step(self, drive: Entry, states: list[Entry]) -> list[Entry]:
        state, memory = states
        total = self.add(drive, self.full(state, self.state_weight, self.state_bias, 4))
        enter = self.bent(0, self._peep(self.part(total, 0), memory, 0))
        forget = (
            self.rest(enter)
            if self.view.attr("input_forget", 0)
            else self.bent(0, self._peep(self.part(total, 2), memory, 2))
        )
        fresh = self.bent(1, self.part(total, 3))
        memory = self.add(self.mul(forget, memory), self.mul(enter, fresh))
        leave = self.bent(0, self._peep(self.part(total, 1), memory, 1))
        return [self.mul(leave, self.functions[2](self.ctx, memory)), memory]

    def _peep(self, gate: Entry, memory: Entry, place: int) -> Entry:
        if self.peepholes is None:
            return gate
        row = self.ctx.op("expand_dims", self.part(self.peepholes, place, axis=0), axis=0)
        return self.add(gate, self.ctx.op("broadcast_mul", memory, row))


CELLS: dict[str, type[Cell]] = {"LSTM": LstmCell, "GRU": GruCell, "RNN": RnnCell}
