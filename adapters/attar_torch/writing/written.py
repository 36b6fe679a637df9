"""The module that comes out: a `GraphModule` that keeps apart what is state and what is program."""

from __future__ import annotations

from typing import Any

import torch
import torch.fx
from torch.fx.graph_module import reduce_graph_module


class WrittenModule(torch.fx.GraphModule):
    """A `torch.fx.GraphModule` whose constants (shapes, masks, index tables) stay out of its `state_dict`,
    also in copies and after pickling.

    `meta["attar.inputs"]` holds name, type and shape of every input.
    """

    def __init__(self, root: Any, graph: torch.fx.Graph, class_name: str = "Model") -> None:
        super().__init__(root, graph, class_name)
        self.attar_constants: tuple[str, ...] = tuple(root.__dict__.get("attar_constants", ()))
        for path in self.attar_constants:
            above, _, name = path.rpartition(".")
            try:
                owner = self.get_submodule(above)
            except AttributeError:  # a constant that nothing uses any more
                continue
            if name in owner._buffers:
                owner._non_persistent_buffers_set.add(name)

    def _deepcopy_init(self) -> Any:
        return WrittenModule.__init__

    def __copy__(self) -> WrittenModule:
        made = WrittenModule(self, self.graph, type(self).__name__)
        made.training, made.meta = self.training, dict(self.meta)
        return made

    def __reduce__(self) -> tuple[Any, ...]:
        _, arguments = super().__reduce__()
        return (rebuild, arguments)


def rebuild(body: dict[str, Any], imports: str) -> WrittenModule:
    """The inverse of pickling."""
    plain = reduce_graph_module(body, imports)
    made = WrittenModule(plain, plain.graph, type(plain).__name__)
    made.training = plain.training
    made.meta.update(body.get("meta", {}))
    return made
