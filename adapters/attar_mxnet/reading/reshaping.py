"""Shapes: MXNet's codes of `reshape`, and all that moves, adds or repeats axes."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import onnx_ir as ir

from attar_mxnet.reading.builder import Builder
from attar_mxnet.reading.dims import Dim, product, quotient, safe_name, split_dim
from attar_mxnet.reading.layers import flat
from attar_mxnet.reading.operation import Operation
from attar_mxnet.reading.table import Table

table = Table()


def _size(ctx: Builder, op: Operation, old: Sequence[Dim], new: Sequence[Dim | None]) -> list[Dim]:
    """`new` with its one unknown size worked out."""
    if sum(d is None for d in new) > 1:
        raise op.refuse("two sizes are left open")
    if None not in new:
        return [d for d in new if d is not None]
    missing = quotient(product(old), product(d for d in new if d is not None))
    if missing is None:
        if all(isinstance(d, int) for d in (*old, *(d for d in new if d is not None))):
            raise op.refuse(f"{list(old)} does not go into {['?' if d is None else d for d in new]}")
        missing = safe_name(f"{op.name}.{new.index(None)}")
    return [missing if d is None else d for d in new]


def _codes(op: Operation, shape: Sequence[Dim], codes: Sequence[int]) -> list[Dim | None]:
    """What the codes of `Reshape` stand for: 0 keeps an axis, -1 is worked out, -2 keeps all that are
    left, -3 makes two one, -4 makes one two, of the two sizes that follow."""
    new: list[Dim | None] = []
    left, todo = list(shape), list(codes)

    def take() -> Dim:
        if not left:
            raise op.refuse(f"codes {list(codes)} for {len(shape)} axes")
        return left.pop(0)

    while todo:
        code = todo.pop(0)
        if code == 0:
            new.append(take())
        elif code == -1:
            new.append(None)
            if left:
                left.pop(0)
        elif code == -2:
            new += left
            left = []
        elif code == -3:
            new.append(product([take(), take()]))
        elif code == -4:
            whole, first, second = take(), todo.pop(0), todo.pop(0)
            if first == -1:
                new += [quotient(whole, second) if second != -1 else None, second if second != -1 else None]
            else:
                new += [first, quotient(whole, first) if second == -1 else second]
        elif code > 0:
            new.append(code)
            if left:
                left.pop(0)
        else:
            raise op.refuse(f"code {code}")
    return new


@table("Reshape", "reshape")
def reshape(ctx: Builder, op: Operation) -> ir.Value:
    x = op.input(0)
    old = ctx.shape(x)
    codes = list(op.wholes("shape", ()))
    if not codes:  # before 0.9 there was target_shape, where 0 is worked out
        target = op.wholes("target_shape", ())
        if not target:
            return x
        new: list[Dim | None] = [None if d in (0, -1) else d for d in target]
        if op.flag("keep_highest"):
            new[0] = old[0]
        return _reshaped(ctx, op, x, new)
    if op.flag("reverse"):
        return _reshaped(ctx, op, x, _codes(op, old[::-1], codes[::-1])[::-1])
    return _reshaped(ctx, op, x, _codes(op, old, codes))


def _reshaped(ctx: Builder, op: Operation, x: ir.Value, new: Sequence[Dim | None]) -> ir.Value:
    old = ctx.shape(x)
    dims = _size(ctx, op, old, new)
    (before, names), (after, same) = split_dim(product(old)), split_dim(product(dims))
    if names == same and before != after:
        raise op.refuse(f"{list(old)} does not go into {dims}")
    return ctx.reshape(x, dims)


@table("_np_reshape")
def np_reshape(ctx: Builder, op: Operation) -> ir.Value:
    if op.text("order", "C") != "C":
        raise op.refuse(f"order {op.text('order')}")
    new: list[Dim | None] = [None if d == -1 else d for d in op.wholes("newshape", ())]
    return _reshaped(ctx, op, op.input(0), new)


@table("_npx_reshape", "_npi_reshape")
def npx_reshape(ctx: Builder, op: Operation) -> ir.Value:
    """-2 keeps an axis, -3 drops one of size 1, -4 keeps all that are left, -5 makes two one, -6 makes one
    two.
    """
    if op.text("order", "C") != "C":
        raise op.refuse(f"order {op.text('order')}")
    x, codes = op.input(0), op.wholes("newshape", ())
    if op.flag("reverse") and any(c < -1 for c in codes):
        raise op.refuse("reverse")
    meaning = {-2: 0, -4: -2, -5: -3, -6: -4}
    if -3 in codes or 0 in codes:
        raise op.refuse(f"codes {codes}")
    return _reshaped(ctx, op, x, _codes(op, ctx.shape(x), [meaning.get(c, c) for c in codes]))


@table("Flatten", "flatten", "_npx_batch_flatten")
def flatten(ctx: Builder, op: Operation) -> ir.Value:
    return flat(ctx, op.input(0))


@table("reshape_like", "_npx_reshape_like")
def reshape_like(ctx: Builder, op: Operation) -> ir.Value:
    x, like = op.input(0), op.input(1)
    old, other = ctx.shape(x), ctx.shape(like)

    def part(side: str, rank: int) -> tuple[int, int]:
        begin, end = op.whole(f"{side}_begin", 0), op.whole(f"{side}_end", rank)
        return begin + rank * (begin < 0), end + rank * (end < 0)

    a, b = part("lhs", len(old))
    c, d = part("rhs", len(other))
    return _reshaped(ctx, op, x, [*old[:a], *other[c:d], *old[b:]])


@table("expand_dims", "_npi_expand_dims")
def expand_dims(ctx: Builder, op: Operation) -> ir.Value:
    return ctx.emit("Unsqueeze", op.input(0), [op.whole("axis")])


@table("squeeze", "_np_squeeze")
def squeeze(ctx: Builder, op: Operation) -> ir.Value:
    x = op.input(0)
    shape = ctx.shape(x)
    axes = [a % len(shape) for a in op.wholes("axis", ())]
    if not axes:
        if any(isinstance(d, str) for d in shape):
            raise op.refuse("which axes are of size 1 depends on the input")
        axes = [i for i, d in enumerate(shape) if d == 1]
    if len(axes) == len(shape) and not op.np_shape:
        axes = axes[1:]  # outside numpy's shapes there are no scalars
    return ctx.emit("Squeeze", x, axes) if axes else x


@table("transpose", "_np_transpose")
def transpose(ctx: Builder, op: Operation) -> ir.Value:
    rank = ctx.rank(op.input(0))
    axes = op.wholes("axes", ()) or tuple(range(rank))[::-1]
    return ctx.emit("Transpose", op.input(0), perm=[a % rank for a in axes])


@table("SwapAxis", "swapaxes", "_npi_swapaxes")
def swap_axis(ctx: Builder, op: Operation) -> ir.Value:
    order = list(range(ctx.rank(op.input(0))))
    a, b = op.whole("dim1", 0), op.whole("dim2", 0)
    order[a], order[b] = order[b], order[a]
    return ctx.emit("Transpose", op.input(0), perm=order)


@table("_np_moveaxis")
def moveaxis(ctx: Builder, op: Operation) -> ir.Value:
    rank = ctx.rank(op.input(0))
    source = [a % rank for a in op.wholes("source")]
    target = [a % rank for a in op.wholes("destination")]
    order = [i for i in range(rank) if i not in source]
    for place, axis in sorted(zip(target, source, strict=True)):
        order.insert(place, axis)
    return ctx.emit("Transpose", op.input(0), perm=order)


@table("broadcast_to", "_npi_broadcast_to")
def broadcast_to(ctx: Builder, op: Operation) -> ir.Value:
    x = op.input(0)
    wanted, old = op.wholes("shape", ()), ctx.shape(x)
    kept = (-2 if op.op.startswith("_np") else 0, -1)
    shift = len(wanted) - len(old)
    dims = [old[i - shift] if d in kept and i >= shift else d for i, d in enumerate(wanted)]
    return expanded(ctx, x, dims)


def expanded(ctx: Builder, x: ir.Value, dims: Sequence[Dim]) -> ir.Value:
    return x if tuple(dims) == ctx.shape(x) else ctx.emit("Expand", x, ctx.sizes(dims), shape=dims)


@table("broadcast_axis", "broadcast_axes")
def broadcast_axis(ctx: Builder, op: Operation) -> ir.Value:
    x = op.input(0)
    dims = list(ctx.shape(x))
    for axis, size in zip(op.wholes("axis", ()), op.wholes("size", ()), strict=True):
        dims[axis] = size
    return expanded(ctx, x, dims)


@table("broadcast_like")
def broadcast_like(ctx: Builder, op: Operation) -> ir.Value:
    x, other = op.input(0), ctx.shape(op.input(1))
    dims = list(ctx.shape(x))
    if not op.has("lhs_axes"):
        return expanded(ctx, x, other)
    for axis, place in zip(op.wholes("lhs_axes"), op.wholes("rhs_axes"), strict=True):
        dims[axis] = other[place]
    return expanded(ctx, x, dims)


@table("tile", "_npi_tile")
def tile(ctx: Builder, op: Operation) -> ir.Value:
    x, reps = op.input(0), list(op.wholes("reps", ()))
    rank = ctx.rank(x)
    if len(reps) > rank:
        x = ctx.reshape(x, [1] * (len(reps) - rank) + list(ctx.shape(x)))
    reps = [1] * (ctx.rank(x) - len(reps)) + reps
    return ctx.emit("Tile", x, reps)


@table("repeat", "_np_repeat", "_npi_repeats")
def repeat(ctx: Builder, op: Operation) -> ir.Value:
    x, count = op.input(0), op.whole("repeats")
    if not op.has("axis"):
        x = ctx.reshape(x, [product(ctx.shape(x))])
    axis = op.whole("axis", 0) % ctx.rank(x)
    dims = list(ctx.shape(x))
    x = ctx.emit("Unsqueeze", x, [axis + 1])
    wide = [*dims[: axis + 1], count, *dims[axis + 1 :]]
    x = expanded(ctx, x, wide)
    return ctx.reshape(x, [*dims[:axis], product([dims[axis], count]), *dims[axis + 1 :]])


@table("depth_to_space")
def depth_to_space(ctx: Builder, op: Operation) -> ir.Value:
    return ctx.emit("DepthToSpace", op.input(0), blocksize=op.whole("block_size"), mode="DCR")


@table("space_to_depth")
def space_to_depth(ctx: Builder, op: Operation) -> ir.Value:
    return ctx.emit("SpaceToDepth", op.input(0), blocksize=op.whole("block_size"))


@table("shape_array", "_npx_shape_array")
def shape_array(ctx: Builder, op: Operation) -> ir.Value:
    return ctx.emit("Shape", op.input(0))


@table("size_array")
def size_array(ctx: Builder, op: Operation) -> ir.Value:
    return ctx.reshape(ctx.emit("Size", op.input(0)), [1])


@table("diag")
def diagonal(ctx: Builder, op: Operation) -> ir.Value:
    """The diagonal of matrices of known size, or the matrix that has a vector as its diagonal."""
    x, k = op.input(0), op.whole("k", 0)
    shape = ctx.shape(x)
    if len(shape) == 1 and isinstance(shape[0], int) and shape[0] + abs(k) < 4096:
        eye = np.eye(shape[0] + abs(k), k=k)[max(0, -k) : max(0, -k) + shape[0]]
        spread = ctx.emit("Mul", ctx.reshape(x, [shape[0], 1]), ctx.const(eye.astype(ctx.dtype(x))))
        return ctx.emit("Pad", spread, [max(0, -k), 0, max(0, k), 0])
    if len(shape) != 2 or op.whole("axis1", 0) != 0 or op.whole("axis2", 1) != 1:
        raise op.refuse("other axes than the two of a matrix")
    if not all(isinstance(d, int) for d in shape):
        raise op.refuse("a matrix of unknown size")
    rows, columns = int(shape[0]), int(shape[1])
    places = np.array([[i, i + k] for i in range(rows) if 0 <= i + k < columns], np.int64)
    return ctx.emit("GatherND", x, ctx.const(places))
