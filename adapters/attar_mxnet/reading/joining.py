"""Concatenating, splitting, slicing, padding and turning round."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import onnx_ir as ir

from attar_mxnet.reading import values
from attar_mxnet.reading.builder import Builder
from attar_mxnet.reading.operation import Operation
from attar_mxnet.reading.table import Table

table = Table()
_END = np.iinfo(np.int64).max


@table("Concat", "concat", "_npi_concatenate", "_sparse_concat", "_rnn_param_concat", "_npi_rnn_param_concat")
def concat(ctx: Builder, op: Operation) -> ir.Value:
    inputs = op.inputs
    if op.has("axis") and not op.has("dim"):
        axis = op.whole("axis")
    elif op.op == "_npi_concatenate" and values.is_none(op.raw("axis") or op.raw("dim") or "1"):
        raise op.refuse("no axis")
    else:
        axis = op.whole("dim", 1)
    return inputs[0] if len(inputs) == 1 else ctx.emit("Concat", *inputs, axis=axis % ctx.rank(inputs[0]))


@table("stack", "_npi_stack")
def stack(ctx: Builder, op: Operation) -> ir.Value:
    axis = op.whole("axis", 0) % (ctx.rank(op.input(0)) + 1)
    return ctx.emit("Concat", *(ctx.emit("Unsqueeze", v, [axis]) for v in op.inputs), axis=axis)


@table("SliceChannel", "split")
def slice_channel(ctx: Builder, op: Operation) -> Sequence[ir.Value]:
    axis = op.whole("axis", 1) % ctx.rank(op.input(0))
    return _equal_parts(ctx, op, axis, op.whole("num_outputs"), op.flag("squeeze_axis"))


def _equal_parts(ctx: Builder, op: Operation, axis: int, count: int, squeeze: bool) -> Sequence[ir.Value]:
    x = op.input(0)
    size = ctx.shape(x)[axis]
    if isinstance(size, str):
        raise op.refuse(f"axis {axis} is split in {count}, but its size is not known; give inputs or shapes")
    if count < 1 or size % count:
        raise op.refuse(f"axis {axis} of size {size} is split in {count}")
    return _parts(ctx, x, axis, [size // count] * count, squeeze)


def _parts(ctx: Builder, x: ir.Value, axis: int, sizes: Sequence[int], squeeze: bool) -> Sequence[ir.Value]:
    if len(sizes) == 1:
        parts: Sequence[ir.Value] = [x]
    else:
        parts = ctx.emit_many("Split", x, list(sizes), outputs=len(sizes), axis=axis)
    return [ctx.emit("Squeeze", p, [axis]) for p in parts] if squeeze else parts


@table("_split_v2", "_npi_split", "_npi_hsplit", "_npi_dsplit")
def split_v2(ctx: Builder, op: Operation) -> Sequence[ir.Value]:
    """Equal `sections`, or parts that begin at `indices`, the first of which is 0."""
    x = op.input(0)
    rank = ctx.rank(x)
    axis = op.whole("axis", 1) % rank
    if op.op == "_npi_hsplit":
        axis = 0 if rank == 1 else 1
    if op.op == "_npi_dsplit":
        axis = 2
    sections = op.whole("sections", 0)
    if sections:
        return _equal_parts(ctx, op, axis, sections, op.flag("squeeze_axis"))
    size = ctx.shape(x)[axis]
    starts = list(op.wholes("indices", ()))
    if isinstance(size, str) or any(s < 0 for s in starts):
        return [_slice(ctx, x, {axis: (a, b, 1)}) for a, b in zip(starts, [*starts[1:], None], strict=True)]
    sizes = [int(n) for n in np.diff([min(s, size) for s in [*starts, size]])]
    return _parts(ctx, x, axis, sizes, op.flag("squeeze_axis"))


def _slice(ctx: Builder, x: ir.Value, cuts: dict[int, tuple[int | None, int | None, int]]) -> ir.Value:
    """A slice by Python's rules; axis -> (begin, end, step)."""
    starts, ends = [], []
    for begin, end, step in cuts.values():
        starts.append(begin if begin is not None else (0 if step > 0 else _END))
        ends.append(end if end is not None else (_END if step > 0 else -_END))
    steps = [c[2] for c in cuts.values()]
    return ctx.emit("Slice", x, starts, ends, list(cuts), steps)


@table("slice", "_npi_slice", "_npx_slice", "crop", "_sparse_slice")
def slice_(ctx: Builder, op: Operation) -> ir.Value:
    x, begin, end = op.input(0), op.bounds("begin"), op.bounds("end")
    step = op.bounds("step") or (None,) * len(begin)
    cuts = {
        axis: (b, e, s or 1)
        for axis, (b, e, s) in enumerate(zip(begin, end, step, strict=True))
        if (b, e) != (None, None) or (s or 1) != 1
    }
    return _slice(ctx, x, cuts) if cuts else x


