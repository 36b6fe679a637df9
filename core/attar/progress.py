"""Progress of long work, told to whoever wants to show it. The command line shows bars; libraries hear
nothing."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from typing import Protocol, TypeVar

T = TypeVar("T")


class Task(Protocol):
    """One piece of long work. One that can show news beside its name has a method `describe(text)`; see
    `describe`."""

    def advance(self, steps: float = 1) -> None: ...


class Progress(Protocol):
    """Something that can show tasks. `total` None means that the end is not known."""

    @contextmanager
    def task(self, description: str, total: float | None = None) -> Iterator[Task]: ...


class _SilentTask:
    def advance(self, steps: float = 1) -> None:
        pass


class Silent:
    """Shows nothing."""

    @contextmanager
    def task(self, description: str, total: float | None = None) -> Iterator[Task]:
        yield _SilentTask()


def describe(task: Task, text: str) -> None:
    """Show `text` beside the name of `task`, where it can be shown."""
    shown = getattr(task, "describe", None)
    if callable(shown):
        shown(text)


def track(items: Iterable[T], progress: Progress, description: str, total: float | None) -> Iterator[T]:
    """Iterate over `items`, advancing a task by one each."""
    with progress.task(description, total) as task:
        for item in items:
            yield item
            task.advance()
