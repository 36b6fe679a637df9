"""Operators that move elements without changing them."""

from __future__ import annotations

import math
from collections.abc import Sequence
from functools import partial
from typing import Any

import numpy as np

from attar.conversion import NodeView
from attar_mxnet.symbol_json import Entry
from attar_mxnet.writing.context import Lowering, WriteContext

_HUGE = 1 << 30


def known_shape(view: NodeView, index: int = 0) -> tuple[Any, ...]:
    """The shape of input `index`; dimensions may be unknown, the rank may not."""
    view.need_rank(index)
    return view.shape(index) or ()


def fixed_shape(view: NodeView, index: int = 0) -> tuple[int, ...]:
    """The shape of input `index`, all of it fixed."""
    shape = known_shape(view, index)
    if any(not isinstance(d, int) for d in shape):
        raise view.refuse(f"the shape of input {index} is not fixed: {list(shape)}")
    return shape


def move(ctx: WriteContext, view: NodeView, op: str, x: Entry, **attrs: Any) -> Entry:
    """An operator that copies elements, for bool too."""
    return ctx.through(x, view.dtype(), lambda e: ctx.op(op, e, **attrs))


def to_shape(ctx: WriteContext, view: NodeView, wanted: Sequence[Any]) -> Entry:
    """Input 0 in the shape `wanted`, in which unknown dimensions are names or None.

    MXNet's code 0 takes a dimension from the same place of the input, -1 makes up for the rest.
    """
    source = known_shape(view)
    codes: list[int] = []
    for axis, dim in enumerate(wanted):
        if isinstance(dim, int):
            codes.append(dim)
        elif dim is not None and axis < len(source) and source[axis] == dim:
            codes.append(0)
        else:
            codes.append(-1)
    if codes.count(-1) > 1:
        raise view.refuse("two of the new dimensions are known only when the model runs")
    return ctx.reshape(ctx.get(view), codes or [1])


def reshape(ctx: WriteContext, view: NodeView) -> Entry:
    wanted = view.out_shape()
    if wanted is not None and sum(not isinstance(d, int) for d in wanted) <= 1:
        return to_shape(ctx, view, wanted)
    target = view.const(1)
    if target is None:
        if wanted is None:
            raise view.refuse("the shape is computed while the model runs")
        return to_shape(ctx, view, wanted)
    codes = [int(d) for d in target]
    if view.attr("allowzero", 0) and 0 in codes:
        raise view.refuse("arrays without elements do not exist in MXNet 1")
    return ctx.reshape(ctx.get(view), codes or [1])


def flatten(ctx: WriteContext, view: NodeView) -> Entry:
    shape = known_shape(view)
    axis = view.attr("axis", 1)
    axis += len(shape) if axis < 0 else 0
    x = ctx.get(view)
    if axis == 1 and len(shape) > 1:
        return move(ctx, view, "Flatten", x)
    if all(isinstance(d, int) for d in shape[axis:]):
        return ctx.reshape(x, (-1, math.prod(shape[axis:])))
    if all(isinstance(d, int) for d in shape[:axis]):
        return ctx.reshape(x, (math.prod(shape[:axis]), -1))
    for _ in range(axis - 1):
        x = ctx.reshape(x, (-3, -2))
    return ctx.reshape(x, (0, -1))


def _axes(view: NodeView, rank: int) -> list[int] | None:
    """The axes of Squeeze and Unsqueeze, counted from the front and sorted; None if they are not given."""
    axes = view.option(1, "axes")
    return None if axes is None else sorted(int(a) % rank for a in np.asarray(axes).reshape(-1))


def squeeze(ctx: WriteContext, view: NodeView) -> Entry:
    shape = known_shape(view)
    axes = _axes(view, max(len(shape), 1))
    if axes is None:
        if any(not isinstance(d, int) for d in shape):
            raise view.refuse("which axes have size 1 is known only when the model runs")
        axes = [i for i, d in enumerate(shape) if d == 1]
    if len(axes) == len(shape):
        return ctx.reshape(ctx.get(view), (1,))
    if not axes:
        return ctx.op("identity", ctx.get(view))
    return move(ctx, view, "squeeze", ctx.get(view), axis=tuple(axes))


def unsqueeze(ctx: WriteContext, view: NodeView) -> Entry:
    rank = view.need_rank()
    given = np.asarray(view.option(1, "axes")).reshape(-1)
    axes = sorted(int(a) % (rank + given.size) for a in given)
    if rank == 0:
        return ctx.reshape(ctx.get(view), [1] * len(axes))
    x = ctx.get(view)
    for axis in axes:
        x = ctx.through(x, view.dtype(), partial(_expand, ctx, axis))
    return x if axes else ctx.op("identity", x)


def _expand(ctx: WriteContext, axis: int, x: Entry) -> Entry:
    return ctx.op("expand_dims", x, axis=axis)


def transpose(ctx: WriteContext, view: NodeView) -> Entry:
    rank = ctx.rank(view)
    axes = [int(a) for a in view.attr("perm", None) or range(rank)[::-1]]
    return move(ctx, view, "transpose", ctx.get(view), axes=tuple(axes))


def concat(ctx: WriteContext, view: NodeView) -> Entry:
    rank = ctx.rank(view)
    full = [i for i in range(len(view.inputs)) if 0 not in known_shape(view, i)]  # the others add nothing
    parts = [ctx.get(view, i) for i in full]
    if view.dtype().kind == "b":
        parts = [ctx.cast(p, np.uint8) for p in parts]
    joined = ctx.op("Concat", *parts, num_args=len(parts), dim=view.attr("axis") % rank)
    return ctx.cast(joined, np.bool_) if view.dtype().kind == "b" else joined


