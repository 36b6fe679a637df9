"""Putting together, taking apart, padding, repeating, turning round."""

from __future__ import annotations

from typing import Any

import numpy as np

from attar_tensorflow.reading.lifter import Lift, Lifter
from attar_tensorflow.reading.table.shape import int64, vector
from attar_tensorflow.reading.values import Const, Tensor
from attar_tensorflow.reading.view import OpView


def concat(ctx: Lifter, view: OpView) -> Any:
    """ConcatV2 along an axis, in the layout of the first operand that is not as TensorFlow has it."""
    parts = [view.input(k) for k in range(len(view.inputs) - 1)]
    full = next((len(p.shape) for p in parts if p.shape is not None), None)
    if full is None:
        raise view.refuse("the rank is unknown")
    axis = int(view.need_const(len(parts), "the axis").reshape(())) % full
    parts = [p for p in parts if not (isinstance(p, Const) and p.shape[axis] == 0)] or parts[:1]
    if len(parts) == 1:
        return parts[0]
    order = next((p.order for p in parts if isinstance(p, Tensor) and p.order is not None), None)
    values = [ctx.stored(_full(ctx, p, order), order) for p in parts]
    made = ctx.node("Concat", values, axis=axis if order is None else order.index(axis))[0]
    return Tensor(made, parts[0].dtype, _joined([p.shape for p in parts], axis), order)


def _joined(shapes: list[Any], axis: int) -> Any:
    """The shape of what is put together along `axis`."""
    if any(s is None for s in shapes):
        return None
    out = [next((s[a] for s in shapes if s[a] is not None), None) for a in range(len(shapes[0]))]
    sizes = [s[axis] for s in shapes]
    out[axis] = None if None in sizes else sum(sizes)
    return tuple(out)


def _full(ctx: Lifter, p: Any, order: Any) -> Any:
    """A constant among images: with all its axes, which `stored` would strip."""
    if isinstance(p, Const) and order is not None:
        return ctx.constant(ctx.derived(p, ("full", order), lambda a: a.transpose(order)))
    return p


def pieces(ctx: Lifter, view: OpView, x: Any, axis: int, sizes: list[int]) -> tuple[Tensor, ...]:
    """`x` cut along an axis."""
    if not isinstance(x, Tensor):
        x = Tensor(ctx.plain(x), x.dtype, x.shape)
    whole, last = x, x.rank is not None and axis == x.rank - 1
    along = ctx.axis(x, axis)
    if len(set(sizes)) == 1:  # shapes in the body of a loop do not follow from a constant outside
        made = ctx.node("Split", [x.value], outputs=len(sizes), axis=along, num_outputs=len(sizes))
    else:
        made = ctx.node("Split", [x.value, vector(sizes)], outputs=len(sizes), axis=along)
    out = []
    for k, value in enumerate(made):
        shape = None if x.shape is None else (*x.shape[:axis], sizes[k], *x.shape[axis + 1 :])
        piece = Tensor(value, x.dtype, shape, x.order)
        piece.facts["columns"] = (whole, sum(sizes[:k]), sum(sizes[: k + 1])) if last else None
        out.append(piece)
    return tuple(out)


