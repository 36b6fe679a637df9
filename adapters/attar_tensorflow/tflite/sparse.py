"""Sparse constants of `.tflite` files, made dense.

The format (`schema.fbs`, SparsityParameters; Kjolstad et al., "The Tensor Algebra Compiler", 2017):
dimensions are stored
in `traversal_order`, blocks of dimensions behind the ones that they divide; each is dense, or sparse with
segments and indices.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import numpy as np

from attar.errors import InputError

Array = np.ndarray[Any, np.dtype[Any]]
_DENSE, _SPARSE = 0, 1


def densify(  # noqa: PLR0915  one walk over the levels
    values: Array, shape: tuple[int, ...], sparsity: SimpleNamespace, bad: Callable[[str], InputError]
) -> Array:
    """The dense array of `shape` whose stored elements are `values`.

    Raises:
        InputError (made by `bad`): the description contradicts itself.
    """
    order = [int(d) for d in (() if sparsity.traversal_order is None else sparsity.traversal_order)]
    blocks = [int(d) for d in (() if sparsity.block_map is None else sparsity.block_map)]
    levels = sparsity.dim_metadata or []
    rank = len(shape)
    if sorted(order) != list(range(rank + len(blocks))) or len(levels) != len(order):
        raise bad("its sparse layout does not fit its shape")
    if any(not 0 <= b < rank for b in blocks) or len(set(blocks)) != len(blocks):
        raise bad("its sparse blocks divide dimensions that it does not have")
    if math.prod(shape) > (1 << 31):
        raise bad("it is too large to be made dense")
    sizes = list(shape) + [0] * len(blocks)
    for d, level in zip(order, levels, strict=True):
        if d >= rank:
            sizes[d] = int(level.dense_size)
            if sizes[d] <= 0 or shape[blocks[d - rank]] % sizes[d]:
                raise bad("its sparse blocks do not divide its shape")
    for place, d in enumerate(blocks):
        sizes[d] = shape[d] // sizes[rank + place]
    # Every stored element's coordinate along each stored dimension, level by level.
    parents = np.zeros(1, np.int64)  # position of each path within the level above
    columns: list[Array] = []
    for d, level in zip(order, levels, strict=True):
        size = sizes[d]
        if level.format == _DENSE:
            if len(parents) * size > (1 << 31):
                raise bad("it is too large to be made dense")
            take = np.repeat(np.arange(len(parents)), size)
            fresh = np.tile(np.arange(size), len(parents))
            position = parents[take] * size + fresh
        elif level.format == _SPARSE and level.array_segments is not None and level.array_indices is not None:
            segments = level.array_segments.values.astype(np.int64)
            indices = level.array_indices.values.astype(np.int64)
            if len(parents) and (
                parents.max() + 1 >= len(segments) or (np.diff(segments) < 0).any() or segments[0] < 0
            ):
                raise bad("its sparse segments are out of order")
            if segments[-1] > len(indices) or ((indices < 0) | (indices >= size)).any():
                raise bad("its sparse indices lead outside of it")
            counts = segments[parents + 1] - segments[parents]
            if counts.sum() > len(indices):
                raise bad("its sparse segments overlap")
            take = np.repeat(np.arange(len(parents)), counts)
            starts = np.repeat(segments[parents] - np.concatenate([[0], np.cumsum(counts)[:-1]]), counts)
            position = starts + np.arange(len(take))
            fresh = indices[position]
        else:
            raise bad("it has a dimension that is neither dense nor sparse")
        columns = [c[take] for c in columns] + [fresh]
        parents = position
    if len(parents) != len(values):
        raise bad(f"it stores {len(values)} elements, its sparse layout has {len(parents)}")
    full = np.zeros(len(parents), np.int64)
    by_dimension = dict(zip(order, columns, strict=True))
    for d in range(rank):
        coordinate = by_dimension[d]
        if d in blocks:
            inner = rank + blocks.index(d)
            coordinate = coordinate * sizes[inner] + by_dimension[inner]
        full = full * shape[d] + coordinate
    dense = np.zeros(math.prod(shape), values.dtype)
    dense[full] = values[parents]
    return dense.reshape(shape)
