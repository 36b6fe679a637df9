"""The two forms in which outlier channels are written: a float MatMul beside, and copies of smaller parts.

What is added bears a mark that keeps it in float: quantized, the outliers would share a scale with the others
again.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import onnx_ir as ir

from attar import graph
from attar_quantize.linear import is_transposed
from attar_quantize.scheme import Array

MARK = "attar.outliers"
"""Metadata of the nodes that keep outliers apart; its value says what for."""


def beside(place: ir.Graph, value: ir.Value, users: Sequence[ir.Node], channels: Array) -> None:
    """Give the readers of `value` its other channels, the outliers being zero, and add the outliers' share of
    their outputs from a MatMul in float.

    Args:
        users: MatMul or Gemm with constant weights, which read `value` first.
        channels: indices of the outliers.
    """
    writer = _Writer(place)
    size = _size(value)
    mask = np.ones(size, np.float32)
    mask[channels] = 0.0
    picked = writer.constant(value, "channels", channels)
    few = writer.node("Gather", value, picked, f"{value.name}/outliers", len(channels), axis=-1)
    others = writer.node("Mul", value, writer.constant(value, "mask", mask), f"{value.name}/others", size)
    for user in users:
        weight = user.inputs[1]
        array = graph.const_array(weight)
        assert weight is not None
        assert array is not None
        rows = (array.T if is_transposed(user) else array)[channels]
        factor = writer.constant(weight, "outliers", np.ascontiguousarray(rows))
        share = writer.node("MatMul", few, factor, f"{user.name}/outliers", rows.shape[1])
        user.replace_input_with(0, others)
        writer.add(_with_bias(user).outputs[0], share)


def split(place: ir.Graph, value: ir.Value, users: Sequence[ir.Node], channels: Array, copies: Array) -> None:
    """Give the readers of `value` each outlier channel as so many copies of its equal parts.

    Args:
        users: as in `beside`.
        channels: indices of the outliers.
        copies: powers of two, so that the parts are exact.
    """
    writer = _Writer(place)
    size = _size(value)
    parts = np.ones(size)
    parts[channels] = copies
    # In the place of the first copy stands the channel; the others are at the end.
    index = np.concatenate([np.arange(size), np.repeat(channels, np.asarray(copies) - 1)]).astype(np.int64)
    picked = writer.constant(value, "copies", index)
    more = writer.node("Gather", value, picked, f"{value.name}/copies", len(index), axis=-1)
    factors = writer.constant(value, "parts", (1.0 / parts)[index])
    evened = writer.node("Mul", more, factors, f"{value.name}/parts", len(index))
    for user in users:
        weight = user.inputs[1]
        array = graph.const_array(weight)
        assert weight is not None
        assert array is not None
        longer = np.take(array, index, axis=1 if is_transposed(user) else 0)
        user.replace_input_with(1, writer.constant(weight, "copied", longer))
        user.replace_input_with(0, evened)


def _size(value: ir.Value) -> int:
    assert value.shape is not None
    size = value.shape[-1]
    assert isinstance(size, int)
    return size


def _with_bias(node: ir.Node) -> ir.Node:
    """The node, or the Add of a constant vector behind it, which one kernel does together with it."""
    out = node.outputs[0]
    users = list(out.uses())
    if out.is_graph_output() or len(users) != 1:
        return node
    user, position = users[0]
    if user.op_type != "Add" or user.graph is not node.graph:
        return node
    bias = graph.const_array(user.inputs[1 - position])
    return user if bias is not None and bias.ndim and bias.size == bias.shape[-1] else node


class _Writer:
    """Marked nodes and constants with names of their own; whoever writes sorts the graph afterwards."""

    def __init__(self, place: ir.Graph) -> None:
        self._graph = place
        self._taken = graph.taken_names(place)

    def constant(self, like: ir.Value, what: str, array: Array) -> ir.Value:
        array = array.astype(np.int64 if array.dtype.kind == "i" else np.float32)
        return graph.add_initializer(self._graph, f"{like.name}_{what}", array, self._taken)

    def node(
        self,
        operator: str,
        value: ir.Value,
        other: ir.Value,
        name: str,
        size: ir.Shape | int,
        **attributes: int,
    ) -> ir.Value:
        """The output of `operator(value, other)`.

        Args:
            size: its shape, or that of its last axis where the others are those of `value`.
        """
        node = ir.node(
            operator,
            [value, other],
            attributes=attributes,
            name=graph.fresh_name(self._graph, name, self._taken),
        )
        node.metadata_props[MARK] = "outlier channels stay in float"
        out = node.outputs[0]
        out.name = graph.fresh_name(self._graph, f"{name}_out", self._taken)
        out.type = ir.TensorType(ir.DataType.FLOAT)
        before = [] if value.shape is None else list(value.shape)[:-1]
        out.shape = ir.Shape([*before, size]) if isinstance(size, int) else size.copy()
        self._graph.append(node)
        return out

    def add(self, value: ir.Value, share: ir.Value) -> None:
        """Put `value + share` in the place of `value`, for all that read it and under its name."""
        users = list(value.uses())
        total = self.node("Add", value, share, f"{value.name}/with_outliers", value.shape or ir.Shape([]))
        for user, position in users:
            user.replace_input_with(position, total)
        for i, output in enumerate(self._graph.outputs):
            if output is value:
                self._graph.outputs[i] = total
                # The caller knows the output by this name.
                name = value.name or ""
                value.name = graph.fresh_name(self._graph, f"{name}_others", self._taken)
                total.name = name
