"""The values of attributes, which MXNet stores as text in the spelling of Python 2, Python 3 or C++."""

from __future__ import annotations

import re
from typing import Any

import ml_dtypes
import numpy as np

_INT = re.compile(r"[+-]?\d+[lL]?$")
_DTYPES: dict[str, np.dtype[Any]] = {
    n: np.dtype(n)
    for n in (
        [
            "float32",
            "float64",
            "float16",
            "uint8",
            "int32",
            "int8",
            "int64",
            "bool",
            "int16",
            "uint16",
            "uint32",
            "uint64",
        ]
    )
} | {"bfloat16": np.dtype(ml_dtypes.bfloat16)}
DTYPE_CODES: tuple[np.dtype[Any], ...] = tuple(_DTYPES.values())
"""Element types by MXNet's number, as `__dtype__` and `.params` files have it."""


def to_bool(text: str) -> bool:
    word = text.strip().lower()
    if word in ("true", "1"):
        return True
    if word in ("false", "0"):
        return False
    raise ValueError("True or False")


def to_int(text: str) -> int:
    text = text.strip()
    if _INT.match(text):
        return int(text.rstrip("lL"))
    number = float(text)
    if number != int(number):
        raise ValueError("a whole number")
    return int(number)


def to_float(text: str) -> float:
    text = text.strip()
    if text.lower() in ("true", "false"):
        return float(text.lower() == "true")
    return float(text.rstrip("fFlL") if text[-1:].isalpha() and text[-2:-1].isdigit() else text)


def to_items(text: str) -> list[str]:
    """The items of `(1L, 1L)`, `[3,3]`, `(1,)`, `()` or a lone `3`, as text."""
    text = text.strip()
    if text[:1] in "([" and text[-1:] in ")]":
        text = text[1:-1]
    return [item.strip() for item in text.split(",") if item.strip()]


def to_ints(text: str) -> tuple[int, ...]:
    return tuple(to_int(item) for item in to_items(text))


def to_optional_ints(text: str) -> tuple[int | None, ...]:
    """As `to_ints`, with None among the items, as in the bounds of slices."""
    return tuple(None if item == "None" else to_int(item) for item in to_items(text))


def to_floats(text: str) -> tuple[float, ...]:
    return tuple(to_float(item) for item in to_items(text))


def to_dtype(text: str) -> np.dtype[Any]:
    """`float32`, or MXNet's number of the type."""
    text = text.strip()
    if text.isdigit() and int(text) < len(DTYPE_CODES):
        return DTYPE_CODES[int(text)]
    if text not in _DTYPES:
        raise ValueError("a type of numbers")
    return _DTYPES[text]


def is_none(text: str) -> bool:
    return text.strip() in ("None", "")
