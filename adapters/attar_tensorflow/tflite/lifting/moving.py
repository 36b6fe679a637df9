"""Operators that move elements and compute nothing: reshaping, transposing, joining, cutting, padding."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from attar_tensorflow.tflite.lift import to_first
from attar_tensorflow.tflite.liftop import Op


def axis_of(op: Op, axis: int, rank: int, first: bool) -> int:
    """An axis of the file as an axis of the form that is used.

    Raises:
        ConversionError: there is no such axis.
    """
    if not -rank <= axis < rank:
        raise op.refuse(f"it has no axis {axis}")
    axis %= rank
    return to_first(rank).index(axis) if first and rank > 2 else axis


def in_order(op: Op, values: Sequence[int], first: bool) -> np.ndarray:
    """One number an axis, in the order of the form that is used."""
    rank = len(values)
    return np.asarray([values[a] for a in to_first(rank)] if first and rank > 2 else values, np.int64)


def reshape(op: Op) -> None:
    """The shape is input 1, or an option in old files."""
    single = op.is_first(0) and all(d == 1 for d in op.shape(0)[1:-1])  # channels-first is the same order
    x = op.real(0, first=single)
    if op.has(1) and op.array(1) is None:
        op.give(op.emit("Reshape", [x, op.long(1)], allowzero=1))
        return
    given = op.array(1) if op.has(1) else None
    shape = given if given is not None else np.asarray(op.option("new_shape", ()))
    wanted = [int(d) for d in shape.reshape(-1)]
    if any(d < -1 for d in wanted) or wanted.count(-1) > 1:
        raise op.refuse(f"its shape {wanted} is impossible")
    attributes = {"allowzero": 1} if 0 in wanted else {}
    op.give(op.emit("Reshape", [x, np.asarray(wanted, np.int64)], **attributes))


def squeeze(op: Op) -> None:
    rank = op.rank(0)
    axes = [int(a) % rank for a in op.option("squeeze_dims", ())] if rank else []
    if not axes:
        axes = [a for a, d in enumerate(op.shape(0)) if d == 1]
    kept = [a for a in range(rank) if a not in axes]
    # Batch and channels stay where they are, or the channels alone are left: the layout carries over.
    first = op.is_first(0) and (kept in ([0, rank - 1], [rank - 1]) or {0, rank - 1} <= set(kept))
    places = sorted(axis_of(op, a, rank, first) for a in axes)
    value = (
        op.emit("Squeeze", [op.real(0, first), np.asarray(places, np.int64)]) if axes else op.real(0, first)
    )
    op.give(value, first=first)


def expand_dims(op: Op) -> None:
    (axis,) = op.whole(1, "the new axis")
    rank = op.rank(0)
    if not -rank - 1 <= axis <= rank:
        raise op.refuse(f"it cannot have a new axis {axis}")
    axis %= rank + 1
    first = op.is_first(0) and 0 < axis < rank
    op.give(op.emit("Unsqueeze", [op.real(0, first), np.asarray([axis + first])]), first=first)


def transpose(op: Op) -> None:
    order = op.whole(1, "the order of the axes")
    rank = op.rank(0)
    if sorted(order) != list(range(rank)):
        raise op.refuse(f"{order} is no order of {rank} axes")
    first = op.is_first(0) and rank > 2
    if first:  # from the form that exists straight to the wanted one
        order = [to_first(rank).index(a) for a in order]
    x = op.real(0, first)
    op.give(x if order == list(range(rank)) else op.emit("Transpose", [x], perm=order))


def concatenation(op: Op) -> None:
    values, first = op.aligned(*range(op.count))
    op.give(op.emit("Concat", values, axis=axis_of(op, op.option("axis"), op.rank(0), first)), first=first)


def pack(op: Op) -> None:
    axis = op.option("axis")
    if not -op.rank(0) - 1 <= axis <= op.rank(0):
        raise op.refuse(f"it has no axis {axis}")
    axis %= op.rank(0) + 1
    values = [op.settled(op.emit("Unsqueeze", [op.real(i), np.asarray([axis])]), i) for i in range(op.count)]
    op.give(op.emit("Concat", values, axis=axis))


def unpack(op: Op) -> None:
    axis = axis_of(op, op.option("axis"), op.rank(0), False)
    x = op.real(0)
    parts = [x] if op.outputs == 1 else op.emits("Split", [x], op.outputs, axis=axis, num_outputs=op.outputs)
    for k, part in enumerate(parts):
        op.give(op.emit("Squeeze", [op.settled(part, 0), np.asarray([axis])]), k)


def split(op: Op) -> None:
    """Inputs are the axis, then the data."""
    first = op.is_first(1)
    (axis,) = op.whole(0, "its axis")
    place = axis_of(op, axis, op.rank(1), first)
    size = op.shape(1)[axis]
    if size is None or size % op.outputs:
        raise op.refuse(f"{size} elements cannot be cut into {op.outputs} equal parts")
    _cut(op, 1, [size // op.outputs] * op.outputs, place, first)


def split_v(op: Op) -> None:
    """Inputs are the data, the sizes and the axis; one size may be -1."""
    first = op.is_first(0)
    (axis,) = op.whole(2, "its axis")
    place = axis_of(op, axis, op.rank(0), first)
    sizes, whole = op.whole(1, "the sizes of its parts"), op.shape(0)[axis]
    if sizes.count(-1) == 1 and whole is not None:
        sizes[sizes.index(-1)] = whole - sum(s for s in sizes if s >= 0)
    if min(sizes) < 0 or len(sizes) != op.outputs:
        raise op.refuse(f"it cannot be cut into parts of {sizes}")
    _cut(op, 0, sizes, place, first)


def _cut(op: Op, data: int, sizes: list[int], axis: int, first: bool) -> None:
    x = op.real(data, first)
    if len(sizes) == 1:
        op.give(op.emit("Identity", [x]), first=first)
        return
    for k, part in enumerate(op.emits("Split", [x, np.asarray(sizes, np.int64)], len(sizes), axis=axis)):
        op.give(part, k, first=first)


def slice_(op: Op) -> None:
    """Begin and size; a size of -1 reaches to the end."""
    if op.array(1) is None or op.array(2) is None:
        begin, size, zero = op.long(1), op.long(2), np.zeros(1, np.int64)
        end = op.emit("Add", [begin, size])
        far = np.full(op.rank(0), np.iinfo(np.int64).max)
        end = op.emit("Where", [op.emit("Less", [size, zero]), far, end])
        op.give(op.emit("Slice", [op.real(0), begin, end]))
        return
    first = op.is_first(0)
    begin_, size_ = op.whole(1, "where it begins"), op.whole(2, "its size")
    ends = [np.iinfo(np.int64).max if n < 0 else b + n for b, n in zip(begin_, size_, strict=True)]
    axes = np.arange(op.rank(0))
    op.give(
        op.emit("Slice", [op.real(0, first), in_order(op, begin_, first), in_order(op, ends, first), axes]),
        first=first,
    )


def strided_slice(op: Op) -> None:
    """Python's `x[begin:end:step, ...]`, told by bit masks."""
    rank, ellipsis = op.rank(0), op.option("ellipsis_mask")
    begin, end, step = (
        op.whole(i, w) for i, w in ((1, "where it begins"), (2, "where it ends"), (3, "its step"))
    )
    if (
        op.option("offset")
        or ellipsis & (ellipsis - 1)
        or 0 in step
        or not len(begin) == len(end) == len(step)
    ):
        raise op.refuse("its bounds are given in an unusual way")
    shrink, new = op.option("shrink_axis_mask"), op.option("new_axis_mask")
    entries = len(begin)
    inserted = sum(1 for i in range(entries) if new >> i & 1 and not ellipsis >> i & 1)
    starts, gone, fresh = [], [], []
    axis = place = 0  # of the input; of the result
    for i in range(entries):
        if ellipsis >> i & 1:
            skipped = rank - (entries - 1 - inserted)
            axis, place = axis + skipped, place + skipped
            continue
        if new >> i & 1:
            fresh.append(place)
            place += 1
            continue
        if axis >= rank:
            raise op.refuse("it has more bounds than axes")
        whole = np.iinfo(np.int64).max
        if shrink >> i & 1:
            starts.append((axis, begin[i], whole if begin[i] == -1 else begin[i] + 1, 1))
            gone.append(axis)
        else:
            low = begin[i] if not op.option("begin_mask") >> i & 1 else 0 if step[i] > 0 else whole
            high = end[i] if not op.option("end_mask") >> i & 1 else whole if step[i] > 0 else -whole
            if (low, high, step[i]) != (0, whole, 1):
                starts.append((axis, low, high, step[i]))
            place += 1
        axis += 1
    first = op.is_first(0) and not gone and not fresh
    value = op.real(0, first)
    if starts:
        axes, lows, highs, strides = (np.asarray(c, np.int64) for c in zip(*starts, strict=True))
        axes = np.asarray([axis_of(op, int(a), rank, first) for a in axes], np.int64)
        value = op.emit("Slice", [value, lows, highs, axes, strides])
    if gone:
        value = op.emit("Squeeze", [op.settled(value, 0) if starts else value, np.asarray(gone, np.int64)])
    if fresh:
        value = op.emit(
            "Unsqueeze", [op.settled(value, 0) if starts or gone else value, np.asarray(fresh, np.int64)]
        )
    op.give(value, first=first)


