"""Least squares in place of training: what stays learns to do the work of what went.

A layer computed y = W t + b. Its inputs lose channels, and those that stay are changed by what was pruned
before it, t -> x. With S the inputs that stay, the weights that bring y back, over the data, solve

    min over W', b'  of  E |W t + b - W' x_S - b'|^2 + d |W' - W_S|^2

    W' = (W C_tx + d W_S) (C_xx + d I)^-1        b' = b + W E[t] - W' E[x_S]

with C the covariances (the second moments, and no b', where there is no bias to take the mean). No label is
needed. d is chosen on one half of the data by what it does on the other.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt
import onnx_ir as ir

from attar import graph
from attar.context import Context
from attar.gram import Gram, collect, from_rows, layer_input, rows_of, sweeps
from attar_prune.groups import Bools, Grouping

if TYPE_CHECKING:
    from attar.calibration import Batch, Data

Floats = npt.NDArray[np.float64]
_DAMPING = (1e-4, 1e-3, 1e-2, 1e-1, 1.0)
_DEFAULT = 1e-2
# Above this many inputs a layer takes the middle damping: a choice would cost several large solutions.
_CHOICE = 1200


def refit(grouping: Grouping, original: ir.Model, gone: Bools, ctx: Context, *, rounds: int) -> int:
    """Refit all layers that read units which are silenced in the grouping's model.

    Args:
        original: the same graph before anything was silenced.
        rounds: runs over the data; later layers see what was refitted in earlier rounds.

    Returns:
        Number of layers refitted.
    """
    model = grouping.model
    layers = _layers(grouping, gone)
    size = max(1, math.ceil(len(layers) / max(1, rounds)))
    done = 0
    for start in range(0, len(layers), size):
        part = layers[start : start + size]
        items = {node: item for node in part if (item := layer_input(node)) is not None}
        for portion in sweeps(dict.fromkeys(items.values())):
            grams = collect(
                model,
                portion,
                Dense(ctx.calibration),
                ctx.runtime,
                reference=original,
                threads=ctx.threads,
                seed=ctx.seed,
                progress=ctx.progress,
            )
            for node, item in items.items():
                if item in grams:
                    done += _solve(node, original, grams[item], grouping, gone)
    return done


class Dense:
    """Calibration data that is looked at in more positions: a fit needs more of them than a rounding."""

    def __init__(self, data: Data, factor: int = 8) -> None:
        self._data, self._factor = data, factor
        self.specs = data.specs

    def __iter__(self) -> Iterator[Batch]:
        return iter(self._data)

    def count(self) -> int | None:
        """Pretends to have fewer samples, each of which must then tell more."""
        count = self._data.count()
        return None if count is None else max(1, count // self._factor)


def _layers(grouping: Grouping, gone: Bools) -> list[ir.Node]:
    """Layers with weights of their own behind the first that loses inputs, in order."""
    found = []
    reached: set[ir.Value] = set()
    for node in grouping.model.graph:
        axis = 1 if node.op_type == "Conv" else len(node.outputs[0].shape or ()) - 1
        lost = grouping.keep(node.outputs[0], axis, gone) is not None
        if lost or any(v in reached for v in node.inputs):
            reached.update(node.outputs)
        item = layer_input(node)
        weight = node.inputs[1] if len(node.inputs) > 1 else None
        if item is None or weight is None or not weight.is_initializer() or node.inputs[0] not in reached:
            continue
        if len(weight.uses()) == 1 and not weight.is_graph_output() and (item.group == 1 or item.depth <= 25):
            found.append(node)
    return found


def _axis(node: ir.Node) -> int:
    """The axis of the input that the weight sums over."""
    value = node.inputs[0]
    assert value is not None
    return 1 if node.op_type == "Conv" else len(value.shape or ()) - 1


def _solve(node: ir.Node, original: ir.Model, found: Gram, grouping: Grouping, gone: Bools) -> bool:
    item = layer_input(node)
    assert item is not None
    channels = grouping.keep(node.inputs[0], _axis(node), gone)
    width = item.group * item.depth // math.prod(item.kernel)
    stay = np.repeat(np.ones(width, np.bool_) if channels is None else channels, math.prod(item.kernel))
    stay = stay.reshape(item.group, item.depth)
    weight = node.inputs[1]
    assert weight is not None
    # The whole weight: in the silenced model the columns that go are zero already.
    array: Any = graph.const_array(original.graph.initializers[weight.name or ""])
    w = rows_of(node, np.asarray(array, np.float64))
    bias = _bias(node)
    fresh, shift = np.zeros_like(w), np.zeros(w.shape[:2])
    for group in range(item.group):
        keep = np.flatnonzero(stay[group])
        if not keep.size:
            continue
        rows, moved = _fitted(w[group], found, group, keep, centred=bias is not None)
        if not np.isfinite(rows).all():
            return False
        fresh[group][:, keep], shift[group] = rows, moved
    out = grouping.keep(node.outputs[0], 1 if node.op_type == "Conv" else _axis(node), gone)
    if out is not None:  # what will go stays silent
        fresh.reshape(len(out), -1)[~out] = 0
        shift.reshape(-1)[~out] = 0
    graph.replace_weight(weight, from_rows(node, fresh, array.shape).astype(array.dtype))
    if bias is not None:
        old: Any = graph.const_array(bias)
        graph.replace_weight(bias, (np.asarray(old, np.float64) + shift.reshape(old.shape)).astype(old.dtype))
    return True


def _fitted(
    w: Floats, found: Gram, group: int, keep: npt.NDArray[np.int64], *, centred: bool
) -> tuple[Floats, Floats]:
    """Weights of the columns that stay, and what is added to the bias."""
    whole = _Moments(found, group, keep, centred=centred)
    damping = _DEFAULT
    if found.half is not None and 0 < found.half.count < found.count and len(keep) <= _CHOICE:
        first = _Moments(found.half, group, keep, centred=centred)
        second = _Moments(_rest(found), group, keep, centred=centred)
        damping = min(_DAMPING, key=lambda d: second.loss(w, first.solved(w, keep, d)))
    rows = whole.solved(w, keep, damping)
    return rows, (w @ whole.mean_t - rows @ whole.mean_x if centred else np.zeros(len(w)))


def give_biases(model: ir.Model) -> list[ir.Node]:
    """Zero biases for layers without one, so that means can be made good; gives the layers."""
    given = []
    for node in model.graph:
        if node.op_type not in ("Conv", "Gemm") or (len(node.inputs) > 2 and node.inputs[2] is not None):
            continue
        if layer_input(node) is None:
            continue
        weight: Any = graph.const_array(node.inputs[1])
        fresh = graph.add_initializer(model.graph, f"{node.name}_bias", np.zeros(_width(node), weight.dtype))
        if len(node.inputs) < 3:
            node.resize_inputs(3)
        node.replace_input_with(2, fresh)
        given.append(node)
    return given


def drop_zero_biases(nodes: Sequence[ir.Node]) -> None:
    """Take back the biases of these layers that are still zero."""
    for node in nodes:
        array = graph.const_array(node.inputs[2])
        if array is not None and not array.any():
            node.replace_input_with(2, None)
            node.resize_inputs(2)


class _Moments:
    """E[x x^T] of the inputs that stay and E[t x^T], central where a bias takes the means."""

    def __init__(self, found: Gram, group: int, keep: npt.NDArray[np.int64], *, centred: bool) -> None:
        count = max(1, found.count)
        assert found.cross is not None
        assert found.twin is not None
        self.mean_x = found.total[group][keep] / count
        self.mean_t = found.twin[group] / count
        self.xx = found.matrix[group][np.ix_(keep, keep)] / count
        self.tx = found.cross[group][:, keep] / count
        if centred:
            self.xx = self.xx - np.outer(self.mean_x, self.mean_x)
            self.tx = self.tx - np.outer(self.mean_t, self.mean_x)

    def solved(self, w: Floats, keep: npt.NDArray[np.int64], damping: float) -> Floats:
        d = damping * max(float(np.trace(self.xx)) / len(keep), 1e-12)
        left = self.xx + d * np.eye(len(keep))
        return np.asarray(np.linalg.solve(left, (w @ self.tx + d * w[:, keep]).T).T)

    def loss(self, w: Floats, rows: Floats) -> float:
        """E |W t - W' x|^2 without the part that no W' changes."""
        return float(np.einsum("ok,ok->", rows @ self.xx, rows) - 2 * np.einsum("ok,ok->", w @ self.tx, rows))


def _rest(found: Gram) -> Gram:
    half = found.half
    assert half is not None
    assert half.cross is not None
    assert half.twin is not None
    assert found.cross is not None
    assert found.twin is not None
    return Gram(
        found.matrix - half.matrix,
        found.total - half.total,
        found.count - half.count,
        cross=found.cross - half.cross,
        twin=found.twin - half.twin,
    )


def _bias(node: ir.Node) -> ir.Value | None:
    """The layer's own bias."""
    outputs: Sequence[ir.Value] = node.outputs
    if node.op_type == "MatMul":
        uses = list(outputs[0].uses())
        if len(uses) != 1 or uses[0].node.op_type != "Add" or outputs[0].is_graph_output():
            return None
        return _own(uses[0].node.inputs[1 - uses[0].idx], _width(node))
    if any((a := node.attributes.get(n)) is not None and a.as_float() != 1.0 for n in ("alpha", "beta")):
        return None
    if len(node.inputs) > 2 and node.inputs[2] is not None:
        return _own(node.inputs[2], _width(node))
    return None


def _width(node: ir.Node) -> int:
    weight: Any = graph.const_array(node.inputs[1])
    trans = node.attributes.get("transB")
    return int(weight.shape[0 if node.op_type == "Conv" or (trans is not None and trans.value) else 1])


def _own(value: ir.Value | None, width: int) -> ir.Value | None:
    if value is None or not value.is_initializer() or len(value.uses()) > 1 or value.is_graph_output():
        return None
    array = graph.const_array(value)
    return value if array is not None and array.ndim and array.shape[-1] == array.size == width else None
