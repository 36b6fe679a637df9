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
from attar.feeds import pieces
from attar.gram import Gram, LayerInput, collect, layer_input, rows_of, sweeps
from attar_prune.weights_layers import Layer, has_bias, shift_bias

Array = np.ndarray[Any, np.dtype[Any]]
Thin = Callable[[Layer, Array, Array], Array]
# Groups of neighbouring layers; each runs the data through both models once.
_STAGES = 40
# Samples that tell what a layer means to the outputs.
_SAMPLES = 32
# Layers of fewer numbers an output have nothing that a fit could change.
_SMALL = 16


class Effect:
    """What replacing one weight does to the outputs of a model, on a few samples."""

    def __init__(self, model: ir.Model, ctx: Context) -> None:
        self._model, self._ctx = graph.clone(model), ctx
        self._wanted = self._outputs(self._model)

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
        worst = 0.0
        for mine, theirs in zip(self._outputs(copy), self._wanted, strict=True):
            spread = float(((theirs - theirs.mean(axis=0)) ** 2).sum())
            worst = max(worst, float(((mine - theirs) ** 2).sum()) / max(spread, 1e-30))
        return worst

    def _outputs(self, model: ir.Model) -> list[Array]:
        """Each output, a sample a row."""
        session = self._ctx.runtime.open(model, threads=self._ctx.threads)
        data = self._ctx.calibration
        found = [session.run(feeds) for b in data.take(_SAMPLES) for feeds in pieces(b.inputs, data.specs)]
        rows = [[np.asarray(y, np.float64).reshape(len(y) if y.ndim else 1, -1) for y in ys] for ys in found]
        # Lengths may differ between batches: each batch is flattened to what all have in common.
        width = [min(part[i].shape[1] for part in rows) for i in range(len(rows[0]))]
        return [np.concatenate([part[i][:, :n] for part in rows]) for i, n in enumerate(width)]


def each_gram(layers: Sequence[Layer], model: ir.Model, ctx: Context) -> Iterator[tuple[Layer, Gram]]:
    """Each layer with the Gram matrices of its readers' inputs, summed."""
    waiting = {layer: set(layer.inputs or ()) for layer in layers}
    sums: dict[Layer, Gram] = {}
    for item, gram in ctx.grams(model, [i for items in waiting.values() for i in items]):
        for layer in [one for one, items in waiting.items() if item in items]:
            if layer in sums:
                both = Gram(sums[layer].matrix, sums[layer].total, sums[layer].count)
                both.merge(gram)
                sums[layer] = both
            else:
                sums[layer] = gram
            waiting[layer].discard(item)
            if not waiting[layer]:
                del waiting[layer]
                yield layer, sums.pop(layer)


def hessian(layer: Layer, gram: Gram, damping: float) -> Array:
    """The cost of changes of the layer's rows, in their order of K: of the covariance where a bias makes good
    the mean."""
    inner = gram.covariance if is_centred(layer) else gram.moment
    return solve.damped(ordered(layer, inner), damping)


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
    with ctx.progress.task("pruning weights", sum(map(len, stages))) as task:
        for stage in stages:
            for portion in sweeps(dict.fromkeys(item for _, item in stage)):
                # What stands in `model` is not what its clone for the run gets: shapes are the same.
                grams = collect(
                    model,
                    portion,
                    ctx.calibration,
                    ctx.runtime,
                    reference=reference,
                    threads=ctx.threads,
                    seed=ctx.seed,
                )
                for node, item in stage:
                    if item in grams:
                        _refit(model, node, grams[item], chosen.get(node), (thin, damping))
                        task.advance()


def _stages(model: ir.Model, chosen: Mapping[ir.Node, Layer]) -> list[list[tuple[ir.Node, LayerInput]]]:
    """The layers to work on in the order of the graph, those of one input together, in a bounded number of
    groups."""
    groups: dict[str, list[tuple[ir.Node, LayerInput]]] = {}
    for node in model.graph:
        item = layer_input(node)
        if item is not None and (node in chosen or (groups and has_bias(node) and node.op_type == "Conv")):
            groups.setdefault(item.value, []).append((node, item))
    parts = list(groups.values())
    size = max(1, -(-len(parts) // _STAGES))
    return [[x for part in parts[i : i + size] for x in part] for i in range(0, len(parts), size)]


def _refit(model: ir.Model, node: ir.Node, gram: Gram, layer: Layer | None, how: tuple[Thin, float]) -> None:
    thin, damping = how
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
    h, rows = solve.damped(ordered(layer, inner), damping), layer.rows(weight)
    wanted = rows
    if layer.depth >= _SMALL:
        wanted = solve.transfer(rows, h, ordered(layer, inner), ordered(layer, cross))
    new = layer.stored(thin(layer, wanted, h))
    if centred:
        order = layer.order()
        shift = np.einsum("gok,gk->go", rows, twin[:, order])
        shift = shift - np.einsum("gok,gk->go", layer.rows(new), gram.mean[:, order])
        shift_bias(model, node, shift.reshape(-1))
    graph.replace_weight(layer.weight, new)
