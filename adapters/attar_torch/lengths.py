"""Recurrence: torch's exporter unrolls it over the steps of the example and calls the axis dynamic still."""

from __future__ import annotations

from typing import Any

# A loop in Python over the steps is seen by what it takes apart.
_STEPS = ("aten.lstm", "aten.gru", "aten.rnn_", "aten.select.", "aten.unbind.", "aten.split")


def may_unroll(program: Any) -> bool:
    """Whether an exported program has recurrent layers, or takes tensors apart as loops over steps do."""
    return any(str(n.target).startswith(_STEPS) for n in program.graph.nodes if n.op == "call_function")
