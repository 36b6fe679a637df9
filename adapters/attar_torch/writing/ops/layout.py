"""Operators that move elements: reshape, transpose, slice, join, pad."""

from __future__ import annotations

import operator
from typing import Any

import numpy as np
import torch
from torch.nn import functional

from attar.conversion import NodeView
from attar_torch.writing.context import Context
from attar_torch.writing.functions.layout import column_major, pad_edges, reversed_slice, tile
from attar_torch.writing.table import Table

TABLE = Table()

_HUGE = 1 << 31
"""From here on a bound of a slice means "to the end"."""


@TABLE.op("Identity", any_type=True)
def identity(ctx: Context, view: NodeView) -> Any:
    return ctx.tensor(view)


@TABLE.op("Reshape", any_type=True)
def reshape(ctx: Context, view: NodeView) -> Any:
    shape = ctx.ints(view, 1)
    x = ctx.tensor(view)
    if not view.attr("allowzero", 0):
        shape = [ctx.size(x, k) if isinstance(d, int) and d == 0 else d for k, d in enumerate(shape)]
        if view.const(1) is None and any(not isinstance(d, int) for d in shape) and _may_be_zero(ctx, view):
            raise view.refuse("its target shape is computed from data and may hold zeros")
    known = view.shape(0)
    free = [k for k, d in enumerate(shape) if not isinstance(d, int)]
    if free == [0] and known and -1 not in shape and _is_size(shape[0], x, 0):
        # (size(0), ...) is written with -1 where the numbers allow it: what one batch is, all are.
        rest, inner = np.prod(shape[1:], dtype=np.int64), known[1:]
        if all(isinstance(d, int) for d in inner) and rest == np.prod(inner, dtype=np.int64) and rest > 0:
            shape = [-1, *shape[1:]]
    out = view.out_shape(0)
    if out and len(out) == len(shape) and known and _is_flatten(known, out, shape):
        return ctx.call(torch.flatten, x, 1)
    return ctx.method("reshape", x, tuple(shape))


def _may_be_zero(ctx: Context, view: NodeView) -> bool:
    from attar_torch.writing.dims import Dims

    return not isinstance(ctx.values.get(view.input(1)), Dims)  # sizes are zero only in empty tensors


def _is_size(item: Any, x: Any, axis: int) -> bool:
    return bool(item.op == "call_method" and item.target == "size" and item.args == (x, axis))


def _is_flatten(known: tuple[Any, ...], out: tuple[Any, ...], shape: list[Any]) -> bool:
    if len(out) != 2 or len(known) < 2 or out[0] is None or known[0] != out[0]:
        return False
    inner = known[1:]
    return all(isinstance(d, int) and d for d in inner) and out[1] == np.prod(inner, dtype=np.int64)


@TABLE.op("Flatten", any_type=True)
def flatten(ctx: Context, view: NodeView) -> Any:
    rank, axis, x = view.need_rank(0), view.attr("axis"), ctx.tensor(view)
    axis = axis + rank if axis < 0 else axis
    if axis == 1 and rank > 1:
        return ctx.call(torch.flatten, x, 1)
    if axis == 0:
        return ctx.method("reshape", x, (1, -1))
    if axis == rank:
        return ctx.method("reshape", x, (-1, 1))
    return ctx.call(torch.flatten, ctx.call(torch.flatten, x, axis), 0, axis - 1)


@TABLE.op("Squeeze", any_type=True)
def squeeze(ctx: Context, view: NodeView) -> Any:
    axes = ctx.int_option(view, 1, "axes")
    shape = view.shape(0)
    if axes is None:
        if shape is None or any(not isinstance(d, int) for d in shape):
            raise view.refuse("which axes it removes is known only while the model runs")
        axes = [k for k, d in enumerate(shape) if d == 1]
    if not axes:
        return ctx.tensor(view)
    return ctx.call(torch.squeeze, ctx.tensor(view), axes[0] if len(axes) == 1 else tuple(axes))


@TABLE.op("Unsqueeze", any_type=True)
def unsqueeze(ctx: Context, view: NodeView) -> Any:
    axes = ctx.int_option(view, 1, "axes") or []
    rank = view.need_rank(0) + len(axes)
    x = ctx.tensor(view)
    for axis in sorted(a + rank if a < 0 else a for a in axes):
        x = ctx.call(torch.unsqueeze, x, axis)
    return x


@TABLE.op("Transpose", any_type=True)
def transpose(ctx: Context, view: NodeView) -> Any:
    order = view.attr("perm") or list(range(view.need_rank(0)))[::-1]
    return ctx.call(torch.permute, ctx.tensor(view), tuple(order))


@TABLE.op("Concat")
def concat(ctx: Context, view: NodeView) -> Any:
    parts = [ctx.parameter(view, k) for k in range(len(view.inputs))]
    return parts[0] if len(parts) == 1 else ctx.call(torch.cat, parts, view.attr("axis"))


