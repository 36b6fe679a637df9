"""LSTM, GRU and RNN: MXNet's fused operator where it computes the same, else one step after the other.

The fused operator has cuDNN's gates and one flat parameter, which is concatenated in the graph so that the
weights stay parameters under their own names. It has no peepholes, clipping or other activations, and its GRU
resets after the product (`linear_before_reset`).
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial

import numpy as np

from attar.conversion import NodeView
from attar_mxnet.symbol_json import Entry
from attar_mxnet.writing.cells import CELLS, Cell, activation_of
from attar_mxnet.writing.context import Array, Lowering, WriteContext
from attar_mxnet.writing.layers import floats_only
from attar_mxnet.writing.shaping import known_shape

_GATES = {"LSTM": (0, 2, 3, 1), "GRU": (1, 0, 2), "RNN": (0,)}  # MXNet's order, as places in ONNX's
_DEFAULT = {"LSTM": ("Sigmoid", "Tanh", "Tanh"), "GRU": ("Sigmoid", "Tanh"), "RNN": ("Tanh",)}
_MOST_STEPS = 256


@dataclass(frozen=True)
class Sizes:
    """Of a recurrent node. `steps` is None where the sequence's length is not fixed."""

    steps: int | None
    hidden: int
    directions: int
    rank_first: bool  # layout 1: the batch comes first


def recurrent(kind: str, ctx: WriteContext, view: NodeView) -> tuple[Entry | None, ...]:
    floats_only(view)
    direction = view.attr("direction", "forward")
    batch_first = bool(view.attr("layout", 0))
    x = ctx.get(view)
    shape = known_shape(view)
    if batch_first:
        x, shape = ctx.transpose(x, (1, 0, 2)), (shape[1], shape[0], shape[2])
    hidden = known_shape(view, 2)[-1]
    if not isinstance(hidden, int):
        raise view.refuse("the size of the state is not fixed")
    steps = shape[0] if isinstance(shape[0], int) else None
    sizes = Sizes(steps, hidden, 2 if direction == "bidirectional" else 1, batch_first)
    lengths = _lengths(view, sizes)
    states = [_state(ctx, view, x, sizes, i) for i in ((5, 6) if kind == "LSTM" else (5,))]
    if lengths is None and _fusable(kind, ctx, view):
        outputs = _fused(kind, ctx, view, x, states, sizes=sizes)
    else:
        outputs = _unrolled(kind, ctx, view, x, states, sizes=sizes, lengths=lengths)
    if batch_first:
        y, *last = outputs
        return (ctx.transpose(y, (2, 0, 1, 3)), *(ctx.transpose(s, (1, 0, 2)) for s in last))
    return tuple(outputs)


def _lengths(view: NodeView, sizes: Sizes) -> int | None:
    """The input that holds the lengths of the sequences, if they differ from the number of steps."""
    if not view.has(4):
        return None
    given = view.const(4)
    return None if given is not None and sizes.steps is not None and (given == sizes.steps).all() else 4


def _state(ctx: WriteContext, view: NodeView, x: Entry, sizes: Sizes, index: int) -> Entry:
    """An initial state, (directions, batch, hidden); zeros of the batch's size if none is given."""
    if view.has(index):
        given = ctx.get(view, index)
        return ctx.transpose(given, (1, 0, 2)) if sizes.rank_first else given
    one = ctx.slice_axis(ctx.slice_axis(x, 0, 0, 1), 2, 0, 1)
    return ctx.op(
        "broadcast_axis", ctx.op("zeros_like", one), axis=(0, 2), size=(sizes.directions, sizes.hidden)
    )


def _activations(kind: str, view: NodeView) -> list[str]:
    count = 2 if view.attr("direction", "forward") == "bidirectional" else 1
    given = view.node.attributes.get("activations")
    return [str(a) for a in given.value] if given is not None else list(_DEFAULT[kind]) * count


