"""Least squares in place of training: what stays learns to do the work of what went.

A layer computed y = W t + b. Its inputs lose channels, and those that stay are changed by what was pruned
before it, t -> x. With S the inputs that stay, the weights that bring y back, over the data, solve

    min over W', b'  of  E |W t + b - W' x_S - b'|^2 + d |W' - W_S|^2

    W' = (W C_tx + d W_S) (C_xx + d I)^-1        b' = b + W E[t] - W' E[x_S]

with C the covariances (the second moments, and no b', where there is no bias to take the mean). No label is
needed.

Few samples tell little, and a fit to them can do harm. So d is chosen for each layer by what a fit to one
half of the samples does on the other, "as it was" being among what is tried; and some samples take no part at
all: on them the outputs with the refit are held against those without, and only what they gain by is kept.
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
from attar_prune.effect import Outputs
from attar_prune.groups import Bools, Grouping
from attar_prune.held_out import split
from attar_prune.moments import Moments
from attar_prune.staged import Front

Floats = npt.NDArray[np.float64]
# From where hardly anything moves; behind the first that does worse on data not seen none is tried.
_DAMPING = (100.0, 10.0, 1.0, 1e-1, 1e-2, 1e-3, 1e-4)
_DEFAULT = 1e-2
# Shares of the way from the weights as they were to the refitted ones.
_WAYS = (1.0, 0.5, 0.25)
# A fit needs more positions than a rounding: so many times as many.
DENSITY = 2


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
        Number of layers refitted; 0 where the outputs would not gain by it.
    """
    parts = split(ctx)
    seen, unseen = parts or (ctx, ctx)
    own = [v for n in layers for v in (n.inputs[1], _bias(n)) if v is not None]
    was = [_numbers(v) for v in own]
    stages: dict[str, dict[ir.Node, LayerInput]] = {}
    for node in layers:
        item = layer_input(node)
        if item is not None:
            stages.setdefault(item.value, {})[node] = item
    outputs = Outputs(original, unseen)
    plain = outputs.error(model)
    front = Front(model, original, seen, density=DENSITY)
    done = 0
    with ctx.progress.task("refitting layers", len(layers)) as task:
        for stage in stages.values():
            for item, pairs in front.gather(stage.values()):
                for node in [n for n, one in stage.items() if one == item]:
                    done += _solve(node, original, pairs.gram, *keeps(node))
                    task.advance()
    if not done:
        return 0
    way, error = _best_way(model, own, was, outputs, plain)
    where = "samples held out" if parts else "the one sample there is"
    if not way:
        ctx.note(f"the refit was left out: the outputs' error on {where} is {error:.3g} of their variance "
                 f"with it, {plain:.3g} without")  # fmt: skip
        return 0
    share = "" if way == 1 else f"{way:.0%} of "
    ctx.note(f"{share}the refit is kept: the outputs' error on {where} is {error:.3g} of their variance, "
             f"without it {plain:.3g}")  # fmt: skip
    return done


def _best_way(
    model: ir.Model, own: Sequence[ir.Value], was: Sequence[Floats], outputs: Outputs, plain: float
) -> tuple[float, float]:
    """Go so far from the weights as they were to the refitted ones as the outputs gain most by.

    Args:
        own: what was refitted.
        was: what it was before.
        plain: the outputs' error with it.

    Returns:
        The share of the way that was gone, and the error there; 0 and the least error met, where none is
        below `plain`.
    """
    now = [_numbers(v) for v in own]

    def go(way: float) -> None:
        for value, start, end in zip(own, was, now, strict=True):
            kind = value.dtype
            assert kind is not None
            graph.replace_weight(value, (start + way * (end - start)).astype(kind.numpy()))

    errors = {}
    for way in _WAYS:
        go(way)
        errors[way] = outputs.error(model)
    way = min(errors, key=lambda w: errors[w])
    chosen = way if errors[way] < plain else 0.0
    go(chosen)
    return chosen, errors[way]


def _numbers(value: ir.Value) -> Floats:
    array: Any = graph.const_array(value)
    return np.asarray(array, np.float64)


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
    halves = _halves(found)
    damping: float | None = _DEFAULT
    if halves is not None:
        damping = _chosen(*(Moments(w, half, stay, centred=centred) for half in halves))
    if damping is None:
        return w * stay[:, None, :], np.zeros(w.shape[:2])
    whole = Moments(w, found, stay, centred=centred)
    rows = whole.solved(damping)
    return whole.spread(rows), whole.shift(rows)


def _chosen(first: Moments, second: Moments) -> float | None:
    """The damping whose solution for `first` does best on `second`; None if nothing does better than the
    weights as they were."""
    asis = second.start
    least, best, before = second.loss(asis, np.zeros(asis.shape[:2])), None, math.inf
    for damping in _DAMPING:
        rows = first.solved(damping)
        loss = second.loss(rows, first.shift(rows))
        if loss < least:
            least, best = loss, damping
        if not loss < before:
            break
        before = loss
    return best


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
