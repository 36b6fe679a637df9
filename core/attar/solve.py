"""Solvers on Gram matrices: what weights should become when they may not stay as they are.

A layer computes Y = X W^T. Replacing W by W' costs, summed over the data,

    || X (W - W')^T ||^2  =  sum over rows e of  e H e^T        with e a row of E = W - W' and H = X^T X

so the Gram matrix H is all of the data that any of these problems needs. Everything here is plain numpy on
arrays `[..., rows, K]` with H `[..., K, K]`; leading axes are groups that are solved at once.

The workhorse is the factorization H = R R^T with R *upper* triangular: the cost of a row is |e R|^2, and
column i of e R holds only the errors of columns up to i,

    (e R)_i = e_i R_ii + sum over j < i of e_j R_ji,

so that going from left to right each weight can be chosen to cancel what those before it have done. This is
GPTQ (Frantar et al. 2022) and OBQ's update without any inverse; Chee et al. 2023 (QuIP, theorem 6) show that
they are the same.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np

from attar.errors import InputError
from attar.grid import Grid as Grid  # noqa: PLC0414  (part of what this module offers)

Array = np.ndarray[Any, np.dtype[Any]]
# Columns whose feedback is brought up to date by one matrix product.
_BLOCK = 64
# Above this many weights the sweeps run in float32: their errors are far below those of rounding.
_DOUBLE = 1 << 19


def damped(gram: Array, damping: float = 0.01) -> Array:
    """H + damping * mean(diag H) * I, float64: positive definite however little data there was.

    Inputs that are always zero get the mean diagonal itself, so that their weights are rounded to nearest.

    Raises:
        InputError: H is not finite or `damping` is negative.
    """
    if damping < 0:
        raise InputError(f"damping must not be negative: {damping}")
    h = np.array(gram, np.float64)
    if not np.isfinite(h).all():
        raise InputError("the Gram matrix has NaN or infinite elements")
    diagonal = np.einsum("...kk->...k", h)  # a view
    mean = diagonal.mean(axis=-1, keepdims=True)
    mean = np.where(mean > 0, mean, 1.0)
    dead = diagonal <= 0
    # A floor far above float64's noise keeps the factorization alive with damping = 0.
    diagonal += max(damping, 1e-10) * mean
    diagonal[...] = np.where(dead, mean, diagonal)
    return h


def upper_factor(h: Array) -> Array:
    """R, upper triangular with positive diagonal, such that R R^T = H.

    With J the reversal of order, J H J = L L^T gives H = (J L J) (J L J)^T.

    Raises:
        InputError: H is not positive definite.
    """
    try:
        lower = np.linalg.cholesky(h[..., ::-1, ::-1])
    except np.linalg.LinAlgError:
        raise InputError(
            "the Gram matrix is not positive definite", hint="raise the damping or give more data"
        ) from None
    return np.ascontiguousarray(lower[..., ::-1, ::-1])


def cost(error: Array, h: Array) -> Array:
    """e H e^T of every row, `[..., rows]`, float64."""
    e = error.astype(np.float64)
    return np.asarray(np.einsum("...rk,...rk->...r", e @ h, e))


def hessian_rounding(
    weight: Array, h: Array, grid: Grid, *, by_size: bool = False, factor: Array | None = None
) -> Array:
    """Codes that nearly minimize the cost: each column cancels the errors of those before it (GPTQ).

    With H a multiple of the identity this is rounding to nearest. O(rows K^2), after O(K^3) for the factor.

    Args:
        weight: `[..., rows, K]`.
        h: `[..., K, K]`, positive definite; see `damped`.
        grid: of the codes.
        by_size: take columns in the order of falling diag(H), the costly ones first ("act-order"), while
            scales stay where they are. One group only.
        factor: `upper_factor(h)` where the caller has it; not with `by_size`.

    Returns:
        Codes in the order of `weight`, int32.
    """
    columns = weight.shape[-1]
    if by_size:
        order = np.argsort(-np.diagonal(h), kind="stable")
        h = h[np.ix_(order, order)]
    else:
        order = np.arange(columns)
    r = upper_factor(h) if factor is None or by_size else factor
    scale, zero = (np.swapaxes(np.broadcast_to(a, weight.shape), -1, -2) for a in grid.along(columns))

    def choose(start: int, stop: int) -> Callable[[int, Array], Array]:
        del start, stop

        def nearest(column: int, wanted: Array) -> Array:
            s, z = scale[..., order[column], :], zero[..., order[column], :]
            codes = np.clip(np.rint(wanted / s) + z, grid.low, grid.high)
            out[..., order[column], :] = codes
            return np.asarray((codes - z) * s)

        return nearest

    out = np.empty(np.swapaxes(weight, -1, -2).shape, np.int32)
    _feed_forward(weight[..., order], r, choose)
    return np.ascontiguousarray(np.swapaxes(out, -1, -2))


def descend(weight: Array, h: Array, codes: Array, grid: Grid, *, sweeps: int = 2) -> Array:
    """Better codes by coordinate descent: each column in turn takes its best codes, all others held.

    The cost never rises (Behdin et al. 2023, QuantEase). With d_i = (E H)_i the best error of column i is
    e_i - d_i / H_ii. O(rows K^2) a sweep.
    """
    precise = np.float64 if weight.size < _DOUBLE else np.float32
    w = np.ascontiguousarray(np.swapaxes(weight, -1, -2), dtype=precise)
    q: Any = np.ascontiguousarray(np.swapaxes(codes, -1, -2)).astype(precise)
    s, z = (
        np.ascontiguousarray(np.swapaxes(np.broadcast_to(a, weight.shape), -1, -2), dtype=precise)
        for a in grid.along(weight.shape[-1])
    )
    h = h.astype(precise)
    diagonal = np.einsum("...kk->...k", h)[..., None]
    error = w - (q - z) * s
    gradient = h @ error
    columns = w.shape[-2]
    for _ in range(sweeps):
        changed = False
        for start in range(0, columns, _BLOCK):
            stop = min(start + _BLOCK, columns)
            before = error[..., start:stop, :].copy()
            delta = np.zeros_like(before)
            for i in range(start, stop):
                done = i - start
                slope = gradient[..., i, :]
                if done:
                    slope = slope + (h[..., i : i + 1, start:i] @ delta[..., :done, :])[..., 0, :]
                best = error[..., i, :] - slope / diagonal[..., i, :]
                code = np.clip(
                    np.rint((w[..., i, :] - best) / s[..., i, :]) + z[..., i, :], grid.low, grid.high
                )
                q[..., i, :] = code
                error[..., i, :] = w[..., i, :] - (code - z[..., i, :]) * s[..., i, :]
                delta[..., done, :] = error[..., i, :] - before[..., done, :]
            if delta.any():
                changed = True
                gradient += h[..., :, start:stop] @ delta
        if not changed:
            break
    return np.ascontiguousarray(np.swapaxes(q, -1, -2)).astype(np.int32)


def best_scale(weight: Array, h: Array, codes: Array, grid: Grid) -> Array:
    """The scale of each row that minimizes the cost for given codes: (w H c^T) / (c H c^T), c = code - zero.

    Returns:
        `[..., rows, 1]`; the old scale where all codes are zero or the best one would not be positive.

    Raises:
        InputError: the grid has several scales a row.
    """
    if grid.scale.shape[-1] != 1:
        raise InputError("the best scale is computed for grids of one scale a row")
    c: Array = codes - np.asarray(grid.zero, np.float64)
    ch = c @ h
    top = np.einsum("...rk,...rk->...r", weight.astype(np.float64), ch)[..., None]
    bottom = np.einsum("...rk,...rk->...r", c, ch)[..., None]
    good = (bottom > 0) & (top > 0)
    return np.where(good, top / np.where(good, bottom, 1.0), grid.scale)


def transfer(weight: Array, h: Array, gram: Array, cross: Array) -> Array:
    """Weights that do with other inputs x what the old ones did with t: least squares, drawn to the old ones.

    W + W (B - A) H^-1 with A = E[x x^T], B = E[t x^T] and H = A damped minimizes
    E |W t - W' x|^2 + damping |W' - W|^2, as rounding layers one after the other needs it: x is what the
    layers before, rounded, give in place of t.

    Args:
        weight: `[..., rows, K]`.
        h: `damped(gram)`.
        gram: A, `[..., K, K]`.
        cross: B, `[..., K, K]`.
    """
    change = weight.astype(np.float64) @ (cross - gram)
    return np.asarray(weight + np.swapaxes(np.linalg.solve(h, np.swapaxes(change, -1, -2)), -1, -2))


def refit(weight: Array, gram: Array, keep: Array, *, damping: float = 1e-6) -> Array:
    """Weights of the columns that stay, so that the outputs change least (least squares).

    With S the columns kept: W' = W G[:, S] (G[S, S])^-1, which minimizes || X W^T - X_S W'^T ||^2.

    Args:
        weight: `[rows, K]`.
        gram: `[K, K]`.
        keep: indices of the columns that stay, or a mask of K booleans.

    Returns:
        `[rows, len(keep)]`, float64.

    Raises:
        InputError: nothing is kept, or an index is out of range.
    """
    keep = np.asarray(keep)
    chosen = np.flatnonzero(keep) if keep.dtype == np.bool_ else keep.astype(np.int64)
    fits = keep.dtype != np.bool_ or keep.shape == gram.shape[-1:]
    if not (fits and chosen.size and chosen.min() >= 0 and chosen.max() < gram.shape[-1]):
        raise InputError(f"the columns to keep do not fit a Gram matrix of {gram.shape[-1]} columns")
    inner = damped(gram[np.ix_(chosen, chosen)], damping)
    return np.linalg.solve(inner, gram[chosen] @ weight.astype(np.float64).T).T


def sparsify(
    weight: Array,
    h: Array,
    *,
    ratio: float = 0.5,
    pattern: tuple[int, int] | None = None,
    grid: Grid | None = None,
) -> Array:
    """Weights with zeros, the rest adjusted so that the outputs change least (SparseGPT).

    After Frantar & Alistarh 2023. A block of columns at a time loses its cheapest weights: by OBS, removing
    w_i costs w_i^2 / (H^-1)_ii once the columns before it are done, which here is (w_i R_ii)^2.

    Args:
        weight: `[rows, K]`.
        h: `[K, K]`, positive definite.
        ratio: share of the weights that become zero, in each row block of columns.
        pattern: (n, m): of each m neighbours in a row n are zero, instead of `ratio`; m divides K.
        grid: also round what stays to these numbers.

    Returns:
        `[rows, K]`, float64.

    Raises:
        InputError: an argument is out of range.
    """
    columns = weight.shape[-1]
    if pattern is not None and not (0 < pattern[0] <= pattern[1] and columns % pattern[1] == 0):
        raise InputError(f"pattern {pattern} does not fit {columns} columns")
    if not 0 <= ratio < 1:
        raise InputError(f"ratio must be at least 0 and below 1: {ratio}")
    r = upper_factor(h)
    out = np.empty((columns, weight.shape[0]))
    quantum = None if grid is None else [np.broadcast_to(a, weight.shape).T for a in grid.along(columns)]

    def choose(start: int, stop: int, adjusted: Array | None = None) -> Callable[[int, Array], Array]:
        assert adjusted is not None
        saliency = (adjusted * np.diagonal(r)[start:stop, None]) ** 2  # [block, rows]
        if pattern is not None:
            n, m = pattern
            parts = saliency.reshape(-1, m, saliency.shape[-1])
            mask = np.zeros(parts.shape, np.bool_)
            np.put_along_axis(mask, np.argsort(parts, axis=1, kind="stable")[:, :n], True, axis=1)
            mask = mask.reshape(saliency.shape)
        else:
            count = round(ratio * saliency.size)
            mask = np.zeros(saliency.size, np.bool_)
            mask[np.argsort(saliency, axis=None, kind="stable")[:count]] = True
            mask = mask.reshape(saliency.shape)

        def pruned(column: int, wanted: Array) -> Array:
            if quantum is not None:
                assert grid is not None
                s, z = quantum[0][column], quantum[1][column]
                wanted = (np.clip(np.rint(wanted / s) + z, grid.low, grid.high) - z) * s
            out[column] = np.where(mask[column - start], 0.0, wanted)
            return np.asarray(out[column])

        return pruned

    block = _BLOCK if pattern is None else max(1, _BLOCK // pattern[1]) * pattern[1]
    _feed_forward(weight, r, choose, block=block, adjust=True)
    return out.T.copy()


def _feed_forward(
    weight: Array,
    r: Array,
    choose: Callable[..., Callable[[int, Array], Array]],
    *,
    block: int = _BLOCK,
    adjust: bool = False,
) -> None:
    """Go through the columns; each is asked for as w_i + (sum over j < i of e_j R_ji) / R_ii.

    Args:
        choose: `(start, stop[, adjusted])` at each block gives `(column, wanted) -> taken`, arrays of rows.
        adjust: also give `choose` the block's weights [block, rows] with all errors so far made good.
    """
    precise = np.float64 if weight.size < _DOUBLE else np.float32
    # Columns become rows of contiguous memory: every step works on whole vectors.
    w = np.ascontiguousarray(np.swapaxes(weight, -1, -2), dtype=precise)
    r = r.astype(precise)
    error = np.zeros_like(w)
    columns = w.shape[-2]
    for start in range(0, columns, block):
        stop = min(start + block, columns)
        inner = np.ascontiguousarray(np.swapaxes(r[..., start:stop, start:stop], -1, -2))
        before = np.swapaxes(r[..., :start, start:stop], -1, -2) @ error[..., :start, :]
        if adjust:
            # e_block R_bb = -(errors before) R is what cancels them: R_bb^T e = -before, in columns.
            take = choose(start, stop, w[..., start:stop, :] + np.linalg.solve(inner, before))
        else:
            take = choose(start, stop)
        for i in range(start, stop):
            done = i - start
            feedback = before[..., done, :]
            if done:
                feedback = feedback + (inner[..., done : done + 1, :done] @ error[..., start:i, :])[..., 0, :]
            taken = take(i, w[..., i, :] + feedback / inner[..., done, done, None])
            error[..., i, :] = w[..., i, :] - taken
