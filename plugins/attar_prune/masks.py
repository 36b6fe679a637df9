"""Which weights go: masks (True: becomes zero) by importance, as plain functions on rows `[groups, rows, K]`.

K runs over what one output sums over, in the order that the caller wants neighbours to have.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from attar.errors import InputError

Array = np.ndarray[Any, np.dtype[Any]]


def lowest(importance: Array, ratio: float, *, by_row: bool = False) -> Array:
    """The `ratio` of least importance, in all or (the last axis) of each row. Ties go to the earlier."""
    flat = importance.reshape(-1, importance.shape[-1]) if by_row else importance.reshape(1, -1)
    count = round(ratio * flat.shape[1])
    mask = np.zeros(flat.shape, np.bool_)
    np.put_along_axis(mask, np.argsort(flat, axis=1, kind="stable")[:, :count], True, axis=1)
    return mask.reshape(importance.shape)


def n_of_m(importance: Array, stay: int, m: int) -> Array:
    """Of each m neighbours along the last axis all but the `stay` most important.

    Raises:
        InputError: m does not divide the last axis.
    """
    if not 0 < stay <= m or importance.shape[-1] % m:
        raise InputError(f"{stay}:{m} does not fit {importance.shape[-1]} neighbours")
    parts = importance.reshape(*importance.shape[:-1], -1, m)
    mask = np.zeros(parts.shape, np.bool_)
    order = np.argsort(parts, axis=-1, kind="stable")
    np.put_along_axis(mask, order[..., : m - stay], True, axis=-1)
    return mask.reshape(importance.shape)


def blocks(importance: Array, block: tuple[int, int], ratio: float) -> Array:
    """Whole blocks of (rows, neighbours), those of the least mean importance. Blocks at the edges may be
    smaller."""
    rows, columns = importance.shape[-2:]
    high, wide = min(block[0], rows), min(block[1], columns)
    above, left = np.arange(0, rows, high), np.arange(0, columns, wide)
    sums = np.add.reduceat(np.add.reduceat(importance, above, axis=-2), left, axis=-1)
    heights = np.diff(np.append(above, rows))
    widths = np.diff(np.append(left, columns))
    # Mean importance, so that a small block at the edge is not taken for an unimportant one.
    mask = lowest(sums / np.outer(heights, widths), ratio)
    return np.repeat(np.repeat(mask, heights, axis=-2), widths, axis=-1)
