"""BatchNormalization, and Mul/Div/Add/Sub by per-channel constants, folded into the weights beside them.

After:   W' = W * scale (along the output channels),  b' = b * scale + shift.
Before:  W' = W * scale (along the input channels),   b' = b + sum of W * shift; with zero padding the shift
    is not
         constant near the border, so only the scale may go in.

All arithmetic is float64 and rounded once.
"""

from __future__ import annotations

import numpy as np
import onnx_ir as ir

from attar.graph import const_array
from attar.rewrite.edit import Array, Edit, at, dims, int_of, ints_of, string_of
from attar_fuse.affine import ARITHMETIC, Affine, affine_of, cast_back, data_index

LAYERS = ("Conv", "ConvTranspose", "Gemm", "MatMul")
OVERFLOW = "the folded weights would overflow"


def into_layer_before(node: ir.Node, edit: Edit) -> bool:
    """Conv/ConvTranspose/Gemm/MatMul [+ Add] -> BatchNormalization or arithmetic: the latter goes into the
    weights.
    """
    index = data_index(node)
    value = None if index is None else node.inputs[index]
    if value is None:
        return False
    layer = edit.producer(value, *LAYERS, "Add", beside=node)
    if layer is None:
        return _alone(node, edit)
    bias = None
    if layer.op_type == "Add":  # MatMul + Add is a layer with bias
        where = data_index(layer)
        matmul = None if where is None else edit.producer(layer.inputs[where], "MatMul", beside=node)
        if where is None or matmul is None:
            return _alone(node, edit)
        layer, bias = matmul, layer
    affine = _seen_by(node, layer)
    if isinstance(affine, str):
        return edit.refuse(node, affine)
    if layer.op_type == "MatMul" and bias is None and not affine.scales and node.op_type in ("Add", "Sub"):
        return False  # the bias of a MatMul: nothing to gain
    for inner in (value, None if bias is None else layer.outputs[0]):
        if inner is not None and not edit.alone(inner):
            return edit.refuse(node, edit.why_not_alone(inner))
    reason = _absorb(layer, affine, bias, node, edit)
    return edit.refuse(node, reason) if reason else True


def _alone(node: ir.Node, edit: Edit) -> bool:
    if node.op_type != "BatchNormalization":
        return False
    return edit.refuse(node, "no Conv, ConvTranspose, Gemm or MatMul before it to take it in")


def _seen_by(node: ir.Node, layer: ir.Node) -> Affine | str:
    """What `node` does to the output channels of `layer`."""
    weight, shape = const_array(at(layer, 1)), dims(layer.outputs[0])
    if weight is None:
        return f"the weights of the {layer.op_type} before it are not constant"
    if shape is None or len(shape) < 2 or weight.ndim < 2:
        return f"the rank of the {layer.op_type} before it is unknown or too low"
    if layer.op_type == "Conv":
        return affine_of(node, 1, weight.shape[0])
    if layer.op_type == "ConvTranspose":
        return affine_of(node, 1, weight.shape[1] * int_of(layer, "group", 1))
    transposed = layer.op_type == "Gemm" and int_of(layer, "transB", 0)
    return affine_of(node, len(shape) - 1, weight.shape[0 if transposed else -1])


def _absorb(layer: ir.Node, affine: Affine, add: ir.Node | None, node: ir.Node, edit: Edit) -> str | None:
    """Fold; a reason if that cannot be. Nothing is changed before everything is known to fit."""
    weight = const_array(layer.inputs[1])
    assert weight is not None
    scaled = cast_back(weight.astype(np.float64) * _along_outputs(layer, weight, affine.scale), weight)
    if scaled is None:
        return OVERFLOW
    done = f"{node.op_type} folded into the {layer.op_type} before"
    if layer.op_type == "MatMul":
        return _absorb_matmul(layer, scaled, affine, add=add, node=node, edit=edit)
    bias = const_array(at(layer, 2))
    if bias is None and at(layer, 2) is not None:
        return f"the bias of the {layer.op_type} before it is not constant"
    if layer.op_type == "Gemm" and (bias is None or float(_beta(layer)) != 1):
        bias = None if bias is None else bias * np.asarray(_beta(layer), bias.dtype)
    if layer.op_type == "Gemm" and bias is not None and bias.size > 1 and bias.shape[-1] == 1:
        return "the bias of the Gemm before it lies along the rows"
    old = np.zeros(1) if bias is None else bias.astype(np.float64)
    moved = cast_back(old * affine.scale + affine.shift, weight if bias is None else bias)
    if moved is None:
        return OVERFLOW
    if affine.scales:
        edit.reweight(layer, 1, scaled)
    if layer.op_type == "Gemm":
        layer.attributes.pop("beta", None)
    if bias is not None:
        edit.reweight(layer, 2, moved)
    elif moved.any() or affine.shifts:
        edit.set_input(layer, 2, edit.constant(_bias_name(layer), moved))
    edit.merge_into(node, layer.outputs[0])
    edit.did(done)
    return None


def _absorb_matmul(
    layer: ir.Node, scaled: Array, affine: Affine, *, add: ir.Node | None, node: ir.Node, edit: Edit
) -> str | None:
    done, like = f"{node.op_type} folded into the MatMul before", const_array(layer.inputs[1])
    assert like is not None
    if add is None:
        edit.reweight(layer, 1, scaled)
        if affine.shifts:
            shift = cast_back(affine.shift, like)
            if shift is None:
                return OVERFLOW
            edit.replace(node, "Add", [layer.outputs[0], edit.constant(f"{node.name}_shift", shift)])
        else:
            edit.merge_into(node, layer.outputs[0])
        edit.did(done)
        return None
    where = data_index(add)
    assert where is not None
    bias = const_array(add.inputs[1 - where])
    assert bias is not None
    if bias.size > 1 and bias.shape[-1] == 1:
        return "the bias before it does not lie along the channels"
    moved = cast_back(bias.astype(np.float64) * affine.scale + affine.shift, bias)
    if moved is None:
        return OVERFLOW
    if affine.scales:
        edit.reweight(layer, 1, scaled)
    edit.reweight(add, 1 - where, moved)
    edit.merge_into(node, add.outputs[0])
    edit.did(done)
    return None


