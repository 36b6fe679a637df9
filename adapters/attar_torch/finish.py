"""What an exporter's model still needs: own weights, readable names, the caller's shapes, normal form."""

from __future__ import annotations

import ast
import re
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import onnx_ir as ir

from attar import graph

_WRAPPER = "module."
_FOREIGN = ("pkg.", "namespace")  # the exporter's notes: source lines, paths, stack traces


def finish(
    model: ir.Model,
    shapes: Mapping[str, Sequence[int | str]],
    what: str,
    opset: int,
    parameters: Mapping[str, Sequence[int]] | None = None,
) -> list[str]:
    """Bring `model` to normal form in place, as a model of its own.

    Args:
        shapes: input name -> its shape, dynamic dimensions by name.
        what: name of the module's class, for the model's provenance.
        parameters: name -> shape of the module's parameters, to name the constants that exporters make of
        them.
    """
    _own_weights(model)
    for value in model.graph.inputs:
        if value.name in shapes:
            value.shape = ir.Shape(list(shapes[value.name]))
    for value in model.graph.outputs:
        if value.shape is not None:  # symbols of the exporter mean nothing here; the rank and the numbers do
            value.shape = ir.Shape([d if isinstance(d, int) else None for d in value.shape])
    _strip_prefix(model)
    _name_folded(model, parameters or {})
    _name_nodes(model)
    notes = graph.normalize(model, opset)
    for holder in (model, model.graph, *graph.all_nodes(model), *graph.all_values(model)):
        for key in [k for k in holder.metadata_props if k.startswith(_FOREIGN)]:
            del holder.metadata_props[key]
        if not isinstance(holder, ir.Value):
            holder.doc_string = None
    graph.check(model)
    graph.set_provenance(model, framework="torch", source=what)
    return [n for n in notes if n.startswith("stays")]


def _own_weights(model: ir.Model) -> None:
    """Copy every weight: the exporter's tensors are views of the module's live parameters."""
    copies: dict[int, ir.TensorProtocol] = {}
    for part in model.graphs():
        for value in part.initializers.values():
            tensor = value.const_value
            if tensor is None:
                continue
            if id(tensor) not in copies:
                if tensor.dtype == ir.DataType.STRING:
                    copies[id(tensor)] = tensor
                    continue
                array = np.array(tensor.numpy())
                copies[id(tensor)] = ir.Tensor(array, dtype=tensor.dtype, name=value.name)
            value.const_value = copies[id(tensor)]


def _strip_prefix(model: ir.Model) -> None:
    taken = graph.taken_names(model.graph)
    for name, value in list(model.graph.initializers.items()):
        plain = name.removeprefix(_WRAPPER)
        if plain != name and plain not in taken:
            value.name = plain
            taken.add(plain)


def _name_folded(model: ir.Model, parameters: Mapping[str, Sequence[int]]) -> None:
    """Give constants that were computed from a parameter a name that tells which.

    `fc.weight_t` is the transpose of `fc.weight`, which a MatMul wants; `conv.bias` may be new where
    BatchNorm was folded into a convolution.
    """
    taken = graph.taken_names(model.graph)
    for node in graph.all_nodes(model):
        path = _module_path(node)
        if node.op_type == "MatMul" and path is not None:
            value, name = node.inputs[1], f"{path}.weight_t"
            source = parameters.get(f"{path}.weight")
            fits = value is not None and value.shape is not None and source is not None
            if not fits or list(value.shape) != list(source)[::-1]:  # type: ignore[union-attr,arg-type]
                continue
        elif node.op_type in ("Conv", "ConvTranspose", "Gemm") and len(node.inputs) > 2:
            value, name = node.inputs[2], f"{_from_weight(node)}.bias"
            if name == "None.bias":
                continue
        else:
            continue
        if value is None or not value.is_initializer() or len(value.uses()) != 1 or name in taken:
            continue
        if value.name not in parameters:
            value.name = name
            taken.add(name)


def _name_nodes(model: ir.Model) -> None:
    """Name nodes by the module they come from: `features.0.conv`, `features.0.relu`."""
    used: set[str] = set()
    for node in graph.all_nodes(model):
        name = _from_weight(node) or _from_scopes(node)
        if name is None:
            continue
        unique, count = name, 0
        while unique in used:
            count += 1
            unique = f"{name}_{count}"
        used.add(unique)
        node.name = unique


def _from_weight(node: ir.Node) -> str | None:
    """`features.0.conv` for the node whose weight is `features.0.conv.weight`."""
    for value in node.inputs[1:]:
        if value is not None and value.is_initializer():
            for suffix in (".weight", ".weight_t"):
                if (value.name or "").endswith(suffix):
                    return (value.name or "").removesuffix(suffix)
    return None


def _scopes(node: ir.Node) -> list[str]:
    """The modules around the node from the outermost in, and at the end the name of its operation."""
    props: dict[str, Any] = node.metadata_props
    try:
        scopes = ast.literal_eval(props["pkg.torch.onnx.name_scopes"])
    except (KeyError, ValueError, SyntaxError):
        return []
    return [s for s in scopes if isinstance(s, str) and s and not s.startswith("_empty_nn_module_stack")]


def _module_path(node: ir.Node) -> str | None:
    scopes = _scopes(node)
    return scopes[-2].removeprefix(_WRAPPER) if len(scopes) > 1 else None


def _from_scopes(node: ir.Node) -> str | None:
    scopes = _scopes(node)
    if not scopes:
        if node.name and node.name.startswith("/"):  # the tracing exporter: /module/layer/Relu_1
            return node.name.removeprefix("/module").strip("/").replace("/", ".")
        return None
    path = scopes[-2].removeprefix(_WRAPPER) if len(scopes) > 1 else ""
    path = "" if path == _WRAPPER.rstrip(".") else path
    leaf = re.sub(r"_\d+$", "", scopes[-1]).strip("_")
    return f"{path}.{leaf}" if path else leaf
