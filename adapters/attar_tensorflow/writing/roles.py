"""Which constants of a model are weights that training may change.

Everything else stays what it is: statistics of BatchNormalization, shapes, axes, scales, masks, the mean and
deviation that an input is normalized with.
"""

from __future__ import annotations

import re

import numpy as np
import onnx_ir as ir

from attar.conversion.view import op_key
from attar.graph import const_array

_WEIGHTS: dict[str, tuple[int, ...]] = {
    "BatchNormalization": (1, 2),
    "Conv": (1, 2),
    "ConvTranspose": (1, 2),
    "DeformConv": (1, 3),
    "Einsum": (0, 1),
    "GRU": (1, 2, 3),
    "Gemm": (0, 1, 2),
    "GroupNormalization": (1, 2),
    "InstanceNormalization": (1, 2),
    "LSTM": (1, 2, 3, 7),
    "LayerNormalization": (1, 2),
    "MatMul": (0, 1),
    "PRelu": (1,),
    "RMSNormalization": (1,),
    "RNN": (1, 2, 3),
    "attar::Dense": (1, 2),
    "attar::Recurrent": (1, 2, 3),
}
_PRODUCTS = frozenset(
    ["Conv", "ConvTranspose", "Einsum", "Gather", "Gemm", "MatMul", "Mul", "Add", "LayerNormalization"]
)
_PARAMETER = re.compile(
    r"(?:^|[./])(?:weight|bias|gamma|beta|scale|alpha|lambda_?\d*|kernel|\w*embed\w*)$", re.I
)
_MASK = 1e4


def is_weight(value: ir.Value, node: ir.Node, index: int) -> bool:
    """Whether the constant `value`, input `index` of `node`, is a weight to train."""
    if value.dtype is None or not value.dtype.is_floating_point():
        return False
    op = op_key(node)
    if index in _WEIGHTS.get(op, ()):
        return True
    if op == "Gather":
        return index == 0 and value.shape is not None and len(value.shape) == 2
    if op == "Add":
        return _is_bias(value, node, index)
    if op == "Mul":
        return bool(_PARAMETER.search(value.name or "")) and _size(value) > 1
    return False


def _is_bias(value: ir.Value, node: ir.Node, index: int) -> bool:
    """Whether what is added is a bias or a learnt position, and not a mask."""
    if _size(value) < 2:
        return False
    other = node.inputs[1 - index]
    producer = None if other is None else other.producer()
    if producer is None or producer.op_type not in _PRODUCTS:
        return bool(_PARAMETER.search(value.name or ""))
    array = const_array(value)
    return array is not None and bool(np.all(np.abs(array) < _MASK))


def _size(value: ir.Value) -> int:
    return 0 if value.shape is None else int(np.prod(value.shape.numpy()))
