"""ONNX RNN, GRU and LSTM as a loop over the steps of a sequence."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch.nn import functional

from attar_torch.writing.leaf import leaf

ACTIVATIONS: dict[str, Callable[[torch.Tensor, float, float], torch.Tensor]] = {
    "Relu": lambda x, a, b: torch.relu(x),
    "Tanh": lambda x, a, b: torch.tanh(x),
    "Sigmoid": lambda x, a, b: torch.sigmoid(x),
    "Affine": lambda x, a, b: a * x + b,
    "LeakyRelu": lambda x, a, b: functional.leaky_relu(x, a),
    "ThresholdedRelu": lambda x, a, b: functional.threshold(x, a, 0.0),
    "ScaledTanh": lambda x, a, b: a * torch.tanh(b * x),
    "HardSigmoid": lambda x, a, b: torch.clamp(a * x + b, 0.0, 1.0),
    "Elu": lambda x, a, b: functional.elu(x, a),
    "Softsign": lambda x, a, b: functional.softsign(x),
    "Softplus": lambda x, a, b: functional.softplus(x),
}
"""The activations of ONNX's recurrent operators: f(x, alpha, beta)."""

_GATES = {"LSTM": 4, "GRU": 3, "RNN": 1}


@leaf
def recurrent(  # noqa: PLR0917
    x: torch.Tensor, w: torch.Tensor, r: torch.Tensor, b: torch.Tensor | None, lengths: torch.Tensor | None,
    h0: torch.Tensor | None, c0: torch.Tensor | None, p: torch.Tensor | None, kind: str, direction: str,
    activations: list[tuple[str, float, float]], clip: float | None, flag: bool,
) -> tuple[torch.Tensor, ...]:  # fmt: skip
    """All steps of all directions.

    Args:
        x: (steps, batch, features).
        w, r, b, p: ONNX's weights, recurrent weights, biases and peepholes, each with the directions first.
        lengths: of every sequence of the batch.
        activations: (name, alpha, beta), those of the first direction first.
        clip: bound of what goes into an activation.
        flag: linear_before_reset of GRU, input_forget of LSTM.

    Returns:
        (steps, directions, batch, hidden), the last state, and the last cell of an LSTM.
    """
    steps, batch, hidden = x.size(0), x.size(1), r.size(2)
    each = len(activations) // w.size(0)
    sequences, states, cells = [], [], []
    for k in range(w.size(0)):
        backward = direction == "reverse" or k == 1
        functions = [_bound(a, clip) for a in activations[k * each : (k + 1) * each]]
        h = x.new_zeros(batch, hidden) if h0 is None else h0[k]
        c = x.new_zeros(batch, hidden) if c0 is None else c0[k]
        half = _GATES[kind] * hidden
        wb = x.new_zeros(half) if b is None else b[k, :half]
        rb = x.new_zeros(half) if b is None else b[k, half:]
        outputs: list[torch.Tensor] = [h] * steps
        for t in range(steps - 1, -1, -1) if backward else range(steps):
            before = (h, c)
            h, c = _step(kind, x[t], h, c, (w[k], r[k], wb, rb), functions, flag, None if p is None else p[k])
            outputs[t] = h
            if lengths is not None:
                live = (lengths > t).unsqueeze(1)
                h, c = torch.where(live, h, before[0]), torch.where(live, c, before[1])
                outputs[t] = torch.where(live, outputs[t], torch.zeros_like(h))
        sequences.append(torch.stack(outputs))
        states.append(h)
        cells.append(c)
    return torch.stack(sequences, 1), torch.stack(states), torch.stack(cells)


def _bound(
    activation: tuple[str, float, float], clip: float | None
) -> Callable[[torch.Tensor], torch.Tensor]:
    name, alpha, beta = activation

    def apply(x: torch.Tensor) -> torch.Tensor:
        return ACTIVATIONS[name](x if clip is None else x.clamp(-clip, clip), alpha, beta)

    return apply


def _step(  # noqa: PLR0917
    kind: str, x: torch.Tensor, h: torch.Tensor, c: torch.Tensor, weights: tuple[torch.Tensor, ...],
    f: list[Any], flag: bool, p: torch.Tensor | None,
) -> tuple[torch.Tensor, torch.Tensor]:  # fmt: skip
    w, r, wb, rb = weights
    if kind == "RNN":
        return f[0](functional.linear(x, w, wb) + functional.linear(h, r, rb)), c
    if kind == "GRU":
        xz, xr, xh = functional.linear(x, w, wb).chunk(3, 1)
        rz, rr, rh = r.chunk(3, 0)
        bz, br, bh = rb.chunk(3, 0)
        z = f[0](xz + functional.linear(h, rz, bz))
        reset = f[0](xr + functional.linear(h, rr, br))
        inner = reset * functional.linear(h, rh, bh) if flag else functional.linear(reset * h, rh, bh)
        new = f[1](xh + inner)
        return (1 - z) * new + z * h, c
    i, o, forget, g = (functional.linear(x, w, wb) + functional.linear(h, r, rb)).chunk(4, 1)
    pi, po, pf = (0.0, 0.0, 0.0) if p is None else p.chunk(3, 0)
    i = f[0](i + pi * c)
    forget = 1 - i if flag else f[0](forget + pf * c)
    c = forget * c + i * f[1](g)
    return f[0](o + po * c) * f[2](c), c
