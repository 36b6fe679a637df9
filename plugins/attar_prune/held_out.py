"""Calibration data in two parts: one to fit to, one that tells whether the fit helps."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import numpy as np

from attar.calibration.data import Data
from attar.calibration.sources import Source
from attar.feeds import batch_of
from attar_prune.effect import SAMPLES

if TYPE_CHECKING:
    from attar.context import Context

Array = np.ndarray[Any, np.dtype[Any]]
# One sample of so many is held out, fewer where that would be more than `SAMPLES`.
_STRIDE = 4


def split(ctx: Context) -> tuple[Context, Context] | None:
    """Contexts with the samples to fit to and with those that are held out.

    Every fourth sample is held out, not the last ones, as data are often sorted. Where a model takes whole
    batches only, these count as samples.

    Returns:
        None where there is one sample only.
    """
    sizes = [size for batch in ctx.calibration for size in _sizes(batch.inputs, batch.size, ctx)]
    if len(sizes) < 2:
        return None
    stride = min(len(sizes), max(_STRIDE, math.ceil(len(sizes) / SAMPLES)))
    seen, unseen = (
        Data(
            Source(
                lambda held=held: _part(ctx, stride, held),  # type: ignore[misc]
                "calibration data that are held out" if held else "calibration data to fit to",
                rows=sum(size for k, size in enumerate(sizes) if _is_held(k, stride) == held),
            ),
            ctx.calibration.specs, limit=None, batch_size=None,
        )
        for held in (False, True)
    )  # fmt: skip
    # What is cached belongs to all of the data.
    return replace(ctx, data=seen, cache={}), replace(ctx, data=unseen, cache={})


def _is_held(number: int, stride: int) -> bool:
    return number % stride == stride - 1


def _sizes(inputs: dict[str, Array], size: int, ctx: Context) -> list[int]:
    """The samples of what can be chosen on its own in one batch."""
    count = batch_of(inputs, ctx.calibration.specs)
    return [size] if count is None else [1] * count


def _part(ctx: Context, stride: int, held: bool) -> Iterator[dict[str, Array]]:
    first = 0
    for batch in ctx.calibration:
        count = batch_of(batch.inputs, ctx.calibration.specs)
        chosen = [k for k in range(count or 1) if _is_held(first + k, stride) == held]
        first += count or 1
        if chosen:
            yield {n: a if count is None else a[chosen] for n, a in batch.inputs.items()}
