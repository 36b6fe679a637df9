"""Between which numbers a value certainly lies, as far as constants and types tell."""

from __future__ import annotations

import math

import numpy as np
import onnx_ir as ir

from attar.graph import const_array
from attar_fuse.sites import made_by

Interval = tuple[float, float]
ANYTHING: Interval = (float("-inf"), float("inf"))
_MOVES = (
    "Identity", "Reshape", "Transpose", "Unsqueeze", "Squeeze", "Expand", "Slice", "Gather", "Flatten", "Tile"
)  # fmt: skip


def bounds(value: ir.Value | None, depth: int = 0) -> Interval:
    """The smallest interval that is known to hold all elements of `value`."""
    array = const_array(value)
    if array is not None:
        known = array.size > 0 and array.dtype.kind in "biuf" and not np.isnan(array).any()
        return (float(array.min()), float(array.max())) if known else ANYTHING
    if value is not None and value.dtype == ir.DataType.BOOL:
        return 0.0, 1.0
    node = made_by(value, *_MOVES, "Cast", "Where", "Add", "Sub", "Mul")
    if node is None or depth > 8:
        return ANYTHING
    if node.op_type in (*_MOVES, "Cast"):
        return bounds(node.inputs[0], depth + 1)
    if node.op_type == "Where":
        low, high = zip(*(bounds(v, depth + 1) for v in node.inputs[1:]), strict=True)
        return min(low), max(high)
    (a, b), (c, d) = (bounds(v, depth + 1) for v in node.inputs)
    if node.op_type == "Mul":
        products = [x * y for x in (a, b) for y in (c, d)]
        return ANYTHING if any(map(math.isnan, products)) else (min(products), max(products))
    return (a + c, b + d) if node.op_type == "Add" else (a - d, b - c)
