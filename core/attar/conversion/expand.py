"""Operators that ONNX defines by others are written with those, so that few operators reach any op table."""

from __future__ import annotations

from collections.abc import Container, Iterator

import numpy as np
import onnx
import onnx_ir as ir
from onnx_ir.passes.common import InlinePass, LiftConstantsToInitializersPass

from attar.conversion.view import op_key
from attar.errors import ConversionError, VerifyError
from attar.graph import add_initializer, all_nodes, refresh_shapes, tidy
from attar.graph.structure import unique_names

ORIGIN = "attar.expanded"
"""Where a node of a body keeps the operator and the name of the node that it was written for."""
_DOMAIN = "attar.expanded"
_DEPTH = 8  # bodies hold operators that have bodies themselves; ONNX nests them three deep


def expand_functions(model: ir.Model, known: Container[str]) -> list[str]:
    """Replace, in place, operators that are not in `known` by their ONNX function bodies, where they have
    one.

    Returns:
        The operators that were expanded, each once.

    The bodies are those of the ONNX specification (`onnx.defs`), for the opset of the model.
    """
    expanded: dict[str, None] = {}
    for _ in range(_DEPTH):
        chosen = [n for n in all_nodes(model) if n.domain == "" and op_key(n) not in known]
        done = [node.op_type for node in chosen if _call(model, node)]
        if not done:
            break
        expanded.update(dict.fromkeys(done))
        InlinePass()(model)
        model.functions.clear()
        unique_names(model)
        LiftConstantsToInitializersPass(lift_all_constants=True, size_limit=0)(model)
        _ranks(model)
        tidy(model)
        try:
            refresh_shapes(model)
        except VerifyError as error:
            raise ConversionError(
                f"what ONNX defines {', '.join(dict.fromkeys(done))} by is not valid here: {error.message}",
                missing=missing(model),
            ) from error
        _types(model)
    return list(expanded)


def missing(model: ir.Model, known: Container[str] = ()) -> dict[str, list[str]]:
    """Operators outside `known` with the names of their nodes. A node of a body is counted under the node
    that the body was written for; without `known`, only such nodes are."""
    found: dict[str, list[str]] = {}
    for node in all_nodes(model):
        origin = node.metadata_props.get(ORIGIN)
        if op_key(node) in known or not (known or origin):
            continue
        op, name = (origin or f"{op_key(node)}\n{node.name}").split("\n", 1)
        names = found.setdefault(op, [])
        if name not in names:
            names.append(name)
    return found


def _types(model: ir.Model) -> None:
    """Type the inputs of Loop and Scan bodies, which function bodies leave untyped, by what goes in."""
    for node in all_nodes(model):
        if node.domain or node.op_type not in ("Loop", "Scan"):
            continue
        skipped = 2 if node.op_type == "Loop" else 0  # the round and the condition
        inner = node.attributes["body"].as_graph().inputs[skipped:]
        for value, given in zip(inner, node.inputs[skipped:], strict=False):
            if value.type is None and given is not None:
                value.type = given.type


def _ranks(model: ir.Model) -> None:
    """Make the ranks that bodies compute constants: onnx's inference takes Size(Shape(x)) for a vector, and
    gives what a Range makes of it a wrong length."""
    for node in all_nodes(model):
        shape = node.inputs[0].producer() if node.op_type == "Size" and node.inputs[0] is not None else None
        if shape is None or shape.op_type != "Shape" or shape.attributes:
            continue
        source = shape.inputs[0]
        if source is not None and source.shape is not None:
            rank = np.array(len(source.shape), np.int64)
            node.outputs[0].replace_all_uses_with(add_initializer(model.graph, f"{node.name}_rank", rank))


