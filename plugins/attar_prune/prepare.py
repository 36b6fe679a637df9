"""A model brought into a form in which its channels can be told apart, with the same results.

What frameworks write out hides some of them: recurrent cells get states of zeros made for a computed batch,
and attention folds batch and heads into one axis only to part them again behind a transposition.
"""

from __future__ import annotations

import numpy as np
import onnx_ir as ir

from attar import graph
from attar.ops.shapes import alike, dims

_RECURRENT = ("LSTM", "GRU", "RNN")
_MOVES = frozenset(
    {"Expand", "Slice", "Split", "Gather", "Squeeze", "Unsqueeze", "Reshape", "Transpose", "Tile", "Identity"}
)


def prepare(model: ir.Model) -> None:
    """All of it, in place."""
    split_shared_vectors(model)
    if forget_zero_states(model) + part_merged_axes(model):
        graph.tidy(model)


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
        middle = _made_by(node.inputs[0], "Transpose") if node.op_type == "Reshape" and not node.domain else None
        first = None if middle is None else _made_by(middle.inputs[0], "Reshape")
        if middle is None or first is None or node.outputs[0].is_graph_output():
            continue
        source, end = first.inputs[0], node.outputs[0]
        start, merged, parted = dims(source), dims(first.outputs[0]), dims(end)
        if start is None or merged is None or parted is None or len(parted) != len(merged) + 1:
            continue
        order = [int(a) for a in middle.attributes["perm"].as_ints()]
        moved = [merged[a] for a in order]
        place = next((k for k, dim in enumerate(moved) if not isinstance(dim, int)
                      and all(alike(a, b) for a, b in zip(moved[:k], parted[:k], strict=True))
                      and all(alike(a, b) for a, b in zip(moved[k + 1 :], parted[k + 2 :], strict=True))),
                     None)  # fmt: skip
        if place is None:
            continue
        axis = order[place]
        apart = [*merged[:axis], parted[place], parted[place + 1], *merged[axis + 1 :]]
        sizes = [
            d if isinstance(d, int) else 0 if k < len(start) and alike(d, start[k]) else -1
            for k, d in enumerate(apart)
        ]
        if sizes.count(-1) > 1 or 0 in [d for d in apart if isinstance(d, int)]:
            continue
        moves = [[a + (a > axis)] if a != axis else [a, a + 1] for a in order]
        main = model.graph
        shape = graph.add_initializer(main, f"{first.name}_parted", np.array(sizes, np.int64))
        steps = [
            ir.node("Reshape", [source, shape], name=graph.fresh_name(main, f"{first.name}_parted")),
            ir.node("Transpose", [], {"perm": [a for part in moves for a in part]}),
        ]
        steps[1] = ir.node(
            "Transpose", [steps[0].outputs[0]], {"perm": [a for part in moves for a in part]},
            name=graph.fresh_name(main, f"{middle.name}_parted"),
        )  # fmt: skip
        for step, shown in zip(steps, (apart, parted), strict=True):
            out = step.outputs[0]
            out.name, out.type = graph.fresh_name(main, f"{step.name}_out"), end.type
            out.shape = ir.Shape(shown)
        main.insert_before(node, steps)
        ir.convenience.replace_all_uses_with(end, steps[1].outputs[0])
        count += 1
    return count


def _made_by(value: ir.Value | None, kind: str) -> ir.Node | None:
    node = None if value is None else value.producer()
    return node if node is not None and node.op_type == kind and not node.domain else None
