"""The signature of a model: names, element types and shapes of what goes in and comes out."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    import onnx_ir as ir

Dim = int | str | None


@dataclass(frozen=True)
class TensorSpec:
    """One input or output. A dimension is a number, the name of a symbolic dimension, or None if nothing is
    known.

    `shape` is None when not even the rank is known.
    """

    name: str
    dtype: np.dtype[np.generic]
    shape: tuple[Dim, ...] | None

    def __str__(self) -> str:
        dims = "..." if self.shape is None else ", ".join("?" if d is None else str(d) for d in self.shape)
        return f"{self.name}: {self.dtype}[{dims}]"


def spec_of(value: ir.Value) -> TensorSpec:
    """The spec of one IR value; values that are not tensors or not typed have dtype object."""
    dtype = np.dtype(object) if value.dtype is None else np.dtype(value.dtype.numpy())
    shape = None if value.shape is None else tuple(d if isinstance(d, int) else d.value for d in value.shape)
    return TensorSpec(value.name or "?", dtype, shape)


def input_specs(model: ir.Model) -> tuple[TensorSpec, ...]:
    """The inputs that a caller must feed, in order; initializers that are listed as inputs are not among
    them."""
    graph = model.graph
    return tuple(spec_of(v) for v in graph.inputs if v.name not in graph.initializers)


def output_specs(model: ir.Model) -> tuple[TensorSpec, ...]:
    """The outputs in order."""
    return tuple(spec_of(v) for v in model.graph.outputs)
