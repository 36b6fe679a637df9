"""Operators that pick, place, sort and count by index."""

from __future__ import annotations

import math
from functools import partial

import numpy as np

from attar.conversion import NodeView
from attar_mxnet.symbol_json import Entry
from attar_mxnet.writing.context import Array, Lowering, WriteContext
from attar_mxnet.writing.shaping import fixed_shape, known_shape

_MOST_PLACES = 1 << 24  # indices travel as float32 constants


def gather(ctx: WriteContext, view: NodeView) -> Entry:
    """`take` with wrap, which counts negative indices from the end; Embedding for a table of weights."""
    shape = known_shape(view)
    rank = max(len(shape), 1)
    axis = view.attr("axis", 0) % rank
    where, table = view.const(1), ctx.array(view, 0)
    if where is not None and where.ndim == 0:
        return _gather_one(ctx, view, int(where), axis, rank)
    if table is not None and table.dtype.kind == "f" and table.ndim == 2 and axis == 0 and where is None:
        rows = ctx.scalar("_mod_scalar", ctx.get(view, 1), table.shape[0])
        made = ctx.op(
            "Embedding",
            rows,
            ctx.weight(view, 0),
            input_dim=table.shape[0],
            output_dim=table.shape[1],
            dtype=ctx.dtype(view).name,
        )
    else:
        x = ctx.learnt(view, 0)
        made = ctx.through(
            x, view.dtype(), lambda e: ctx.op("take", e, ctx.get(view, 1), axis=axis, mode="wrap")
        )
    if view.need_rank(1) == 0:  # an index of rank 0 is one of shape (1,) here
        made = ctx.op("squeeze", made, axis=(axis,)) if rank > 1 else made
    return made


def _gather_one(ctx: WriteContext, view: NodeView, index: int, axis: int, rank: int) -> Entry:
    one = ctx.through(
        ctx.learnt(view, 0),
        view.dtype(),
        lambda e: ctx.slice_axis(e, axis, index, None if index == -1 else index + 1),
    )
    return one if rank == 1 else ctx.through(one, view.dtype(), lambda e: ctx.op("squeeze", e, axis=(axis,)))


def pick_flat(ctx: WriteContext, view: NodeView, x: Entry, places: Array, shape: tuple[int, ...]) -> Entry:
    """Elements of `x`, flattened, at constant `places`, in the shape `shape`."""
    if places.size == 0 or places.max(initial=0) >= _MOST_PLACES:
        raise view.refuse("no elements, or too many to count them in float32")
    index = ctx.constant(places.reshape(-1).astype(np.int32), f"{view.name}_places", view=view)
    flat = ctx.reshape(x, (-1,))
    taken = ctx.through(flat, view.dtype(), lambda e: ctx.op("take", e, index, axis=0, mode="clip"))
    return ctx.reshape(taken, shape or (1,))


def gather_elements(ctx: WriteContext, view: NodeView) -> Entry:
    shape, index = fixed_shape(view), view.need_const(1, "the indices")
    axis = view.attr("axis", 0) % len(shape)
    places = np.arange(math.prod(shape)).reshape(shape)
    cut = places[tuple(slice(None) if a == axis else slice(n) for a, n in enumerate(index.shape))]
    found = np.take_along_axis(cut, index % shape[axis], axis)
    return pick_flat(ctx, view, ctx.get(view), found, index.shape)


def gather_nd(ctx: WriteContext, view: NodeView) -> Entry:
    shape, index = fixed_shape(view), view.need_const(1, "the indices")
    batch = view.attr("batch_dims", 0)
    places = np.arange(math.prod(shape)).reshape(shape)
    found = _nd_places(places, index, batch)
    return pick_flat(ctx, view, ctx.get(view), found, found.shape)


def _nd_places(places: Array, index: Array, batch: int) -> Array:
    if batch == 0:
        return np.asarray(places[tuple(np.moveaxis(index, -1, 0))])
    return np.stack([_nd_places(p, i, batch - 1) for p, i in zip(places, index, strict=True)])