@TABLE.op("Split")
def split(ctx: Context, view: NodeView) -> Any:
    x, axis, count = ctx.tensor(view), view.attr("axis", 0), len(view.outputs)
    sizes: Any = ctx.int_option(view, 1, "split")
    if sizes is None:
        shape = view.shape(0)
        size = None if shape is None else shape[axis]
        if isinstance(size, int):
            each = -(-size // count)
            sizes = [max(0, min(each, size - k * each)) for k in range(count)]
        else:
            each = ctx.call(operator.floordiv, ctx.call(operator.add, ctx.size(x, axis), count - 1), count)
            sizes = each
    parts = ctx.call(torch.split, x, sizes, axis)
    return tuple(ctx.call(operator.getitem, parts, k) for k in range(count))


@TABLE.op("Slice", any_type=True)
def lower_slice(ctx: Context, view: NodeView) -> Any:
    rank = view.need_rank(0)
    starts, ends = ctx.ints(view, 1), ctx.ints(view, 2)
    axes = [int(a) for a in view.need_const(3, "axes")] if view.has(3) else list(range(len(starts)))
    steps = [int(s) for s in view.need_const(4, "steps")] if view.has(4) else [1] * len(starts)
    x = ctx.tensor(view)
    index: list[Any] = [slice(None)] * rank
    for start, end, axis, step in zip(starts, ends, [a % rank for a in axes], steps, strict=True):
        if step < 0:
            x = ctx.call(reversed_slice, x, axis, start, end, step)
            continue
        first = None if isinstance(start, int) and start == 0 else start
        last = None if isinstance(end, int) and end >= _HUGE else end
        index[axis] = slice(first, last, None if step == 1 else step)
    if all(i == slice(None) for i in index):
        return x
    return ctx.call(operator.getitem, x, tuple(index))


@TABLE.op("Expand", any_type=True)
def expand(ctx: Context, view: NodeView) -> Any:
    """Both sides broadcast: a 1 in the target keeps the size, which torch says with -1."""
    target, shape = ctx.ints(view, 1), view.shape(0)
    if shape is None:
        raise view.refuse("the rank of its input is unknown")
    lead = len(target) - len(shape)
    x = ctx.tensor(view)
    if lead < 0:
        target = [1] * -lead + target
        lead = 0
    sizes: list[Any] = []
    for k, wanted in enumerate(target):
        have = shape[k - lead] if k >= lead else None
        if isinstance(wanted, int) and wanted == 1 and k >= lead:
            sizes.append(-1)
        elif isinstance(wanted, int) or k < lead or (isinstance(have, int) and have == 1):
            sizes.append(wanted)
        else:
            sizes = []
            break
    if len(sizes) == len(target):
        return ctx.method("expand", x, tuple(sizes))
    from attar_torch.writing.functions.layout import broadcast

    return ctx.call(broadcast, x, list(target))


@TABLE.op("Tile", any_type=True)
def lower_tile(ctx: Context, view: NodeView) -> Any:
    return ctx.call(tile, ctx.tensor(view), ctx.ints(view, 1))


@TABLE.op("Pad")
def pad(ctx: Context, view: NodeView) -> Any:
    rank, mode = view.need_rank(0), view.attr("mode")
    amounts = ctx.ints(view, 1)
    axes = [int(a) % rank for a in view.need_const(3, "axes")] if view.has(3) else list(range(rank))
    pairs: dict[int, tuple[Any, Any]] = {a: (amounts[k], amounts[k + len(axes)]) for k, a in enumerate(axes)}
    mode = mode.decode() if isinstance(mode, bytes) else mode
    x = ctx.tensor(view)
    if mode != "constant":
        if any(not isinstance(n, int) for n in amounts):
            raise view.refuse("its amounts are computed while the model runs")
        return ctx.call(pad_edges, x, mode, [list(pairs.get(a, (0, 0))) for a in range(rank)])
    value = 0 if not view.has(2) else view.const(2)
    if value is None:
        raise view.refuse("the number it fills with is computed while the model runs")
    number = np.asarray(value).reshape(-1)[0].item() if view.has(2) else 0
    flat: list[Any] = []
    for axis in range(rank - 1, -1, -1):
        flat += pairs.get(axis, (0, 0))
    while len(flat) > 2 and flat[-2:] == [0, 0]:
        flat = flat[:-2]
    return ctx.call(functional.pad, x, flat, "constant", number)


@TABLE.op("DepthToSpace")
def depth_to_space(ctx: Context, view: NodeView) -> Any:
    block, mode = view.attr("blocksize"), view.attr("mode", "DCR")
    x = ctx.tensor(view)
    if mode == "CRD":
        return ctx.layer(view, torch.nn.PixelShuffle(block), x)
    return ctx.call(functional.pixel_shuffle, ctx.call(column_major, x, block), block)


@TABLE.op("SpaceToDepth")
def space_to_depth(ctx: Context, view: NodeView) -> Any:
    from attar_torch.writing.functions.layout import space_to_depth as function

    mode = view.attr("mode", "DCR")
    if mode == "CRD":
        return ctx.layer(view, torch.nn.PixelUnshuffle(view.attr("blocksize")), ctx.tensor(view))
    return ctx.call(function, ctx.tensor(view), view.attr("blocksize"))
