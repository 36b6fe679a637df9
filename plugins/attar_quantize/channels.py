"""Which channels of which values may be scaled together without changing what a network computes.

Relu, pooling, sums and concatenation are positively homogeneous: f(s x) = s f(x) for s > 0, channel by
channel. So a factor on a channel may travel from the layer that makes it to the layers that read it, as long
as every value on the way takes it too. `Channels` is a union-find over (value, channel); what a factor cannot
pass is pinned to 1.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable

import numpy as np
import numpy.typing as npt
import onnx_ir as ir

from attar import graph

Ids = npt.NDArray[np.int64]
_THROUGH = frozenset(
    {
        "Relu",
        "LeakyRelu",
        "MaxPool",
        "AveragePool",
        "GlobalAveragePool",
        "GlobalMaxPool",
        "Identity",
        "Dropout",
    }
)


class Channels:
    """Channel sets of a graph, along axis 1 of its values.

    Attributes:
        makers: layers whose weights take a factor on their output, with that output.
        readers: layers whose weights take a factor on their input, with that input and the number of
            positions that each channel has in it (1, or H*W behind a Flatten).
        bounds: results of Clip with the upper bound. Below it Clip is Relu, so a channel that stays below it
            takes factors, as long as it stays below.
    """

    def __init__(self, model: ir.Model, *, through_clip: bool = False) -> None:
        self.through_clip = through_clip
        self.makers: list[tuple[ir.Node, ir.Value]] = []
        self.readers: list[tuple[ir.Node, ir.Value, int]] = []
        self.bounds: dict[ir.Value, float] = {}
        self._base: dict[ir.Value, Ids] = {}
        self._parent: list[int] = [0]  # 0 is the set of channels whose factor is 1
        self._order: list[ir.Value] = []
        for value in model.graph.inputs:
            self.pin(value)
        for node in model.graph:
            RULES.get(node.op_type if node.domain == "" else "", _opaque)(self, node)
        for value in model.graph.outputs:
            self.pin(value)

    # -- asking ----------------------------------------------------------------------------------------------

    def values(self) -> list[ir.Value]:
        """The values with channels, in topological order."""
        return list(self._order)

    def roots(self, value: ir.Value) -> Ids:
        """The set of each channel; 0 is pinned."""
        return np.array([self._find(int(i)) for i in self._base[value]], np.int64)

    # -- building --------------------------------------------------------------------------------------------

    def ids(self, value: ir.Value) -> Ids | None:
        """One number a channel; None if the value has no known channel axis."""
        if value not in self._base:
            shape = value.shape
            size = None if shape is None or len(shape) < 2 else shape[1]
            if not isinstance(size, int) or size == 0:
                return None
            start = len(self._parent)
            self._parent.extend(range(start, start + size))
            self._base[value] = np.arange(start, start + size, dtype=np.int64)
            self._order.append(value)
        return self._base[value]

    def join(self, first: Iterable[int], second: Iterable[int]) -> None:
        for a, b in zip(first, second, strict=True):
            x, y = self._find(int(a)), self._find(int(b))
            self._parent[max(x, y)] = min(x, y)

    def pin(self, value: ir.Value | None) -> None:
        found = None if value is None else self.ids(value)
        if found is not None:
            self.join(found, [0] * len(found))

    def _find(self, item: int) -> int:
        while self._parent[item] != item:
            self._parent[item] = self._parent[self._parent[item]]
            item = self._parent[item]
        return item


def _opaque(channels: Channels, node: ir.Node) -> None:
    for value in (*node.inputs, *node.outputs):
        channels.pin(value)
    for attribute in node.attributes.values():  # subgraphs read values of the main graph
        if attribute.type == ir.AttributeType.GRAPH:
            for inner in ir.traversal.RecursiveGraphIterator(attribute.as_graph()):
                for value in inner.inputs:
                    channels.pin(value)


def _through(channels: Channels, node: ir.Node) -> None:
    source, out = node.inputs[0], node.outputs[0]
    assert source is not None
    a, b = channels.ids(source), channels.ids(out)
    if a is None or b is None or len(a) != len(b) or any(o.uses() for o in node.outputs[1:]):
        _opaque(channels, node)
        return
    channels.join(a, b)


def _clip(channels: Channels, node: ir.Node) -> None:
    """Clip from 0 up, with constant bounds."""
    low, high = (
        graph.const_array(node.inputs[i]) if i < len(node.inputs) and node.inputs[i] is not None else None
        for i in (1, 2)
    )
    if not channels.through_clip and high is not None:
        _opaque(channels, node)
        return
    computed = len(node.inputs) > 2 and node.inputs[2] is not None and high is None
    if low is None or np.any(low != 0) or computed:
        _opaque(channels, node)
        return
    _through(channels, node)
    if high is not None:
        channels.bounds[node.outputs[0]] = float(high.reshape(-1)[0])


def _add(channels: Channels, node: ir.Node) -> None:
    """A sum of values with the same channels; their factors must agree."""
    sides = [None if v is None or graph.const_array(v) is not None else channels.ids(v) for v in node.inputs]
    out = channels.ids(node.outputs[0])
    ranks = {None if v is None or v.shape is None else len(v.shape) for v in (*node.inputs, *node.outputs)}
    if out is None or len(ranks) != 1 or any(s is None or len(s) != len(out) for s in sides):
        _opaque(channels, node)
        return
    for side in sides:
        assert side is not None
        channels.join(side, out)


def _concat(channels: Channels, node: ir.Node) -> None:
    axis = node.attributes["axis"].as_int()
    out = channels.ids(node.outputs[0])
    parts = [None if v is None else channels.ids(v) for v in node.inputs]
    if out is None or axis != 1 or any(p is None for p in parts):
        _opaque(channels, node)
        return
    joined = np.concatenate([p for p in parts if p is not None])
    if len(joined) != len(out):
        _opaque(channels, node)
        return
    channels.join(joined, out)


def _pad(channels: Channels, node: ir.Node) -> None:
    """Padding with zeros, of other axes than the channels."""
    mode = node.attributes.get("mode")
    pads = graph.const_array(node.inputs[1]) if len(node.inputs) > 1 else None
    value = graph.const_array(node.inputs[2]) if len(node.inputs) > 2 and node.inputs[2] is not None else 0.0
    plain = mode is None or mode.as_string() == "constant"
    if (
        pads is None
        or len(node.inputs) > 3
        or (plain and (value is None or np.any(value)))
        or pads.reshape(2, -1)[:, 1].any()
    ):
        _opaque(channels, node)
        return
    _through(channels, node)


def _flatten(channels: Channels, node: ir.Node) -> None:
    """Flatten, Reshape or Squeeze behind global pooling, where no plane is left."""
    source = node.inputs[0]
    shape = None if source is None else source.shape
    if shape is None or len(shape) < 3 or any(d != 1 for d in tuple(shape)[2:]):
        _opaque(channels, node)
        return
    for value in node.inputs[1:]:
        if value is not None and graph.const_array(value) is None:
            _opaque(channels, node)
            return
    _through(channels, node)


def _gemm(channels: Channels, node: ir.Node) -> None:
    source = node.inputs[0]
    trans = node.attributes.get("transA")
    if (
        (trans is not None and trans.value)
        or source is None
        or source.shape is None
        or len(source.shape) != 2
    ):
        _opaque(channels, node)
        return
    _layer(channels, node)


def _layer(channels: Channels, node: ir.Node) -> None:
    """A layer with constant weights of its own takes the factors of both sides into them."""
    weight = node.inputs[1]
    own = [v for v in node.inputs[1:] if v is not None]
    if weight is None or any(not _own(v) for v in own):
        _opaque(channels, node)
        return
    source, out = node.inputs[0], node.outputs[0]
    assert source is not None
    if channels.ids(source) is not None:
        channels.readers.append((node, source, 1))
    factors = (node.attributes.get("alpha"), node.attributes.get("beta"))
    if any(f is not None and f.value != 1.0 for f in factors):
        channels.pin(out)  # the bias would need another factor
    if channels.ids(out) is not None:
        channels.makers.append((node, out))


def _own(value: ir.Value) -> bool:
    """A float constant that nothing else uses."""
    return (
        value.is_initializer()
        and graph.const_array(value) is not None
        and len(value.uses()) == 1
        and not value.is_graph_output()
        and value.dtype == ir.DataType.FLOAT
    )


RULES: dict[str, Callable[[Channels, ir.Node], None]] = {
    **dict.fromkeys(_THROUGH, _through),
    "Clip": _clip,
    "Add": _add,
    "Sum": _add,
    "Concat": _concat,
    "Pad": _pad,
    "Flatten": _flatten,
    "Reshape": _flatten,
    "Squeeze": _flatten,
    "Conv": _layer,
    "Gemm": _gemm,
}
