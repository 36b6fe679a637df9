"""The fused operator `RNN`: stacked and bidirectional LSTM, GRU and plain RNN, all weights in one vector.

The vector holds, for each layer and in it for each direction, the weights on the input and the weights on
the state; then, in the same order, the two biases (src/operator/rnn-inl.h). Gates are ordered input, forget,
cell, output (LSTM) and reset, update, new (GRU); ONNX has input, output, forget, cell and update, reset, new.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import onnx_ir as ir

from attar_mxnet.reading.builder import Array, Builder
from attar_mxnet.reading.operation import Operation
from attar_mxnet.reading.table import Table

table = Table()


@dataclass(frozen=True)
class _Kind:
    op: str
    gates: tuple[int, ...]  # ONNX's gate number i is MXNet's gate number gates[i]
    activation: str = ""


_KINDS = {
    "lstm": _Kind("LSTM", (0, 3, 1, 2)),
    "gru": _Kind("GRU", (1, 0, 2)),
    "rnn_tanh": _Kind("RNN", (0,), "Tanh"),
    "rnn_relu": _Kind("RNN", (0,), "Relu"),
}


@table("RNN", "_npx_rnn")
def rnn(ctx: Builder, op: Operation) -> Sequence[ir.Value]:
    """Data is [sequence, batch, features]; states are [layers * directions, batch, size]."""
    mode = op.text("mode")
    if mode not in _KINDS:
        raise op.refuse(f"mode {mode}")
    for option in ("projection_size", "lstm_state_clip_min", "lstm_state_clip_max"):
        if op.has(option):
            raise op.refuse(option)
    if op.flag("use_sequence_length"):
        raise op.refuse("use_sequence_length")
    kind, size, layers = _KINDS[mode], op.whole("state_size"), op.whole("num_layers")
    directions = 2 if op.flag("bidirectional") else 1
    x = op.input(0)
    features = ctx.shape(x)[2]
    packed = ctx.folded(op.input(1))
    if packed is None or not isinstance(features, int):
        raise op.refuse("weights that are computed" if packed is None else "an unknown number of features")
    weights = _unpacked(op, packed, kind, features=features, size=size, layers=layers, directions=directions)
    states = [op.input(2 + i) for i in range(2 if mode == "lstm" else 1)]
    ends: list[list[ir.Value]] = [[] for _ in states]
    for layer, (w, r, b) in enumerate(weights):
        x, last = _layer(
            ctx, op, kind, x, weights=(w, r, b), states=states, layer=layer, directions=directions, size=size
        )
        for place, end in zip(ends, last, strict=True):
            place.append(end)
    if not op.flag("state_outputs"):
        return [x]
    return [x, *(e[0] if len(e) == 1 else ctx.emit("Concat", *e, axis=0) for e in ends)]


def _layer(
    ctx: Builder,
    op: Operation,
    kind: _Kind,
    x: ir.Value,
    *,
    weights: tuple[Array, Array, Array],
    states: Sequence[ir.Value],
    layer: int,
    directions: int,
    size: int,
) -> tuple[ir.Value, Sequence[ir.Value]]:
    starts: list[ir.Value | None] = []
    for state in states:
        if state.name in ctx.zeros:
            starts.append(None)
            continue
        first = layer * directions
        whole = ctx.shape(state)[0] == directions
        starts.append(state if whole else ctx.emit("Slice", state, [first], [first + directions], [0]))
    if all(s is None for s in starts):
        starts = []
    w, r, b = (
        ctx.weight(f"{op.name}_l{layer}_{name}", array)
        for name, array in zip(("i2h_weight", "h2h_weight", "bias"), weights, strict=True)
    )
    if len(starts) == 2 and None in starts:  # one of the two given: the other must be spelt out
        length, batch, _ = ctx.shape(x)
        zero = ctx.emit("Expand", ctx.scalar(0, x), ctx.sizes([directions, batch, size]))
        starts = [zero if s is None else s for s in starts]
    settings: dict[str, Any] = {"hidden_size": size}
    if directions == 2:
        settings["direction"] = "bidirectional"
    if kind.op == "GRU":
        settings["linear_before_reset"] = 1
    if kind.activation:
        settings["activations"] = [kind.activation] * directions
    length, batch, _ = ctx.shape(x)
    ending = [directions, batch, size]
    y, *last = ctx.emit_many(
        kind.op,
        x,
        w,
        r,
        b,
        *([None, *starts] if starts else []),
        outputs=1 + len(states),
        shapes=[[length, directions, batch, size], *([ending] * len(states))],
        **settings,
    )
    if directions == 1:
        return ctx.emit("Squeeze", y, [1]), last
    y = ctx.emit("Transpose", y, perm=[0, 2, 1, 3])
    return ctx.reshape(y, [length, batch, 2 * size]), last


def _unpacked(
    op: Operation, packed: Array, kind: _Kind, *, features: int, size: int, layers: int, directions: int
) -> list[tuple[Array, Array, Array]]:
    """W, R and B of ONNX for each layer."""
    gates = len(kind.gates)
    inputs = [features] + [directions * size] * (layers - 1)
    wanted = sum(directions * gates * size * (n + size + 2) for n in inputs)
    if packed.size != wanted:
        raise op.refuse(f"{packed.size} weights where {wanted} are needed")
    vector, at = packed.reshape(-1), 0

    def take(*shape: int) -> Array:
        nonlocal at
        part = vector[at : at + int(np.prod(shape))].reshape(shape)
        at += part.size
        return part[list(kind.gates)].reshape(gates * size, *shape[2:])

    matrices = [[(take(gates, size, n), take(gates, size, size)) for _ in range(directions)] for n in inputs]
    biases = [
        [np.concatenate([take(gates, size), take(gates, size)]) for _ in range(directions)] for _ in inputs
    ]
    return [
        (np.stack([w for w, _ in both]), np.stack([r for _, r in both]), np.stack(bias))
        for both, bias in zip(matrices, biases, strict=True)
    ]
