"""A model brought into a form in which its channels can be told apart, with the same results.

What frameworks write out hides some of them: recurrent cells get states of zeros made for a computed batch,
attention folds batch and heads into one axis only to part them again behind a transposition, and planes are
resized to a computed size that names their channels and batch, too.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import onnx_ir as ir

from attar import graph
from attar.context import Context
from attar.ops.shapes import Dim, alike, dims
from attar.report import Step
from attar.rewrite import constants, rewrite
from attar.rewrite.shape_values import new_sizes

_RECURRENT = ("LSTM", "GRU", "RNN")
_MOVES = frozenset(
    {"Expand", "Slice", "Split", "Gather", "Squeeze", "Unsqueeze", "Reshape", "Transpose", "Tile", "Identity"}
)


def prepare(model: ir.Model, ctx: Context) -> None:
    """All of it, in place."""
    if any(node.op_type == "Shape" and not node.domain for node in model.graph):
        # Its notes are not of pruning.
        rewrite(model, replace(ctx, step=Step("", {})), [constants.RULES])
    split_shared_vectors(model)
    if forget_zero_states(model) + part_merged_axes(model) + scale_computed_sizes(model):
        graph.tidy(model)
        graph.refresh_shapes(model)


def split_shared_vectors(model: ir.Model) -> None:
    """Give every reader its own copy of constant vectors, or equal constants would tie layers together that
    have nothing to do with each other."""
    main = model.graph
    taken = graph.taken_names(main)
    for value in list(main.initializers.values()):
        uses = list(value.uses())
        wide = [] if value.shape is None else [d for d in value.shape if d != 1]
        if len(uses) < 2 or len(wide) != 1 or value.is_graph_output() or value.is_graph_input():
            continue
        tensor = value.const_value
        if tensor is None or any(use.node.graph is not main for use in uses):
            continue
        for use in uses[1:]:
            copy = graph.add_initializer(main, f"{value.name}_own", ir.tensor(tensor), taken)
            taken.add(copy.name or "")
            use.node.replace_input_with(use.idx, copy)


def forget_zero_states(model: ir.Model) -> int:
    """Leave out initial states that are zeros, which is what cells start from anyway; says of how many."""
    count = 0
    for node in model.graph:
        if node.op_type not in _RECURRENT or node.domain:
            continue
        for index in (5, 6):
            if index < len(node.inputs) and _is_zero(node.inputs[index]):
                node.replace_input_with(index, None)
                count += 1
    return count


def _is_zero(value: ir.Value | None) -> bool:
    array = graph.const_array(value)
    if array is not None:
        return not array.any()
    node = None if value is None else value.producer()
    if node is None or node.domain:
        return False
    if node.op_type == "ConstantOfShape":
        given = node.attributes.get("value")
        return given is None or not given.as_tensor().numpy().any()
    if node.op_type == "Concat":
        return all(_is_zero(v) for v in node.inputs)
    return node.op_type in _MOVES and _is_zero(node.inputs[0])


def part_merged_axes(model: ir.Model) -> int:
    """Reshape, Transpose, Reshape, where the first merges what the last parts again (batch and heads), as
    Reshape and Transpose that never merge it; says how often."""
    count = 0
    for node in list(model.graph):
        if node.op_type != "Reshape" or node.domain:
            continue
        middle = _made_by(node.inputs[0], "Transpose")
        first = None if middle is None else _made_by(middle.inputs[0], "Reshape")
        if middle is not None and first is not None and not node.outputs[0].is_graph_output():
            count += _part(model.graph, first, middle, node)
    return count


def _part(main: ir.Graph, first: ir.Node, middle: ir.Node, last: ir.Node) -> bool:
    source, end = first.inputs[0], last.outputs[0]
    start, merged, parted = dims(source), dims(first.outputs[0]), dims(end)
    if start is None or merged is None or parted is None or len(parted) != len(merged) + 1:
        return False
    given = middle.attributes.get("perm")
    order = list(range(len(merged)))[::-1] if given is None else [int(a) for a in given.as_ints()]
    moved = [merged[a] for a in order]
    places = [
        k
        for k, dim in enumerate(moved)
        if not isinstance(dim, int)
        and _same(moved[:k], parted[:k])
        and _same(moved[k + 1 :], parted[k + 2 :])
    ]
    if not places:
        return False
    place, axis = places[0], order[places[0]]
    apart = [*merged[:axis], *parted[place : place + 2], *merged[axis + 1 :]]
    stays = len(apart) == len(start) and sum(not alike(a, b) for a, b in zip(apart, start, strict=True)) < 2
    sizes = [
        d if isinstance(d, int) else 0 if k < len(start) and alike(d, start[k]) else -1
        for k, d in enumerate(apart)
    ]
    if not stays and (sizes.count(-1) > 1 or 0 in apart):
        return False
    moves = [p for a in order for p in ((a, a + 1) if a == axis else (a + (a > axis),))]
    value = source
    if stays:  # where all axes but one are as they were, that one is, too
        apart = list(start)
    else:
        shape = graph.add_initializer(main, f"{first.name}_parted", np.array(sizes, np.int64))
        value = _before(last, first, [value, shape], {}, apart)
    value = _before(last, middle, [value], {"perm": moves}, [apart[a] for a in moves])
    ir.convenience.replace_all_uses_with(end, value)
    return True


def _before(
    place: ir.Node,
    like: ir.Node,
    inputs: list[ir.Value | None],
    options: dict[str, Any],
    shape: Sequence[Dim],
) -> ir.Value:
    """What a new node before `place` makes, of the operator of `like`."""
    main = place.graph
    assert isinstance(main, ir.Graph)
    node = ir.node(like.op_type, inputs, options, name=graph.fresh_name(main, f"{like.name}_parted"))
    out = node.outputs[0]
    out.name, out.type = graph.fresh_name(main, f"{like.name}_out"), place.outputs[0].type
    out.shape = ir.Shape(shape)
    main.insert_before(place, node)
    return out


def scale_computed_sizes(model: ir.Model) -> int:
    """Resize to sizes that are those of its input but for the plane, as a Resize by scales, where these are
    exact; says of how many."""
    count = 0
    for node in model.graph:
        found = new_sizes(node) if node.op_type == "Resize" and not node.domain else None
        shape = dims(node.inputs[0])
        if found is None or shape is None:
            continue
        scales = np.ones(len(shape), np.float32)
        exact = True
        for axis, size in zip(*found, strict=True):
            length = shape[axis]
            if isinstance(length, int) and length > 0:
                scales[axis] = size / length
                exact &= float(scales[axis]) * length == size
            else:
                exact = False
        if exact:
            node.replace_input_with(2, graph.add_initializer(model.graph, f"{node.name}_scales", scales))
            node.resize_inputs(3)
            count += 1
    return count


def _same(some: Sequence[Dim], others: Sequence[Dim]) -> bool:
    return all(alike(a, b) for a, b in zip(some, others, strict=True))


def _made_by(value: ir.Value | None, kind: str) -> ir.Node | None:
    node = None if value is None else value.producer()
    return node if node is not None and node.op_type == kind and not node.domain else None
