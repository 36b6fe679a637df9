"""Data in `.npz` and `.npy` files, read batch by batch. Nothing is ever unpickled."""

from __future__ import annotations

import math
import re
import zipfile
import zlib
from collections.abc import Iterator, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any

import numpy as np

from attar.calibration.batch import Array, Batching
from attar.calibration.items import LABEL_KEYS, assign
from attar.errors import InputError
from attar.specs import TensorSpec

_npy: Any = np.lib.format  # not typed
_BROKEN = (
    OSError,
    ValueError,
    EOFError,
    KeyError,
    zipfile.BadZipFile,
    zlib.error,
    NotImplementedError,
    RuntimeError,
)


@dataclass(frozen=True)
class Member:
    """One array of an archive, known by its header."""

    key: str
    file: str
    shape: tuple[int, ...]
    dtype: np.dtype[Any]
    fortran: bool


def open_npy(path: Path) -> Array:
    """The array of a `.npy` file, mapped and not read.

    Raises:
        InputError: the file is broken or holds Python objects.
    """
    try:
        array = np.load(path, mmap_mode="r", allow_pickle=False)
    except _BROKEN as error:
        raise InputError(f"{path} cannot be read as .npy: {error}") from error
    if not isinstance(array, np.ndarray):
        raise InputError(f"{path} is not a .npy file", hint="an .npz archive must be named .npz")
    return array


class Archive:
    """An `.npz` file whose arrays are read a batch at a time, compressed or not.

    Keys are the names of the model's inputs; labels go by the usual names. Arrays that were saved without
    names (`np.savez(path, x, y)`), and a single array beside the labels, are taken by position.

    Raises:
        InputError: the file is broken, holds Python objects, or its keys do not fit the model.
    """

    def __init__(self, path: Path, specs: Sequence[TensorSpec], batching: Batching) -> None:
        self.path = path
        members = self._members()
        self._inputs, label = _match(members, specs, str(path))
        self._labels = None if label is None else members[label]
        used = list(self._inputs.values()) + ([self._labels] if self._labels else [])
        # Rows of a C-ordered array follow each other in the file; anything else has to be read whole.
        self.streams = batching.splittable and all(
            s.shape is None or len(self._inputs[s.name].shape) == len(s.shape) for s in specs
        )
        self.streams = self.streams and all(m.shape and not m.fortran for m in used)
        self.rows: int | None = None
        if self.streams:
            rows = {m.key: m.shape[0] for m in used}
            if len(set(rows.values())) > 1:
                raise InputError(
                    f"{path}: arrays of different length: " + ", ".join(f"{k} {n}" for k, n in rows.items())
                )
            self.rows = next(iter(rows.values()))

    def batches(self, size: int) -> Iterator[tuple[dict[str, Array], Array | None]]:
        """(inputs, labels) of `size` rows each, the last of what is left."""
        with ExitStack() as stack:
            archive = stack.enter_context(self._open())
            rows = {n: Rows(stack, archive, m, self.path) for n, m in self._inputs.items()}
            labels = Rows(stack, archive, self._labels, self.path) if self._labels else None
            for start in range(0, self.rows or 0, size):
                count = min(size, (self.rows or 0) - start)
                yield {n: r.read(count) for n, r in rows.items()}, labels.read(count) if labels else None

    def whole(self) -> tuple[dict[str, Array], Array | None]:
        """(inputs, labels), all of it in memory."""
        with ExitStack() as stack:
            archive = stack.enter_context(self._open())
            inputs = {n: Rows(stack, archive, m, self.path).all() for n, m in self._inputs.items()}
            return inputs, Rows(stack, archive, self._labels, self.path).all() if self._labels else None

    def _open(self) -> zipfile.ZipFile:
        try:
            return zipfile.ZipFile(self.path)
        except _BROKEN as error:
            raise InputError(f"{self.path} cannot be read as .npz: {error}") from error

    def _members(self) -> dict[str, Member]:
        members = {}
        with self._open() as archive:
            for info in archive.infolist():
                key = info.filename.removesuffix(".npy")
                try:
                    with archive.open(info) as file:
                        shape, fortran, dtype = _header(file)
                except _BROKEN as error:
                    raise InputError(f"{self.path}: {info.filename} cannot be read: {error}") from error
                if dtype.hasobject:
                    raise InputError(f"{self.path}: {key} holds Python objects, which are never unpickled")
                if math.prod(shape) * dtype.itemsize > info.file_size:
                    raise InputError(
                        f"{self.path}: {key} says it is {dtype}{list(shape)}, but the file is shorter"
                    )
                members[key] = Member(key, info.filename, shape, dtype, fortran)
        return members


class Rows:
    """Reads one array of an open archive from its first row to its last."""

    def __init__(self, stack: ExitStack, archive: zipfile.ZipFile, member: Member, path: Path) -> None:
        self._member, self._path = member, path
        try:
            self._file = stack.enter_context(archive.open(member.file))
            _header(self._file)
        except _BROKEN as error:
            raise InputError(f"{path}: {member.key} cannot be read: {error}") from error

    def read(self, count: int) -> Array:
        """The next `count` rows."""
        return self._take((count, *self._member.shape[1:]))

    def all(self) -> Array:
        """The whole array."""
        shape = self._member.shape
        return self._take(shape[::-1]).T if self._member.fortran else self._take(shape)

    def _take(self, shape: tuple[int, ...]) -> Array:
        need = math.prod(shape) * self._member.dtype.itemsize
        try:
            data = self._file.read(need)
        except _BROKEN as error:
            raise InputError(f"{self._path}: {self._member.key} cannot be read: {error}") from error
        if len(data) != need:
            raise InputError(f"{self._path}: {self._member.key} is cut short")
        return np.frombuffer(data, self._member.dtype).reshape(shape)


def _header(file: IO[bytes]) -> tuple[tuple[int, ...], bool, np.dtype[Any]]:
    version = _npy.read_magic(file)
    if version == (1, 0):
        header = _npy.read_array_header_1_0(file)
    elif version == (2, 0):
        header = _npy.read_array_header_2_0(file)
    else:
        raise ValueError(f"version {version} of the format holds records, not plain arrays")
    shape, fortran, dtype = header
    return tuple(int(d) for d in shape), bool(fortran), np.dtype(dtype)


def _match(
    members: dict[str, Member], specs: Sequence[TensorSpec], where: str
) -> tuple[dict[str, Member], str | None]:
    """Input name -> member, and the key of the labels."""
    if not members:
        raise InputError(f"{where} holds no arrays")
    names = [s.name for s in specs]
    keys = sorted(members)
    if not any(n in members for n in names):
        unnamed = all(re.fullmatch(r"arr_\d+", k) for k in keys)
        if unnamed and len(keys) in (len(names), len(names) + 1):
            keys.sort(key=lambda k: int(k[4:]))
            inputs = dict(zip(names, (members[k] for k in keys), strict=False))
            return inputs, keys[-1] if len(keys) > len(names) else None
        others = [k for k in keys if k not in LABEL_KEYS]
        if len(names) == 1 and len(others) == 1:
            return {names[0]: members[others[0]]}, next((k for k in LABEL_KEYS if k in members), None)
    label = assign(keys, specs, where)
    return {n: members[n] for n in names}, label
