"""Operators that fill a shape: elements that are repeated, one number, or numbers in order.

Sizes are numbers or names of sizes of graph inputs; those are taken from the inputs when the model runs.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, TypeAlias

import numpy as np

from attar.conversion import NodeView
from attar.rewrite.shape_values import shape_entries
from attar.specs import Dim
from attar_mxnet.symbol_json import Entry
from attar_mxnet.writing.context import Lowering, WriteContext
from attar_mxnet.writing.shaping import known_shape
from attar_mxnet.writing.sizes import range_length

Source: TypeAlias = tuple[Entry, int]
"""An array and the axis of it whose size is meant."""


def tile(ctx: WriteContext, view: NodeView) -> Entry:
    repeats = shape_entries(view.input(1))
    known = [n if isinstance(n, int) else ctx.dimension(n) for n in repeats or ()]
    counts = [n for n in known if n is not None]
    if repeats is None or len(counts) < len(repeats):
        raise view.refuse("the number of repetitions is computed while the model runs")
    if any(isinstance(count, int) and count < 1 for count in counts):
        raise view.refuse("arrays without elements do not exist in MXNet 1")
    x, rank = ctx.get(view), ctx.rank(view)
    if all(count == 1 for count in counts):
        return ctx.op("identity", x)
    dtype = _dtype(ctx, view)
    return ctx.through(x, view.dtype(), lambda e: _tiled(ctx, e, rank, counts, dtype))


def _tiled(
    ctx: WriteContext, x: Entry, rank: int, repeats: Sequence[int | Source], dtype: np.dtype[Any]
) -> Entry:
    """One axis after the other, since MXNet's `tile` doubles the number of axes, of which it knows few."""
    for axis, count in enumerate(repeats):
        if count != 1:
            x = _stretched(ctx, ctx.op("expand_dims", x, axis=axis), {axis: count}, dtype)
            x = ctx.reshape(x, [*[0] * axis, -3, -2] if axis < rank - 1 else [*[0] * axis, -3])
    return x


def expand(ctx: WriteContext, view: NodeView) -> Entry:
    shape, wanted, target = known_shape(view), view.out_shape(), shape_entries(view.input(1))
    if wanted is None and target is None:
        raise view.refuse("the shape is computed while the model runs")
    rank = max(len(shape), len(target or ()), len(wanted or ()), 1)
    have, asked = _lined(shape, rank, 1), _lined(target or (), rank, None if target is None else 1)
    made = _lined(wanted or (), rank, None)
    sizes: dict[int, int | Source] = {}
    for axis in range(rank):
        if asked[axis] == 1 or (have[axis] is not None and have[axis] in (asked[axis], made[axis])):
            continue
        if have[axis] == 1:
            want = asked[axis] if made[axis] is None else made[axis]
            size = want if isinstance(want, int) else ctx.dimension(want)
            if size is None or (isinstance(size, int) and size < 1):
                raise view.refuse(f"axis {axis} gets a size that is computed while the model runs, or none")
            sizes[axis] = size
        elif not isinstance(have[axis], int):
            raise view.refuse(f"whether axis {axis} is repeated is known only when the model runs")
    x = ctx.lift(ctx.get(view), max(len(shape), 1), rank)
    if not sizes:
        return ctx.op("identity", x)
    return ctx.through(x, view.dtype(), lambda e: _stretched(ctx, e, sizes, _dtype(ctx, view)))


def _lined(shape: Sequence[Dim], rank: int, filler: Dim) -> list[Dim]:
    """`shape` with as many sizes `filler` in front that it has `rank`."""
    return [filler] * (rank - len(shape)) + list(shape)


def _dtype(ctx: WriteContext, view: NodeView) -> np.dtype[Any]:
    """The element type in which input 0 is repeated."""
    return np.dtype(np.uint8) if view.dtype().kind == "b" else ctx.dtype(view)


def _stretched(ctx: WriteContext, x: Entry, sizes: Mapping[int, int | Source], dtype: np.dtype[Any]) -> Entry:
    """`x`, whose axes in `sizes` have one element, repeated along them."""
    fixed = {axis: size for axis, size in sizes.items() if isinstance(size, int)}
    if fixed:
        x = ctx.op("broadcast_axis", x, axis=tuple(fixed), size=tuple(fixed.values()))
    for axis, source in sizes.items():
        if not isinstance(source, int):
            like = ctx.cast(source[0], dtype)
            x = ctx.op("broadcast_like", x, like, lhs_axes=(axis,), rhs_axes=(source[1],))
    return x


def constant_of_shape(ctx: WriteContext, view: NodeView) -> tuple[Entry | None]:
    """A constant where the shape is one: it may be a weight. Else a number spread to graph inputs' sizes."""
    value = np.asarray(view.attr("value", np.zeros(1, np.float32))).reshape(1)
    shape = view.const(0)
    if shape is not None:
        if 0 in shape:
            raise view.refuse("arrays without elements do not exist in MXNet 1")
        ctx.fold(view.outputs[0], np.broadcast_to(value.reshape([1] * shape.size), shape.tolist()), None)
        return (None,)
    wanted = view.out_shape() or [None]
    open_sizes = {axis: ctx.dimension(d) for axis, d in enumerate(wanted) if not isinstance(d, int)}
    sources = {axis: source for axis, source in open_sizes.items() if source is not None}
    if len(sources) < len(open_sizes):
        raise view.refuse("the shape is computed while the model runs")
    sizes = [d if isinstance(d, int) else 1 for d in wanted]
    flags = value.dtype.kind == "b"
    value = value.astype(np.uint8) if flags else value
    x = ctx.constant(np.broadcast_to(value.reshape([1] * len(sizes)), sizes), view=view)
    x = _stretched(ctx, x, sources, value.dtype)
    return (ctx.cast(x, np.bool_) if flags else x,)


def range_(ctx: WriteContext, view: NodeView) -> Entry:
    """0, 1, ... along an axis of a graph input: the positions in a sequence of any length."""
    source = ctx.dimension(range_length(view.node))
    if source is None:
        raise view.refuse("it does not count from 0 by ones up to a size of an input")
    return ctx.op("_contrib_arange_like", ctx.cast(source[0], view.out_dtype()), axis=source[1])


TABLE: dict[str, Lowering] = {
    "Tile": tile,
    "Expand": expand,
    "ConstantOfShape": constant_of_shape,
    "Range": range_,
}
