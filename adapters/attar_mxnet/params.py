"""`.params` files: named arrays as MXNet saves them, read and written without MXNet.

Little endian throughout. The layout follows `NDArray::Save` and `NDArray::Load` of apache/mxnet
(`src/ndarray/ndarray.cc`): a header, the arrays, their names. Four versions of the array record exist,
told apart by a magic number; the oldest has none. Files of MXNet 2 are numpy's `.npz`.
"""

from __future__ import annotations

import math
import mmap
import struct
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np

from attar.errors import InputError
from attar.files import place, replacing

_LIST_MAGIC = 0x112
_V1, _V2, _V3 = 0xF993FAC8, 0xF993FAC9, 0xF993FACA
_CPU = (1, 0)
_MAX_RANK = 32  # numpy's limit; MXNet's own is lower
_TYPES: tuple[np.dtype[Any], ...] = tuple(
    np.dtype(t)
    for t in (
        np.float32,
        np.float64,
        np.float16,
        np.uint8,
        np.int32,
        np.int8,
        np.int64,
        np.bool_,
        np.int16,
        np.uint16,
        np.uint32,
        np.uint64,
        ml_dtypes.bfloat16,
    )
)
"""Element types by MXNet's number (mshadow's TypeFlag)."""


def read_params(path: str | Path) -> dict[str, np.ndarray[Any, Any]]:
    """The arrays of a `.params` file by their stored names, such as `arg:conv0_weight`.

    Sparse arrays come out dense. Arrays of a file without names are called by their number: `0`, `1`, ...

    Raises:
        InputError: the file is missing, damaged, or cut short; the message names the array.
    """
    path = Path(path)
    try:
        with path.open("rb") as file:
            if not file.read(1):
                raise InputError(f"{path} is empty, not a file of MXNet parameters")
            with mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as content:
                return parse_params(content, str(path))
    except OSError as error:
        raise InputError(f"cannot read {path}: {error.strerror or error}") from error


def parse_params(content: Any, source: str = "the given bytes") -> dict[str, np.ndarray[Any, Any]]:
    """As `read_params`, from bytes, a memoryview or a mapped file. The arrays are copies.

    Raises:
        InputError: `content` is damaged or cut short.
    """
    if bytes(content[:2]) == b"PK":
        from attar_mxnet.npz import parse_npz

        return parse_npz(bytes(content), source)
    reader = _Reader(content, source)
    magic, _ = reader.take("QQ", "the header")
    if magic != _LIST_MAGIC:
        raise InputError(f"{source} is not a file of MXNet parameters: it starts with {magic:#x}, not 0x112")
    # An empty record takes 12 bytes, a name 8: numbers beyond that cannot be true.
    count = reader.count("the number of arrays", least_bytes=4)
    arrays = []
    for index in range(count):
        reader.what = f"array {index} of {count}"
        arrays.append(_read_array(reader))
    reader.what = "the names"
    named = reader.count("the number of names", least_bytes=8)
    if named not in (0, count):
        raise InputError(f"{source} holds {count} arrays and {named} names")
    names = [reader.text() for _ in range(named)] or [str(i) for i in range(count)]
    if len(set(names)) != count:
        twice = next(n for n in names if names.count(n) > 1)
        raise InputError(f"{source} holds two arrays of the name {twice!r}")
    return dict(zip(names, arrays, strict=True))


def params_bytes(arrays: Mapping[str, np.ndarray[Any, Any]], *, np_shape: bool = False) -> bytes:
    """The content of a `.params` file, byte for byte as `mxnet.nd.save` of MXNet 1.9.1 writes it.

    Args:
        arrays: name (with `arg:` or `aux:` where the file goes with a symbol) -> array, in this order.
        np_shape: write the version that MXNet reads only inside `np_shape(True)`. It alone can hold
            scalars and empty arrays.

    Raises:
        InputError: MXNet cannot hold an array.
    """
    return b"".join(_pieces(arrays, np_shape))


