"""Reports for readers: plain text, a terminal, one page of HTML. What is reported lives in `attar.report`."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from attar.render.html import html
from attar.render.text import text

if TYPE_CHECKING:
    from attar.report import Report

__all__ = ["html", "rich_report", "text"]


def rich_report(report: Report) -> Any:
    """The report as a rich renderable, for `rich.console.Console.print`."""
    from attar.render.terminal import rich_report as build  # rich is imported only where it is used

    return build(report)
