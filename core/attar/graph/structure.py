"""Walking, copying and tidying a model, and the notes on its origin that survive copying and saving."""

from __future__ import annotations

from collections.abc import Iterator

import onnx_ir as ir
from onnx_ir.passes.common import RemoveUnusedFunctionsPass, RemoveUnusedNodesPass

from attar.errors import VerifyError
from attar.graph.constants import taken_names

_PREFIX = "attar."


def all_nodes(model: ir.Model) -> Iterator[ir.Node]:
    """Every node, those of subgraphs (If, Loop, Scan) included. Safe to edit while iterating."""
    return iter(ir.traversal.RecursiveGraphIterator(model.graph))


def all_values(model: ir.Model) -> Iterator[ir.Value]:
    """Every value once: graph inputs, initializers and node outputs of the main graph and all subgraphs."""
    for graph in model.graphs():
        inputs = list(graph.inputs)
        yield from inputs
        yield from [v for v in graph.initializers.values() if not v.is_graph_input()]
        for node in graph:
            yield from node.outputs


def clone(model: ir.Model) -> ir.Model:
    """A copy that shares nothing but the tensors, which are never edited in place.

    `model.meta` is not copied; what must survive goes to `set_provenance`.
    """
    copy = model.clone()
    for value in all_values(copy):
        # onnx-ir shares the type objects, and `value.dtype = ...` writes into them.
        if isinstance(value.type, ir.TensorType):
            value.type = ir.TensorType(value.type.dtype, denotation=value.type.denotation)
    return copy


def tidy(model: ir.Model) -> None:
    """Remove what nothing uses, sort the nodes, and make value names unique. Graph inputs and outputs stay.

    Raises:
        VerifyError: the graph has a cycle.
    """
    try:
        model.graph.sort()  # sorted first, so that one backward sweep finds everything dead
    except ValueError as error:
        raise VerifyError(f"the graph cannot be sorted: {error}") from error
    RemoveUnusedNodesPass()(model)
    RemoveUnusedFunctionsPass()(model)  # type: ignore[no-untyped-call]
    for graph in model.graphs():
        for name, value in list(graph.initializers.items()):
            if not (value.uses() or value.is_graph_output() or value.is_graph_input()):
                del graph.initializers[name]
    unique_names(model)
    used = {n.domain for n in all_nodes(model)} | {"", "ai.onnx"}
    used |= {n.domain for f in model.functions.values() for n in f.all_nodes()}
    for domain in [d for d in model.opset_imports if d not in used]:
        del model.opset_imports[domain]


def unique_names(model: ir.Model) -> bool:
    """Name every node and value, with no name twice in any scope. Interface names stay. True if anything
    changed."""
    changed = False
    taken = taken_names(model.graph)

    def fresh(base: str) -> str:
        nonlocal changed
        changed = True
        name, count = base, 0
        while name in taken:
            count += 1
            name = f"{base}_{count}"
        taken.add(name)
        return name

    seen_values: set[str] = {v.name for v in (*model.graph.inputs, *model.graph.outputs) if v.name}
    interface = {id(v) for v in (*model.graph.inputs, *model.graph.outputs)}
    seen_nodes: set[str] = set()
    for value in all_values(model):
        if id(value) in interface:
            continue
        node = value.producer()
        if not value.name:
            # An output without name and use is an omitted optional output: it has to stay nameless.
            if node is None or value.uses() or value.is_graph_output():
                value.name = fresh(f"{node.name or node.op_type}_output" if node is not None else "value")
                seen_values.add(value.name)
        elif value.name in seen_values:
            value.name = fresh(value.name)
            seen_values.add(value.name)
        else:
            seen_values.add(value.name)
    for node in all_nodes(model):
        if not node.name or node.name in seen_nodes:
            first = next((v.name for v in node.outputs if v.name), node.op_type)
            node.name = fresh(node.name or f"{node.op_type}_{first}")
        seen_nodes.add(node.name)
    return changed


def set_provenance(model: ir.Model, **facts: str) -> None:
    """Record facts about the origin of `model` (framework, source, ...) that survive clone and save."""
    for key, text in facts.items():
        model.metadata_props[_PREFIX + key] = str(text)


def provenance(model: ir.Model) -> dict[str, str]:
    """The facts recorded by `set_provenance`."""
    return {k.removeprefix(_PREFIX): v for k, v in model.metadata_props.items() if k.startswith(_PREFIX)}
