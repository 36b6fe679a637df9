"""Shapes that are only partly known, as Python numbers in the graph rather than tensors.

What ONNX computes with Shape, Gather, Concat and arithmetic on small integer tensors, torch says with the
integers of `tensor.size()`. So long as a value is a `Dims`, no tensor is made of it, and dynamic sizes stay
symbolic in `torch.export`.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch.fx

Item = int | torch.fx.Node


@dataclass(frozen=True)
class Dims:
    """An int64 tensor of rank 0 or 1.

    Attributes:
        items: its elements; nodes give Python (or symbolic) integers.
        scalar: rank 0, with one item.
    """

    items: tuple[Any, ...]
    scalar: bool = False

    @property
    def known(self) -> bool:
        return all(isinstance(i, int) for i in self.items)
