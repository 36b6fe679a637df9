"""Cutting out, and choosing by a condition."""

from __future__ import annotations

from typing import Any

import numpy as np

from attar_tensorflow.reading.lifter import Lift, Lifter, numbers_of
from attar_tensorflow.reading.table.shape import as_type, int64, vector
from attar_tensorflow.reading.values import Const, Tensor
from attar_tensorflow.reading.view import OpView

_FAR = np.iinfo(np.int64).max


def lift_slice(ctx: Lifter, view: OpView) -> Any:
    """Slice: begin and size, -1 for all that is left."""
    x, full = view.input(0), view.rank(0)
    begin, size = view.const(1), view.const(2)
    if not isinstance(x, Tensor):
        x = Tensor(ctx.plain(x), x.dtype, x.shape)
    if begin is not None and size is not None:
        axes = [a for a in range(full) if begin[a] != 0 or size[a] != -1]
        shape = x.shape or ()
        axes = [a for a in axes if not (begin[a] == 0 and size[a] == shape[a])]
        if not axes:
            return x
        ends = [_FAR if size[a] == -1 else int(begin[a] + size[a]) for a in axes]
        held = [ctx.axis(x, a) for a in axes]
        made = ctx.node(
            "Slice", [x.value, vector([int(begin[a]) for a in axes]), vector(ends), vector(held)]
        )[0]
        return Tensor(made, x.dtype, view.out_shape(), x.order)
    first, many = int64(ctx, view.input(1)), int64(ctx, view.input(2))
    known = numbers_of(view.inputs[2])
    total = ctx.op("Add", first, many, dtype=np.int64, shape=(full,))
    if known is None or any(not isinstance(n, int) or n < 0 for n in known):
        rest = ctx.op("Less", many, Const(np.array(0, np.int64)), dtype=bool)
        total = ctx.op("Where", rest, Const(np.array(_FAR)), total, dtype=np.int64)
    return ctx.op("Slice", x, first, total, vector(range(full)), dtype=x.dtype)


def strided_slice(ctx: Lifter, view: OpView) -> Any:
    """StridedSlice with all its masks. Bounds computed at run time may stand on their own axes."""
    x = view.input(0)
    full = view.rank(0)
    steps = view.ints(3, "the strides")
    masks = {
        m: int(view.attr(f"{m}_mask", 0)) for m in ("begin", "end", "ellipsis", "new_axis", "shrink_axis")
    }
    if not isinstance(x, Tensor):
        x = Tensor(ctx.plain(x), x.dtype, x.shape)
    begins, ends = (_entries(ctx, view, k, len(steps)) for k in (1, 2))
    plan = _Plan()
    axis = 0
    fresh = bin(masks["new_axis"] & ~masks["ellipsis"] & ((1 << len(steps)) - 1)).count("1")
    spelt = len(steps) - fresh - (1 if masks["ellipsis"] else 0)
    for k, step in enumerate(steps):
        bit = 1 << k
        if masks["ellipsis"] & bit:
            for _ in range(full - spelt):
                plan.result.append(axis)
                axis += 1
        elif masks["new_axis"] & bit:
            plan.result.append(None)
        else:
            if masks["shrink_axis"] & bit:
                plan.cut(axis, begins[k], _after(ctx, begins[k]), 1)
                plan.gone.append(axis)
            else:
                start = None if masks["begin"] & bit else begins[k]
                stop = None if masks["end"] & bit else ends[k]
                size = (x.shape or ())[axis] if x.shape is not None else None
                if not (step == 1 and (start is None or _is(start, 0)) and (stop is None or _is(stop, size))):
                    plan.cut(axis, start, stop, step)
                plan.result.append(axis)
            axis += 1
    plan.result += list(range(axis, full))
    out = plan.carry_out(ctx, view, x)
    size = (x.shape or (None,))[-1]
    if len(plan.cuts) == 1 and not plan.gone and None not in plan.result and size is not None:
        where, start, stop, step = plan.cuts[0]
        if where == full - 1 and step == 1 and isinstance(start, int) and isinstance(stop, int):
            out.facts["columns"] = (x, *slice(start, stop).indices(size)[:2])
    return out


