"""Measuring two models against each other: time interleaved in one run, outputs on the same inputs, size on
disk."""

from __future__ import annotations

import math
import time
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np
import onnx_ir as ir

from attar import graph
from attar.errors import InputError, check_whole
from attar.progress import Progress, Silent
from attar.report import Kernel, OutputDiff, Snapshot, Speed
from attar.runtime import Session

Array = np.ndarray[Any, np.dtype[Any]]
Feeds = Mapping[str, Array]


def interleaved(
    before: Session, after: Session, feeds: Feeds, *, threads: int, runs: int = 60, seconds: float = 6.0
) -> Speed:
    """Time two sessions in turn, before after before after ..., so that drift of the machine falls on both.

    The quotient of neighbours is taken pair by pair; its median is the answer and its order statistics give
    the interval (binomial, 95 %). Stops after `runs` pairs, or earlier when `seconds` have gone and 10 pairs
    are there.

    Args:
        feeds: inputs of one run, batch included.

    Raises:
        InputError: `runs` is no positive whole number.
    """
    check_whole("runs", runs, least=1)
    for session in (before, after):
        for _ in range(3):
            session.run(feeds)
    first: list[float] = []
    second: list[float] = []
    started = time.perf_counter()
    while len(first) < runs and (len(first) < 10 or time.perf_counter() - started < seconds):
        # The order within a pair alternates: what runs second finds the caches of the other.
        pair = [(before, first), (after, second)]
        for session, times in pair if len(first) % 2 == 0 else reversed(pair):
            start = time.perf_counter()
            session.run(feeds)
            times.append((time.perf_counter() - start) * 1000)
    ratios = np.sort(np.array(second) / np.array(first))
    n = len(ratios)
    spread = 0.98 * math.sqrt(n)  # 1.96 sqrt(n p (1 - p)) with p = 1/2
    low = ratios[max(0, math.floor(n / 2 - spread))]
    high = ratios[min(n - 1, math.ceil(n / 2 + spread))]
    shapes = {name: tuple(array.shape) for name, array in feeds.items()}
    return Speed(
        float(np.median(first)), float(np.median(second)), float(np.median(ratios)), float(low), float(high),
        n, threads, shapes,
    )  # fmt: skip


def latency(session: Session, feeds: Feeds, *, runs: int = 30) -> float:
    """Median milliseconds of one run, after warming up.

    Raises:
        InputError: `runs` is no positive whole number.
    """
    check_whole("runs", runs, least=1)
    for _ in range(3):
        session.run(feeds)
    times = []
    for _ in range(runs):
        start = time.perf_counter()
        session.run(feeds)
        times.append((time.perf_counter() - start) * 1000)
    return float(np.median(times))


class _Difference:
    """Running difference of one output; sums in float64."""

    def __init__(self, name: str) -> None:
        self.name = name
        self.noise = self.signal = self.largest = self.reach = 0.0
        self.rows = self.same = self.samples = 0
        self.integer = False

    def add(self, before: Array, after: Array) -> None:
        self.samples += before.shape[0] if before.ndim else 1
        if before.shape != after.shape:
            # Shapes that depend on data (detections, non-zero elements) may differ: nothing of it agrees.
            power = float((before.astype(np.float64) ** 2).sum())
            self.signal, self.noise = self.signal + power, self.noise + max(power, 1.0)
            self.largest = self.reach = max(self.reach, float(np.abs(before).max(initial=0.0)))
            self.rows += math.prod(before.shape[:-1]) if before.ndim >= 2 else 0
            return
        if not before.size:
            return
        x, y = before.astype(np.float64), after.astype(np.float64)
        # Where the original is infinite (masked scores) or NaN, the same says nothing; else it is all noise.
        same = ~np.isfinite(x) & ((x == y) | (np.isnan(x) & np.isnan(y)))
        x, y = (np.where(same, 0.0, a) for a in (x, y)) if same.any() else (x, y)
        self.noise += float(((x - y) ** 2).sum())
        self.signal += float((x**2).sum())
        self.largest = max(self.largest, float(np.abs(x - y).max()))
        self.reach = max(self.reach, float(np.abs(x).max()))
        self.integer = not np.issubdtype(before.dtype, np.floating)
        if before.ndim >= 2 and before.shape[-1] >= 2 and not self.integer:
            self.rows += math.prod(before.shape[:-1])
            self.same += int((before.argmax(-1) == after.argmax(-1)).sum())

    def result(self) -> OutputDiff:
        if not math.isfinite(self.noise):
            sqnr = -math.inf
        elif self.noise == 0:
            sqnr = math.inf
        else:
            sqnr = 10 * math.log10(self.signal / self.noise) if self.signal > 0 else -math.inf
        relative = self.largest / self.reach if self.reach else (0.0 if self.largest == 0 else math.inf)
        agreement = self.same / self.rows if self.rows else None
        return OutputDiff(self.name, self.largest, relative, sqnr, agreement, self.samples)


def differences(
    before: Session,
    after: Session,
    batches: Iterable[Feeds],
    *,
    total: float | None = None,
    progress: Progress | None = None,
) -> list[OutputDiff]:
    """How the outputs of two sessions differ over `batches`; one batch in memory.

    Raises:
        InputError: the output names differ.
    """
    if before.outputs != after.outputs:
        raise InputError(f"outputs differ: {', '.join(before.outputs)} and {', '.join(after.outputs)}")
    sums = [_Difference(name) for name in before.outputs]
    with (progress or Silent()).task("comparing outputs", total) as task:
        for feeds in batches:
            for one, x, y in zip(sums, before.run(feeds), after.run(feeds), strict=True):
                if isinstance(x, np.ndarray) and x.dtype.kind in "fiub":
                    one.add(x, y)
            task.advance()
    return [s.result() for s in sums]


def worst_sqnr(before: Session, after: Session, batches: Iterable[Feeds]) -> float:
    """SQNR of the output that differs most, in decibels; inf where nothing differs."""
    return min((d.sqnr_db for d in differences(before, after, batches)), default=math.inf)


def snapshot(model: ir.Model, kernels: Sequence[Kernel] = (), metric: float | None = None) -> Snapshot:
    """Size and structure of a model. Bytes are those of the file that `save` would write."""
    parameters = sum(
        math.prod(v.const_value.shape.numpy())
        for g in model.graphs()
        for v in g.initializers.values()
        if v.const_value is not None and math.prod(v.const_value.shape.numpy()) > 1
    )
    return Snapshot(
        graph.saved_size(model), parameters, sum(1 for _ in graph.all_nodes(model)), tuple(kernels), metric
    )
