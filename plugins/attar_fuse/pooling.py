"""Means over the whole plane, written as the one operator that runtimes and quantizers know:
GlobalAveragePool.
"""

from __future__ import annotations

import onnx_ir as ir

from attar.rewrite.edit import Edit, at, dims, int_of, ints_of, is_float


def reduce_mean(node: ir.Node, edit: Edit) -> bool:
    """ReduceMean over all axes from 2 on -> GlobalAveragePool [+ Flatten without keepdims].

    Rank 3 is left alone: there it is more often the features of a sequence than the length of a signal.
    """
    source, shape = node.inputs[0], dims(node.inputs[0])
    if source is None or shape is None or len(shape) < 4 or not is_float(source):
        return False
    axes = edit.ints(at(node, 1)) if at(node, 1) is not None else ints_of(node, "axes")
    if not axes or {a % len(shape) for a in axes} != set(range(2, len(shape))):
        return False
    if int_of(node, "keepdims", 1):
        edit.replace(node, "GlobalAveragePool", [source])
    else:
        small = (*shape[:2], *(1,) * (len(shape) - 2))
        pool = edit.before(node, "GlobalAveragePool", [source], like=node.outputs[0], shape=small)
        edit.replace(node, "Flatten", [pool.outputs[0]], {"axis": 1})
    return edit.did("ReduceMean over the plane turned into GlobalAveragePool")


def average_pool(node: ir.Node, edit: Edit) -> bool:
    """AveragePool whose one window is the plane -> GlobalAveragePool."""
    shape = dims(node.inputs[0])
    kernel = ints_of(node, "kernel_shape")
    if shape is None or kernel is None or tuple(shape[2:]) != kernel:
        return False
    plain = not any(ints_of(node, "pads") or ()) and set(ints_of(node, "dilations") or ()) <= {1}
    if not plain:
        return False
    edit.replace(node, "GlobalAveragePool", [node.inputs[0]])
    return edit.did("AveragePool over the plane turned into GlobalAveragePool")


RULES = {"ReduceMean": [reduce_mean], "AveragePool": [average_pool]}
