"""Every error that leaves the API, in one small tree rooted at `AttarError`.

A message names what went wrong and where; `hint` says what to do about it. Nothing else escapes the public
functions.
"""

from __future__ import annotations

import difflib
from collections.abc import Iterable, Mapping, Sequence
from typing import Any


class AttarError(Exception):
    """Base of all errors raised on purpose.

    Args:
        message: what is wrong, naming the offending thing.
        hint: the way out, if there is one.
    """

    def __init__(self, message: str, *, hint: str | None = None) -> None:
        super().__init__(message)
        self.message = message
        self.hint = hint

    def __str__(self) -> str:
        return f"{self.message}\n  hint: {self.hint}" if self.hint else self.message


class InputError(AttarError):
    """Something handed in is unusable: a file, an array, a name, a shape."""


class Refused(AttarError):  # noqa: N818  it is an answer, not a failure
    """A pass declines to act; the model is as it was.

    Attributes:
        nodes: (node name, reason) pairs that explain the refusal.
    """

    def __init__(
        self, message: str, *, nodes: Sequence[tuple[str, str]] = (), hint: str | None = None
    ) -> None:
        if nodes:
            message += "".join(f"\n  {name}: {why}" for name, why in nodes)
        super().__init__(message, hint=hint)
        self.nodes = tuple(nodes)


class VerifyError(AttarError):
    """A pass produced a model that is not what it promised; the result was thrown away."""


class PluginError(AttarError):
    """A plugin is broken, or two plugins claim one name."""


class RecipeError(AttarError):
    """A recipe names an unknown pass or option, or gives an option a value that it cannot take."""


class ConversionError(AttarError):
    """A model uses operators that have no counterpart where it is going.

    Attributes:
        missing: operator -> names of the nodes that need it; *all* of them, not the first.
    """

    def __init__(
        self,
        message: str,
        *,
        missing: Mapping[str, Sequence[str]] | None = None,
        hint: str | None = None,
    ) -> None:
        self.missing = {op: tuple(nodes) for op, nodes in (missing or {}).items()}
        for op, nodes in sorted(self.missing.items()):
            shown = ", ".join(nodes[:3]) + (f" and {len(nodes) - 3} more" if len(nodes) > 3 else "")
            message += f"\n  {op}: {shown}"
        super().__init__(message, hint=hint)


class BudgetMissed(AttarError):  # noqa: N818  it carries a result
    """The asked-for budget (accuracy, size, latency) was not reached.

    Attributes:
        best: the best result found, of the type that the call would have returned; None if there was none.
    """

    def __init__(self, message: str, *, best: Any = None, hint: str | None = None) -> None:
        super().__init__(message, hint=hint)
        self.best = best


def check_whole(name: str, value: Any, *, least: int = 0) -> None:
    """Accept `value` as a whole number of at least `least`.

    Raises:
        InputError: it is none.
    """
    if isinstance(value, bool) or not isinstance(value, int):
        raise InputError(f"{name} must be a whole number, not {value!r:.60}")
    if value < least:
        raise InputError(f"{name} must be at least {least}, not {value}")


def did_you_mean(word: str, known: Iterable[str]) -> str:
    """A hint that lists the names nearest to `word`, or all of them when none is near."""
    names = sorted(known)
    near = difflib.get_close_matches(word, names, n=3, cutoff=0.5)
    if near:
        return "did you mean " + " or ".join(repr(n) for n in near) + "?"
    return "known: " + (", ".join(names) if names else "none")
