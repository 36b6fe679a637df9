"""Sizes that are computed only because the batch is dynamic, said by numbers alone."""

from __future__ import annotations

import numpy as np
import onnx_ir as ir

from attar.graph import add_initializer, all_nodes, const_array, refresh_shapes, tidy

_SIZES = 3  # the input of Resize


def fix_sizes(model: ir.Model) -> bool:
    """Give, in place, each Resize whose sizes are numbers beside its input's own the numbers and their axes.

    Readers write all sizes, because ONNX Runtime loses those of `axes` where a Transpose stands before; a
    framework that takes numbers only could then not say the node.

    Returns:
        Whether there were any.
    """
    done = False
    for node in list(all_nodes(model)):
        if node.domain or node.op_type != "Resize" or "axes" in node.attributes:
            continue
        sizes = node.inputs[_SIZES] if len(node.inputs) > _SIZES else None
        if sizes is None or const_array(sizes) is not None:
            continue
        wanted = _wanted(node, sizes)
        if wanted is None:
            continue
        axes = [axis for axis, size in enumerate(wanted) if size is not None]
        numbers = np.array([size for size in wanted if size is not None], np.int64)
        node.replace_input_with(_SIZES, add_initializer(model.graph, f"{node.name}_sizes", numbers))
        node.attributes["axes"] = ir.AttrInt64s("axes", axes)
        done = True
    if done:
        tidy(model)
        refresh_shapes(model)
    return done


def _wanted(node: ir.Node, sizes: ir.Value) -> list[int | None] | None:
    """The new size of each axis, None where it stays; None if that does not follow from the graph."""
    data = node.inputs[0]
    concat = sizes.producer()
    if data is None or data.shape is None or concat is None or concat.op_type != "Concat":
        return None
    found: list[int | None] = []
    for part in concat.inputs:
        array = const_array(part)
        if array is not None:
            found += [int(n) for n in array.reshape(-1)]
            continue
        own = None if part is None else _own_sizes(part, data, len(found))
        if own is None:
            return None
        found += [None] * own
    return found if len(found) == len(data.shape) and any(n is not None for n in found) else None


def _own_sizes(part: ir.Value, data: ir.Value, at: int) -> int | None:
    """How many sizes of `data` from axis `at` on `part` holds; None if it holds others."""
    shape = part.producer()
    source = shape.inputs[0] if shape is not None and shape.op_type == "Shape" else None
    if shape is None or source is None or source.shape is None or data.shape is None:
        return None
    rank = len(source.shape)
    start, end = (shape.attributes.get(n) for n in ("start", "end"))
    axes = range(rank)[slice(0 if start is None else start.as_int(), rank if end is None else end.as_int())]
    if at + len(axes) > len(data.shape):
        return None
    for offset, axis in enumerate(axes):
        theirs, ours = source.shape[axis], data.shape[at + offset]
        same = theirs == ours and (isinstance(ours, int) or ours.value is not None)
        if not same and not (source is data and axis == at + offset):
            return None
    return len(axes)
