"""LayerNormalization, recognised in the mean-and-variance arithmetic that older exporters write."""

from __future__ import annotations

import numpy as np
import onnx_ir as ir

from attar.graph import const_array
from attar.rewrite.edit import Edit, at, dims, int_of, ints_of, is_float


def layer_norm(node: ir.Node, edit: Edit) -> bool:
    """(x - mean(x)) / sqrt(mean((x - mean(x))^2) + epsilon) -> LayerNormalization, opset 17.

    Ba, Kiros and Hinton, Layer Normalization, 2016. `node` is the division (or the product with a
    reciprocal); the means are over the last axes. A product with constant gamma and a sum with constant beta
    behind it are taken in by `gamma_beta`.
    """
    if edit.opset < 17:
        return False
    found = _centered_and_root(node, edit)
    if found is None:
        return False
    centered, spread = found
    sub = edit.producer(centered, "Sub")
    mean = None if sub is None else edit.producer(at(sub, 1), "ReduceMean")
    x = None if sub is None else sub.inputs[0]
    if sub is None or mean is None or x is None or mean.inputs[0] is not x or not is_float(x):
        return False
    axes = _last_axes(mean, x, edit)
    variance = _variance(spread, centered, edit)
    shape = dims(x)
    if axes is None or variance is None or variance[1] != axes or shape is None:
        return False
    inner = shape[-axes:]
    if not all(isinstance(d, int) for d in inner):
        return False
    assert x.dtype is not None
    ones = np.ones([d for d in inner if isinstance(d, int)], x.dtype.numpy())
    gamma = edit.constant(f"{node.outputs[0].name}_scale", ones)
    edit.replace(node, "LayerNormalization", [x, gamma], {"axis": -axes, "epsilon": variance[0]})
    return edit.did("LayerNormalization recognised")


def _centered_and_root(node: ir.Node, edit: Edit) -> tuple[ir.Value, ir.Value] | None:
    """(x - mean, variance + epsilon) of d / sqrt(v), d * reciprocal(sqrt(v)), d * v ** -0.5."""
    left, right = at(node, 0), at(node, 1)
    if left is None or right is None:
        return None
    if node.op_type == "Div":
        inside = _root(right, edit)
        return None if inside is None else (left, inside)
    for d, factor in ((left, right), (right, left)):
        power = edit.producer(factor, "Pow")
        if power is not None and edit.scalar(at(power, 1)) == -0.5 and power.inputs[0] is not None:
            return d, power.inputs[0]
        inverse = edit.producer(factor, "Reciprocal")
        if inverse is None:
            one = edit.producer(factor, "Div")
            inverse = one if one is not None and edit.scalar(at(one, 0)) == 1 else None
        inside = None if inverse is None else _root(inverse.inputs[-1], edit)
        if inside is not None:
            return d, inside
    return None


def _root(value: ir.Value | None, edit: Edit) -> ir.Value | None:
    node = edit.producer(value, "Sqrt", "Pow")
    if node is None or (node.op_type == "Pow" and edit.scalar(at(node, 1)) != 0.5):
        return None
    return node.inputs[0]


def _variance(value: ir.Value, centered: ir.Value, edit: Edit) -> tuple[float, int] | None:
    """(epsilon, number of axes) of mean(centered^2) + epsilon."""
    plus = edit.producer(value, "Add")
    if plus is None:
        return None
    for data, other in (plus.inputs, reversed(plus.inputs)):
        epsilon, mean = edit.scalar(other), edit.producer(data, "ReduceMean")
        if epsilon is None or mean is None:
            continue
        square = edit.producer(mean.inputs[0], "Pow", "Mul")
        if square is None or square.inputs[0] is not centered:
            return None
        second = square.inputs[1] is centered if square.op_type == "Mul" else edit.scalar(at(square, 1)) == 2
        axes = _last_axes(mean, centered, edit)
        return (epsilon, axes) if second and axes is not None else None
    return None


def _last_axes(mean: ir.Node, x: ir.Value, edit: Edit) -> int | None:
    """How many last axes a ReduceMean with keepdims runs over; None if they are others."""
    shape = dims(x)
    axes = edit.ints(at(mean, 1)) if at(mean, 1) is not None else ints_of(mean, "axes")
    if shape is None or not axes or not int_of(mean, "keepdims", 1):
        return None
    rank = len(shape)
    return len(axes) if {a % rank for a in axes} == set(range(rank - len(axes), rank)) else None


def gamma_beta(node: ir.Node, edit: Edit) -> bool:
    """LayerNormalization -> Mul by constant gamma, Add of constant beta: taken in as its scale and bias."""
    for index in (0, 1):
        norm = edit.producer(at(node, index), "LayerNormalization", beside=node)
        constant = const_array(at(node, 1 - index))
        if norm is None or constant is None:
            continue
        scale, bias = const_array(norm.inputs[1]), const_array(at(norm, 2))
        if scale is None or (bias is None and at(norm, 2) is not None) or not edit.alone(norm.outputs[0]):
            return False
        if constant.shape != scale.shape and constant.size != 1:
            return False
        if constant.ndim > scale.ndim or any(o.uses() for o in norm.outputs[1:]):
            return False
        if node.op_type == "Mul":
            edit.reweight(norm, 1, (scale.astype(np.float64) * constant).astype(scale.dtype))
            if bias is not None:
                edit.reweight(norm, 2, (bias.astype(np.float64) * constant).astype(bias.dtype))
        else:
            old = np.zeros(scale.shape) if bias is None else bias.astype(np.float64)
            moved = (old + constant).astype(scale.dtype)
            if bias is None:
                edit.set_input(norm, 2, edit.constant(f"{norm.outputs[0].name}_bias", moved))
            else:
                edit.reweight(norm, 2, moved)
        edit.merge_into(node, norm.outputs[0])
        return edit.did(f"{node.op_type} folded into the LayerNormalization before")
    return False


RULES = {"Div": [layer_norm], "Mul": [layer_norm, gamma_beta], "Add": [gamma_beta]}