def _bias_name(layer: ir.Node) -> str:
    weight = at(layer, 1)
    return f"{'layer' if weight is None else weight.name}_bias"


def _beta(gemm: ir.Node) -> float:
    found = gemm.attributes.get("beta")
    return 1.0 if found is None else float(found.as_float())


def _along_outputs(layer: ir.Node, weight: Array, scale: Array) -> Array:
    """`scale` in the shape that multiplies the output channels of the weight."""
    ones = (1,) * (weight.ndim - 2)
    if layer.op_type == "Conv":
        return scale.reshape(-1, 1, *ones)
    if layer.op_type == "ConvTranspose":  # [C, M/g, ...]: the rows of group k make the outputs of group k
        groups = int_of(layer, "group", 1)
        rows = np.repeat(scale.reshape(groups, -1), weight.shape[0] // groups, axis=0)
        return rows.reshape(weight.shape[0], weight.shape[1], *ones)
    if layer.op_type == "Gemm" and int_of(layer, "transB", 0):
        return scale.reshape(-1, 1)
    return scale


def into_layer_after(node: ir.Node, edit: Edit) -> bool:
    """BatchNormalization or arithmetic -> Conv/Gemm/MatMul (`node`): the former goes into the weights."""
    value = at(node, 0)
    maker = edit.producer(value, "BatchNormalization", *ARITHMETIC, beside=node)
    if value is None or maker is None or value.is_graph_output() or data_index(maker) is None:
        return False
    weight, shape = const_array(at(node, 1)), dims(value)
    bias = const_array(at(node, 2))
    if weight is None or shape is None or weight.ndim < 2 or (node.op_type == "MatMul" and weight.ndim > 2):
        return False
    if node.op_type == "Gemm" and (int_of(node, "transA", 0) or float(_beta(node)) != 1):
        return False
    groups = int_of(node, "group", 1) if node.op_type == "Conv" else 1
    transposed = node.op_type == "Gemm" and int_of(node, "transB", 0)
    inner = weight.shape[1] * groups if node.op_type == "Conv" or transposed else weight.shape[0]
    affine = affine_of(maker, 1 if node.op_type == "Conv" else len(shape) - 1, inner)
    if isinstance(affine, str):
        return edit.refuse(maker, affine) if maker.op_type == "BatchNormalization" else False
    if not edit.alone(value):
        return edit.refuse(maker, f"its output is used by more than the {node.op_type} after it")
    if affine.shifts and (reason := _no_shift(node)) is not None:
        return edit.refuse(maker, reason)
    wide = weight.astype(np.float64)
    scaled = cast_back(wide * _along_inputs(node, weight, affine.scale, groups), weight)
    added = _sum_over_inputs(node, wide * _along_inputs(node, weight, affine.shift, groups))
    old = np.zeros(1) if bias is None else bias.astype(np.float64)
    moved = cast_back(old + added, weight)
    if scaled is None or moved is None:
        return edit.refuse(maker, OVERFLOW)
    index = data_index(maker)
    assert index is not None
    source = maker.inputs[index]
    if affine.scales:
        edit.reweight(node, 1, scaled)
    if affine.shifts and bias is not None:
        edit.reweight(node, 2, moved)
    elif affine.shifts:
        edit.set_input(node, 2, edit.constant(_bias_name(node), moved))
    node.replace_input_with(0, source)
    assert maker.graph is not None
    maker.graph.remove(maker, safe=True)
    return edit.did(f"{maker.op_type} folded into the {node.op_type} after")


def _no_shift(node: ir.Node) -> str | None:
    if node.op_type == "MatMul":
        return "the MatMul after it has no bias to take the shift"
    if at(node, 2) is not None and const_array(at(node, 2)) is None:
        return f"the bias of the {node.op_type} after it is not constant"
    if node.op_type == "Conv":
        padded = any(ints_of(node, "pads") or ()) or string_of(node, "auto_pad", "NOTSET").startswith("SAME")
        if padded:
            return "the Conv after it pads with zeros, which are not shifted"
    return None


def _along_inputs(node: ir.Node, weight: Array, scale: Array, groups: int) -> Array:
    if node.op_type == "Conv":  # [M, C/g, ...]: filters of group k see the inputs of group k
        rows = np.repeat(scale.reshape(groups, -1), weight.shape[0] // groups, axis=0)
        return rows.reshape(weight.shape[0], weight.shape[1], *(1,) * (weight.ndim - 2))
    if node.op_type == "Gemm" and int_of(node, "transB", 0):
        return scale.reshape(1, -1)
    return scale.reshape(-1, 1)


def _sum_over_inputs(node: ir.Node, products: Array) -> Array:
    if node.op_type == "Conv":
        products = products.reshape(products.shape[0], -1)
    over_columns = node.op_type == "Conv" or bool(node.op_type == "Gemm" and int_of(node, "transB", 0))
    return np.asarray(products.sum(axis=1 if over_columns else 0))


RULES = {
    "BatchNormalization": [into_layer_before],
    **{op: [into_layer_before] for op in ARITHMETIC},
    **{op: [into_layer_after] for op in ("Conv", "Gemm", "MatMul")},
}
