"""`Data`: batches that fit a model, as often as wanted, one in memory at a time."""

from __future__ import annotations

import copy
import hashlib
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any

import numpy as np

from attar.calibration.batch import DEFAULT_SIZE, Array, Batch, Batching, Unit, batching_of
from attar.calibration.images import ImagePreprocess
from attar.calibration.items import fit_item
from attar.calibration.regroup import head, regroup
from attar.calibration.sources import Source, open_source
from attar.calibration.spool import Spool
from attar.errors import InputError
from attar.specs import TensorSpec


class Data:
    """A re-iterable stream of `Batch`. Made by `as_data`.

    Each pass reads the source anew (or, for a source that can be read once, what was kept of it) and checks
    every batch, so iterating raises `InputError` for data that do not fit the model.

    Attributes:
        specs: the inputs that the batches fit.
        notes: what the reader of a report should know: samples left out, labels taken from folders.
    """

    def __init__(
        self, source: Source, specs: Sequence[TensorSpec], *, limit: int | None, batch_size: int | None
    ) -> None:
        self.specs = tuple(specs)
        self.notes: list[str] = list(source.notes)
        self._batching = batching_of(specs)
        self._source = source
        self._limit = limit
        self._size = self._batching.fixed or batch_size if self._batching.splittable else None
        if self._batching.fixed and batch_size not in (None, self._batching.fixed):
            self._note(
                f"the model takes batches of exactly {self._batching.fixed}; "
                f"batch_size={batch_size} was not used"
            )
        self._units: Iterable[Unit] = _units(source, self.specs, self._batching)
        if source.once:
            self._units = Spool(iter(self._units), self.specs)
        self._rows = source.rows
        self._count: int | None = None
        self._digest: str | None = None

    def __iter__(self) -> Iterator[Batch]:
        count = left_out = 0

        def dropped(samples: int) -> None:
            nonlocal left_out
            left_out += samples

        strict = self._batching.splittable and self._batching.fixed is not None
        for batch in regroup(self._limited(), self._size, strict=strict, dropped=dropped):
            count += batch.size
            yield batch
            del batch
        if count == 0:
            self._raise_empty(left_out)
        if left_out:
            self._note(
                f"{left_out} of {count + left_out} samples were left out: the model takes batches of exactly "
                f"{self._batching.fixed}"
            )
        self._count = count

    def first(self) -> Batch:
        """The first batch; the next pass begins with it again.

        Raises:
            InputError: the data are empty, or the first batch does not fit the model.
        """
        return next(iter(self))

    def count(self) -> int | None:
        """The number of samples that a pass gives; None while it is not known. Known after a whole pass at
        the latest."""
        if self._count is not None:
            return self._count
        if self._rows is None and self._source.length is not None and self._source.cheap:
            # So many items: are they samples? One look tells; loaders, which start workers, are left alone.
            self._rows = self._source.length if next(iter(self._units)).sample else None
        rows = self._rows
        if rows is None:
            return None
        rows = rows if self._limit is None else min(rows, self._limit)
        fixed = self._batching.fixed if self._batching.splittable else None
        return rows - rows % fixed if fixed else rows

    def take(self, samples: int) -> Data:
        """The first `samples` samples (fewer if there are fewer), sharing the source. A model that takes
        batches of exactly so many gets one of them at least.

        Raises:
            InputError: `samples` is not positive.
        """
        limit = _positive(samples, "samples")
        assert limit is not None
        fixed = self._batching.fixed if self._batching.splittable else None
        return self._at_most(max(limit, fixed or 0))

    def _at_most(self, limit: int) -> Data:
        taken = copy.copy(self)
        taken.notes = list(self.notes)
        taken._limit = limit if self._limit is None else min(limit, self._limit)
        taken._count = taken._digest = None
        return taken

    def digest(self) -> str:
        """A hash (BLAKE2b, 64 hex digits) of all batches: names, dtypes, shapes, bytes, labels. Takes one
        pass, then cached.

        Sources that shuffle have another digest each time they are opened.
        """
        if self._digest is None:
            state = hashlib.blake2b(digest_size=32)
            for batch in self:
                for name, array in [*sorted(batch.inputs.items()), ("labels", batch.labels)]:
                    _hash(state.update, name, array)
                del batch
            self._digest = state.hexdigest()
        return self._digest

    def __repr__(self) -> str:
        known = self._count if self._count is not None else self._rows
        return f"Data({self._source.what}" + ("" if known is None else f", {known} samples") + ")"

    def _limited(self) -> Iterator[Unit]:
        left = self._limit
        for unit in self._units:
            if left is not None and unit.batch.size > left and self._batching.splittable:
                unit = Unit(head(unit.batch, left), unit.sample)  # noqa: PLW2901  (no second reference)
            if left is not None:
                left -= unit.batch.size
            yield unit
            del unit
            if left is not None and left <= 0:  # before asking for more: the source may be endless
                return

    def _raise_empty(self, left_out: int) -> None:
        if left_out:
            raise InputError(
                f"the model takes batches of exactly {self._batching.fixed}, "
                f"the data have only {left_out} samples"
                + (" of one shape" if self._limit is None else f" (limit {self._limit})"),
                hint="give more samples, or a model with a symbolic batch dimension",
            )
        if self._count:
            raise InputError(
                f"{self._source.what} gave {self._count} samples on an earlier pass and none on this one",
                hint="a function must return a new iterator each time it is called; __iter__ must start anew",
            )
        raise InputError(f"the data are empty: {self._source.what} gave nothing")

    def _note(self, text: str) -> None:
        if text not in self.notes:
            self.notes.append(text)


