"""Products of matrices."""

from __future__ import annotations

import tensorflow as tf

from attar_tensorflow.writing.context import Ctx, Lowering, Tensor, View
from attar_tensorflow.writing.tensors import wide


def matmul(a: Tensor, b: Tensor) -> Tensor:
    """numpy's matmul, vectors included."""
    if a.shape.rank == 1 and b.shape.rank == 1:
        return tf.reduce_sum(a * b)
    if a.shape.rank == 1:
        return tf.squeeze(tf.matmul(a[None, :], b), -2)
    if b.shape.rank == 1:
        return tf.squeeze(tf.matmul(a, b[:, None]), -1)
    return tf.matmul(a, b)


def _matmul(ctx: Ctx, view: View) -> Tensor:
    return wide(matmul, ctx[0], ctx[1])


def _gemm(ctx: Ctx, view: View) -> Tensor:
    a, b, c = ctx[0], ctx[1], ctx[2]
    alpha, beta = view.attr("alpha", 1.0), view.attr("beta", 1.0)
    left, right = bool(view.attr("transA", 0)), bool(view.attr("transB", 0))
    if a.dtype.is_integer:
        if not (float(alpha).is_integer() and float(beta).is_integer()):
            raise view.refuse("integers times a fraction")
        alpha, beta = int(alpha), int(beta)

    def product(*args: Tensor) -> Tensor:
        y = tf.matmul(args[0], args[1], transpose_a=left, transpose_b=right)
        y = y if alpha == 1 else y * tf.cast(alpha, y.dtype)
        if len(args) == 2:
            return y
        bias = args[2] if beta == 1 else args[2] * tf.cast(beta, y.dtype)
        return y + as_row(bias)

    return wide(product, *([a, b] if c is None else [a, b, c]))


def as_row(bias: Tensor) -> Tensor:
    """A bias (1, N) as (N,): TensorFlow's optimizer fuses it with the product before it and then fails on
    two axes."""
    return tf.reshape(bias, [-1]) if bias.shape.rank == 2 and bias.shape[0] == 1 else bias


def _einsum(ctx: Ctx, view: View) -> Tensor:
    equation = view.attr("equation").replace(" ", "")
    return tf.einsum(equation, *ctx.all)


def _det(ctx: Ctx, view: View) -> Tensor:
    return tf.linalg.det(ctx[0])


def _matmul_integer(ctx: Ctx, view: View) -> Tensor:
    a, b = (tf.cast(t, tf.int32) for t in (ctx[0], ctx[1]))
    if ctx[2] is not None:
        zero = tf.cast(ctx[2], tf.int32)
        a -= zero[..., None] if zero.shape.rank and zero.shape.rank == 1 and zero.shape[0] != 1 else zero
    if ctx[3] is not None:
        b -= tf.cast(ctx[3], tf.int32)
    return matmul(a, b)


LOWERINGS: dict[str, Lowering] = {
    "Det": _det,
    "Einsum": _einsum,
    "Gemm": _gemm,
    "MatMul": _matmul,
    "MatMulInteger": _matmul_integer,
}
