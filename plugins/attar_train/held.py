"""What a weight holds, as part of the graph: its zeros as a mask, its few values as a codebook.

The notes are those of `attar.invariants`. A weight with held zeros or a held pattern becomes Masked(weight,
mask); one with held values becomes Shared(codebook, indices), where the numbers of the codebook are trained
and zero stays zero. `released` brings back the one array that the reader saw.
"""

from __future__ import annotations

import json
from collections.abc import Collection
from dataclasses import dataclass
from typing import Any

import numpy as np
import onnx_ir as ir

from attar import graph, invariants
from attar.graph.learned import mark_learned
from attar_train.operators import DOMAIN, MASKED, NOTE, SHARED

Array = np.ndarray[Any, np.dtype[Any]]


@dataclass(frozen=True)
class Mask:
    """Initializers of a weight that is pruned while it is trained: the numbers, the mask, and the scores of
    movement, if they are gathered."""

    weight: str
    mask: str
    scores: str | None = None


class Holder:
    """Puts masks and codebooks into the graphs of one model.

    Args:
        taken: names in use.
        pruned: weights that get a mask whether or not they hold zeros; it will be changed by training.
        scored: movement is gathered for them.
    """

    def __init__(self, taken: set[str], pruned: Collection[str] = (), scored: bool = False) -> None:
        self._taken, self.pruned, self._scored = taken, frozenset(pruned), scored
        self.masks = self.codebooks = 0
        self.made: dict[str, Mask] = {}

    def hold(
        self, owner: ir.Graph, name: str, value: ir.Value, numbers: Array, held: invariants.Held
    ) -> ir.Value:
        """What readers of a weight of `owner` are to read instead, so that it keeps what is `held`.

        Args:
            name: of the weight in the model as it was.
            value: what is trained.
            numbers: what the weight stands for; `value` may hold them to within a rounding.
        """
        fixed = held.zeros or held.pattern is not None
        if held.values and numbers.size:
            return self._shared(owner, value, numbers, held, fixed)
        if name in self.pruned:
            mask = numbers != 0 if fixed else np.ones(numbers.shape, np.bool_)
            return self._masked(owner, value, mask, name)
        if fixed and not numbers.all():
            return self._masked(owner, value, numbers != 0)
        return value

    def _masked(self, owner: ir.Graph, value: ir.Value, mask: Array, name: str = "") -> ir.Value:
        stored = graph.add_initializer(owner, f"{value.name}_mask", mask.astype(np.uint8), self._taken)
        mark_learned(stored, False)
        mark_learned(value)
        inputs = [value, stored]
        if name and self._scored:
            zeros = np.zeros(mask.shape, (value.dtype or ir.DataType.FLOAT).numpy())
            inputs.append(graph.add_initializer(owner, f"{value.name}_scores", zeros, self._taken))
            mark_learned(inputs[2], False)
        if name:
            self.made[name] = Mask(*(str(v.name) for v in inputs))
        self.masks += 1
        return self._node(owner, MASKED, inputs, value, {}, mask.shape)

    def _shared(
        self, owner: ir.Graph, value: ir.Value, numbers: Array, held: invariants.Held, fixed: bool
    ) -> ir.Value:
        book, indices, axis = codebook(numbers, held.axis)
        kind = numbers.dtype
        places = indices.astype(np.uint8 if book.shape[-1] <= 256 else np.int32)
        stored = graph.add_initializer(owner, f"{value.name}_codebook", book.astype(kind), self._taken)
        chosen = graph.add_initializer(owner, f"{value.name}_indices", places, self._taken)
        mark_learned(stored)
        mark_learned(chosen, False)
        source = self._masked(owner, stored, book != 0) if fixed and not book.all() else stored
        self.codebooks += 1
        attributes = {} if axis is None else {"axis": axis}
        return self._node(owner, SHARED, [source, chosen], value, attributes, numbers.shape)

    def _node(  # noqa: PLR0917
        self, owner: ir.Graph, op: str, inputs: list[ir.Value], of: ir.Value, attributes: dict[str, int],
        shape: tuple[int, ...],
    ) -> ir.Value:  # fmt: skip
        name = graph.fresh_name(owner, f"{of.name}/{op.lower()}", self._taken)
        node = ir.node(op, inputs, attributes, domain=DOMAIN, name=name)
        node.metadata_props[NOTE] = json.dumps({"is": "held", "name": of.name})
        out = node.outputs[0]
        out.name = graph.fresh_name(owner, f"{of.name}_{op.lower()}", self._taken)
        out.type, out.shape = ir.TensorType(of.dtype or ir.DataType.FLOAT), ir.Shape(shape)
        # Constants make it, so it may stand first, before every reader.
        owner.insert_before(next(iter(owner)), node)
        if inputs[0].producer() is not None:  # and behind what feeds it
            owner.remove(node)
            owner.insert_after(inputs[0].producer(), node)  # type: ignore[arg-type]
        return out