class _Plan:
    """What a StridedSlice does: cuts, axes that go, and for each axis of the result where it comes from."""

    def __init__(self) -> None:
        self.cuts: list[tuple[int, Any, Any, int]] = []
        self.gone: list[int] = []
        self.result: list[int | None] = []

    def cut(self, axis: int, start: Any, stop: Any, step: int) -> None:
        low = -_FAR if step < 0 else _FAR
        begin = (_FAR if step < 0 else 0) if start is None else start
        self.cuts.append((axis, begin, low if stop is None else stop, step))

    def carry_out(self, ctx: Lifter, view: OpView, x: Tensor) -> Tensor:
        value, order = x.value, x.order or tuple(range(x.rank or 0))
        if len(self.gone) == 1 and len(self.cuts) == 1 and isinstance(self.cuts[0][1], int):
            axis = order.index(self.gone[0])
            value = ctx.node("Gather", [value, Const(np.array(self.cuts[0][1], np.int64))], axis=axis)[0]
        elif self.cuts:
            held = [order.index(a) for a, *_ in self.cuts]
            bounds = [_joined(ctx, [c[k] for c in self.cuts]) for k in (1, 2)]
            value = ctx.node("Slice", [value, *bounds, vector(held), vector([c[3] for c in self.cuts])])[0]
            if self.gone:
                value = ctx.node("Squeeze", [value, vector(sorted(order.index(a) for a in self.gone))])[0]
        left = [a for a in order if a not in self.gone]
        ranks = {a: k for k, a in enumerate(a for a in self.result if a is not None)}
        held_order: Any = tuple(ranks[a] for a in left)
        held_order = None if held_order == tuple(range(len(held_order))) else held_order
        shape = (
            None
            if view.out_shape() is None
            else tuple(d for d, a in zip(view.out_shape() or (), self.result, strict=True) if a is not None)
        )
        out = Tensor(value, x.dtype, shape, held_order)
        if None in self.result:
            axes = [k for k, a in enumerate(self.result) if a is None]
            made = ctx.node("Unsqueeze", [out, vector(axes)])[0]
            out = Tensor(made, x.dtype, view.out_shape())
        return out


def _entries(ctx: Lifter, view: OpView, k: int, count: int) -> list[Any]:
    """The bounds in input `k`, an int each, or a scalar tensor for one that is computed."""
    numbers = numbers_of(view.inputs[k])
    if numbers is not None and all(isinstance(n, int) for n in numbers):
        return list(numbers)
    out: list[Any] = []
    whole = None
    for j in range(count):
        known = None if numbers is None else numbers[j]
        if isinstance(known, int):
            out.append(known)
            continue
        whole = whole or int64(ctx, view.input(k))
        out.append(
            ctx.op("Gather", whole, Const(np.array([j], np.int64)), axis=0, dtype=np.int64, shape=(1,))
        )
    return out


def _is(bound: Any, number: int | None) -> bool:
    return isinstance(bound, int) and bound == number


def _after(ctx: Lifter, begin: Any) -> Any:
    """The end of a slice of one entry that begins at `begin`; for -1 that is the end of the axis."""
    if isinstance(begin, int):
        return _FAR if begin == -1 else begin + 1
    after = ctx.op("Add", begin, vector([1]), dtype=np.int64, shape=(1,))
    last = ctx.op("Equal", begin, vector([-1]), dtype=bool, shape=(1,))
    return ctx.op("Where", last, vector([_FAR]), after, dtype=np.int64, shape=(1,))


def _joined(ctx: Lifter, bounds: list[Any]) -> Any:
    if all(isinstance(b, int) for b in bounds):
        return vector(bounds)
    parts = [vector([b]) if isinstance(b, int) else b for b in bounds]
    return parts[0] if len(parts) == 1 else ctx.op("Concat", *parts, axis=0, dtype=np.int64)


def select_v2(ctx: Lifter, view: OpView) -> Any:
    condition = view.const(0)
    if (
        condition is not None
        and condition.size == 1
        and view.shape(1) == view.shape(2)
        and view.shape(1) is not None
    ):
        return view.input(1 if bool(condition.reshape(())) else 2)
    return ctx.map("Where", view.input(0), view.input(1), view.input(2), dtype=view.out_dtype())


def select(ctx: Lifter, view: OpView) -> Any:
    """The old Select: a vector as condition chooses rows."""
    condition, full = view.input(0), view.rank(1)
    if view.rank(0) == 1 and full > 1:
        condition = ctx.reshape(condition, [-1] + [1] * (full - 1))
    return ctx.map("Where", condition, view.input(1), view.input(2), dtype=view.out_dtype())


def where(ctx: Lifter, view: OpView) -> Tensor:
    """The indices of what is not zero, a row each."""
    x = view.input(0)
    if view.dtype(0) != np.bool_:
        x = ctx.op("Cast", x, dtype=bool, shape=x.shape, to=9)
    found = Tensor(ctx.node("NonZero", [x])[0], np.dtype(np.int64), (view.rank(0), None))
    return as_type(
        ctx, Tensor(ctx.node("Transpose", [found], perm=[1, 0])[0], np.dtype(np.int64), None), np.int64
    )


LIFTINGS: dict[str, Lift] = {
    **{"Slice": lift_slice, "StridedSlice": strided_slice, "Where": where},
    **{"Select": select, "SelectV2": select_v2},
}
