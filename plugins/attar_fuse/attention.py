"""Scaled dot-product attention as frameworks write it: softmax(scale q k^T + mask) v, Vaswani et al., 2017.

Recognised are scales before or behind the product, k transposed by one Transpose or through Reshapes, masks
that are added or put in by Where, and the Where(IsNaN(p), 0, p) that exporters guard the softmax with.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass, field

import numpy as np
import onnx_ir as ir

from attar.graph import const_array
from attar.rewrite.edit import at, dims, int_of, ints_of, is_float
from attar_fuse.bounds import bounds
from attar_fuse.causal import is_causal
from attar_fuse.sites import Finder, Form, Site, made_by, nodes_of, other_input

HEADS = (0, 2, 1, 3)  # [batch, length, heads, width] <-> [batch, heads, length, width]
_HIDDEN = -1e9  # a score that Where replaced by this or less has no weight; adding it comes to the same


@dataclass
class Mask:
    """What is added to the scores, or, with `fill`, put in their place where `value` says so.

    Attributes:
        keep: with `fill`, the scores stay where `value` is this.
    """

    value: ir.Value
    fill: float | None = None
    keep: bool = True


@dataclass
class Attention:
    """One attention: q, k and v as [batch, heads, length, width], or [batch, length, width] without heads.

    Attributes:
        key: k not yet transposed; None where only its rows are at hand.
        q_rows, k_rows, v_rows: the same as [batch, length, heads, width], before they were transposed.
        masks: in the order in which they are applied.
        awkward: whether it is written with more operators than it takes.
    """

    query: ir.Value
    key: ir.Value | None
    value: ir.Value
    product: ir.Node
    scores: ir.Value
    scale: float = 1.0
    masks: list[Mask] = field(default_factory=list)
    k_rows: ir.Value | None = None
    awkward: bool = False
    guarded: bool = False

    @property
    def causal(self) -> bool:
        """Whether its mask is the causal one and nothing else."""
        masks = self.masks
        return len(masks) == 1 and is_causal(masks[0].value, masks[0].fill, masks[0].keep, self.scores)

    @property
    def rank(self) -> int:
        return len(dims(self.query) or ())

    @property
    def q_rows(self) -> ir.Value | None:
        return rows_of(self.query)

    @property
    def v_rows(self) -> ir.Value | None:
        return rows_of(self.value)


def rows_of(value: ir.Value | None) -> ir.Value | None:
    """[batch, length, heads, width] behind a Transpose to [batch, heads, length, width]."""
    node = made_by(value, "Transpose")
    return node.inputs[0] if node is not None and ints_of(node, "perm") == HEADS else None


def find(model: ir.Model) -> Iterator[Site]:
    """The attentions of the main graph."""
    from attar_fuse.attention_forms import forms

    for softmax in nodes_of(model, "Softmax"):
        found = _attention(softmax)
        if isinstance(found, str):
            yield Site("attention", (softmax.outputs[0],), reason=found)
        elif found is not None:
            for outputs, some in _by_outputs(forms(found)):
                yield Site("attention", outputs, tuple(some))


def _by_outputs(pairs: list[tuple[ir.Value, Form]]) -> list[tuple[tuple[ir.Value, ...], list[Form]]]:
    """All forms of one attention make one site: at its last output, for those that reach so far."""
    outputs = dict.fromkeys(value for value, _ in pairs)
    return [((o,), [form for value, form in pairs if value is o]) for o in outputs]


def _attention(softmax: ir.Node) -> Attention | str | None:
    """The attention around a Softmax; a reason where it is one that has to stay; None where it is none."""
    weights, guarded = _behind(softmax.outputs[0])
    product = None if weights is None else _sole(weights, "MatMul")
    shape = dims(softmax.inputs[0])
    if product is None or product.inputs[0] is not weights or product.inputs[1] is None or shape is None:
        return None
    if int_of(softmax, "axis", -1) not in (-1, len(shape) - 1) or len(shape) not in (3, 4):
        return None
    masks: list[Mask] = []
    scores = _unmasked(softmax.inputs[0], masks)
    scale, value = _unscaled(scores)
    times = made_by(value, "MatMul")
    if times is None or scores is None or const_array(times.inputs[1]) is not None:
        return None
    q_scale, query = _unscaled(times.inputs[0])
    k_scale, transposed = _unscaled(times.inputs[1])
    found = _key(transposed)
    if query is None or found is None or not is_float(query):
        return None
    key, k_rows, awkward = found
    inner, key = _unscaled(key) if key is not None else (1.0, None)
    steps = sum(s != 1 for s in (scale, q_scale, k_scale, inner))
    out = Attention(
        query, key, product.inputs[1], product, times.outputs[0], scale * q_scale * k_scale * inner,
        masks[::-1], k_rows or rows_of(key), awkward or guarded or steps > 1, guarded,
    )  # fmt: skip
    if out.rank != len(shape) or len(dims(out.value) or ()) != len(shape):
        return None
    return _objection(out) or out


def _objection(found: Attention) -> str:
    for mask in found.masks:
        if mask.fill is not None and not mask.fill <= _HIDDEN:
            return f"its mask puts {mask.fill:g} in the place of scores, which leaves them some weight"
        if dims(mask.value) is None or len(dims(mask.value) or ()) > found.rank:
            return "the rank of its mask is not known, or larger than that of the scores"
        if found.guarded and not _finite(mask):
            return "its mask may be infinite for a whole row, which it guards against"
    batches = {(dims(v) or (None,))[0] for v in (found.query, found.key or found.k_rows, found.value)} - {
        None
    }
    if len(batches) > 1:
        return "its queries, keys and values are of different batches, of which one is spread over the others"
    return ""


def _finite(mask: Mask) -> bool:
    if mask.fill is not None:
        return math.isfinite(mask.fill)
    low, high = bounds(mask.value)
    return max(abs(low), abs(high)) <= float(np.finfo(np.float32).max)


def _sole(value: ir.Value, op_type: str) -> ir.Node | None:
    """The only user of `value`, if it is of this type."""
    users = [user for user, _ in value.uses()]
    fits = len(users) == 1 and users[0].op_type == op_type and users[0].domain == ""
    return users[0] if fits and not value.is_graph_output() else None


def _behind(weights: ir.Value) -> tuple[ir.Value | None, bool]:
    """The weights behind a guard Where(IsNaN(p), 0, p), and whether there is one."""
    users = {user.op_type: user for user, _ in weights.uses()}
    check, choice = users.get("IsNaN"), users.get("Where")
    if set(users) != {"IsNaN", "Where"} or check is None or choice is None:
        return weights, False
    zero = const_array(at(choice, 1))
    ok = choice.inputs[0] is check.outputs[0] and choice.inputs[2] is weights
    return (choice.outputs[0], True) if ok and zero is not None and not zero.any() else (None, False)


def _unmasked(value: ir.Value | None, masks: list[Mask]) -> ir.Value | None:
    """The scores before masks were put on, outermost first."""
    for _ in range(4):
        node = made_by(value, "Add", "Where")
        if node is None:
            return value
        if node.op_type == "Where":
            fills = [const_array(v) for v in node.inputs[1:]]
            index = next((i for i, f in enumerate(fills) if f is not None and f.size == 1), None)
            if index is None or node.inputs[0] is None or not _leads_to_product(node.inputs[2 - index]):
                return value
            fill = fills[index]
            assert fill is not None
            masks.append(Mask(node.inputs[0], float(fill.reshape(-1)[0]), keep=index == 1))
            value = node.inputs[2 - index]
            continue
        inner = next((v for v in node.inputs if _leads_to_product(v)), None)
        added = None if inner is None else other_input(node, inner)
        if inner is None or added is None:
            return value
        masks.append(Mask(added))
        value = inner
    return value


def _leads_to_product(value: ir.Value | None, depth: int = 0) -> bool:
    node = made_by(value, "MatMul", "Mul", "Div", "Add", "Where")
    if node is None or depth > 4:
        return False
    if node.op_type == "MatMul":
        return const_array(node.inputs[1]) is None
    return any(_leads_to_product(v, depth + 1) for v in node.inputs)


def _unscaled(value: ir.Value | None) -> tuple[float, ir.Value | None]:
    """`value` as a number times another value, through Mul and Div by constant scalars."""
    scale = 1.0
    while (node := made_by(value, "Mul", "Div")) is not None:
        numbers = [_scalar(v, value) for v in node.inputs]
        if numbers[1] is not None and (node.op_type == "Mul" or numbers[1]):
            scale = scale * numbers[1] if node.op_type == "Mul" else scale / numbers[1]
            value = node.inputs[0]
        elif numbers[0] is not None and node.op_type == "Mul":
            scale, value = scale * numbers[0], node.inputs[1]
        else:
            break
    return scale, value


def _scalar(value: ir.Value | None, result: ir.Value | None) -> float | None:
    array, shape = const_array(value), dims(result)
    if array is None or array.size != 1 or shape is None or array.ndim > len(shape):
        return None
    return float(array.reshape(-1)[0])


def _key(value: ir.Value | None) -> tuple[ir.Value | None, ir.Value | None, bool] | None:
    """k not transposed, or else its rows, and whether Reshapes stand in between."""
    node = made_by(value, "Transpose", "Reshape")
    if value is None or node is None or node.inputs[0] is None:
        return None
    perm = ints_of(node, "perm")
    if node.op_type == "Transpose":
        if perm in ((0, 1, 3, 2), (0, 2, 1)):
            return node.inputs[0], None, False
        return (None, node.inputs[0], False) if perm == (0, 2, 3, 1) else None
    turned = made_by(node.inputs[0], "Transpose")
    flat = made_by(None if turned is None else turned.inputs[0], "Reshape")
    if turned is None or flat is None or ints_of(turned, "perm") != (0, 2, 1):
        return None
    before, middle, after = (dims(v) for v in (flat.inputs[0], flat.outputs[0], value))
    if before is None or middle is None or after is None or len(before) != 4 or len(after) != 4:
        return None
    # Only the first two axes were joined and parted again, if the last two and one of them are as they were.
    same = None not in before[2:] and before[2:] == middle[1:] == after[:1:-1]
    same = same and any(a is not None and a == b for a, b in zip(before[:2], after[:2], strict=True))
    return (flat.inputs[0], None, True) if same else None


FINDER = Finder("attention", "softmax(scale q k^T + mask) v as one operator", find)
