"""What removal is held against: the unpruned network with the chosen channels zeroed by hand."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import numpy as np
import onnx_ir as ir

from attar import graph
from attar.context import Context
from attar.registry import default_registry
from attar.runtime import OnnxRuntime
from attar_prune import Channels
from attar_prune.groups import Group

RUNTIME = OnnxRuntime()


class ByHand:
    """An importance that draws lots, and zeroes what makes the units that will go in a copy of the model.

    Attributes:
        zeroed: the copy: whatever makes a unit (filters, rows, biases, scales, shifts) is zero.
        units: how many units were zeroed.
        makers: names of the nodes that make units.
        sizes: of the groups.
    """

    def __init__(self, ratio: float, seed: int) -> None:
        self._ratio, self._rng = ratio, np.random.default_rng(seed)
        self.units = 0
        self.zeroed: ir.Model | None = None
        self.makers: set[str | None] = set()
        self.sizes: set[int] = set()

    def __call__(self, groups: list[Group], model: ir.Model, ctx: Context) -> list[np.ndarray]:
        self.zeroed = graph.clone(model)
        own = self.zeroed.graph.initializers
        found = []
        for group in groups:
            order = self._rng.permutation(group.size)
            count = min(group.size - 1, int(np.floor(self._ratio * group.size + 0.5)))
            gone = np.isin(np.arange(group.size), order[:count])
            self.units += count
            self.sizes.add(group.size)
            for use in group.makers():
                self.makers.add(use.node.name)
                weight = own[use.part.value.name or ""]
                array = np.array(graph.const_array(weight))
                np.moveaxis(array, use.part.axis, 0)[use.part.places[gone[use.part.units]]] = 0
                graph.replace_weight(weight, array)
            found.append(np.argsort(order).astype(float))
        return found


def removed(model: ir.Model, ratio: float = 0.3, seed: int = 0) -> tuple[ir.Model, ByHand, Context]:
    """A copy without the units drawn, and those zeroed by hand."""
    plain, hand = default_registry(), ByHand(ratio, seed)
    registry: Any = SimpleNamespace(ops=plain.ops, importances={"by hand": hand})
    ctx = Context(registry, plain.get_target("cpu"), RUNTIME)
    copy = graph.clone(model)
    Channels(ratio=ratio, block=1, most=0.9, importance="by hand", refit=False).apply(copy, ctx)
    graph.tidy(copy)
    return copy, hand, ctx


def distance(model: ir.Model, other: ir.Model, feeds: dict[str, np.ndarray]) -> float:
    """The largest difference of any output, in terms of the largest value of that output."""
    worst = 0.0
    for a, b in zip(RUNTIME.open(model).run(feeds), RUNTIME.open(other).run(feeds), strict=True):
        assert a.shape == b.shape
        assert np.isfinite(a).all()
        if a.dtype.kind == "f":
            worst = max(worst, float(np.abs(a - b).max() / max(np.abs(b).max(), 1e-30)))
    return worst
