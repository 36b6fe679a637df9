"""GPTQ for weights alone (Frantar et al. 2022): codes in blocks or per channel, rounded on Gram matrices.

Scales and zero points are those of the least squared error of each block, fixed before rounding, so that they
do not depend on the order of columns ("static groups").
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field

import numpy as np
import onnx_ir as ir

from attar import graph, solve
from attar.context import Context
from attar.gram import Gram, LayerInput, collect, layer_input, rows_of, sweeps
from attar_quantize.methods import Layer, by_groups, least_squares
from attar_quantize.scheme import Array, QParams, QType

_DAMPING = 0.05


@dataclass
class Grams:
    """The Gram matrices of a model as it was before its weights were replaced one by one, a portion that fits
    the memory at a time, in the order of the graph."""

    model: ir.Model
    snapshot: ir.Model
    portions: list[list[LayerInput]]
    now: dict[LayerInput, Gram] = field(default_factory=dict)

    @classmethod
    def of(cls, model: ir.Model, ctx: Context) -> Grams:
        known = ctx.cache.get("quantize.grams")
        if isinstance(known, Grams) and known.model is model:
            return known
        items = [item for node in model.graph if (item := layer_input(node)) is not None]
        made = cls(model, graph.clone(model), list(sweeps(dict.fromkeys(items))))
        ctx.cache["quantize.grams"] = made
        return made

    def get(self, item: LayerInput, ctx: Context) -> Gram | None:
        if item not in self.now:
            portion = next((p for p in self.portions if item in p), None)
            if portion is None:
                return None
            self.now = {}  # before the next ones are made
            self.now = collect(
                self.snapshot,
                portion,
                ctx.calibration,
                ctx.runtime,
                threads=ctx.threads,
                seed=ctx.seed,
                progress=ctx.progress,
            )
        return self.now[item]


def gptq(layer: Layer) -> tuple[Array, QParams]:
    """Codes of a weight for `quantize.weights`. What has no Gram matrix (tables, recurrent weights) and small
    floats get codes of least squared error.

    Raises:
        InputError: there is no calibration data.
    """
    codes, params = by_groups(layer, least_squares)
    gram = gram_of(layer)
    if gram is None or layer.qtype.format:
        return codes, params
    forward, back = layout(layer)
    rows = forward(layer.weight)
    grid = grid_of(params, layer, forward)
    h = solve.damped(gram.moment if len(gram.moment) > 1 else gram.moment[0], _DAMPING)
    found = solve.hessian_rounding(rows, h, grid)
    return back(found).astype(params.qtype.dtype), params


def gram_of(layer: Layer) -> Gram | None:
    """The Gram matrix of what the weight is multiplied with, summed over its readers; None if it has none."""
    if layer.ctx is None or layer.model is None or layer.weight.ndim < 2:
        return None
    items = [layer_input(node) for node in layer.users]
    if not items or any(item is None for item in items):
        return None
    grams = Grams.of(layer.model, layer.ctx)
    found: Gram | None = None
    for item in dict.fromkeys(items):
        assert item is not None
        gram = grams.get(item, layer.ctx)
        if gram is None:
            return None
        if found is None:
            found = gram
        else:
            found = Gram(found.matrix, found.total, found.count)
            found.merge(Gram(gram.matrix, gram.total, gram.count))
    return found


def grid_of(params: QParams, layer: Layer, forward: Callable[[Array], Array]) -> solve.Grid:
    """The grid of rows, whatever shares a scale."""
    shape, axis = layer.weight.shape, layer.axis % layer.weight.ndim
    if not params.block:
        along = [1] * len(shape)
        along[axis] = -1
        columns = forward(np.broadcast_to(params.scale.reshape(along), shape))
        zeros = forward(np.broadcast_to(params.zero_point.reshape(along), shape))
        return _grid(columns[..., :1], zeros[..., :1], params.qtype)
    if len(shape) == 2 and shape[axis] % params.block == 0:
        return _grid(forward(params.scale), forward(params.zero_point), params.qtype)
    index = np.arange(shape[axis]) // params.block
    return _grid(
        forward(params.scale.take(index, axis)), forward(params.zero_point.take(index, axis)), params.qtype
    )


def _grid(scale: Array, zero: Array, qtype: QType) -> solve.Grid:
    return solve.Grid(scale, zero.astype(np.int64), int(qtype.qmin), int(qtype.qmax))


def layout(layer: Layer) -> tuple[Callable[[Array], Array], Callable[[Array], Array]]:
    """From the weight's layout to rows of K numbers, and back."""
    if layer.weight.ndim == 2:
        # Blocks lie along K, channels along the other axis.
        depth = layer.axis % 2 if layer.qtype.block else 1 - layer.axis % 2
        if depth == 0:
            return (lambda a: a.T), (lambda a: np.ascontiguousarray(a.T))
        return (lambda a: a), np.ascontiguousarray
    node, shape = layer.users[0], layer.weight.shape

    def rows(array: Array) -> Array:
        found = rows_of(node, array)
        return found if len(found) > 1 else found[0]

    return rows, lambda a: a.reshape(shape)
