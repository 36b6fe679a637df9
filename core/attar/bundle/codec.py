"""One tensor without loss, in the fewest bytes of several forms.

Numbers are taken as bit patterns, so that signs of zero and payloads of NaN come back as they were.

- dense: the bytes of all numbers, the first bytes of all, then the second bytes, and so on.
- sparse: a bitmap of what is not zero, then the bytes of those as above.
- codebook: the distinct patterns, and an index into them for each number; per tensor, or for each slice along
  an axis with patterns of its own (channels that were scaled or quantized each by its own factor).

Every form is a list of byte streams, which go through an entropy coder.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from attar.bundle import streams
from attar.errors import InputError

Array = np.ndarray[Any, np.dtype[Any]]
# Larger codebooks save nothing over the bytes themselves.
_MOST = 1 << 16
_WORDS = {1: np.uint8, 2: np.uint16, 4: np.uint32, 8: np.uint64}


@dataclass(frozen=True)
class Packed:
    """A tensor as it lies in a bundle.

    Attributes:
        form: "dense", "sparse" or "codebook".
        axis: of a codebook's slices; -1: one for the whole tensor.
        parts: (coder, coded bytes, length of the stream) in the order of the form.
    """

    form: str
    axis: int
    parts: tuple[tuple[str, bytes, int], ...]

    @property
    def size(self) -> int:
        return sum(len(data) for _, data, _ in self.parts)

    def describe(self) -> dict[str, Any]:
        """For the manifest: everything but the bytes."""
        parts = [{"coder": c, "coded": len(data), "bytes": size} for c, data, size in self.parts]
        return {"form": self.form, "axis": self.axis, "streams": parts}


def pack(words: Array) -> Packed:
    """The smallest of the forms that may pay.

    Args:
        words: unsigned integers of 1, 2, 4 or 8 bytes: the bit patterns.
    """
    flat = np.ascontiguousarray(words)
    kinds = _distinct(flat)
    tried = []
    if kinds <= _MOST:
        tried.append(_packed("codebook", -1, _book(flat.reshape(1, -1))))
    if flat.ndim >= 2 and flat.size:
        for axis in {0, 1} if flat.ndim == 2 else {0}:
            rows = np.moveaxis(flat, axis, 0).reshape(flat.shape[axis], -1)
            # Only where channels repeat their numbers: a codebook a row costs its entries again each time.
            pays = flat.itemsize > 1 or kinds > 16
            if pays and _repeats(rows, 0.5 if flat.itemsize > 1 else 0.25):
                tried.append(_packed("codebook", axis, _book(rows)))
    zeros = int(flat.size - np.count_nonzero(flat))
    if zeros > 0.05 * flat.size:
        tried.append(_packed("sparse", -1, _sparse(flat)))
    if not tried or flat.itemsize <= 2 or kinds > min(4096, flat.size // 4):
        tried.append(_packed("dense", -1, [_planes(flat.reshape(-1))]))
    return min(tried, key=lambda p: p.size)


def unpack(about: Mapping[str, Any], data: bytes, shape: tuple[int, ...], itemsize: int) -> Array:
    """The words that `pack` was given.

    Args:
        about: as `Packed.describe` gave it; types of values are not checked (`manifest.check_manifest` does).
        data: the coded streams, one behind the other.

    Raises:
        InputError: the description is not one that `pack` makes, or the data do not fit it.
    """
    form, axis, size = about["form"], about["axis"], math.prod(shape)
    if itemsize not in _WORDS:
        raise InputError(f"no numbers have {itemsize!r} bytes")
    word = np.dtype(_WORDS[itemsize])
    reader = _Reader(about["streams"], data)
    if form == "dense":
        out = _from_planes(reader.take(size * itemsize), size, word)
    elif form == "sparse":
        bitmap = np.frombuffer(reader.take(-(-size // 8)), np.uint8)
        full = np.unpackbits(bitmap, count=size).view(np.bool_)
        out = np.zeros(size, word)
        count = int(full.sum())
        out[full] = _from_planes(reader.take(count * itemsize), count, word)
    elif form == "codebook":
        whole = axis == -1
        if not whole and not (size and 0 <= axis < len(shape)):
            raise InputError(f"a codebook along axis {axis!r} does not fit the shape {list(shape)}")
        rows = 1 if whole else shape[axis]
        turned = () if whole else (shape[axis], *(n for i, n in enumerate(shape) if i != axis))
        numbers = _from_book(reader, rows, size // max(1, rows), word)
        out = numbers.reshape(-1) if whole else np.moveaxis(numbers.reshape(turned), 0, axis).reshape(-1)
    else:
        raise InputError(f"unknown form {form!r:.40}")
    reader.end()
    return np.ascontiguousarray(out).reshape(shape)


class _Reader:
    """The streams of one tensor, one after the other."""

    def __init__(self, parts: Sequence[Mapping[str, Any]], data: bytes) -> None:
        self._parts, self._data, self._next, self._at = list(parts), data, 0, 0

    def take(self, size: int) -> bytes:
        """The next stream, which must have `size` bytes."""
        if self._next >= len(self._parts):
            raise InputError("a stream is missing")
        part = self._parts[self._next]
        coder, coded, said = part["coder"], part["coded"], part["bytes"]
        if said != size:
            raise InputError(f"a stream of {size} bytes is declared with {said}")
        if not 0 <= coded <= len(self._data) - self._at:
            raise InputError("a stream is cut short")
        piece = self._data[self._at : self._at + coded]
        self._next, self._at = self._next + 1, self._at + coded
        return streams.decode(coder, piece, size)

    def end(self) -> None:
        if self._next != len(self._parts) or self._at != len(self._data):
            raise InputError("there are more streams or bytes than the form has")


def _packed(form: str, axis: int, plain: Sequence[bytes]) -> Packed:
    coded = [(*streams.encode(part), len(part)) for part in plain]
    return Packed(form, axis, tuple(coded))


def _planes(words: Array) -> bytes:
    """First bytes of all words, then second bytes, ..., the lowest first."""
    little = words.astype(words.dtype.newbyteorder("<"), copy=False)
    return little.view(np.uint8).reshape(-1, words.itemsize).T.tobytes()


def _from_planes(data: bytes, count: int, word: np.dtype[Any]) -> Array:
    planes = np.frombuffer(data, np.uint8).reshape(word.itemsize, count)
    return np.ascontiguousarray(planes.T).reshape(-1).view(word.newbyteorder("<")).astype(word)


def _sparse(words: Array) -> list[bytes]:
    flat = words.reshape(-1)
    return [np.packbits(flat != 0).tobytes(), _planes(flat[flat != 0])]


def _book(rows: Array) -> list[bytes]:
    """[how many entries each row has, the entries, the indices]. Entries of a row go by falling number of
    uses, so that indices of all rows have the same distribution; counts and wide indices take 2 bytes."""
    counts, entries, indices = [], [], np.empty(rows.shape, np.uint16)
    for i, row in enumerate(rows):
        found, inverse, uses = np.unique(row, return_inverse=True, return_counts=True)
        order = np.argsort(-uses, kind="stable")
        place = np.empty(len(order), np.uint16)
        place[order] = np.arange(len(order))
        indices[i] = place[inverse.reshape(-1)]
        counts.append(len(found) - 1 if len(found) else 0)
        entries.append(found[order])
    wide = bool(counts) and max(counts) > 255
    book = np.concatenate(entries) if entries else rows.reshape(-1)[:0]
    small = indices if wide else indices.astype(np.uint8)
    return [np.array(counts, "<u2").tobytes(), _planes(book), _planes(small.reshape(-1))]


def _from_book(reader: _Reader, rows: int, columns: int, word: np.dtype[Any]) -> Array:
    counts = np.frombuffer(reader.take(2 * rows), "<u2").astype(np.int64) + 1
    if rows * columns == 0:
        counts = np.zeros(rows, np.int64)
    if (counts > columns).any():  # else a small tensor could ask for a book of any size
        raise InputError("a codebook has more entries than numbers")
    total = int(counts.sum())
    entries = _from_planes(reader.take(total * word.itemsize), total, word)
    kind = np.dtype(np.uint16 if counts.max(initial=0) > 256 else np.uint8)
    indices = _from_planes(reader.take(rows * columns * kind.itemsize), rows * columns, kind)
    indices = indices.reshape(rows, columns)
    if columns and (indices >= counts[:, None]).any():
        raise InputError("an index points behind its codebook")
    starts = np.cumsum(counts) - counts
    if not rows * columns:
        return np.empty((rows, columns), word)
    return np.asarray(entries[indices + starts[:, None]])


def _distinct(words: Array) -> int:
    """Number of distinct words; for large tensors of wide words first of a sample, which may be enough to
    tell."""
    flat = words.reshape(-1)
    if flat.size > 4 * _MOST and len(np.unique(flat[: 2 * _MOST])) > _MOST:
        return _MOST + 1
    return len(np.unique(flat))


def _repeats(rows: Array, share: float = 0.5) -> bool:
    """Whether rows have far fewer distinct words than numbers; looks at a few of them."""
    some = rows[np.linspace(0, len(rows) - 1, min(8, len(rows))).astype(int)]
    return bool(sum(len(np.unique(row)) for row in some) <= share * some.size)
