"""Borders around values."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from attar.conversion import NodeView
from attar_mxnet.symbol_json import Entry
from attar_mxnet.writing.context import Lowering, WriteContext
from attar_mxnet.writing.shaping import known_shape

_HUGE = 1 << 30


def padded(
    ctx: WriteContext,
    x: Entry,
    before: Sequence[int],
    after: Sequence[int],
    value: float = 0.0,
    *,
    floats: bool = True,
) -> Entry:
    """`x` with `value` around it; numbers for every axis. MXNet's own `Pad` takes images of floats only."""
    if not any(before) and not any(after):
        return x
    if floats and len(before) in (4, 5) and not any((*before[:2], *after[:2])):
        flat = tuple(n for pair in zip(before, after, strict=True) for n in pair)
        return ctx.op("Pad", x, mode="constant", pad_width=flat, constant_value=value)
    return _bordered(ctx, x, before, after, mode="constant", constant_value=value)


def _bordered(ctx: WriteContext, x: Entry, before: Sequence[int], after: Sequence[int], **how: Any) -> Entry:
    """`_npi_pad`, which wants two axes at least."""
    widths = tuple(zip(before, after, strict=True))
    if len(widths) > 1:
        return ctx.op("_npi_pad", x, pad_width=widths, **how)
    row = ctx.op("_npi_pad", ctx.op("expand_dims", x, axis=0), pad_width=((0, 0), *widths), **how)
    return ctx.op("squeeze", row, axis=(0,))


def pad(ctx: WriteContext, view: NodeView) -> Entry:
    """Constant, edge, reflected and wrapped borders; negative ones cut."""
    shape = known_shape(view)
    rank = len(shape)
    given = [int(p) for p in np.asarray(view.option(1, "pads")).reshape(-1)]
    axes = view.option(3, "axes", None)
    chosen = list(range(rank)) if axes is None else [int(a) % rank for a in axes]
    before, after = [0] * rank, [0] * rank
    for place, axis in enumerate(chosen):
        before[axis], after[axis] = given[place], given[place + len(chosen)]
    mode, dtype = view.attr("mode", "constant"), ctx.dtype(view)
    if dtype.kind == "b":
        raise view.refuse("MXNet does not pad bool")
    x = ctx.get(view)
    cut = [-min(b, 0) for b in before], [min(a, 0) for a in after]
    if any(isinstance(n, int) and b - a >= n for n, b, a in zip(shape, *cut, strict=True)):
        raise view.refuse("arrays without elements do not exist in MXNet 1")
    if any(cut[0]) or any(cut[1]):
        x = ctx.op("slice", x, begin=tuple(cut[0]), end=tuple(a or None for a in cut[1]))
        before, after = [max(b, 0) for b in before], [max(a, 0) for a in after]
    if mode == "constant":
        value = view.option(2, "value", 0)
        number = float(np.asarray(value).reshape(()))
        if abs(number) >= _HUGE and dtype.kind != "f":
            raise view.refuse(f"MXNet pads with a double, which does not hold {value}")
        if not any(before + after):
            return ctx.op("identity", x)
        return padded(ctx, x, before, after, number, floats=dtype.kind == "f")
    if mode == "wrap":
        return _wrapped(ctx, view, x, before, after)
    for axis, size in enumerate(shape):
        most = max(before[axis], after[axis])
        if mode == "reflect" and most and not (isinstance(size, int) and most < size):
            raise view.refuse(f"it reflects more than axis {axis} is known to hold")
    return _bordered(ctx, x, before, after, mode=mode)


def _wrapped(ctx: WriteContext, view: NodeView, x: Entry, before: list[int], after: list[int]) -> Entry:
    for axis, size in enumerate(known_shape(view)):
        if not before[axis] and not after[axis]:
            continue
        if not isinstance(size, int) or max(before[axis], after[axis]) > size:
            raise view.refuse(f"it wraps more than axis {axis} is known to hold")
        parts = [x]
        if before[axis]:
            parts.insert(0, ctx.slice_axis(x, axis, size - before[axis], size))
        if after[axis]:
            parts.append(ctx.slice_axis(x, axis, 0, after[axis]))
        x = ctx.op("Concat", *parts, num_args=len(parts), dim=axis)
    return x


TABLE: dict[str, Lowering] = {"Pad": pad}
