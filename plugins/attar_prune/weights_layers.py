"""The weights that can become sparse, as rows of what one output sums over, and the biases behind them."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import onnx_ir as ir

from attar import graph
from attar.context import Context
from attar.gram import LayerInput, layer_input

Array = np.ndarray[Any, np.dtype[Any]]
# Operator -> axis of its weight's output channels, axis that its products sum over, as the weight is stored.
OPERATORS: Mapping[str, tuple[int, int]] = {
    "Conv": (0, 1),
    "ConvTranspose": (1, 0),
    "Gemm": (1, 0),
    "MatMul": (1, 0),
}


@dataclass(frozen=True, eq=False)
class Layer:
    """A constant weight with the operators that read it, all in the same way.

    Attributes:
        weight: an initializer or the output of a Constant node.
        readers: the operators; the first gives the layout.
        in_main: all of them stand in the main graph, whose values can be observed.
    """

    weight: ir.Value
    readers: tuple[ir.Node, ...]
    in_main: bool = True

    @property
    def node(self) -> ir.Node:
        return self.readers[0]

    @property
    def names(self) -> tuple[str, ...]:
        """Names that a pattern may mean it by."""
        values = (self.weight, *(o for n in self.readers for o in n.outputs))
        return tuple(name for x in (*values, *self.readers) if (name := x.name))

    @property
    def array(self) -> Array:
        found = graph.const_array(self.weight)
        assert found is not None
        return found

    @property
    def axes(self) -> tuple[int, int]:
        """Axes of the outputs and of what is summed over."""
        out, summed = OPERATORS[self.node.op_type]
        return (0, 1) if _flag(self.node, "transB") else (out, summed)

    @property
    def inputs(self) -> tuple[LayerInput, ...] | None:
        """What the readers multiply it with; None where that cannot be observed."""
        if not self.in_main:
            return None
        found = [layer_input(n) for n in self.readers]
        return None if None in found else tuple(dict.fromkeys(i for i in found if i is not None))

    def order(self) -> Array:
        """The order of K in which neighbours are input channels, so that those of one position of a kernel
        stand together; as indices of the order of `attar.gram.rows_of`."""
        if self.node.op_type != "Conv":
            return np.arange(self.depth)
        channels = self.array.shape[1]
        return np.arange(self.depth).reshape(channels, -1).T.reshape(-1)

    @property
    def depth(self) -> int:
        """K, the numbers that one output sums over."""
        shape = self.array.shape
        if self.node.op_type == "Conv":
            return math.prod(shape[1:])
        if self.node.op_type == "ConvTranspose":
            return shape[0] // _groups(self.node)
        return shape[self.axes[1]]

    def rows(self, array: Array) -> Array:
        """The weight as `[groups, rows, K]`, float64, neighbours as `order` has them."""
        wide = array.astype(np.float64)
        if self.node.op_type == "Conv":
            groups = _groups(self.node)
            return wide.reshape(groups, len(wide) // groups, -1)[..., self.order()]
        if self.node.op_type == "ConvTranspose":  # an output channel and tap sums over the input channels
            groups = _groups(self.node)
            parts = wide.reshape(groups, len(wide) // groups, -1)
            return np.ascontiguousarray(np.swapaxes(parts, 1, 2))
        return np.ascontiguousarray(wide if self.axes[1] == 1 else wide.T)[None]

    def stored(self, rows: Array) -> Array:
        """Inverse of `rows`, in the weight's own shape and element type."""
        array = self.array
        if self.node.op_type == "Conv":
            wide = np.empty_like(rows)
            wide[..., self.order()] = rows
        elif self.node.op_type == "ConvTranspose":
            wide = np.swapaxes(rows, 1, 2)
        else:
            wide = rows[0] if self.axes[1] == 1 else rows[0].T
        return np.ascontiguousarray(wide).reshape(array.shape).astype(array.dtype)


def find_layers(model: ir.Model, operators: Sequence[str], ctx: Context) -> list[Layer]:
    """All weights of the operators named, in the order of the graph; what cannot be pruned goes to `ctx.skip`
    with the reason."""
    found: dict[ir.Value, None] = {}
    for node in graph.all_nodes(model):
        if node.domain in ("", "ai.onnx") and node.op_type in operators and len(node.inputs) > 1:
            weight = node.inputs[1]
            if weight is not None and weight not in found and graph.const_array(weight) is not None:
                found[weight] = None
    out = []
    for weight in found:
        layer, why = _layer(weight, model.graph, operators)
        if layer is None:
            ctx.skip(weight, why)
        else:
            out.append(layer)
    return out


