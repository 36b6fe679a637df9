"""Operators that move elements and compute nothing."""

from __future__ import annotations

import numpy as np

from attar_tensorflow.tflite.emit import Slot
from attar_tensorflow.tflite.lift import to_first, to_last
from attar_tensorflow.tflite.outop import Lowering, OutOp


def place(axis: int, rank: int, last: bool) -> int:
    """An axis of the IR as an axis of the form that is used."""
    axis %= rank
    return to_last(rank).index(axis) if last and rank > 2 else axis


def _like(op: OutOp, x: Slot) -> Slot | None:
    return x if op.integer else None


def _target(op: OutOp) -> Slot:
    """The shape to reshape to, from what the IR infers; at most one size is left open."""
    dims = op.out_dims()
    if dims.count(None) <= 1:
        return op.ints([-1 if d is None else d for d in dims], "shape")
    if op.view.op != "Reshape":
        raise op.refuse("more than one of its sizes is dynamic")
    given = op.view.const(1)
    if given is None:
        if op.view.attr("allowzero", 0):
            raise op.refuse("its shape is computed while the model runs")
        return op.make(
            "CAST", [op.operand(1, real=True)], (len(dims),), dtype=np.int32, base=f"{op.label}_shape"
        )
    shape = [int(n) for n in given]
    x = op.dims(0)
    if 0 in shape and not op.view.attr("allowzero", 0):
        shape = [(x[a] if x[a] is not None else -1) if n == 0 else n for a, n in enumerate(shape)]
    if shape.count(-1) > 1:
        raise op.refuse("more than one of its sizes is dynamic")
    return op.ints(shape, "shape")


def reshape(op: OutOp) -> None:
    """Reshape, Flatten, Squeeze, Unsqueeze: the elements stay in order."""
    single = op.is_last(0) and all(d == 1 for d in op.dims(0)[2:])  # channels-last is the same order
    x = op.operand(0, last=single)
    op.result("RESHAPE", [x, _target(op)], {}, like=_like(op, x))


def squeeze(op: OutOp) -> None:
    """Without the spatial axes the layout stays; else a reshape."""
    rank, out = op.rank(), len(op.out_dims())
    axes = op.view.option(1, "axes")
    gone = sorted(int(a) % rank for a in np.asarray(axes).reshape(-1)) if axes is not None else []
    if op.is_last(0) and rank > 3 and out == rank - len(gone) and gone and min(gone) > 1 and out > 2:
        x = op.operand(0, last=True)
        op.result(
            "SQUEEZE",
            [x],
            {"squeeze_dims": [place(a, rank, True) for a in gone]},
            last=True,
            like=_like(op, x),
        )
        return
    reshape(op)


def unsqueeze(op: OutOp) -> None:
    rank = op.rank()
    axes = [a % (rank + 1) for a in op.index(1, "its axes")]
    if op.is_last(0) and rank > 2 and len(axes) == 1 and axes[0] > 1:
        x = op.operand(0, last=True)
        op.result("EXPAND_DIMS", [x, op.ints(axes[0] - 1, "axis")], {}, last=True, like=_like(op, x))
        return
    reshape(op)


def transpose(op: OutOp) -> None:
    rank = op.rank()
    order = [int(a) for a in op.view.attr("perm") or range(rank)[::-1]]
    last = op.is_last(0)
    x = op.operand(0, last=last)
    if last:
        order = [to_last(rank).index(a) for a in order]
    if order == list(range(rank)):
        op.give(x)
        return
    if rank > 2 and order == to_first(rank):  # channels-last data turned for convolutions: only a relabelling
        op.give(x, last=True)
        return
    op.result("TRANSPOSE", [x, op.ints(order, "order")], {}, like=_like(op, x))


def concat(op: OutOp) -> None:
    """Codes are brought to the scale of the result first: TFLite's kernel only moves them."""
    like = op.wanted() if op.integer else None
    positions = range(len(op.view.inputs))
    last = op.rank() > 2 and any(op.is_last(i) for i in positions)
    slots = [op.operand(i, last=last) for i in positions]
    if like is not None:
        slots = [op.w.requantized(s, *like, name=f"{op.label}_operand") for s in slots]
    axis = place(int(op.view.attr("axis")), op.rank(), last)
    op.result("CONCATENATION", slots, {"axis": axis}, last=last)


def split(op: OutOp) -> None:
    last, rank = op.is_last(0), op.rank()
    axis = int(op.view.attr("axis", 0)) % rank
    outputs = range(len(op.view.outputs))
    sizes = [op.out_dims(k)[axis] for k in outputs]
    if None in sizes:
        raise op.refuse("it cuts an axis whose size is not known")
    x = op.operand(0, last=last)
    parts = [op.fresh(k, last=last, like=_like(op, x)) for k in outputs]
    inputs = [x, op.ints([int(s or 0) for s in sizes], "sizes"), op.ints(place(axis, rank, last), "axis")]
    op.w.emitter.operator("SPLIT_V", inputs, parts, {"num_splits": len(parts)})
    for k, part in enumerate(parts):
        op.give(part, k, last=last)


