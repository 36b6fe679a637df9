"""Observers against what they promise, computed on the raw data."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from attar.histogram import Histogram
from attar_quantize.observers import OBSERVERS, minmax, mse, percentile

Array = np.ndarray[Any, Any]
RNG = np.random.default_rng(11)
DATA: dict[str, Array] = {
    "normal": RNG.standard_normal(20000),
    "shifted": RNG.standard_normal(20000) * 0.5 + 3,
    "student": RNG.standard_t(3, 20000),
    "laplace": RNG.laplace(size=20000),
    "relu": np.maximum(RNG.standard_normal(20000), 0),
    "heavy relu": np.maximum(RNG.standard_t(2.5, 20000), 0),
    "outlier": np.concatenate([RNG.standard_normal(20000), [300.0]]),
    "negative": -RNG.gamma(2.0, size=20000),
    "uniform": RNG.uniform(-1, 2, 20000),
    "two values": RNG.choice([-1.0, 4.0], 5000),
    "tiny": RNG.standard_normal(20000) * 1e-20,
    "huge": RNG.standard_normal(20000) * 1e30,
}

COARSE = {"outlier", "two values"}


def of(data: Array) -> Histogram:
    histogram = Histogram()
    for part in np.array_split(data.astype(np.float32), 4):
        histogram.add(part)
    return histogram


def error(data: Array, low: float, high: float, levels: int) -> float:
    """The squared error of really quantizing the data to `levels` codes over [low, high]."""
    step = (high - low) / (levels - 1)
    if step == 0:
        return float(np.mean(data**2))
    zero = np.clip(np.rint(-low / step), 0, levels - 1)
    codes = np.clip(np.rint(data / step) + zero, 0, levels - 1)
    return float(np.mean(((codes - zero) * step - data) ** 2))


@pytest.mark.parametrize("name", DATA)
def test_minmax_is_the_extremes_and_zero(name: str) -> None:
    data = DATA[name].astype(np.float32)
    assert minmax(of(data), 256) == (min(data.min(), 0), max(data.max(), 0))


@pytest.mark.parametrize("name", DATA)
def test_percentile_is_that_of_the_data_within_two_bins(name: str) -> None:
    data = DATA[name].astype(np.float32)
    histogram = of(data)
    low, high = percentile(histogram, 256)
    tails = np.percentile(data.astype(np.float64), [0.005, 99.995], method="inverted_cdf")
    for got, want, extreme in ((low, min(tails[0], 0), data.min()), (high, max(tails[1], 0), data.max())):
        assert abs(got - want) <= 2 * histogram.width
        assert abs(got) <= max(abs(extreme), 0) + 1e-30
    outside = np.mean((data < low) | (data > high))
    assert outside <= 0.0001 + 2 / len(data)


@pytest.mark.parametrize("levels", [256, 128])
@pytest.mark.parametrize("name", DATA)
def test_mse_is_the_best_range_on_raw_data(name: str, levels: int) -> None:
    data = DATA[name].astype(np.float32).astype(np.float64)
    low, high = mse(of(data), levels)
    assert data.min() <= low <= 0 or low == 0
    assert 0 <= high <= data.max() or high == 0
    # The extremes count once more: the sample may have missed them.
    seen = np.concatenate([data, [data.min(), data.max()]])
    lows = np.linspace(0, min(data.min(), 0), 41) if data.min() < 0 else np.zeros(1)
    highs = np.linspace(0, max(data.max(), 0), 41) if data.max() > 0 else np.zeros(1)
    best = min(error(seen, a, b, levels) for a in lows for b in highs if b > a)
    if name in COARSE:
        # Rounding errors are not uniform where a step is wider than the data, or the data is two points.
        assert error(seen, low, high, levels) <= max(2 * best, 1e-3 * np.mean(data**2))
    else:
        assert error(seen, low, high, levels) <= best * 1.01


def test_mse_clips_outliers_and_keeps_what_matters() -> None:
    low, high = mse(of(DATA["outlier"]), 256)
    assert high < 300
    assert error(DATA["outlier"], low, high, 256) < error(
        DATA["outlier"], *minmax(of(DATA["outlier"]), 256), 256
    )
    low, high = mse(of(DATA["uniform"]), 256)
    assert low == pytest.approx(-1, abs=0.05)
    assert high == pytest.approx(2, abs=0.05)


@pytest.mark.parametrize("observer", OBSERVERS.values(), ids=OBSERVERS.keys())
@pytest.mark.parametrize("constant", [0.0, 5.0, -5.0, 1e-45, 3e38, -3e38])
def test_constant_data_is_covered(observer: Any, constant: float) -> None:
    low, high = observer(of(np.full(100, constant)), 256)
    assert np.isfinite([low, high]).all()
    assert low <= 0 <= high
    if abs(constant) > 1e-30:
        # Within a step: the constant is the only thing there is.
        assert low - (high - low) / 255 <= np.float32(constant) <= high + (high - low) / 255


@pytest.mark.parametrize("observer", OBSERVERS.values(), ids=OBSERVERS.keys())
@given(
    data=st.lists(st.floats(width=32, allow_nan=False, allow_infinity=False), min_size=1, max_size=20),
    levels=st.sampled_from([16, 127, 128, 255, 256]),
)
@settings(max_examples=40, deadline=None)
def test_no_observer_returns_nan_or_leaves_the_extremes(
    observer: Any, data: list[float], levels: int
) -> None:
    histogram = of(np.array(data, np.float32))
    low, high = observer(histogram, levels)
    assert np.isfinite([low, high]).all()
    assert min(histogram.low, 0) <= low <= 0 <= high <= max(histogram.high, 0)


@pytest.mark.parametrize("observer", OBSERVERS.values(), ids=OBSERVERS.keys())
def test_extremes_that_the_sample_missed_count(observer: Any) -> None:
    histogram = Histogram()
    histogram.add(np.zeros(1000, np.float32), low=-2.0, high=2.0)
    low, high = observer(histogram, 256)
    assert np.isfinite([low, high]).all()
    assert low <= high


def test_all_three_are_offered_by_the_plugin() -> None:
    from attar.registry import default_registry

    offered = default_registry().observers
    assert {name: offered[name] for name in OBSERVERS} == OBSERVERS
    assert set(OBSERVERS) >= {"minmax", "percentile", "mse"}


def brute_force_entropy(histogram: Histogram, levels: int) -> tuple[float, float]:
    """The same search, bin by bin, in plain Python."""
    counts = list(histogram.counts)
    if histogram.low >= 0 and histogram.first == 0:
        counts[0] = 0.0
    low, high = min(histogram.low, 0.0), max(histogram.high, 0.0)
    found = []
    for share in np.linspace(1.0, 0.05, 96):
        a = int(np.floor(low * share / histogram.width)) - histogram.first
        b = int(np.ceil(high * share / histogram.width)) - histogram.first
        if b - a < levels:
            break
        a, b = max(a, 0), min(b, len(counts))
        inside = counts[a:b]
        p = list(inside)
        p[0] += sum(counts[:a])
        p[-1] += sum(counts[b:])
        groups: dict[int, list[int]] = {}
        for i in range(len(inside)):
            groups.setdefault(i * levels // len(inside), []).append(i)
        q = [0.0] * len(inside)
        for members in groups.values():
            busy = [i for i in members if inside[i] > 0]
            for i in busy:
                q[i] = sum(inside[j] for j in members) / len(busy)
        total, kept = sum(p), sum(q)
        if total and kept:
            kl = sum(
                x / total * np.log((x / total) / max(y / kept, 1e-9)) for x, y in zip(p, q, strict=True) if x
            )
            found.append((kl, -share, low * share, high * share))
    return min(found)[2:] if found else (low, high)


@pytest.mark.parametrize("relu", [False, True])
def test_entropy_is_the_least_divergence(relu: bool) -> None:
    rng = np.random.default_rng(0)
    data = np.concatenate([rng.normal(size=20_000), rng.normal(size=20) * 12]).astype(np.float32)
    histogram = of(np.maximum(data, 0) if relu else data)
    found = OBSERVERS["entropy"](histogram, 256)
    assert found == pytest.approx(brute_force_entropy(histogram, 256), rel=1e-9)
    assert found[1] < 0.9 * histogram.high  # a few values far out do not set the range
