"""Sizes that are known by name only: products such as `8*batch`, which reshapes make and undo."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterable

Dim = int | str
"""A number, a name, or a product of one number and names: `8*batch`. Names hold no `*`."""


def split_dim(dim: Dim) -> tuple[int, Counter[str]]:
    """The number and the names of a product."""
    if isinstance(dim, int):
        return dim, Counter()
    number, names = 1, Counter[str]()
    for part in dim.split("*"):
        if part.isdigit():
            number *= int(part)
        else:
            names[part] += 1
    return number, names


def join_dim(number: int, names: Counter[str]) -> Dim:
    parts = sorted(names.elements())
    if not parts or number == 0:
        return number
    return "*".join([str(number), *parts] if number != 1 else parts)


def product(dims: Iterable[Dim]) -> Dim:
    """The product of sizes."""
    number, names = 1, Counter[str]()
    for dim in dims:
        n, more = split_dim(dim)
        number, names = number * n, names + more
    return join_dim(number, names)


def quotient(whole: Dim, part: Dim) -> Dim | None:
    """`whole / part` where it is sure to be a whole number, else None."""
    (a, names), (b, less) = split_dim(whole), split_dim(part)
    if b == 0 or a % b or less - names:
        return None
    return join_dim(a // b, names - less)


def safe_name(text: str) -> str:
    """`text` as the name of a size."""
    name = re.sub(r"[^\w.]+", "_", text)
    return f"n{name}" if not name or name.isdigit() else name
