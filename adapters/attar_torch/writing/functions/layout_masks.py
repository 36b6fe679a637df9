"""Shapes as tensors, ranges, and matrices cut along a diagonal."""

from __future__ import annotations

from typing import Any

import torch

from attar_torch.writing.leaf import leaf


@leaf
def shape_of(x: torch.Tensor, start: int, end: int | None) -> torch.Tensor:
    """The shape of `x`, or a slice of it, as a tensor."""
    return torch.tensor(list(x.shape)[start:end], dtype=torch.int64, device=x.device)


@leaf
def range_of(start: torch.Tensor, limit: torch.Tensor, step: torch.Tensor) -> torch.Tensor:
    """ONNX Range: start + k * step for k below ceil((limit - start) / step)."""
    first, last, delta = (t.reshape(()) for t in (start, limit, step))
    gap = last.to(torch.float64) - first.to(torch.float64)
    count = max(int(torch.ceil(gap / delta.to(torch.float64)).item()), 0)
    return first + torch.arange(count, dtype=start.dtype, device=start.device) * delta


@leaf
def eye_like(x: torch.Tensor, k: int, dtype: torch.dtype) -> torch.Tensor:
    """Ones on diagonal `k` of a matrix of the shape of `x`, zeros elsewhere."""
    rows = torch.arange(x.size(0), device=x.device).unsqueeze(1)
    columns = torch.arange(x.size(1), device=x.device)
    return (columns - rows == k).to(dtype)


@leaf
def trilu(x: torch.Tensor, k: Any, upper: bool) -> torch.Tensor:
    """The upper or lower triangle of the last two axes."""
    return torch.triu(x, k) if upper else torch.tril(x, k)
