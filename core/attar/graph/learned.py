"""A mark on initializers: whether training changes them.

Writers decide by themselves what is a weight and what is a constant. A pass that knows better says so on the
value; the mark is metadata, so it survives copying. What is computed from learned values is not a constant.
"""

from __future__ import annotations

import onnx_ir as ir

_KEY = "attar.learned"


def mark_learned(value: ir.Value, learned: bool = True) -> None:
    """Say that training changes the initializer `value`, or that it must not."""
    value.metadata_props[_KEY] = "yes" if learned else "no"


def is_learned(value: ir.Value | None) -> bool | None:
    """What was said of an initializer; None where nothing was."""
    said = None if value is None else value.metadata_props.get(_KEY)
    return None if said is None else said == "yes"


def unmark_learned(value: ir.Value) -> None:
    """Take the mark away."""
    value.metadata_props.pop(_KEY, None)
