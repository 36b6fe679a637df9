"""RNN, GRU and LSTM in all of ONNX's forms, as loops over time."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import tensorflow as tf

from attar_tensorflow.writing.context import Ctx, Lowering, Tensor, View
from attar_tensorflow.writing.tensors import dims, rank_of, stack

Activation = Callable[[Tensor], Tensor]
State = tuple[Tensor, ...]

_ALPHA = {
    "Affine": 1.0,
    "LeakyRelu": 0.01,
    "ThresholdedRelu": 1.0,
    "ScaledTanh": 1.0,
    "HardSigmoid": 0.2,
    "Elu": 1.0,
}
_BETA = {"Affine": 0.0, "ScaledTanh": 1.0, "HardSigmoid": 0.5}
_ACTIVATIONS: dict[str, Callable[[Tensor, float, float], Tensor]] = {
    "Affine": lambda x, a, b: a * x + b,
    "Elu": lambda x, a, b: tf.where(x > 0, x, a * tf.math.expm1(tf.minimum(x, 0))),
    "HardSigmoid": lambda x, a, b: tf.clip_by_value(a * x + b, 0, 1),
    "LeakyRelu": lambda x, a, b: tf.where(x >= 0, x, a * x),
    "Relu": lambda x, a, b: tf.nn.relu(x),
    "ScaledTanh": lambda x, a, b: a * tf.tanh(b * x),
    "Sigmoid": lambda x, a, b: tf.sigmoid(x),
    "Softplus": lambda x, a, b: tf.nn.softplus(x),
    "Softsign": lambda x, a, b: tf.nn.softsign(x),
    "Tanh": lambda x, a, b: tf.tanh(x),
    "ThresholdedRelu": lambda x, a, b: tf.where(x > a, x, tf.zeros_like(x)),
}


def activations_of(view: View, defaults: Sequence[str], directions: int) -> list[list[Activation]]:
    """The activation functions of each direction, with their alphas and betas."""
    given = view.node.attributes.get("activations")  # the schema's own default is for one direction only
    names = list(given.value) if given is not None else list(defaults) * directions
    alphas, betas = list(view.attr("activation_alpha") or []), list(view.attr("activation_beta") or [])
    found: list[Activation] = []
    known = {n.lower(): n for n in _ACTIVATIONS}
    for given_name in names:
        name = known.get(str(given_name).lower(), str(given_name))
        if name not in _ACTIVATIONS:
            raise view.refuse(f"unknown activation {name!r}")
        alpha = alphas.pop(0) if name in _ALPHA and alphas else _ALPHA.get(name, 0.0)
        beta = betas.pop(0) if name in _BETA and betas else _BETA.get(name, 0.0)
        found.append(lambda x, f=_ACTIVATIONS[name], a=alpha, b=beta: f(x, a, b))
    count = len(defaults)
    return [found[i * count : (i + 1) * count] for i in range(directions)]


@dataclass(frozen=True)
class Cell:
    """The weights of one direction, (inputs, gates), and what the cell does with them."""

    w: Tensor
    r: Tensor
    wb: Tensor
    rb: Tensor
    functions: list[Activation]
    view: View
    peepholes: Tensor | None = None

    def clip(self, x: Tensor) -> Tensor:
        bound = self.view.attr("clip")
        return x if not bound else tf.clip_by_value(x, -bound, bound)


def _rnn_step(cell: Cell, x: Tensor, state: State) -> State:
    (h,) = state
    return (cell.functions[0](cell.clip(x + tf.matmul(h, cell.r) + cell.rb)),)


def _gru_step(cell: Cell, x: Tensor, state: State) -> State:
    (h,) = state
    f, g = cell.functions
    xz, xr, xh = tf.split(x, 3, -1)
    rz, rr, rh = tf.split(cell.r, 3, -1)
    bz, br, bh = tf.split(cell.rb, 3, -1)
    z = f(cell.clip(xz + tf.matmul(h, rz) + bz))
    r = f(cell.clip(xr + tf.matmul(h, rr) + br))
    if cell.view.attr("linear_before_reset", 0):
        new = g(cell.clip(xh + r * (tf.matmul(h, rh) + bh)))
    else:
        new = g(cell.clip(xh + tf.matmul(r * h, rh) + bh))
    return ((1 - z) * new + z * h,)


def _lstm_step(cell: Cell, x: Tensor, state: State) -> State:
    h, c = state
    f, g, out = cell.functions
    xi, xo, xf, xc = tf.split(x + tf.matmul(h, cell.r) + cell.rb, 4, -1)
    pi, po, pf = (0, 0, 0) if cell.peepholes is None else tf.split(cell.peepholes, 3, -1)
    i = f(cell.clip(xi + pi * c))
    keep = 1 - i if cell.view.attr("input_forget", 0) else f(cell.clip(xf + pf * c))
    c = keep * c + i * g(cell.clip(xc))
    o = f(cell.clip(xo + po * c))
    return o * out(c), c


def _run(
    step: Callable[[Cell, Tensor, State], State], cell: Cell, x: Tensor, state: State, lengths: Tensor | None
):
    """Outputs (T, B, H) and the last state of one direction over x (T, B, gates)."""
    steps = dims(x)[0]
    last = [s.shape for s in state]

    def advance(t: Tensor, state: State) -> tuple[Tensor, State]:
        new = step(cell, x[t], state)
        if lengths is None:
            return new[0], new
        alive = (t < lengths)[:, None]
        new = tuple(tf.where(alive, a, b) for a, b in zip(new, state, strict=True))
        return tf.where(alive, new[0], tf.zeros_like(new[0])), new

    if isinstance(steps, int) and steps <= 4:  # short enough to write out
        outputs = []
        for t in range(steps):
            output, state = advance(t, state)
            outputs.append(output)
        return (tf.stack(outputs) if outputs else tf.zeros(stack([0, *dims(state[0])]), x.dtype)), state

    def body(t: Tensor, outputs: tf.TensorArray, *state: Tensor) -> tuple:
        output, new = advance(t, state)
        for tensor, shape in zip(new, last, strict=True):
            tensor.set_shape(shape)
        return t + 1, outputs.write(t, output), *new

    array = tf.TensorArray(x.dtype, steps, element_shape=state[0].shape)
    _, array, *state = tf.while_loop(
        lambda t, *_: t < steps, body, (tf.constant(0), array, *state), maximum_iterations=steps
    )
    return array.stack(), tuple(state)


def _recurrent(
    step: Callable[[Cell, Tensor, State], State], gates: int, defaults: Sequence[str], states: int
) -> Lowering:
    def lower(ctx: Ctx, view: View) -> tuple[Tensor, ...]:
        x, w, r, b = ctx[0], ctx[1], ctx[2], ctx[3]
        if rank_of(x, view) != 3:
            raise view.refuse("its input is no sequence")
        layout, hidden = view.attr("layout", 0), r.shape[-1]
        if layout:
            x = tf.transpose(x, [1, 0, 2])
        directions = w.shape[0]
        functions = activations_of(view, defaults, directions)
        lengths = None if ctx[4] is None else tf.cast(ctx[4], tf.int32)
        batch = dims(x)[1]
        outputs, finals = [], []
        for d in range(directions):
            backward = view.attr("direction") == "reverse" or d == 1
            bias = tf.zeros([2 * gates * hidden], x.dtype) if b is None else b[d]
            wb, rb = tf.split(bias, 2)
            peepholes = ctx[7][d] if states == 2 and ctx[7] is not None else None
            cell = Cell(tf.transpose(w[d]), tf.transpose(r[d]), wb, rb, functions[d], view, peepholes)
            state = tuple(
                tf.zeros(stack([batch, hidden]), x.dtype)
                if ctx[5 + s] is None
                else (ctx[5 + s][:, d] if layout else ctx[5 + s][d])
                for s in range(states)
            )
            sequence = _reversed(x, lengths) if backward else x
            whole = tf.einsum("tbi,ig->tbg", sequence, cell.w) + wb  # all steps at once
            y, final = _run(step, cell, whole, state, lengths)
            outputs.append(_reversed(y, lengths) if backward else y)
            finals.append(final)
        axis = 2 if layout else 1
        y = tf.stack([tf.transpose(o, [1, 0, 2]) for o in outputs] if layout else outputs, axis)
        ends = [tf.stack([f[s] for f in finals], 1 if layout else 0) for s in range(states)]
        return y, *ends

    return lower


def _reversed(x: Tensor, lengths: Tensor | None) -> Tensor:
    if lengths is None:
        return tf.reverse(x, [0])
    return tf.reverse_sequence(x, lengths, seq_axis=0, batch_axis=1)


LOWERINGS: dict[str, Lowering] = {
    "GRU": _recurrent(_gru_step, 3, ["Sigmoid", "Tanh"], 1),
    "LSTM": _recurrent(_lstm_step, 4, ["Sigmoid", "Tanh", "Tanh"], 2),
    "RNN": _recurrent(_rnn_step, 1, ["Tanh"], 1),
}
