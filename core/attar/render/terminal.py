"""A report for a colour terminal, with rich. Everything is `rich.text.Text`, so no name is read as markup."""

from __future__ import annotations

from typing import TYPE_CHECKING

from attar.render import figures
from attar.report import Report

if TYPE_CHECKING:
    from rich.console import Group
    from rich.table import Table
    from rich.text import Text
    from rich.tree import Tree

MOST_GROUPS = 8
MOST_LINES = 12

_STYLE = {True: "green", False: "red", None: ""}


def rich_report(report: Report) -> Group:
    """Headline, before/after table, steps, what stayed in float, decisions, environment."""
    from rich.console import Group
    from rich.panel import Panel
    from rich.text import Text

    colour = "green" if report.verdict == "accepted" else "yellow"
    parts: list[object] = [
        Panel(
            Text(figures.clean(report.headline), style="bold"),
            title=Text(f"{figures.name(report.model)}: {report.verdict}"),
            title_align="left",
            border_style=colour,
        ),
        _table(report),
    ]
    if report.steps:
        parts.append(_steps(report))
    floats = figures.stayed_float(report)
    if floats:
        parts += [Text("Stayed in float", style="bold"), *_groups(floats)]
    for title, lines in (("Decisions", report.decisions), ("Notes", report.notes)):
        if lines:
            parts.append(Text(title, style="bold"))
            parts += [Text("  " + figures.clean(line)) for line in lines[:MOST_LINES]]
            if len(lines) > MOST_LINES:
                parts.append(Text(f"  ... and {len(lines) - MOST_LINES} more", style="dim"))
    where = [f"{figures.name(k)} {figures.name(v)}" for k, v in report.environment.items()]
    parts.append(Text(" · ".join(where), style="dim"))
    return Group(*parts)  # type: ignore[arg-type]


def _table(report: Report) -> Table:
    from rich import box
    from rich.table import Table
    from rich.text import Text

    table = Table(box=box.SIMPLE_HEAD, pad_edge=False)
    table.add_column("")
    table.add_column("before", justify="right")
    table.add_column("after", justify="right")
    table.add_column("")
    for row in figures.rows(report):
        style = _STYLE[row.good]
        table.add_row(
            Text(row.label), Text(row.before), Text(row.after, style=style), Text(row.change, style=style)
        )
    return table


def _steps(report: Report) -> Tree:
    from rich.text import Text
    from rich.tree import Tree

    tree = Tree(Text(f"Steps ({report.seconds:.1f} s)", style="bold"))
    for step in report.steps:
        label = Text(figures.call(step))
        label.append(f"  {step.seconds:.2f} s", style="cyan")
        if step.implied:
            label.append("  required by a later step", style="dim")
        branch = tree.add(label)
        if step.refused:
            branch.add(Text(f"declined: {figures.clean(step.refused)}", style="yellow"))
        for change in step.changes[:MOST_LINES]:
            branch.add(Text(figures.clean(change)))
        if len(step.changes) > MOST_LINES:
            branch.add(Text(f"... and {len(step.changes) - MOST_LINES} more", style="dim"))
        if step.skipped:
            left = branch.add(Text(f"left alone: {len(step.skipped)}", style="yellow"))
            for line in _groups(figures.grouped(step.skipped)):
                left.add(line)
    return tree


def _groups(groups: list[figures.Group]) -> list[Text]:
    from rich.text import Text

    lines = [
        Text(f"{len(g.names)} x {'/'.join(g.ops[:4])}: {g.reason} ").append(f"({g.shown()})", style="dim")
        for g in groups[:MOST_GROUPS]
    ]
    if len(groups) > MOST_GROUPS:
        lines.append(Text(f"... and {len(groups) - MOST_GROUPS} more reasons", style="dim"))
    return lines
