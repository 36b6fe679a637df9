"""k-means of numbers on a line: optimal on a fine histogram, then Lloyd's steps on the numbers themselves.

On a line clusters are intervals, so the best k intervals of n sorted numbers follow by dynamic programming
(Wang and Song 2011). That is O(k n^2), so the numbers are first drawn together into at most `bins` points
with weights; k is far smaller than `bins`, so little is lost, and Lloyd's steps, which only ever improve,
make good the rest. Nothing here is random.
"""

from __future__ import annotations

from typing import Any

import numpy as np

Array = np.ndarray[Any, np.dtype[Any]]


def kmeans(
    numbers: Array, count: int, weights: Array | None = None, *, bins: int = 512, rounds: int = 30
) -> Array:
    """At most `count` centroids, ascending, float64.

    Args:
        numbers: any shape; finite.
        weights: of each number in the sum of squares; not negative.
    """
    flat = np.asarray(numbers, np.float64).reshape(-1)
    mass = np.ones(flat.size) if weights is None else np.asarray(weights, np.float64).reshape(-1)
    if flat.size == 0 or count < 1:
        return np.zeros(0)
    order = np.argsort(flat, kind="stable")
    flat, mass = flat[order], mass[order]
    if mass.sum() <= 0:
        mass = np.ones(flat.size)
    starts = np.flatnonzero(np.concatenate([[True], flat[1:] != flat[:-1]]))
    points, weight = flat[starts], np.add.reduceat(mass, starts)
    if len(points) <= count:
        return points
    # Numbers without weight pull no centroid, but a centroid of nothing has no place.
    weight = np.maximum(weight, 1e-12 * weight.max())
    centroids = _optimal(*_binned(points, weight, bins), count)
    sums = [np.concatenate([[0.0], np.cumsum(part)]) for part in (weight, weight * points)]
    for _ in range(rounds):
        edges = np.searchsorted(points, (centroids[1:] + centroids[:-1]) / 2, side="right")
        bounds = np.concatenate([[0], edges, [len(points)]])
        held, total = (np.diff(part[bounds]) for part in sums)
        moved = np.where(held > 0, total / np.where(held > 0, held, 1.0), centroids)
        if np.array_equal(moved, centroids):
            break
        centroids = np.sort(moved)
    return np.unique(centroids)


def nearest(numbers: Array, centroids: Array) -> Array:
    """Index of the nearest centroid of each number; between two the upper one from the middle on. int64."""
    return np.searchsorted((centroids[1:] + centroids[:-1]) / 2, numbers, side="right")


def _binned(points: Array, weight: Array, bins: int) -> tuple[Array, Array]:
    """At most `bins` points of like share, with their weights. Half of the bins go by mass, half by range, so
    that neither the crowd nor the outliers are drawn together."""
    if len(points) <= bins:
        return points, weight
    share = np.cumsum(weight) / weight.sum()
    reach = (points - points[0]) / (points[-1] - points[0])
    number = np.floor((share + reach) / 2 * bins * (1 - 1e-12)).astype(np.int64)
    starts = np.flatnonzero(np.concatenate([[True], np.diff(number) != 0]))
    mass = np.add.reduceat(weight, starts)
    return np.add.reduceat(weight * points, starts) / mass, mass


def _optimal(points: Array, weight: Array, count: int) -> Array:
    """Centroids of the best `count` intervals of weighted points."""
    n = len(points)
    mass = np.concatenate([[0.0], np.cumsum(weight)])
    middle = points.mean()  # sums of squares far from zero would lose their digits
    first = np.concatenate([[0.0], np.cumsum(weight * (points - middle))])
    second = np.concatenate([[0.0], np.cumsum(weight * (points - middle) ** 2)])
    held = mass[None, :] - mass[:, None]
    inside = np.triu(np.ones((n + 1, n + 1), np.bool_), 1)
    total = first[None, :] - first[:, None]
    cost = second[None, :] - second[:, None] - total**2 / np.where(inside, held, 1.0)
    cost = np.where(inside, np.maximum(cost, 0.0), np.inf)  # [i, j]: points i to j - 1 as one
    best = cost[0].copy()
    cuts = []
    for _ in range(1, min(count, n)):
        every = best[:, None] + cost
        cut = every.argmin(axis=0)
        best = every[cut, np.arange(n + 1)]
        cuts.append(cut)
    bounds = [n]
    for cut in reversed(cuts):
        bounds.append(int(cut[bounds[-1]]))
    bounds.append(0)
    edges = np.array(sorted(set(bounds)))
    return np.asarray(middle + np.diff(first[edges]) / np.diff(mass[edges]))