@table("slice_axis")
def slice_axis(ctx: Builder, op: Operation) -> ir.Value:
    x = op.input(0)
    axis = op.whole("axis") % ctx.rank(x)
    return _slice(ctx, x, {axis: (op.whole("begin", 0), op.whole("end", None), 1)})


@table("slice_like")
def slice_like(ctx: Builder, op: Operation) -> ir.Value:
    """The beginning of the first input, as long as the second."""
    x, like = op.input(0), op.input(1)
    other, shape = ctx.shape(like), list(ctx.shape(x))
    axes = [a % len(shape) for a in op.wholes("axes", ())] or list(range(len(shape)))
    cut = [a for a in axes if shape[a] != other[a]]
    if not cut:
        return x
    ends = ctx.sizes([other[a] for a in cut])
    return ctx.emit(
        "Slice",
        x,
        [0] * len(cut),
        ends,
        cut,
        shape=[other[a] if a in cut else d for a, d in enumerate(shape)],
    )


@table("Crop")
def crop(ctx: Builder, op: Operation) -> ir.Value:
    """A window of an image: of the size `h_w` or of a second input, at `offset` or in the middle."""
    x = op.input(0)
    shape = ctx.shape(x)
    wanted = list(ctx.shape(op.input(1))[2:]) if len(op) > 1 else list(op.wholes("h_w", (0, 0)))
    known = all(isinstance(d, int) for d in (*shape[2:], *wanted))
    offset = list(op.wholes("offset", (0, 0)))
    if op.flag("center_crop"):
        if not known:
            raise op.refuse("center_crop on an image of unknown size; give shapes={...}")
        offset = [(int(s) - int(w)) // 2 for s, w in zip(shape[2:], wanted, strict=True)]
    ends = ctx.sizes(wanted)
    if any(offset):
        ends = ctx.emit("Add", ends, offset)
    return ctx.emit("Slice", x, offset, ends, [2, 3], shape=[*shape[:2], *wanted])


@table("Pad", "pad")
def pad(ctx: Builder, op: Operation) -> ir.Value:
    """`pad_width` has the numbers before and after for each axis in turn."""
    width = op.wholes("pad_width")
    mode = op.text("mode", "constant")
    x = op.input(0)
    number = ctx.scalar(op.number("constant_value", 0.0), x) if mode == "constant" else None
    return ctx.emit("Pad", x, [*width[::2], *width[1::2]], number, mode=mode)


@table("_npi_pad")
def np_pad(ctx: Builder, op: Operation) -> ir.Value:
    width = values.to_ints(
        op.raw("pad_width").replace("(", "").replace(")", "").replace("[", "").replace("]", "")
    )
    mode = op.text("mode", "constant")
    if mode not in ("constant", "edge", "reflect") or op.text("reflect_type", "even") != "even":
        raise op.refuse(f"mode {mode}")
    x = op.input(0)
    if len(width) != 2 * ctx.rank(x):
        raise op.refuse(f"pad_width {width} for {ctx.rank(x)} axes")
    number = ctx.scalar(op.number("constant_value", 0.0), x) if mode == "constant" else None
    return ctx.emit("Pad", x, [*width[::2], *width[1::2]], number, mode=mode)


@table("reverse", "flip", "_npi_flip")
def reverse(ctx: Builder, op: Operation) -> ir.Value:
    x = op.input(0)
    axes = [a % ctx.rank(x) for a in op.wholes("axis", ())] or list(range(ctx.rank(x)))
    return _slice(ctx, x, dict.fromkeys(axes, (None, None, -1)))


@table("_np_roll")
def roll(ctx: Builder, op: Operation) -> ir.Value:
    x, shifts, axes = op.input(0), op.wholes("shift"), op.wholes("axis", ())
    if not axes:
        raise op.refuse("no axis")
    if len(shifts) == 1:
        shifts = shifts * len(axes)
    for shift, given in zip(shifts, axes, strict=True):
        axis = given % ctx.rank(x)
        size = ctx.shape(x)[axis]
        if not isinstance(size, int):
            raise op.refuse("an axis of unknown size")
        if size and shift % size:
            cut = size - shift % size
            x = ctx.emit(
                "Concat",
                _slice(ctx, x, {axis: (cut, None, 1)}),
                _slice(ctx, x, {axis: (0, cut, 1)}),
                axis=axis,
            )
    return x
