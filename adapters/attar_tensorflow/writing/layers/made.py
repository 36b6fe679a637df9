"""What a maker of Keras layers gives."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from attar_tensorflow.writing.context import View

Factory = Callable[[str], Any]  # name -> keras layer


@dataclass
class Made:
    """A layer in the place of a node.

    Attributes:
        layer: makes the layer under a name.
        weights: attribute of the built layer -> array.
        inputs: which inputs of the node are the tensors it is called on.
        many: whether it is called on a list.
        before, after: layers without weights around it (padding, cropping).
        sources: inputs of the node that are its weights: nodes with the same ones share the layer.
        key: what else must agree for that.
        results: from what the last layer gives to the node's outputs.
    """

    layer: Factory
    weights: Mapping[str, np.ndarray] = field(default_factory=dict)
    inputs: Sequence[int] = (0,)
    many: bool = False
    before: Sequence[Factory] = ()
    after: Sequence[Factory] = ()
    sources: Sequence[int] = ()
    key: Any = None
    results: Callable[[Any], Sequence[Any]] | None = None


Maker = Callable[[View], "Made | None"]


def named(word: str, make: Callable[..., Any], **options: Any) -> Factory:
    """A factory of the layer `make`, whose name ends in `word` where it stands beside the main one."""

    def factory(name: str) -> Any:
        return make(name=name, **options)

    factory.word = word  # type: ignore[attr-defined]
    return factory


def keras_type(view: View) -> str | None:
    """The floating-point type that a layer for this node computes in; None if the input has another type."""
    dtype = str(view.dtype(0))
    return dtype if dtype in ("float32", "float64", "float16", "bfloat16") else None


def any_type(view: View) -> str | None:
    """The type for a layer that only moves elements; None if Keras has no such tensors.

    It is the input's, because Keras casts floating-point inputs to the type of the layer, and announces
    outputs of some layers in it whatever the input is. Only "int8" would be no type but a way to quantize:
    layers of bytes say "float32", which casts no integers.
    """
    dtype = view.dtype(0)
    if dtype.kind not in "iub":
        return keras_type(view)
    return "float32" if dtype == np.int8 else str(dtype)
