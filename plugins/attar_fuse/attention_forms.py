"""What an attention may be written as: ONNX's Attention (opset 23), ONNX Runtime's MultiHeadAttention, or the
plain operators without detours.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import onnx_ir as ir

from attar.graph import const_array
from attar.rewrite.edit import Array, at, dims, int_of, ints_of
from attar_fuse.attention import HEADS, Attention, Mask
from attar_fuse.sites import CONTRIB, Form, Tape, Values, made_by

OPSET = 23
"""Of Attention and RMSNormalization."""


def forms(found: Attention) -> list[tuple[ir.Value, Form]]:
    """(what is replaced, the form) pairs, those that replace most first."""
    out: list[tuple[ir.Value, Form]] = []
    heads, target = _heads(found), _joined(found)
    rows = (found.q_rows, found.k_rows, found.v_rows)
    if heads is not None and target is not None and all(r is not None for r in rows):
        q, k, v = (r for r in rows if r is not None)
        for causal in {found.causal: None, False: None}:
            for contrib in (False, True):
                form = _on_rows(found, (q, k, v), heads, target, contrib=contrib, causal=causal)
                out.append((target, form))
    elif found.key is not None:
        for causal in {found.causal: None, False: None}:
            out.append((found.product.outputs[0], _on_heads(found, found.key, causal=causal)))
    if found.awkward:
        out.append((found.product.outputs[0], _plain(found)))
    return out


def _heads(found: Attention) -> int | None:
    """The number of heads: the same of q, k and v, and certain."""
    counts = set()
    for rows in (found.q_rows, found.k_rows, found.v_rows):
        shape, width = dims(rows), _width(rows)
        if shape is None or width is None or not isinstance(shape[3], int) or width % shape[3]:
            return None
        counts.add(width // shape[3])
    return counts.pop() if len(counts) == 1 else None


def _width(rows: ir.Value | None) -> int | None:
    """heads times width of [batch, length, heads, width]: from its shape, or from what was split."""
    shape = dims(rows)
    if shape is None or len(shape) != 4:
        return None
    if isinstance(shape[2], int) and isinstance(shape[3], int):
        return shape[2] * shape[3]
    split = made_by(rows, "Reshape")
    source = dims(split.inputs[0]) if split is not None else None
    # With other leading sizes the Reshape that relies on this number would fail, never give a wrong result.
    return source[-1] if source is not None and len(source) == 3 and isinstance(source[-1], int) else None


def _joined(found: Attention) -> ir.Value | None:
    """Where the heads are joined again: behind the Transpose, or the Reshape behind that."""
    users = [u for u, _ in found.product.outputs[0].uses()]
    turn = users[0] if len(users) == 1 else None
    if turn is None or turn.op_type != "Transpose" or ints_of(turn, "perm") != HEADS:
        return None
    if found.product.outputs[0].is_graph_output():
        return None
    after = [u for u, _ in turn.outputs[0].uses()]
    join = after[0] if len(after) == 1 and not turn.outputs[0].is_graph_output() else None
    return join.outputs[0] if join is not None and _joins(join) else turn.outputs[0]


def _joins(node: ir.Node) -> bool:
    """Whether it is a Reshape that says the same of [batch, length, heads * width]: nothing copied of the
    last two axes."""
    if node.op_type != "Reshape" or node.domain:
        return False
    sizes = const_array(at(node, 1))
    return bool(int_of(node, "allowzero", 0)) or sizes is None or 0 not in sizes[2:].tolist()


def _on_rows(
    found: Attention, rows: tuple[ir.Value, ...], heads: int, target: ir.Value, *, contrib: bool, causal: bool
) -> Form:
    """One operator on [batch, length, heads * width], which needs no Transpose."""
    widths = [_width(r) or 0 for r in rows]
    sources = [_source(r) for r in rows]
    join = made_by(target, "Reshape")
    sizes = None if join is None else join.inputs[1]
    masks = () if causal else tuple(m.value for m in found.masks)
    inputs = (*sources, *masks, *(() if sizes is None else (sizes,)))

    def make(tape: Tape, v: Values) -> list[ir.Value]:
        flat = []
        for source, width in zip(sources, widths, strict=True):
            value = v[source]
            if len(dims(source) or ()) == 4:
                value = tape.one("Reshape", [value, tape.ints("joined", 0, 0, width)], source)
            flat.append(value)
        mask = None if causal else _mask(found, tape, v, lambda t: (flat[t], 1))
        attributes: dict[str, float | int] = {"scale": found.scale}
        if contrib:
            attributes |= {"num_heads": heads, **({"unidirectional": 1} if causal else {})}
            rest = [None, None, mask] if mask is not None else []
            (out,) = tape.node(
                "MultiHeadAttention", [*flat, *rest], attributes, like=found.query, domain=CONTRIB
            )
        else:
            attributes |= {"q_num_heads": heads, "kv_num_heads": heads, "is_causal": int(causal)}
            given = [*flat, *([mask] if mask is not None else [])]
            (out,) = tape.node("Attention", given, attributes, like=found.query)
        if join is not None and sizes is not None:
            keep = {"allowzero": int_of(join, "allowzero", 0)}
            return tape.node("Reshape", [out, v[sizes]], keep, like=found.query)
        return [tape.one("Reshape", [out, tape.ints("parted", 0, 0, heads, widths[2] // heads)], found.query)]

    name = ("MultiHeadAttention" if contrib else "Attention") + (" (causal)" if causal else "")
    return Form(name, inputs, make, 0 if contrib else OPSET, contrib)


def _source(rows: ir.Value) -> ir.Value:
    """[batch, length, heads * width], where that is certain to be what `rows` was split from; else `rows`."""
    split = made_by(rows, "Reshape")
    before, after = dims(split.inputs[0]) if split is not None else None, dims(rows)
    if split is None or split.inputs[0] is None or before is None or after is None or len(before) != 3:
        return rows
    return split.inputs[0] if None not in before[:2] and before[:2] == after[:2] else rows


def _on_heads(found: Attention, key: ir.Value, *, causal: bool) -> Form:
    """Attention on [batch, heads, length, width]; without heads, on [batch, length, width] with one."""

    def make(tape: Tape, v: Values) -> list[ir.Value]:
        q, k, w = v[found.query], v[key], v[found.value]
        mask = None if causal else _mask(found, tape, v, lambda t: ((q, k)[t], found.rank - 2))
        attributes: dict[str, float | int] = {"scale": found.scale, "is_causal": int(causal)}
        if found.rank == 3:
            attributes |= {"q_num_heads": 1, "kv_num_heads": 1}
        given = [q, k, w, *([mask] if mask is not None else [])]
        return tape.node("Attention", given, attributes, like=found.query)

    masks = () if causal else tuple(m.value for m in found.masks)
    name = "Attention (causal)" if causal else "Attention"
    return Form(name, (found.query, key, found.value, *masks), make, OPSET)


def _plain(found: Attention) -> Form:
    """MatMul, one scale, masks, Softmax, MatMul."""
    source = found.k_rows if found.k_rows is not None else found.key
    assert source is not None
    perm = (0, 2, 3, 1) if found.k_rows is not None else ((0, 1, 3, 2) if found.rank == 4 else (0, 2, 1))

    def make(tape: Tape, v: Values) -> list[ir.Value]:
        like = found.query
        k = tape.one("Transpose", [v[source]], like, perm=list(perm))
        scores = tape.one("MatMul", [v[found.query], k], like)
        if found.scale != 1:
            scores = tape.one("Mul", [scores, tape.constant("scale", _number(found.scale, like))], like)
        for mask in found.masks:
            if mask.fill is None:
                scores = tape.one("Add", [scores, v[mask.value]], like)
                continue
            fill = tape.constant("fill", _number(mask.fill, like))
            pair = [scores, fill] if mask.keep else [fill, scores]
            scores = tape.one("Where", [v[mask.value], *pair], like)
        weights = tape.one("Softmax", [scores], like, axis=-1)
        return [tape.one("MatMul", [weights, v[found.value]], like)]

    inputs = (found.query, source, found.value, *(m.value for m in found.masks))
    return Form("MatMul, Softmax and MatMul without detours", inputs, make)


def _number(number: float, like: ir.Value) -> Array:
    assert like.dtype is not None
    return np.asarray(number).astype(like.dtype.numpy())


def _mask(
    found: Attention, tape: Tape, v: Values, where: Callable[[int], tuple[ir.Value, int]]
) -> ir.Value | None:
    """All masks as one to be added, [1 or batch, 1 or heads, length of q, length of k].

    Args:
        where: 0 (q) or 1 (k) -> a value and the axis of its length.
    """
    if not found.masks:
        return None
    like, total, sure = found.query, None, False
    for mask in found.masks:
        one = _wide(tape, v[mask.value], mask, found.rank)
        if mask.fill is not None:
            zero, fill = (tape.constant(n, _number(x, like)) for n, x in (("zero", 0.0), ("fill", mask.fill)))
            one = tape.one("Where", [one, *((zero, fill) if mask.keep else (fill, zero))], like)
        sure |= _spans(mask.value, found.scores)
        total = one if total is None else tape.one("Add", [total, one], like)
    if sure:
        return total
    # Kernels take a mask of one row for all queries only when it is written out.
    lengths = []
    for t in (0, 1):
        value, axis = where(t)
        lengths += tape.node("Shape", [value], {"start": axis, "end": axis + 1})
    sizes = tape.node("Concat", [tape.ints("ones", 1, 1), *lengths], {"axis": 0})
    assert total is not None
    return tape.one("Expand", [total, *sizes], like)


def _wide(tape: Tape, value: ir.Value, mask: Mask, rank: int) -> ir.Value:
    """A mask with four axes."""
    count = len(dims(mask.value) or ())
    axes = [1] if rank == 3 and count == 3 else list(range(4 - count))
    if not axes:
        return value
    return tape.one("Unsqueeze", [value, tape.ints("axes", *axes)], mask.value)


def _spans(mask: ir.Value, scores: ir.Value) -> bool:
    """Whether a mask certainly has a row for every query and a column for every key."""
    mine, theirs = (dims(v) for v in (mask, scores))
    if mine is None or theirs is None or len(mine) < 2:
        return False
    return None not in mine[-2:] and mine[-2:] == theirs[-2:]
