"""Channel flow of operators with weights, and of matrix products: Conv, Gemm, MatMul, recurrent cells,
attention."""

from __future__ import annotations

import onnx_ir as ir

from attar.ops.macs import einsum_terms
from attar.ops.rule import AxisLink, Contraction, LinkKind
from attar.ops.shapes import alike, in_dims, input_at, int_of, out_dims


def conv(node: ir.Node) -> list[AxisLink]:
    """X [N, C, ...], W [M, C/g, k...], B [M] -> Y [N, M, ...]. Spatial axes are pinned."""
    return _conv(node, weight=1, bias=2)


def qlinear_conv(node: ir.Node) -> list[AxisLink]:
    """As `conv`, with the weight at 3, its scale and zero point at 4 and 5, the bias at 8."""
    links = _conv(node, weight=3, bias=8)
    for index in (4, 5):
        shape = in_dims(node, index)
        if shape and shape != (1,):
            links.append(AxisLink(index, 0, 0, 1))
    return links


def _conv(node: ir.Node, *, weight: int, bias: int) -> list[AxisLink]:
    groups = int_of(node, "group", 1)
    shape, w = in_dims(node, 0), in_dims(node, weight)
    links = [AxisLink(0, 0, 0, 0)]
    if groups == 1:
        links.append(AxisLink(0, 1, 0, 1, "mix"))
    else:
        channels, filters = shape[1] if shape else None, w[0] if w else None
        if isinstance(channels, int) and isinstance(filters, int):
            links.append(_grouped(channels, filters, groups))
    links.append(AxisLink(weight, 0, 0, 1))
    if input_at(node, bias) is not None:
        links.append(AxisLink(bias, 0, 0, 1))
    return links


