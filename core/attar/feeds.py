"""Inputs for one run of a model: made up, cut to one sample, or a large batch in pieces."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from attar.errors import InputError
from attar.specs import TensorSpec

if TYPE_CHECKING:
    from attar.calibration import Data

Array = np.ndarray[Any, np.dtype[Any]]
Feeds = Mapping[str, Array]
# A piece of a batch has about this many input elements: larger ones leave the caches and touch new memory all
# the time.
_PIECE = 1 << 19


def pieces(feeds: Feeds, specs: Sequence[TensorSpec], elements: int = _PIECE) -> Iterator[dict[str, Array]]:
    """A batch in pieces along its first axis, where the model leaves that axis free; views, not copies."""
    count = batch_of(feeds, specs)
    if count is None:
        yield dict(feeds)
        return
    total = sum(a.size for a in feeds.values())
    size = min(32, max(1, elements * count // max(1, total)))
    for start in range(0, count, size):
        yield {name: array[start : start + size] for name, array in feeds.items()}


def first_pieces(data: Data, samples: int) -> Iterator[dict[str, Array]]:
    """The first `samples` samples of `data`, in `pieces`."""
    return (piece for batch in data.take(samples) for piece in pieces(batch.inputs, data.specs))


def batch_of(feeds: Feeds, specs: Sequence[TensorSpec]) -> int | None:
    """Samples in `feeds`, None where the model does not leave the first axis of every input free."""
    shapes = {s.name: s.shape for s in specs}
    if not all(shapes.get(n) and not isinstance(shapes[n][0], int) for n in feeds):  # type: ignore[index]
        return None
    counts = {a.shape[0] for a in feeds.values() if a.ndim}
    return counts.pop() if len(counts) == 1 else None


def one_sample(feeds: Feeds, specs: Sequence[TensorSpec]) -> dict[str, Array]:
    """The first sample of a batch, where the model's batch axis is free."""
    free = batch_of(feeds, specs) is not None
    return {n: np.ascontiguousarray(a[:1]) if free else a for n, a in feeds.items()}


def sample_feeds(
    specs: Sequence[TensorSpec], *, seed: int = 0, batch: int = 1, length: int = 64
) -> dict[str, Array]:
    """Made-up inputs for a model nobody gave data for: floats normal, integers 0 and 1, bools true.

    Args:
        batch: size of symbolic first dimensions.
        length: size of other symbolic dimensions.

    Raises:
        InputError: an input is not a tensor of numbers, or its rank is not known.
    """
    rng = np.random.default_rng(seed)
    feeds: dict[str, Array] = {}
    sizes: dict[str, int] = {}
    for spec in specs:
        if spec.shape is None or spec.dtype == object:
            raise InputError(f"cannot make up a value for input {spec}", hint="give example data")
        shape = []
        for axis, dim in enumerate(spec.shape):
            if isinstance(dim, int):
                shape.append(max(1, dim))
            else:
                default = batch if axis == 0 else length
                shape.append(sizes.setdefault(dim, default) if dim else default)
        if np.issubdtype(spec.dtype, np.floating):
            feeds[spec.name] = rng.standard_normal(shape).astype(spec.dtype)
        elif spec.dtype == np.bool_:
            feeds[spec.name] = np.ones(shape, np.bool_)
        else:
            feeds[spec.name] = rng.integers(0, 2, shape).astype(spec.dtype)
    return feeds