def write_params(
    path: str | Path, arrays: Mapping[str, np.ndarray[Any, Any]], *, np_shape: bool = False
) -> None:
    """Write `arrays` to `path` in one step; see `params_bytes`.

    Raises:
        InputError: MXNet cannot hold an array, or the file cannot be written.
    """
    for name, array in arrays.items():
        _check(name, array, np_shape)
    with replacing(place(path)) as part, part.open("wb") as file:
        for piece in _pieces(arrays, np_shape):
            file.write(piece)


def _pieces(arrays: Mapping[str, np.ndarray[Any, Any]], np_shape: bool) -> Iterator[Any]:
    yield struct.pack("<QQQ", _LIST_MAGIC, 0, len(arrays))
    for name, array in arrays.items():
        code = _check(name, array, np_shape)
        little = np.asarray(array, dtype=_TYPES[code].newbyteorder("<"))
        shape = struct.pack(f"<i{little.ndim}q", little.ndim, *little.shape)
        yield struct.pack("<Ii", _V3 if np_shape else _V2, 0) + shape + struct.pack("<3i", *_CPU, code)
        yield little.tobytes()
    yield struct.pack("<Q", len(arrays))
    for name in arrays:
        encoded = name.encode()
        yield struct.pack("<Q", len(encoded)) + encoded


def _check(name: str, array: np.ndarray[Any, Any], np_shape: bool) -> int:
    """The number of the array's type."""
    if (array.size == 0 and not np_shape) or (array.ndim == 0 and not np_shape):
        raise InputError(
            f"{name!r} has shape {list(array.shape)}, which MXNet 1 holds only in its numpy mode",
            hint="np_shape=True",
        )
    try:
        return _TYPES.index(array.dtype.newbyteorder("="))
    except ValueError:
        raise InputError(f"{name!r} is of type {array.dtype}, which MXNet does not have") from None


def _read_array(reader: _Reader) -> np.ndarray[Any, Any]:
    (magic,) = reader.take("I", "its version")
    if magic not in (_V1, _V2, _V3):
        return _read_old(reader, magic)
    if magic == _V1:
        shape = reader.shape()
        return reader.plain(shape) if shape else np.empty(0, np.float32)
    (storage,) = reader.take("i", "its storage type")
    if storage not in (0, 1, 2) or (magic == _V3 and storage != 0):
        raise reader.fault(f"storage type {storage} does not exist")
    stored = reader.shape() if storage else None
    shape = reader.shape(unknown=magic == _V3)
    if shape is None or (magic == _V2 and not shape):
        return np.empty(0, np.float32)  # an array that was never filled: nothing follows
    if stored is None:
        return reader.plain(shape)
    return _read_sparse(reader, storage, stored or (), shape)


def _read_old(reader: _Reader, rank: int) -> np.ndarray[Any, Any]:
    """The record from before versions: the rank stands where others have the magic number."""
    if rank > _MAX_RANK:
        raise reader.fault(f"neither a version nor a rank: {rank:#x}")
    shape = reader.take(f"{rank}I", "its shape")
    return reader.plain(shape) if shape else np.empty(0, np.float32)