def hold_floats(model: ir.Model, holder: Holder) -> None:
    """Every float weight of `model` that holds something is read through its mask or codebook."""
    for owner in list(model.graphs()):
        for value in list(owner.initializers.values()):
            held = invariants.held(value)
            array = graph.const_array(value)
            asked = held.kinds or value.name in holder.pruned
            if not asked or array is None or value.is_graph_output():
                continue
            if value.dtype not in (ir.DataType.FLOAT, ir.DataType.DOUBLE, ir.DataType.FLOAT16):
                continue
            uses = list(value.uses())
            source = holder.hold(owner, str(value.name), value, array, held)
            if source is not value:
                for user, place in uses:
                    user.replace_input_with(place, source)
                if source.producer().op_type == SHARED:  # type: ignore[union-attr]
                    # The weight comes back by this name, with its notes.
                    source.metadata_props.update(value.metadata_props)
                    del owner.initializers[value.name]  # type: ignore[arg-type]


def codebook(numbers: Array, axis: int) -> tuple[Array, Array, int | None]:
    """`numbers` as a codebook and indices into it.

    One codebook serves the whole tensor where channels draw from the same values; where each has its own (as
    after scaling by channel) there is one row for each entry of `axis`.

    Returns:
        (codebook, indices, axis, or None with one codebook).
    """
    whole, places = np.unique(numbers, return_inverse=True)
    axis = axis if axis < numbers.ndim else 0
    rows = np.moveaxis(numbers, axis, 0).reshape(numbers.shape[axis], -1) if numbers.ndim else numbers[None]
    parts = [np.unique(row, return_inverse=True) for row in rows]
    if 2 * len(whole) <= sum(len(values) for values, _ in parts) or len(parts) < 2:
        return whole, places.reshape(numbers.shape), None
    size = max(len(values) for values, _ in parts)
    book = np.stack([np.pad(values, (0, size - len(values)), mode="edge") for values, _ in parts])
    moved = np.stack([index.reshape(-1) for _, index in parts])
    shape = (numbers.shape[axis], *np.delete(numbers.shape, axis))
    return book, np.moveaxis(moved.reshape(shape), 0, axis), axis


def released(value: ir.Value | None) -> Array | None:
    """The numbers behind `value`: a constant, or what masks and codebooks make of one."""
    array = graph.const_array(value)
    if array is not None or value is None:
        return array
    node = value.producer()
    if node is None or node.domain != DOMAIN or node.op_type not in (MASKED, SHARED):
        return None
    first, second = released(node.inputs[0]), graph.const_array(node.inputs[1])
    if first is None or second is None:
        return None
    if node.op_type == MASKED:
        return np.where(second != 0, first, np.zeros((), first.dtype))
    if first.ndim == 1:
        return first[second]
    along = node.attributes["axis"].as_int()
    rows = np.arange(len(first)).reshape([-1 if a == along else 1 for a in range(second.ndim)])
    return np.asarray(first[rows, second])
