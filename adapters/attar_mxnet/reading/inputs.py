"""What goes into a network: which variables are data, and what shapes they can have."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from attar_mxnet.reading import values
from attar_mxnet.reading.dims import Dim
from attar_mxnet.reading.operation import Operation
from attar_mxnet.symbol_json import SymbolGraph, SymbolNode

BATCH = "batch"
_SPATIAL = {1: ("width",), 2: ("height", "width"), 3: ("depth", "height", "width")}
_KEEPS_SHAPE = frozenset(
    [
        "Activation",
        "BatchNorm",
        "BlockGrad",
        "Cast",
        "Dropout",
        "LeakyReLU",
        "_copy",
        "identity",
        "clip",
        "relu",
        "sigmoid",
        "tanh",
        "cast",
        "_npx_batch_norm",
        "_npx_relu",
        "_npx_activation",
        "_npx_dropout",
        "amp_cast",
        "exp",
        "log",
        "sqrt",
        "square",
        "negative",
        "abs",
        "elemwise_add",
        "elemwise_sub",
        "elemwise_mul",
        "elemwise_div",
        "_plus",
        "_minus",
        "_mul",
        "_div",
    ]
)
_PARAMETERS = [
    "_weight",
    "_bias",
    "_gamma",
    "_beta",
    "_moving_mean",
    "_moving_var",
    "_running_mean",
    "_running_var",
    ".weight",
    ".bias",
    ".gamma",
    ".beta",
    ".running_mean",
    ".running_var",
]

Array = np.ndarray[Any, np.dtype[Any]]


def is_parameter(node: SymbolNode) -> bool:
    """Whether a variable looks like a weight or a state rather than data."""
    return "__init__" in node.attrs or node.name.endswith(tuple(_PARAMETERS))


def reachable(graph: SymbolGraph) -> list[int]:
    """The nodes that the outputs need, in order."""
    needed = {e.node for e in graph.heads}
    for number in range(len(graph.nodes) - 1, -1, -1):
        if number in needed:
            needed.update(e.node for e in graph.nodes[number].inputs)
    return sorted(needed)


_LABELLED = frozenset(
    [
        "SoftmaxOutput",
        "Softmax",
        "LinearRegressionOutput",
        "LogisticRegressionOutput",
        "MAERegressionOutput",
        "SVMOutput",
        "_sparse_LinearRegressionOutput",
        "_sparse_LogisticRegressionOutput",
        "_sparse_MAERegressionOutput",
    ]
)


def data_inputs(graph: SymbolGraph, params: Mapping[str, Array]) -> tuple[str, ...]:
    """The variables that a caller feeds, in the symbol's order: neither parameters nor labels."""
    used: set[int] = set()
    for number in reachable(graph):
        node = graph.nodes[number]
        used.update(e.node for i, e in enumerate(node.inputs) if not (i and node.op in _LABELLED))
    used.update(e.node for e in graph.heads)
    return tuple(
        node.name
        for number, node in enumerate(graph.nodes)
        if number in used and node.is_variable and node.name not in params and not is_parameter(node)
    )


def guessed_shape(graph: SymbolGraph, number: int, params: Mapping[str, Array]) -> tuple[Dim, ...] | None:
    """The shape of the data variable `number` as far as its `__shape__` and its users tell; None where not
    even the number of axes is sure."""
    hint = _hint(graph.nodes[number], graph.np_shape)
    told = _from_users(graph, number, params)
    if hint is None:
        return told
    if told is None or len(told) != len(hint):
        told = (BATCH, *(f"{graph.nodes[number].name}_{a}" for a in range(1, len(hint))))[: len(hint)]
    return tuple(t if h is None else h for h, t in zip(hint, told, strict=True))


def _hint(node: SymbolNode, np_shape: bool) -> tuple[int | None, ...] | None:
    try:
        dims = values.to_ints(node.attrs["__shape__"])
    except (KeyError, ValueError):
        return None
    if not dims and not np_shape:
        return None
    return tuple(None if d < 0 or (d == 0 and not np_shape) else d for d in dims)


def _from_users(graph: SymbolGraph, number: int, params: Mapping[str, Array]) -> tuple[Dim, ...] | None:
    users: dict[int, list[tuple[SymbolNode, int, int]]] = {}
    for index in reachable(graph):
        node = graph.nodes[index]
        for place, entry in enumerate(node.inputs):
            users.setdefault(entry.node, []).append((node, place, index))
    queue, seen = [number], {number}
    while queue:
        for node, place, index in users.get(queue.pop(0), ()):
            shape = _wanted(graph, node, params, users.get(index, [])) if place == 0 else None
            if shape is not None:
                return shape
            if (node.op in _KEEPS_SHAPE or node.op.endswith("_scalar")) and index not in seen:
                seen.add(index)
                queue.append(index)
    return None


def _wanted(
    graph: SymbolGraph, node: SymbolNode, params: Mapping[str, Array], users: Sequence[Any]
) -> tuple[Dim, ...] | None:
    """The shape that `node` wants of its first input."""
    op = Operation(node, [])
    weight = params.get(graph.nodes[node.inputs[1].node].name) if len(node.inputs) > 1 else None
    if node.op in ("Convolution", "Convolution_v1", "_npx_convolution"):
        if weight is None:
            return None
        layout = op.text("layout") or "NC"
        first = layout.startswith("NC")
        channels = weight.shape[1] * op.whole("num_group", 1) if first else weight.shape[-1]
        spatial = _SPATIAL.get(weight.ndim - 2)
        if spatial is None:
            return None
        return (BATCH, channels, *spatial) if first else (BATCH, *spatial, channels)
    if node.op in ("Deconvolution", "_npx_deconvolution") and weight is not None:
        spatial = _SPATIAL.get(weight.ndim - 2)
        return None if spatial is None else (BATCH, weight.shape[0], *spatial)
    if node.op in ("FullyConnected", "_npx_fully_connected") and weight is not None:
        return (BATCH, weight.shape[1]) if op.flag("flatten", True) else None
    if node.op in ("Embedding", "_npx_embedding", "_contrib_SparseEmbedding"):
        return (BATCH, "sequence")
    if node.op in ("Pad", "pad") and len(op.wholes("pad_width", ())) == 8:
        return _channels_behind(graph, node, params, users)
    if node.op in ("Pooling", "_npx_pooling") and len(op.wholes("kernel", ())) in _SPATIAL:
        return (BATCH, "channels", *_SPATIAL[len(op.wholes("kernel", ()))])
    if node.op == "RNN":
        return ("sequence", BATCH, "features")
    if node.op in ("SwapAxis", "swapaxes") and any(u[0].op == "RNN" for u in users):
        return (BATCH, "sequence", "features")
    return None


def _channels_behind(
    graph: SymbolGraph, node: SymbolNode, params: Mapping[str, Array], users: Sequence[Any]
) -> tuple[Dim, ...]:
    for user, place, _ in users:
        shape = _wanted(graph, user, params, []) if place == 0 else None
        if shape is not None and len(shape) == 4:
            return shape
    return (BATCH, "channels", "height", "width")
