"""Activations that torch has no call for."""

from __future__ import annotations

import torch

from attar_torch.writing.leaf import leaf


@leaf
def shrink(x: torch.Tensor, limit: float, bias: float) -> torch.Tensor:
    """ONNX Shrink: x + bias below -limit, x - bias above limit, 0 between."""
    return torch.where(x < -limit, x + bias, torch.where(x > limit, x - bias, torch.zeros_like(x)))


@leaf
def hardmax(x: torch.Tensor, axis: int) -> torch.Tensor:
    """1 at the first of the largest elements along `axis`, 0 elsewhere."""
    chosen = torch.argmax(x, dim=axis, keepdim=True)
    return torch.zeros_like(x).scatter(axis, chosen, 1)