def _read_sparse(
    reader: _Reader, storage: int, stored: tuple[int, ...], shape: tuple[int, ...]
) -> np.ndarray[Any, Any]:
    reader.take("2i", "its device")
    dtype = reader.dtype()
    extra = [(reader.dtype(), reader.shape() or ()) for _ in range(storage)]
    if any(t.kind not in "iu" or len(s) != 1 for t, s in extra):
        raise reader.fault("the indices of a sparse array are not integers in one row")
    if storage == 2:
        if len(shape) != 2:
            raise reader.fault(f"a csr array has two axes, not {len(shape)}")
        stored = extra[1][1]  # files exist whose stored shape is wrong; there is a value for each index
    elif stored[1:] != shape[1:] or stored[:1] != extra[0][1]:
        raise reader.fault(f"rows of shape {list(stored)} do not fit {list(shape)}")
    values = reader.array(dtype, stored)
    indices = [reader.array(t, s).astype(np.int64) for t, s in extra]
    # Zeros that are not stored need no bytes in the file, so the file cannot vouch for this size.
    if math.prod(shape) * dtype.itemsize > max(1 << 31, 1000 * reader.size):
        raise reader.fault(f"shape {list(shape)} is absurd for a file of {reader.size} bytes")
    dense = np.zeros(shape, dtype)
    if storage == 1:
        rows = indices[0]
        if rows.size and not (rows.min() >= 0 and rows.max() < shape[0]):
            raise reader.fault("a row index lies outside the array")
        dense[rows] = values
        return dense
    starts, columns = indices
    good = starts.size == shape[0] + 1 and starts[0] == 0 and starts[-1] == columns.size
    if not good or (np.diff(starts) < 0).any():
        raise reader.fault("the row pointers of a csr array are wrong")
    if columns.size and not (columns.min() >= 0 and columns.max() < shape[1]):
        raise reader.fault("a column index lies outside the array")
    dense[np.repeat(np.arange(shape[0]), np.diff(starts)), columns] = values
    return dense


class _Reader:
    """A position in the file. Every length is held against what is left of the file before it is used."""

    def __init__(self, content: Any, source: str) -> None:
        self._content, self._source, self._at = content, source, 0
        self.size = len(content)
        self.what = "the header"

    def fault(self, problem: str) -> InputError:
        return InputError(
            f"{self._source} is damaged: {self.what}: {problem}", hint="copy or download the file again"
        )

    def need(self, count: int, what: str) -> None:
        left = self.size - self._at
        if count > left:
            raise self.fault(f"{what} needs {count} bytes, the file has {left} left")

    def take(self, layout: str, what: str) -> tuple[int, ...]:
        layout = "<" + layout
        self.need(struct.calcsize(layout), what)
        values = struct.unpack_from(layout, self._content, self._at)
        self._at += struct.calcsize(layout)
        return values

    def count(self, what: str, least_bytes: int) -> int:
        (number,) = self.take("Q", what)
        self.need(number * least_bytes, f"{what}, {number},")
        return number

    def text(self) -> str:
        (length,) = self.take("Q", "a name's length")
        self.need(length, "a name")
        raw = bytes(self._content[self._at : self._at + length])
        self._at += length
        try:
            return raw.decode()
        except UnicodeDecodeError:
            raise self.fault("a name is not UTF-8") from None

    def shape(self, unknown: bool = False) -> tuple[int, ...] | None:
        """A shape; None where `unknown` ones are allowed and this is one."""
        (rank,) = self.take("i", "its rank")
        if rank == -1 and unknown:
            return None
        if not 0 <= rank <= _MAX_RANK:
            raise self.fault(f"rank {rank} is absurd")
        dims = self.take(f"{rank}q", "its shape")
        if any(d < 0 for d in dims):
            if unknown:
                return None
            raise self.fault(f"shape {list(dims)} has negative sizes")
        return dims

    def dtype(self) -> np.dtype[Any]:
        (code,) = self.take("i", "its type")
        if not 0 <= code < len(_TYPES):
            raise self.fault(f"element type {code} does not exist")
        return _TYPES[code]

    def plain(self, shape: tuple[int, ...]) -> np.ndarray[Any, Any]:
        self.take("2i", "its device")
        return self.array(self.dtype(), shape)

    def array(self, dtype: np.dtype[Any], shape: tuple[int, ...]) -> np.ndarray[Any, Any]:
        count = math.prod(shape)
        length = count * dtype.itemsize
        self.need(length, f"an array {dtype}{list(shape)}")
        little = dtype.newbyteorder("<") if dtype.kind in "fiu" else dtype
        view = np.frombuffer(self._content, little, count, self._at) if count else np.empty(0, dtype)
        self._at += length
        return view.astype(dtype, copy=True).reshape(shape)
