"""The layers that can be factored: Conv, Gemm and MatMul with constant weights, and why others cannot."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import onnx_ir as ir

from attar import graph
from attar.gram import LayerInput, layer_input, rows_of

Array = np.ndarray[Any, np.dtype[Any]]
Shapes = Mapping[str, tuple[int, ...]]
_FLOATS = (ir.DataType.FLOAT, ir.DataType.DOUBLE, ir.DataType.FLOAT16, ir.DataType.BFLOAT16)
OPERATORS = ("Conv", "Gemm", "MatMul")


@dataclass(frozen=True)
class Bias:
    """Where the bias of a layer is, or can be put.

    Attributes:
        node, index: the input that holds it.
        array: the bias `[outputs]`; None where there is none yet.
    """

    node: ir.Node
    index: int
    array: Array | None


@dataclass(eq=False)
class Layer:
    """One weight with the nodes that multiply with it, all in the same way.

    Attributes:
        wants: what each node's weight is multiplied with.
        rows: the weight as `[groups, outputs of a group, K]`, float64.
        bias: of the one node; None where a change of the mean cannot be made good.
        sizes: of each node's input and output in a typical run: batch and spatial sizes, or rows.
    """

    nodes: list[ir.Node]
    weight: ir.Value
    wants: list[LayerInput]
    rows: Array
    bias: Bias | None = None
    sizes: list[tuple[tuple[int, ...], tuple[int, ...]]] = field(default_factory=list)

    @property
    def node(self) -> ir.Node:
        return self.nodes[0]

    @property
    def name(self) -> str:
        return self.node.name or self.node.outputs[0].name or self.node.op_type

    @property
    def is_conv(self) -> bool:
        return self.node.op_type == "Conv"

    @property
    def kernel(self) -> tuple[int, ...]:
        return self.wants[0].kernel

    @property
    def group(self) -> int:
        return self.wants[0].group

    @property
    def channels(self) -> int:
        """Input channels of a group of a convolution."""
        return self.rows.shape[2] // max(1, math.prod(self.kernel))


def find_layers(model: ir.Model, shapes: Shapes) -> tuple[list[Layer], list[tuple[ir.Node, str]]]:
    """The layers of the main graph in order, and (node, reason) of the others of these operators."""
    layers: dict[ir.Value, Layer] = {}
    refused: list[tuple[ir.Node, str]] = []
    main = model.graph
    for node in graph.all_nodes(model):
        if node.domain not in ("", "ai.onnx") or node.op_type not in OPERATORS:
            continue
        why = "it is inside a subgraph" if node.graph is not main else problem(node)
        if why:
            refused.append((node, why))
            continue
        value, want = node.inputs[1], layer_input(node)
        assert value is not None
        assert want is not None
        if value in layers:
            layers[value].nodes.append(node)
            layers[value].wants.append(want)
        else:
            array = graph.const_array(value)
            assert array is not None
            layers[value] = Layer([node], value, [want], rows_of(node, array).astype(np.float64))
    good = []
    for value, layer in layers.items():
        why = _sharing_problem(value, layer)
        if why:
            refused += [(node, why) for node in layer.nodes]
            continue
        layer.bias = bias_of(layer.node, layer.rows) if len(layer.nodes) == 1 else None
        layer.sizes = [_sizes(node, shapes) for node in layer.nodes]
        good.append(layer)
    return good, refused


def problem(node: ir.Node) -> str:
    """Why this node cannot be factored; empty if it can."""
    value = node.inputs[1] if len(node.inputs) > 1 else None
    weight = graph.const_array(value)
    if weight is None:
        maker = None if value is None else value.producer()
        if maker is not None and maker.op_type == "DequantizeLinear":
            return "its weight is quantized: factor first, quantize afterwards"
        if node.op_type == "MatMul" and graph.const_array(node.inputs[0]) is not None:
            return "its weight is on the left"
        return "its weight is not constant"
    assert value is not None
    if value.dtype not in _FLOATS:
        return f"its weight is {value.dtype}"
    if value.is_graph_output():
        return "its weight is an output of the model"
    if node.op_type == "MatMul" and weight.ndim != 2:
        return f"its weight has {weight.ndim} dimensions, not 2"
    if node.op_type == "MatMul":
        data = node.inputs[0]
        if data is not None and data.shape is not None and len(data.shape) < 2:
            return "its input is a vector"
    if layer_input(node) is None:
        return "transA is set, or its input is constant"
    if min(weight.shape, default=0) == 0:
        return "its weight is empty"
    if not np.isfinite(weight).all():
        return "its weight has NaN or infinite elements"
    return ""


def _sharing_problem(value: ir.Value, layer: Layer) -> str:
    mine = set(layer.nodes)
    for user, index in value.uses():
        if user not in mine or index != 1:
            return f"its weight is also used by {user.op_type} {user.name!r}"
    if len({(n.op_type, _signature(n)) for n in layer.nodes}) > 1:
        return "its weight is shared by layers of different form"
    return ""


def _signature(node: ir.Node) -> tuple[Any, ...]:
    """What must be equal for two nodes to share their factors."""
    if node.op_type == "Conv":
        want = layer_input(node)
        assert want is not None
        return want.group, want.kernel, want.strides, want.pads, want.dilations, want.auto_pad
    return tuple(bool(node.attributes[k].value) if k in node.attributes else False for k in ("transB",))


def bias_of(node: ir.Node, rows: Array) -> Bias | None:
    """The bias of a layer, or the place for one; None where neither exists or is shared in an unclear way."""
    outputs = rows.shape[0] * rows.shape[1]
    if node.op_type == "MatMul":
        uses = list(node.outputs[0].uses())
        if len(uses) != 1 or node.outputs[0].is_graph_output():
            return None
        follower, position = uses[0]
        if follower.op_type != "Add" or follower.graph is not node.graph:
            return None
        array = graph.const_array(follower.inputs[1 - position])
        if array is None or array.shape != (outputs,) or follower.inputs[1 - position] is node.inputs[1]:
            return None
        return Bias(follower, 1 - position, np.asarray(array, np.float64))
    if node.op_type == "Gemm":
        scales = (node.attributes[k].value if k in node.attributes else 1.0 for k in ("alpha", "beta"))
        if any(s != 1.0 for s in scales):
            return None
    value = node.inputs[2] if len(node.inputs) > 2 else None
    if value is None:
        return Bias(node, 2, None)
    array = graph.const_array(value)
    if array is None or array.shape not in ((outputs,), (1, outputs)):
        return None
    return Bias(node, 2, np.asarray(array, np.float64).reshape(-1))


def _sizes(node: ir.Node, shapes: Shapes) -> tuple[tuple[int, ...], tuple[int, ...]]:
    before, after = _shape(node.inputs[0], shapes), _shape(node.outputs[0], shapes)
    if node.op_type == "Conv":
        batch = before[0] if before else 1
        return (batch, *before[2:]), (batch, *after[2:])
    rows = math.prod(before[:-1])
    return (rows,), (rows,)


def _shape(value: ir.Value | None, shapes: Shapes) -> Sequence[int]:
    """The shape in a typical run; sizes that nobody knows count as 1."""
    if value is None:
        return ()
    if value.name is not None and value.name in shapes:
        return shapes[value.name]
    if value.shape is None:
        return ()
    return [d if isinstance(d, int) and d > 0 else 1 for d in value.shape]
