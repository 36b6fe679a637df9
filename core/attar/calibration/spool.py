"""Makes a source that can be read once readable again, by keeping what it gave in a temporary file."""

from __future__ import annotations

import shutil
import tempfile
import threading
import weakref
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from attar.calibration.batch import Array, Batch, Unit
from attar.errors import AttarError, InputError
from attar.specs import TensorSpec

_npy: Any = np.lib.format  # not typed


class Spool:
    """Re-iterable over the units of a one-shot iterator.

    What was read before comes from the file; what comes after it is pulled from the iterator, so that a pass
    which stops early costs nothing and a later one goes on from there. Memory holds one unit. The temporary
    folder goes when the object dies or the process ends.
    """

    def __init__(self, units: Iterator[Unit], specs: Sequence[TensorSpec]) -> None:
        self._units: Iterator[Unit] | None = units
        self._specs = tuple(specs)
        self._index: list[tuple[int, int, bool, bool]] = []  # offset, size, sample, has labels
        self._failure: AttarError | None = None
        self._lock = threading.Lock()
        self.folder = Path(tempfile.mkdtemp(prefix="attar-"))
        self._path = self.folder / "units"
        self._path.touch()
        weakref.finalize(self, shutil.rmtree, self.folder, ignore_errors=True)

    def __iter__(self) -> Iterator[Unit]:
        at = 0
        while True:
            unit = self._read(at) if at < len(self._index) else self._pull(at)
            if unit is None:
                return
            yield unit
            del unit
            at += 1

    def _pull(self, at: int) -> Unit | None:
        with self._lock:
            if at < len(self._index):  # another pass was quicker
                return self._read(at)
            if (
                self._failure is not None
            ):  # a generator that raised is finished: do not mistake that for the end
                raise self._failure
            if self._units is None:
                return None
            try:
                unit = next(self._units, None)
                if unit is None:
                    self._units = None
                else:
                    self._write(unit)
            except AttarError as error:
                self._failure, self._units = error, None
                raise
            return unit

    def _write(self, unit: Unit) -> None:
        batch = unit.batch
        try:
            with self._path.open("ab") as file:
                start = file.tell()
                for spec in self._specs:
                    _npy.write_array(file, _plain(batch.inputs[spec.name]), allow_pickle=False)
                if batch.labels is not None:
                    _npy.write_array(file, batch.labels, allow_pickle=False)
        except OSError as error:
            raise InputError(
                f"cannot keep the data in {self.folder}: {error.strerror or error}",
                hint="set TMPDIR to a folder with room, give limit=, or give data that can be read again",
            ) from error
        self._index.append((start, batch.size, unit.sample, batch.labels is not None))

    def _read(self, at: int) -> Unit:
        start, size, sample, has_labels = self._index[at]
        try:
            with self._path.open("rb") as file:
                file.seek(start)
                inputs = {}
                for spec in self._specs:
                    array = _npy.read_array(file, allow_pickle=False)
                    inputs[spec.name] = _typed(array, spec.dtype)
                labels = _npy.read_array(file, allow_pickle=False) if has_labels else None
        except (OSError, ValueError) as error:
            raise InputError(f"the data kept in {self.folder} cannot be read back: {error}") from error
        return Unit(Batch(inputs, labels, size), sample)


def _plain(array: Array) -> Array:
    """A dtype that the file format can say."""
    if array.dtype == object:
        return array.astype(np.str_)
    return array.view(f"V{array.dtype.itemsize}") if array.dtype.kind == "V" else array


def _typed(array: Array, dtype: np.dtype[np.generic]) -> Array:
    if dtype.kind == "O":
        return array.astype(object) if array.dtype.kind == "U" else array
    return array.view(dtype) if array.dtype.kind == "V" else array
