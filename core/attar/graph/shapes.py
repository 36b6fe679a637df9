"""Strict shape inference: what is written on the values is what follows from inputs and weights, or an
error."""

from __future__ import annotations

import re
from typing import Any

import onnx
import onnx.shape_inference
import onnx_ir as ir

from attar.errors import VerifyError
from attar.graph.light import light_proto
from attar.graph.read import proto_graphs

_GENERATED = re.compile(r"^unk__\d+$")  # names that onnx invents for dimensions it knows nothing of
_SHAPE_KEPT = frozenset({"GroupNormalization", "MeanVarianceNormalization"})
_ERROR = re.compile(r"\(op_type:([^,)]*)(?:, node name: ([^)]*))?\): (.*?)(?=\(op_type:|$)", re.S)


def refresh_shapes(model: ir.Model) -> None:
    """Forget the types and shapes of all values between inputs and outputs, and infer them anew.

    The declared shapes of graph inputs and outputs stay, and outputs are checked against what follows from
    the inputs; a dimension of an output that was unknown takes the inferred number or name. Operators of
    unknown domains leave their outputs without shape, as do shapes that depend on data. Weights of any size
    are never read.

    Raises:
        VerifyError: types or shapes contradict each other; the message names the node. The model keeps its
        old shapes.
    """
    for graph in model.graphs():
        for value in graph.initializers.values():
            if value.const_value is not None:
                value.type = ir.TensorType(value.const_value.dtype)
                value.shape = ir.Shape(value.const_value.shape.numpy())
    proto, _ = light_proto(model)
    _forget(proto.graph, keep_types=_opaque_outputs(model))
    _stand_in(proto.graph)
    try:
        inferred = _infer(proto)
    except Exception as error:  # the C++ library raises several types, none of them ours
        raise VerifyError(f"shape inference failed: {_explain(str(error))}") from error
    named = {d.dim_param for v in proto.graph.input for d in v.type.tensor_type.shape.dim}
    _merge(model.graph, inferred.graph, named, main=True)


def _infer(proto: Any) -> Any:
    """Inference that follows the numbers in shape computations, where onnx gets those right.

    It takes a scalar that it has followed (such as Size's) for a vector of one element, and then refuses
    operators that ask for a scalar, such as Range.
    """
    try:
        return onnx.shape_inference.infer_shapes(proto, check_type=True, strict_mode=True, data_prop=True)
    except onnx.shape_inference.InferenceError:
        return onnx.shape_inference.infer_shapes(proto, check_type=True, strict_mode=True, data_prop=False)


def _stand_in(graph: Any) -> None:
    """Put Identity in the place of operators that keep the shape, which onnx has no inference for."""
    for node in [n for part in proto_graphs(graph) for n in part.node]:
        if node.domain in ("", "ai.onnx") and node.op_type in _SHAPE_KEPT and len(node.input) > 0:
            node.op_type = "Identity"
            del node.input[1:]
            del node.attribute[:]


def _opaque_outputs(model: ir.Model) -> set[str]:
    """Outputs of operators that onnx has no schema for: their element types cannot be inferred, so they are
    kept."""
    found: set[str] = set()
    for node in ir.traversal.RecursiveGraphIterator(model.graph):
        domain = "" if node.domain == "ai.onnx" else node.domain
        if not onnx.defs.has(node.op_type, domain):
            found.update(v.name for v in node.outputs if v.name)
    return found


def _forget(graph: Any, keep_types: set[str]) -> None:
    for info in list(graph.value_info):
        if info.name not in keep_types:
            graph.value_info.remove(info)
        else:
            info.type.tensor_type.ClearField("shape")
    for node in graph.node:
        for attribute in node.attribute:
            for inner in (attribute.g, *attribute.graphs):
                if inner.node or inner.value_info:
                    _forget(inner, keep_types)
                    for output in inner.output:  # a subgraph has no interface of its own to keep
                        output.type.tensor_type.ClearField("shape")


def _merge(graph: ir.Graph, proto: Any, named: set[str], main: bool) -> None:
    infos = {info.name: info.type for info in (*proto.value_info, *proto.output)}
    outputs = {id(v) for v in graph.outputs}
    for node, node_proto in zip(graph, proto.node, strict=True):
        for value in node.outputs:
            found = infos.get(value.name or "")
            if found is None or found.WhichOneof("value") is None:
                if not (main and id(value) in outputs):
                    value.shape = None
                continue
            kind = ir.serde.deserialize_type_proto_for_type(found)
            if kind is not None:
                value.type = kind
            shape = ir.serde.deserialize_type_proto_for_shape(found)
            value.shape = None if shape is None else ir.Shape([_dim(d, named) for d in shape])
        attributes = {a.name: a for a in node_proto.attribute}
        for name, attribute in node.attributes.items():
            if attribute.is_ref():
                continue
            if attribute.type == ir.AttributeType.GRAPH:
                _merge(attribute.as_graph(), attributes[name].g, named, main=False)
            elif attribute.type == ir.AttributeType.GRAPHS:
                for inner, inner_proto in zip(attribute.as_graphs(), attributes[name].graphs, strict=True):
                    _merge(inner, inner_proto, named, main=False)


def _dim(dim: int | ir.SymbolicDim, named: set[str]) -> int | str | None:
    if isinstance(dim, int):
        return dim
    name = dim.value
    return None if name is None or (_GENERATED.match(name) and name not in named) else name


def _explain(message: str) -> str:
    parts = [
        f"node {name!r} ({op}): {text.strip()}" if name else f"a node {op}: {text.strip()}"
        for op, name, text in _ERROR.findall(message)
    ]
    return "; ".join(parts) or message.strip()
