"""Reductions over several axes at once, in the type of their input."""

from __future__ import annotations

import torch

from attar_torch.writing.leaf import leaf


@leaf
def total(x: torch.Tensor, axes: tuple[int, ...], keep: bool) -> torch.Tensor:
    """The sum."""
    return torch.sum(x, axes, keep, dtype=x.dtype)


@leaf
def sum_square(x: torch.Tensor, axes: tuple[int, ...], keep: bool) -> torch.Tensor:
    """The sum of squares."""
    return torch.sum(x * x, axes, keep, dtype=x.dtype)


@leaf
def sum_abs(x: torch.Tensor, axes: tuple[int, ...], keep: bool) -> torch.Tensor:
    """The sum of magnitudes."""
    return torch.sum(x.abs(), axes, keep, dtype=x.dtype)


@leaf
def norm(x: torch.Tensor, axes: tuple[int, ...], keep: bool) -> torch.Tensor:
    """The root of the sum of squares; its gradient at 0 is 0."""
    return torch.linalg.vector_norm(x, 2, axes, keep)


@leaf
def log_sum(x: torch.Tensor, axes: tuple[int, ...], keep: bool) -> torch.Tensor:
    """The logarithm of the sum."""
    return torch.log(torch.sum(x, axes, keep))


@leaf
def product(x: torch.Tensor, axes: tuple[int, ...], keep: bool) -> torch.Tensor:
    """The product."""
    for axis in sorted((a % x.dim() for a in axes), reverse=True):
        x = torch.prod(x, axis, keep, dtype=x.dtype)
    return x


@leaf
def largest(x: torch.Tensor, axes: tuple[int, ...], keep: bool) -> torch.Tensor:
    """The maximum; the lowest number of the type where there is nothing to take it of."""
    return _extreme(x, axes, keep, True)


@leaf
def smallest(x: torch.Tensor, axes: tuple[int, ...], keep: bool) -> torch.Tensor:
    """The minimum; the largest number of the type where there is nothing to take it of."""
    return _extreme(x, axes, keep, False)


def _extreme(x: torch.Tensor, axes: tuple[int, ...], keep: bool, large: bool) -> torch.Tensor:
    chosen = {a % x.dim() for a in axes}
    if all(x.size(a) != 0 for a in chosen):
        return torch.amax(x, axes, keep) if large else torch.amin(x, axes, keep)
    shape = [1 if a in chosen else n for a, n in enumerate(x.shape)]
    if not keep:
        shape = [n for a, n in enumerate(x.shape) if a not in chosen]
    if x.is_floating_point():
        return x.new_full(shape, float("-inf") if large else float("inf"))
    if x.dtype == torch.bool:
        return x.new_full(shape, not large)
    info = torch.iinfo(x.dtype)
    return x.new_full(shape, info.min if large else info.max)
