"""Loops that are recurrent layers: LSTM, GRU and the simple RNN."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from attar_tensorflow.reading.cells import Cell, all_are, cell_of
from attar_tensorflow.reading.values import Array, Const, Items, Tensor, Written

if TYPE_CHECKING:
    from attar_tensorflow.reading.lifter import Lifter
    from attar_tensorflow.reading.loops import Loop


def recurrent(
    ctx: Lifter, loop: Loop, inside: Sequence[Any], after: Sequence[Any], count: list[Any]
) -> list[Any] | None:
    """The final values of the loop's variables by a recurrent layer; None if the loop is none."""
    states = [
        k
        for k, v in enumerate(inside)
        if isinstance(v, Tensor) and not loop.invariant[k] and loop.counter(inside, after, v) is None
    ]
    if not 0 < len(states) < 3 or any(
        not isinstance(after[k], Tensor) or inside[k].rank != 2 for k in states
    ):
        return None
    x = _input(loop, inside, after, states)
    if x is None or x.rank != 2 or x.shape is None or x.shape[-1] is None:
        return None
    items: Items = x.facts["item"][0]
    if not isinstance(items.stack, Tensor) or not _whole(loop, items.stack, count):
        return None
    cell = cell_of(inside, after, states, x)
    if cell is None:
        return None
    lists = [k for k, v in enumerate(after) if isinstance(v, Written)]
    for k in lists:
        if after[k].item is not after[cell.h]:
            return None
    return _write(ctx, loop, inside, after, count=count, cell=cell, stack=items.stack, lists=lists)


def _input(loop: Loop, inside: Sequence[Any], after: Sequence[Any], states: Sequence[int]) -> Tensor | None:
    """What a turn reads from a list at its own number; None unless it is one thing."""
    found: dict[int, Tensor] = {}
    seen: set[int] = set()
    todo = [after[k] for k in states]
    while todo:
        t = todo.pop()
        if not isinstance(t, Tensor) or id(t) in seen or any(t is v for v in inside):
            continue
        seen.add(id(t))
        if "item" in t.facts:
            if loop.counter(inside, after, t.facts["item"][1]) != 0:
                return None
            found[id(t)] = t
            continue
        todo += t.args
    return next(iter(found.values())) if len(found) == 1 else None


def _whole(loop: Loop, stack: Tensor, count: list[Any]) -> bool:
    """Whether the loop's turns are as many as the stack has items."""
    assert stack.shape is not None
    fixed = loop.fixed_count(count)
    if stack.shape[0] is not None:
        return fixed == stack.shape[0] and fixed > 0
    return all(begin == 0 and _is_length(limit, stack) for limit, begin in count)


def _is_length(limit: Any, stack: Tensor) -> bool:
    """Whether `limit` was taken from the shape of what `stack` holds."""
    while isinstance(limit, Tensor) and limit.op in ("Max", "Identity", "Cast"):
        limit = limit.args[0]
    if not (isinstance(limit, Tensor) and limit.op == "StridedSlice"):
        return False
    shape, begin = limit.args[0], limit.args[1]
    if not (isinstance(shape, Tensor) and shape.op == "Shape" and isinstance(begin, Const)):
        return False
    of = shape.args[0]
    values = {id(stack.value)} | ({id(stack.facts["turned"][0])} if "turned" in stack.facts else set())
    if not isinstance(of, Tensor) or id(of.value) not in values:
        return False
    axis = int(begin.array.reshape(-1)[0])
    place = axis if of.order is None else of.order.index(axis)
    return place == (0 if stack.order is None else stack.order.index(0))


