"""Weights beside integer layers: those of operators that are quicker in float, and embedding tables.

They are stored as 8-bit codes. Of tables only the rows that are picked become float again, other weights do
when the model is loaded: the file shrinks, and no time changes.
"""

from __future__ import annotations

import fnmatch
from collections.abc import Iterable
from dataclasses import replace

import onnx_ir as ir

from attar import graph
from attar.context import Context
from attar.errors import Refused
from attar.report import Step


def store_rest(model: ir.Model, ctx: Context, operators: Iterable[str], keep_float: Iterable[str]) -> None:
    """Store, in place, the weights that are still float as 8-bit codes; a model without any stays as it is.

    Args:
        operators: types of those whose weights may change; empty: all.
        keep_float: patterns of names to leave alone.
    """
    from attar_quantize.places import OPERATORS
    from attar_quantize.weights import Weights

    # A device that computes on integers alone says what it lacks by what is still in float.
    known = frozenset({"Gather"} if ctx.target.elsewhere else OPERATORS)
    chosen = tuple(sorted(known & set(operators) if operators else known))
    if not chosen:
        return
    apart = replace(ctx, step=Step("", {}))  # that there is nothing to store is nothing to report
    names = {str(v.name) for v in (*graph.all_nodes(model), *graph.all_values(model))}
    # What a pattern matched may have gone with its layer, which is integer now.
    left = tuple(f"{pattern}=float" for pattern in keep_float if fnmatch.filter(names, pattern))
    try:
        Weights(operators=chosen, overrides=left).apply(model, apart)
    except Refused:
        return
    for change in apart.step.changes:
        ctx.note(f"weights beside integer layers: {change}")