def as_data(
    source: Any,
    specs: Sequence[TensorSpec],
    *,
    preprocess: ImagePreprocess | Mapping[str, Any] | Callable[[Any], Any] | None = None,
    limit: int | None = None,
    batch_size: int | None = None,
) -> Data:
    """Read calibration or evaluation data from what the user has.

    Args:
        source: an iterable of arrays, tuples, lists or dicts (lists, DataLoaders, `tf.data.Dataset`s,
            generators); one array of all samples, a dict of such arrays by input name, a tuple `(x, y)`; an
            object with `__len__` and `__getitem__` (torch Dataset, Keras Sequence); a function that returns a
            new iterator; the path of an `.npz` or `.npy` file or of a folder of images. Tensors of any
            framework will do.
        specs: the model's inputs (`attar.specs.input_specs`).
        preprocess: how images become arrays: `ImagePreprocess`, a dict of its options, or a function of a PIL
            image.
        limit: use this many samples at most.
        batch_size: samples a batch; None keeps batches as they come and takes 32 for data without batches. A
            fixed batch dimension in the model goes before it.

    Raises:
        InputError: the source cannot be read, is empty, or does not fit the model. What only shows in the
            batches is raised when they are read.
    """
    specs = tuple(specs)
    if not specs:
        raise InputError("the model has no inputs, so no data can be fed to it")
    limit, batch_size = _positive(limit, "limit"), _positive(batch_size, "batch_size")
    if isinstance(source, Data):
        if source.specs == specs and batch_size is None:
            return source if limit is None else source._at_most(limit)
        again = Source(lambda: iter(source), repr(source), rows=source.count())
        return Data(again, specs, limit=limit, batch_size=batch_size)
    batching = batching_of(specs)
    size = batching.fixed or batch_size or DEFAULT_SIZE
    opened = open_source(source, specs, batching, preprocess=preprocess, size=size, limit=limit)
    return Data(opened, specs, limit=limit, batch_size=batch_size)


class _units:  # noqa: N801  (stands for a generator that can be started again)
    """The items of a source, fitted to the model."""

    def __init__(self, source: Source, specs: Sequence[TensorSpec], batching: Batching) -> None:
        self._arguments = source, specs, batching

    def __iter__(self) -> Iterator[Unit]:
        source, specs, batching = self._arguments
        at = 0  # enumerate() would hold on to the last item while it fetches the next
        for item in source.items():
            fitted = fit_item(item, specs, batching, at, source.image)
            del item
            yield fitted
            del fitted
            at += 1  # noqa: SIM113


def _positive(number: Any, name: str) -> int | None:
    if number is None:
        return None
    if isinstance(number, bool) or not isinstance(number, int | np.integer) or number < 1:
        raise InputError(f"{name} must be a positive whole number, not {number!r}")
    return int(number)


def _hash(update: Callable[[Any], None], name: str, array: Array | None) -> None:
    if array is None:
        return
    if array.dtype == object:
        array = array.astype(np.str_)
    update(f"{name}\0{array.dtype.name}\0{array.shape}\0".encode())
    update(np.ascontiguousarray(array).reshape(-1).view(np.uint8))
