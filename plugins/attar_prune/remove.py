"""Removal: weights cut along the axes of the units that go, and everything in the graph that counts channels
set right.

`silence` is the same without removal: the weights of those units become zero. A network with silenced units
computes what the network without them computes, which the tests check and the refit uses.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx_ir as ir

from attar import graph
from attar_prune.channels_nodes import FILLERS, length
from attar_prune.groups import Bools, Grouping

Array = np.ndarray[Any, np.dtype[Any]]
_SILENT = frozenset(
    {"Conv", "ConvTranspose", "Gemm", "MatMul", "Einsum", "LSTM", "GRU", "RNN", "Add", "Gather"}
)


def silence(grouping: Grouping, gone: Bools) -> None:
    """Zero the weights of units that will go: those that make them and those that read them."""
    for value, axes in _cuts(grouping, gone).items():
        if not all(_heard(use.node, use.idx) for use in value.uses()):
            continue
        array: Any = graph.const_array(value)
        fresh = np.array(array)
        for axis, keep in axes.items():
            fresh[(slice(None),) * axis + (~keep,)] = 0
        graph.replace_weight(value, fresh)


def _heard(node: ir.Node, index: int) -> bool:
    if node.op_type == "BatchNormalization":
        return index in (1, 2)
    return node.op_type in _SILENT and not node.domain and (node.op_type != "Gather" or index == 0)


def remove(grouping: Grouping, gone: Bools) -> None:
    """Take the units out of the model.

    Args:
        gone: by label, from `Grouping.nothing`.

    Raises:
        VerifyError: shapes contradict each other afterwards; a bug, since groups are closed.
    """
    model = grouping.model
    for node in list(model.graph):
        rewrite = _REWRITES.get(node.op_type) if node.domain == "" else None
        if rewrite is not None:
            rewrite(node, grouping, gone)
    for value, axes in _cuts(grouping, gone).items():
        array: Any = graph.const_array(value)
        for axis, keep in axes.items():
            array = np.compress(keep, array, axis=axis)
        graph.replace_weight(value, np.ascontiguousarray(array))
    for node in model.graph:
        if node.op_type in ("Conv", "ConvTranspose") and node.domain == "":
            _regroup(node, grouping, gone)
        elif node.op_type in ("LSTM", "GRU", "RNN"):
            hidden = length(node.inputs[2], 2)
            if hidden is not None:
                node.attributes["hidden_size"] = ir.AttrInt64("hidden_size", hidden)
    graph.refresh_shapes(model)


def _cuts(grouping: Grouping, gone: Bools) -> dict[ir.Value, dict[int, Bools]]:
    """Weight -> axis -> what stays."""
    found: dict[ir.Value, dict[int, Bools]] = {}
    for value in grouping.model.graph.initializers.values():
        for axis in range(0 if value.shape is None else len(value.shape)):
            keep = grouping.keep(value, axis, gone)
            if keep is not None:
                found.setdefault(value, {})[axis] = keep
    return found


# -- operators that count channels ---------------------------------------------------------------------------
def _new_input(node: ir.Node, index: int, array: Array) -> None:
    """Other constants for this node alone: the old ones may serve others."""
    assert node.graph is not None
    while len(node.inputs) <= index:
        node.resize_inputs(index + 1)
    old = node.inputs[index]
    base = (old.name if old is not None else None) or f"{node.name}_sizes"
    assert isinstance(node.graph, ir.Graph)
    node.replace_input_with(index, graph.add_initializer(node.graph, base, array))


def _reshape(node: ir.Node, grouping: Grouping, gone: Bools) -> None:
    keeps = [grouping.keep(node.outputs[0], a, gone) for a in range(len(node.outputs[0].shape or ()))]
    _resized(node, 1, keeps)


def _filled(node: ir.Node, grouping: Grouping, gone: Bools) -> None:
    """Expand and ConstantOfShape: their sizes are aligned from the right."""
    index = FILLERS[node.op_type]
    out, count = node.outputs[0], length(node.inputs[index], 0) or 0
    rank = len(out.shape or ())
    _resized(node, index, [grouping.keep(out, a, gone) for a in range(rank - count, rank)], least=2)


def _resized(node: ir.Node, index: int, keeps: list[Bools | None], *, least: int = 1) -> None:
    """Set the sizes in input `index` right, one a member of `keeps`; those below `least` have their own
    meaning (0 and -1 of a Reshape, 1 of an Expand) and stay."""
    if all(k is None for k in keeps):
        return
    wanted = node.inputs[index]
    constant = graph.const_array(wanted)
    if constant is not None:
        _new_input(node, index, _counted(constant, keeps, least).reshape(constant.shape))
        return
    maker = None if wanted is None else wanted.producer()
    assert maker is not None
    assert isinstance(node.graph, ir.Graph)
    # The joined sizes may serve other nodes, so this one gets a Concat of its own.
    copy = ir.node(
        "Concat", list(maker.inputs), {"axis": 0}, name=graph.fresh_name(node.graph, f"{maker.name}_own")
    )
    copy.outputs[0].name = graph.fresh_name(node.graph, f"{wanted.name if wanted else ''}_own")
    copy.outputs[0].type, copy.outputs[0].shape = ir.TensorType(ir.DataType.INT64), ir.Shape([len(keeps)])
    node.graph.insert_before(node, copy)
    node.replace_input_with(index, copy.outputs[0])
    at = 0
    for place, value in enumerate(copy.inputs):
        array = graph.const_array(value)
        if array is None:
            at += length(value, 0) or 1
            continue
        _new_input(copy, place, _counted(array, keeps[at : at + array.size], least))
        at += array.size


def _counted(sizes: npt.NDArray[Any], keeps: list[Bools | None], least: int) -> npt.NDArray[Any]:
    fresh = np.array(sizes).reshape(-1)
    for k, keep in enumerate(keeps):
        if keep is not None and fresh[k] >= least:
            fresh[k] = keep.sum()
    return fresh


def _resize(node: ir.Node, grouping: Grouping, gone: Bools) -> None:
    rank = len(node.outputs[0].shape or ())
    given = node.attributes.get("axes")
    axes = range(rank) if given is None else [int(a) % rank for a in given.as_ints()]
    if len(node.inputs) > 3 and node.inputs[3] is not None:
        _resized(node, 3, [grouping.keep(node.outputs[0], a, gone) for a in axes])


def _split(node: ir.Node, grouping: Grouping, gone: Bools) -> None:
    rank = len(node.outputs[0].shape or ())
    attribute = node.attributes.get("axis")
    axis = (0 if attribute is None else attribute.as_int()) % max(rank, 1)
    keeps = [grouping.keep(out, axis, gone) for out in node.outputs]
    if all(k is None for k in keeps):
        return
    sizes = [length(o, axis) if k is None else int(k.sum()) for o, k in zip(node.outputs, keeps, strict=True)]
    node.attributes.pop("num_outputs", None)
    _new_input(node, 1, np.array(sizes, np.int64))


def _slice(node: ir.Node, grouping: Grouping, gone: Bools) -> None:
    source, out = node.inputs[0], node.outputs[0]
    starts, ends = graph.const_array(node.inputs[1]), graph.const_array(node.inputs[2])
    if source is None or source.shape is None or starts is None or ends is None:
        return
    given = graph.const_array(node.inputs[3]) if len(node.inputs) > 3 else None
    axes = np.arange(len(starts)) if given is None else given
    first, last = np.array(starts), np.array(ends)
    for k, axis in enumerate(int(a) % len(source.shape) for a in axes):
        keep, size = grouping.keep(source, axis, gone), length(source, axis)
        if keep is None or size is None:
            continue
        begin = range(size)[slice(int(starts[k]), int(ends[k]))].start
        stays = grouping.keep(out, axis, gone)
        width = length(out, axis) if stays is None else int(stays.sum())
        first[k] = keep[:begin].sum()
        last[k] = first[k] + (width or 0)
    if not (np.array_equal(first, starts) and np.array_equal(last, ends)):
        _new_input(node, 1, first)
        _new_input(node, 2, last)


def _pad(node: ir.Node, grouping: Grouping, gone: Bools) -> None:
    """Some of the channels that padding adds may go, too."""
    source, out = node.inputs[0], node.outputs[0]
    pads = graph.const_array(node.inputs[1])
    if source is None or source.shape is None or pads is None:
        return
    rank = len(source.shape)
    given = graph.const_array(node.inputs[3]) if len(node.inputs) > 3 else None
    axes = list(range(rank)) if given is None else [int(a) % rank for a in given]
    fresh = np.array(pads)
    for k, axis in enumerate(axes):
        keep = grouping.keep(out, axis, gone)
        begin, size = int(pads[k]), length(source, axis)
        if keep is None or size is None or not (pads[k] or pads[k + len(axes)]):
            continue
        fresh[k] = keep[:begin].sum()
        fresh[k + len(axes)] = keep[begin + size :].sum()
    if not np.array_equal(fresh, pads):
        _new_input(node, 1, fresh)


def _gather(node: ir.Node, grouping: Grouping, gone: Bools) -> None:
    """Constant indices count among what stays. Those of channels that go are cut with the weights."""
    source, where = node.inputs[0], node.inputs[1]
    if source is None or source.shape is None or where is None:
        return
    attribute = node.attributes.get("axis")
    axis = (0 if attribute is None else attribute.as_int()) % len(source.shape)
    keep, indices = grouping.keep(source, axis, gone), graph.const_array(where)
    if keep is None or indices is None:
        return
    stays = grouping.keep(node.outputs[0], axis, gone)
    chosen = np.where(indices < 0, indices + len(keep), indices)
    chosen = chosen if stays is None else chosen[stays]
    _new_input(node, 1, np.asarray((np.cumsum(keep) - 1)[chosen], np.int64))


def _regroup(node: ir.Node, grouping: Grouping, gone: Bools) -> None:
    attribute = node.attributes.get("group")
    weight = node.inputs[1]
    if attribute is None or attribute.as_int() == 1 or weight is None or weight.shape is None:
        return
    groups = attribute.as_int()
    x = grouping.keep(node.inputs[0], 1, gone)
    if x is None and grouping.keep(node.outputs[0], 1, gone) is None:
        return
    inside = length(weight, 1) or 1
    if node.op_type == "Conv":
        channels = len(x) if x is not None else length(node.inputs[0], 1)
        fresh = (int(x.sum()) if x is not None else channels or 0) // inside
    else:
        y = grouping.keep(node.outputs[0], 1, gone)
        fresh = (int(y.sum()) if y is not None else length(node.outputs[0], 1) or 0) // inside
    if fresh != groups:
        node.attributes["group"] = ir.AttrInt64("group", fresh)


_REWRITES: dict[str, Callable[[ir.Node, Grouping, Bools], None]] = {
    "Reshape": _reshape,
    "Expand": _filled,
    "ConstantOfShape": _filled,
    "Resize": _resize,
    "Split": _split,
    "Slice": _slice,
    "Pad": _pad,
    "Gather": _gather,
}
