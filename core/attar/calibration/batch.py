"""A batch, and where the batch axis of a model lies."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from attar.specs import Dim, TensorSpec

Array = np.ndarray[Any, np.dtype[Any]]

DEFAULT_SIZE = 32
"""Samples a batch where neither the model, nor the caller, nor the source says how many."""


@dataclass(frozen=True)
class Batch:
    """What one run of the model takes.

    Attributes:
        inputs: input name -> array of the model's dtype; axis 0 counts samples.
        labels: one label a sample along axis 0, or None.
        size: number of samples.
    """

    inputs: dict[str, Array]
    labels: Array | None
    size: int


@dataclass(frozen=True)
class Unit:
    """One item of a source, fitted to the model; `sample` says that it came without a batch axis."""

    batch: Batch
    sample: bool


@dataclass(frozen=True)
class Batching:
    """Which inputs share the batch axis (axis 0).

    Attributes:
        fixed: the batch size that the model insists on, or None.
        inputs: names of the inputs that have the batch axis.
        splittable: all of them have it, so that batches may be split and joined.
        lead: the input whose axis 0 counts the samples; None when no input has an axis.
    """

    fixed: int | None
    inputs: frozenset[str]
    splittable: bool
    lead: str | None


def batching_of(specs: Sequence[TensorSpec]) -> Batching:
    """Find the batch axis. An input with a leading dimension of another kind (a state `[layers, N, H]`, a
    shared mask `[1, 1, L, L]`, a scalar) has none, and then batches go to the model as they came."""
    axes = [s for s in specs if s.shape is None or len(s.shape) > 0]
    if not axes:
        return Batching(None, frozenset(), False, None)
    lead = next((s for s in axes if not isinstance(_first(s), int)), axes[0])
    size = _first(lead)
    fixed = size if isinstance(size, int) else None
    # Differently named symbols may well be one: some converters number every unknown dimension anew.
    shared = [
        s.name for s in axes if (_first(s) == fixed if fixed is not None else not isinstance(_first(s), int))
    ]
    return Batching(fixed, frozenset(shared), len(shared) == len(specs), lead.name)


def _first(spec: TensorSpec) -> Dim:
    return None if spec.shape is None else spec.shape[0]
