"""Multiply-accumulates of one run of a node. Symbolic dimensions count as 1; None means that a rank is
unknown."""

from __future__ import annotations

import math

import onnx_ir as ir

from attar.ops.shapes import Dim, count, in_dims, int_of, known, out_dims, string_of


def conv(node: ir.Node) -> int | None:
    """Elements of the output [N, M, o...] times the elements of one filter: prod(W.shape[1:]) = C/group *
    prod(kernel)."""
    return _conv(in_dims(node, 1), out_dims(node))


def qlinear_conv(node: ir.Node) -> int | None:
    """As `conv`; the weight of QLinearConv is input 3."""
    return _conv(in_dims(node, 3), out_dims(node))


def _conv(weight: tuple[Dim, ...] | None, output: tuple[Dim, ...] | None) -> int | None:
    return None if weight is None or output is None else count(output) * count(weight[1:])


def conv_transpose(node: ir.Node) -> int | None:
    """Elements of the input [N, C, i...] times prod(W.shape[1:]) = M/group * prod(kernel): each input is
    scattered so often."""
    weight, data = in_dims(node, 1), in_dims(node, 0)
    return None if weight is None or data is None else count(data) * count(weight[1:])


def deform_conv(node: ir.Node) -> int | None:
    """As `conv`; the bilinear sampling (4 more an element) is left out."""
    return conv(node)


def gemm(node: ir.Node) -> int | None:
    """M * N * K, with Y [M, N] and A [M, K] (or [K, M] with transA)."""
    a, out = in_dims(node, 0), out_dims(node)
    if a is None or out is None or len(a) != 2:
        return None
    return count(out) * known(a[0 if int_of(node, "transA", 0) else 1])


def matmul(node: ir.Node) -> int | None:
    """Elements of the output times K, the last dimension of A."""
    return _matmul(in_dims(node, 0), out_dims(node))


def qlinear_matmul(node: ir.Node) -> int | None:
    """As `matmul`."""
    return matmul(node)


def _matmul(a: tuple[Dim, ...] | None, out: tuple[Dim, ...] | None) -> int | None:
    return None if not a or out is None else count(out) * known(a[-1])


def einsum(node: ir.Node) -> int | None:
    """Product of the sizes of all labels: what a direct evaluation costs; 0 for one operand without a summed
    label."""
    terms, output = einsum_terms(node)
    shapes = [in_dims(node, i) for i in range(len(node.inputs))]
    if output is None or any(s is None or len(s) != len(t) for s, t in zip(shapes, terms, strict=False)):
        return None
    size: dict[str, int] = {}
    for shape, term in zip(shapes, terms, strict=True):
        assert shape is not None
        for dim, label in zip(shape, term, strict=True):
            size[label] = max(size.get(label, 1), known(dim))
    if len(terms) == 1:
        return 0 if set(terms[0]) == set(output) else math.prod(size.values())
    return math.prod(size.values()) * (len(terms) - 1)


def einsum_terms(node: ir.Node) -> tuple[list[str], str | None]:
    """The labels of each operand and of the output; output None for forms with an ellipsis."""
    equation = string_of(node, "equation", "").replace(" ", "")
    if "." in equation:
        return [], None
    left, arrow, right = equation.partition("->")
    terms = left.split(",")
    if not arrow:  # implicit form: labels that occur once, in alphabetical order
        right = "".join(sorted(c for c in set(left) - {","} if left.count(c) == 1))
    return terms, right


def _recurrent(node: ir.Node) -> int | None:
    """seq * batch * directions * gates * hidden * (input + hidden): W is [dirs, gates*hidden, input]."""
    data, w, r = in_dims(node, 0), in_dims(node, 1), in_dims(node, 2)
    if data is None or w is None or r is None or len(data) != 3 or len(w) != 3 or len(r) != 3:
        return None
    return known(data[0]) * known(data[1]) * (count(w) + count(r))


rnn = gru = lstm = _recurrent


def attention(node: ir.Node) -> int | None:
    """Q K^T and P V: batch * heads * q_len * kv_len * (head_size + v_head_size), for Q, K, V of rank 4 or
    3."""
    q, k, v = in_dims(node, 0), in_dims(node, 1), in_dims(node, 2)
    if q is None or k is None or v is None or not len(q) == len(k) == len(v):
        return None
    if len(q) == 4:
        return known(q[0]) * known(q[1]) * known(q[2]) * known(k[2]) * (known(q[3]) + known(v[3]))
    heads, kv_heads = int_of(node, "q_num_heads", 1), int_of(node, "kv_num_heads", 1)
    width = known(q[2]) + known(v[2]) // max(kv_heads, 1) * heads
    return known(q[0]) * known(q[1]) * known(k[1]) * width
