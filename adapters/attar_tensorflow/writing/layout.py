"""Carries images through the graph channels-last, as TensorFlow computes them.

Every value may exist in two layouts: as the IR has it, and with its channels moved to the end. Operators on
images take and give the second; operators that act on each element or along axes follow what they are given,
with their axes renumbered; all others take the first. A Transpose is inserted where a layout is asked for
that does not exist, and Transposes of the model that only change between the two cost nothing, so that a
network that was channels-last in its own framework becomes so again.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np
import onnx_ir as ir

from attar.conversion.view import op_key
from attar.graph import add_initializer, const_array, fresh_name, taken_names

Rule = Callable[["Layout", ir.Node], bool]


def first_to_last(rank: int) -> list[int]:
    return [0, *range(2, rank), 1]


def last_to_first(rank: int) -> list[int]:
    return [0, rank - 1, *range(1, rank - 1)]


def moved_axis(axis: int, rank: int) -> int:
    """Where an axis of the IR's layout is in the channels-last one."""
    return first_to_last(rank).index(axis % rank)


class Layout:
    """One walk over a graph, which it edits in place."""

    def __init__(self, graph: ir.Graph) -> None:
        self.graph = graph
        self.last: dict[ir.Value, ir.Value] = {}
        self.source: dict[ir.Value, ir.Value] = {}
        self._taken = taken_names(graph)
        self._at: ir.Node | None = None
        self._new: set[ir.Node] = set()

    def run(self, rules: dict[str, Rule], *, keep_interface: bool) -> None:
        graph = self.graph
        names = [v.name for v in graph.outputs]
        for value in list(graph.inputs):
            if not keep_interface and rank_of(value) in (4, 5) and _reaches_images(value, rules):
                self._turn_input(value)
            else:
                self.source[value] = value
        dead: list[ir.Node] = []
        for node in list(graph):
            self._at = node
            rule = rules.get(op_key(node))
            if rule is not None and rule(self, node):
                dead.append(node)
                continue
            for index, value in enumerate(node.inputs):
                if value is not None:
                    node.replace_input_with(index, self.in_source(value))
            for value in node.outputs:
                self.source[value] = value
        self._at = None
        for index, value in enumerate(list(graph.outputs)):
            name = names[index]
            turned = self.last.get(value) if not keep_interface and rank_of(value) in (4, 5) else None
            final = turned or self.in_source(value)
            if final is not value:
                if final.is_graph_input() or final.is_initializer() or final in graph.outputs:
                    final = self.emit("Identity", [final], value, shape=final.shape)
                if value.name == name:
                    value.name = fresh_name(graph, f"{name}_old", self._taken)
                final.name = name
                graph.outputs[index] = final
        for node in reversed(dead):
            graph.remove(node, safe=True)

    # -- values in either layout -----------------------------------------------------------------------------

    def has_last(self, value: ir.Value | None) -> bool:
        return value is not None and value in self.last

    def in_source(self, value: ir.Value) -> ir.Value:
        if value in self.source:
            return self.source[value]
        if value in self.last:
            rank = rank_of(value)
            made = self.emit(
                "Transpose", [self.last[value]], value, shape=value.shape, perm=last_to_first(rank)
            )
            self.source[value] = made
            return made
        return value  # a constant

    def in_last(self, value: ir.Value) -> ir.Value:
        if value not in self.last:
            rank = rank_of(value)
            made = self.emit(
                "Transpose",
                [self.in_source(value)],
                value,
                shape=permuted(value.shape, first_to_last(rank)),
                perm=first_to_last(rank),
            )
            self.last[value] = made
        return self.last[value]

    def constant(self, base: str, array: np.ndarray) -> ir.Value:
        return add_initializer(self.graph, base, array, self._taken)

    def constant_last(self, value: ir.Value, rank: int) -> ir.Value:
        """A constant operand of an operator on tensors of `rank`, made to broadcast channels-last."""
        array = const_array(value)
        if array.size == 1:
            return value
        whole = array.reshape([1] * (rank - array.ndim) + list(array.shape))
        whole = np.transpose(whole, first_to_last(rank))
        while whole.ndim > 1 and whole.shape[0] == 1:  # a bias is a vector again
            whole = whole[0]
        return self.constant(value.name or "constant", np.ascontiguousarray(whole))

    def emit(
        self,
        op: str,
        inputs: Sequence[ir.Value | None],
        like: ir.Value,
        *,
        shape: ir.Shape | None,
        **attributes: object,
    ) -> ir.Value:
        """A new node before the one at hand; its output has the type of `like`."""
        name = fresh_name(self.graph, f"{like.name or op}_{op.lower()}", self._taken)
        node = ir.node(op, list(inputs), attributes=attributes or None, name=name)
        out = node.outputs[0]
        out.name, out.type, out.shape = name, like.type, shape
        self._place(node)
        return out

    def again(
        self, node: ir.Node, inputs: Sequence[ir.Value | None], *, last: bool = True, **attributes: object
    ) -> list[ir.Value]:
        """`node` anew on other inputs and with some attributes changed; its outputs are channels-last."""
        kept = {name: a for name, a in node.attributes.items() if name not in attributes}
        copy = ir.node(
            node.op_type,
            list(inputs),
            attributes=attributes or None,
            domain=node.domain,
            name=node.name,
            num_outputs=len(node.outputs),
        )
        copy.attributes.update(kept)
        for new, old in zip(copy.outputs, node.outputs, strict=True):
            # The old value goes; the new one takes its name, which layers are called by.
            new.name = old.name or fresh_name(self.graph, node.op_type, self._taken)
            old.name = fresh_name(self.graph, f"{new.name}_old", self._taken)
            new.type = old.type
            turn = last and rank_of(old) is not None and rank_of(old) >= 3
            new.shape = permuted(old.shape, first_to_last(len(old.shape))) if turn else old.shape
            (self.last if last else self.source)[old] = new
        self._place(copy)
        return list(copy.outputs)

    def _place(self, node: ir.Node) -> None:
        if self._at is None:
            self.graph.append(node)
        else:
            self.graph.insert_before(self._at, node)

    def _turn_input(self, value: ir.Value) -> None:
        new = ir.Value(
            name=value.name, type=value.type, shape=permuted(value.shape, first_to_last(rank_of(value)))
        )
        value.name = fresh_name(self.graph, f"{value.name}_old", self._taken)
        self.graph.inputs[list(self.graph.inputs).index(value)] = new
        self.last[value] = new


def rank_of(value: ir.Value | None) -> int | None:
    return None if value is None or value.shape is None else len(value.shape)


def permuted(shape: ir.Shape | None, perm: Sequence[int]) -> ir.Shape | None:
    return None if shape is None else ir.Shape([shape[p] for p in perm])


def _reaches_images(value: ir.Value, rules: dict[str, Rule]) -> bool:
    """Whether an operator on images uses `value`, perhaps after some that act on each element."""
    todo, seen = [value], {value}
    while todo:
        for use in todo.pop().uses():
            node = use.node
            if getattr(rules.get(op_key(node)), "on_images", False):
                return True
            if op_key(node) in rules and len(seen) < 100:
                new = [v for v in node.outputs if v not in seen]
                seen.update(new)
                todo.extend(new)
    return False


def channels_last(graph: ir.Graph, *, keep_interface: bool) -> None:
    """Make the operators on images of `graph` channels-last, in place.

    Args:
        keep_interface: inputs and outputs keep the axes of the IR; else images come and go channels-last.
    """
    from attar_tensorflow.writing.layout_rules import RULES

    Layout(graph).run(RULES, keep_interface=keep_interface)
