"""Recurrent layers: torch's own where they compute the same, a loop over the cell elsewhere."""

from __future__ import annotations

import operator
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

from attar.conversion import NodeView
from attar_torch.writing.context import Context
from attar_torch.writing.dtypes import torch_dtype
from attar_torch.writing.functions import recurrent as functions
from attar_torch.writing.ops.conv import text
from attar_torch.writing.table import Table

TABLE = Table()

_GATES = {"LSTM": 4, "GRU": 3, "RNN": 1}
_ORDER = {"LSTM": [0, 2, 3, 1], "GRU": [1, 0, 2], "RNN": [0]}
"""ONNX's gates (iofc, zrh) in torch's order (ifgo, rzn)."""
_DEFAULT = {"LSTM": ["Sigmoid", "Tanh", "Tanh"], "GRU": ["Sigmoid", "Tanh"], "RNN": ["Tanh"]}
_ALPHA = {"LeakyRelu": 0.01, "ThresholdedRelu": 1.0, "HardSigmoid": 0.2, "Elu": 1.0, "Affine": 1.0}
_BETA = {"HardSigmoid": 0.5, "Affine": 0.0}
_TAKES_ALPHA = (*_ALPHA, "ScaledTanh")
_TAKES_BETA = (*_BETA, "ScaledTanh")


@TABLE.op("LSTM", "GRU", "RNN")
def recurrent(ctx: Context, view: NodeView) -> Any:
    direction = text(view.attr("direction") or "forward")
    count = 2 if direction == "bidirectional" else 1
    activations = [text(a).title() for a in (view.attr("activations") or _DEFAULT[view.op] * count)]
    layout = view.attr("layout", 0)
    x = ctx.tensor(view)
    initial = [ctx.optional(view, k) for k in ((5, 6) if view.op == "LSTM" else (5,))]
    if layout:
        x = ctx.call(torch.transpose, x, 0, 1)
        initial = [h if h is None else ctx.call(torch.transpose, h, 0, 1) for h in initial]
    if _exact(view, activations, count):
        made = _native(ctx, view, x, initial, direction, activations[0])
    else:
        made = _loop(ctx, view, x, initial, direction, activations)
    if layout:
        axes = [(0, 1, 2, 3), (0, 1, 2), (0, 1, 2)]
        orders = [(2, 0, 1, 3), (1, 0, 2), (1, 0, 2)]
        made = [
            ctx.call(torch.permute, m, orders[k]) if view.wants(k) else ...
            for k, m in enumerate(made[: len(axes)])
        ]
    return tuple(made)


def _exact(view: NodeView, activations: list[str], count: int) -> bool:
    """Whether torch's layer computes it."""
    weights = [view.const(1), view.const(2)]
    if any(w is None for w in weights) or (view.has(3) and view.const(3) is None):
        return False
    if "clip" in view.node.attributes or _lengths(view) or view.has(7) or view.attr("input_forget", 0):
        return False
    if view.op == "GRU" and not view.attr("linear_before_reset", 0):
        return False
    if view.op == "LSTM" and view.has(5) != view.has(6):
        return False
    if view.op == "RNN":
        return activations in (["Tanh"] * count, ["Relu"] * count)
    return activations == _DEFAULT[view.op] * count


def _lengths(view: NodeView) -> bool:
    """Whether sequences have lengths of their own."""
    if not view.has(4):
        return False
    given, shape = view.const(4), view.shape(0)
    steps = None if shape is None else shape[1 if view.attr("layout", 0) else 0]
    return given is None or not isinstance(steps, int) or bool((given != steps).any())


@dataclass(frozen=True)
class Gates:
    """Takes the rows of one direction out of ONNX's weights, with the gates in torch's order.

    Attributes:
        first: gate to begin with, for biases, which hold those of the input and of the state.
    """

    op: str
    direction: int
    first: int = 0

    def __call__(self, array: Any) -> Any:
        count = _GATES[self.op]
        own = array[self.direction]
        parts = np.split(own, 2 * count if own.ndim == 1 else count)[self.first : self.first + count]
        return np.ascontiguousarray(np.concatenate([parts[k] for k in _ORDER[self.op]]))


