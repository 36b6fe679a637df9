"""Per-channel x * scale + shift as numbers: what BatchNormalization and arithmetic with constants are."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import onnx_ir as ir

from attar.graph import const_array
from attar.rewrite.edit import Array, at, dims, float_of, int_of, is_float

ARITHMETIC = ("Mul", "Div", "Add", "Sub")


@dataclass(frozen=True)
class Affine:
    """y = x * scale + shift, both float64 [channels]."""

    scale: Array
    shift: Array

    @property
    def shifts(self) -> bool:
        return bool(np.any(self.shift))

    @property
    def scales(self) -> bool:
        return bool(np.any(self.scale != 1))


def data_index(node: ir.Node) -> int | None:
    """Which input of a BatchNormalization or arithmetic node is the data; None if not exactly one is
    constant.
    """
    if node.op_type == "BatchNormalization":
        return 0
    if len(node.inputs) != 2:
        return None
    fixed = [const_array(v) is not None for v in node.inputs]
    if fixed == [False, True]:
        return 0
    # c / x is not affine
    return 1 if fixed == [True, False] and node.op_type != "Div" else None


def affine_of(node: ir.Node, axis: int, channels: int) -> Affine | str:
    """The scale and shift that `node` applies along `axis` (from the front) of its data; a reason if it is
    none.

    The data must have `channels` along the axis, and the node must not broadcast it to a larger shape.
    """
    index = data_index(node)
    if index is None:
        return "its other operand is not constant"
    data = node.inputs[index]
    shape = dims(data)
    if data is None or shape is None or not is_float(data):
        return "the type or rank of its input is unknown"
    if shape[axis] != channels:
        return f"its input does not have {channels} channels on axis {axis}"
    if node.op_type == "BatchNormalization":
        return _batchnorm(node, axis)
    constant = const_array(node.inputs[1 - index])
    assert constant is not None
    if constant.ndim > len(shape):
        return "its constant widens the result"
    padded = constant.reshape((1,) * (len(shape) - constant.ndim) + constant.shape)
    if any(d != 1 for a, d in enumerate(padded.shape) if a != axis) or padded.shape[axis] not in (
        1,
        channels,
    ):
        return "its constant does not lie along the channels"
    value = np.broadcast_to(padded.reshape(-1).astype(np.float64), (channels,))
    one, zero = np.ones(channels), np.zeros(channels)
    if node.op_type == "Mul":
        return Affine(value, zero)
    if node.op_type == "Div":
        return "it divides by zero" if not value.all() else Affine(1 / value, zero)
    if node.op_type == "Add":
        return Affine(one, value)
    return Affine(one, -value) if index == 0 else Affine(-one, value)  # x - c, c - x


def _batchnorm(node: ir.Node, axis: int) -> Affine | str:
    """(x - mean) / sqrt(var + epsilon) * gamma + beta, in float64."""
    if axis != 1:
        return "its channels are on axis 1"
    if int_of(node, "training_mode", 0) or any(o.uses() or o.is_graph_output() for o in node.outputs[1:]):
        return "it is in training mode"
    arrays = [const_array(at(node, i)) for i in range(1, 5)]
    if any(a is None for a in arrays):
        return "its statistics are not constant"
    gamma, beta, mean, var = (np.asarray(a, np.float64) for a in arrays)
    spread = var + float_of(node, "epsilon", 1e-5)
    if not (spread > 0).all():
        return "its variance plus epsilon is not positive"
    scale = gamma / np.sqrt(spread)
    return Affine(scale, beta - mean * scale)


def cast_back(array: Array, like: Array) -> Array | None:
    """`array` in the type of `like`; None if a finite number would become infinite."""
    with np.errstate(over="ignore"):
        out = array.astype(like.dtype)
    if not np.isfinite(out.astype(np.float64)).all() and np.isfinite(like.astype(np.float64)).all():
        return None
    return out
