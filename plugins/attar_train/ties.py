"""Which readers of a weight share it.

Exporters store equal tensors once: five untrained scales, all ones, are one initializer. Such weights are not
tied and go apart before training. A weight with content that several layers read is tied and stays so, also
where the layers want it in different layouts.
"""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np
import onnx_ir as ir

from attar import graph
from attar.adapters import Exported

_FLOATS = (ir.DataType.FLOAT, ir.DataType.DOUBLE)
_MOVES = frozenset({"Transpose", "Reshape", "Unsqueeze", "Squeeze", "Identity", "Flatten", "Concat", "Split"})
"""Operators that only move elements: computed from a weight, they are the weight."""


@dataclass
class Copies:
    """Which weights of the copy that trains are new, and whom they serve.

    Attributes:
        original: the model as it came.
        readers: new name -> (initializer of the original, name of the node, input of the node).
    """

    original: ir.Model
    readers: dict[str, tuple[str, str, int]] = field(default_factory=dict)

    def home(self, model: ir.Model, name: str) -> ir.Value | None:
        """The initializer of a model in the original's form that holds `name`."""
        found = model.graph.initializers.get(name)
        if found is None and name in self.readers:
            found = model.graph.initializers.get(self.readers[name][0])
        return found

    def put(self, model: ir.Model, name: str, array: np.ndarray) -> None:  # type: ignore[type-arg]
        """Give the readers of `name` the content `array`."""
        value = model.graph.initializers.get(name)
        if value is not None:
            graph.replace_weight(value, array)
            return
        source, node_name, index = self.readers[name]
        old = model.graph.initializers[source]
        new = graph.add_initializer(model.graph, name, array)
        new.metadata_props.update(old.metadata_props)
        for node in graph.all_nodes(model):
            if node.name == node_name and index < len(node.inputs) and node.inputs[index] is old:
                node.replace_input_with(index, new)


def separate(model: ir.Model, original: ir.Model) -> Copies:
    """Give every reader of a float weight whose elements are all equal a weight of its own, in place; mark
    the weights that reach their readers by moves alone, so that the moves are not computed beforehand."""
    copies = Copies(original)
    taken = graph.taken_names(model.graph)
    for value in list(model.graph.initializers.values()):
        if value.dtype not in _FLOATS or value.is_graph_output():
            continue
        uses = list(value.uses())
        array = graph.const_array(value)
        if array is None or array.size < 2:
            continue
        # Who marked a weight as learned knows who reads it.
        if len(uses) > 1 and not graph.is_learned(value) and bool((array == array.reshape(-1)[0]).all()):
            for use in uses[1:]:
                name = graph.fresh_name(model.graph, value.name or "weight", taken)
                new = graph.add_initializer(model.graph, name, array)
                new.metadata_props.update(value.metadata_props)
                use.node.replace_input_with(use.idx, new)
                copies.readers[str(new.name)] = (str(value.name), str(use.node.name), use.idx)
        if graph.is_learned(value) is None and any(_moves(use.node) for use in uses):
            graph.mark_learned(value)
    return copies


def _moves(node: ir.Node) -> bool:
    """Whether `node` and what it leads to only move the elements of constants."""
    return node.op_type in _MOVES and node.domain == "" and all(_constant(v) for v in node.inputs)


def _constant(value: ir.Value | None) -> bool:
    if value is None or value.is_initializer():
        return True
    node = value.producer()
    return node is not None and node.op_type == "Constant"


def tie(model: ir.Model, exported: Exported) -> bool:
    """Make weights that the module holds more than once in different layouts one again: their readers get
    them through an Identity, for which no writer has a layer of its own. True if there were any."""
    found = False
    for name, places in exported.weights.items():
        value = model.graph.initializers.get(name)
        if value is None or len(places) < 2 or not _overlap(value, [p.change for p in places]):
            continue
        found = True
        graph.mark_learned(value)
        for use in list(value.uses()):
            node = ir.node("Identity", [value])
            made = node.outputs[0]
            made.type, made.shape = value.type, value.shape
            made.name = graph.fresh_name(model.graph, f"{name}_shared")
            node.name = made.name
            holder = use.node.graph
            assert holder is not None
            holder.insert_before(use.node, node)
            use.node.replace_input_with(use.idx, made)
    return found


def _overlap(value: ir.Value, changes: list) -> bool:  # type: ignore[type-arg]
    array = graph.const_array(value)
    assert array is not None
    positions = np.arange(array.size).reshape(array.shape)
    seen = np.zeros(array.size, np.int64)
    for change in changes:
        seen[(positions if change is None else change(positions)).reshape(-1)] += 1
    return bool((seen > 1).any())
