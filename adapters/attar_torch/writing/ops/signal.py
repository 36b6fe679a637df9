"""Fourier transforms and windows."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch

from attar.conversion import NodeView
from attar_torch.writing.context import Context
from attar_torch.writing.functions import signal as functions
from attar_torch.writing.table import Table

TABLE = Table()


@TABLE.op("DFT")
def dft(ctx: Context, view: NodeView) -> Any:
    rank = view.need_rank(0)
    axis = view.attr("axis", 1) if view.opset < 20 else -2
    if view.has(2):
        axis = int(view.need_const(2, "the axis").reshape(-1)[0])
    length = int(view.need_const(1, "the length").reshape(-1)[0]) if view.has(1) else None
    shape = view.shape(0)
    parts = shape[-1] if shape else None
    if parts not in (1, 2):
        raise view.refuse("whether its input is complex is unknown")
    onesided, inverse = bool(view.attr("onesided", 0)), bool(view.attr("inverse", 0))
    if onesided and (parts == 2) != inverse:
        raise view.refuse("a one-sided transform of complex numbers, or back from real ones")
    return ctx.call(functions.dft, ctx.tensor(view), axis % rank, length, onesided, inverse)


@TABLE.op("STFT")
def stft(ctx: Context, view: NodeView) -> Any:
    step = int(view.need_const(1, "the step").reshape(-1)[0])
    window = ctx.optional(view, 2)
    if view.has(3):
        length = int(view.need_const(3, "the length of a frame").reshape(-1)[0])
    else:
        shape = view.shape(2)
        if not shape or not isinstance(shape[0], int):
            raise view.refuse("the length of its frames is unknown")
        length = shape[0]
    return ctx.call(functions.stft, ctx.tensor(view), step, window, length, bool(view.attr("onesided", 1)))


def _window(terms: tuple[float, ...]) -> Any:
    def lower(ctx: Context, view: NodeView) -> Any:
        size = int(view.need_const(0, "its size").reshape(-1)[0])
        period = size if view.attr("periodic", 1) else size - 1
        phase = 2 * np.pi * np.arange(size) / max(period, 1)
        made = sum(t * np.cos(k * phase) * (-1) ** k for k, t in enumerate(terms))
        kind = ctx.dtype(view.outputs[0])
        return ctx.own(view, "window", torch.tensor(np.asarray(made)).to(kind))

    return lower


TABLE.op("HannWindow")(_window((0.5, 0.5)))
TABLE.op("HammingWindow")(_window((25 / 46, 21 / 46)))
TABLE.op("BlackmanWindow")(_window((0.42, 0.5, 0.08)))
