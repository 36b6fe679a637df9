"""Whether a mask lets every query see itself and what comes before it, and nothing else."""

from __future__ import annotations

import numpy as np
import onnx_ir as ir

from attar.graph import const_array
from attar.rewrite.edit import at, dims, int_of
from attar_fuse.sites import made_by

_HIDDEN = -1e9
_PASS = ("Cast", "Identity", "Unsqueeze")


def is_causal(value: ir.Value, fill: float | None, keep: bool, scores: ir.Value) -> bool:
    """Whether a mask over square `scores` is the causal one.

    Args:
        value: what is added to the scores, or with `fill` the condition under which they stay (`keep`) or go.
    """
    shape = dims(scores)
    if shape is None or None in shape[-2:] or shape[-2] != shape[-1]:
        return False
    if fill is not None:
        return fill <= _HIDDEN and _triangle(value) is keep
    choice = made_by(value, *_PASS, "Where")
    while choice is not None and choice.op_type in _PASS:
        choice = made_by(choice.inputs[0], *_PASS, "Where")
    if choice is None:
        return False
    arrays = [const_array(v) for v in choice.inputs[1:]]
    numbers = [float(a.reshape(-1)[0]) for a in arrays if a is not None and a.size == 1]
    if len(numbers) != 2 or 0.0 not in numbers or min(numbers) > _HIDDEN:
        return False
    return _triangle(choice.inputs[0]) is (numbers[0] == 0.0)


def _triangle(value: ir.Value | None, depth: int = 0) -> bool | None:
    """True: it holds exactly on and below the diagonal; False: exactly above it; None: neither is certain."""
    array = const_array(value)
    if array is not None:
        return _of_array(array)
    node = made_by(value, *_PASS, "Not", "Equal", "Trilu", "Slice")
    if node is None or depth > 8:
        return None
    if node.op_type in _PASS:
        return _triangle(node.inputs[0], depth + 1)
    if node.op_type in ("Not", "Equal"):
        if node.op_type == "Equal" and not _all(at(node, 1), 0):
            return None
        inner = _triangle(node.inputs[0], depth + 1)
        return None if inner is None else not inner
    if node.op_type == "Slice":
        # The upper left corner of a triangle is one.
        whole = const_array(node.inputs[0])
        starts, steps = const_array(at(node, 1)), const_array(at(node, 4))
        corner = starts is not None and not starts.any() and (steps is None or bool((steps == 1).all()))
        return _triangle(node.inputs[0], depth + 1) if corner and (whole is None or whole.ndim > 1) else None
    shift = 0 if at(node, 1) is None else const_array(node.inputs[1])
    if shift is None or not _ones(node.inputs[0]):
        return None
    upper = bool(int_of(node, "upper", 1))
    return None if int(np.asarray(shift).reshape(-1)[0]) != int(upper) else not upper


def _of_array(array: np.ndarray) -> bool | None:  # type: ignore[type-arg]
    if array.ndim < 2 or array.dtype.kind not in "biuf" or array.shape[-1] != array.shape[-2]:
        return None
    below = np.tril(np.ones(array.shape[-2:], bool))
    truth = array.astype(bool).reshape(-1, *array.shape[-2:])
    if (truth == below).all():
        return True
    return False if (truth == ~below).all() else None


def _ones(value: ir.Value | None) -> bool:
    """Whether every element is one (or True): a constant, spread by Expand or made by ConstantOfShape."""
    node = made_by(value, "Expand", "ConstantOfShape", "Cast")
    if node is None:
        return _all(value, 1)
    if node.op_type == "ConstantOfShape":
        held = node.attributes.get("value")
        return held is not None and bool((held.as_tensor().numpy() == 1).all())
    return _ones(node.inputs[0])


def _all(value: ir.Value | None, number: int) -> bool:
    array = const_array(value)
    return array is not None and array.size > 0 and bool((array == number).all())
