"""Which axes of which values must shrink together: the links of all nodes, gathered and classified.

Axes whose indices correspond one to one become one *class* (union-find over (value, axis)). What corresponds
in another way (Concat, Split, Reshape, groups of a convolution) becomes edges between single indices of two
classes. What nothing is known of is pinned, with the reason.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx_ir as ir

from attar import graph
from attar.ops import AxisLink, OpRule, op_key
from attar_prune.channels_nodes import axes_asked, filled, keys, length, runs, sizes, target

Ints = npt.NDArray[np.int64]
Place = tuple[ir.Value, int]
_RECURRENT = ("LSTM", "GRU", "RNN")


@dataclass
class Edge:
    """Indices that stay or go together: those of `first` and `second` with the same key (-1: no partner)."""

    first: Place
    first_keys: Ints
    second: Place
    second_keys: Ints


class Links:
    """Classes of axes, edges between their indices, and pins of one model.

    Attributes:
        edges: between indices.
        heads: classes that a product of two activations runs over (attention heads).
    """

    def __init__(self, model: ir.Model, rules: dict[str, OpRule]) -> None:
        self._parent: dict[Place, Place] = {}
        self._reason: dict[Place, str] = {}
        self.edges: list[Edge] = []
        self.heads: set[Place] = set()
        self._reshapes: list[tuple[ir.Node, list[AxisLink]]] = []
        self._rules = rules
        for value in model.graph.inputs:
            self.pin_value(value, "an input of the model")
        for value in model.graph.outputs:
            self.pin_value(value, "an output of the model")
        for node in model.graph:
            self._node(node)
        self.heads = {self.find(place) for place in self.heads}
        for node, links in self._reshapes:
            self._follow(node, links)
        for edge in self.edges:  # so that every class is known, also those without a twin
            self.find(edge.first)
            self.find(edge.second)

    # -- classes ---------------------------------------------------------------------------------------------

    def find(self, place: Place) -> Place:
        """The representative of the class of an axis."""
        parent = self._parent
        root = place
        while (up := parent.setdefault(root, root)) is not root:
            root = up
        while (up := parent[place]) is not root:
            parent[place], place = root, up
        return root

    def join(self, first: Place, second: Place) -> None:
        """One class; pinned if either is, or if their lengths are not certainly equal."""
        a, b = length(*first), length(*second)
        if a is None or a != b:
            for place, size in ((first, a), (second, b)):
                if size is not None:
                    self.pin(place, "its length is not known to match")
            return
        x, y = self.find(first), self.find(second)
        if x is not y:
            self._parent[y] = x
            if y in self.heads:
                self.heads.add(x)
            if y in self._reason:
                self._reason.setdefault(x, self._reason.pop(y))

    def pin(self, place: Place, reason: str) -> None:
        """The axis must stay as it is."""
        if length(*place) is not None:
            self._reason.setdefault(self.find(place), reason)

    def pinned(self, place: Place) -> str | None:
        """Why the axis must stay, None if it need not."""
        return self._reason.get(self.find(place))

    def classes(self) -> dict[Place, list[Place]]:
        """Members of every class, by representative."""
        found: dict[Place, list[Place]] = defaultdict(list)
        for place in list(self._parent):
            found[self.find(place)].append(place)
        return found

    def pin_value(self, value: ir.Value | None, reason: str) -> None:
        if value is not None and value.shape is not None:
            for axis in range(len(value.shape)):
                self.pin((value, axis), reason)

    # -- nodes -----------------------------------------------------------------------------------------------

    def _pin_all(self, node: ir.Node, reason: str) -> None:
        for value in (*node.inputs, *node.outputs):
            self.pin_value(value, reason)

    def _node(self, node: ir.Node) -> None:
        for attribute in node.attributes.values():
            if attribute.is_ref() or attribute.type not in (ir.AttributeType.GRAPH, ir.AttributeType.GRAPHS):
                continue
            graphs = [attribute.as_graph()] if attribute.type == ir.AttributeType.GRAPH else attribute.value
            for inner in graphs:
                for step in ir.traversal.RecursiveGraphIterator(inner):
                    for value in step.inputs:
                        self.pin_value(value, f"used inside the subgraph of {node.op_type}")
                for value in inner.outputs:
                    self.pin_value(value, f"used inside the subgraph of {node.op_type}")
        rule = self._rules.get(op_key(node.domain, node.op_type))
        if node.op_type == "Shape" and node.domain == "":
            for axis in axes_asked(node):
                if node.inputs[0] is not None:
                    self.pin((node.inputs[0], axis), "its length is computed with")
            return
        if rule is None:
            self._pin_all(node, f"nothing is known of the operator {node.op_type}")
            return
        shaped = [v for v in (*node.inputs, *node.outputs) if v is not None and (v.name or v.uses())]
        if any(v.shape is None for v in shaped):
            self._pin_all(node, f"a shape at {node.op_type} is unknown")
            return
        links = rule.flow(node)
        contractions = rule.contractions(node)
        self._unlinked(node, links, contractions)
        if node.domain == "" and self._special(node, links):
            return
        reshape = node.op_type in ("Reshape", "Flatten") and node.domain == ""
        if reshape:
            self._reshapes.append((node, links))
        for link in links:
            if not reshape:
                self._link(node, link)
        for one in contractions:
            a, b = node.inputs[one.input], node.inputs[one.other]
            if a is None or b is None:
                continue
            if one.groups == 1:
                self.join((a, one.axis), (b, one.other_axis))
        if node.op_type in ("MatMul", "Attention"):
            self._find_heads(node)

    def _unlinked(self, node: ir.Node, links: list[AxisLink], contractions: Iterable[Any]) -> None:
        """Pin axes that nothing is said of."""
        inputs = {(k.input, k.input_axis) for k in links if k.kind != "mix"}
        inputs |= {p for c in contractions for p in ((c.input, c.axis), (c.other, c.other_axis))}
        outputs = {(k.output, k.output_axis) for k in links if k.kind != "mix"}
        for known, values, side in ((inputs, node.inputs, "reads"), (outputs, node.outputs, "makes")):
            for index, value in enumerate(values):
                if value is None or value.shape is None:
                    continue
                free = filled(node) if side == "makes" else ()
                for axis in range(len(value.shape)):
                    if (index, axis) not in known and axis not in free:
                        self.pin((value, axis), f"{node.op_type} {side} it as a whole")

    def _link(self, node: ir.Node, link: AxisLink) -> None:
        source, out = node.inputs[link.input], node.outputs[link.output]
        if source is None or link.kind in ("mix", "group"):
            return
        first, second = (source, link.input_axis), (out, link.output_axis)
        if not link.exact and node.op_type not in _RECURRENT:
            for place in (first, second):
                self.pin(place, f"{node.op_type} mixes what lies along it")
            return
        if link.kind == "same":
            self.join(first, second)
            return
        found = keys(link, length(*first), length(*second))
        if found is None:
            self.pin(first, f"its length at {node.op_type} is unknown")
            self.pin(second, f"its length at {node.op_type} is unknown")
        elif (link.kind == "part" and link.in_step != 1) or (
            link.kind == "pick" and node.op_type != "Gather"
        ):
            self.pin(first, f"{node.op_type} takes some of it in steps")
            self.pin(second, f"{node.op_type} takes some of it in steps")
        else:
            self.edges.append(Edge(first, found[0], second, found[1]))

    def _special(self, node: ir.Node, links: list[AxisLink]) -> bool:
        """Operators with more to them than their links; True if all is said."""
        if node.op_type in ("Conv", "ConvTranspose"):
            return self._grouped(node, links)
        x = node.inputs[0] if node.inputs else None
        rank = 0 if x is None or x.shape is None else len(x.shape)
        if node.op_type in _RECURRENT:
            for value in (*node.inputs[1:4], *node.inputs[7:8]):
                if value is not None:
                    self.pin((value, 0), f"{node.op_type} has a fixed number of directions")
        elif node.op_type in ("DepthToSpace", "SpaceToDepth"):
            for axis in (0, 2, 3):
                self.pin((node.inputs[0], axis), f"{node.op_type} folds it")  # type: ignore[arg-type]
                self.pin((node.outputs[0], axis), f"{node.op_type} folds it")
        elif node.op_type == "Trilu" and rank > 1:
            for axis in (rank - 2, rank - 1):
                self.pin((x, axis), "Trilu cuts along it")  # type: ignore[arg-type]
        elif node.op_type == "Attention":
            for index in (0, 1):
                value = node.inputs[index]
                if value is not None and value.shape is not None:
                    self.pin((value, len(value.shape) - 1), "Attention scales by its length")
        elif node.op_type in ("QuantizeLinear", "DequantizeLinear"):
            scale = node.inputs[1]
            if scale is not None and scale.shape is not None and len(scale.shape) > 1:
                self._pin_all(node, "it is quantized in blocks")
                return True
        elif node.op_type == "MaxPool" and len(node.outputs) > 1 and node.outputs[1].uses():
            self._pin_all(node, "MaxPool counts positions over it")
            return True
        elif node.op_type in ("Expand", "Resize", "Split", "Slice", "Pad", "Tile"):
            self._computed(node)
        return False

    def _computed(self, node: ir.Node) -> None:
        """Sizes that are computed by the graph cannot be rewritten."""
        if node.op_type == "Expand":
            self._expanded(node)
            return
        positions = {"Resize": (3,), "Split": (1,), "Slice": (1, 2, 3, 4), "Pad": (1, 3)}
        for index in positions.get(node.op_type, ()):
            value = node.inputs[index] if index < len(node.inputs) else None
            if value is not None and graph.const_array(value) is None:
                if node.op_type == "Resize":
                    self._pin_all(node, "Resize goes to a size that is computed")
                else:
                    self.pin_value(node.outputs[0], f"{node.op_type} goes to a size that is computed")
                    self.pin_value(node.inputs[0], f"{node.op_type} goes to a size that is computed")

    def _expanded(self, node: ir.Node) -> None:
        wanted, out = node.inputs[1], node.outputs[0]
        told = sizes(wanted, length(wanted, 0) or 0)
        shift = len(out.shape or ()) - len(told)
        for axis, size in enumerate(told):
            if size is None:
                self.pin((out, axis + shift), "Expand goes to a size that is computed")

    def _grouped(self, node: ir.Node, links: list[AxisLink]) -> bool:
        """Grouped convolutions keep their groups equal: either whole groups go, where there are more of them
        than channels inside one, or the same channels inside every group."""
        attribute = node.attributes.get("group")
        groups = 1 if attribute is None else int(attribute.as_int())
        x, w, y = node.inputs[0], node.inputs[1], node.outputs[0]
        if groups == 1 or x is None or w is None:
            return False
        transposed = node.op_type == "ConvTranspose"
        c, m, inside = length(x, 1), length(y, 1), length(w, 1)
        if c is None or m is None or inside is None:
            self._pin_all(node, "a grouped convolution of unknown width")
            return True
        i, o = np.arange(c, dtype=np.int64), np.arange(m, dtype=np.int64)
        columns = np.arange(inside, dtype=np.int64)
        for link in links:
            if link.kind == "same" and not (transposed and link.input == 1 and link.input_axis == 1):
                self._link(node, link)
        if transposed:
            self.join((x, 1), (w, 0))
        if groups > c // groups or c == groups:
            if inside > 1 or c != m:
                self.edges.append(Edge((x, 1), i // (c // groups), (y, 1), o // (m // groups)))
            self.pin((w, 1), "whole groups of the convolution go, or none")
        elif transposed:
            self.edges.append(Edge((x, 1), i % (c // groups), (x, 1), i % (c // groups)))
            self.edges.append(Edge((w, 1), columns, (y, 1), o % (m // groups)))
        else:
            self.edges.append(Edge((x, 1), i % (c // groups), (w, 1), columns))
            self.edges.append(Edge((y, 1), o % (m // groups), (y, 1), o % (m // groups)))
        return True

    def _find_heads(self, node: ir.Node) -> None:
        if any(graph.const_array(v) is not None for v in node.inputs[:2]):
            return
        for value in node.inputs[:2]:
            if value is not None and value.shape is not None:
                self.heads.update((value, axis) for axis in range(len(value.shape) - 2))

    # -- reshapes --------------------------------------------------------------------------------------------

    def _follow(self, node: ir.Node, links: list[AxisLink]) -> None:
        """An index of a folded axis belongs to several axes (a head and a place in it). Removal must leave a
        box, so it follows one of them; the others stay."""
        x, y = node.inputs[0], node.outputs[0]
        assert x is not None
        known = target(node)
        where: dict[tuple[str, int], list[AxisLink]] = defaultdict(list)
        for link in links:
            where["in", link.input_axis].append(link)
            where["out", link.output_axis].append(link)
        for (side, axis), found in where.items():
            place = (x if side == "in" else y, axis)
            size = length(*place)
            digits = [size if k.kind == "same" else k.size for k in found]
            if size is not None and (None in digits or int(np.prod([d or 0 for d in digits])) != size):
                self.pin(place, f"{node.op_type} cuts across it")
        if known is not None:
            for axis, entry in enumerate(known):
                if entry is None:
                    self.pin((y, axis), f"{node.op_type} goes to a size that is computed")
        for part in runs(links):
            wide = [k for k in part if k.kind == "same" or k.size > 1]
            if not wide:
                continue
            best = wide[0] if len(wide) == 1 else max(wide, key=lambda k: self._worth((x, y), k))
            if len(wide) > 1:
                self._leave((x, y), wide, best, node)
            self._link(node, best)

    def _leave(
        self, ends: tuple[ir.Value, ir.Value], run: list[AxisLink], best: AxisLink, node: ir.Node
    ) -> None:
        kept = {("in", best.input_axis), ("out", best.output_axis)}
        for link in run:
            for side, value, axis in (
                ("in", ends[0], link.input_axis),
                ("out", ends[1], link.output_axis),
            ):
                if (side, axis) not in kept:
                    self.pin((value, axis), f"{node.op_type} folds it with another axis")

    def _worth(self, ends: tuple[ir.Value, ir.Value], link: AxisLink) -> tuple[bool, bool, int]:
        first, second = (ends[0], link.input_axis), (ends[1], link.output_axis)
        free = self.pinned(first) is None and self.pinned(second) is None
        head = self.find(first) in self.heads or self.find(second) in self.heads
        return free, head, link.size if link.kind != "same" else length(*first) or 0
