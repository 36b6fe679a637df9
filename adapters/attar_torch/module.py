"""Reading `torch.nn.Module`."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch

from attar.adapters import Loaded
from attar.errors import InputError
from attar_torch.axes import dynamic_axes
from attar_torch.convert import convert
from attar_torch.job import Job
from attar_torch.quiet import inference, quiet
from attar_torch.structure import Inputs, bind, flatten_outputs, from_numpy, to_numpy


class Flat(torch.nn.Module):
    """A module as a function from tensors to tensors, whatever nesting its arguments and results have."""

    def __init__(self, module: torch.nn.Module, inputs: Inputs) -> None:
        super().__init__()
        self.module = module
        self._rebuild = inputs.rebuild

    def forward(self, *tensors: torch.Tensor) -> tuple[torch.Tensor, ...]:
        args, kwargs = self._rebuild(tensors)
        return tuple(flatten_outputs(self.module(*args, **kwargs))[0])


def load_module(module: torch.nn.Module, example: Any, dynamic: Any) -> Loaded:
    """See `TorchAdapter.load`."""
    inputs = bind(module, example)
    axes = dynamic_axes(dynamic, inputs.names, inputs.tensors)
    flat = Flat(module, inputs)
    # Flat is made in training mode; its own flag is not the caller's business.
    with inference(flat):
        output_names, left = _trial(module, inputs)
        what = type(module).__name__
        job = Job(flat, inputs.names, inputs.tensors, tuple(output_names), axes, what)
        model, notes = convert(job)
    if left:
        notes.append("results that are not tensors were left out: " + ", ".join(left))
    kept = {v.name for v in model.graph.inputs}
    named = {n: to_numpy(t) for n, t in zip(inputs.names, inputs.tensors, strict=True)}

    def reference(feeds: Mapping[str, np.ndarray]) -> Sequence[np.ndarray]:
        tensors = [
            from_numpy(feeds[name], like) if name in feeds else like
            for name, like in zip(inputs.names, inputs.tensors, strict=True)
        ]
        with inference(flat):
            return [to_numpy(t) for t in flat(*tensors)]

    return Loaded(
        model,
        reference=reference,
        example={n: a for n, a in named.items() if n in kept},
        notes=tuple(notes),
    )


def _trial(module: torch.nn.Module, inputs: Inputs) -> tuple[list[str], list[str]]:
    """Names of the outputs of one call with the example, and what is left out of it."""
    args, kwargs = inputs.rebuild(inputs.tensors)
    try:
        with quiet():
            result = module(*args, **kwargs)
    except Exception as error:  # whatever the module raises on inputs that it cannot take
        shapes = ", ".join(
            f"{n}: {str(t.dtype).removeprefix('torch.')}{list(t.shape)}"
            for n, t in zip(inputs.names, inputs.tensors, strict=True)
        )
        raise InputError(
            f"{type(module).__name__} does not run on the example inputs ({shapes}): "
            f"{type(error).__name__}: {str(error).strip()[:600]}"
        ) from error
    _, names, left = flatten_outputs(result)
    taken = set(inputs.names)
    return [f"{n}_out" if n in taken else n for n in names], left
