"""Picking and putting elements as ONNX defines it."""

from __future__ import annotations

from typing import Any

import torch

from attar_torch.writing.leaf import leaf


@leaf
def shifted(x: torch.Tensor, axis: int, fill: int) -> torch.Tensor:
    """`x` moved by one along `axis`; `fill` comes in at the front."""
    head = torch.full_like(x.narrow(axis, 0, 1), fill)
    return torch.cat([head, x.narrow(axis, 0, x.size(axis) - 1)], axis)


@leaf
def gather_nd(x: torch.Tensor, indices: torch.Tensor, batch_dims: int) -> torch.Tensor:
    """Slices of `x` at the tuples along the last axis of `indices`, within `batch_dims` common axes."""
    indices = indices.to(torch.int64)
    index: list[Any] = []
    for axis in range(batch_dims):
        shape = [1] * (indices.dim() - 1)
        shape[axis] = x.size(axis)
        index.append(torch.arange(x.size(axis), device=x.device).reshape(shape))
    index += indices.unbind(-1)
    return x[tuple(index)]


@leaf
def scatter_nd(x: torch.Tensor, indices: torch.Tensor, updates: torch.Tensor, how: str) -> torch.Tensor:
    """`x` with `updates` put or reduced in at the tuples along the last axis of `indices`."""
    depth = indices.size(-1)
    indices = indices.to(torch.int64)
    if how in ("none", "add"):
        return x.index_put(tuple(indices.unbind(-1)), updates, accumulate=how == "add")
    outer = x.shape[:depth]
    position = torch.zeros_like(indices[..., 0])
    for axis in range(depth):
        column = indices[..., axis]
        position = position * outer[axis] + torch.where(column < 0, column + outer[axis], column)
    rows = x.reshape(-1, *x.shape[depth:]).flatten(1) if depth < x.dim() else x.reshape(-1, 1)
    source = updates.reshape(position.numel(), -1)
    index = position.reshape(-1, 1).expand(source.shape)
    names = {"mul": "prod", "max": "amax", "min": "amin"}
    return rows.scatter_reduce(0, index, source, names[how]).reshape(x.shape)


@leaf
def tensor_scatter(
    past: torch.Tensor, update: torch.Tensor, starts: torch.Tensor | None, mode: str, axis: int
) -> torch.Tensor:
    """A cache with `update` written along `axis` from `starts` on, one start a batch."""
    axis = axis % past.dim()
    count = torch.arange(update.size(axis), device=past.device)
    begin = torch.zeros(past.size(0), dtype=torch.int64, device=past.device) if starts is None else starts
    at = begin.to(torch.int64).reshape(-1, 1) + count
    if mode == "circular":
        at = at.remainder(past.size(axis))
    shape = [1] * past.dim()
    shape[0], shape[axis] = past.size(0), update.size(axis)
    return past.scatter(axis, at.reshape(shape).expand(update.shape), update)


@leaf
def one_hot(indices: torch.Tensor, depth: Any, values: torch.Tensor, axis: int) -> torch.Tensor:
    """`values[1]` where the new axis equals the index, `values[0]` elsewhere and for indices out of range."""
    axis = axis % (indices.dim() + 1)
    places = torch.arange(depth, device=indices.device)
    whole = indices.to(torch.int64)
    whole = torch.where(whole < 0, whole + depth, whole).unsqueeze(axis)
    shape = [1] * whole.dim()
    shape[axis] = depth
    return torch.where(whole == places.reshape(shape), values[1], values[0])


@leaf
def compress(x: torch.Tensor, condition: torch.Tensor, axis: int | None) -> torch.Tensor:
    """The slices along `axis`, or the elements, at which `condition` is true."""
    if axis is None:
        x, axis = x.reshape(-1), 0
    chosen = torch.nonzero(condition.reshape(-1)).reshape(-1)
    return x.index_select(axis, chosen)


@leaf
def unique(x: torch.Tensor, axis: int | None, ordered: bool) -> tuple[torch.Tensor, ...]:
    """Distinct elements or slices, index of the first of each, which one each is, and how many there are."""
    if axis is None:
        x, axis = x.reshape(-1), 0
    axis = axis % x.dim()
    found, inverse, counts = torch.unique(x, dim=axis, sorted=True, return_inverse=True, return_counts=True)
    number = torch.arange(inverse.numel(), device=x.device)
    first = torch.full_like(counts, inverse.numel()).scatter_reduce(0, inverse, number, "amin")
    if not ordered:
        order = torch.argsort(first)
        found, counts, first = found.index_select(axis, order), counts[order], first[order]
        inverse = torch.argsort(order)[inverse]
    return found, first, inverse, counts


@leaf
def last_extreme(x: torch.Tensor, axis: int, keep: bool, largest: bool) -> torch.Tensor:
    """Index of the last of the largest (smallest) elements along `axis`."""
    flipped = x.flip([axis])
    at = torch.argmax(flipped, axis, keep) if largest else torch.argmin(flipped, axis, keep)
    return x.size(axis) - 1 - at


@leaf
def top_k(x: torch.Tensor, k: Any, axis: int, largest: bool) -> tuple[torch.Tensor, torch.Tensor]:
    """The first `k` of a stable sort, and where they were."""
    values, at = torch.sort(x, dim=axis, descending=largest, stable=True)
    return values.narrow(axis, 0, k), at.narrow(axis, 0, k)


@leaf
def reverse_sequence(x: torch.Tensor, lengths: torch.Tensor, batch: int) -> torch.Tensor:
    """Every sequence reversed within its own length."""
    moved = x if batch == 0 else x.transpose(0, 1)
    steps = torch.arange(moved.size(1), device=x.device)
    last = lengths.to(torch.int64).reshape(-1, 1)
    at = torch.where(steps < last, last - 1 - steps, steps)
    at = at.reshape(*at.shape, *[1] * (moved.dim() - 2)).expand(moved.shape)
    back = moved.gather(1, at)
    return back if batch == 0 else back.transpose(0, 1)
