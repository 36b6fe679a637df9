"""Factorizations of a layer's weight that cost its outputs least: plain functions over numpy arrays.

A layer is y = W x with W `[groups, outputs, K]`, and H = E[x x^T] `[groups, K, K]` weighs its errors: W'
costs tr((W - W') H (W - W')^T). Without data H is the identity and all of this is the textbook's form.

Every factorization is W' = L F: features z = F x that one or two thin layers compute, and a last layer L. For
given F the best L is a linear least-squares problem, solved exactly (`best_last`); the methods differ in the
form of F.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from attar import solve

Array = np.ndarray[Any, np.dtype[Any]]
# Relative to the mean diagonal: keeps systems solvable without being felt.
_TINY = 1e-9
# Alternating least squares stop when a round gains less than this share of the whole.
_STILL = 1e-9


def cost(error: Array, h: Array | None) -> float:
    """tr(E H E^T), summed over groups."""
    if h is None:
        return float(np.sum(error.astype(np.float64) ** 2))
    return float(solve.cost(error, h).sum())


def best_last(weight: Array, features: Array, h: Array | None, base: Array | None = None) -> Array:
    """L that minimizes tr((W - L F) H (W - L F)^T): W H F^T (F H F^T)^-1.

    Args:
        base: a solution to start from; what it gets exactly right stays so however the system is damped.

    Returns:
        `[groups, outputs, features]`, float64.
    """
    weighed = features if h is None else features @ h
    inner = solve.damped(weighed @ _t(features), _TINY)
    rest = weight if base is None else weight - base @ features
    change = _t(np.linalg.solve(inner, weighed @ _t(rest)))
    return np.asarray(change if base is None else base + change)


class LowRank:
    """The best approximations of W of every rank at once: W' = U_r U_r^T W, U the principal directions of the
    outputs.

    With H = R R^T the cost of W' is |(W - W') R|_F^2, which the truncated SVD of W R minimizes (Eckart and
    Young 1936); U are its left singular vectors, the eigenvectors of W H W^T. Without H it is the truncated
    SVD of W. Where there are more outputs than inputs the other side is taken: W' = (W R V_r)(V_r^T R^-1).
    """

    def __init__(self, weight: Array, h: Array | None) -> None:
        self.weight = weight.astype(np.float64)
        groups, outputs, depth = weight.shape
        self.full = min(outputs, depth)
        self._root: Array | None = None
        if outputs <= depth:
            inner = self.weight if h is None else self.weight @ h
            square = inner @ _t(self.weight)
        else:
            self._root = np.broadcast_to(np.eye(depth), (groups, depth, depth))
            if h is not None:
                self._root = solve.upper_factor(h)
            wide = self.weight @ self._root
            square = _t(wide) @ wide
        values, vectors = np.linalg.eigh(square)
        self._basis = np.ascontiguousarray(vectors[..., ::-1])
        energy = np.maximum(values[..., ::-1], 0.0).sum(axis=0)
        self.total = float(energy.sum())
        left = np.append(np.cumsum(energy[::-1])[::-1], 0.0)
        self.errors = left / self.total if self.total > 0 else np.zeros_like(left)
        """Relative cost of every rank from 0 to full."""

    def at(self, rank: int) -> tuple[Array, Array]:
        """(F `[groups, rank, K]`, L `[groups, outputs, rank]`)."""
        basis = self._basis[..., :rank]
        if self._root is None:
            return _t(basis) @ self.weight, basis
        wide = self.weight @ self._root @ basis
        # R^-T V, transposed; R is triangular, and at full rank L F = W to rounding.
        return _t(np.linalg.solve(_t(self._root), basis)), wide


def spatial(weight: Array, kernel: tuple[int, int], rank: int, h: Array | None) -> tuple[Array, Array]:
    """A k x l kernel as k x 1 followed by 1 x l (Jaderberg et al. 2014, scheme 2).

    The matrix of (input channel, row) by (output, column) gets its truncated SVD, weighed on the left by the
    second moments of (input channel, row) averaged over columns; the last layer is refitted exactly.

    Returns:
        (the first layer P `[rank, channels, k]`, features `[1, rank * l, K]` in the order (rank, column)).
    """
    _, outputs, depth = weight.shape
    k, width = kernel
    channels = depth // (k * width)
    tensor = weight[0].reshape(outputs, channels, k, width)
    matrix = tensor.transpose(1, 2, 0, 3).reshape(channels * k, outputs * width).astype(np.float64)
    root = np.eye(channels * k)
    if h is not None:
        taps = h[0].reshape(channels * k, width, channels * k, width)
        root = solve.upper_factor(solve.damped(np.einsum("awbw->ab", taps) / width, 1e-6))
    _, vectors = np.linalg.eigh(root.T @ matrix @ matrix.T @ root)
    basis = vectors[:, ::-1][:, :rank]
    # R^T M ~ V V^T R^T M, so M ~ (R^-T V)(V^T R^T M); the inner layer applies (R^-T V)^T.
    first = np.linalg.solve(root.T, basis).T.reshape(rank, channels, k)
    features = np.einsum("rih,wv->rwihv", first, np.eye(width)).reshape(1, rank * width, depth)
    return first, features


def tucker_inputs(weight: Array, channels: int, h: Array | None) -> Array:
    """Directions of the input channels, most important first, as rows `[channels, channels]`.

    The first r of them are the first layer of Tucker-2 (Kim et al. 2016): left singular vectors of the
    unfolding along the input channels, weighed by the second moments R R^T of the channels, averaged over
    taps: W R ~ W R U U^T, so the layer is U^T R^-1.
    """
    outputs = weight.shape[1]
    taps = weight.shape[2] // channels
    unfolded = weight[0].reshape(outputs, channels, taps).transpose(1, 0, 2).reshape(channels, -1)
    root = np.eye(channels)
    if h is not None:
        moments = np.einsum("atbt->ab", h[0].reshape(channels, taps, channels, taps)) / taps
        root = solve.upper_factor(solve.damped(moments, 1e-6))
    inner = root.T @ unfolded.astype(np.float64)
    _, vectors = np.linalg.eigh(inner @ inner.T)
    return np.linalg.solve(root.T, vectors[:, ::-1]).T


def tucker_features(first: Array, taps: int) -> Array:
    """F `[1, rank * taps, K]` of a 1x1 layer `[rank, channels]` in front of a kernel of `taps`."""
    rank, channels = first.shape
    spread = np.einsum("ri,tu->rtiu", first, np.eye(taps))
    return np.asarray(spread.reshape(1, rank * taps, channels * taps))


class Tucker:
    """Tucker-2 for a given number of input directions, and any number of output directions.

    Given the first layer, core and last layer are a low-rank problem in the features z, solved exactly.
    `rounds` times the input directions are found again for the outputs that `outputs_kept` directions hold
    (HOOI), and kept if that is better. `errors` has the relative cost by the number of output directions.
    """

    def __init__(
        self,
        weight: Array,
        channels: int,
        rank: int,
        h: Array | None,
        *,
        outputs_kept: int | None = None,
        rounds: int = 1,
    ) -> None:
        self._weight, self._channels, self._h = weight, channels, h
        self.taps = weight.shape[2] // channels
        self.total = cost(weight, h)
        outputs = weight.shape[1]
        kept = outputs if outputs_kept is None else outputs_kept
        self.first = tucker_inputs(weight, channels, h)[:rank]
        self.whole, self.inner, self.errors = self._solved(self.first)
        for _ in range(rounds if kept < outputs else 0):
            kept = min(kept, self.inner.full)
            features, last = self.inner.at(kept)
            part = last @ features @ tucker_features(self.first, self.taps)
            first = tucker_inputs(part, channels, h)[:rank]
            whole, inner, errors = self._solved(first)
            if errors[kept] >= self.errors[kept]:
                break
            self.first, self.whole, self.inner, self.errors = first, whole, inner, errors

    def _solved(self, first: Array) -> tuple[Array, LowRank, Array]:
        """For a first layer: all behind it as one, its approximations, and their relative costs by rank."""
        features = tucker_features(first, self.taps)
        whole = best_last(self._weight, features, self._h)
        lost = cost(self._weight - whole @ features, self._h)
        weighed = features if self._h is None else features @ self._h
        inner = LowRank(whole, solve.damped(weighed @ _t(features), _TINY))
        rest = inner.errors * inner.total
        return whole, inner, (lost + rest) / self.total if self.total > 0 else np.zeros_like(rest)

    def at(self, rank: int) -> tuple[Array, Array]:
        """(core `[rank, rank of the inputs, taps]`, L `[1, outputs, rank]`)."""
        core, last = self.inner.at(rank)
        return core[0].reshape(rank, len(self.first), self.taps), last


def _t(array: Array) -> Array:
    return np.swapaxes(array, -1, -2)
