"""Example inputs for an ONNX model: given in any handy form, kept as named arrays that fit."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import numpy as np

from attar.errors import InputError
from attar.specs import input_specs

if TYPE_CHECKING:
    import onnx_ir as ir


def named_example(model: ir.Model, inputs: Any) -> dict[str, np.ndarray]:
    """`inputs` (an array, a sequence in input order, or a mapping by name) as named arrays.

    Raises:
        InputError: a name, number, element type or shape does not fit the model.
    """
    specs = input_specs(model)
    if isinstance(inputs, Mapping):
        given = dict(inputs)
    else:
        items = list(inputs) if isinstance(inputs, tuple | list) else [inputs]
        if len(items) != len(specs):
            raise InputError(f"the model has {len(specs)} inputs, the example {len(items)}")
        given = {spec.name: item for spec, item in zip(specs, items, strict=True)}
    names = [s.name for s in specs]
    if set(given) != set(names):
        raise InputError(
            f"the example names the inputs {sorted(given)}, the model has {names}",
            hint="name every input once",
        )
    example = {}
    for spec in specs:
        array = np.asarray(given[spec.name])
        if array.dtype != spec.dtype and np.can_cast(array.dtype, spec.dtype, "same_kind"):
            array = array.astype(spec.dtype)
        fits = spec.shape is None or (
            len(spec.shape) == array.ndim
            and all(not isinstance(d, int) or d == n for d, n in zip(spec.shape, array.shape, strict=True))
        )
        if array.dtype != spec.dtype or not fits:
            raise InputError(
                f"the example for {spec.name!r} is {array.dtype}{list(array.shape)}, the model takes {spec}"
            )
        example[spec.name] = array
    return example
