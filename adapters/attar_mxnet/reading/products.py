"""Matrix products, and the attention products of GluonNLP."""

from __future__ import annotations

import math
from collections.abc import Sequence

import onnx_ir as ir

from attar_mxnet.reading.builder import Builder
from attar_mxnet.reading.dims import Dim, product, quotient
from attar_mxnet.reading.operation import Operation
from attar_mxnet.reading.table import Table

table = Table()


def _turned(ctx: Builder, x: ir.Value) -> ir.Value:
    """The last two axes swapped."""
    rank = ctx.rank(x)
    return ctx.emit("Transpose", x, perm=[*range(rank - 2), rank - 1, rank - 2])


@table("dot", "_sparse_dot")
def dot(ctx: Builder, op: Operation) -> ir.Value:
    """The last axis of the left against the first of the right. Transposing turns all axes round."""
    a, b = op.input(0), op.input(1)
    if op.flag("transpose_a") and ctx.rank(a) > 1:
        a = ctx.emit("Transpose", a, perm=[*range(1, ctx.rank(a)), 0])
    if op.flag("transpose_b") and ctx.rank(b) > 1:
        b = ctx.emit("Transpose", b, perm=[ctx.rank(b) - 1, *range(ctx.rank(b) - 1)])
    y = _contracted(ctx, a, b, 1)
    return ctx.reshape(y, [1]) if ctx.rank(y) == 0 and not op.np_shape else y


def _contracted(ctx: Builder, a: ir.Value, b: ir.Value, count: int) -> ir.Value:
    """The last `count` axes of `a` against the first `count` of `b`."""
    left, right = ctx.shape(a), ctx.shape(b)
    if count == 1 and len(right) <= 2:
        return ctx.emit("MatMul", a, b)
    rows, columns = left[: len(left) - count], right[count:]
    inner = product(right[:count])
    a = ctx.reshape(a, [product(rows), inner])
    b = ctx.reshape(b, [inner, product(columns)])
    return ctx.reshape(ctx.emit("MatMul", a, b), [*rows, *columns])


@table("batch_dot", "_npx_batch_dot")
def batch_dot(ctx: Builder, op: Operation) -> ir.Value:
    a, b = op.input(0), op.input(1)
    a = _turned(ctx, a) if op.flag("transpose_a") else a
    b = _turned(ctx, b) if op.flag("transpose_b") else b
    return ctx.emit("MatMul", a, b)


def _gemm(ctx: Builder, op: Operation) -> ir.Value:
    if op.whole("axis", -2) not in (-2, ctx.rank(op.input(0)) - 2):
        raise op.refuse("matrices on other axes than the last two")
    y = batch_dot(ctx, op)
    assert isinstance(y, ir.Value)
    alpha = op.number("alpha", 1.0)
    return y if alpha == 1.0 else ctx.emit("Mul", y, ctx.scalar(alpha, y))


@table("_linalg_gemm2", "linalg_gemm2")
def gemm2(ctx: Builder, op: Operation) -> ir.Value:
    return _gemm(ctx, op)


@table("_linalg_gemm", "linalg_gemm")
def gemm(ctx: Builder, op: Operation) -> ir.Value:
    y, c, beta = _gemm(ctx, op), op.input(2), op.number("beta", 1.0)
    return ctx.emit("Add", y, c if beta == 1.0 else ctx.emit("Mul", c, ctx.scalar(beta, c)))


@table("_linalg_syrk", "linalg_syrk")
def syrk(ctx: Builder, op: Operation) -> ir.Value:
    a, alpha = op.input(0), op.number("alpha", 1.0)
    t = _turned(ctx, a)
    y = ctx.emit("MatMul", t, a) if op.flag("transpose") else ctx.emit("MatMul", a, t)
    return y if alpha == 1.0 else ctx.emit("Mul", y, ctx.scalar(alpha, y))


@table("_npi_matmul")
def matmul(ctx: Builder, op: Operation) -> ir.Value:
    return ctx.emit("MatMul", op.input(0), op.input(1))


@table("_np_dot")
def np_dot(ctx: Builder, op: Operation) -> ir.Value:
    """numpy's: the last axis of the left against the last but one of the right; a scalar multiplies."""
    a, b = op.input(0), op.input(1)
    if 0 in (ctx.rank(a), ctx.rank(b)):
        return ctx.emit("Mul", a, b)
    if ctx.rank(b) > 2:
        rank = ctx.rank(b)
        b = ctx.emit("Transpose", b, perm=[rank - 2, *range(rank - 2), rank - 1])
    return _contracted(ctx, a, b, 1)