def pad(op: Op) -> None:
    """Amounts as (axis, before and after); codes are padded with real zero, or with input 2."""
    first = op.is_first(0)
    inputs = [op.real(0, first), _amounts(op, first)]
    if op.has(2):
        fill = op.array(2)
        if fill is not None and op.quantized(2) is None:
            inputs.append(op.constant(fill.reshape(())))
        else:
            inputs.append(op.emit("Squeeze", [op.real(2)]) if op.rank(2) else op.real(2))
    op.give(op.emit("Pad", inputs), first=first)


def mirror_pad(op: Op) -> None:
    first = op.is_first(0)
    amounts = _amounts(op, first)
    if op.option("mode"):
        # SYMMETRIC repeats the edge. ONNX knows only the reflection without; amounts of 1 are the same as
        # "edge".
        if amounts.max(initial=0) > 1:
            raise op.refuse("it mirrors more than one element with the edge repeated")
        op.give(op.emit("Pad", [op.real(0, first), amounts], mode="edge"), first=first)
        return
    op.give(op.emit("Pad", [op.real(0, first), amounts], mode="reflect"), first=first)


def _amounts(op: Op, first: bool) -> np.ndarray:
    pairs = op.need(1, "how much it pads").astype(np.int64)
    if pairs.shape != (op.rank(0), 2):
        raise op.refuse("its amounts do not fit its axes")
    if first and op.rank(0) > 2:
        pairs = pairs[to_first(op.rank(0))]
    return pairs.T.reshape(-1)


