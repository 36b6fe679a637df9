"""Names of sizes that ONNX's inference loses, where they are sizes of the model's inputs."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence

import numpy as np
import onnx_ir as ir

from attar.conversion.view import shape_of
from attar.graph import add_initializer, fresh_name, refresh_shapes
from attar.rewrite.shape_values import shape_entries
from attar.specs import Dim


def range_length(node: ir.Node) -> str | None:
    """The name of the size that the Range `node` counts up to by ones from 0; None if it counts otherwise."""
    start, limit, step = (shape_entries(v) for v in node.inputs)
    if start != [0] or step != [1] or limit is None or len(limit) != 1:
        return None
    return limit[0] if isinstance(limit[0], str) else None


def name_sizes(model: ir.Model) -> None:
    """Give, in place, what Range and Tile make the names of its sizes, and infer all other shapes anew.

    To ONNX's inference these sizes are unknown unless they are numbers. What is added to the positions in a
    sequence would lose the name of its sequence axis by that, and two sizes of later reshapes would be open.
    """
    sources = {
        dim: (value, axis)
        for value in model.graph.inputs
        for axis, dim in enumerate(shape_of(value) or ())
        if isinstance(dim, str)
    }
    stand_ins: dict[ir.Node, list[ir.Node]] = {}
    while found := _nameable(model.graph, sources, stand_ins):
        for node, shape in found:
            stand_ins[node] = _stand_in(model.graph, node, shape, sources)
        refresh_shapes(model)  # by which the shapes of what comes behind may be known
    for node, nodes in stand_ins.items():
        value, shaped = node.outputs[0], nodes[-1].outputs[0]
        value.shape = shaped.shape
        shaped.replace_all_uses_with(value)
        model.graph.remove(nodes, safe=True)


def _nameable(
    graph: ir.Graph, sources: Collection[str], done: Collection[ir.Node]
) -> list[tuple[ir.Node, list[int | str]]]:
    """Nodes whose output has names in its shape, all of them names of sizes of inputs, and that shape."""
    found = []
    for node in graph:
        shape = None if node in done else _named_shape(node)
        names = [d for d in shape or () if isinstance(d, str)]
        if shape and names and all(n in sources for n in names):
            found.append((node, shape))
    return found


def _named_shape(node: ir.Node) -> list[int | str] | None:
    """The shape of what a Range or a Tile gives in numbers and names; None if they do not say it."""
    found: list[Dim] = []
    if node.op_type == "Range" and not node.domain:
        found = [range_length(node)]
    elif node.op_type == "Tile" and not node.domain:
        shape, repeats = shape_of(node.inputs[0]), shape_entries(node.inputs[1])
        if shape is not None and repeats is not None:
            found = [_repeated(size, count) for size, count in zip(shape, repeats, strict=True)]
    known = [d for d in found if d is not None]
    return known if len(known) == len(found) else None


def _repeated(size: Dim, count: Dim) -> Dim:
    if isinstance(size, int) and isinstance(count, int):
        return size * count
    return count if size == 1 else size if count == 1 else None


def _stand_in(
    graph: ir.Graph, node: ir.Node, shape: Sequence[int | str], sources: Mapping[str, tuple[ir.Value, int]]
) -> list[ir.Node]:
    """Nodes behind `node` that reshape what it gives to `shape`, which inference follows."""
    nodes: list[ir.Node] = []

    def add(op: str, inputs: Sequence[ir.Value], **attrs: int) -> ir.Value:
        new = ir.node(op, inputs, attributes=attrs, name=fresh_name(graph, f"{node.name}_{op.lower()}"))
        new.outputs[0].name = new.name
        graph.insert_after(nodes[-1] if nodes else node, new)
        nodes.append(new)
        return new.outputs[0]

    sizes = []
    for dim in shape:
        if isinstance(dim, int):
            sizes.append(add_initializer(graph, f"{node.name}_size", np.array([dim])))
        else:
            value, axis = sources[dim]
            sizes.append(add("Shape", [value], start=axis, end=axis + 1))
    whole = add("Concat", sizes, axis=0)
    given = node.outputs[0]
    shaped = add("Reshape", [given, whole])
    given.replace_all_uses_with(shaped)
    nodes[-1].replace_input_with(0, given)
    return nodes
