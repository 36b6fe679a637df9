"""Operators of several tensors that broadcast against each other."""

from __future__ import annotations

import functools
from collections.abc import Callable

import tensorflow as tf

from attar_tensorflow.writing.context import Ctx, Lowering, Tensor, View
from attar_tensorflow.writing.ops.linear import as_row
from attar_tensorflow.writing.tensors import through, wide, widened


def _two(function: Callable[[Tensor, Tensor], Tensor]) -> Lowering:
    def lower(ctx: Ctx, view: View) -> Tensor:
        return function(ctx[0], ctx[1])

    return lower


def _compare(function: Callable[[Tensor, Tensor], Tensor]) -> Lowering:
    def lower(ctx: Ctx, view: View) -> Tensor:
        return function(ctx[0], ctx[1])

    return lower


def _many(function: Callable[[Tensor, Tensor], Tensor]) -> Lowering:
    def lower(ctx: Ctx, view: View) -> Tensor:
        return functools.reduce(function, ctx.all)

    return lower


def _div(ctx: Ctx, view: View) -> Tensor:
    a, b = ctx[0], ctx[1]
    if a.dtype.is_integer:  # towards zero, as C divides
        return wide(lambda a, b: tf.raw_ops.TruncateDiv(x=a, y=b), a, b)
    return a / b


def _mod(ctx: Ctx, view: View) -> Tensor:
    a, b = ctx[0], ctx[1]
    if view.attr("fmod", 0):
        kind = tf.float32 if a.dtype in (tf.float16, tf.bfloat16) else widened(a)
        return through(kind, lambda a, b: tf.raw_ops.TruncateMod(x=a, y=b), a, b)
    if a.dtype.is_floating:
        raise view.refuse("fmod=0 is for integers only")
    return wide(tf.math.floormod, a, b)


def _pow(ctx: Ctx, view: View) -> Tensor:
    a, b = ctx[0], ctx[1]
    if a.dtype.is_integer:
        return through(tf.float64, tf.pow, a, b)
    exponent = view.const(1) if view.is_const(1) else None
    if exponent is not None and exponent.size == 1 and float(exponent.reshape(())) == 2.0:
        shape = tf.broadcast_static_shape(a.shape, b.shape)
        return tf.square(a) if shape.rank == a.shape.rank else tf.reshape(tf.square(a), exponent.shape)
    return tf.pow(a, tf.cast(b, a.dtype))


def _add(ctx: Ctx, view: View) -> Tensor:
    a, b = ctx[0], ctx[1]
    if a.shape.rank == 2 and b.shape.rank == 2:
        producer = None if view.input(0) is None else view.input(0).producer()
        if view.is_const(1) and producer is not None and a.shape[0] != 1:
            b = as_row(b)
    return tf.add(a, b)


def _mean(ctx: Ctx, view: View) -> Tensor:
    return functools.reduce(tf.add, ctx.all) / tf.cast(len(ctx.all), ctx[0].dtype)


def _shift(ctx: Ctx, view: View) -> Tensor:
    function = tf.bitwise.left_shift if view.attr("direction") == "LEFT" else tf.bitwise.right_shift
    return function(ctx[0], ctx[1])


def _where(ctx: Ctx, view: View) -> Tensor:
    return tf.where(ctx[0], ctx[1], ctx[2])


LOWERINGS: dict[str, Lowering] = {
    "Add": _add,
    "And": _two(tf.logical_and),
    "BitShift": _shift,
    "BitwiseAnd": _two(tf.bitwise.bitwise_and),
    "BitwiseOr": _two(tf.bitwise.bitwise_or),
    "BitwiseXor": _two(tf.bitwise.bitwise_xor),
    "Div": _div,
    "Equal": _compare(tf.equal),
    "Greater": _compare(tf.greater),
    "GreaterOrEqual": _compare(tf.greater_equal),
    "Less": _compare(tf.less),
    "LessOrEqual": _compare(tf.less_equal),
    "Max": _many(tf.maximum),
    "Mean": _mean,
    "Min": _many(tf.minimum),
    "Mod": _mod,
    "Mul": _two(tf.multiply),
    "Or": _two(tf.logical_or),
    "Pow": _pow,
    "Sub": _two(tf.subtract),
    "Sum": _many(tf.add),
    "Where": _where,
    "Xor": _two(tf.math.logical_xor),
}
