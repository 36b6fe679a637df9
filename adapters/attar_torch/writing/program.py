"""Saving what was written as a `.pt2` file."""

from __future__ import annotations

import io
from pathlib import Path
from typing import Any

import torch

from attar.adapters import Exported
from attar.errors import ConversionError, InputError
from attar.files import place, write_atomic
from attar_torch.job import essence
from attar_torch.quiet import quiet


def save_program(exported: Exported, path: str | Path) -> Path:
    """Write the module as `torch.export.save` does, in one step; dimensions with a name stay dynamic.

    Raises:
        InputError: the suffix is not `.pt2`, or the place cannot be written.
        ConversionError: `torch.export` cannot capture the module.
    """
    path = place(path)
    if path.suffix.lower() != ".pt2":
        raise InputError(f"cannot write {path}: a PyTorch program is a .pt2 file", hint="name it *.pt2")
    buffer = io.BytesIO()
    try:
        with quiet():
            torch.export.save(capture(exported.native), buffer)
    except Exception as error:  # torch raises many types here
        raise ConversionError(f"torch.export cannot capture the module: {essence(error)}") from error
    write_atomic(path, buffer.getvalue())
    return path


def capture(module: Any) -> Any:
    """The exported program of a written module, with the dynamic dimensions of its inputs."""
    specs = module.meta["attar.inputs"]
    sizes: dict[str, int] = {}
    for _, _, shape in specs:
        for dim in shape:
            if isinstance(dim, str):  # different names get different sizes, none of them 0 or 1
                sizes.setdefault(dim, 5 + 2 * len(sizes))
    tensors, shapes = [], []
    for _, kind, shape in specs:
        full = [d if isinstance(d, int) else sizes.get(d or "", 3) for d in shape]
        tensors.append(torch.zeros(full, dtype=kind))
        shapes.append(
            {a: torch.export.Dim.DYNAMIC for a, d in enumerate(shape) if not isinstance(d, int)} or None
        )
    training = module.training
    module.eval()
    try:
        with torch.no_grad():
            try:
                return torch.export.export(module, tuple(tensors), dynamic_shapes=tuple(shapes))
            except Exception:  # some dimension is fixed by the graph; AUTO keeps those that can stay
                auto = tuple(None if s is None else dict.fromkeys(s, torch.export.Dim.AUTO) for s in shapes)
                return torch.export.export(module, tuple(tensors), dynamic_shapes=auto)
    finally:
        module.train(training)
