"""A node of the IR as plain data that JSON holds, and back: the config of attar's Keras layer."""

from __future__ import annotations

import base64
from typing import Any

import numpy as np
import onnx_ir as ir

from attar.conversion.view import op_key
from attar.errors import ConversionError, InputError

_LIMIT = 1 << 26  # bytes of one constant in a config; anything larger is a weight or damage


def encode_array(array: np.ndarray[Any, Any]) -> dict[str, Any]:
    raw = np.ascontiguousarray(array)
    dtype = ir.DataType.from_numpy(array.dtype).name
    return {"dtype": dtype, "shape": list(array.shape), "data": base64.b64encode(raw.tobytes()).decode()}


def decode_array(data: dict[str, Any]) -> np.ndarray[Any, Any]:
    """The array of `encode_array`.

    Raises:
        InputError: it is damaged, or larger than a config may hold.
    """
    try:
        dtype, shape = ir.DataType[data["dtype"]].numpy(), [int(d) for d in data["shape"]]
        if len(data["data"]) > 2 * _LIMIT:
            raise InputError("a constant in the config of an attar layer is too large")
        return np.frombuffer(base64.b64decode(data["data"], validate=True), dtype).reshape(shape)
    except (KeyError, TypeError, ValueError) as error:
        raise InputError(f"the config of an attar layer holds a damaged constant: {error}") from error


def encode_value(value: ir.Value | None) -> dict[str, Any] | None:
    """Name, type and shape."""
    if value is None:
        return None
    shape = None
    if value.shape is not None:
        shape = [d if isinstance(d, int) else d.value for d in value.shape]
    return {
        "name": value.name or "",
        "dtype": None if value.dtype is None else value.dtype.name,
        "shape": shape,
    }


def decode_value(data: dict[str, Any] | None) -> ir.Value | None:
    if data is None:
        return None
    value = ir.Value(name=data["name"])
    if data["dtype"] is not None:
        value.type = ir.TensorType(ir.DataType[data["dtype"]])
    if data["shape"] is not None:
        value.shape = ir.Shape(data["shape"])
    if data.get("constant") is not None:
        value.const_value = ir.tensor(decode_array(data["constant"]), name=data["name"])
    return value


def encode_attributes(node: ir.Node) -> dict[str, Any]:
    """The attributes of `node`.

    Raises:
        ConversionError: one has no plain form.
    """
    found: dict[str, Any] = {}
    for name, attribute in node.attributes.items():
        value = attribute.value
        if attribute.type == ir.AttributeType.TENSOR:
            value = encode_array(attribute.as_tensor().numpy())
        elif attribute.type in (ir.AttributeType.INTS, ir.AttributeType.FLOATS, ir.AttributeType.STRINGS):
            value = list(value)
        elif attribute.type not in (ir.AttributeType.INT, ir.AttributeType.FLOAT, ir.AttributeType.STRING):
            op = op_key(node)
            raise ConversionError(
                f"a Keras layer cannot hold the {op} node {node.name!r}: "
                f"its attribute {name!r} has no plain form",
                missing={op: [node.name or "?"]},
            )
        found[name] = {"type": attribute.type.name, "value": value}
    return found


def decode_attributes(data: dict[str, Any]) -> list[ir.Attr]:
    found = []
    for name, entry in data.items():
        kind, value = ir.AttributeType[entry["type"]], entry["value"]
        if kind == ir.AttributeType.TENSOR:
            found.append(ir.AttrTensor(name, ir.tensor(decode_array(value))))
        else:
            found.append(ir.Attr(name, kind, value))
    return found


def encode_node(node: ir.Node, opset: int, wanted: list[bool]) -> dict[str, Any]:
    """`node` without its constants, which the caller adds to "inputs" as "constant" or "weight"."""
    return {
        "name": node.name or "",
        "op": node.op_type,
        "domain": node.domain,
        "opset": opset,
        "attributes": encode_attributes(node),
        "inputs": [encode_value(v) for v in node.inputs],
        "outputs": [
            {**(encode_value(v) or {}), "wanted": w} for v, w in zip(node.outputs, wanted, strict=True)
        ],
    }


def decode_node(data: dict[str, Any], layer: str) -> ir.Node:
    """The node of `encode_node`, for the layer of that name.

    Raises:
        InputError: the data is damaged.
    """
    try:
        node = ir.Node(
            data["domain"],
            data["op"],
            [decode_value(v) for v in data["inputs"]],
            decode_attributes(data["attributes"]),
            num_outputs=len(data["outputs"]),
            name=str(data.get("name") or layer),
        )
        for value, entry in zip(node.outputs, data["outputs"], strict=True):
            decoded = decode_value({**entry, "constant": None})
            value.name, value.type, value.shape = decoded.name, decoded.type, decoded.shape
    except (KeyError, TypeError, ValueError) as error:
        raise InputError(f"the config of the attar layer {layer!r} is damaged: {error}") from error
    return node
