"""The contract: no model leaves `compress` that was not loaded, run, timed and compared.

An attempt runs the recipe and proves its result. Faults are repaired in this order: plan again with kernel
times measured on this very model (the cost table was measured on others); other settings of the passes;
leaving the operators in float whose quantization alone changes the outputs most. What no repair mends is
refused: the original comes back.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Sequence
from dataclasses import replace
from typing import Literal

import onnx_ir as ir

from attar import bundle, graph, invariants
from attar.context import Context, Measured
from attar.errors import AttarError, InputError
from attar.feeds import Feeds, first_pieces
from attar.judge import Attempt, Judge
from attar.kernels import explained, names_of, noted_reasons, times_by_name
from attar.lowering import lower
from attar.measure import differences, interleaved, snapshot
from attar.passes import Pass
from attar.progress import Silent
from attar.report import Kernel, OutputDiff, Report
from attar.run import Result, run_recipe
from attar.runtime import Session
from attar.surroundings import environment

# Samples that outputs are compared on: enough for a stable SQNR, few enough to be free.
_COMPARED = 64
_SENSITIVITY_SAMPLES = 8


class Contract:
    """Runs a recipe until its result is one that can be handed over."""

    def __init__(
        self, original: ir.Model, recipe: Sequence[Pass], ctx: Context, feeds: Feeds, max_drop: float
    ) -> None:
        self._original, self._recipe, self._ctx, self._feeds = original, tuple(recipe), ctx, feeds
        self._decisions: list[str] = []
        self._session = ctx.runtime.open(original, threads=ctx.threads)
        try:
            self._session.run(feeds)
        except InputError as error:
            raise InputError(f"the model does not run on its own input: {error.message}") from error
        aims = {step.aim for step in self._recipe}  # of the steps: options may change it
        self._judge = Judge(
            original,
            graph.saved_size(original),
            ctx.evaluation,
            self._measure_metric(self._session),
            max_drop,
            for_size=ctx.target.elsewhere or ("size" in aims and "speed" not in aims),
            for_accuracy=aims == {"accuracy"},
            trains=any("training" in type(step).needs for step in self._recipe),
            bundle_bytes=functools.cache(lambda: bundle.packed_size(original)),
        )

    def fulfil(self) -> Result:
        """Attempt, repair, decide.

        Raises:
            AttarError: whatever a pass raised that is not a refusal.
        """
        best = self._try(self._recipe)
        if not self._judge.acted(best):
            return self._unchanged(best)
        plans = any(type(step).plans for step in self._recipe)
        if plans and (self._judge.faulty_speed(best) or self._regressions(best)):
            best = self._replan(best)
        if self._judge.doubtful(best):
            best = self._other_settings(best)
        if self._judge.doubtful(best):
            best = self._leave_sensitive(best)
        return self._unchanged(best) if best.faults or not self._judge.acted(best) else self._accepted(best)

    # -- one attempt -------------------------------------------------------------------------------------

    def _try(self, recipe: Sequence[Pass]) -> Attempt:
        ctx = self._ctx
        model, steps, planned_from = run_recipe(recipe, self._original, ctx, self._feeds)
        runnable, lowered = lower(model, ctx.target)
        session = ctx.runtime.open(runnable, threads=ctx.threads)
        speed = interleaved(self._session, session, self._feeds, threads=ctx.threads)
        metric, metric_error = self._metric_or_error(session)
        attempt = Attempt(
            model, planned_from, runnable, steps, lowered, session, speed,
            outputs=self._differences(session),
            metric=metric,
            bytes=graph.saved_size(runnable),
            kernels=session.kernels(),
            metric_error=metric_error,
            bundle_bytes=bundle.packed_size(model) if self._judge.for_size and _low_entropy(model) else None,
        )  # fmt: skip
        attempt.faults = self._judge.faults(attempt)
        return attempt

    def _measure_metric(self, session: Session) -> float | None:
        evaluation = self._ctx.evaluation
        return None if evaluation is None else evaluation.run(session, progress=self._ctx.progress)

    def _metric_or_error(self, session: Session) -> tuple[float | None, str]:
        """The metric of a compressed model. On the original it was a number; if it is none here, that is a
        fault of the compressed model, to be repaired or refused, and no reason to lose the run."""
        try:
            return self._measure_metric(session), ""
        except AttarError as error:
            message = error.message.splitlines()[0]
            said = f"the metric could not be computed on a compressed model: {message}"
            if said not in self._decisions:
                self._decisions.append(said)
            return math.nan, message

    def _differences(self, session: Session, samples: int = _COMPARED) -> list[OutputDiff]:
        data = self._ctx.data
        if data is None:
            return differences(self._session, session, [self._feeds])
        return differences(self._session, session, first_pieces(data, samples), progress=self._ctx.progress)

    # -- repairs -----------------------------------------------------------------------------------------

    def _regressions(self, attempt: Attempt) -> bool:
        """Whether kernels that were meant to win lose enough time that another plan may be better."""
        measured = self._measured(attempt)
        lost = 0.0
        for kernel in attempt.kernels:
            if kernel.kind == "integer":
                before, after = measured.times(names_of(kernel))
                if before and after and after > 1.15 * before:
                    lost += after - before
        return lost > 0.03 * 1000 * attempt.speed.after_ms

    def _replan(self, attempt: Attempt) -> Attempt:
        self._ctx.measured = self._measured(attempt)
        again = self._attempt_or_none(self._recipe)
        if again is None or self._judge.worse(again, attempt):
            self._ctx.measured = None
            return attempt
        self._decisions.append(
            "planned again with kernel times measured on this model: "
            f"{again.speed.ratio:.2f} of the original's time instead of {attempt.speed.ratio:.2f}"
        )
        return again

    def _measured(self, attempt: Attempt) -> Measured:
        """Kernel times of the model before the planning pass and of the attempt."""
        if attempt.measured is None:
            ctx = self._ctx
            sessions = (ctx.runtime.open(attempt.planned_from, threads=ctx.threads), attempt.session)
            attempt.measured = Measured(*(times_by_name(s.profile_of(self._feeds)) for s in sessions))
        return attempt.measured

    def _other_settings(self, attempt: Attempt) -> Attempt:
        for position, step in enumerate(self._recipe):
            for other in step.alternatives():
                recipe = (*self._recipe[:position], other, *self._recipe[position + 1 :])
                again = self._attempt_or_none(recipe)
                if again is None or self._judge.worse(again, attempt):
                    continue
                attempt = again
                self._recipe = recipe
                self._decisions.append(f"{step} became {other}: the outputs come nearer to the original")
                if not self._judge.doubtful(attempt):
                    return attempt
        return attempt

    def _leave_sensitive(self, attempt: Attempt) -> Attempt:
        """Leave the most sensitive operators in float: doubling their number until the outputs are near
        enough, then halving the last step, for a number that is not much larger than it must be."""
        if not any(type(step).plans for step in self._recipe):
            return attempt
        ranked = self._sensitivity(attempt)
        kept: dict[str, str] = {}
        too_few, count, enough = 0, min(1, len(ranked)), False
        while too_few < count:
            self._ctx.keep_float = {
                name: f"too sensitive: quantized alone it leaves an SQNR of {sqnr:.1f} dB"
                for name, sqnr in ranked[:count]
            }
            again = self._attempt_or_none(self._recipe)
            if again is not None and not self._judge.worse(again, attempt):
                attempt, kept = again, dict(self._ctx.keep_float)
            if again is not None and not self._judge.doubtful(again):
                if count - too_few <= max(1, count // 4):
                    break
                count, enough = (too_few + count) // 2, True
            elif enough:
                break
            else:
                too_few, count = count, min(2 * count, len(ranked))
        self._ctx.keep_float = kept
        if kept:
            self._decisions.append(f"left the {len(kept)} most sensitive operators in float")
        return attempt

    def _sensitivity(self, attempt: Attempt) -> list[tuple[str, float]]:
        """(value, SQNR of the outputs when it alone is quantized), the worst first."""
        ctx = self._ctx
        known = {n.name for n in graph.all_nodes(attempt.planned_from) if n.name}
        kernels = [k for k in attempt.kernels if k.kind == "integer" and k.compute]
        names = [n for k in kernels for n in names_of(k) if n in known]
        names = list(dict.fromkeys(names))
        planning = [step for step in self._recipe if type(step).plans]
        found = []
        with ctx.progress.task("measuring sensitivity", len(names)) as task:
            for name in names:
                ctx.keep_float = {other: "sensitivity" for other in names if other != name}
                try:
                    probe = replace(ctx, progress=Silent(), probing=True)
                    model, _, _ = run_recipe(planning, attempt.planned_from, probe)
                    session = ctx.runtime.open(model, threads=ctx.threads)
                    worst = min(d.sqnr_db for d in self._differences(session, _SENSITIVITY_SAMPLES))
                    found.append((name, worst))
                except AttarError:
                    pass  # alone it is not worth quantizing; then it is not what hurts
                task.advance()
        ctx.keep_float = {}
        return sorted(found, key=lambda pair: pair[1])

    def _attempt_or_none(self, recipe: Sequence[Pass]) -> Attempt | None:
        try:
            return self._try(recipe)
        except AttarError as error:
            self._decisions.append(f"a repair failed and was dropped: {error.message}")
            return None

    # -- the end -----------------------------------------------------------------------------------------

    def _accepted(self, attempt: Attempt) -> Result:
        speed = attempt.speed
        smaller = attempt.bytes / max(1, self._judge.bytes)
        faster = f"{1 / speed.ratio:.2f}x faster" if speed.high < 1 else "as fast as before"
        size = f"{smaller:.0%} of the size"
        if attempt.bundle_bytes is not None:
            whole = self._judge.bundle_bytes()
            size += f" ({attempt.bundle_bytes / max(1, self._judge.bytes):.0%} as a bundle)"
            self._decisions.append(
                f"file: {attempt.bytes} bytes, was {self._judge.bytes}; as an .attar bundle: "
                f"{attempt.bundle_bytes} bytes, was {whole}"
            )
        headline = f"{faster}, {size}"
        if self._judge.faulty_speed(attempt):  # accepted all the same: the recipe is about size
            slower = f"but {speed.ratio:.2f} times the original's time"
            if speed.low <= 1:
                slower += f" (within noise: {speed.low:.2f} to {speed.high:.2f})"
            headline = f"{size}, {slower}"
            why = "no step of the recipe aims at speed"
            if self._ctx.target.elsewhere:
                why = f"{self._ctx.target.name} is not this machine, whose times say nothing of it"
            self._decisions.append(
                f"slower, {speed.after_ms:.3g} ms instead of {speed.before_ms:.3g} ms, and handed over for "
                f"its size: {why}"
            )
        if self._judge.trains and self._ctx.evaluation is None:
            self._decisions.append("trained, and not judged: give evaluate= to bound what may be lost")
        declined = [f"{s.name} declined: {s.refused.splitlines()[0]}" for s in attempt.steps if s.refused]
        if declined and not any(k.kind == "integer" for k in attempt.kernels):
            headline = f"left in float ({'; '.join(declined)}); {headline}"
        if attempt.metric is not None and self._judge.metric is not None and self._ctx.evaluation is not None:
            headline += f", {self._ctx.evaluation.name} {self._judge.metric:.4g} -> {attempt.metric:.4g}"
        report = self._report(attempt, "accepted", headline)
        return Result(attempt.model, report, attempt.runnable)

    def _unchanged(self, attempt: Attempt) -> Result:
        refused = [f"{s.name}: {s.refused.splitlines()[0]}" for s in attempt.steps if s.refused]
        faults = attempt.faults if self._judge.acted(attempt) else []
        why = "; ".join(faults or refused) or "the recipe changes nothing in it"
        report = self._report(attempt, "unchanged", f"left as it was: {why}")
        report.decisions.append("no setting gave a result worth handing over; this is the original model")
        report.after = report.before
        return Result(self._original, report, self._original)

    def _report(self, attempt: Attempt, verdict: Literal["accepted", "unchanged"], headline: str) -> Report:
        ctx = self._ctx
        before = self._session.profile_of(self._feeds)
        after = self._explained(attempt, attempt.session.profile_of(self._feeds))
        notes = [f"lowered for {ctx.target.name}: {', '.join(attempt.lowered)}"] if attempt.lowered else []
        sources = (ctx.data, None if ctx.evaluation is None else ctx.evaluation.data)
        notes += dict.fromkeys(note for data in sources if data is not None for note in data.notes)
        return Report(
            model="",
            framework="",
            target=f"{ctx.target.name} ({ctx.target.description})",
            runtime=f"{ctx.runtime.name} {ctx.runtime.version()}",
            verdict=verdict,
            headline=headline,
            before=snapshot(self._original, before, self._judge.metric),
            after=snapshot(attempt.runnable, after, attempt.metric),
            steps=attempt.steps,
            speed=attempt.speed,
            outputs=attempt.outputs,
            metric_name=ctx.evaluation.name if ctx.evaluation is not None else "",
            decisions=list(self._decisions),
            notes=notes,
            environment=environment(),
        )

    def _explained(self, attempt: Attempt, kernels: Sequence[Kernel]) -> tuple[Kernel, ...]:
        """Float compute kernels with the reason why they stayed: the planner's, or what the graph shows."""
        skips = [skip for step in reversed(attempt.steps) for skip in step.skipped]
        reasons = {name: skip.reason for skip in skips for name in (skip.name, *skip.names)}
        reasons.update(noted_reasons(attempt.model))
        return explained(kernels, reasons, f"{self._ctx.target.name} has no integer kernel for this pattern")


def _low_entropy(model: ir.Model) -> bool:
    """Whether a pass noted zeros or shared values on a weight: what only a bundle makes small."""
    values = [v for g in model.graphs() for v in g.initializers.values()]
    return any(set(invariants.held(v).kinds) & {"zeros", "values"} for v in values)
