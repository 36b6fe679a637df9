"""Split and join batches to the size that is wanted."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import numpy as np

from attar.calibration.batch import DEFAULT_SIZE, Batch, Unit
from attar.errors import InputError


def regroup(
    units: Iterator[Unit], size: int | None, *, strict: bool, dropped: Callable[[int], None]
) -> Iterator[Batch]:
    """Batches of `size` samples; without a size, batches stay as they came and single samples go by
    `DEFAULT_SIZE`.

    Neighbours of different shapes are never joined. A smaller rest is given out too, unless `strict`: then it
    is left out and its number of samples told to `dropped`. A batch that has the size already is passed on
    without a copy.
    """
    held: list[Batch] = []
    for unit in units:
        batch, want = unit.batch, size or (DEFAULT_SIZE if unit.sample else unit.batch.size)
        del unit
        if held and not _joinable(held[0], batch):
            if strict:
                dropped(_have(held))
                held.clear()
            else:
                yield _cut(held, _have(held))
        held.append(batch)
        del batch  # while the consumer has a batch, this frame must not hold another reference to it
        while _have(held) >= want:
            yield _cut(held, want)
    if held:
        if strict:
            dropped(_have(held))
        else:
            yield _cut(held, _have(held))


def head(batch: Batch, count: int) -> Batch:
    """The first `count` samples, as views."""
    return _slice(batch, 0, count)


def _have(held: list[Batch]) -> int:
    return sum(b.size for b in held)


def _slice(batch: Batch, start: int, stop: int) -> Batch:
    if start == 0 and stop >= batch.size:
        return batch
    labels = None if batch.labels is None else batch.labels[start:stop]
    for name, array in batch.inputs.items():
        if array.shape[0] != batch.size:
            raise InputError(f"input {name!r} has {array.shape[0]} samples beside {batch.size} of the others")
    return Batch({n: a[start:stop] for n, a in batch.inputs.items()}, labels, stop - start)


def _cut(held: list[Batch], count: int) -> Batch:
    """Take `count` samples off the front of `held`."""
    pieces: list[Batch] = []
    while count:
        front = held[0]
        if front.size <= count:
            pieces.append(held.pop(0))
        else:
            pieces.append(_slice(front, 0, count))
            held[0] = _slice(front, count, front.size)
        count -= pieces[-1].size
    if len(pieces) == 1:
        return pieces[0]
    labels = None
    if pieces[0].labels is not None:
        labels = np.concatenate([p.labels for p in pieces if p.labels is not None])
    inputs = {name: np.concatenate([p.inputs[name] for p in pieces]) for name in pieces[0].inputs}
    return Batch(inputs, labels, sum(p.size for p in pieces))


def _joinable(first: Batch, second: Batch) -> bool:
    if (first.labels is None) != (second.labels is None):
        return False
    if (
        first.labels is not None
        and second.labels is not None
        and first.labels.shape[1:] != second.labels.shape[1:]
    ):
        return False
    return all(array.shape[1:] == second.inputs[name].shape[1:] for name, array in first.inputs.items())