def _fusable(kind: str, ctx: WriteContext, view: NodeView) -> bool:
    names = [a.lower() for a in _activations(kind, view)]
    plain = (
        set(names) in ({"tanh"}, {"relu"})
        if kind == "RNN"
        else names == [a.lower() for a in list(_DEFAULT[kind]) * (len(names) // len(_DEFAULT[kind]))]
    )
    constant = all(ctx.array(view, i) is not None for i in (1, 2)) and (
        not view.has(3) or ctx.array(view, 3) is not None
    )
    odd = view.attr("clip", 0.0) or view.attr("input_forget", 0) or (kind == "LSTM" and view.has(7))
    return plain and constant and not odd and (kind != "GRU" or bool(view.attr("linear_before_reset", 0)))


def _reordered(kind: str, parts: int, array: Array) -> Array:
    """Axis 1, made of `parts` runs of gates, in MXNet's order of gates."""
    order = _GATES[kind]
    split = array.reshape(array.shape[0], parts, len(order), -1, *array.shape[2:])
    return np.ascontiguousarray(split[:, :, list(order)]).reshape(array.shape)


def _fused(
    kind: str, ctx: WriteContext, view: NodeView, x: Entry, states: list[Entry], *, sizes: Sizes
) -> list[Entry]:
    both = sizes.directions == 2
    backward = view.attr("direction", "forward") == "reverse"
    weights = [ctx.weight(view, i, partial(_reordered, kind, 1), f"{kind} gates") for i in (1, 2)]
    gates = len(_GATES[kind])
    if view.has(3):
        bias = ctx.weight(view, 3, partial(_reordered, kind, 2), f"{kind} bias gates")
        bias = ctx.reshape(bias, (-1,))
    else:
        count = sizes.directions * 2 * gates * sizes.hidden
        bias = ctx.op("_full", shape=(count,), dtype=ctx.dtype(view).name, value=0.0)
    pieces = []
    for place in range(sizes.directions):
        for weight in weights:
            own = ctx.slice_axis(weight, 0, place, place + 1) if both else weight
            pieces.append(ctx.reshape(own, (-1,)))
    packed = ctx.op("Concat", *pieces, bias, num_args=len(pieces) + 1, dim=0)
    mode = kind.lower() if kind != "RNN" else f"rnn_{_activations(kind, view)[0].lower()}"
    source = ctx.op("reverse", x, axis=(0,)) if backward else x
    made = ctx.op(
        "RNN",
        source,
        packed,
        *states,
        state_size=sizes.hidden,
        num_layers=1,
        mode=mode,
        bidirectional=both,
        state_outputs=True,
    )
    y = ctx.op("reverse", made, axis=(0,)) if backward else made
    y = ctx.reshape(y, (0, 0, -4, sizes.directions, -1)) if both else ctx.op("expand_dims", y, axis=2)
    return [ctx.transpose(y, (0, 2, 1, 3)), *(Entry(made.node, 1 + i) for i in range(len(states)))]


def _unrolled(
    kind: str,
    ctx: WriteContext,
    view: NodeView,
    x: Entry,
    states: list[Entry],
    *,
    sizes: Sizes,
    lengths: int | None,
) -> list[Entry]:
    if sizes.steps is None or sizes.steps > _MOST_STEPS:
        raise view.refuse(
            "MXNet's recurrent operator does not have its options, and the number of steps is not fixed or "
            f"above {_MOST_STEPS}"
        )
    direction = view.attr("direction", "forward")
    names, per = _activations(kind, view), len(_DEFAULT[kind])
    ends: list[list[Entry]] = []
    sequences: list[Entry] = []
    limit = None if lengths is None else ctx.cast(ctx.get(view, lengths), np.float32)
    for place in range(sizes.directions):
        backward = direction == "reverse" or place == 1
        functions = [
            activation_of(view, n, place * per + i) for i, n in enumerate(names[place * per :][:per])
        ]
        cell = CELLS[kind](ctx, view, place, sizes.hidden, functions)
        source = _flipped(ctx, x, limit) if backward else x
        own = [ctx.op("squeeze", ctx.slice_axis(s, 0, place, place + 1), axis=(0,)) for s in states]
        made, last = _steps(ctx, cell, source, own, steps=sizes.steps, limit=limit)
        sequences.append(_flipped(ctx, made, limit) if backward else made)
        ends.append(last)
    y = ctx.op("stack", *sequences, num_args=len(sequences), axis=1)
    return [y, *(ctx.op("stack", *s, num_args=len(s), axis=0) for s in zip(*ends, strict=True))]


def _flipped(ctx: WriteContext, x: Entry, limit: Entry | None) -> Entry:
    if limit is None:
        return ctx.op("reverse", x, axis=(0,))
    return ctx.op("SequenceReverse", x, limit, use_sequence_length=True)


def _steps(
    ctx: WriteContext, cell: Cell, x: Entry, now: list[Entry], *, steps: int, limit: Entry | None
) -> tuple[Entry, list[Entry]]:
    """The outputs of all steps, stacked, and the last states. Beyond a sequence's length the outputs are 0
    and the states stay."""
    driven = cell.drive(x)
    outputs = []
    for step in range(steps):
        drive = ctx.op("squeeze", ctx.slice_axis(driven, 0, step, step + 1), axis=(0,))
        fresh = cell.step(drive, now)
        shown = fresh[0]
        if limit is not None:
            alive = ctx.op("expand_dims", ctx.scalar("_greater_scalar", limit, step), axis=1)
            alive = ctx.op("broadcast_like", alive, shown)
            fresh = [ctx.op("where", alive, f, n) for f, n in zip(fresh, now, strict=True)]
            shown = ctx.op("where", alive, shown, ctx.op("zeros_like", shown))
        outputs.append(shown)
        now = fresh
    return ctx.op("stack", *outputs, num_args=steps, axis=0), now


TABLE: dict[str, Lowering] = {kind: partial(recurrent, kind) for kind in ("LSTM", "GRU", "RNN")}