def scatter_elements(ctx: WriteContext, view: NodeView) -> Entry:
    shape, index = fixed_shape(view), view.need_const(1, "the indices")
    axis = view.attr("axis", 0) % len(shape)
    grid = list(np.indices(index.shape))
    grid[axis] = index % shape[axis]
    return _scatter(ctx, view, np.ravel_multi_index(tuple(grid), shape))


def scatter_nd(ctx: WriteContext, view: NodeView) -> Entry:
    shape, index = fixed_shape(view), view.need_const(1, "the indices")
    places = np.arange(math.prod(shape)).reshape(shape)
    return _scatter(ctx, view, places[tuple(np.moveaxis(index, -1, 0))])


_JOIN = {
    "add": "broadcast_add",
    "mul": "broadcast_mul",
    "max": "broadcast_maximum",
    "min": "broadcast_minimum",
}


def _scatter(ctx: WriteContext, view: NodeView, targets: Array) -> Entry:
    """Updates placed at constant flat `targets`: every element of the result picks from the data and the
    updates laid end to end. Where several meet in one place, the k-th of each is applied in round k."""
    shape, how = fixed_shape(view), view.attr("reduction", "none")
    if view.dtype().kind == "b":
        raise view.refuse("the data are bool")
    count, flat_targets = math.prod(shape), targets.reshape(-1)
    data, updates = ctx.reshape(ctx.get(view), (-1,)), ctx.reshape(ctx.get(view, 2), (-1,))
    if how == "none":
        places = np.arange(count)
        places[flat_targets] = count + np.arange(flat_targets.size)
        both = ctx.op("Concat", data, updates, num_args=2, dim=0)
        return pick_flat(ctx, view, both, places, shape)
    seen: dict[int, int] = {}
    rounds: list[Array] = []
    for number, place in enumerate(flat_targets.tolist()):
        turn = seen[place] = seen.get(place, -1) + 1
        if turn == len(rounds):
            rounds.append(np.full(count, -1))
        rounds[turn][place] = number
    if len(rounds) > 64:
        raise view.refuse("more than 64 updates meet in one place")
    for chosen in rounds:
        hit = chosen >= 0
        picked = pick_flat(ctx, view, updates, np.where(hit, chosen, 0), (count,))
        mask = ctx.constant(hit.astype(np.float32), f"{view.name}_hit", view=view)
        joined = ctx.op(_JOIN[how], data, picked)
        data = ctx.op("where", mask, joined, data)
    return ctx.reshape(data, shape or (1,))


def arg_extreme(op: str, ctx: WriteContext, view: NodeView) -> Entry:
    """The first place of the extreme, or the last. MXNet counts in float32: exact up to 2^24."""
    shape = known_shape(view)
    rank = max(len(shape), 1)
    axis = view.attr("axis", 0) % rank
    size = shape[axis] if shape else 1
    if view.dtype().kind != "f" and view.dtype().itemsize > 4:
        raise view.refuse(f"MXNet compares {view.dtype()} in floating point")
    if not isinstance(size, int) or size > _MOST_PLACES:
        raise view.refuse("the size of its axis is not fixed")
    x, keep = ctx.get(view), bool(view.attr("keepdims", 1))
    last = bool(view.attr("select_last_index", 0))
    if last:
        x = ctx.op("reverse", x, axis=(axis,))
    place = ctx.op(op, x, axis=axis, keepdims=keep)
    if last:
        place = ctx.scalar("_rminus_scalar", place, size - 1)
    return ctx.cast(place, np.int64)


def top_k(ctx: WriteContext, view: NodeView) -> tuple[Entry, Entry]:
    """A full sort, cut: MXNet's partial one does not keep the order of equal elements."""
    shape = known_shape(view)
    axis = view.attr("axis", -1) % len(shape)
    count = int(view.need_const(1, "k").reshape(()))
    size = shape[axis]
    if not isinstance(size, int):
        raise view.refuse("the size of its axis is not fixed")
    if view.dtype().kind != "f" and view.dtype().itemsize > 4:
        raise view.refuse(f"MXNet sorts {view.dtype()} in floating point")
    made = ctx.op(
        "topk",
        ctx.get(view),
        axis=axis,
        k=size,
        ret_typ="both",
        is_ascend=not view.attr("largest", 1),
        dtype="int64",
    )
    both = (Entry(made.node, i) for i in (0, 1))
    values, places = (ctx.slice_axis(e, axis, 0, count) if count < size else e for e in both)
    return values, places


