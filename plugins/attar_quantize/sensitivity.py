"""Mixed precision: bits of weights, spent where they lower the noise of the outputs most."""

from __future__ import annotations

import heapq
from collections.abc import Mapping, Sequence

import numpy as np
import onnx_ir as ir

from attar import graph
from attar_quantize.heard import by_weight
from attar_quantize.scheme import Array, QType, weight_params
from attar_quantize.units import Unit

BITS = (2, 3, 4, 5, 6, 8)
"""Widths to choose from: those below 8 are stored in bytes all the same, and packed by `attar.bundle`."""


def noise_of(weight: Array, unit: Unit, power: Array | None, bits: int, axis: int | None) -> float:
    """Noise over signal of a layer's outputs when its weight has `bits`: sum E[x_c^2] (w' - w)^2 over
    sum E[x_c^2] w^2, inputs being taken for independent.

    Args:
        power: E[x_c^2] of each input channel; None: all alike.
        axis: of the output channels, with a scale each; None: one scale.
    """
    wide = np.asarray(weight, np.float64)
    spread = None if power is None else by_weight(weight, unit.main, power)
    heard: Array = np.ones(()) if spread is None else spread
    qtype = QType(signed=True, bits=bits, symmetric=True, narrow=True)
    params = weight_params(wide, qtype, axis)
    error = params.dequantize(params.quantize(wide)) - wide
    signal = float((heard * wide**2).sum())
    return float((heard * error**2).sum()) / signal if signal > 0 else 0.0


def bits_by_sensitivity(
    layers: Sequence[tuple[Unit, int | None]], powers: Mapping[ir.Value, Array], average: float
) -> dict[ir.Value, int]:
    """Bits of each weight, so that their mean over all weights is at most `average` and the sum of the
    layers' relative noises is small.

    All begin with the fewest; the layer whose next step takes most noise a bit gets it, until nothing more
    fits. The noise falls by a factor of about four a bit, so that the greedy choice is nearly the best.

    Args:
        layers: units with weights, and the axis of their scales.
    """
    weights: dict[ir.Value, list[float]] = {}
    sizes: dict[ir.Value, int] = {}
    for unit, axis in layers:
        weight = unit.weight
        array = graph.const_array(weight)
        assert weight is not None
        assert array is not None
        own = [noise_of(array, unit, powers.get(unit.inputs[0]), bits, axis) for bits in BITS]
        weights[weight] = [a + b for a, b in zip(weights.get(weight, [0.0] * len(BITS)), own, strict=True)]
        sizes[weight] = array.size
    room = average * sum(sizes.values()) - BITS[0] * sum(sizes.values())
    at = dict.fromkeys(weights, 0)
    queue: list[tuple[float, int, ir.Value]] = []

    def offer(number: int, weight: ir.Value) -> None:
        step = at[weight]
        if step + 1 < len(BITS):
            cost = (BITS[step + 1] - BITS[step]) * sizes[weight]
            gain = weights[weight][step] - weights[weight][step + 1]
            heapq.heappush(queue, (-gain / max(1, cost), number, weight))

    for number, weight in enumerate(weights):
        offer(number, weight)
    while queue:
        _, number, weight = heapq.heappop(queue)
        step = at[weight]
        cost = (BITS[step + 1] - BITS[step]) * sizes[weight]
        if cost > room:
            continue  # a smaller layer may still fit
        room -= cost
        at[weight] = step + 1
        offer(number, weight)
    return {weight: BITS[step] for weight, step in at.items()}
