"""Training data, and what is told of a training while it runs.

Calibration data are a stream. Training wants more of data: samples in any order. `TrainingData` gives both:
samples by their numbers where the source has them in memory or can be indexed, and else the source's own
batches in the source's own order, which is what a loader that shuffles and augments is for.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import numpy as np

from attar.adapters import type_path
from attar.calibration import Batch, Data, as_data
from attar.calibration.arrays import is_array, to_numpy
from attar.calibration.batch import batching_of
from attar.calibration.items import fit_item, fits, split
from attar.errors import InputError
from attar.specs import TensorSpec

Array = np.ndarray[Any, np.dtype[Any]]

KEPT = 4 << 30
"""Bytes of the samples of a file or folder that are kept in memory, decoded; larger ones are streamed."""


@dataclass(frozen=True)
class TrainingEvent:
    """What the hook `attar_training` is told.

    Attributes:
        kind: "start", "step" (every few steps), "epoch", "evaluate", "checkpoint" or "end".
        name: the pass that trains.
        step: optimizer steps done.
        steps: optimizer steps in all.
        epoch: epochs begun.
        values: numbers by name, such as "loss", "lr" or the name of the metric.
    """

    kind: Literal["start", "step", "epoch", "evaluate", "checkpoint", "end"]
    name: str
    step: int
    steps: int
    epoch: int
    values: Mapping[str, float] = field(default_factory=dict)


class TrainingData:
    """Samples to train on. Made by `as_training`.

    Attributes:
        specs: the inputs that the samples fit.
        count: number of samples, for data with samples by number; None for a stream.
        notes: what the reader of a report should know.
    """

    def __init__(self, specs: Sequence[TensorSpec], what: str) -> None:
        self.specs, self.what = tuple(specs), what
        self.notes: list[str] = []
        self._columns: dict[str, Array] | None = None
        self._labels: Array | None = None
        self._items: Any = None
        self._stream: Data | None = None
        self._keep = False

    @property
    def count(self) -> int | None:
        self._settle()
        if self._columns is not None:
            return len(next(iter(self._columns.values())))
        return len(self._items) if self._items is not None else None

    def fetch(self, numbers: Sequence[int]) -> Batch:
        """The samples of these numbers as one batch.

        Raises:
            InputError: a sample does not fit the model, or the data are a stream.
        """
        self._settle()
        where, batching = list(numbers), batching_of(self.specs)
        if self._columns is not None:
            cut = {name: column[where] for name, column in self._columns.items()}
            item: Any = cut if self._labels is None else (cut, self._labels[where])
            return fit_item(item, self.specs, batching, where[0]).batch
        if self._items is None:
            raise InputError(f"{self.what} is a stream: its samples have no numbers")
        units = [fit_item(self._items[i], self.specs, batching, i) for i in where]
        if not all(unit.sample for unit in units):
            raise InputError(f"{self.what}: some items are single samples and some are batches")
        return _joined([unit.batch for unit in units], self.what)

    def stream(self) -> Iterator[Batch]:
        """The source's own batches, from the first.

        Raises:
            InputError: the data are not a stream, or a batch does not fit the model.
        """
        if self._stream is None:
            raise InputError(f"{self.what} is no stream")
        return iter(self._stream)

    def first(self) -> Batch:
        """Some samples, the same ones each time."""
        count = self.count
        if count is None:
            return next(self.stream())
        return self.fetch(range(min(count, 32)))

    @property
    def labelled(self) -> bool:
        """Whether the samples have labels."""
        return self.first().labels is not None

    def __repr__(self) -> str:
        return f"TrainingData({self.what})"

    def _settle(self) -> None:
        """Decode a file or folder once, if it is small enough to be kept."""
        if not self._keep or self._stream is None:
            return
        self._keep = False
        kept: list[Batch] = []
        size = 0
        for batch in self._stream:
            size += sum(a.nbytes for a in batch.inputs.values())
            if size > KEPT:
                self.notes.append(
                    f"{self.what} is larger than {KEPT >> 30} GiB decoded: samples come in the file's order"
                )
                return
            kept.append(batch)
        try:
            whole = _joined(kept, self.what)
        except InputError:  # samples of different sizes
            self.notes.append(f"the samples of {self.what} differ in shape: they come in the file's order")
            return
        self._columns, self._labels, self._stream = dict(whole.inputs), whole.labels, None


def as_training(source: Any, specs: Sequence[TensorSpec], *, preprocess: Any = None) -> TrainingData:
    """Read training data from what the user has.

    Args:
        source: arrays of all samples (an array, `(inputs, labels)`, a mapping by input name); the path of an
            `.npz` or `.npy` file or of a folder of images; an object with `__len__` and `__getitem__` that
            gives samples; anything else that `attar.calibration.as_data` takes, which is then gone through in
            its own order, once an epoch. Labels may be missing where no loss needs them.
        specs: the model's inputs.
        preprocess: how images become arrays, as in `as_data`.

    Raises:
        InputError: the source cannot be read, is empty, or does not fit the model.
    """
    specs = tuple(specs)
    if isinstance(source, TrainingData):
        return source if source.specs == specs else _again(source, specs)
    if not specs:
        raise InputError("the model has no inputs, so it cannot be trained")
    what = str(source) if isinstance(source, str | Path) else type_path(source)[0].removeprefix("builtins.")
    made = TrainingData(specs, what)
    if not batching_of(specs).splittable:
        made._stream = as_data(source, specs, preprocess=preprocess)
        return made
    columns = _columns(source, specs)
    if columns is not None and preprocess is None:
        made._columns, made._labels = columns
        if made.count == 0:
            raise InputError("the training data are empty")
    elif preprocess is None and _samples(source, specs):
        made._items = source
    else:
        made._stream = as_data(source, specs, preprocess=preprocess)
        made._keep = isinstance(source, str | Path)
    made.first()
    return made


def _again(source: TrainingData, specs: tuple[TensorSpec, ...]) -> TrainingData:
    """The same data for a model with other names or types of its inputs."""
    made = TrainingData(specs, source.what)
    source._settle()
    if len(specs) != len(source.specs):
        raise InputError(f"the data were read for {len(source.specs)} inputs, this model has {len(specs)}")
    if source._columns is not None:
        columns = source._columns
        made._columns = {new.name: columns[old.name] for new, old in zip(specs, source.specs, strict=True)}
        made._labels = source._labels
    elif source._items is not None:
        made._items = source._items
    else:
        made._stream = source._stream
    return made


def _columns(source: Any, specs: Sequence[TensorSpec]) -> tuple[dict[str, Array], Array | None] | None:
    """Arrays of all samples by input, and those of the labels; None if the source is not such."""
    rank = None if specs[0].shape is None else len(specs[0].shape)
    if is_array(source):
        if len(specs) != 1 or (rank is not None and len(source.shape) != rank):
            return None
        return {specs[0].name: to_numpy(source, "the training data")}, None
    whole = isinstance(source, dict) or (isinstance(source, tuple) and fits(source, len(specs)))
    if not whole:
        return None
    inputs, labels = split(source, specs, "the training data")
    parts = [*inputs.values(), *([] if labels is None else [labels])]
    if not all(is_array(p) or isinstance(p, list) for p in parts):
        return None
    lengths = {len(p) for p in parts}
    if len(lengths) > 1:
        raise InputError(
            "the training data have parts of different length: " + ", ".join(str(len(p)) for p in parts)
        )
    if len(inputs) == 1 and rank is not None and len(getattr(inputs[specs[0].name], "shape", ())) < rank:
        return None  # one sample, without the axis that counts samples
    arrays = {name: to_numpy(part, f"the training data, input {name!r}") for name, part in inputs.items()}
    return arrays, None if labels is None else to_numpy(labels, "the training labels")


def _samples(source: Any, specs: Sequence[TensorSpec]) -> bool:
    """Whether a source can be indexed and its items are single samples."""
    kind = type(source)
    if not (hasattr(kind, "__getitem__") and hasattr(kind, "__len__")) or isinstance(source, str | bytes):
        return False
    try:
        if len(source) == 0:
            return False
        return fit_item(source[0], specs, batching_of(specs), 0).sample
    except Exception:  # whatever its items are, reading them as a stream says what is wrong
        return False


def _joined(batches: Sequence[Batch], what: str) -> Batch:
    """All samples as one batch.

    Raises:
        InputError: the samples differ in shape, or only some have labels.
    """
    labels = [b.labels for b in batches if b.labels is not None]
    if labels and len(labels) < len(batches):
        raise InputError(f"{what}: some samples have labels and some have none")
    try:
        inputs = {name: np.concatenate([b.inputs[name] for b in batches]) for name in batches[0].inputs}
        joined = np.concatenate(labels) if labels else None
    except ValueError as error:
        raise InputError(
            f"{what}: samples of different shapes cannot be trained on in one batch ({error})",
            hint="pad or crop them to one shape, or give a loader whose batches have one shape each",
        ) from error
    return Batch(inputs, joined, sum(b.size for b in batches))
