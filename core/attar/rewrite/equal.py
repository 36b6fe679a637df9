"""Equal nodes are computed once."""

from __future__ import annotations

import onnx_ir as ir

from attar.rewrite.constants import NEVER
from attar.rewrite.edit import Edit


def merge_equal_nodes(edit: Edit) -> bool:
    """Nodes of one graph with the same operator, attributes and inputs are computed once. True if anything
    changed.

    Small constants count as equal by content. Random operators, control flow and Q/DQ pairs (which runtimes
    want one a consumer) are left alone.
    """
    changed = False
    for graph in edit.model.graphs():
        seen: dict[tuple[object, ...], ir.Node] = {}
        for node in graph:
            key = _key(node)
            if key is None:
                continue
            first = seen.setdefault(key, node)
            if first is node or any(o.is_graph_output() for o in node.outputs):
                continue
            for old, new in zip(node.outputs, first.outputs, strict=True):
                if not new.name and old.uses():
                    new.name = old.name
                old.replace_all_uses_with(new)
            graph.remove(node, safe=True)
            changed = edit.did(f"repeated {node.op_type} merged")
    return changed


def _key(node: ir.Node) -> tuple[object, ...] | None:
    if node.domain != "" or node.op_type in NEVER - {"Constant"} or not node.outputs:
        return None
    attributes: list[object] = []
    for name, attribute in sorted(node.attributes.items()):
        if attribute.is_ref() or attribute.type in (ir.AttributeType.GRAPH, ir.AttributeType.GRAPHS):
            return None
        if attribute.type == ir.AttributeType.TENSOR:
            tensor = attribute.as_tensor()
            if tensor.nbytes > _SMALL:
                return None
            attributes.append((name, tensor.dtype, tuple(tensor.shape), tensor.tobytes()))
        elif isinstance(attribute.value, list | tuple):
            attributes.append((name, tuple(attribute.value)))
        else:
            attributes.append((name, attribute.value))
    inputs = [_identity(v) for v in node.inputs]
    present = tuple(bool(o.name) for o in node.outputs)
    return (node.op_type, tuple(attributes), tuple(inputs), present)


_SMALL = 256


def _identity(value: ir.Value | None) -> object:
    tensor = None if value is None or value.is_graph_input() else value.const_value
    if value is None or tensor is None or value.producer() is not None:
        return None if value is None else id(value)
    if tensor.nbytes > _SMALL or tensor.dtype == ir.DataType.STRING:
        return id(tensor)
    return (tensor.dtype, tuple(tensor.shape), tensor.tobytes())
