"""Reads PyTorch (`torch.nn.Module`, `torch.export.ExportedProgram`, `.pt2` files) and writes it."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

from attar.adapters import Adapter
from attar.hooks import hookimpl


@hookimpl
def attar_adapters() -> Sequence[Adapter]:
    """The adapter for PyTorch."""
    from attar_torch.adapter import TorchAdapter

    return [TorchAdapter()]


@hookimpl
def attar_lowerings(framework: str) -> Mapping[str, Callable[..., Any]]:
    """How each ONNX operator is written in PyTorch: `lower(ctx, view)`, see `attar_torch.writing.context`."""
    if framework != "torch":
        return {}
    from attar_torch.writing.ops import builtin

    return builtin()
