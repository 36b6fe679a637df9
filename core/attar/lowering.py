"""Lowerings: rewrites of a finished model that only one target wants. Done last, never the stored truth."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

import numpy as np
import onnx_ir as ir

from attar import graph
from attar.errors import InputError, did_you_mean
from attar.integer_operators import integer_operators
from attar.targets import Target
from attar.weight_lowering import rows_of_tables, weights_on_load

Lowering = Callable[[ir.Model], int]


def lower(model: ir.Model, target: Target) -> tuple[ir.Model, list[str]]:
    """A copy of `model` with the target's lowerings applied, and what was done.

    Raises:
        InputError: the target names a lowering that does not exist.
    """
    copy = graph.clone(model)
    done = []
    for name in target.lowerings:
        if name not in LOWERINGS:
            raise InputError(
                f"target {target.name!r} asks for an unknown lowering {name!r}",
                hint=did_you_mean(name, LOWERINGS),
            )
        count = LOWERINGS[name](copy)
        if count:
            done.append(f"{name} ({count})")
    if done:
        graph.tidy(copy)
    return copy, done


def widen_thin_convolutions(model: ir.Model) -> int:
    """Give integer convolutions of 1 to 3 input channels a fourth one, of zeros.

    ONNX Runtime's u8 x s8 convolution reads channels in groups of four; with three of them the first layer of
    an image network runs about 1.5x slower than with four. The integers are padded, not the floats, and the
    added weights are zero, so that the result is the same to the bit.
    """
    count = 0
    for node in list(model.graph):
        if node.op_type != "Conv" or node.domain or len(node.inputs) < 2:
            continue
        data, weight = _dequantized(node.inputs[0]), _dequantized(node.inputs[1])
        if data is None or weight is None:
            continue
        codes = graph.const_array(weight.inputs[0])
        group = node.attributes.get("group")
        if (
            codes is None
            or codes.shape[1] >= 4
            or codes.shape[0] < 8
            or (group is not None and group.value != 1)
        ):
            continue
        source, shape = data.inputs[0], node.inputs[0].shape if node.inputs[0] is not None else None
        if source is None or shape is None or shape[1] != codes.shape[1]:
            continue
        scale, axis = graph.const_array(weight.inputs[1]), weight.attributes.get("axis")
        if (
            scale is None
            or scale.ndim > 1
            or (scale.size > 1 and (axis is None or axis.value not in (0, -codes.ndim)))
        ):
            continue  # scales along the input channels would have to grow too
        missing = 4 - codes.shape[1]
        zero = graph.const_array(weight.inputs[2]) if len(weight.inputs) > 2 else None
        if zero is not None and zero.any():
            continue  # zero weights would not be zero codes
        wide = np.concatenate(
            [codes, np.zeros((codes.shape[0], missing, *codes.shape[2:]), codes.dtype)], axis=1
        )
        owner = model.graph
        pads = np.zeros(2 * codes.ndim, np.int64)
        pads[codes.ndim + 1] = missing
        amounts = graph.add_initializer(owner, f"{node.name}/widen", pads)
        pad = ir.node("Pad", [source, amounts], name=graph.fresh_name(owner, f"{node.name}/widen"))
        pad.outputs[0].name = graph.fresh_name(owner, f"{source.name}_widened")
        pad.outputs[0].type = ir.TensorType(source.dtype or ir.DataType.UINT8)
        pad.outputs[0].shape = ir.Shape([shape[0], 4, *shape[2:]])
        new_data = _copy_with(owner, data, 0, pad.outputs[0], f"{node.inputs[0].name}_widened")  # type: ignore[union-attr]
        new_data.outputs[0].shape = ir.Shape([shape[0], 4, *shape[2:]])
        stored = graph.add_initializer(owner, f"{weight.inputs[0].name}_widened", wide)  # type: ignore[union-attr]
        new_weight = _copy_with(owner, weight, 0, stored, f"{node.inputs[1].name}_widened")  # type: ignore[union-attr]
        new_weight.outputs[0].shape = ir.Shape(wide.shape)
        owner.insert_before(node, [pad, new_data, new_weight])
        node.replace_input_with(0, new_data.outputs[0])
        node.replace_input_with(1, new_weight.outputs[0])
        count += 1
    return count


def integer_pads(model: ir.Model) -> int:
    """Pad codes instead of numbers: DequantizeLinear -> Pad -> QuantizeLinear of one scale becomes Pad of
    integers.

    ONNX Runtime fuses this pattern for most operators that only move data, but not for Pad. Zero becomes the
    zero point.
    """
    count = 0
    for node in list(model.graph):
        if node.op_type != "Pad" or node.domain:
            continue
        before = _dequantized(node.inputs[0])
        users = [user for user, _ in node.outputs[0].uses()]
        if before is None or len(users) != 1 or users[0].op_type != "QuantizeLinear":
            continue
        after = users[0]
        if not _same_constants(before.inputs[1:], after.inputs[1:]) or node.outputs[0].is_graph_output():
            continue
        owner = model.graph
        fill = before.inputs[2] if len(before.inputs) > 2 else None
        if fill is None or not _pads_with_zero(node):
            continue
        inputs = [before.inputs[0], node.inputs[1], fill, *node.inputs[3:]]
        pad = ir.node(
            "Pad",
            inputs,
            attributes=dict(node.attributes),
            name=graph.fresh_name(owner, f"{node.name}/integer"),
        )
        out = pad.outputs[0]
        out.name = graph.fresh_name(owner, f"{after.outputs[0].name}_padded")
        out.type, out.shape = after.outputs[0].type, after.outputs[0].shape
        owner.insert_before(node, pad)
        for user, position in list(after.outputs[0].uses()):
            user.replace_input_with(position, out)
        count += 1
    return count


def average_pools_as_convolutions(model: ir.Model) -> int:
    """Write an average of codes as a depthwise convolution with weights 1 / (window size), codes 1.

    ONNX Runtime turns DequantizeLinear -> AveragePool -> QuantizeLinear into QLinearAveragePool, which is
    about 25x slower than the float pool it replaces; the depthwise integer convolution is as quick as any
    other. The mean is the same number, rounded once.
    """
    count = 0
    for node in list(model.graph):
        if node.op_type != "AveragePool" or node.domain:
            continue
        window, before = window_of(node), _dequantized(node.inputs[0])
        users = [user for user, _ in node.outputs[0].uses()]
        shape = node.inputs[0].shape if node.inputs[0] is not None else None
        if window is None or before is None or shape is None or not isinstance(shape[1], int):
            continue
        if len(users) != 1 or users[0].op_type != "QuantizeLinear" or node.outputs[0].is_graph_output():
            continue
        owner, channels = model.graph, shape[1]
        size = math.prod(window)
        stored = [
            graph.add_initializer(owner, f"{node.name}/window", np.ones((channels, 1, *window), np.int8)),
            graph.add_initializer(owner, f"{node.name}/window_scale", np.float32(1 / size).reshape(())),
            graph.add_initializer(owner, f"{node.name}/window_zero_point", np.int8(0).reshape(())),
        ]
        weight = ir.node(
            "DequantizeLinear", stored, name=graph.fresh_name(owner, f"{node.name}/window/dequantize")
        )
        weight.outputs[0].name = graph.fresh_name(owner, f"{node.name}/window_dequantized")
        weight.outputs[0].type = ir.TensorType(ir.DataType.FLOAT)
        weight.outputs[0].shape = ir.Shape([channels, 1, *window])
        kept = {
            k: a for k, a in node.attributes.items() if k in ("kernel_shape", "strides", "pads", "dilations")
        }
        conv = ir.node(
            "Conv",
            [node.inputs[0], weight.outputs[0]],
            attributes={**kept, "group": channels},
            name=graph.fresh_name(owner, f"{node.name}/convolution"),
        )
        out, old = conv.outputs[0], node.outputs[0]
        out.name, out.type, out.shape = graph.fresh_name(owner, f"{old.name}_averaged"), old.type, old.shape
        owner.insert_before(node, [weight, conv])
        for user, position in list(old.uses()):
            user.replace_input_with(position, out)
        count += 1
    return count


def window_of(node: ir.Node) -> tuple[int, ...] | None:
    """The window of an AveragePool that is the same weighted sum everywhere; None if padding changes the
    divisor."""
    attributes = {name: a.value for name, a in node.attributes.items()}
    pads = attributes.get("pads") or ()
    if attributes.get("ceil_mode") or attributes.get("auto_pad", "NOTSET") not in ("NOTSET", "VALID"):
        return None
    if any(pads) and not attributes.get("count_include_pad"):
        return None
    window = tuple(attributes.get("kernel_shape") or ())
    return window if len(window) == 2 else None


def _dequantized(value: ir.Value | None) -> ir.Node | None:
    """The DequantizeLinear that makes `value`."""
    node = value.producer() if value is not None else None
    return node if node is not None and node.op_type == "DequantizeLinear" else None


def _copy_with(owner: ir.Graph, node: ir.Node, position: int, value: ir.Value, name: str) -> ir.Node:
    inputs = list(node.inputs)
    inputs[position] = value
    copy = ir.node(
        node.op_type,
        inputs,
        attributes=dict(node.attributes),
        name=graph.fresh_name(owner, f"{node.name}/widened"),
    )
    copy.outputs[0].name = graph.fresh_name(owner, name)
    copy.outputs[0].type = node.outputs[0].type
    return copy


def _pads_with_zero(node: ir.Node) -> bool:
    """Whether what a Pad fills in is zero, or copied from its input."""
    mode = node.attributes.get("mode")
    if mode is not None and mode.value != "constant":
        return True
    value = node.inputs[2] if len(node.inputs) > 2 else None
    array = graph.const_array(value)
    return value is None or (array is not None and not array.any())


def _same_constants(left: Sequence[ir.Value | None], right: Sequence[ir.Value | None]) -> bool:
    if len(left) != len(right):
        return False
    for a, b in zip(left, right, strict=True):
        x, y = graph.const_array(a), graph.const_array(b)
        if x is None or y is None or x.dtype != y.dtype or not np.array_equal(x, y):
            return False
    return True


LOWERINGS: dict[str, Lowering] = {
    "widen-thin-convolutions": widen_thin_convolutions,
    "integer-pads": integer_pads,
    "average-pools-as-convolutions": average_pools_as_convolutions,
    "rows-of-tables": rows_of_tables,
    "weights-on-load": weights_on_load,
    "integer-operators": integer_operators,
}
