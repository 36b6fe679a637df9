"""Embedding tables beside integer layers: stored as 8-bit rows, of which only those that are picked become
float."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import replace

import onnx_ir as ir

from attar.context import Context
from attar.errors import Refused
from attar.report import Step


def store_tables(model: ir.Model, ctx: Context, keep_float: Iterable[str]) -> None:
    """Quantize, in place, the tables that Gather reads; a model without any stays as it is.

    Args:
        keep_float: patterns of names to leave alone.
    """
    from attar_quantize.weights import Weights

    apart = replace(ctx, step=Step("", {}))  # that there is no table is nothing to report
    try:
        Weights(operators=("Gather",), overrides=tuple(f"{pattern}=float" for pattern in keep_float)).apply(
            model, apart
        )
    except Refused:
        return
    for change in apart.step.changes:
        ctx.note(f"embedding tables: {change}")
