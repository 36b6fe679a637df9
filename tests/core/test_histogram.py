"""Histograms: exact merging, growth in any order, exact extremes."""

from __future__ import annotations

import copy
import math
from functools import reduce
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from attar.histogram import BINS, Histogram

Array = np.ndarray[Any, Any]
FLOAT32 = np.finfo(np.float32)
# Values below 2^-149 of a bin's width cannot be told from zero in float32; these are not.
moderate = st.floats(-1e6, 1e6, width=32, allow_subnormal=False)
samples = st.lists(moderate, max_size=12)
exponents = st.sampled_from([0, 0, 0, -105, -30, 30, 105])


def of(*parts: Any) -> Histogram:
    histogram = Histogram()
    for part in parts:
        histogram.add(np.asarray(part, np.float32))
    return histogram


def merged(*parts: Histogram) -> Histogram:
    def two(left: Histogram, right: Histogram) -> Histogram:
        left = copy.deepcopy(left)
        left.merge(right)
        return left

    return reduce(two, parts)


def content(histogram: Histogram) -> tuple[float, float, float, dict[int, float]]:
    """All that matters: extremes, bin width, and the counts of the bins that are not empty."""
    counts = {histogram.first + i: float(n) for i, n in enumerate(histogram.counts) if n}
    return histogram.low, histogram.high, histogram.width, counts


def expected(data: Array, width: float) -> dict[int, float]:
    """The definition: value x is in bin floor(x / width)."""
    found: dict[int, float] = {}
    for x in data.astype(np.float64):
        index = math.floor(x / width) if width else 0
        found[index] = found.get(index, 0) + 1
    return found


@given(samples, samples, samples, exponents)
@settings(max_examples=200)
def test_order_and_grouping_do_not_matter(
    a: list[float], b: list[float], c: list[float], exponent: int
) -> None:
    a, b, c = ([x * 2.0**exponent if abs(x) > 1 else x * 0.0 for x in part] for part in (a, b, c))
    whole = content(of(a + b + c))
    assert content(of(a, b, c)) == whole
    assert content(of(c, a, b)) == whole
    x, y, z = of(a), of(b), of(c)
    assert content(merged(merged(x, y), z)) == whole
    assert content(merged(x, merged(y, z))) == whole
    assert content(merged(z, y, x)) == whole
    assert content(x) == content(of(a)), "the parts stay as they are"


@given(st.lists(moderate, min_size=1, max_size=50))
@settings(max_examples=200)
def test_counts_are_by_the_definition(data: list[float]) -> None:
    array = np.array(data, np.float32)
    low, high, width, counts = content(of(array))
    assert (low, high) == (array.min(), array.max())
    assert counts == expected(array, width)
    if width:
        assert math.frexp(width)[0] == 0.5, "a power of two"
        assert len(of(array).counts) <= BINS + 1


def test_resolution_is_a_thousandth_of_the_range_or_better() -> None:
    for scale in (1e-30, 1e-3, 1.0, 777.0, 1e30):
        data = np.linspace(-scale, 2 * scale, 1000, dtype=np.float32)
        assert of(data).width <= 3 * scale / (BINS // 2 - 2)


@pytest.mark.parametrize("data", [[0.0], [0.0, -0.0, 0.0], []])
def test_nothing_but_zeros(data: list[float]) -> None:
    histogram = of(data, data)
    assert histogram.total == 2 * len(data)
    assert histogram.centers().tolist() == [0.0]
    other = of([1.0, -2.0, 3.0])
    assert content(merged(histogram, other))[3] == content(of(data, data, [1.0, -2.0, 3.0]))[3]
    assert content(merged(other, histogram)) == content(merged(histogram, other))


@pytest.mark.parametrize(
    "data",
    [
        [float(FLOAT32.max), -float(FLOAT32.max)],
        [float(FLOAT32.tiny), 0.0],
        [1e-45, 3e-45, -1e-45],
        [1e-40, 2e-40],
        [float(FLOAT32.max), 1e-45],
        [-1e-30, -1.0],
    ],
)
def test_float32_extremes(data: list[float]) -> None:
    array = np.array(data, np.float32)
    histogram = of(array)
    assert histogram.total == len(data)
    assert (histogram.low, histogram.high) == (array.min(), array.max())
    assert np.isfinite(histogram.centers()).all()
    assert np.isfinite(histogram.width)
    assert content(of(*array[:, None]))[3] == content(histogram)[3]


def test_a_negative_value_next_to_zero_is_in_the_bin_below_zero() -> None:
    histogram = of([-1000.0, 1000.0, -1e-6])
    assert content(histogram)[3][-1] == 1.0


def test_extremes_may_be_seen_elsewhere_than_in_the_sample() -> None:
    histogram = Histogram()
    histogram.add(np.array([1.0, 2.0], np.float32), low=-8.0, high=100.0)
    assert (histogram.low, histogram.high, histogram.total) == (-8.0, 100.0, 2.0)
    assert histogram.first * histogram.width <= -8.0
    assert (histogram.first + len(histogram.counts)) * histogram.width > 100.0


@given(st.lists(moderate, min_size=1, max_size=30))
def test_centers_are_within_half_a_bin_of_the_data(data: list[float]) -> None:
    array = np.array(data, np.float32)
    histogram = of(array)
    centers = histogram.centers()
    assert len(centers) == len(histogram.counts)
    assert centers.min() >= histogram.low
    assert centers.max() <= histogram.high
    for x in array:
        nearest = np.abs(centers[histogram.counts > 0] - x).min()
        assert nearest <= histogram.width * (1 if array.min() >= 0 else 0.5) + 1e-12


def test_total_counts_every_element_over_many_growths() -> None:
    rng = np.random.default_rng(0)
    parts = [rng.standard_normal(500) * 4.0**k for k in range(-10, 10)]
    histogram = of(*parts)
    array = np.concatenate(parts).astype(np.float32)
    assert histogram.total == array.size
    assert content(histogram)[3] == expected(array, histogram.width)
