"""Functions that stay whole in a written module, and the tracer that knows them.

A `GraphModule` is pickled as source code and traced again when it is loaded. Functions marked with `leaf` are
recorded as one call then, as they were written, instead of being traced into.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, TypeVar

import torch.fx

_LEAVES: list[Callable[..., Any]] = []

F = TypeVar("F", bound=Callable[..., Any])


def leaf(function: F) -> F:
    """Mark a module-level function as one step of a written graph. Its name must not start with `_`."""
    _LEAVES.append(function)
    return function


class LeafTracer(torch.fx.Tracer):
    """Keeps calls of leaf functions as they are."""

    def __init__(self) -> None:
        super().__init__(autowrap_functions=tuple(_LEAVES))
