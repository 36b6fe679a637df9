"""Matrix products."""

from __future__ import annotations

import numpy as np

from attar_tensorflow.tflite.emit import Slot
from attar_tensorflow.tflite.lowering.convolution import bias, integer_weights, weight
from attar_tensorflow.tflite.outop import Lowering, OutOp


def gemm(op: OutOp) -> None:
    """alpha A B + beta C with constant B: FULLY_CONNECTED, whose weights are (out, in)."""
    view = op.view
    alpha, beta = float(view.attr("alpha", 1.0)), float(view.attr("beta", 1.0))
    known = op.w.constant(op.value(1))
    trans_b = bool(view.attr("transB", 0))
    if view.attr("transA", 0) or alpha != 1.0 or (view.has(2) and beta != 1.0) or known is None:
        _general(op, alpha, beta, trans_b)
        return
    op.integer = op.integer and integer_weights(op, 1)
    x = op.operand(0)
    w = weight(op, 1, (0, 1) if trans_b else (1, 0))
    c = view.input(2)
    vector = c is None or (op.w.constant(c) is not None and _is_vector(op, 2, int(w.dims[0] or 0)))
    if not vector:
        if op.integer:
            raise op.refuse("its C is no constant vector")
        _general(op, alpha, beta, trans_b)
        return
    added = bias(op, c, x, w, int(w.dims[0] or 0))
    options = {"fused_activation_function": op.activation()}
    op.result("FULLY_CONNECTED", [x, w, added], options)


def _is_vector(op: OutOp, i: int, count: int) -> bool:
    dims = op.dims(i)
    return dims in ((), (1,), (count,), (1, count), (1, 1))


def _general(op: OutOp, alpha: float, beta: float, trans_b: bool) -> None:
    """The product as BATCH_MATMUL, the rest apart."""
    op.integer = False
    a, b = op.operand(0), op.operand(1)
    options = {"adj_x": bool(op.view.attr("transA", 0)), "adj_y": trans_b}
    dims = op.out_dims()
    value = op.make("BATCH_MATMUL", [a, b], dims, options)
    if alpha != 1.0:
        value = op.make("MUL", [value, op.const(np.float32(alpha))], dims)
    if op.view.has(2):
        c: Slot = op.operand(2)
        if beta != 1.0:
            c = op.make("MUL", [c, op.const(np.float32(beta))], c.dims)
        op.result("ADD", [value, c], {"fused_activation_function": op.activation()})
        return
    op.result("MUL", [value, op.const(np.float32(1))], {"fused_activation_function": op.activation()})


def matmul(op: OutOp) -> None:
    """With a constant matrix on the right it is FULLY_CONNECTED, else BATCH_MATMUL."""
    known = op.w.constant(op.value(1))
    if op.rank(0) < 2 or op.rank(1) < 2:
        _with_vector(op)
        return
    if known is not None and known[0].ndim == 2:
        op.integer = op.integer and integer_weights(op, 1)
        x, w = op.operand(0), weight(op, 1, (1, 0))
        added = bias(op, op.group.bias, x, w, int(w.dims[0] or 0))
        options = {"fused_activation_function": op.activation(), "keep_num_dims": op.rank(0) > 2}
        op.result("FULLY_CONNECTED", [x, w, added], options)
        return
    if op.integer and (any(op.params(i).axis is not None for i in (0, 1)) or _is_offset(op)):
        op.integer = False
    op.result("BATCH_MATMUL", [op.operand(0), op.operand(1)], {})


def _is_offset(op: OutOp) -> bool:
    """Whether the second operand has a zero point, which XNNPACK forgets: such a product is left in float."""
    if not np.any(op.params(1).zero):
        return False
    op.w.notes.add("products of activations whose second operand has a zero point are left in float")
    return True


def _with_vector(op: OutOp) -> None:
    """A vector is a row on the left and a column on the right; its axis goes again."""
    op.integer = False
    a, b = op.operand(0), op.operand(1)
    if op.rank(0) == 1:
        a = op.make("RESHAPE", [a, op.ints([1, -1], "shape")], (1, *a.dims))
    if op.rank(1) == 1:
        b = op.make("RESHAPE", [b, op.ints([-1, 1], "shape")], (*b.dims, 1))
    outer = a.dims if len(a.dims) >= len(b.dims) else b.dims
    value = op.make("BATCH_MATMUL", [a, b], (*outer[:-2], a.dims[-2], b.dims[-1]), {})
    dims = op.out_dims()
    if dims.count(None) > 1:
        raise op.refuse("more than one of its sizes is dynamic")
    op.result("RESHAPE", [value, op.ints([-1 if d is None else d for d in dims], "shape")])


LOWERINGS = {
    "Gemm": Lowering(gemm, "arithmetic", (0, 1), fuses=True),
    "MatMul": Lowering(matmul, "arithmetic", (0, 1), fuses=True),
}
