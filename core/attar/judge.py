"""Judging attempts: is one slower, larger or too different from the original, and which of two is better?"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, field

import onnx_ir as ir

from attar import graph
from attar.context import Measured
from attar.evaluation import Evaluation
from attar.report import Kernel, OutputDiff, Speed, Step
from attar.runtime import Session

# Without a metric: outputs noisier than the first are worth a repair (at 15 dB classifiers lose about half a
# point), noisier than the second they are another model's.
_WANTED_SQNR = 14.0
_LEAST_SQNR = 8.0


@dataclass
class Attempt:
    """One run of the recipe with what was measured of it.

    Attributes:
        planned_from: the model that the last planning pass was given: what it calls float.
        metric_error: why the metric could not be computed, though it could be on the original; `metric` is
            then NaN.
        bundle_bytes: size as an `.attar` bundle, where a pass noted zeros or shared values on weights.
    """

    model: ir.Model
    planned_from: ir.Model
    runnable: ir.Model
    steps: list[Step]
    lowered: list[str]
    session: Session
    speed: Speed
    outputs: list[OutputDiff]
    metric: float | None
    bytes: int
    kernels: tuple[Kernel, ...]
    faults: list[str] = field(default_factory=list)
    measured: Measured | None = None
    metric_error: str = ""
    bundle_bytes: int | None = None


@dataclass(frozen=True)
class Judge:
    """What attempts are held against.

    Attributes:
        original: the model as it came.
        bytes: its size.
        metric: its value of the evaluation's metric, None without an evaluation.
        max_drop: largest loss of the metric that is accepted.
        for_size: the recipe is about size: a slower model is no fault if its file or bundle is smaller.
        for_accuracy: the recipe only trains: it is not held to be faster, and timing is noise.
        trains: the recipe trains, among other things: without an evaluation, other outputs are no fault.
        bundle_bytes: gives the original's size as an `.attar` bundle; asked for where an attempt has one.
    """

    original: ir.Model
    bytes: int
    evaluation: Evaluation | None
    metric: float | None
    max_drop: float
    for_size: bool = False
    for_accuracy: bool = False
    trains: bool = False
    bundle_bytes: Callable[[], int] = lambda: 0

    def faults(self, attempt: Attempt) -> list[str]:
        faults = []
        if self.faulty_speed(attempt) and not (self.for_size and self.smaller(attempt)):
            speed = attempt.speed
            faults.append(
                f"slower: {speed.after_ms:.3g} ms, was {speed.before_ms:.3g} ms ({speed.ratio:.2f}x)"
            )
        # A few names more or less are not a larger model.
        if attempt.bytes > self.bytes * 1.01 + 256:
            faults.append(f"larger: {attempt.bytes} bytes against {self.bytes}")
        if self._faulty_accuracy(attempt):
            faults.append(self._accuracy_fault(attempt))
        return faults

    def smaller(self, attempt: Attempt) -> bool:
        """Whether the file is smaller, or the bundle: zeros and shared values take no less room in a file."""
        if attempt.bytes < self.bytes:
            return True
        return attempt.bundle_bytes is not None and attempt.bundle_bytes < self.bundle_bytes()

    def faulty_speed(self, attempt: Attempt) -> bool:
        if self.for_accuracy:
            return False
        # The interval tells slower from noise; beyond 2 % the median speaks for itself.
        return attempt.speed.ratio > 1.0 and (attempt.speed.low > 1.0 or attempt.speed.ratio > 1.02)

    def _faulty_accuracy(self, attempt: Attempt) -> bool:
        if self.evaluation is not None:
            drop = self._drop(attempt)
            return drop == math.inf or drop > self.max_drop + 1e-9  # 0.9 - 0.88 exceeds 0.02 in binary
        return not self.trains and self._nearness(attempt) < _LEAST_SQNR

    def doubtful(self, attempt: Attempt) -> bool:
        """Whether the outputs are far enough from the original's to try something else."""
        if self.evaluation is not None:
            return self._faulty_accuracy(attempt)
        if self.trains:
            return False
        # Who asks for few bits wants them, as long as it stays the same model.
        return self._nearness(attempt) < (_LEAST_SQNR if self.for_size else _WANTED_SQNR)

    def _nearness(self, attempt: Attempt) -> float:
        return min((d.sqnr_db for d in attempt.outputs), default=math.inf)

    def _accuracy_fault(self, attempt: Attempt) -> str:
        if attempt.metric_error:
            return f"its metric cannot be computed: {attempt.metric_error}"
        if self.evaluation is not None:
            return (
                f"{self.evaluation.name} goes from {self.metric:.4g} to {attempt.metric:.4g}, "
                f"more than max_drop = {self.max_drop:g}"
            )
        worst = min(attempt.outputs, key=lambda d: d.sqnr_db)
        return f"output {worst.name!r} has an SQNR of {worst.sqnr_db:.1f} dB, below {_LEAST_SQNR:g} dB"

    def _drop(self, attempt: Attempt) -> float:
        evaluation = self.evaluation
        if evaluation is None or self.metric is None or attempt.metric is None:
            return 0.0
        drop = evaluation.drop(self.metric, attempt.metric)
        return drop if math.isfinite(drop) else math.inf

    def worse(self, one: Attempt, other: Attempt) -> bool:
        """Whether `one` is no improvement on `other`: fewer faults win, then accuracy if it is at fault, then
        speed."""
        if all(s.refused for s in one.steps if not s.implied):
            return True
        if len(one.faults) != len(other.faults):
            return len(one.faults) > len(other.faults)
        if self.doubtful(one) and self.doubtful(other):
            if self.evaluation is not None:
                return self._drop(one) >= self._drop(other)
            return self._nearness(one) <= self._nearness(other)
        if self.doubtful(one) != self.doubtful(other):
            return self.doubtful(one)
        if self.for_size:
            if one.bundle_bytes is not None and other.bundle_bytes is not None:
                return one.bundle_bytes >= other.bundle_bytes
            return one.bytes >= other.bytes
        return one.speed.ratio >= other.speed.ratio

    def acted(self, attempt: Attempt) -> bool:
        """Whether the recipe came to more than notes on the model."""
        return len({graph.fingerprint(m, annotations=False) for m in (self.original, attempt.model)}) == 2
