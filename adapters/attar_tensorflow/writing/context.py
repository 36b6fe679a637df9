"""What a lowering is given: the node with its constants, and the tensors that flow into it.

A lowering is `lower(ctx, view) -> tensor or tuple of tensors`. It serves a Keras layer and a `tf.Module`
alike, and runs while TensorFlow traces, so what it cannot say exactly it refuses before anything is written.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import onnx_ir as ir

from attar.conversion import NodeView

Tensor = Any  # tf.Tensor; TensorFlow has no types that a checker could use
Lowering = Callable[["Ctx", "View"], Any]


class View(NodeView):
    """A node seen by a lowering; remembers which constants were read as Python values.

    Those must stay constants; the others may become variables.
    """

    def __init__(self, node: ir.Node, *, opset: int, wanted: Sequence[bool] | None = None) -> None:
        super().__init__(node, opset=opset, framework="TensorFlow")
        self.read: set[int] = set()
        self._wanted = wanted

    def const(self, index: int) -> np.ndarray | None:
        self.read.add(index)
        return super().const(index)

    def wants(self, index: int) -> bool:
        if self._wanted is not None:
            return index < len(self._wanted) and self._wanted[index]
        return super().wants(index)

    @property
    def last(self) -> bool:
        """Whether image operands and results are channels-last (see `layout`)."""
        return bool(self.attr("channels_last", 0))

    def is_const(self, index: int) -> bool:
        """Whether input `index` is a constant, without reading it."""
        return super().const(index) is not None


@dataclass
class Ctx:
    """The tensors of one node while it is traced.

    Attributes:
        tensors: one for each input, None where one is left out. Constants are tensors or variables too.
        training: whether the model is being trained.
        subgraph: runs a graph attribute on tensors, where subgraphs can be said at all.
    """

    tensors: Sequence[Tensor | None]
    training: bool = False
    subgraph: Callable[[ir.Graph, Sequence[Tensor]], list[Tensor]] | None = None
    extra: dict[str, Any] = field(default_factory=dict)

    def __getitem__(self, index: int) -> Tensor | None:
        return self.tensors[index] if index < len(self.tensors) else None

    def __len__(self) -> int:
        return len(self.tensors)

    @property
    def all(self) -> list[Tensor]:
        """The inputs that are there."""
        return [t for t in self.tensors if t is not None]