def slice_(op: OutOp) -> None:
    rank, last, dims = op.rank(), op.is_last(0), op.dims(0)
    begins, ends = op.index(1, "where it begins"), op.index(2, "where it ends")
    axes = [a % rank for a in op.index(3, "its axes")] if op.view.has(3) else list(range(len(begins)))
    steps = op.index(4, "its steps") if op.view.has(4) else [1] * len(begins)
    low, high, step = [0] * rank, [0] * rank, [1] * rank
    open_low, open_high = 0, (1 << rank) - 1
    for begin, end, axis, stride in zip(begins, ends, axes, steps, strict=True):
        at, size = place(axis, rank, last), dims[axis]
        step[at] = stride
        open_high &= ~(1 << at)
        if size is not None:
            b = begin + size if begin < 0 else begin
            e = end + size if end < 0 else end
            low[at] = min(max(b, 0), size if stride > 0 else size - 1)
            if (stride > 0 and e >= size) or (stride < 0 and e < 0):
                open_high |= 1 << at
            else:
                high[at] = min(max(e, 0), size)
            continue
        far = 1 << 30
        if stride < 0 and (begin >= far or begin == -1):
            open_low |= 1 << at
        elif abs(begin) >= far:
            raise op.refuse("its bounds lie outside of an axis whose size is not known")
        low[at] = 0 if abs(begin) >= far else begin
        if (stride > 0 and end >= far) or (stride < 0 and end <= -far):
            open_high |= 1 << at
        else:
            high[at] = max(min(end, far), -far)
    x = op.operand(0, last=last)
    inputs = [x, op.ints(low, "begin"), op.ints(high, "end"), op.ints(step, "step")]
    options = {"begin_mask": open_low, "end_mask": open_high}
    op.result("STRIDED_SLICE", inputs, options, last=last, like=_like(op, x))


def pad(op: OutOp) -> None:
    mode = op.view.attr("mode", "constant")
    amounts, rank, last = op.index(1, "how much it pads"), op.rank(), op.is_last(0)
    axes = [a % rank for a in op.index(3, "its axes")] if op.view.has(3) else list(range(rank))
    pairs = np.zeros((rank, 2), np.int64)
    for i, axis in enumerate(axes):
        pairs[place(axis, rank, last)] = amounts[i], amounts[i + len(axes)]
    fill = op.view.const(2)
    if op.view.has(2) and fill is None:
        raise op.refuse("the value it pads with is computed")
    x = op.operand(0, last=last)
    if (pairs < 0).any():
        raise op.refuse("it cuts off instead of padding")
    if mode == "reflect":
        op.result("MIRROR_PAD", [x, op.ints(pairs, "pads")], {"mode": 0}, last=last, like=_like(op, x))
        return
    if mode != "constant":
        raise op.refuse(f"it pads in the way {mode!r}")
    value = 0.0 if fill is None else np.asarray(fill).item()
    if value == 0:
        op.result("PAD", [x, op.ints(pairs, "pads")], {}, last=last, like=_like(op, x))
        return
    if op.integer:
        op.integer = False
        x = op.operand(0, last=last)
    op.result(
        "PADV2", [x, op.ints(pairs, "pads"), op.const(np.asarray([value], x.dtype), "fill")], {}, last=last
    )


def tile(op: OutOp) -> None:
    x = op.operand(0)
    op.result("TILE", [x, op.ints(op.index(1, "how often it repeats"), "repeats")], {}, like=_like(op, x))


def shape(op: OutOp) -> None:
    """The shape as the IR has it, so of the channels-first form."""
    start, end = op.view.attr("start", 0), op.view.attr("end")
    if start or end is not None:
        part = op.dims(0)[slice(start, end)]
        if None in part or not part:
            raise op.refuse("it gives a part of a shape that is dynamic or empty")
        op.give(op.const(np.asarray(part, np.int64)))
        return
    if op.rank() == 0:
        raise op.refuse("it is the shape of a number")
    x = op.operand(0, real=not op.has_codes(0))
    op.result("SHAPE", [x], {"out_type": 4})


LOWERINGS = {
    "Reshape": Lowering(reshape, "move", (0,)),
    "Flatten": Lowering(reshape, "move", (0,)),
    "Squeeze": Lowering(squeeze, "move", (0,)),
    "Unsqueeze": Lowering(unsqueeze, "move", (0,)),
    "Transpose": Lowering(transpose, "move", (0,)),
    "Concat": Lowering(concat, "arithmetic"),
    "Split": Lowering(split, "move", (0,)),
    "Slice": Lowering(slice_, "move", (0,)),
    "Pad": Lowering(pad, "move", (0,)),
    "Tile": Lowering(tile, "move", (0,)),
    "Shape": Lowering(shape),
}
