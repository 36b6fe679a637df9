"""Which units go: moves of whole blocks, ordered by what they cost, taken until the aim is reached."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import onnx_ir as ir

from attar.ops import OpRule, op_key
from attar_prune.groups import Bools, Group, Grouping

Floats = npt.NDArray[np.float64]


@dataclass(frozen=True)
class Move:
    """The next units of one group to go, least important first."""

    group: Group
    units: npt.NDArray[np.int64]
    priority: float


class Costs:
    """Multiply-accumulates and bytes of a model without some of its units, from shapes alone."""

    def __init__(self, grouping: Grouping, rules: Mapping[str, OpRule]) -> None:
        self._grouping = grouping
        self._layers: list[tuple[float, list[tuple[ir.Value, int]]]] = []
        for node in grouping.model.graph:
            rule = rules.get(op_key(node.domain, node.op_type))
            macs = rule.macs(node) if rule is not None else None
            if rule is None or not macs:
                continue
            axes = [(node.outputs[0], a) for a in range(len(node.outputs[0].shape or ()))]
            for one in rule.contractions(node)[:1]:
                side = (one.other, one.other_axis) if one.groups > 1 else (one.input, one.axis)
                value = node.inputs[side[0]]
                if value is not None:
                    axes.append((value, side[1]))
            if node.op_type == "ConvTranspose":
                weight = node.inputs[1]
                axes = [(weight, 0), (weight, 1)] if weight is not None else []
            self._layers.append((float(macs), axes))

    def macs(self, gone: Bools) -> float:
        """Symbolic dimensions count as 1."""
        return sum(macs * self._share(axes, gone) for macs, axes in self._layers)

    def size(self, gone: Bools) -> float:
        """Bytes of all weights."""
        total = 0.0
        for value in self._grouping.model.graph.initializers.values():
            tensor = value.const_value
            if tensor is not None:
                axes = [(value, a) for a in range(len(tensor.shape))]
                total += tensor.nbytes * self._share(axes, gone)
        return total

    def _share(self, axes: list[tuple[ir.Value, int]], gone: Bools) -> float:
        keeps = [self._grouping.keep(value, axis, gone) for value, axis in axes]
        return math.prod(float(k.mean()) for k in keeps if k is not None)


def moves(
    groups: Sequence[Group],
    scores: Sequence[Floats],
    *,
    limits: Sequence[float],
    whole: bool,
    gain: Callable[[Group], float],
) -> list[Move]:
    """All moves of all groups, the cheapest first.

    Args:
        limits: largest share of each group that may go.
        whole: rank over the whole network: by the importance lost for what `gain` says a unit saves. Else
            all groups lose equal shares.
    """
    found = []
    for group, score, limit in zip(groups, scores, limits, strict=True):
        order = np.argsort(score, kind="stable")
        per_unit, reached, taken = max(gain(group), 1e-12), -math.inf, 0
        left = group.size
        while True:
            left = (math.ceil(left / group.step) - 1) * group.step
            if left < 1 or group.size - left > limit * group.size + 1e-9:
                break
            units = order[taken : group.size - left]
            share = (taken + len(units) / 2) / group.size
            cost = float(score[units].mean()) / per_unit if whole else share
            reached = max(reached, cost)
            found.append(Move(group, units, reached))
            taken += len(units)
    return sorted(found, key=lambda m: m.priority)


def mask(grouping: Grouping, chosen: Sequence[Move]) -> Bools:
    """The labels that go when these moves are made."""
    gone = grouping.nothing()
    for move in chosen:
        gone[move.group.labels[move.units]] = True
    return gone


def until(count: int, reached: Callable[[int], bool]) -> int:
    """The least number of moves, at most `count`, that reaches an aim that more moves only come nearer."""
    low, high = 0, count
    while low < high:
        middle = (low + high) // 2
        if reached(middle):
            high = middle
        else:
            low = middle + 1
    return low
