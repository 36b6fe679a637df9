"""A report as one page of HTML that opens offline: styles inline, no script, nothing fetched.

Every string is escaped by jinja2's autoescape, and a Content-Security-Policy forbids scripts and connections
should one ever slip through. Lists are capped: the page of a model with many thousands of nodes stays small.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from importlib import resources
from typing import Any

from attar.errors import AttarError
from attar.render import figures
from attar.report import Kernel, KernelKind, OutputDiff, Report, Step

MOST_BARS = 25
MOST_KERNELS = 2000
MOST_LINES = 200
MOST_NAMES = 20
FOLDED_ABOVE = 40

KINDS: tuple[KernelKind, ...] = ("integer", "float", "conversion", "data")


@dataclass(frozen=True)
class Card:
    title: str
    value: str
    detail: str
    good: bool | None = None


@dataclass(frozen=True)
class Bar:
    """One horizontal bar; `parts` are (CSS class, width in percent, tooltip)."""

    label: str
    value: str
    parts: tuple[tuple[str, str, str], ...]


@dataclass(frozen=True)
class Listing:
    """The first of many lines, and how many were left out."""

    shown: tuple[Any, ...]
    left_out: int

    @classmethod
    def of(cls, items: Sequence[Any], most: int = MOST_LINES) -> Listing:
        return cls(tuple(items[:most]), max(0, len(items) - most))


def html(report: Report) -> str:
    """One self-contained page.

    Raises:
        AttarError: jinja2 is not installed.
    """
    try:
        import jinja2
    except ImportError as error:
        raise AttarError("HTML reports need jinja2", hint="pip install attar[report]") from error
    source = resources.files("attar.render").joinpath("page.html").read_text("utf-8")
    environment = jinja2.Environment(
        autoescape=True, undefined=jinja2.StrictUndefined, trim_blocks=True, lstrip_blocks=True
    )
    return environment.from_string(source).render(
        report=report,
        model=figures.name(report.model),
        headline=figures.clean(report.headline),
        where=[figures.name(w) for w in (report.framework, report.target, report.runtime)],
        cards=_cards(report),
        rows=figures.rows(report),
        speed=_speed(report),
        outputs=Listing.of([_output(o) for o in figures.worst_first(report.outputs)]),
        bars=_before_after_bars(report),
        slow=_kernel_bars(report.after.kernels),
        untimed=all(k.milliseconds is None for k in report.after.kernels),
        kinds=KINDS,
        kernels=Listing.of([_kernel(k) for k in _by_time(report.after.kernels)], MOST_KERNELS),
        folded=len(report.after.kernels) > FOLDED_ABOVE,
        floats=Listing.of([_group(g) for g in figures.stayed_float(report)]),
        steps=Listing.of([_step(s) for s in report.steps]),
        decisions=Listing.of([figures.clean(d) for d in report.decisions]),
        notes=Listing.of([figures.clean(n) for n in report.notes]),
        environment=[(figures.name(k), figures.clean(v)) for k, v in report.environment.items()],
    )


def _cards(report: Report) -> list[Card]:
    size = f"{figures.megabytes(report.before.bytes)} to {figures.megabytes(report.after.bytes)} MB"
    cards = [
        Card(
            "Size",
            figures.size_change(report.before, report.after),
            size,
            report.after.bytes < report.before.bytes or None,
        )
    ]
    if report.speed is not None:
        s = report.speed
        detail = f"{figures.milliseconds(s.before_ms)} to {figures.milliseconds(s.after_ms)} ms"
        good = True if s.high < 1 else False if s.low > 1 else None
        cards.append(Card("Speed", figures.speed_change(s), detail, good))
    before, after = report.before.metric, report.after.metric
    if after is not None:
        detail = "" if before is None else f"from {figures.metric(before)} ({after - before:+.4f})"
        cards.append(Card(figures.name(report.metric_name or "Metric"), figures.metric(after), detail))
    if report.outputs:
        worst = figures.worst_first(report.outputs)[0]
        detail = f"largest difference {worst.max_abs:.3g}"
        if worst.agreement is not None:
            detail = f"same arg-max {figures.share(worst.agreement)}"
        cards.append(Card("Outputs (SQNR)", figures.decibels(worst.sqnr_db), detail))
    if report.after.kernels:
        floats = report.after.count("float", compute=True)
        integers = report.after.count("integer", compute=True)
        cards.append(Card("Compute kernels", f"{integers} integer", f"{floats} in float"))
    return cards


def _speed(report: Report) -> str:
    if report.speed is None:
        return ""
    s = report.speed
    shapes = ", ".join(f"{figures.name(k)} {list(v)}" for k, v in s.shapes.items())
    return f"{s.runs} interleaved pairs of runs on {s.threads} thread(s) with {shapes}"


def _output(diff: OutputDiff) -> tuple[str, ...]:
    return (
        figures.name(diff.name),
        figures.decibels(diff.sqnr_db),
        f"{diff.max_abs:.4g}",
        f"{diff.max_rel:.4g}",
        figures.share(diff.agreement),
        figures.count(diff.samples),
    )


def _before_after_bars(report: Report) -> list[Bar]:
    pairs = [("size", float(report.before.bytes), float(report.after.bytes), "MB")]
    if report.speed is not None:
        pairs.append(("latency", report.speed.before_ms, report.speed.after_ms, "ms"))
    bars = []
    for label, before, after, unit in pairs:
        most = max(before, after)
        for when, value in (("before", before), ("after", after)):
            shown = figures.megabytes(int(value)) if unit == "MB" else figures.milliseconds(value)
            parts = ((when, _percent(value, most), ""),)
            bars.append(Bar(f"{label}, {when}", f"{shown} {unit}", parts))
    return bars


def _kernel_bars(kernels: Sequence[Kernel]) -> list[Bar]:
    timed = figures.slowest(kernels, len(kernels))
    if not timed:
        return []
    total = sum(k.milliseconds or 0.0 for k in timed)
    by_kind = {kind: sum(k.milliseconds or 0.0 for k in timed if k.kind == kind) for kind in KINDS}
    parts = tuple(
        (kind, _percent(spent, total), f"{kind}: {figures.milliseconds(spent)} ms")
        for kind, spent in by_kind.items()
        if spent > 0
    )
    bars = [Bar(f"all {len(timed)} kernels", f"{figures.milliseconds(total)} ms", parts)]
    longest = timed[0].milliseconds or 0.0
    for kernel in timed[:MOST_BARS]:
        spent = kernel.milliseconds or 0.0
        part = (kernel.kind, _percent(spent, longest), figures.name(kernel.name))
        label = f"{figures.name(kernel.op)} {figures.name(kernel.name)}"
        bars.append(Bar(label, f"{figures.milliseconds(spent)} ms", (part,)))
    return bars


def _percent(value: float, most: float) -> str:
    return f"{100 * value / most:.2f}" if most > 0 else "0"


def _by_time(kernels: Sequence[Kernel]) -> list[Kernel]:
    """Slowest first; kernels that were not profiled keep the graph's order."""
    return sorted(kernels, key=lambda k: -(k.milliseconds or 0.0))


