"""Shapes of all values for one set of input shapes."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import onnx_ir as ir

from attar.errors import VerifyError
from attar.graph.shapes import refresh_shapes
from attar.graph.structure import clone


def concrete_shapes(model: ir.Model, inputs: Mapping[str, Sequence[int]]) -> dict[str, tuple[int, ...]]:
    """Value name -> shape when the model runs on inputs of these shapes; the model stays as it is.

    Inputs that are not named keep their declared dimensions, symbolic ones count as 1. Values whose shape
    cannot be inferred (it depends on data) are left out.
    """
    copy = clone(model)
    for value in copy.graph.inputs:
        if value.shape is not None:
            given = inputs.get(value.name or "")
            value.shape = ir.Shape(given or [d if isinstance(d, int) else 1 for d in value.shape])
    for value in copy.graph.outputs:
        value.shape = None  # its symbolic dimensions would contradict the numbers
    try:
        refresh_shapes(copy)
    except VerifyError:
        return {}  # inconsistent for these sizes; the caller does without
    found = {}
    for node in copy.graph:
        for value in node.outputs:
            if value.shape is not None and value.name and all(isinstance(d, int) for d in value.shape):
                found[value.name] = tuple(value.shape.numpy())
    for value in (*copy.graph.inputs, *copy.graph.initializers.values()):
        if value.shape is not None and value.name and all(isinstance(d, int) for d in value.shape):
            found[value.name] = tuple(value.shape.numpy())
    return found
