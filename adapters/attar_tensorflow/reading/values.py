"""What a tensor of a TensorFlow graph is while the graph is being lifted."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import onnx_ir as ir

Array = np.ndarray[Any, np.dtype[Any]]
Order = tuple[int, ...]
Shape = tuple[int | None, ...]


@dataclass(frozen=True)
class Dim:
    """A size that is known only at run time: axis `axis` of `value`."""

    value: ir.Value
    axis: int


Number = int | Dim | None


@dataclass(eq=False)
class Const:
    """A tensor that is known before the model runs.

    Attributes:
        array: its content, in TensorFlow's layout.
        name: the parameter that it is, or a rearrangement of; None for anything computed.
        op: the TensorFlow operator that computed it, and `args`, what from: some layers are recognised by how
            their constants came about.
    """

    array: Array
    name: str | None = None
    op: str = ""
    args: tuple[Any, ...] = ()

    @property
    def shape(self) -> tuple[int, ...]:
        return self.array.shape

    @property
    def dtype(self) -> np.dtype[Any]:
        return self.array.dtype


@dataclass(eq=False)
class Tensor:
    """A tensor that is computed while the model runs.

    Attributes:
        value: where the IR holds it.
        dtype: its element type.
        shape: its shape as TensorFlow has it; None dimensions are known only at run time. None: rank unknown.
        order: axis k of `value` is axis `order[k]` of TensorFlow's tensor; None where they agree. Images are
        kept
            in (0, 3, 1, 2), which is NCHW, from the first convolution on.
        numbers: of a small integer scalar or vector, the entries that are known, or that are a size.
        op: the TensorFlow operator that computed it, and `args`, what from.
        facts: what else that operator's lifting left for those that follow.
    """

    value: ir.Value
    dtype: np.dtype[Any]
    shape: Shape | None
    order: Order | None = None
    numbers: tuple[Number, ...] | None = None
    op: str = ""
    args: tuple[Any, ...] = ()
    facts: dict[str, Any] = field(default_factory=dict)

    @property
    def rank(self) -> int | None:
        return None if self.shape is None else len(self.shape)


@dataclass(eq=False)
class Variable:
    """A handle of a variable; reading it gives `const`."""

    read: Callable[[], Const]


@dataclass(eq=False)
class Items:
    """A TensorList or TensorArray: `stack` holds its items along axis 0, or nothing was written to it yet."""

    stack: Tensor | Const | None
    length: Any = None
    item_shape: Shape | None = None
    item_dtype: np.dtype[Any] | None = None


@dataclass(eq=False)
class Written:
    """A list inside a loop, after the loop's turn has written `item` at position `index`."""

    item: Any
    index: Any
    before: Any


class Missing:
    """The result of an operator that could not be lifted; the walk goes on to find all such operators."""


Lifted = Const | Tensor | Variable | Items | Written | Missing | None


def inverse(order: Sequence[int]) -> Order:
    """The permutation that undoes `order`."""
    out = [0] * len(order)
    for k, axis in enumerate(order):
        out[axis] = k
    return tuple(out)


def channels_first(rank: int) -> Order:
    """The order in which ONNX wants a tensor whose channels TensorFlow has last: (0, 3, 1, 2) for images."""
    return (0, rank - 1, *range(1, rank - 1))


def numpy_dtype(dtype: Any) -> np.dtype[Any]:
    """The numpy type of a `tf.DType`; what numpy has none for (strings, resources, variants) are objects."""
    if dtype.name in ("string", "resource", "variant"):
        return np.dtype(object)
    return np.dtype(dtype.as_numpy_dtype)