def _call(model: ir.Model, node: ir.Node) -> bool:
    """Make `node` the call of a new function of the model with its operator's body. False if it has none."""
    body = _body(node, model.opset_imports[""])
    if body is None:
        return False
    _fit(body, node, model.opset_imports[""])
    body.name, body.domain = f"{node.op_type}_{len(model.functions)}", _DOMAIN
    needed = {(o.domain, o.version) for o in body.opset_import if o.domain not in ("", "ai.onnx")}
    if any(model.opset_imports.setdefault(domain, version) != version for domain, version in needed):
        return False
    function = ir.serde.deserialize_function(body)
    function.opset_imports[""] = model.opset_imports[""]  # valid in it, as `_body` sees to
    for inner in function:
        inner.metadata_props[ORIGIN] = node.metadata_props.get(ORIGIN, f"{node.op_type}\n{node.name}")
    model.functions[function.identifier()] = function
    model.opset_imports.setdefault(_DOMAIN, 1)
    node.domain, node.op_type = function.domain, function.name
    return True


def _fit(body: onnx.FunctionProto, node: ir.Node, opset: int) -> None:
    """Make body and call agree on what the schema leaves open: defaults, absent outputs, axes of
    reductions."""
    schema = onnx.defs.get_schema(node.op_type, opset, "")
    for name in body.attribute:
        default = schema.attributes[name].default_value if name in schema.attributes else None
        if name not in node.attributes and default is not None and default.name:
            node.attributes.add(ir.from_proto(default))
    made = {output for inner in body.node for output in inner.output}
    for name in body.output:  # bodies made for one call leave out what the call does not ask for
        if name not in made:
            body.node.append(onnx.helper.make_node("Constant", [], [name], value_float=0.0))
    node.resize_outputs(len(body.output))
    for index, output in enumerate(node.outputs):
        output.name = output.name or f"{node.name}_output_{index}"
    for index in reversed(range(len(body.node))):
        inner = body.node[index]
        axes = next((a for a in inner.attribute if a.name == "axes"), None)
        if axes is not None and inner.op_type.startswith("Reduce") and opset >= 18:
            constant = onnx.NodeProto(op_type="Constant", output=[f"attar_axes_{index}"])
            value = constant.attribute.add()
            value.CopyFrom(axes)
            value.name = "value_ints"
            inner.attribute.remove(axes)
            inner.input.append(constant.output[0])
            body.node.insert(index, constant)


def _body(node: ir.Node, opset: int) -> onnx.FunctionProto | None:
    try:
        schema = onnx.defs.get_schema(node.op_type, opset, "")
    except onnx.defs.SchemaError:
        return None
    for body in _bodies(schema, node, opset):
        if all(_valid(inner, opset) for inner in body.node):
            return body
    return None


def _bodies(schema: onnx.defs.OpSchema, node: ir.Node, opset: int) -> Iterator[onnx.FunctionProto]:
    """The bodies for opsets up to `opset`, the newest first."""
    for version in sorted(schema.function_opset_versions, reverse=True):
        if version <= opset:
            body = onnx.FunctionProto()
            body.ParseFromString(schema.get_function_with_opset_version(version))
            yield body
    for version in sorted(schema.context_dependent_function_opset_versions, reverse=True):
        if version > opset:
            continue
        types = []
        for value in node.inputs:
            proto = onnx.TypeProto()
            if value is not None:
                if value.dtype is None:
                    return
                proto.tensor_type.elem_type = int(value.dtype)
                if value.shape is not None:
                    shape = proto.tensor_type.shape
                    for dim in value.shape:
                        entry = shape.dim.add()
                        if isinstance(dim, int):
                            entry.dim_value = dim
                        elif dim.value is not None:
                            entry.dim_param = dim.value
            types.append(proto.SerializeToString())
        call = ir.to_proto(node).SerializeToString()
        text = schema.get_context_dependent_function_with_opset_version(version, call, types)
        if text:
            body = onnx.FunctionProto()
            body.ParseFromString(text)
            yield body


def _valid(node: onnx.NodeProto, opset: int) -> bool:
    """Whether a node of a body, written for an older opset, means the same at `opset`."""
    if node.domain not in ("", "ai.onnx"):
        return True
    try:
        schema = onnx.defs.get_schema(node.op_type, opset, "")
    except onnx.defs.SchemaError:
        return False
    movable = {"axes"} if node.op_type.startswith("Reduce") else set()  # see `_fit`
    return not schema.deprecated and {a.name for a in node.attribute} <= {*schema.attributes, *movable}
