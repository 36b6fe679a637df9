"""Progress bars on stderr."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING

from attar.progress import Progress, Silent, Task
from attar.render.figures import name as shown

if TYPE_CHECKING:
    from rich.console import Console
    from rich.progress import Progress as Bars
    from rich.progress import TaskID


def progress() -> Progress:
    """Bars if stderr is a terminal, silence otherwise."""
    return RichProgress() if sys.stderr.isatty() else Silent()


class _Bar:
    def __init__(self, bars: Bars, task: TaskID, name: str) -> None:
        self._bars, self._task, self._name = bars, task, name

    def advance(self, steps: float = 1) -> None:
        self._bars.advance(self._task, steps)

    def describe(self, text: str) -> None:
        self._bars.update(self._task, description=f"{self._name}: {text}")


class RichProgress:
    """An `attar.progress.Progress` that draws nested tasks with rich; nothing of it stays on the screen.

    Args:
        console: where to draw; stderr if not given.
    """

    def __init__(self, console: Console | None = None) -> None:
        self._console = console
        self._bars: Bars | None = None
        self._open = 0

    @contextmanager
    def task(self, description: str, total: float | None = None) -> Iterator[Task]:
        bars = self._bars or self._start()
        number = bars.add_task(shown(description), total=total)
        self._open += 1
        try:
            yield _Bar(bars, number, shown(description))
        finally:
            self._open -= 1
            bars.remove_task(number)
            if not self._open:
                bars.stop()
                self._bars = None

    def _start(self) -> Bars:
        from rich.console import Console
        from rich.progress import (
            BarColumn,
            MofNCompleteColumn,
            SpinnerColumn,
            TextColumn,
            TimeElapsedColumn,
            TimeRemainingColumn,
        )
        from rich.progress import Progress as Bars

        self._bars = Bars(
            SpinnerColumn(),
            TextColumn("{task.description}", markup=False),
            BarColumn(),
            MofNCompleteColumn(),
            TimeElapsedColumn(),
            TimeRemainingColumn(),
            console=self._console or Console(stderr=True),
            transient=True,
        )
        self._bars.start()
        return self._bars
