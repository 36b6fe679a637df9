"""Zeros by what they do to the outputs: Wanda, SparseGPT, and the best values for the weights that stay.

Rows are `[groups, rows, K]`, Hessians `[groups, K, K]` (`attar.solve.damped`); masks are True where a weight
becomes zero.
"""

from __future__ import annotations

from collections.abc import Callable, Hashable, Mapping
from typing import Any, TypeVar

import numpy as np

from attar import solve
from attar_prune import masks

Array = np.ndarray[Any, np.dtype[Any]]
Choose = Callable[[Array], Array]


def wanda(rows: Array, h: Array) -> Array:
    """|W| * ||x||, squared (Sun et al. 2023): what the output loses if one weight goes and nothing else
    changes."""
    return np.asarray(rows**2 * np.einsum("gkk->gk", h)[:, None, :])


def obs(rows: Array, inverse: Array) -> Array:
    """w^2 / (H^-1)_kk (Hassibi and Stork 1993): the same if all other weights make good what they can."""
    return np.asarray(rows**2 / np.einsum("gkk->gk", inverse)[:, None, :])


def settle(rows: Array, h: Array, mask: Array, *, rounds: int = 40, start: Array | None = None) -> Array:
    """Values of the weights that stay for which the outputs change least; the others are zero.

    Minimizes (w' - w) H (w' - w)^T of every row over its own support by conjugate gradients, all rows at
    once. Each round costs one product with H and never raises the cost.
    """
    live = ~mask
    diagonal = np.einsum("gkk->gk", h)[:, None, :]
    x = np.where(mask, 0.0, rows if start is None else start)
    residual = ((rows - x) @ h) * live
    z = residual / diagonal
    direction = z.copy()
    energy = np.einsum("grk,grk->gr", residual, z)
    first = energy.max(initial=0.0)
    for _ in range(rounds):
        if energy.max(initial=0.0) <= 1e-8 * first or first == 0:
            break
        moved = (direction @ h) * live
        curve = np.einsum("grk,grk->gr", direction, moved)
        step = np.where(curve > 0, energy / np.where(curve > 0, curve, 1.0), 0.0)[..., None]
        x = x + step * direction
        residual = residual - step * moved
        z = residual / diagonal
        after = np.einsum("grk,grk->gr", residual, z)
        turn = np.where(energy > 0, after / np.where(energy > 0, energy, 1.0), 0.0)[..., None]
        direction, energy = z + turn * direction, after
    return np.where(mask, 0.0, x)


def gradual(
    rows: Array, h: Array, inverse: Array, choose: Callable[[Array, float], Array], steps: int
) -> Array:
    """Zeros in a few steps, the rest settled between them: OBC's order of removal, many weights at a time.

    Args:
        choose: (importance, share of the way, 0 to 1) -> mask.
    """
    x = rows
    mask = np.zeros(rows.shape, np.bool_)
    for step in range(1, steps + 1):
        importance = np.where(mask, 0.0, obs(x, inverse))
        mask = choose(importance, _way(step / steps))
        x = settle(rows, h, mask, start=x, rounds=12)
    return settle(rows, h, mask, start=x)


def sparsegpt(rows: Array, h: Array, ratio: float, pattern: tuple[int, int] | None) -> Array:
    """SparseGPT (Frantar and Alistarh 2023), then settled.

    Args:
        pattern: (n, m), n zeros of each m, instead of `ratio`.
    """
    out = np.stack([solve.sparsify(rows[g], h[g], ratio=ratio, pattern=pattern) for g in range(len(rows))])
    return settle(rows, h, out == 0, start=out)


def best(
    rows: Array, h: Array, ratio: float, *, pattern: tuple[int, int] | None = None,
    block: tuple[int, int] | None = None, steps: int = 8, floor: Array | None = None,
    by_row: bool = False,
) -> Array:  # fmt: skip
    """The better of SparseGPT's zeros and of those found gradually, the rest settled.

    Args:
        pattern: (stay, m): of each m neighbours along K `stay` remain.
        block: (rows, neighbours) that go together.
        floor: a mask of weights that are zero already and stay so.
        by_row: `ratio` holds for each row.
    """
    inverse = np.linalg.inv(h)
    known = np.zeros(rows.shape, np.bool_) if floor is None else floor

    def choose(importance: Array, way: float) -> Array:
        if pattern is not None:
            stay, m = pattern
            now = m - round(way * (m - stay))
            return masks.n_of_m(importance, now, m) | known
        if block is not None:
            return masks.blocks(importance, block, ratio * way) | known
        return masks.lowest(importance, ratio * way, by_row=by_row) | known

    found = gradual(rows, h, inverse, choose, steps)
    if block is None and not by_row and not known.any():
        other = sparsegpt(rows, h, ratio, None if pattern is None else (pattern[1] - pattern[0], pattern[1]))
        if solve.cost(rows - other, h).sum() < solve.cost(rows - found, h).sum():
            return other
    return found


def _way(share: float) -> float:
    """The cubic schedule of Zhu and Gupta 2017: much at first, when much is needless."""
    return 1 - (1 - share) ** 3


Key = TypeVar("Key", bound=Hashable)


def shares(scores: Mapping[Key, Array], ratio: float, *, most: float = 0.65) -> dict[Key, float]:
    """The share of each layer for which one bound on the scores takes `ratio` of all weights, no layer losing
    more than `most`."""
    whole = sum(s.size for s in scores.values())
    ordered = {key: np.sort(s, axis=None) for key, s in scores.items()}
    low, high = -80.0, 20.0  # of the bound's logarithm; scores are shares of a layer's energy
    for _ in range(60):
        middle = (low + high) / 2
        bound = np.exp(middle)
        counts = {k: min(most * s.size, float(np.searchsorted(s, bound))) for k, s in ordered.items()}
        low, high = (middle, high) if sum(counts.values()) < ratio * whole else (low, middle)
    return {key: counts[key] / max(1, scores[key].size) for key in scores}
