"""The built-in lowerings, by theme."""

from __future__ import annotations

from attar_torch.writing.table import Lowering


def builtin() -> dict[str, Lowering]:
    """Operator -> lowering, of all themes."""
    from attar_torch.writing.ops import (
        activation,
        arithmetic,
        control,
        conv,
        image,
        indexing,
        layout,
        linear,
        logic,
        norm,
        pool,
        quantize,
        recurrent,
        reduce,
        shape,
        signal,
    )

    tables = (
        activation, arithmetic, control, conv, image, indexing, layout, linear, logic, norm, pool, quantize,
        recurrent, reduce, shape, signal,
    )  # fmt: skip
    merged: dict[str, Lowering] = {}
    for theme in tables:
        merged.update(theme.TABLE)
    return merged
