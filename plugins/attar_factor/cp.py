"""CP decomposition: a tensor as a sum of few outer products, by alternating least squares."""

from __future__ import annotations

import numpy as np

from attar import solve
from attar_factor.decompose import Array

Factors = tuple[Array, Array, Array]
_STARTS, _SHORT = 4, 12


def cp(tensor: Array, rank: int, rng: np.random.Generator, *, rounds: int = 200) -> Factors:
    """Factors A `[I, R]`, B `[J, R]`, C `[T, R]` with tensor_ijt ~ sum over r of A_ir B_jr C_tr.

    Alternating least squares (Carroll and Chang 1970; Harshman 1970) from several starts, of which the best
    after a few rounds goes on. One start is the simultaneous diagonalization of two random slices (Leurgans
    et al. 1993), which is exact for a tensor of that rank as long as R is at most I and J; the others are
    singular vectors and random. A small ridge that fades keeps the factors from growing against each other.
    The columns of A and B have unit length.
    """
    tensor = tensor.astype(np.float64)
    whole = float(np.sum(tensor**2))
    if whole == 0.0:
        return tuple(np.zeros((n, rank)) for n in tensor.shape)  # type: ignore[return-value]
    starts = [_diagonalized(tensor, rank, rng), _singular(tensor, rank, rng)]
    while len(starts) < _STARTS:
        starts.append(_random(tensor, rank, rng))
    tried = [_alternate(tensor, start, _SHORT, whole) for start in starts]
    best = min(tried, key=lambda found: found[1])
    return _alternate(tensor, best[0], rounds, whole)[0]


def error(tensor: Array, factors: Factors) -> float:
    """Squared error of the decomposition."""
    a, b, c = factors
    return float(np.sum((tensor - np.einsum("ir,jr,tr->ijt", a, b, c)) ** 2))


def _alternate(tensor: Array, start: Factors, rounds: int, whole: float) -> tuple[Factors, float]:
    factors: list[Array] = [f.copy() for f in start]
    unfolded = [
        np.ascontiguousarray(np.moveaxis(tensor, axis, 0)).reshape(tensor.shape[axis], -1)
        for axis in range(3)
    ]
    last = np.inf
    for number in range(rounds):
        ridge = 1e-4 * 0.5**number + 1e-13
        for axis in range(3):
            one, two = (factors[i] for i in range(3) if i != axis)
            inner = (one.T @ one) * (two.T @ two)
            inner = inner + ridge * max(float(np.trace(inner)) / len(inner), 1e-300) * np.eye(len(inner))
            right = unfolded[axis] @ (one[:, None, :] * two[None, :, :]).reshape(-1, one.shape[1])
            factors[axis] = np.linalg.solve(inner, right.T).T
        for axis in (0, 1):  # what the columns of A and B are too long or too short goes to C
            length = np.linalg.norm(factors[axis], axis=0)
            length = np.where(length > 0, length, 1.0)
            factors[axis] = factors[axis] / length
            factors[2] = factors[2] * length
        if number % 4 == 3:
            now = error(tensor, (factors[0], factors[1], factors[2]))
            if now < 1e-24 * whole or (number > _SHORT and last - now < 1e-4 * now):
                last = min(now, last)
                break
            last = now
    found = factors[0], factors[1], factors[2]
    return found, error(tensor, found)


def _diagonalized(tensor: Array, rank: int, rng: np.random.Generator) -> Factors:
    """With slices M_k = A diag(C^T k) B^T of two random mixtures k, M_1 M_2^+ has eigenvectors A."""
    _, columns, taps = tensor.shape
    left, right = (_leading(tensor, axis)[:, :rank] for axis in (0, 1))
    if left.shape[1] < rank or right.shape[1] < rank:
        return _random(tensor, rank, rng)
    small = np.einsum("ijt,ia,jb->abt", tensor, left, right)
    one, two = (small @ rng.standard_normal(taps) for _ in range(2))
    _, vectors = np.linalg.eig(one @ np.linalg.pinv(two))
    a = left @ vectors.real
    inner = np.linalg.pinv(a)
    b = np.empty((columns, rank))
    c = np.empty((taps, rank))
    for r in range(rank):  # of each component: the rank-one matrix that A's dual vector picks out
        u, s, v = np.linalg.svd(np.einsum("i,ijt->jt", inner[r], tensor), full_matrices=False)
        b[:, r], c[:, r] = u[:, 0] * s[0], v[0]
    return a, b, c


def _singular(tensor: Array, rank: int, rng: np.random.Generator) -> Factors:
    factors = list(_random(tensor, rank, rng))
    for axis in range(3):
        leading = _leading(tensor, axis)[:, :rank]
        factors[axis][:, : leading.shape[1]] = leading
    return factors[0], factors[1], factors[2]


def _random(tensor: Array, rank: int, rng: np.random.Generator) -> Factors:
    a, b, c = (rng.standard_normal((n, rank)) / np.sqrt(n) for n in tensor.shape)
    return a, b, c


def _leading(tensor: Array, axis: int) -> Array:
    unfolded = np.moveaxis(tensor, axis, 0).reshape(tensor.shape[axis], -1)
    return np.linalg.eigh(unfolded @ unfolded.T)[1][:, ::-1]


def layers(
    weight: Array, channels: int, rank: int, h: Array | None, rng: np.random.Generator
) -> tuple[Array, Array, Array, Array]:
    """CP of a convolution's weight `[1, outputs, K]`, its input channels weighed by their second moments.

    Returns:
        (first 1x1 layer `[rank, channels]`, depthwise kernels `[rank, taps]`, outputs `[1, outputs, rank]`,
        features `[1, rank, K]`).
    """
    outputs, taps = weight.shape[1], weight.shape[2] // channels
    tensor = weight[0].reshape(outputs, channels, taps).astype(np.float64)
    if rank >= channels * taps:  # one component a number: exact
        first = np.repeat(np.eye(channels), taps, axis=0)
        kernels = np.tile(np.eye(taps), (channels, 1))
        last = tensor.reshape(1, outputs, -1)
    else:
        root = np.eye(channels)
        if h is not None:
            moments = np.einsum("atbt->ab", h[0].reshape(channels, taps, channels, taps)) / taps
            root = solve.upper_factor(solve.damped(moments, 1e-6))
        a, b, kernels = cp(np.einsum("oit,ij->ojt", tensor, root), rank, rng)
        # sum_r A_or B_jr C_tr approximates W R, so W ~ A (R^-T B)^T.
        first, last = np.linalg.solve(root.T, b).T, a[None]
        scale = np.linalg.norm(first, axis=1, keepdims=True)
        scale = np.where(scale > 0, scale, 1.0)
        first, kernels = first / scale, kernels.T * scale
    features = np.einsum("ri,rt->rit", first, kernels).reshape(1, len(first), channels * taps)
    return first, kernels, last, features
