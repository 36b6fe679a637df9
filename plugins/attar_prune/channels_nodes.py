"""Questions about single nodes that grouping asks: keys of links, runs and targets of reshapes."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt
import onnx_ir as ir

from attar import graph
from attar.ops import AxisLink

Ints = npt.NDArray[np.int64]


def length(value: ir.Value | None, axis: int) -> int | None:
    """The length of an axis, None if it is not a known number."""
    if value is None or value.shape is None or not 0 <= axis < len(value.shape):
        return None
    dim = value.shape[axis]
    return dim if isinstance(dim, int) else None


def runs(links: list[AxisLink]) -> list[list[AxisLink]]:
    """Links that share axes, together."""
    runs: list[tuple[set[tuple[str, int]], list[AxisLink]]] = []
    for link in links:
        ends = {("in", link.input_axis), ("out", link.output_axis)}
        touching = [run for run in runs if run[0] & ends]
        merged = [link]
        for run in touching:
            ends |= run[0]
            merged = run[1] + merged
            runs.remove(run)
        runs.append((ends, merged))
    return [run for _, run in runs]


def keys(link: AxisLink, size: int | None, width: int | None) -> tuple[Ints, Ints] | None:
    if size is None or width is None:
        return None
    i, o = np.arange(size, dtype=np.int64), np.arange(width, dtype=np.int64)
    if link.kind == "block":
        return (i // link.in_inner) % link.size, (o // link.out_inner) % link.size
    if link.kind == "part":
        k = i - link.in_start
        j = o - link.out_start
        return np.where((k >= 0) & (k < link.size), k, -1), np.where((j >= 0) & (j < link.size), j, -1)
    picked = np.asarray(link.indices, np.int64)
    return i, picked


def target(node: ir.Node) -> list[int | None] | None:
    """What a Reshape is told of every output axis; None entries are computed. None for Flatten."""
    if node.op_type != "Reshape":
        return None
    out = node.outputs[0]
    return sizes(node.inputs[1], 0 if out.shape is None else len(out.shape))


def sizes(wanted: ir.Value | None, rank: int) -> list[int | None]:
    """The numbers of a shape of `rank` axes; those that the graph computes are None."""
    array = graph.const_array(wanted)
    if array is not None:
        return [int(v) for v in array.reshape(-1)]
    entries: list[int | None] = []
    maker = None if wanted is None else wanted.producer()
    if maker is not None and maker.op_type == "Concat":
        for value in maker.inputs:
            constant = graph.const_array(value)
            if constant is not None:
                entries += [int(v) for v in constant.reshape(-1)]
            else:
                entries += [None] * (length(value, 0) or 1)
    return entries if len(entries) == rank else [None] * rank


# Which input of operators that repeat one element along an axis tells how often.
FILLERS = {"Expand": 1, "ConstantOfShape": 0}


def filled(node: ir.Node) -> set[int]:
    """Output axes along which one element is repeated, as often as a constant says."""
    out = node.outputs[0]
    if node.op_type not in FILLERS or node.domain or out.shape is None:
        return set()
    rank, wanted = len(out.shape), node.inputs[FILLERS[node.op_type]]
    told = sizes(wanted, length(wanted, 0) or 0)
    shift = rank - len(told)
    x = node.inputs[0] if node.op_type == "Expand" else None
    new = rank - (0 if x is None or x.shape is None else len(x.shape))  # axes that x does not have
    axes = [k + shift for k, size in enumerate(told) if size is not None and size > 1]
    return {a for a in axes if a < new or length(x, a - new) == 1}


def axes_asked(node: ir.Node) -> range | list[int]:
    """The axes of its input whose length a Shape node is asked for."""
    value = node.inputs[0]
    if value is None or value.shape is None:
        return []
    rank = len(value.shape)
    start, end = (node.attributes.get(n) for n in ("start", "end"))
    first = 0 if start is None else start.as_int()
    last = rank if end is None else end.as_int()
    every = range(rank)[slice(first, last)]
    asked: list[int] = []
    for use in node.outputs[0].uses():
        indices = graph.const_array(use.node.inputs[1]) if use.node.op_type == "Gather" else None
        if indices is None or node.outputs[0].is_graph_output():
            return every
        asked += [every[int(i)] for i in indices.reshape(-1)]
    return asked