def _native(  # noqa: PLR0917
    ctx: Context, view: NodeView, x: Any, initial: list[Any], direction: str, activation: str
) -> list[Any]:
    w, r = view.const(1), view.const(2)
    b = view.const(3) if view.has(3) else None
    assert w is not None
    assert r is not None
    gates, directions = _GATES[view.op], w.shape[0]
    hidden = r.shape[2]
    options: dict[str, Any] = {"bias": b is not None, "bidirectional": directions == 2}
    if view.op == "RNN":
        options["nonlinearity"] = activation.lower()
    make = {"LSTM": torch.nn.LSTM, "GRU": torch.nn.GRU, "RNN": torch.nn.RNN}[view.op]
    module = make(w.shape[2], hidden, device="meta", dtype=torch_dtype(view.outputs[0].dtype), **options)
    weights: dict[str, Any] = {}
    for k in range(directions):
        end = "_l0_reverse" if k else "_l0"
        weights[f"weight_ih{end}"] = (view.input(1), Gates(view.op, k))
        weights[f"weight_hh{end}"] = (view.input(2), Gates(view.op, k))
        if b is not None:
            weights[f"bias_ih{end}"] = (view.input(3), Gates(view.op, k))
            weights[f"bias_hh{end}"] = (view.input(3), Gates(view.op, k, gates))
    if direction == "reverse":
        x = ctx.call(torch.flip, x, [0])
    state = [h for h in initial if h is not None]
    args = (x,) if not state else (x, tuple(state) if view.op == "LSTM" else state[0])
    made = ctx.layer(view, module, *args, weights=weights)
    outputs: list[Any] = [..., ..., ...][: len(view.outputs)]
    if view.wants(0):
        y = ctx.call(operator.getitem, made, 0)
        if direction == "reverse":
            y = ctx.call(torch.flip, y, [0])
        if directions == 2:
            outputs[0] = ctx.call(torch.transpose, ctx.call(torch.unflatten, y, 2, (2, hidden)), 1, 2)
        else:
            outputs[0] = ctx.call(torch.unsqueeze, y, 1)
    last = ctx.call(operator.getitem, made, 1)
    if view.op != "LSTM":
        if view.wants(1):
            outputs[1] = last
        return outputs
    for k in (1, 2):
        if view.wants(k):
            outputs[k] = ctx.call(operator.getitem, last, k - 1)
    return outputs


def _loop(  # noqa: PLR0917
    ctx: Context, view: NodeView, x: Any, initial: list[Any], direction: str, activations: list[str]
) -> list[Any]:
    alphas, betas = list(view.attr("activation_alpha") or []), list(view.attr("activation_beta") or [])
    named = []
    for name in activations:
        proper = _proper(view, name)
        takes_alpha, takes_beta = proper in _TAKES_ALPHA, proper in _TAKES_BETA
        alpha = (alphas.pop(0) if alphas else _ALPHA.get(proper)) if takes_alpha else 0.0
        beta = (betas.pop(0) if betas else _BETA.get(proper)) if takes_beta else 0.0
        if alpha is None or beta is None:
            raise view.refuse(f"the activation {proper} needs its alpha and beta")
        named.append((proper, alpha, beta))
    if view.op == "LSTM" and "clip" in view.node.attributes:
        raise view.refuse("whether clip bounds the cell too is not agreed upon")
    clip = view.attr("clip") if "clip" in view.node.attributes else None
    made = ctx.call(
        functions.recurrent, x, ctx.parameter(view, 1), ctx.parameter(view, 2),
        ctx.parameter(view, 3) if view.has(3) else None, ctx.tensor(view, 4) if _lengths(view) else None,
        initial[0], initial[1] if view.op == "LSTM" else None,
        ctx.parameter(view, 7) if view.op == "LSTM" and view.has(7) else None,
        kind=view.op, direction=direction, activations=named, clip=clip,
        flag=bool(view.attr("linear_before_reset" if view.op == "GRU" else "input_forget", 0)),
    )  # fmt: skip
    return [ctx.call(operator.getitem, made, k) for k in range(len(view.outputs))]


def _proper(view: NodeView, name: str) -> str:
    for known in functions.ACTIVATIONS:
        if known.lower() == name.lower():
            return known
    raise view.refuse(f"the activation {name} is unknown")
