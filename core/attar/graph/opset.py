"""Bringing a model to an opset: up through onnx's version converter, down where the operators mean the same
there."""

from __future__ import annotations

import logging
from typing import Any

import onnx
import onnx.version_converter
import onnx_ir as ir

from attar.errors import InputError
from attar.graph.light import light_proto
from attar.graph.shapes import refresh_shapes
from attar.graph.structure import all_nodes, clone, unique_names

NEWEST_RUNNABLE = 27
"""ONNX Runtime up to 1.32 has no QuantizeLinear and DequantizeLinear kernels at opset 28."""


def to_opset(model: ir.Model, target: int) -> list[str]:
    """Bring the default domain of `model` to `target` in place, or as near as its operators allow.

    Up: operators whose definition changed are rewritten. Down: only if every operator means the same at the
    lower opset, for the element types and attributes that are used; otherwise the lowest opset that holds
    them all is taken.

    Returns:
        Notes of what was done, none if nothing was.
    """
    current = model.opset_imports[""]
    if current == target:
        return []
    if current > target:
        return _lower(model, current, target)
    return _raise(model, current, target)


def _raise(model: ir.Model, current: int, target: int) -> list[str]:
    if current < 7 and any(n.op_type == "PRelu" for n in all_nodes(model)):
        # Its slope was broadcast along channels; the converter keeps it as it is, which means another axis
        # later.
        raise InputError(f"PRelu of opset {current} cannot be converted", hint="export with opset 7 or later")
    if all(_since(n, current) == _since(n, target) for n in all_nodes(model)):
        model.opset_imports[""] = target
        return [f"opset {current} -> {target}: no operator changed between them"]
    reason = ""
    for goal in (target, *(v for v in (20, 19, 18, 17, 15, 13) if current < v < target)):
        try:
            converted = _converted(model, goal)
        except Exception as error:  # the C++ converter raises several types; all mean "not this way"
            reason = reason or str(error).strip().splitlines()[0][:200]
            continue
        _adopt(model, converted)
        note = f"opset {current} -> {goal}"
        return [note if goal == target else f"{note}; {target} is out of reach: {reason}"]
    return [f"stays at opset {current}: it cannot be converted to {target} ({reason})"]


def _converted(model: ir.Model, goal: int) -> ir.Model:
    """A converted copy of `model`; raises whatever goes wrong."""
    model = _hardmax_on_rows(model) if model.opset_imports[""] < 13 else model
    proto, heavy = light_proto(model)
    count = len(model.graph.inputs)
    try:
        result = ir.from_proto(onnx.version_converter.convert_version(proto, goal))
        assert isinstance(result, ir.Model)
    except Exception:
        if model.opset_imports[""] < 18:
            raise
        return _converted_by_onnxscript(clone(model), goal)
    inputs = list(result.graph.inputs)
    added = inputs[count:]
    result.graph.inputs.clear()  # deleting a slice would leave the values marked as inputs
    result.graph.inputs.extend(inputs[:count])
    for value in added:
        value.const_value = heavy[value.name or ""]
        result.graph.register_initializer(value)
    _keep_old_defaults(result, model.opset_imports[""])
    for domain, version in model.opset_imports.items():
        result.opset_imports.setdefault(domain, version)
    refresh_shapes(result)  # strict: a conversion that broke the model ends here
    return result


def _keep_old_defaults(converted: ir.Model, current: int) -> None:
    """Write out defaults that later opsets changed and onnx's converter leaves to them."""
    for node in all_nodes(converted):
        if node.domain != "":
            continue
        old: dict[str, str] = {}
        if node.op_type == "Resize" and current < 11:
            old = {"coordinate_transformation_mode": "asymmetric", "nearest_mode": "floor"}
        elif node.op_type == "RoiAlign" and current < 16:
            old = {"coordinate_transformation_mode": "output_half_pixel"}
        for name, text in old.items():
            if name not in node.attributes:
                node.attributes[name] = ir.AttrString(name, text)


def _hardmax_on_rows(model: ir.Model) -> ir.Model:
    """Before opset 13 Hardmax worked on its input flattened to rows at `axis`; onnx's converter forgets that.

    Hardmax(x, axis) -> Reshape(Hardmax(Flatten(x, axis), 1), Shape(x)), which means the same at every opset.
    """
    if not any(n.op_type == "Hardmax" and n.domain == "" for n in all_nodes(model)):
        return model
    model = clone(model)
    for node in list(all_nodes(model)):
        if node.op_type != "Hardmax" or node.domain != "" or node.graph is None:
            continue
        axis = node.attributes.get_int("axis", 1)
        rows = ir.Node("", "Flatten", [node.inputs[0]], [ir.AttrInt64("axis", axis)])
        shape = ir.Node("", "Shape", [node.inputs[0]])
        best = ir.Node("", "Hardmax", [rows.outputs[0]], [ir.AttrInt64("axis", 1)])
        back = ir.Node("", "Reshape", [best.outputs[0], shape.outputs[0]])
        ir.convenience.replace_nodes_and_values(
            node.graph, node, [node], [rows, shape, best, back], node.outputs, back.outputs
        )
    unique_names(model)
    refresh_shapes(model)
    return model


