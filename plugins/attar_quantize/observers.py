"""Observers: from what was seen of a value to the range that its integers shall cover.

An observer is `f(histogram, levels) -> (low, high)`, where `levels` is the number of codes (256 for 8 bits).
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np

from attar.histogram import Histogram

Array = np.ndarray[Any, np.dtype[Any]]
Observer = Callable[[Histogram, int], tuple[float, float]]


def minmax(histogram: Histogram, levels: int) -> tuple[float, float]:
    """The extremes."""
    return min(histogram.low, 0.0), max(histogram.high, 0.0)


def percentile(histogram: Histogram, levels: int, share: float = 0.9999) -> tuple[float, float]:
    """The range that leaves (1 - share) / 2 of the values outside at each end that has values beyond zero."""
    low, high = minmax(histogram, levels)
    total = histogram.total
    if histogram.width == 0.0 or total == 0:
        return low, high
    cumulative = np.cumsum(histogram.counts)
    outside = total * (1 - share) / 2
    edges = (histogram.first + np.arange(len(cumulative) + 1)) * histogram.width
    lower = edges[int(np.searchsorted(cumulative, outside, side="right"))]
    upper = edges[min(len(cumulative), int(np.searchsorted(cumulative, total - outside)) + 1)]
    return max(low, min(float(lower), 0.0)), min(high, max(float(upper), 0.0))


def mse(histogram: Histogram, levels: int) -> tuple[float, float]:
    """The range of least mean squared error: rounding within against clipping without.

    Rounding costs s^2 / 12 for each value inside [low, high], with s = (high - low) / (levels - 1)
    (Widrow), clipping the squared distance to the nearer end. Both are sums over the histogram, so that a
    candidate costs one vector product; the two ends are searched in turn over shares of the extremes. The
    exact extremes, which the sample may have missed, count as one value each.
    """
    low, high = minmax(histogram, levels)
    if histogram.width == 0.0 or high == low:
        return low, high
    x = np.concatenate([histogram.centers(), [low, high]])
    n = np.concatenate([histogram.counts, [1.0, 1.0]])
    used = n > 0
    x, n = x[used], n[used]

    def error(lo: float, hi: float) -> float:
        step = (hi - lo) / (levels - 1)
        beyond = np.maximum(x - hi, 0.0) + np.maximum(lo - x, 0.0)
        inside = float(n[(beyond == 0.0) & (x != 0.0)].sum())  # zeros are exact
        return inside * step * step / 12 + float(n @ (beyond * beyond))

    shares = np.linspace(1.0, 0.05, 96)
    for _ in range(3 if low < 0.0 < high else 1):
        before = (low, high)
        if high > 0.0:
            top = max(histogram.high, 0.0)
            high = min((error(low, top * s), -s, top * s) for s in shares if top * s > low)[2]
        if low < 0.0:
            bottom = min(histogram.low, 0.0)
            low = min((error(bottom * s, high), -s, bottom * s) for s in shares if bottom * s < high)[2]
        if (low, high) == before:
            break
    return float(low), float(high)


OBSERVERS: dict[str, Observer] = {"minmax": minmax, "percentile": percentile, "mse": mse}
