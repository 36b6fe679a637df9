"""Byte strings through an entropy coder of the standard library, and back within a bound.

LZMA without literal context is an adaptive order-0 coder, within a few per cent of the entropy for numbers
that follow no pattern, which is what weights are; with its dictionary it also finds what repeats. Bytes that
are as good as random are stored as they are.
"""

from __future__ import annotations

import lzma
from typing import Any

import numpy as np

from attar.errors import InputError

Array = np.ndarray[Any, np.dtype[Any]]
_FILTERS: list[dict[str, int]] = [
    {"id": lzma.FILTER_LZMA2, "preset": 6, "lc": 0, "lp": 0, "pb": 0, "dict_size": 1 << 22}
]
# Shares of the entropy above which, and sizes below which, coding gains nothing.
_RANDOM, _TINY = 0.985, 24


def encode(data: bytes) -> tuple[str, bytes]:
    """(coder, bytes), the shorter of plain and coded."""
    if len(data) < _TINY or _entropy(data) > _RANDOM * 8:
        return "plain", data
    packed = lzma.compress(data, format=lzma.FORMAT_RAW, filters=_FILTERS)
    return ("lzma", packed) if len(packed) < len(data) else ("plain", data)


def decode(coder: str, data: bytes, size: int) -> bytes:
    """Exactly `size` bytes; never more than that is taken in memory.

    Raises:
        InputError: the coder is unknown, or the data are damaged or of another length.
    """
    if coder == "plain":
        out = data
    elif coder == "lzma":
        try:
            # Our own filters, not those that a file might ask for: it cannot choose a vast dictionary.
            machine = lzma.LZMADecompressor(lzma.FORMAT_RAW, filters=_FILTERS)
            out = machine.decompress(data, max_length=size + 1)
            while len(out) <= size and not machine.eof and not machine.needs_input:
                out += machine.decompress(b"", max_length=size + 1 - len(out))
        except lzma.LZMAError as error:
            raise InputError(f"a coded stream is damaged: {error}") from error
    else:
        raise InputError(f"unknown coder {coder!r:.40}")
    if len(out) != size:
        other = "more" if len(out) > size else "fewer"
        raise InputError(f"a stream has {other} than the {size} bytes declared")
    return out


def _entropy(data: bytes) -> float:
    """Bits a byte if each were drawn on its own."""
    share = np.bincount(np.frombuffer(data, np.uint8), minlength=256) / len(data)
    share = share[share > 0]
    return float(-(share * np.log2(share)).sum())
