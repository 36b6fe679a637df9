"""One conversion: what is converted, and the last step that both exporters share."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch

from attar_torch.axes import Axes
from attar_torch.finish import finish

OPSET = 21


@dataclass(frozen=True)
class Job:
    """A flat module in eval mode, example tensors, and what to call things.

    Attributes:
        axes: the axes that are to stay dynamic.
        what: name of the caller's class, for messages.
    """

    flat: torch.nn.Module
    input_names: tuple[str, ...]
    tensors: tuple[torch.Tensor, ...]
    output_names: tuple[str, ...]
    axes: Axes
    what: str

    def finish(self, model: Any, axes: Axes) -> list[str]:
        """Bring an exporter's `model`, dynamic along `axes`, to normal form in place. Returns notes."""
        parameters = {n.removeprefix("module."): tuple(p.shape) for n, p in self.flat.named_parameters()}
        shapes = {
            name: [axes.get(i, {}).get(a, int(d)) for a, d in enumerate(tensor.shape)]
            for i, (name, tensor) in enumerate(zip(self.input_names, self.tensors, strict=True))
        }
        return finish(model, shapes, self.what, OPSET, parameters)


def essence(error: BaseException) -> str:
    """The first telling line of one of torch's long messages."""
    while error.__cause__ is not None:
        error = error.__cause__
    lines = [ln.strip() for ln in str(error).splitlines() if set(ln.strip()) - set("-=~^")]
    return f"{type(error).__name__}: {lines[0][:300]}" if lines else type(error).__name__
