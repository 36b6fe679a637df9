"""Reshape says -1 where it means "as it was"; then a dynamic axis loses its name behind it."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Sequence

import numpy as np
import onnx_ir as ir

from attar.graph.constants import add_initializer, const_array
from attar.graph.shapes import refresh_shapes
from attar.graph.structure import all_nodes

_ROUNDS = 8  # each names what lies between one layer of reshapes and the next

Dim = int | str | None


def name_reshaped_axes(model: ir.Model) -> int:
    """Write 0 ("as in the input") for the -1 of every Reshape that stands for the dynamic axis in its place,
    so that shapes behind it are known by name. Expects fresh shapes, and leaves them fresh.

    A Reshape of [batch, 8, 1, 1] to [-1, 8] has a first axis of batch * 8 / 8 elements: the batch. With two
    axes moved or merged, there is nothing to say, and it stays.

    Returns:
        How many were written so.
    """
    count = 0
    for _ in range(_ROUNDS):
        found = [node for node in all_nodes(model) if node.op_type == "Reshape" and node.domain == ""]
        changed = sum(_rewrite(model, node) for node in found)
        if not changed:
            break
        count += changed
        refresh_shapes(model)
    return count


def _rewrite(model: ir.Model, node: ir.Node) -> bool:
    source, wanted = node.inputs[0], node.inputs[1]
    target = const_array(wanted)
    if source is None or source.shape is None or wanted is None or target is None or target.ndim != 1:
        return False
    shape: list[Dim] = [d if isinstance(d, int) else d.value for d in source.shape]
    sizes = [int(t) for t in target]
    literal = "allowzero" in node.attributes and bool(node.attributes["allowzero"].as_int())
    if literal and 0 in sizes:
        return False
    place = unknown_axis(shape, sizes)
    if place is None:
        return False
    sizes[place] = 0
    new = add_initializer(model.graph, wanted.name or "shape", np.array(sizes, np.int64))
    node.replace_input_with(1, new)
    node.attributes.pop("allowzero", None)
    return True


def unknown_axis(shape: Sequence[Dim], target: Sequence[int]) -> int | None:
    """Where -1 in a Reshape of `shape` to `target` (0: as in the input) certainly is the axis in its place.

    Of whatever length: the product of all other axes must agree, in numbers and in the symbols among them.
    """
    if list(target).count(-1) != 1:
        return None
    place = list(target).index(-1)
    if place >= len(shape) or isinstance(shape[place], int):
        return None
    copied = [shape[i] if t == 0 and i < len(shape) else t for i, t in enumerate(target) if i != place]
    others = [d for i, d in enumerate(shape) if i != place]
    if None in copied or None in others:
        return None
    numbers = [math.prod(d for d in side if isinstance(d, int)) for side in (copied, others)]
    symbols = [Counter(d for d in side if isinstance(d, str)) for side in (copied, others)]
    same = numbers[0] == numbers[1] != 0 and symbols[0] == symbols[1]
    return place if same else None