def _layer(weight: ir.Value, main: ir.Graph, operators: Sequence[str]) -> tuple[Layer | None, str]:
    array = graph.const_array(weight)
    assert array is not None
    if not _is_float(weight):
        return None, f"its numbers are {weight.dtype}, not float"
    if weight.is_graph_output():
        return None, "the weight itself is an output of the model"
    readers = []
    for use in weight.uses():
        if use.idx != 1 or use.node.op_type not in operators:
            return None, f"it is also read by {use.node.op_type} {use.node.name or ''}".rstrip()
        readers.append(use.node)
    if len({(n.op_type, _groups(n), _flag(n, "transB")) for n in readers}) > 1:
        return None, "its readers use it in different ways"
    if array.ndim < 2 or (readers[0].op_type in ("Gemm", "MatMul") and array.ndim != 2):
        return None, f"a weight of {array.ndim} axes has no rows"
    if not np.isfinite(array.astype(np.float64)).all():
        return None, "it has NaN or infinite numbers"
    in_main = all(n.graph is main for n in readers)
    return Layer(weight, tuple(sorted(readers, key=lambda n: n.name or "")), in_main), ""


def has_bias(node: ir.Node) -> bool:
    """Whether a constant per output channel can be added behind the node without another operator."""
    if node.op_type == "Conv":
        return len(node.inputs) < 3 or node.inputs[2] is None or graph.const_array(node.inputs[2]) is not None
    if node.op_type == "Gemm":
        if _number(node, "alpha") != 1 or _number(node, "beta") != 1:
            return False
        bias = node.inputs[2] if len(node.inputs) > 2 else None
        array = graph.const_array(bias)
        return bias is None or (array is not None and array.ndim <= 2)
    return _added(node) is not None


def shift_bias(model: ir.Model, node: ir.Node, delta: Array) -> None:
    """Add `delta`, one number an output channel, to what the node makes; `has_bias` must hold."""
    reader, place = (node, 2) if node.op_type != "MatMul" else (_added(node) or (node, 2))
    old = reader.inputs[place] if place < len(reader.inputs) else None
    array = graph.const_array(old)
    weight = graph.const_array(node.inputs[1])
    assert weight is not None
    base = np.zeros(len(delta)) if array is None else array.astype(np.float64)
    new = (base + delta).astype(weight.dtype)
    if old is not None and len(old.uses()) == 1 and old.is_initializer():
        graph.replace_weight(old, new)
        return
    made = graph.add_initializer(model.graph, f"{node.name}_bias", new)
    if place >= len(reader.inputs):
        reader.resize_inputs(place + 1)
    reader.replace_input_with(place, made)


def bias_of(node: ir.Node, width: int) -> Array:
    """The constant that is added to each output channel, zeros where there is none, float64."""
    reader, place = (node, 2) if node.op_type != "MatMul" else (_added(node) or (node, 2))
    array = graph.const_array(reader.inputs[place]) if place < len(reader.inputs) else None
    return np.zeros(width) if array is None else np.broadcast_to(array.astype(np.float64).reshape(-1), width)


def _added(node: ir.Node) -> tuple[ir.Node, int] | None:
    """The Add of a constant vector that alone reads a MatMul's output, and where the constant stands."""
    out = node.outputs[0]
    uses = list(out.uses())
    if node.op_type != "MatMul" or len(uses) != 1 or out.is_graph_output() or uses[0].node.op_type != "Add":
        return None
    place = 1 - uses[0].idx
    array, weight = graph.const_array(uses[0].node.inputs[place]), graph.const_array(node.inputs[1])
    if array is None or weight is None or array.shape != weight.shape[-1:]:
        return None
    return uses[0].node, place


def _is_float(weight: ir.Value) -> bool:
    return weight.dtype in (
        ir.DataType.FLOAT, ir.DataType.FLOAT16, ir.DataType.BFLOAT16, ir.DataType.DOUBLE
    )  # fmt: skip


def _groups(node: ir.Node) -> int:
    group = node.attributes.get("group")
    return 1 if group is None else group.as_int()


def _flag(node: ir.Node, name: str) -> bool:
    attribute = node.attributes.get(name)
    return attribute is not None and bool(attribute.value)


def _number(node: ir.Node, name: str) -> float:
    attribute = node.attributes.get(name)
    return 1.0 if attribute is None else float(attribute.value)
