"""The numbers and names in what a model computes from shapes."""

from __future__ import annotations

import onnx_ir as ir

from attar.graph import const_array
from attar.rewrite.edit import at, dims, int_of, string_of


def shape_numbers(value: ir.Value | None) -> list[int | None] | None:
    """The integers in a scalar or vector that is computed from shapes; None for unknown ones, None for all if
    opaque.
    """
    entries = shape_entries(value)
    return None if entries is None else [e if isinstance(e, int) else None for e in entries]


def shape_entries(value: ir.Value | None, depth: int = 0) -> list[int | str] | None:
    """What is in a scalar or vector that is computed from shapes: numbers and names of dynamic axes, where
    an axis without a name is called after its value; None if it is opaque.
    """
    array = const_array(value)
    if array is not None:
        return [int(v) for v in array.reshape(-1)] if array.dtype.kind in "iu" and array.ndim < 2 else None
    node = None if value is None else value.producer()
    if node is None or node.domain != "" or depth > 32:
        return None
    if node.op_type == "Shape":
        shape = _named_dims(node.inputs[0])
        if shape is None:
            return None
        start, end = int_of(node, "start", 0), int_of(node, "end", len(shape))
        return shape[start:end]
    if node.op_type == "Concat":
        parts = [shape_entries(v, depth + 1) for v in node.inputs]
        return None if any(p is None for p in parts) else [n for p in parts if p for n in p]
    numbers = shape_entries(at(node, 0), depth + 1)
    if numbers is None:
        return None
    if node.op_type in ("Identity", "Squeeze", "Unsqueeze", "Reshape"):
        return numbers
    if node.op_type == "Cast":
        return numbers if int_of(node, "to", 0) in (int(ir.DataType.INT64), int(ir.DataType.INT32)) else None
    if node.op_type == "Gather":
        chosen = const_array(at(node, 1))
        if chosen is None or chosen.ndim > 1:
            return None
        return [numbers[int(k)] for k in chosen.reshape(-1)]
    if node.op_type == "Slice":
        bounds = [const_array(at(node, k)) for k in (1, 2)]
        step = const_array(at(node, 4))
        if any(b is None or b.size != 1 for b in bounds) or (
            step is not None and int(step.reshape(-1)[0]) < 1
        ):
            return None
        start, end = (int(b.reshape(-1)[0]) for b in bounds if b is not None)
        return numbers[start : end : 1 if step is None else int(step.reshape(-1)[0])]
    return None


def _named_dims(value: ir.Value | None) -> list[int | str] | None:
    shape = dims(value)
    if value is None or shape is None:
        return None
    return [f"{value.name}[{axis}]" if d is None else d for axis, d in enumerate(shape)]


def new_sizes(node: ir.Node) -> tuple[list[int], list[int]] | None:
    """The axes that a Resize changes and their sizes, if these are numbers though its sizes are computed.

    None as well where sizes of all axes mean something else than those of some: with a region or a ratio to
    keep.
    """
    sizes, shape = at(node, 3), _named_dims(node.inputs[0])
    if sizes is None or const_array(sizes) is not None or shape is None or "axes" in node.attributes:
        return None
    entries = shape_entries(sizes)
    mode = string_of(node, "coordinate_transformation_mode", "half_pixel")
    policy = string_of(node, "keep_aspect_ratio_policy", "stretch")
    if entries is None or len(entries) != len(shape) or mode == "tf_crop_and_resize" or policy != "stretch":
        return None
    axes = [k for k, size in enumerate(entries) if size != shape[k]]
    axes = axes or [k for k, size in enumerate(entries) if isinstance(size, int)]  # nothing changes
    numbers = [size for k in axes if isinstance(size := entries[k], int)]
    return (axes, numbers) if axes and len(numbers) == len(axes) else None