def split(ctx: Lifter, view: OpView) -> Any:
    axis = int(view.need_const(0, "the axis").reshape(())) % view.rank(1)
    count = len(view.operation.outputs)
    shape = view.shape(1) or ()
    if count == 1:
        return view.input(1)
    if shape[axis] is None:
        x = view.input(1)
        made = ctx.node("Split", [x.value], outputs=count, axis=ctx.axis(x, axis), num_outputs=count)
        return tuple(Tensor(v, x.dtype, view.out_shape(k), x.order) for k, v in enumerate(made))
    return pieces(ctx, view, view.input(1), axis, [int(shape[axis] or 0) // count] * count)


def split_v(ctx: Lifter, view: OpView) -> Any:
    sizes = view.ints(1, "the sizes")
    axis = int(view.need_const(2, "the axis").reshape(())) % view.rank(0)
    if -1 in sizes:
        whole = (view.shape(0) or ())[axis]
        if whole is None:
            raise view.refuse("a size of -1 of an axis of unknown size")
        sizes = [whole - sum(s for s in sizes if s != -1) if s == -1 else s for s in sizes]
    return view.input(0) if len(sizes) == 1 else pieces(ctx, view, view.input(0), axis, sizes)


def pad(ctx: Lifter, view: OpView) -> Tensor:
    """Pad, PadV2 and MirrorPad, in the layout that the operand is in."""
    x, full = view.input(0), view.rank(0)
    pairs = view.need_const(1, "the padding").reshape(-1, 2)
    if not isinstance(x, Tensor):
        x = Tensor(ctx.plain(x), x.dtype, x.shape)
    mode = "constant"
    value: Any = None
    if view.op == "MirrorPad":
        mode = {"REFLECT": "reflect", "SYMMETRIC": "symmetric"}[str(view.attr("mode"))]
        if mode == "symmetric":
            if (pairs > 1).any():
                raise view.refuse("symmetric padding by more than 1 has no counterpart")
            mode = "edge"  # by one, the mirror image with the edge is the edge
    elif view.op == "PadV2":
        value = view.input(2)
    order = x.order or tuple(range(full))
    pads = [int(pairs[a][k]) for k in (0, 1) for a in order]
    made = ctx.node("Pad", [x.value, vector(pads), value], mode=mode)[0]
    return Tensor(made, x.dtype, view.out_shape(), x.order)


def tile(ctx: Lifter, view: OpView) -> Any:
    many = view.const(1)
    if many is not None and (many == 1).all():
        return view.input(0)
    return ctx.op("Tile", view.input(0), int64(ctx, view.input(1)))


def reverse(ctx: Lifter, view: OpView) -> Any:
    """ReverseV2, as Slice with a step of -1. Turned twice is not turned, which bidirectional layers do."""
    x, full = view.input(0), view.rank(0)
    axes = [int(a) % full for a in view.ints(1, "the axes")]
    if not axes:
        return x
    if not isinstance(x, Tensor):
        x = Tensor(ctx.plain(x), x.dtype, x.shape)
    held = sorted(ctx.axis(x, a) for a in axes)
    before = x.facts.get("turned")
    if before is not None and before[1] == held:
        return Tensor(before[0], x.dtype, x.shape, x.order)
    least = np.iinfo(np.int64).min
    made = ctx.node(
        "Slice",
        [
            x.value,
            vector([-1] * len(held)),
            vector([least] * len(held)),
            vector(held),
            vector([-1] * len(held)),
        ],
    )[0]
    out = Tensor(made, x.dtype, x.shape, x.order)
    out.facts["turned"] = (x.value, held)
    return out


def roll(ctx: Lifter, view: OpView) -> Any:
    """Roll: the end of each axis comes to its front."""
    x: Any = view.input(0)
    shifts, axes = view.ints(1, "the shift"), view.ints(2, "the axis")
    for shift, axis in zip(shifts, axes, strict=True):
        if shift == 0:
            continue
        size = (view.shape(0) or ())[axis % view.rank(0)]
        if size is None:
            raise view.refuse("the axis has an unknown size")
        cut, where = size - shift % size, vector([axis % view.rank(0)])
        tail = ctx.op("Slice", x, vector([cut]), vector([size]), where)
        head = ctx.op("Slice", x, vector([0]), vector([cut]), where)
        x = ctx.op("Concat", tail, head, axis=axis % view.rank(0), shape=view.shape(0))
    return x


def reverse_sequence(ctx: Lifter, view: OpView) -> Tensor:
    return ctx.op(
        "ReverseSequence", view.input(0), int64(ctx, view.input(1)),
        time_axis=int(view.attr("seq_dim")), batch_axis=int(view.attr("batch_dim", 0)),
    )  # fmt: skip


LIFTINGS: dict[str, Lift] = {
    **{"ConcatV2": concat, "Split": split, "SplitV": split_v, "Pad": pad, "PadV2": pad, "MirrorPad": pad},
    **{"Tile": tile, "ReverseV2": reverse, "Roll": roll, "ReverseSequence": reverse_sequence},
}