def _kernel(kernel: Kernel) -> tuple[str, ...]:
    return (
        figures.name(kernel.name),
        figures.name(kernel.op),
        kernel.kind,
        figures.milliseconds(kernel.milliseconds),
        figures.clean(kernel.reason, 300),
    )


def _step(step: Step) -> dict[str, Any]:
    return {
        "name": figures.name(step.name),
        "options": [
            (figures.name(k), figures.clean(repr(v), 300)) for k, v in step.options.items() if k != "name"
        ],
        "figures": (
            f"{step.seconds:.2f} s · {figures.megabytes(step.bytes_before)} to "
            f"{figures.megabytes(step.bytes_after)} MB · {step.nodes_before} to {step.nodes_after} nodes"
        ),
        "implied": step.implied,
        "refused": figures.clean(step.refused),
        "changes": Listing.of([figures.clean(c) for c in step.changes]),
        "skipped": len(step.skipped),
        "groups": Listing.of([_group(g) for g in figures.grouped(step.skipped)]),
    }


def _group(group: figures.Group) -> dict[str, Any]:
    return {
        "number": len(group.names),
        "ops": _joined(group.ops),
        "reason": group.reason,
        "names": _joined(group.names),
    }


def _joined(names: Iterable[str]) -> str:
    every = tuple(names)
    return ", ".join(every[:MOST_NAMES]) + (
        f" and {len(every) - MOST_NAMES} more" if len(every) > MOST_NAMES else ""
    )