def split(ctx: WriteContext, view: NodeView) -> tuple[Entry | None, ...]:
    shape = known_shape(view)
    axis = view.attr("axis", 0) % len(shape)
    count, size = len(view.outputs), shape[axis]
    given = view.option(1, "split")
    x = ctx.cast(ctx.get(view), np.uint8) if view.dtype().kind == "b" else ctx.get(view)
    if given is not None:
        sizes = [int(s) for s in np.asarray(given).reshape(-1)]
    elif not isinstance(size, int):
        raise view.refuse("the size of the axis is not fixed")
    else:
        each = -(-size // count)
        sizes = [each] * (count - 1) + [size - each * (count - 1)]
    ends = np.cumsum(sizes).tolist()
    if len(set(sizes)) == 1 and count > 1 and view.dtype().kind != "b":
        parts = ctx.op("SliceChannel", x, num_outputs=count, axis=axis)
        return tuple(Entry(parts.node, i) for i in range(count))
    pieces = [
        ctx.slice_axis(x, axis, end - n, end) if n else None for n, end in zip(sizes, ends, strict=True)
    ]
    if view.dtype().kind == "b":
        pieces = [None if p is None else ctx.cast(p, np.bool_) for p in pieces]
    return tuple(
        pieces
    )  # a part without elements is left out: Concat passes over it, nothing else can use it


def slice_(ctx: WriteContext, view: NodeView) -> Entry:
    shape = known_shape(view)
    starts, ends = (
        [int(v) for v in np.asarray(view.option(i, name)).reshape(-1)]
        for i, name in ((1, "starts"), (2, "ends"))
    )
    axes = view.option(3, "axes", list(range(len(starts))))
    steps = view.option(4, "steps", [1] * len(starts))
    begin: list[Any] = [None] * len(shape)
    end: list[Any] = [None] * len(shape)
    step: list[Any] = [None] * len(shape)
    for start, stop, axis, pace in zip(starts, ends, axes, steps, strict=True):
        place = int(axis) % len(shape)
        begin[place], end[place] = _bounds(view, shape[place], start, stop, int(pace))
        step[place] = int(pace)
    if all(b is None and e is None and s in (None, 1) for b, e, s in zip(begin, end, step, strict=True)):
        return ctx.op("identity", ctx.get(view))
    paces = tuple(step) if any(s not in (None, 1) for s in step) else None
    return move(ctx, view, "slice", ctx.get(view), begin=tuple(begin), end=tuple(end), step=paces)


def _bounds(view: NodeView, size: Any, start: int, stop: int, pace: int) -> tuple[int | None, int | None]:
    """Begin and end as MXNet takes them; None is the border. They are cut to the size where it is known."""
    if isinstance(size, int):
        exact = range(size)[slice(start, stop, pace)]
        if not len(exact):
            raise view.refuse("a slice without elements does not exist in MXNet 1")
        last = exact.start + len(exact) * pace
        return exact.start, (None if last < 0 or last > size else last)
    if pace < 0:
        at_end = start >= _HUGE or start == -1
        whole = stop <= -_HUGE
        if not (at_end and whole):
            raise view.refuse("it runs backwards over part of an axis whose size is not fixed")
        return None, None
    return (None if start == 0 or start <= -_HUGE else start), (None if stop >= _HUGE else stop)


def depth_to_space(ctx: WriteContext, view: NodeView) -> Entry:
    block, channels = view.attr("blocksize"), known_shape(view)[1]
    x = ctx.get(view)
    if view.attr("mode", "DCR") == "DCR":
        return ctx.op("depth_to_space", x, block_size=block)
    if not isinstance(channels, int):
        raise view.refuse("the number of channels is not fixed")
    x = ctx.reshape(x, (0, -4, channels // block**2, block**2, -2))
    x = ctx.transpose(ctx.reshape(x, (0, 0, -4, block, block, -2)), (0, 1, 4, 2, 5, 3))
    return ctx.reshape(x, (0, 0, -3, -3))


def space_to_depth(ctx: WriteContext, view: NodeView) -> Entry:
    x, block = ctx.get(view), view.attr("blocksize")
    if view.attr("mode", "DCR") == "DCR":
        return ctx.op("space_to_depth", x, block_size=block)
    x = ctx.reshape(x, (0, 0, -4, -1, block, -2))
    x = ctx.transpose(ctx.reshape(x, (0, 0, 0, 0, -4, -1, block)), (0, 1, 3, 5, 2, 4))
    return ctx.reshape(ctx.reshape(x, (0, -3, 0, 0, 0)), (0, -3, 0, 0))


def shape_(ctx: WriteContext, view: NodeView) -> Entry:
    rank = view.need_rank()
    start, end, _ = slice(view.attr("start", 0), view.attr("end", None)).indices(rank)
    if start >= end:
        raise view.refuse("arrays without elements do not exist in MXNet 1")
    found = ctx.op("shape_array", ctx.get(view))
    return found if end - start == rank else ctx.slice_axis(found, 0, start, end)


def size(ctx: WriteContext, view: NodeView) -> Entry:
    return ctx.op("size_array", ctx.get(view))


TABLE: dict[str, Lowering] = {
    "Reshape": reshape,
    "Flatten": flatten,
    "Squeeze": squeeze,
    "Unsqueeze": unsqueeze,
    "Transpose": transpose,
    "Concat": concat,
    "Split": split,
    "Slice": slice_,
    "DepthToSpace": depth_to_space,
    "SpaceToDepth": space_to_depth,
    "Shape": shape_,
    "Size": size,
}
