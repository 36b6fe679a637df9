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


def moving_average(histogram: Histogram, levels: int) -> tuple[float, float]:
    """The extremes of a batch, averaged over the batches: x <- x + c (x_batch - x), with c = 1 / n for the
    first hundred and 0.01 from then on, so that no batch weighs more than others (Jacob et al. 2018,
    arXiv:1712.05877, section 3.1, with the start corrected)."""
    low, high = minmax(histogram, levels)
    if not histogram.parts:
        return low, high
    return max(low, min(histogram.moving[0], 0.0)), min(high, max(histogram.moving[1], 0.0))


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


def entropy(histogram: Histogram, levels: int) -> tuple[float, float]:
    """The range whose codes tell most of the distribution: least Kullback-Leibler divergence.

    For each share of the extremes, P is the histogram inside with what lies outside added to its end bins,
    and Q spreads the counts of each code evenly over the bins that it covers and that are not empty; the
    range of least sum P log(P / Q) is taken (Migacz, "8-bit inference with TensorRT", GTC 2017). Exact zeros
    are left out: they are representable in any range.
    """
    low, high = minmax(histogram, levels)
    if histogram.width == 0.0 or high == low:
        return low, high
    counts = histogram.counts.copy()
    if histogram.low >= 0.0 and histogram.first == 0:
        counts[0] = 0.0
    best, chosen = np.inf, (low, high)
    for share in np.linspace(1.0, 0.05, 96):
        first = int(np.floor(low * share / histogram.width)) - histogram.first
        end = int(np.ceil(high * share / histogram.width)) - histogram.first
        if end - first < levels:
            break  # finer than the histogram: nothing more can be told
        divergence = _divergence(counts, max(0, first), min(len(counts), end), levels)
        if divergence < best:
            best, chosen = divergence, (low * share, high * share)
    return float(chosen[0]), float(chosen[1])


def _divergence(counts: Array, first: int, end: int, levels: int) -> float:
    inside = counts[first:end]
    wanted = inside.copy()
    wanted[0] += counts[:first].sum()
    wanted[-1] += counts[end:].sum()
    code = np.arange(len(inside)) * levels // len(inside)
    held = np.bincount(code, inside, levels)
    spread = np.bincount(code, inside > 0, levels)
    told = np.where(inside > 0, (held / np.maximum(spread, 1))[code], 0.0)
    total, kept = wanted.sum(), told.sum()
    if total == 0.0 or kept == 0.0:
        return np.inf
    p, q = wanted / total, np.maximum(told / kept, 1e-9)  # an end bin may be empty but for what was clipped
    some = p > 0
    return float((p[some] * np.log(p[some] / q[some])).sum())


OBSERVERS: dict[str, Observer] = {
    "entropy": entropy,
    "minmax": minmax,
    "moving_average": moving_average,
    "mse": mse,
    "percentile": percentile,
}
