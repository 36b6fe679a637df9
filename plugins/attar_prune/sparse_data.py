"""Running data through a model while its weights become sparse: Gram matrices at once or layer after layer.

When the layers before have lost weights, a layer's input is x instead of t. Its weights are first fitted so
that W' x is like W t (`solve.transfer`), then thinned out for x: each layer makes good what those before it
have done. Layers that stay dense only have their bias moved by what their inputs have moved.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import numpy as np
import onnx_ir as ir

from attar import graph, solve
from attar.context import Context
from attar.gram import Gram, LayerInput, layer_input, rows_of
from attar.gram_sums import summed
from attar_prune import masks, sparse
from attar_prune.effect import Outputs
from attar_prune.heard import bounds, fitted
from attar_prune.staged import Front, Pairs
from attar_prune.weights_layers import Layer, bias_of, has_bias, shift_bias

Array = np.ndarray[Any, np.dtype[Any]]
Thin = Callable[[Layer, Array, Array], Array]
# Vectors of a layer that are looked at one by one, for what the activation behind it swallows.
_HEARD = 12000
# With fewer vectors than so many a number of an input, damping is chosen.
_MANY = 4
# Layers of fewer numbers an output have nothing that a fit could change.
_SMALL = 16


class Effect:
    """What replacing one weight does to the outputs of a model, on a few samples."""

    def __init__(self, model: ir.Model, ctx: Context) -> None:
        self._model, self._outputs = graph.clone(model), Outputs(model, ctx)

    def of(self, layer: Layer, rows: Array, gram: Gram) -> float:
        """Squared error of the outputs over their variance, the largest of all outputs, if `layer` had `rows`
        and a bias that makes good the mean."""
        copy = graph.clone(self._model)
        name, old = layer.node.name, layer.rows(layer.array)
        node = next(n for n in graph.all_nodes(copy) if n.name == name)
        weight = node.inputs[1]
        assert weight is not None
        graph.replace_weight(weight, layer.stored(rows))
        if is_centred(layer):
            shift = np.einsum("gok,gk->go", old - rows, gram.mean[:, layer.order()])
            shift_bias(copy, node, shift.reshape(-1))
        return self._outputs.error(copy)


def each_gram(layers: Sequence[Layer], model: ir.Model, ctx: Context) -> Iterator[tuple[Layer, Gram]]:
    """Each layer with the Gram matrices of its readers' inputs, summed."""
    yield from summed(model, {layer: layer.inputs or () for layer in layers}, ctx)


def hessian(layer: Layer, gram: Gram, damping: float) -> Array:
    """The cost of changes of the layer's rows, in their order of K: of the covariance where a bias makes good
    the mean."""
    inner = gram.covariance if is_centred(layer) else gram.moment
    return solve.damped(ordered(layer, inner), damping)


