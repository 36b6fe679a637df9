"""Small questions about a node that rules ask: dimensions, attributes, constant inputs. Unknown is None,
never a guess."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
import numpy.typing as npt
import onnx_ir as ir

Dim = int | str | None


def input_at(node: ir.Node, index: int) -> ir.Value | None:
    """Input `index`, None if it is absent."""
    return node.inputs[index] if index < len(node.inputs) else None


def dims(value: ir.Value | None) -> tuple[Dim, ...] | None:
    """The dimensions of a value: numbers, names of symbolic dimensions, None for unknown; None without a
    rank."""
    if value is None or value.shape is None:
        return None
    return tuple(d if isinstance(d, int) else d.value for d in value.shape)


def in_dims(node: ir.Node, index: int) -> tuple[Dim, ...] | None:
    return dims(input_at(node, index))


def out_dims(node: ir.Node, index: int = 0) -> tuple[Dim, ...] | None:
    return dims(node.outputs[index]) if index < len(node.outputs) else None


def rank_of(node: ir.Node) -> int | None:
    """Rank of the first input, None if unknown."""
    shape = in_dims(node, 0)
    return None if shape is None else len(shape)


def count(shape: Sequence[Dim]) -> int:
    """Number of elements, symbolic and unknown dimensions counted as 1."""
    return math.prod(d for d in shape if isinstance(d, int))


def known(dim: Dim) -> int:
    """The dimension, 1 if it is symbolic."""
    return dim if isinstance(dim, int) else 1


def constant(node: ir.Node, index: int) -> npt.NDArray[np.generic] | None:
    """The value of a constant input as an array; None if absent or not constant."""
    value = input_at(node, index)
    if value is None or value.is_graph_input():
        return None
    tensor = ir.convenience.get_const_tensor(value)
    return None if tensor is None else np.asarray(tensor.numpy())


def constant_ints(node: ir.Node, index: int) -> tuple[int, ...] | None:
    """A constant integer input, flattened."""
    array = constant(node, index)
    return None if array is None else tuple(int(v) for v in array.reshape(-1))


def int_of(node: ir.Node, name: str, default: int) -> int:
    attribute = node.attributes.get(name)
    return default if attribute is None or attribute.is_ref() else int(attribute.as_int())


def ints_of(node: ir.Node, name: str) -> tuple[int, ...] | None:
    attribute = node.attributes.get(name)
    return None if attribute is None or attribute.is_ref() else tuple(int(v) for v in attribute.as_ints())


def string_of(node: ir.Node, name: str, default: str) -> str:
    attribute = node.attributes.get(name)
    return default if attribute is None or attribute.is_ref() else str(attribute.as_string())


def axis_of(node: ir.Node, default: int, rank: int, name: str = "axis") -> int:
    """An axis attribute, counted from the front."""
    axis = int_of(node, name, default)
    return axis + rank if axis < 0 else axis


def axes_of(node: ir.Node, rank: int, index: int = 1) -> tuple[int, ...] | None:
    """The `axes` of a node counted from the front, from input `index` or (older opsets) the attribute.

    () if none are given, None if they are not constant.
    """
    given = input_at(node, index) is not None
    axes = constant_ints(node, index) if given else ints_of(node, "axes") or ()
    return None if axes is None else tuple(a + rank if a < 0 else a for a in axes)


def alike(a: Dim, b: Dim) -> bool:
    """Whether two dimensions are certainly equal."""
    return a is not None and a == b
