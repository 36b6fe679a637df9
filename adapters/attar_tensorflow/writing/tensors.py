"""Small things that many lowerings say: sizes, axes, layouts, arithmetic in a type that has the kernels."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np
import tensorflow as tf

from attar_tensorflow.writing.context import Ctx, Lowering, Tensor, View


def dims(x: Tensor) -> list[int | Tensor]:
    """Sizes of `x`: Python numbers where they are known, else int32 scalars."""
    if x.shape.rank is None:
        raise ValueError("a tensor of unknown rank")
    known = x.shape.as_list()
    if None not in known:
        return known
    now = tf.shape(x)
    return [now[i] if d is None else d for i, d in enumerate(known)]


def rank_of(x: Tensor, view: View) -> int:
    """Rank of `x`; refused if it is unknown."""
    if x.shape.rank is None:
        raise view.refuse("the rank of an input is unknown")
    return int(x.shape.rank)


def static_dims(x: Tensor, axes: Sequence[int], view: View, what: str = "a size") -> list[int]:
    """Sizes along `axes`, which must be known; refused if they are not."""
    sizes = [x.shape[a] for a in axes]
    if any(s is None for s in sizes):
        raise view.refuse(f"{what} is known only while the model runs")
    return [int(s) for s in sizes]


def axis_of(axis: int, rank: int) -> int:
    return int(axis) + rank if axis < 0 else int(axis)


def all_static(sizes: Sequence[int | Tensor]) -> bool:
    return all(isinstance(s, int | np.integer) for s in sizes)


def product(sizes: Sequence[int | Tensor]) -> int | Tensor:
    total: int | Tensor = 1
    for size in sizes:
        total = total * size
    return total


def to_last(x: Tensor) -> Tensor:
    """N, C, ... -> N, ..., C."""
    rank = x.shape.rank
    return x if rank < 3 else tf.transpose(x, [0, *range(2, rank), 1])


def to_first(x: Tensor) -> Tensor:
    """N, ..., C -> N, C, ..."""
    rank = x.shape.rank
    return x if rank < 3 else tf.transpose(x, [0, rank - 1, *range(1, rank - 1)])


def images(lower: Lowering) -> Lowering:
    """Make a lowering of a channels-last image operator serve both layouts of its first operand."""

    def both(ctx: Ctx, view: View) -> object:
        if view.last:
            return lower(ctx, view)
        first = ctx[0]
        if rank_of(first, view) < 3:
            raise view.refuse("its input has no spatial axis")
        result = lower(Ctx([to_last(first), *ctx.tensors[1:]], ctx.training, ctx.subgraph, ctx.extra), view)
        return tuple(map(to_first, result)) if isinstance(result, tuple) else to_first(result)

    return both


def scale_of(vector: Tensor, rank: int, axis: int) -> Tensor:
    """A vector made to broadcast along `axis` of a tensor of `rank`."""
    shape = [1] * rank
    shape[axis] = -1
    return tf.reshape(vector, shape)


def through(dtype: tf.DType, function: Callable[..., Tensor], *args: Tensor) -> Tensor:
    """`function` of `args` computed in `dtype`, the result in the type of the first argument."""
    return tf.cast(function(*(tf.cast(a, dtype) for a in args)), args[0].dtype)


def widened(x: Tensor) -> tf.DType:
    """The type to compute small and unsigned integers in: TensorFlow lacks many of their kernels."""
    if x.dtype in (tf.int8, tf.uint8, tf.int16, tf.uint16):
        return tf.int32
    if x.dtype in (tf.uint32, tf.uint64):
        return tf.int64  # values beyond 2**63 do not occur in the sizes and counts that models compute
    return x.dtype


def wide(function: Callable[..., Tensor], *args: Tensor) -> Tensor:
    """`function` of `args`, in a wider integer type where theirs has few kernels."""
    dtype = widened(args[0])
    return function(*args) if dtype == args[0].dtype else through(dtype, function, *args)


def full(shape: Sequence[int | Tensor], value: float | Tensor, dtype: tf.DType) -> Tensor:
    return tf.fill([tf.cast(s, tf.int32) for s in shape], tf.cast(value, dtype))


def stack(sizes: Sequence[int | Tensor], dtype: tf.DType = tf.int32) -> Tensor:
    """Sizes as one vector."""
    if all_static(sizes):
        return tf.constant(np.asarray(sizes, dtype.as_numpy_dtype).reshape(-1))
    return tf.stack([tf.cast(s, dtype) for s in sizes])
