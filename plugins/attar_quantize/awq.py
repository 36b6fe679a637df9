"""Activation-aware ranges for weights alone (the clipping of AWQ, Lin et al. 2023).

Weights that multiply large activations matter more. With E[x_k^2], the diagonal of the Gram matrix, each
block takes the range of the least  sum over k of E[x_k^2] (w_k - w'_k)^2.  AWQ's other half, factors on
channels that move into the layer before, changes the graph: `quantize.smooth` does that.
"""

from __future__ import annotations

import numpy as np

from attar_quantize.gptq import gram_of, layout
from attar_quantize.methods import Layer, by_groups, least_squares
from attar_quantize.scheme import Array, QParams, params_of_range

_SHARES = np.linspace(1.0, 0.5, 11)


def awq(layer: Layer) -> tuple[Array, QParams]:
    """Codes of a weight for `quantize.weights`. What has no Gram matrix and small floats get codes of least
    squared error.

    Raises:
        InputError: there is no calibration data.
    """
    gram = gram_of(layer)
    if gram is None or layer.qtype.format:
        return by_groups(layer, least_squares)
    forward, back = layout(layer)
    weight = np.asarray(layer.weight, np.float32)
    rows = forward(weight)
    power = np.einsum("gkk->gk", gram.moment)[:, None, :].astype(np.float32)
    importance = back(np.broadcast_to(power if rows.ndim == 3 else power[0], rows.shape))
    low, high = (_over_groups(f, weight, layer) for f in (np.minimum, np.maximum))
    best: QParams | None = None
    least: Array | None = None
    for share in _SHARES:
        params = params_of_range(low * share, high * share, layer.qtype, layer.axis % weight.ndim)
        error = (params.dequantize(params.quantize(weight)) - weight) ** 2 * importance
        loss = _over_groups(np.add, error, layer)
        if best is None or least is None:
            best, least = params, loss
            continue
        better = loss < least
        least = np.where(better, loss, least)
        best = QParams(
            params.qtype,
            np.where(better, params.scale, best.scale),
            np.where(better, params.zero_point, best.zero_point),
            params.axis,
        )
    assert best is not None
    return best.quantize(weight), best


def _over_groups(function: np.ufunc, array: Array, layer: Layer) -> Array:
    """A reduction over each group of elements that shares a scale."""
    axis = layer.axis % array.ndim
    if layer.qtype.block:
        return np.asarray(
            function.reduceat(array, np.arange(0, array.shape[axis], layer.qtype.block), axis=axis)
        )
    others = tuple(a for a in range(array.ndim) if a != axis)
    return np.asarray(function.reduce(array, axis=others))
