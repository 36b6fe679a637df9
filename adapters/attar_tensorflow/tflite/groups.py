"""Which nodes of the IR become one TFLite operator: a product with the bias added behind it, and an
activation."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import onnx_ir as ir

from attar.graph import const_array
from attar_tensorflow.tflite.lower import Group, Writing

_FUSING = {"Conv", "Gemm", "MatMul", "Add", "Sub", "Mul", "Div", "MaxPool", "AveragePool"}
_BOUNDS = {(0.0, 6.0): "RELU6", (-1.0, 1.0): "RELU_N1_TO_1", (0.0, None): "RELU", (0.0, np.inf): "RELU"}


def find_groups(graph: ir.Graph, writing: Writing) -> Iterator[Group]:
    """The nodes in order, each in one group."""
    taken: set[ir.Node] = set()
    for node in graph:
        if node in taken:
            continue
        group = Group(node, tuple(node.outputs))
        if node.op_type in _FUSING and node.domain == "" and _is_float(node):
            _absorb(group, writing, taken)
        yield group


def _absorb(group: Group, writing: Writing, taken: set[ir.Node]) -> None:
    node = group.main
    if node.op_type == "MatMul":
        known = writing.constant(node.inputs[1])
        if known is None or known[0].ndim != 2:
            return  # BATCH_MATMUL has neither
        follower = _only_reader(group.outputs[0])
        if follower is not None and follower.op_type == "Add":
            other = follower.inputs[0] if follower.inputs[1] is group.outputs[0] else follower.inputs[1]
            found = writing.constant(other)
            if found is not None and found[0].shape == (known[0].shape[1],):
                group.bias, group.outputs = other, tuple(follower.outputs)
                taken.add(follower)
    follower = _only_reader(group.outputs[0])
    activation = None if follower is None else _activation(follower)
    if follower is not None and activation is not None:
        group.activation, group.outputs = activation, (*follower.outputs, *group.outputs[1:])
        taken.add(follower)


def _only_reader(value: ir.Value) -> ir.Node | None:
    uses = list(value.uses())
    return uses[0][0] if len(uses) == 1 and not value.is_graph_output() else None


def _activation(node: ir.Node) -> str | None:
    if node.domain != "":
        return None
    if node.op_type == "Relu":
        return "RELU"
    if node.op_type != "Clip":
        return None
    bounds: list[float | None] = []
    for i in (1, 2):
        value = node.inputs[i] if len(node.inputs) > i else None
        array = None if value is None else const_array(value)
        if value is not None and array is None:
            return None
        bounds.append(None if array is None else float(np.asarray(array).reshape(-1)[0]))
    return None if bounds[0] is None else _BOUNDS.get((bounds[0], bounds[1]))


def _is_float(node: ir.Node) -> bool:
    dtype = node.outputs[0].dtype
    return dtype == ir.DataType.FLOAT
