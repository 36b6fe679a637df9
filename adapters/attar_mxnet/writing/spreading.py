"""Operators that repeat elements to fill a shape."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from attar.conversion import NodeView
from attar_mxnet.symbol_json import Entry
from attar_mxnet.writing.context import Lowering, WriteContext
from attar_mxnet.writing.shaping import known_shape


def tile(ctx: WriteContext, view: NodeView) -> Entry:
    repeats = tuple(int(r) for r in view.need_const(1, "the number of repetitions"))
    if any(r < 1 for r in repeats):
        raise view.refuse("arrays without elements do not exist in MXNet 1")
    x, rank = ctx.get(view), ctx.rank(view)
    if all(r == 1 for r in repeats):
        return ctx.op("identity", x)
    return ctx.through(x, view.dtype(), lambda e: _tiled(ctx, e, rank, repeats))


def _tiled(ctx: WriteContext, x: Entry, rank: int, repeats: Sequence[int]) -> Entry:
    """One axis after the other, since MXNet's `tile` doubles the number of axes, of which it knows few."""
    for axis, count in enumerate(repeats):
        if count > 1:
            x = ctx.op("broadcast_axis", ctx.op("expand_dims", x, axis=axis), axis=(axis,), size=(count,))
            x = ctx.reshape(x, [*[0] * axis, -3, -2] if axis < rank - 1 else [*[0] * axis, -3])
    return x


def expand(ctx: WriteContext, view: NodeView) -> Entry:
    shape, wanted, target = known_shape(view), view.out_shape(), view.const(1)
    if wanted is None:
        raise view.refuse("the shape is computed while the model runs")
    rank = max(len(wanted), 1)
    lined = [1] * (rank - len(shape)) + list(shape)
    asked = None if target is None else [1] * (rank - target.size) + [int(t) for t in target]
    axes, sizes, alike = [], [], []
    for axis, (have, want) in enumerate(zip(lined, wanted, strict=True)):
        if (asked is not None and asked[axis] == 1) or (have == want and have is not None):
            continue
        if have == 1 and isinstance(want, int):
            axes.append(axis)
            sizes.append(want)
        elif have == 1 and ctx.dimension(want) is not None:
            alike.append(axis)
        elif not (isinstance(have, int) and have != 1):
            raise view.refuse(f"whether axis {axis} is repeated is known only when the model runs")
    x = ctx.lift(ctx.get(view), max(len(shape), 1), rank)
    if not axes and not alike:
        return ctx.op("identity", x)
    return ctx.through(
        x, view.dtype(), lambda e: _expanded(ctx, view, e, (axes, sizes), alike, wanted=wanted)
    )


def _expanded(
    ctx: WriteContext,
    view: NodeView,
    x: Entry,
    fixed: tuple[list[int], list[int]],
    alike: list[int],
    *,
    wanted: tuple[Any, ...],
) -> Entry:
    """Repeated to fixed sizes, and along the axes `alike` to those of graph inputs."""
    if fixed[0]:
        x = ctx.op("broadcast_axis", x, axis=tuple(fixed[0]), size=tuple(fixed[1]))
    for axis in alike:
        source, place = ctx.dimension(wanted[axis]) or (x, axis)
        dtype = np.uint8 if view.dtype().kind == "b" else ctx.dtype(view)
        x = ctx.op("broadcast_like", x, ctx.cast(source, dtype), lhs_axes=(axis,), rhs_axes=(place,))
    return x


def constant_of_shape(ctx: WriteContext, view: NodeView) -> tuple[Entry | None]:
    """A constant where the shape is one: it may be a weight. Else a number spread to graph inputs' sizes."""
    value = np.asarray(view.attr("value", np.zeros(1, np.float32))).reshape(1)
    shape, wanted = view.const(0), view.out_shape()
    if shape is not None:
        if 0 in shape:
            raise view.refuse("arrays without elements do not exist in MXNet 1")
        ctx.fold(view.outputs[0], np.broadcast_to(value.reshape([1] * shape.size), shape.tolist()), None)
        return (None,)
    if wanted is None:
        raise view.refuse("the shape is computed while the model runs")
    alike = [i for i, d in enumerate(wanted) if not isinstance(d, int)]
    if any(ctx.dimension(wanted[i]) is None for i in alike):
        raise view.refuse("the shape is computed while the model runs")
    sizes = [d if isinstance(d, int) else 1 for d in wanted]
    flags = value.dtype.kind == "b"
    value = value.astype(np.uint8) if flags else value
    x = ctx.constant(np.broadcast_to(value.reshape([1] * len(sizes)), sizes), view=view)
    for axis in alike:
        source, place = ctx.dimension(wanted[axis]) or (x, axis)
        x = ctx.op("broadcast_like", x, ctx.cast(source, value.dtype), lhs_axes=(axis,), rhs_axes=(place,))
    return (ctx.cast(x, np.bool_) if flags else x,)


TABLE: dict[str, Lowering] = {"Tile": tile, "Expand": expand, "ConstantOfShape": constant_of_shape}
