"""An operation of a TensorFlow graph as a lifting wants to see it."""

from __future__ import annotations

from typing import Any

import numpy as np

from attar.errors import ConversionError
from attar_tensorflow.reading.values import Array, Const, Shape, Tensor, numpy_dtype


class OpView:
    """One TensorFlow operation with its lifted inputs.

    Attributes:
        op: the type of the operation, e.g. `Conv2D`.
        name: its name in the graph.
        inputs: what its inputs were lifted to.
    """

    def __init__(self, operation: Any, inputs: list[Any]) -> None:
        self.operation, self.inputs = operation, inputs
        self.op: str = operation.type
        self.name: str = operation.name

    def __repr__(self) -> str:
        return f"OpView({self.op} {self.name!r})"

    def attr(self, name: str, default: Any = None) -> Any:
        """An attribute as a Python value: strings decoded, element types as numpy ones."""
        try:
            value = self.operation.get_attr(name)
        except ValueError:
            return default
        if isinstance(value, bytes):
            return value.decode()
        if hasattr(value, "as_numpy_dtype"):
            return numpy_dtype(value)
        if isinstance(value, list) and value and isinstance(value[0], bytes):
            return [v.decode() for v in value]
        return value

    def input(self, i: int) -> Any:
        """Input `i`, a `Tensor` or a `Const`."""
        x = self.inputs[i]
        if not isinstance(x, Tensor | Const):
            raise self.refuse(f"input {i} is no tensor of numbers")
        return x

    def const(self, i: int) -> Array | None:
        """Input `i` as an array if it is constant."""
        x = self.inputs[i]
        return x.array if isinstance(x, Const) else None

    def need_const(self, i: int, what: str) -> Array:
        """Input `i` as an array.

        Raises:
            ConversionError: it is computed while the model runs.
        """
        array = self.const(i)
        if array is None:
            raise self.refuse(f"{what} must be constant")
        return array

    def ints(self, i: int, what: str) -> list[int]:
        """Constant input `i` as a list of integers."""
        return [int(v) for v in self.need_const(i, what).reshape(-1)]

    def shape(self, i: int) -> Shape | None:
        """The shape of input `i`, with None for what is known only at run time; None if the rank is
        unknown.
        """
        x = self.inputs[i]
        return x.shape if isinstance(x, Tensor | Const) else None

    def rank(self, i: int) -> int:
        """The rank of input `i`.

        Raises:
            ConversionError: it is unknown.
        """
        shape = self.shape(i)
        if shape is None:
            raise self.refuse(f"the rank of input {i} is unknown")
        return len(shape)

    def dtype(self, i: int) -> np.dtype[Any]:
        return np.dtype(self.input(i).dtype)

    def out_shape(self, k: int = 0) -> Shape | None:
        """The shape of output `k` as TensorFlow inferred it."""
        shape = self.operation.outputs[k].shape
        return None if shape.rank is None else tuple(shape.as_list())

    def out_dtype(self, k: int = 0) -> np.dtype[Any]:
        return numpy_dtype(self.operation.outputs[k].dtype)

    def alone(self, i: int) -> bool:
        """Whether nothing else uses input `i`."""
        return len(self.operation.inputs[i].consumers()) == 1

    def refuse(self, reason: str) -> ConversionError:
        """The error that says why this operation cannot be lifted."""
        return ConversionError(f"{self.op} {self.name!r}: {reason}")
