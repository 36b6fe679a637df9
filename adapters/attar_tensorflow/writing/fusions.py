"""Nodes of the IR that one Keras layer says together."""

from __future__ import annotations

import numpy as np
import onnx_ir as ir

from attar.graph import const_array, fresh_name, taken_names
from attar_tensorflow.writing.ops.quantize import RANGES


def join_dense(graph: ir.Graph) -> None:
    """MatMul with a constant matrix and a bias added to it become `attar::Dense`, in place."""
    for node in list(graph):
        if node.op_type != "MatMul" or node.domain:
            continue
        x, w = node.inputs
        kernel, product = const_array(w), node.outputs[0]
        uses = list(product.uses())
        if kernel is None or kernel.ndim != 2 or kernel.dtype != np.float32 or const_array(x) is not None:
            continue
        if len(uses) != 1 or product.is_graph_output() or x.shape is None or len(x.shape) < 2:
            continue
        add = uses[0].node
        if add.op_type != "Add" or add.domain or not isinstance(x.shape[-1], int):
            continue
        b = add.inputs[1 - uses[0].idx]
        bias = const_array(b)
        if bias is None or bias.shape != (kernel.shape[1],):
            continue
        made = ir.node("Dense", [x, w, b], domain="attar", name=node.name or add.name)
        _replace(graph, add, made, add.outputs[0])
        graph.remove(node, safe=True)


def join_fake_quantize(graph: ir.Graph) -> list[str]:
    """Pairs of QuantizeLinear and DequantizeLinear become `attar::FakeQuantize`, in place, where TensorFlow's
    fake quantization has the same steps.

    Returns:
        Names of the QuantizeLinear nodes that stay as they are.
    """
    left = []
    for node in list(graph):
        if node.op_type != "QuantizeLinear" or node.domain:
            continue
        pairs = [use.node for use in node.outputs[0].uses()]
        attributes = _fake_attributes(node)
        if (
            attributes is None
            or not pairs
            or node.outputs[0].is_graph_output()
            or any(not _undoes(other, node) for other in pairs)
        ):
            left.append(node.name or "?")
            continue
        for other in pairs:
            made = ir.node(
                "FakeQuantize", [node.inputs[0]], attributes, domain="attar", name=node.name, num_outputs=1
            )
            _replace(graph, other, made, other.outputs[0])
        graph.remove(node, safe=True)
    return left


def _undoes(other: ir.Node, node: ir.Node) -> bool:
    if other.op_type != "DequantizeLinear" or other.domain or len(other.inputs) < 2:
        return False
    for index in (1, 2):
        a = node.inputs[index] if index < len(node.inputs) else None
        b = other.inputs[index] if index < len(other.inputs) else None
        first, second = const_array(a), const_array(b)
        if (first is None) != (second is None) or (first is not None and not np.array_equal(first, second)):
            return False
    return other.attributes.get_int("axis", 1) == node.attributes.get_int("axis", 1)


def _fake_attributes(node: ir.Node) -> dict[str, object] | None:
    scale = const_array(node.inputs[1])
    kind = node.outputs[0].dtype.name if node.outputs[0].dtype is not None else "?"
    if (
        scale is None
        or scale.dtype != np.float32
        or kind not in RANGES
        or node.attributes.get_int("block_size", 0)
    ):
        return None
    low, high = RANGES[kind]
    bits = int(high - low + 1).bit_length() - 1
    zero = const_array(node.inputs[2]) if len(node.inputs) > 2 and node.inputs[2] is not None else np.zeros(1)
    if zero is None or scale.ndim > 1 or bits > 16:
        return None
    shift = zero.astype(np.float64).reshape(-1)
    wide = scale.astype(np.float64).reshape(-1)
    bottom, top = ((low - shift) * wide).astype(np.float32), ((high - shift) * wide).astype(np.float32)
    if not (np.all(bottom <= 0) and np.all(top >= 0)):
        return None
    attributes: dict[str, object] = {"low": bottom.tolist(), "high": top.tolist(), "bits": bits}
    if scale.size > 1:
        attributes["axis"] = node.attributes.get_int("axis", 1)
    return attributes


def _replace(graph: ir.Graph, old: ir.Node, new: ir.Node, value: ir.Value) -> None:
    """`new` in the place of `old`, giving what `old` gave as `value`, under its name."""
    out, name = new.outputs[0], value.name
    out.type, out.shape = value.type, value.shape
    value.name = (
        fresh_name(graph, f"{name}_old", taken_names(graph)) if value.is_graph_output() else value.name
    )
    out.name = name
    graph.insert_before(old, new)
    value.replace_all_uses_with(out, replace_graph_outputs=True)
    graph.remove(old, safe=True)
