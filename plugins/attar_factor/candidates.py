"""What can be put in the place of a layer: every method with every rank, what it costs and what it loses."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np

from attar_factor import cp, decompose
from attar_factor.layers import Array, Layer
from attar_factor.parts import Rank

# Ranks that are tried where each one needs a factorization of its own.
_SOME, _FEW = 12, 6
# Many numbers a vector make least squares slow: then fewer ranks are tried.
_WIDE = 1500


@dataclass(frozen=True)
class Factors:
    """W ~ last * features, as layers.

    Attributes:
        weights: of all layers but the last, in their own layout.
        features: F `[groups, features, K]`, what those layers compute of a vector x.
        last: L `[groups, outputs, features]`.
    """

    weights: tuple[Array, ...]
    features: Array
    last: Array


@dataclass(frozen=True)
class Candidate:
    """One way to write a layer.

    Attributes:
        error: share of the energy of the layer's outputs that is lost.
        build: makes the factors.
    """

    method: str
    rank: Rank
    error: float
    build: Callable[[], Factors]


@dataclass(frozen=True)
class Grid:
    """Which ranks are tried: multiples of `step` and the full rank, or `only`."""

    step: int = 1
    only: int | None = None

    def ranks(self, full: int, most: int = 64) -> list[int]:
        if self.only is not None:
            return [min(self.only, full)]
        found = [*range(self.step, full, self.step), full]
        if len(found) > most:
            found = [found[i] for i in np.unique(np.linspace(0, len(found) - 1, most).round().astype(int))]
        return found


def methods_for(layer: Layer, method: str) -> tuple[tuple[str, ...], str]:
    """The methods to try, and why the one that was asked for does not apply."""
    if not layer.is_conv or math.prod(layer.kernel) == 1:
        return ("svd",), ""  # of a matrix they are all the same
    if layer.group > 1:
        if layer.rows.shape[2] == math.prod(layer.kernel):
            return (), "a depthwise convolution has nothing to factor"
        return (
            (("svd",), "")
            if method in ("auto", "svd")
            else ((), f"{method} is for convolutions of one group")
        )
    flat = len(layer.kernel) != 2 or 1 in layer.kernel
    if method == "spatial" and flat:
        return (), "spatial is for two-dimensional kernels"
    if method != "auto":
        return (method,), ""
    return ("svd", "tucker") if flat else ("svd", "spatial", "tucker"), ""


def candidates(
    layer: Layer, method: str, h: Array | None, grid: Grid, rng: np.random.Generator
) -> list[Candidate]:
    """All candidates of one method.

    Args:
        h: `[groups, K, K]`, positive definite; None: all inputs count alike.
    """
    return _METHODS[method](layer, h, grid, rng)


def _svd(layer: Layer, h: Array | None, grid: Grid, rng: np.random.Generator) -> list[Candidate]:
    exact = decompose.LowRank(layer.rows, h)

    def build(rank: int) -> Factors:
        features, last = exact.at(rank)
        shape = (-1, layer.channels, *layer.kernel) if layer.is_conv else features.shape[1:]
        return Factors((features.reshape(shape),), features, last)

    return [
        Candidate("svd", (r,), float(exact.errors[r]), lambda r=r: build(r))  # type: ignore[misc]
        for r in grid.ranks(exact.full)
    ]


def _spatial(layer: Layer, h: Array | None, grid: Grid, rng: np.random.Generator) -> list[Candidate]:
    rows, (k, width) = layer.rows, layer.kernel
    full = min(layer.channels * k, rows.shape[1] * width)
    found = []
    for r in grid.ranks(full, _some(rows)):
        first, features = decompose.spatial(rows, (k, width), r, h)
        last = decompose.best_last(rows, features, h)
        weights = (first[..., None],)
        found.append(_known(layer, "spatial", r, Factors(weights, features, last), h))
    return found


def _tucker(layer: Layer, h: Array | None, grid: Grid, rng: np.random.Generator) -> list[Candidate]:
    rows, channels = layer.rows, layer.channels
    outputs = rows.shape[1]
    taps = rows.shape[2] // channels
    found = []
    for inner in grid.ranks(channels, _some(rows) // 2):
        kept = max(1, round(outputs * inner / channels))
        tucker = decompose.Tucker(rows, channels, inner, h, outputs_kept=kept)
        first = tucker.first.reshape(inner, channels, *[1] * len(layer.kernel))
        for outer in grid.ranks(outputs, _SOME):
            if outer > tucker.inner.full:
                continue

            def build(outer: int = outer, tucker: decompose.Tucker = tucker, first: Array = first) -> Factors:
                if outer >= outputs:
                    return Factors((first,), decompose.tucker_features(tucker.first, taps), tucker.whole)
                core, last = tucker.at(outer)
                shaped = core.reshape(*core.shape[:2], *layer.kernel)
                features = np.einsum("srt,ri->sit", core, tucker.first).reshape(1, outer, -1)
                return Factors((first, shaped), features, last)

            error = float(tucker.errors[outer])
            found.append(Candidate("tucker", (inner, outer), error, build))
    return found


def _cp(layer: Layer, h: Array | None, grid: Grid, rng: np.random.Generator) -> list[Candidate]:
    rows, channels = layer.rows, layer.channels
    full = rows.shape[2]
    # As many multiplications as the layer has is as far as it can pay.
    most = full if grid.only else min(full, 1 + rows.size // (channels + rows.shape[1] + full // channels))
    found = []
    for r in grid.ranks(most, _FEW):
        first, kernels, base, features = cp.layers(rows, channels, r, h, rng)
        last = decompose.best_last(rows, features, h, base)
        axes = [1] * len(layer.kernel)
        weights = (first.reshape(r, channels, *axes), kernels.reshape(r, 1, *layer.kernel))
        found.append(_known(layer, "cp", r, Factors(weights, features, last), h))
    return found


def _known(layer: Layer, method: str, rank: int, factors: Factors, h: Array | None) -> Candidate:
    whole = decompose.cost(layer.rows, h)
    lost = decompose.cost(layer.rows - factors.last @ factors.features, h)
    share = lost / whole if whole > 0 else 0.0
    return Candidate(method, (rank,), share, lambda: factors)


def _some(rows: Array) -> int:
    return _SOME if rows.shape[2] < _WIDE else _FEW


_METHODS: dict[str, Callable[[Layer, Array | None, Grid, np.random.Generator], list[Candidate]]] = {
    "svd": _svd,
    "spatial": _spatial,
    "tucker": _tucker,
    "cp": _cp,
}
METHODS: Sequence[str] = tuple(_METHODS)