@table("_npi_tensordot_int_axes")
def tensordot_count(ctx: Builder, op: Operation) -> ir.Value:
    count = op.whole("axes")
    if count == 0:
        raise op.refuse("an outer product")
    return _contracted(ctx, op.input(0), op.input(1), count)


@table("_npi_tensordot")
def tensordot(ctx: Builder, op: Operation) -> ir.Value:
    a, b = op.input(0), op.input(1)
    over_a = [i % ctx.rank(a) for i in op.wholes("a_axes_summed", ())]
    over_b = [i % ctx.rank(b) for i in op.wholes("b_axes_summed", ())]
    if not over_a:
        raise op.refuse("an outer product")
    a = ctx.emit("Transpose", a, perm=[*(i for i in range(ctx.rank(a)) if i not in over_a), *over_a])
    b = ctx.emit("Transpose", b, perm=[*over_b, *(i for i in range(ctx.rank(b)) if i not in over_b)])
    return _contracted(ctx, a, b, len(over_a))


@table("_npi_einsum")
def einsum(ctx: Builder, op: Operation) -> ir.Value:
    return ctx.emit("Einsum", *op.inputs, equation=op.text("subscripts"))


# -- attention (src/operator/contrib/transformer.cc): [sequence, batch, heads * parts * width]
# ----------------


def _heads(ctx: Builder, op: Operation, x: ir.Value, parts: int) -> Sequence[ir.Value]:
    """`parts` tensors [batch * heads, sequence, width] out of [sequence, batch, heads * parts * width], in
    which the parts of one head lie side by side."""
    heads = op.whole("heads")
    length, batch, total = ctx.shape(x)
    width = quotient(total, heads * parts)
    if width is None:
        raise op.refuse(f"{total} features in {heads} heads")
    x = ctx.reshape(x, [length, batch, heads, parts, width])
    x = ctx.emit("Transpose", x, perm=[3, 1, 2, 0, 4])
    x = ctx.reshape(x, [parts, product([batch, heads]), length, width])
    if parts == 1:
        return [ctx.emit("Squeeze", x, [0])]
    split = ctx.emit_many("Split", x, outputs=parts, axis=0, num_outputs=parts)
    return [ctx.emit("Squeeze", part, [0]) for part in split]


def _scaled(ctx: Builder, op: Operation, q: ir.Value, k: ir.Value) -> ir.Value:
    width: Dim = ctx.shape(q)[-1]
    if not isinstance(width, int):
        raise op.refuse("an unknown number of features")
    q = ctx.emit("Mul", q, ctx.scalar(1 / math.sqrt(width), q))
    return ctx.emit("MatMul", q, _turned(ctx, k))


def _values(ctx: Builder, op: Operation, attention: ir.Value, v: ir.Value, batch: Dim) -> ir.Value:
    heads = op.whole("heads")
    y = ctx.emit("MatMul", attention, v)
    _, length, width = ctx.shape(y)
    y = ctx.reshape(y, [batch, heads, length, width])
    y = ctx.emit("Transpose", y, perm=[2, 0, 1, 3])
    return ctx.reshape(y, [length, batch, product([heads, width])])


@table("_contrib_interleaved_matmul_selfatt_qk")
def selfatt_qk(ctx: Builder, op: Operation) -> ir.Value:
    q, k, _ = _heads(ctx, op, op.input(0), 3)
    return _scaled(ctx, op, q, k)


@table("_contrib_interleaved_matmul_selfatt_valatt")
def selfatt_valatt(ctx: Builder, op: Operation) -> ir.Value:
    x = op.input(0)
    return _values(ctx, op, op.input(1), _heads(ctx, op, x, 3)[2], ctx.shape(x)[1])


@table("_contrib_interleaved_matmul_encdec_qk")
def encdec_qk(ctx: Builder, op: Operation) -> ir.Value:
    return _scaled(ctx, op, _heads(ctx, op, op.input(0), 1)[0], _heads(ctx, op, op.input(1), 2)[0])


@table("_contrib_interleaved_matmul_encdec_valatt")
def encdec_valatt(ctx: Builder, op: Operation) -> ir.Value:
    x = op.input(0)
    return _values(ctx, op, op.input(1), _heads(ctx, op, x, 2)[1], ctx.shape(x)[1])