def one_hot(ctx: WriteContext, view: NodeView) -> Entry:
    depth = int(view.need_const(1, "the depth").reshape(()))
    values = view.need_const(2, "the values").reshape(-1)
    rank = view.need_rank()
    axis = view.attr("axis", -1) % (rank + 1)
    if values.dtype.kind == "b":
        raise view.refuse("the values are bool")
    if values.dtype.kind in "iu" and (np.abs(values.astype(object)) >= 1 << 53).any():
        raise view.refuse("MXNet holds the values as doubles, which these do not fit")
    index = ctx.cast(ctx.get(view), np.int64)
    below = ctx.scalar("_lesser_scalar", index, 0)
    index = ctx.op("broadcast_add", index, ctx.scalar("_mul_scalar", below, depth))
    hot = ctx.op(
        "one_hot",
        index,
        depth=depth,
        on_value=float(values[1]),
        off_value=float(values[0]),
        dtype=values.dtype.name,
    )
    if rank == 0:
        return ctx.reshape(hot, (-1,))
    return ctx.transpose(hot, [*range(axis), rank, *range(axis, rank)])


def trilu(ctx: WriteContext, view: NodeView) -> Entry:
    """The upper triangle is the lower one of the transpose."""
    k = int(view.need_const(1, "k").reshape(())) if view.has(1) else 0
    rank, x = ctx.rank(view), ctx.get(view)
    if not view.attr("upper", 1):
        return ctx.through(x, view.dtype(), lambda e: ctx.op("_npi_tril", e, k=k))
    axes = [*range(rank - 2), rank - 1, rank - 2]

    def upper(e: Entry) -> Entry:
        return ctx.transpose(ctx.op("_npi_tril", ctx.transpose(e, axes), k=-k), axes)

    return ctx.through(x, view.dtype(), upper)


def einsum(ctx: WriteContext, view: NodeView) -> Entry:
    text = view.attr("equation").replace(" ", "")
    if view.dtype().kind != "f" or "." in text:
        raise view.refuse("MXNet's einsum takes floats and no ellipsis")
    inputs = [ctx.learnt(view, i) for i in range(len(view.inputs))]
    if any(view.need_rank(i) == 0 for i in range(len(inputs))):
        raise view.refuse("an operand is a scalar")
    if "->" not in text:
        letters = sorted(c for c in set(text) - {","} if text.count(c) == 1)
        text += "->" + "".join(letters)
    made = ctx.op("_npi_einsum", *inputs, num_args=len(inputs), subscripts=text)
    return ctx.reshape(made, (1,)) if text.endswith("->") else made


def reverse_sequence(ctx: WriteContext, view: NodeView) -> Entry:
    """MXNet has time first and batch second; its lengths are floats."""
    time, batch, rank = view.attr("time_axis", 0), view.attr("batch_axis", 1), ctx.rank(view)
    x = ctx.get(view)
    x = x if (time, batch) == (0, 1) else ctx.transpose(x, [1, 0, *range(2, rank)])
    lengths = ctx.cast(ctx.get(view, 1), np.float32)
    y = ctx.op("SequenceReverse", x, lengths, use_sequence_length=True)
    return y if (time, batch) == (0, 1) else ctx.transpose(y, [1, 0, *range(2, rank)])


TABLE: dict[str, Lowering] = {
    "Gather": gather,
    "GatherElements": gather_elements,
    "GatherND": gather_nd,
    "Scatter": scatter_elements,
    "ScatterElements": scatter_elements,
    "ScatterND": scatter_nd,
    "ArgMax": partial(arg_extreme, "argmax"),
    "ArgMin": partial(arg_extreme, "argmin"),
    "TopK": top_k,
    "OneHot": one_hot,
    "Trilu": trilu,
    "Einsum": einsum,
    "ReverseSequence": reverse_sequence,
}
