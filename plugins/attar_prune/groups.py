"""Groups of channels that go together, found by union-find over (value, axis, index).

A *unit* is the smallest set of indices that can be removed: a channel of a convolution with the same channel
of everything that it is added to, its normalisation, the rows and columns of the weights that make and read
it. Units that touch the same axes of the same values form a *group*, and compete with each other.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import Literal

import numpy as np
import numpy.typing as npt
import onnx_ir as ir

from attar import graph
from attar.ops import BUILTIN, OpRule, op_key
from attar_prune.channels_links import Links, Place
from attar_prune.channels_nodes import length

Ints = npt.NDArray[np.int64]
Bools = npt.NDArray[np.bool_]
Role = Literal["maker", "reader"]
_WEIGHTED = frozenset({"Conv", "ConvTranspose", "Gemm", "MatMul", "Einsum", "LSTM", "GRU", "RNN"})


@dataclass(frozen=True)
class Part:
    """Where a group touches one axis of one value: `places[k]` belongs to unit `units[k]`."""

    value: ir.Value
    axis: int
    places: Ints
    units: Ints


@dataclass(frozen=True)
class Use:
    """A part of a group that is a weight of `node`: it makes the channels, or reads them."""

    node: ir.Node
    input: int
    part: Part
    role: Role


@dataclass
class Group:
    """Units that compete.

    Attributes:
        labels: of the units, global numbers.
        parts: all axes touched.
        uses: those that are constant weights of nodes.
        step: so many units at least go together, or widths would leave the blocks of the kernels.
    """

    labels: Ints
    parts: list[Part]
    uses: list[Use] = field(default_factory=list)
    step: int = 1

    @property
    def size(self) -> int:
        return len(self.labels)

    @property
    def name(self) -> str:
        """The name of the first node that makes it."""
        return next((u.node.name or "" for u in self.uses if u.role == "maker"), "?")

    def makers(self) -> list[Use]:
        return [u for u in self.uses if u.role == "maker"]

    def readers(self) -> list[Use]:
        return [u for u in self.uses if u.role == "reader"]


def components(count: int, first: Ints, second: Ints) -> Ints:
    """The smallest member of the component of each of `count` numbers, joined by edges (first, second).

    Hooking and pointer jumping (Shiloach & Vishkin 1982): union-find on whole arrays, O(log n) rounds.
    """
    parent = np.arange(count, dtype=np.int64)
    while True:
        a, b = parent[first], parent[second]
        low, high = np.minimum(a, b), np.maximum(a, b)
        apart = low != high
        if not apart.any():
            return parent
        np.minimum.at(parent, high[apart], low[apart])
        while not np.array_equal(up := parent[parent], parent):
            parent = up


class Grouping:
    """All groups of a model.

    Attributes:
        groups: those that can be pruned, in order of the graph.
        pinned: node -> why no channel of what it makes can go.
    """

    def __init__(self, model: ir.Model, rules: dict[str, OpRule] | None = None, *, block: int = 1) -> None:
        self.model = model
        self._rules = BUILTIN if rules is None else rules
        links = Links(model, self._rules)
        for value in model.graph.initializers.values():
            if value.dtype is not None and not value.dtype.is_floating_point() and not _indices(value):
                links.pin_value(value, "its weights are quantized already")
        members = links.classes()
        for root in members:  # a result of a Constant node cannot be cut
            for value, axis in members[root]:
                node = value.producer()
                if node is not None and node.op_type == "Constant":
                    links.pin((value, axis), "made by a Constant node")
        self._base: dict[Place, int] = {}
        self._size: dict[Place, int] = {}
        total = 0
        for root in members:
            size = length(*root)
            if size:
                self._base[root], self._size[root] = total, size
                total += size
        self._members = {root: found for root, found in members.items() if root in self._base}
        self._root_of = {place: root for root, found in self._members.items() for place in found}
        pairs: list[tuple[Ints, Ints]] = []
        for edge in links.edges:
            pairs += self._pairs(
                links.find(edge.first), edge.first_keys, links.find(edge.second), edge.second_keys
            )
        first = np.concatenate([p[0] for p in pairs]) if pairs else np.zeros(0, np.int64)
        second = np.concatenate([p[1] for p in pairs]) if pairs else np.zeros(0, np.int64)
        self._label = components(total, first, second)
        reasons = [""]
        stuck = np.zeros(total, np.int64)
        for root, base in self._base.items():
            reason = links.pinned(root)
            if reason is not None:
                reasons.append(reason)
                stuck[base : base + self._size[root]] = len(reasons) - 1
        worst = np.zeros(total, np.int64)
        np.maximum.at(worst, self._label, stuck)
        self._why = reasons
        self._stuck = worst[self._label]
        self.groups = self._collect()
        for group in self.groups:
            group.step = _step(group, block)
        self.pinned = self._pins()

    # -- asking ----------------------------------------------------------------------------------------------

    def keep(self, value: ir.Value | None, axis: int, gone: Bools) -> Bools | None:
        """Which indices of an axis stay when the units in `gone` (by label) go; None if all do."""
        root = None if value is None else self._root_of.get((value, axis))
        if root is None:
            return None
        base = self._base[root]
        keep = ~gone[self._label[base : base + self._size[root]]]
        return None if keep.all() else keep

    def nothing(self) -> Bools:
        """A mask of labels in which nothing goes."""
        return np.zeros(len(self._label), np.bool_)

    # -- building --------------------------------------------------------------------------------------------

    def _pairs(self, a: Place, a_keys: Ints, b: Place, b_keys: Ints) -> list[tuple[Ints, Ints]]:
        if a not in self._base or b not in self._base:
            return []
        first, second = a_keys >= 0, b_keys >= 0
        count = int(max(a_keys.max(initial=-1), b_keys.max(initial=-1))) + 1
        hub = np.full(count, -1, np.int64)
        ids_a = self._base[a] + np.flatnonzero(first)
        ids_b = self._base[b] + np.flatnonzero(second)
        hub[b_keys[second]] = ids_b
        hub[a_keys[first]] = ids_a  # every key has one index that all others of it are tied to
        return [(ids_a, hub[a_keys[first]]), (ids_b, hub[b_keys[second]])]

    def _collect(self) -> list[Group]:
        rng = np.random.default_rng(0)
        signature = np.zeros(len(self._label), np.uint64)
        free: dict[Place, Ints] = {}
        for root, base in self._base.items():
            labels = self._label[base : base + self._size[root]]
            open_ = self._stuck[base : base + self._size[root]] == 0
            if self._size[root] < 2 or not open_.any():
                continue
            free[root] = labels
            touched = np.unique(labels[open_])
            signature[touched] += rng.integers(1, 2**63, dtype=np.uint64)  # sums of random numbers tell sets
        by_signature: dict[int, list[tuple[Place, Ints]]] = {}
        for root, labels in free.items():
            for mark in np.unique(signature[labels]):
                if mark:
                    by_signature.setdefault(int(mark), []).append((root, labels))
        groups = []
        for mark, roots in by_signature.items():
            group = self._group(np.uint64(mark), roots, signature)
            if group is not None:
                groups.append(group)
        order = {id(node): k for k, node in enumerate(self.model.graph)}
        return sorted(groups, key=lambda g: min(order[id(u.node)] for u in g.uses))

    def _group(
        self, mark: np.uint64, roots: list[tuple[Place, Ints]], signature: npt.NDArray[np.uint64]
    ) -> Group | None:
        units: Ints = np.zeros(0, np.int64)
        parts = []
        for root, labels in roots:
            places = np.flatnonzero(signature[labels] == mark)
            if not units.size:
                units = np.unique(labels[places])
            numbers = np.searchsorted(units, labels[places])
            parts += [Part(v, axis, places, numbers) for v, axis in self._members[root]]
        group = Group(units, parts)
        for part in parts:
            group.uses += self._uses(part)
        heavy = any(len(u.part.value.shape or ()) > 1 for u in group.makers())
        return group if len(units) > 1 and heavy else None

    def _uses(self, part: Part) -> list[Use]:
        value = part.value
        if not value.is_initializer() or value.dtype is None:
            return []
        found = []
        for use in value.uses():
            rule = self._rules.get(op_key(use.node.domain, use.node.op_type))
            read = rule is not None and any(
                (c.other, c.other_axis) == (use.idx, part.axis) or (c.input, c.axis) == (use.idx, part.axis)
                for c in rule.contractions(use.node)
            )
            state = use.node.op_type in ("LSTM", "GRU", "RNN") and (use.idx, part.axis) == (2, 2)
            transposed = use.node.op_type == "ConvTranspose" and use.idx == 1 and part.axis == 0
            role: Role = "reader" if read or state or transposed else "maker"
            found.append(Use(use.node, use.idx, part, role))
        return found

    def _pins(self) -> dict[ir.Node, str]:
        makers = {id(u.node) for g in self.groups for u in g.makers()}
        found = {}
        for node in self.model.graph:
            if node.op_type not in _WEIGHTED or node.domain or id(node) in makers:
                continue
            if not any(graph.const_array(v) is not None for v in node.inputs[1:2]):
                continue
            out = node.outputs[0]
            rule = self._rules[node.op_type]
            axis = next((k.output_axis for k in rule.flow(node) if k.kind == "mix" and k.input == 0), 1)
            if node.op_type in ("LSTM", "GRU", "RNN"):
                out = next(v for v in node.outputs if v.name)
                axis = 3 if out is node.outputs[0] else 2
            root = self._root_of.get((out, axis))
            code = 0 if root is None else int(self._stuck[self._base[root]])
            found[node] = self._why[code] or "its channels cannot be told apart"
        return found


def _indices(value: ir.Value) -> bool:
    return all(use.node.op_type == "Gather" and use.idx == 1 for use in value.uses())


def _step(group: Group, block: int) -> int:
    """Units that go together, so that every width that was a multiple of the block stays one."""
    step = 1
    for use in group.makers():
        node, part = use.node, use.part
        if node.op_type not in _WEIGHTED or use.input != 1 or part.value.shape is None:
            continue
        per_unit = max(1, len(part.places) // max(1, group.size))
        step = math.lcm(step, block // math.gcd(block, per_unit))
    return step
