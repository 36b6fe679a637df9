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
# Weights above which settling is done in float32: its errors are far below those of the zeros.
_DOUBLE = 1 << 16
# Shares of zeros at which the loss of a layer is looked at.
LEVELS = (0.3, 0.5, 0.7, 0.85)


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
    once. Each round costs one product with H and never raises the cost. Many weights are settled in float32.
    """
    if rows.size > _DOUBLE:
        rows, h = rows.astype(np.float32), h.astype(np.float32)
        start = None if start is None else start.astype(np.float32)
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
    return np.where(mask, 0.0, x).astype(np.float64)


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
            return np.asarray(masks.n_of_m(importance, now, m) | known)
        if block is not None:
            return np.asarray(masks.blocks(importance, block, ratio * way) | known)
        return np.asarray(masks.lowest(importance, ratio * way, by_row=by_row) | known)

    found = gradual(rows, h, inverse, choose, steps)
    if block is None and not by_row and not known.any():
        other = sparsegpt(rows, h, ratio, None if pattern is None else (pattern[1] - pattern[0], pattern[1]))
        if solve.cost(rows - other, h).sum() < solve.cost(rows - found, h).sum():
            return other
    return found


def _way(share: float) -> float:
    """The cubic schedule of Zhu and Gupta 2017: much at first, when much is needless."""
    return 1 - (1 - share) ** 3


def curve(rows: Array, h: Array) -> dict[float, Array]:
    """The weights, settled, with each of `LEVELS` of zeros."""
    inverse = np.linalg.inv(h)
    found, x, mask = {}, rows, np.zeros(rows.shape, np.bool_)
    for level in LEVELS:
        mask = masks.lowest(np.where(mask, 0.0, obs(x, inverse)), level)
        x = settle(rows, h, mask, start=x, rounds=10)
        found[level] = x
    return found


Key = TypeVar("Key", bound=Hashable)


def shares(
    losses: Mapping[Key, Mapping[float, float]], sizes: Mapping[Key, int], ratio: float, *, most: float = 0.9
) -> dict[Key, float]:
    """The share of zeros of each layer, for `ratio` over all, so that the sum of the losses is least.

    Each layer's loss is interpolated between the levels at which it is known, in logarithms, along which it
    is nearly straight; one price a zero for all layers (Lagrange) then gives the shares.

    Args:
        losses: level -> loss.
        sizes: numbers of the layers.
        most: largest share of a layer.
    """
    grid = np.arange(0, max(most, ratio) + 1e-9, 0.01)
    whole = max(1, sum(sizes.values()))
    bent = {}
    for key, known in losses.items():
        levels = sorted(known)
        logs = np.log(np.maximum([known[level] for level in levels], 1e-12))
        # Below the lowest level the loss falls by an order of magnitude for a quarter of the zeros.
        x, y = [0.05, *levels], [logs[0] - 2.3, *logs]
        slope = (y[-1] - y[-2]) / max(1e-6, x[-1] - x[-2])
        line = np.interp(grid, x, y) + np.maximum(0, grid - x[-1]) * slope
        loss = np.exp(line)
        loss[0] = 0.0
        bent[key] = np.maximum.accumulate(loss)
    low, high = -60.0, 20.0  # logarithm of the price
    taken: dict[Key, float] = {}
    for _ in range(80):
        middle = (low + high) / 2
        for key, loss in bent.items():
            taken[key] = float(grid[np.argmin(loss - np.exp(middle) * grid * sizes[key] / whole)])
        low, high = (
            (middle, high) if sum(taken[k] * sizes[k] for k in taken) < ratio * whole else (low, middle)
        )
    missing = ratio * whole - sum(taken[k] * sizes[k] for k in taken)
    room = {k: (max(most, ratio) - share) * sizes[k] for k, share in taken.items()}
    if missing > 0 and sum(room.values()) > 0:
        part = min(1.0, missing / sum(room.values()))
        return {k: share + part * room[k] / sizes[k] for k, share in taken.items()}
    return {k: share * ratio * whole / (ratio * whole - missing) for k, share in taken.items()}
