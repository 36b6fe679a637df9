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
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx_ir as ir

from attar import graph
from attar.context import Context
from attar.gram import Gram, LayerInput, from_rows, layer_input, rows_of
from attar_prune.groups import Bools, Grouping
from attar_prune.staged import Front

Floats = npt.NDArray[np.float64]
_DAMPING = (1e-4, 1e-3, 1e-2, 1e-1, 1.0)
_FEW = (1e-3, 1e-2, 1e-1)
# Where there are fewer vectors than unknowns: up to so much that hardly anything moves.
_STRONG = (1e-2, 1e-1, 1.0, 10.0, 100.0)
_DEFAULT = 1e-2
# A fit needs more positions than a rounding: so many times as many.
DENSITY = 2
# Above this many inputs a layer chooses among few: each costs a large solution.
_CHOICE = 200


def refit(grouping: Grouping, original: ir.Model, gone: Bools, ctx: Context) -> int:
    """Refit all layers that read units which are silenced in the grouping's model.

    Args:
        original: the same graph before anything was silenced.

    Returns:
        Number of layers refitted.
    """

    def keeps(node: ir.Node) -> tuple[Bools | None, Bools | None]:
        out = 1 if node.op_type == "Conv" else _axis(node)
        return grouping.keep(node.inputs[0], _axis(node), gone), grouping.keep(node.outputs[0], out, gone)

    return in_order(grouping.model, original, _layers(grouping, gone), keeps, ctx)


def in_order(
    model: ir.Model,
    original: ir.Model,
    layers: Sequence[ir.Node],
    keeps: Callable[[ir.Node], tuple[Bools | None, Bools | None]],
    ctx: Context,
) -> int:
    """Refit these layers from front to back, each for what those before it then give.

    Args:
        original: the same graph with the weights that tell what layers should compute.
        keeps: node -> which input and output channels stay; None: all.

    Returns:
        Number of layers refitted.
    """
    stages: dict[str, dict[ir.Node, LayerInput]] = {}
    for node in layers:
        item = layer_input(node)
        if item is not None:
            stages.setdefault(item.value, {})[node] = item
    front = Front(model, original, ctx, density=DENSITY)
    done = 0
    with ctx.progress.task("refitting layers", len(layers)) as task:
        for stage in stages.values():
            for item, pairs in front.gather(stage.values()):
                for node in [n for n, one in stage.items() if one == item]:
                    done += _solve(node, original, pairs.gram, *keeps(node))
                    task.advance()
    return done


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


def _solve(node: ir.Node, original: ir.Model, found: Gram, channels: Bools | None, out: Bools | None) -> bool:
    item = layer_input(node)
    assert item is not None
    width = item.group * item.depth // math.prod(item.kernel)
    stay = np.repeat(np.ones(width, np.bool_) if channels is None else channels, math.prod(item.kernel))
    stay = stay.reshape(item.group, item.depth)
    weight = node.inputs[1]
    assert weight is not None
    # The whole weight: in the silenced model the columns that go are zero already.
    array: Any = graph.const_array(original.graph.initializers[weight.name or ""])
    w = rows_of(node, np.asarray(array, np.float64))
    bias = _bias(node)
    fresh, shift = _fitted(w, found, stay, centred=bias is not None)
    if not np.isfinite(fresh).all():
        return False
    if out is not None:  # what will go stays silent
        fresh.reshape(len(out), -1)[~out] = 0
        shift.reshape(-1)[~out] = 0
    graph.replace_weight(weight, from_rows(node, fresh, array.shape).astype(array.dtype))
    if bias is not None:
        old: Any = graph.const_array(bias)
        graph.replace_weight(bias, (np.asarray(old, np.float64) + shift.reshape(old.shape)).astype(old.dtype))
    return True


def _fitted(w: Floats, found: Gram, stay: Bools, *, centred: bool) -> tuple[Floats, Floats]:
    """Weights `[groups, outputs, K]`, zero in the columns that go, and what is added to the bias.

    Args:
        stay: columns, `[groups, K]`.
    """
    whole, halves = _Moments(found, stay, centred=centred), _halves(found)
    damping = _DEFAULT
    if halves is not None:
        tried = _DAMPING if w.shape[-1] <= _CHOICE else _FEW
        tried = _STRONG if found.count < 2 * w.shape[-1] else tried
        first, second = (_Moments(half, stay, centred=centred) for half in halves)
        damping = min(tried, key=lambda d: second.loss(w, first.solved(w, d)))
    rows = whole.solved(w, damping)
    if not centred:
        return rows, np.zeros(w.shape[:2])
    return rows, np.einsum("gok,gk->go", w, whole.mean_t) - np.einsum("gok,gk->go", rows, whole.mean_x)


def _halves(found: Gram) -> tuple[Gram, Gram] | None:
    """Sums over two halves of the samples, those of the reference included."""
    parts = found.halves
    half = found.half
    if parts is None or half is None or found.cross is None or found.twin is None:
        return None
    assert half.cross is not None
    assert half.twin is not None
    parts[0].cross, parts[0].twin = found.cross - half.cross, found.twin - half.twin
    return parts


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
    """E[x x^T] of the inputs that stay and E[t x^T], central where a bias takes the means; of groups."""

    def __init__(self, found: Gram, stay: Bools, *, centred: bool) -> None:
        count = max(1, found.count)
        assert found.cross is not None
        assert found.twin is not None
        self.stay = stay
        self.mean_x, self.mean_t = found.total / count, found.twin / count
        self.xx, self.tx = found.matrix / count, found.cross / count
        if centred:
            self.xx -= self.mean_x[..., :, None] * self.mean_x[..., None, :]
            self.tx -= self.mean_t[..., :, None] * self.mean_x[..., None, :]
        both = stay[..., :, None] & stay[..., None, :]
        self.xx *= both
        self.tx *= stay[..., None, :]
        power = np.einsum("gkk->g", self.xx) / np.maximum(1, stay.sum(axis=-1))
        self.power = np.maximum(power, 1e-12)[:, None]

    def solved(self, w: Floats, damping: float) -> Floats:
        left = self.xx.copy()
        d = damping * self.power * self.stay  # [groups, K]
        # Columns that go stand alone, with nothing on the right.
        np.einsum("gkk->gk", left)[...] += np.where(self.stay, d, 1.0)
        right = w @ self.tx + w * d[:, None, :]
        return np.asarray(np.swapaxes(np.linalg.solve(left, np.swapaxes(right, -1, -2)), -1, -2))

    def loss(self, w: Floats, rows: Floats) -> float:
        """E |W t - W' x|^2 without the part that no W' changes."""
        return float(((rows @ self.xx - 2 * (w @ self.tx)) * rows).sum())


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