def curve_of(layer: Layer, gram: Gram, damping: float, effect: Effect) -> dict[float, float]:
    """Share of zeros -> what the model's outputs lose, estimated."""
    rows = layer.rows(layer.array)
    seen, unseen = gram.halves or (gram, gram)
    h = hessian(layer, seen, trusted(layer, gram, damping))
    known, test = hessian(layer, seen, 0.0), hessian(layer, unseen, 0.0)
    whole = max(float(solve.cost(rows, test).sum()), 1e-30)
    found = sparse.curve(rows, h)
    errors = {level: float(solve.cost(rows - x, test).sum()) / whole for level, x in found.items()}
    probe = sparse.LEVELS[len(sparse.LEVELS) // 2]
    # The effect is measured on samples of both halves, so it is held against the error on both.
    fitted_too = float(
        solve.cost(rows - found[probe], known).sum() / max(solve.cost(rows, known).sum(), 1e-30)
    )
    gain = effect.of(layer, found[probe], gram) / max((errors[probe] + fitted_too) / 2, 1e-12)
    return {level: error * gain for level, error in errors.items()}


def trusted(layer: Layer, gram: Gram, damping: float) -> float:
    """How much to damp: where there are few vectors for the unknowns, what does best on the half of the data
    that it was not fitted to."""
    halves = gram.halves
    if halves is None or gram.count >= _MANY * layer.depth or damping <= 0:
        return damping
    rows = layer.rows(layer.array)
    mask = masks.lowest(rows**2, 0.5)
    test = hessian(layer, halves[1], 0.0)

    def loss(factor: int) -> float:
        h = hessian(layer, halves[0], factor * damping)
        return float(solve.cost(rows - sparse.settle(rows, h, mask, rounds=12), test).sum())

    return damping * min((1, 3, 10, 30), key=loss)


def ordered(layer: Layer, matrix: Array) -> Array:
    """`[..., K, K]` in the order of `Layer.rows`."""
    order = layer.order()
    return np.asarray(matrix[..., order[:, None], order])


def is_centred(layer: Layer) -> bool:
    """Whether a bias of its own can make good what a change of the weight does to the mean."""
    return len(layer.readers) == 1 and has_bias(layer.node)


def at_once(model: ir.Model, layers: Sequence[Layer], ctx: Context, thin: Thin, damping: float) -> None:
    """Replace the weights of `layers` by what `thin(layer, rows, hessian)` gives, for the inputs that they
    have now."""
    frozen = graph.clone(model)
    with ctx.progress.task("pruning weights", len(layers)) as task:
        for layer, gram in each_gram(layers, frozen, ctx):
            rows = layer.rows(layer.array)
            new = layer.stored(thin(layer, rows, hessian(layer, gram, damping)))
            if is_centred(layer):
                mean = gram.mean[:, layer.order()]
                shift = np.einsum("gok,gk->go", rows - layer.rows(new), mean)
                shift_bias(model, layer.node, shift.reshape(-1))
            graph.replace_weight(layer.weight, new)
            task.advance()


def in_sequence(model: ir.Model, layers: Sequence[Layer], ctx: Context, thin: Thin, damping: float) -> None:
    """`at_once`, but each layer for the inputs that the layers before it now give."""
    reference = graph.clone(model)
    tied = [layer for layer in layers if len(layer.readers) > 1]
    if tied:  # no one place in the order: they come first, for the inputs of the dense model
        at_once(model, tied, ctx, thin, damping)
    chosen = {layer.node: layer for layer in layers if len(layer.readers) == 1}
    stages = _stages(model, chosen)
    front = Front(model, reference, ctx, density=2)
    with ctx.progress.task("pruning weights", sum(map(len, stages))) as task:
        for stage in stages:
            heard = any(node in chosen and bounds(node) for node, _ in stage)
            for item, pairs in front.gather((i for _, i in stage), samples=_HEARD if heard else 0):
                for node in [n for n, one in stage if one == item]:
                    _refit(model, node, pairs, chosen.get(node), (thin, damping))
                    task.advance()


def _stages(model: ir.Model, chosen: Mapping[ir.Node, Layer]) -> list[list[tuple[ir.Node, LayerInput]]]:
    """The layers to work on in the order of the graph, those of one input together."""
    groups: dict[str, list[tuple[ir.Node, LayerInput]]] = {}
    for node in model.graph:
        item = layer_input(node)
        if item is not None and (node in chosen or (groups and has_bias(node) and node.op_type == "Conv")):
            groups.setdefault(item.value, []).append((node, item))
    return list(groups.values())


def _refit(
    model: ir.Model, node: ir.Node, pairs: Pairs, layer: Layer | None, how: tuple[Thin, float]
) -> None:
    thin, damping = how
    gram = pairs.gram
    assert gram.cross is not None
    assert gram.twin is not None
    count = max(1, gram.count)
    twin, cross = gram.twin / count, gram.cross / count
    weight = graph.const_array(node.inputs[1])
    assert weight is not None
    if layer is None:  # only the mean
        rows = rows_of(node, weight).astype(np.float64)
        shift_bias(model, node, np.einsum("gok,gk->go", rows, twin - gram.mean).reshape(-1))
        return
    centred = is_centred(layer)
    inner = gram.covariance if centred else gram.moment
    if centred:
        cross = cross - twin[..., :, None] * gram.mean[..., None, :]
    rows = layer.rows(weight)
    h = solve.damped(ordered(layer, inner), trusted(layer, gram, damping))
    wanted = rows
    if layer.depth >= _SMALL:
        wanted = solve.transfer(rows, h, ordered(layer, inner), ordered(layer, cross))
    sparse_rows = thin(layer, wanted, h)
    order = layer.order()
    limits = bounds(node)
    if centred and limits is not None and pairs.x is not None and len(rows) == 1:
        mean = gram.mean[0, order]
        x, t = pairs.x[0][:, order], pairs.t[0][:, order] if pairs.t is not None else pairs.x[0]
        own = bias_of(node, rows.shape[1])
        first = own + rows[0] @ twin[0, order]
        fitted_rows, middle = fitted(
            rows[0], sparse_rows[0], h[0], x - mean.astype(x.dtype), t @ rows[0].T.astype(t.dtype) + own,
            offset=first, limits=limits,
        )  # fmt: skip
        shift_bias(model, node, middle - fitted_rows @ mean - own)
        graph.replace_weight(layer.weight, layer.stored(fitted_rows[None]))
        return
    new = layer.stored(sparse_rows)
    if centred:
        shift = np.einsum("gok,gk->go", rows, twin[:, order])
        shift = shift - np.einsum("gok,gk->go", layer.rows(new), gram.mean[:, order])
        shift_bias(model, node, shift.reshape(-1))
    graph.replace_weight(layer.weight, new)