def _write(
    ctx: Lifter,
    loop: Loop,
    inside: Any,
    after: Any,
    *,
    count: Any,
    cell: Cell,
    stack: Tensor,
    lists: list[int],
) -> list[Any] | None:
    ends: list[Any] = list(loop.start)
    for k in lists:  # checked before anything is written
        try:
            loop._check_list(k, inside, after, count)
        except Exception:
            return None
    size = int(cell.gates[0].r.shape[0])  # type: ignore[union-attr]
    dtype = stack.dtype
    gates = cell.gates
    inner = [g.r for g in gates]
    if cell.inner is not None:
        inner[2] = cell.inner.r
    depth = int(stack.shape[-1])  # type: ignore[index, arg-type]
    w = np.concatenate([_or_zeros(g.w, (depth, size), dtype).T for g in gates])[None]
    r = np.concatenate([_or_zeros(p, (size, size), dtype).T for p in inner])[None]
    bias = [_bias(g.b, size, dtype) for g in gates]
    back = [np.zeros(size, dtype) for _ in gates]
    if cell.inner is not None:
        back[2] = _bias(cell.inner.b, size, dtype)
    b = np.concatenate([*bias, *back])[None]
    name = (gates[0].name or f"{ctx.label}/kernel").rpartition("/")[0]
    values: list[Any] = [
        None,
        Const(w, f"{name}/kernel"),
        Const(r, f"{name}/recurrent_kernel"),
        Const(b, f"{name}/bias"),
    ]
    values.append(None)  # lengths of the sequences
    for k in (cell.h, cell.c):
        if k is not None:
            start = loop.start[k]
            values.append(
                None if _is_zero(start) else ctx.node("Unsqueeze", [start, Const(np.array([0]))])[0]
            )
    while values[-1] is None:
        values.pop()
    direction = "forward"
    turned = stack.facts.get("turned")
    if turned is not None and turned[1] == [ctx.axis(stack, 0)]:
        direction = "reverse"
        values[0] = Tensor(turned[0], stack.dtype, stack.shape, stack.order)
    else:
        values[0] = stack
    more: dict[str, Any] = {"linear_before_reset": int(cell.inner is not None)} if cell.kind == "GRU" else {}
    made = ctx.node(
        cell.kind, values, outputs=3 if cell.kind == "LSTM" else 2, hidden_size=size, direction=direction,
        activations=cell.activations, **more,
    )  # fmt: skip
    axis = Const(np.array([0]))
    for k, value in zip((cell.h, cell.c), made[1:], strict=False):
        if k is not None:
            ends[k] = Tensor(ctx.node("Squeeze", [value, axis])[0], dtype, inside[k].shape)
    sequence = _sequence(ctx, made[0], stack, size, direction)
    for k in lists:
        if isinstance(after[k].index, Const):
            last = ctx.op("Unsqueeze", ends[cell.h], axis, shape=(1, *(ends[cell.h].shape or ())))
            ends[k] = Items(last)
        else:
            ends[k] = Items(sequence)
    for k, value in enumerate(inside):
        begin = None if loop.invariant[k] else loop.counter(inside, after, value)
        if begin is not None:
            ends[k] = _final_count(ctx, loop, count, begin, loop.start[k].dtype)
    return ends


def _sequence(ctx: Lifter, y: Any, stack: Tensor, size: int, direction: str) -> Tensor:
    """The states of all turns, [length, batch, size]; of a backward layer, the last of the sequence first."""
    assert stack.shape is not None
    flat = ctx.node("Squeeze", [y, Const(np.array([1]))])[0]
    shape = (stack.shape[0], stack.shape[1], size)
    if direction == "forward":
        return Tensor(flat, stack.dtype, shape)
    bounds = [Const(np.array([n], np.int64)) for n in (-1, np.iinfo(np.int64).min, 0, -1)]
    out = Tensor(ctx.node("Slice", [flat, *bounds])[0], stack.dtype, shape)
    out.facts["turned"] = (flat, [0])
    return out


def _final_count(ctx: Lifter, loop: Loop, count: Any, begin: int, dtype: Any) -> Any:
    import onnx_ir as ir

    fixed = loop.fixed_count(count)
    if fixed is not None:
        return Const(np.array(begin + fixed, dtype))
    turns = ctx.op(
        "Cast", loop._limit(ctx, count), dtype=dtype, shape=(), to=int(ir.DataType.from_numpy(dtype))
    )
    return ctx.op("Add", turns, Const(np.array(begin, dtype)), dtype=dtype, shape=())


def _is_zero(start: Any) -> bool:
    if isinstance(start, Const):
        return not start.array.any()
    while isinstance(start, Tensor) and start.op in ("Identity", "Cast", "Tile", "BroadcastTo"):
        start = start.args[0]
    if isinstance(start, Const):
        return not start.array.any()
    if isinstance(start, Tensor):
        return start.op == "ZerosLike" or (start.op == "Fill" and all_are(start.args[1], 0))
    return False


def _or_zeros(part: Array | None, shape: tuple[int, int], dtype: Any) -> Array:
    return np.zeros(shape, dtype) if part is None else part


def _bias(part: Array | None, size: int, dtype: Any) -> Array:
    return np.zeros(size, dtype) if part is None else np.broadcast_to(part, (size,)).astype(dtype)
