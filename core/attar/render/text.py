"""A report as plain text: no colours, no control characters, fit for a terminal, a log or a pull request."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from attar.render import figures
from attar.report import Report, Speed, Step

MOST_GROUPS = 10
MOST_LINES = 20
MOST_KERNELS = 10


def text(report: Report) -> str:
    """The whole report, most important first."""
    blocks = [_head(report), _table(report)]
    if report.steps:
        blocks.append(["Steps", *_steps(report.steps)])
    floats = figures.stayed_float(report)
    if floats:
        number = sum(len(g.names) for g in floats)
        blocks.append([f"Stayed in float ({number} compute kernels)", *_groups(floats)])
    for title, lines in (("Decisions", report.decisions), ("Notes", report.notes)):
        if lines:
            blocks.append([title, *_some(lines)])
    kernels = figures.slowest(report.after.kernels, MOST_KERNELS)
    if kernels:
        rows = [
            (figures.milliseconds(k.milliseconds), k.kind, figures.name(k.op), figures.name(k.name))
            for k in kernels
        ]
        blocks.append(["Slowest kernels of the result (ms)", *_aligned(rows, ">")])
    if report.environment:
        pairs = [(figures.name(k), figures.clean(v)) for k, v in report.environment.items()]
        blocks.append(["Environment", *_aligned(pairs, "<")])
    return "\n\n".join("\n".join(block) for block in blocks) + "\n"


def _head(report: Report) -> list[str]:
    where = " ".join(
        figures.name(word)
        for word in (report.model, f"({report.framework})", "for", report.target, "on", report.runtime)
    )
    return [
        f"{report.verdict}: {figures.clean(report.headline)}",
        f"{where}, {report.seconds:.1f} s",
    ]


def before_after(rows: Sequence[figures.Row]) -> list[str]:
    """The before/after table, figures aligned on the right."""
    cells = [("", "before", "after", ""), *((r.label, r.before, r.after, r.change) for r in rows)]
    widths = [max(len(row[i]) for row in cells) for i in range(3)]
    return [
        f"{label:<{widths[0]}}  {before:>{widths[1]}}  {after:>{widths[2]}}  {change}".rstrip()
        for label, before, after, change in cells
    ]


def latency_line(speed: Speed) -> str:
    """How the latency was measured."""
    shapes = ", ".join(f"{figures.name(k)} {list(v)}" for k, v in speed.shapes.items())
    return f"latency: {speed.runs} interleaved pairs, {speed.threads} thread(s), {shapes}"


def _table(report: Report) -> list[str]:
    lines = before_after(figures.rows(report))
    if report.speed is not None:
        lines.append(latency_line(report.speed))
    if len(report.outputs) > 1:
        lines.append("Outputs, by how far they moved")
        moved = figures.worst_first(report.outputs)
        lines += _some([f"{figures.decibels(o.sqnr_db):>10}  {figures.output_words(o)}" for o in moved])
    return lines


def _steps(steps: Iterable[Step]) -> list[str]:
    lines = []
    for number, step in enumerate(steps, start=1):
        implied = "  (required by a later step)" if step.implied else ""
        lines.append(f"{number:>3}. {figures.call(step)}{implied}")
        lines.append(
            f"     {step.seconds:.2f} s, {figures.megabytes(step.bytes_before)} -> "
            f"{figures.megabytes(step.bytes_after)} MB, {step.nodes_before} -> {step.nodes_after} nodes"
        )
        if step.refused:
            lines.append(f"     declined: {figures.clean(step.refused)}")
        lines += ["   " + line for line in _some(step.changes)]
        if step.skipped:
            lines.append(f"     left alone: {len(step.skipped)}")
            lines += ["     " + line for line in _groups(figures.grouped(step.skipped))]
    return lines


def _groups(groups: Sequence[figures.Group]) -> list[str]:
    lines = [
        f"{len(g.names):>4} x {'/'.join(g.ops[:4])}: {g.reason} ({g.shown()})" for g in groups[:MOST_GROUPS]
    ]
    return lines + _more(len(groups) - MOST_GROUPS, "reasons")


def _some(lines: Sequence[str]) -> list[str]:
    shown = ["  " + figures.clean(line) for line in lines[:MOST_LINES]]
    return shown + _more(len(lines) - MOST_LINES, "lines")


def _more(number: int, what: str) -> list[str]:
    return [f"  ... and {number} more {what} (all are in the JSON report)"] if number > 0 else []


def _aligned(rows: Sequence[Sequence[str]], first: str) -> list[str]:
    """Columns as wide as their longest cell; `first` aligns the first column, the others go left."""
    widths = [max(len(row[i]) for row in rows) for i in range(len(rows[0]) - 1)]
    lines = []
    for row in rows:
        cells = [f"{row[0]:{first}{widths[0]}}"]
        cells += [f"{cell:<{width}}" for cell, width in zip(row[1:-1], widths[1:], strict=True)]
        lines.append("  " + "  ".join([*cells, row[-1]]).rstrip())
    return lines
