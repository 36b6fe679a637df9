"""A streaming histogram whose bins are multiples of a power of two, so that ranges grow and histograms merge
exactly."""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import Any

import numpy as np

Array = np.ndarray[Any, np.dtype[Any]]
BINS = 2048
_LEAST_EXPONENT = -126
# Of the moving averages: the mean of the first hundred parts, then a window of about as many.
_PACE = 0.01


@dataclass
class Histogram:
    """Counts of values in bins `[i w, (i + 1) w)`, with w a power of two and about `BINS` bins.

    When a value falls outside, w doubles and neighbours merge: bin i goes to floor(i / 2), which loses
    nothing but resolution, whatever the order of the data. So histograms of parts of the data merge to that
    of the whole.

    Attributes:
        low, high: exact extremes of all the data, which `add` may be told to have been seen elsewhere than in
            its sample.
        moving: averages of the extremes of the parts that were added, which single outliers hardly move.
        parts: how many parts there were.
        width: bin width; 0 until the first value that is not zero.
        first: index of `counts[0]`.
        counts: float64, so that 2^53 values can be counted.
    """

    low: float = math.inf
    high: float = -math.inf
    width: float = 0.0
    first: int = 0
    counts: Array = field(default_factory=lambda: np.zeros(1))
    moving: tuple[float, float] = (0.0, 0.0)
    parts: int = 0

    def add(self, sample: Array, low: float | None = None, high: float | None = None) -> None:
        """Count `sample`; `low` and `high` are the extremes of the data that it was drawn from, which the
        caller vouches for."""
        flat = np.ascontiguousarray(sample, dtype=np.float32).reshape(-1)
        if not flat.size:
            return
        low, high = float(flat.min()) if low is None else low, float(flat.max()) if high is None else high
        self._average((low, high), 1)
        self.low, self.high = min(self.low, low), max(self.high, high)
        self._cover(min(self.low, 0.0), max(self.high, 0.0))
        if self.width == 0.0:
            self.counts[0] += flat.size
            return
        # Exact, since w is a power of two; subtracting `first` before the floor would round what lies next to
        # an edge.
        scaled = flat * np.float32(1 / self.width)
        if self.low < 0.0:
            np.floor(scaled, out=scaled)
        index = scaled.astype(np.int32)  # what is not negative needs no floor
        if self.first:
            index -= self.first
        self.counts += np.bincount(index, minlength=len(self.counts))

    def _average(self, ends: tuple[float, float], parts: int) -> None:
        """Let the averages move towards `ends`, by the share of the new parts, at least by `_PACE` a part."""
        self.parts += parts
        share = max(parts / max(1, self.parts), 1 - (1 - _PACE) ** parts)
        self.moving = (
            self.moving[0] + share * (ends[0] - self.moving[0]),
            self.moving[1] + share * (ends[1] - self.moving[1]),
        )

    def merge(self, other: Histogram) -> None:
        """Take in the counts of `other`, which stays as it is."""
        if other.parts:
            self._average(other.moving, other.parts)
        low, high = min(self.low, other.low), max(self.high, other.high)
        if other.width == 0.0:
            self.low, self.high = low, high
            if self.width == 0.0:
                self.counts[0] += other.counts[0]
            else:
                self.counts[-self.first] += other.counts[0]
            return
        theirs = Histogram(other.low, other.high, other.width, other.first, other.counts.copy())
        mine = self
        mine._cover(min(low, 0.0), max(high, 0.0))
        theirs._cover(min(low, 0.0), max(high, 0.0))
        while theirs.width < mine.width:
            theirs._double()
        while mine.width < theirs.width:
            mine._double()
        start = theirs.first - mine.first
        if start < 0 or start + len(theirs.counts) > len(mine.counts):
            first = min(mine.first, theirs.first)
            end = max(mine.first + len(mine.counts), theirs.first + len(theirs.counts))
            mine._extend(first, end)
            start = theirs.first - mine.first
        mine.counts[start : start + len(theirs.counts)] += theirs.counts
        self.low, self.high = low, high

    @property
    def total(self) -> float:
        return float(self.counts.sum())

    def centers(self) -> Array:
        """Middle of each bin; zero itself for the bin that starts at zero of data that is never negative
        (ReLU)."""
        if self.width == 0.0:
            return np.zeros(1)
        middle = (self.first + np.arange(len(self.counts)) + 0.5) * self.width
        if self.low >= 0.0 and self.first == 0:
            middle[0] = 0.0
        return np.clip(middle, self.low, self.high)

    def _cover(self, low: float, high: float) -> None:
        if high == low:
            return
        if self.width == 0.0:
            zeros = self.counts[0]
            # The least width that is enough, as growth from nothing would give it; 1 / w must be a float32.
            exponent = math.ceil(math.log2((high - low) / BINS)) - 1
            self.width = 2.0 ** max(exponent, _LEAST_EXPONENT)
            while math.floor(high / self.width) + 1 - math.floor(low / self.width) > BINS:
                self.width *= 2
            self.first = math.floor(low / self.width)
            self.counts = np.zeros(math.floor(high / self.width) + 1 - self.first)
            self.counts[-self.first] = zeros
            return
        while math.floor(high / self.width) + 1 - math.floor(low / self.width) > BINS:
            self._double()
        first = min(self.first, math.floor(low / self.width))
        end = max(self.first + len(self.counts), math.floor(high / self.width) + 1)
        self._extend(first, end)

    def _extend(self, first: int, end: int) -> None:
        if first == self.first and end == self.first + len(self.counts):
            return
        grown = np.zeros(end - first)
        at = self.first - first
        grown[at : at + len(self.counts)] = self.counts
        self.first, self.counts = first, grown

    def _double(self) -> None:
        counts = self.counts
        if self.first % 2:  # an odd start belongs to the bin that begins one earlier
            counts = np.concatenate([[0.0], counts])
        if len(counts) % 2:
            counts = np.concatenate([counts, [0.0]])
        self.first //= 2
        self.counts = counts.reshape(-1, 2).sum(axis=1)
        self.width *= 2