def _converted_by_onnxscript(model: ir.Model, goal: int) -> ir.Model:
    from onnxscript import version_converter

    logger = logging.getLogger("onnxscript.version_converter")
    level = logger.level
    logger.setLevel(logging.ERROR)
    try:
        version_converter.ConvertVersionPass(target_version=goal, fallback=False)(model)
    finally:
        logger.setLevel(level)
    refresh_shapes(model)
    return model


def _adopt(model: ir.Model, converted: ir.Model) -> None:
    """Make `model` have the graph of `converted`, and the node metadata that the converter drops."""
    kept = {n.name: n.metadata_props for n in all_nodes(model) if n.name and n.metadata_props}
    for node in all_nodes(converted):
        if node.name in kept and not node.metadata_props:
            node.metadata_props.update(kept[node.name])
    converted.graph.metadata_props.update(model.graph.metadata_props)
    model.graph = converted.graph


def _lower(model: ir.Model, current: int, target: int) -> list[str]:
    blocker = ""
    for goal in range(target, current):
        why = next((w for n in all_nodes(model) if (w := _needs_newer(n, current, goal))), None)
        if why is None:
            for node in all_nodes(model):
                _drop_defaults(node, current, goal)
            model.opset_imports[""] = goal
            note = f"opset {current} -> {goal}: every operator in use means the same there"
            return [note if goal == target else f"{note}; {blocker}"]
        blocker = blocker or why
    note = f"stays at opset {current}: {blocker}"
    if current > NEWEST_RUNNABLE:
        note += f"; ONNX Runtime may lack kernels above opset {NEWEST_RUNNABLE}"
    return [note]


def _since(node: ir.Node, opset: int) -> int | None:
    schema = _schema(node, opset)
    return None if schema is None else int(schema.since_version)


def _schema(node: ir.Node, opset: int) -> Any:
    if node.domain not in ("", "ai.onnx"):
        return None
    try:
        return onnx.defs.get_schema(node.op_type, opset, "")
    except onnx.defs.SchemaError:
        return None


def _needs_newer(node: ir.Node, current: int, goal: int) -> str | None:
    """Why `node` cannot be read at opset `goal`, or None if it means the same there."""
    new, old = _schema(node, current), _schema(node, goal)
    if new is None or (old is not None and old.since_version == new.since_version):
        return None
    what = f"{node.op_type} ({node.name})"
    if old is None:
        return f"{what} does not exist before opset {new.since_version}"
    if [(p.name, p.option) for p in (*new.inputs, *new.outputs)] != [
        (p.name, p.option) for p in (*old.inputs, *old.outputs)
    ]:
        return f"{what} has other inputs or outputs since opset {new.since_version}"
    for name, attribute in node.attributes.items():
        if name not in old.attributes and not _is_default(attribute, new):
            return f"{what} uses the attribute {name!r} of opset {new.since_version}"
    for formal, values in ((old.inputs, node.inputs), (old.outputs, node.outputs)):
        for index, value in enumerate(values):
            kind = None if value is None else value.type
            allowed = formal[min(index, len(formal) - 1)].types
            if isinstance(kind, ir.TensorType) and _type_string(kind.dtype) not in allowed:
                return f"{what} works on {kind.dtype} since opset {new.since_version}"
    return None


def _type_string(dtype: ir.DataType) -> str:
    return f"tensor({onnx.helper.tensor_dtype_to_string(dtype.value).removeprefix('TensorProto.').lower()})"


def _is_default(attribute: ir.Attr, schema: Any) -> bool:
    formal = schema.attributes.get(attribute.name)
    if formal is None or attribute.is_ref() or formal.default_value.type == 0:
        return False
    default = onnx.helper.get_attribute_value(formal.default_value)
    default = default.decode() if isinstance(default, bytes) else default
    return bool(attribute.value == default)


def _drop_defaults(node: ir.Node, current: int, goal: int) -> None:
    new, old = _schema(node, current), _schema(node, goal)
    if new is None or old is None or new.since_version == old.since_version:
        return
    for name in [n for n in node.attributes if n not in old.attributes]:
        del node.attributes[name]