def _grouped(channels: int, filters: int, groups: int) -> AxisLink:
    if channels == filters == groups:  # depthwise: one filter a channel
        return AxisLink(0, 1, 0, 1)
    kind: LinkKind = "block" if channels == groups else "group"  # a group of one input channel is no mixing
    return AxisLink(0, 1, 0, 1, kind, groups, in_inner=channels // groups, out_inner=filters // groups)


def conv_contractions(node: ir.Node) -> list[Contraction]:
    """C meets W[:, C/g]; a depthwise Conv sums over nothing."""
    return _conv_contractions(node, weight=1)


def qlinear_conv_contractions(node: ir.Node) -> list[Contraction]:
    return _conv_contractions(node, weight=3)


def _conv_contractions(node: ir.Node, *, weight: int) -> list[Contraction]:
    w = in_dims(node, weight)
    groups = int_of(node, "group", 1)
    return [] if groups > 1 and w is not None and w[1] == 1 else [Contraction(0, 1, weight, 1, groups)]


def conv_transpose(node: ir.Node) -> list[AxisLink]:
    """X [N, C, ...], W [C, M/g, k...], B [M] -> Y [N, M, ...]."""
    groups = int_of(node, "group", 1)
    shape, w = in_dims(node, 0), in_dims(node, 1)
    links = [AxisLink(0, 0, 0, 0)]
    if groups == 1:
        links += [AxisLink(0, 1, 0, 1, "mix"), AxisLink(1, 1, 0, 1)]
    else:
        channels, inside = shape[1] if shape else None, w[1] if w else None
        if isinstance(channels, int) and isinstance(inside, int):
            links.append(_grouped(channels, inside * groups, groups))
            links.append(AxisLink(1, 1, 0, 1, "block", inside))  # column m serves m, m + M/g, ...
            grouped = _grouped(channels, inside * groups, groups)
            links.append(
                AxisLink(1, 0, 0, 1, grouped.kind, groups, in_inner=channels // groups, out_inner=inside)
                if grouped.kind != "same"
                else AxisLink(1, 0, 0, 1)
            )
    if input_at(node, 2) is not None:
        links.append(AxisLink(2, 0, 0, 1))
    return links


def conv_transpose_contractions(node: ir.Node) -> list[Contraction]:
    """C meets W axis 0 one to one, whatever the groups."""
    return [Contraction(0, 1, 1, 0)]


def gemm(node: ir.Node) -> list[AxisLink]:
    """A [M, K], B [K, N] (either transposed), C broadcast to [M, N]."""
    from attar.ops.elementwise import aligned

    ta, tb = int_of(node, "transA", 0), int_of(node, "transB", 0)
    links = [
        AxisLink(0, 1 if ta else 0, 0, 0),
        AxisLink(0, 0 if ta else 1, 0, 1, "mix"),
        AxisLink(1, 0 if tb else 1, 0, 1),
        AxisLink(1, 1 if tb else 0, 0, 0, "mix"),
    ]
    return links + aligned(node, [2])


def gemm_contractions(node: ir.Node) -> list[Contraction]:
    ta, tb = int_of(node, "transA", 0), int_of(node, "transB", 0)
    return [Contraction(0, 0 if ta else 1, 1, 1 if tb else 0)]


def gemm_weight_axis(node: ir.Node) -> int:
    return 0 if int_of(node, "transB", 0) else 1


def conv_transpose_weight_axis(node: ir.Node) -> int:
    return 1


def matmul_weight_axis(node: ir.Node) -> int:
    """The last axis, where the constant operand is the right one; its rows where it is the left one."""
    for index in (1, 0):
        value, shape = input_at(node, index), in_dims(node, index)
        if value is not None and shape is not None and ir.convenience.get_const_tensor(value) is not None:
            return len(shape) - 1 if index == 1 else max(len(shape) - 2, 0)
    shape = in_dims(node, 1)
    return 1 if shape is None else len(shape) - 1


def qlinear_matmul_weight_axis(node: ir.Node) -> int:
    shape = in_dims(node, 3)
    return 1 if shape is None else len(shape) - 1


def matmul(node: ir.Node) -> list[AxisLink]:
    """A [..., M, K] x B [..., K, N] -> [..., M, N]; leading axes broadcast. K of either reaches a whole new
    axis."""
    return _matmul(node, 0, 1)


def qlinear_matmul(node: ir.Node) -> list[AxisLink]:
    return _matmul(node, 0, 3)


def _matmul(node: ir.Node, left: int, right: int) -> list[AxisLink]:
    a, b, out = in_dims(node, left), in_dims(node, right), out_dims(node)
    if a is None or b is None or out is None:
        return []
    links = []
    rows, columns = len(a) >= 2, len(b) >= 2  # a vector operand has K alone, and leaves no axis
    if rows:
        links.append(AxisLink(left, len(a) - 2, 0, len(out) - 1 - columns))
        links.append(AxisLink(right, max(len(b) - 2, 0), 0, len(out) - 1 - columns, "mix"))
    if columns:
        links.append(AxisLink(right, len(b) - 1, 0, len(out) - 1))
        links.append(AxisLink(left, len(a) - 1, 0, len(out) - 1, "mix"))
    batch = len(out) - rows - columns
    for index, shape in ((left, a), (right, b)):
        own = max(len(shape) - 2, 0)
        for axis in range(own):
            target = batch - own + axis
            if alike(shape[axis], out[target]):
                links.append(AxisLink(index, axis, 0, target))
    return links


def matmul_contractions(node: ir.Node) -> list[Contraction]:
    return _matmul_contractions(node, 0, 1)


def qlinear_matmul_contractions(node: ir.Node) -> list[Contraction]:
    return _matmul_contractions(node, 0, 3)


def _matmul_contractions(node: ir.Node, left: int, right: int) -> list[Contraction]:
    a, b = in_dims(node, left), in_dims(node, right)
    if not a or not b:
        return []
    return [Contraction(left, len(a) - 1, right, max(len(b) - 2, 0))]


def einsum(node: ir.Node) -> list[AxisLink]:
    """A label of an operand that the output keeps is one axis; broadcasting by length 1 has no link."""
    terms, output = einsum_terms(node)
    out = out_dims(node)
    if output is None or out is None:
        return []
    links = []
    for index, term in enumerate(terms):
        shape = in_dims(node, index)
        if shape is None or len(shape) != len(term):
            continue
        for axis, label in enumerate(term):
            if term.count(label) == 1 and output.count(label) == 1:
                target = output.index(label)
                if alike(shape[axis], out[target]):
                    links.append(AxisLink(index, axis, 0, target))
    return links


def einsum_contractions(node: ir.Node) -> list[Contraction]:
    terms, output = einsum_terms(node)
    found = []
    for i, term in enumerate(terms):
        for j in range(i + 1, len(terms)):
            shared = [c for c in term if c in terms[j] and c not in (output or "")]
            found += [Contraction(i, term.index(c), j, terms[j].index(c)) for c in shared]
    return found


def recurrent(node: ir.Node) -> list[AxisLink]:
    """X [S, B, I], W [D, G*H, I], R [D, G*H, H], B [D, 2*G*H], states [D, B, H] -> Y [S, D, B, H], Y_h, Y_c
    [D, B, H].

    Gates are stacked on one axis, unit h of gate g at g*H + h, so that a unit is a block of size H; the
    recurrence lets every unit influence all others, hence `exact` is False. Layout 0 (sequence first) only.
    """
    r = in_dims(node, 2)
    hidden = r[2] if r is not None and len(r) == 3 else None
    if not isinstance(hidden, int) or int_of(node, "layout", 0):
        return []
    links = []
    for output, value in enumerate(node.outputs):
        if not value.name:
            continue
        batch, unit = (2, 3) if output == 0 else (1, 2)
        direction = 1 if output == 0 else 0
        links.append(AxisLink(0, 1, output, batch))
        for index in (1, 2, 3):
            if input_at(node, index) is not None:
                links.append(AxisLink(index, 0, output, direction))
                links.append(AxisLink(index, 1, output, unit, "block", hidden, exact=False))
        links.append(AxisLink(2, 2, output, unit, exact=False))
        for index in (5, 6):
            if input_at(node, index) is not None:
                links += [
                    AxisLink(index, 0, output, direction),
                    AxisLink(index, 1, output, batch),
                    AxisLink(index, 2, output, unit, exact=False),
                ]
        if input_at(node, 7) is not None:  # peepholes [D, 3*H]
            links.append(AxisLink(7, 0, output, direction))
            links.append(AxisLink(7, 1, output, unit, "block", hidden, exact=False))
    return links


def recurrent_contractions(node: ir.Node) -> list[Contraction]:
    """The features of X meet the columns of W."""
    return [Contraction(0, 2, 1, 2)]


def attention(node: ir.Node) -> list[AxisLink]:
    """Q [B, H, S, E], K [B, H, T, E], V [B, H, T, F] -> Y [B, H, S, F], for equal numbers of heads."""
    q, k, v = (in_dims(node, i) for i in range(3))
    if q is None or k is None or v is None or not len(q) == len(k) == len(v) == 4:
        return []
    links = [AxisLink(i, 0, 0, 0) for i in range(3)]
    if alike(q[1], k[1]) and alike(q[1], v[1]):
        links += [AxisLink(i, 1, 0, 1) for i in range(3)]
    causal = bool(int_of(node, "is_causal", 0))
    return [*links, AxisLink(0, 2, 0, 2, exact=not causal), AxisLink(2, 3, 0, 3)]


def attention_contractions(node: ir.Node) -> list[Contraction]:
    q = in_dims(node, 0)
    return [Contraction(0, 3, 1, 3), Contraction(1, 2, 2, 2)] if q is not None and len(q) == 4 else []
