"""Reads PyTorch: `torch.nn.Module`, `torch.export.ExportedProgram` and `.pt2` files."""

from __future__ import annotations

from collections.abc import Sequence

from attar.adapters import Adapter
from attar.hooks import hookimpl


@hookimpl
def attar_adapters() -> Sequence[Adapter]:
    """The adapter for PyTorch."""
    from attar_torch.adapter import TorchAdapter

    return [TorchAdapter()]