def tile(op: Op) -> None:
    op.give(op.emit("Tile", [op.real(0), op.long(1)]))


def broadcast_to(op: Op) -> None:
    op.give(op.emit("Expand", [op.real(0), op.long(1)]))


def reverse_v2(op: Op) -> None:
    first, rank = op.is_first(0), op.rank(0)
    axes = [axis_of(op, a, rank, first) for a in op.whole(1, "its axes")]
    far = np.full(len(axes), np.iinfo(np.int64).max)
    bounds = [far, -far, np.asarray(axes, np.int64), np.full(len(axes), -1, np.int64)]
    op.give(op.emit("Slice", [op.real(0, first), *bounds]), first=first)


def reverse_sequence(op: Op) -> None:
    time, batch = op.option("seq_dim"), op.option("batch_dim")
    if sorted((time, batch)) != [0, 1]:
        raise op.refuse("time and batch are not the first two axes")
    op.give(op.emit("ReverseSequence", [op.real(0), op.long(1)], time_axis=time, batch_axis=batch))


LIFTINGS = {
    "RESHAPE": reshape,
    "SQUEEZE": squeeze,
    "EXPAND_DIMS": expand_dims,
    "TRANSPOSE": transpose,
    "CONCATENATION": concatenation,
    "PACK": pack,
    "UNPACK": unpack,
    "SPLIT": split,
    "SPLIT_V": split_v,
    "SLICE": slice_,
    "STRIDED_SLICE": strided_slice,
    "PAD": pad,
    "PADV2": pad,
    "MIRROR_PAD": mirror_pad,
    "TILE": tile,
    "BROADCAST_TO": broadcast_to,
    "REVERSE_V2": reverse_v2,
    "REVERSE_SEQUENCE": reverse_sequence,
}
