"""Loops whose number of rounds is known, written out round by round for frameworks that have no loops."""

from __future__ import annotations

from collections.abc import Container, Sequence

import numpy as np
import onnx_ir as ir

from attar.conversion.view import op_key
from attar.graph import add_initializer, const_array, refresh_shapes, tidy
from attar.graph.structure import unique_names

_ROUNDS = 256
_NODES = 4096  # beyond it a graph is no longer what anybody wants to have


def unroll(model: ir.Model, known: Container[str]) -> bool:
    """Write out, in place, each Loop and Scan that is not in `known` and whose rounds are few and certain.

    A Loop runs a constant number of rounds if nothing ends it sooner; a Scan one for each slice of an axis
    whose size is a number. Others stay as they are.

    Returns:
        Whether there were any.
    """
    done = _unroll(model.graph, model.graph, known)
    if done:
        unique_names(model)
        tidy(model)
        refresh_shapes(model)
    return done


def _unroll(main: ir.Graph, graph: ir.Graph, known: Container[str]) -> bool:
    done = False
    for node in list(graph):
        for attribute in node.attributes.values():
            if attribute.type == ir.AttributeType.GRAPH:
                done = _unroll(main, attribute.as_graph(), known) or done
        if node.domain == "" and node.op_type in ("Loop", "Scan") and op_key(node) not in known:
            rounds = _rounds(node)
            body = node.attributes["body"].as_graph()
            nested = any(a.type == ir.AttributeType.GRAPH for n in body for a in n.attributes.values())
            if rounds is None or not 0 < rounds <= _ROUNDS or rounds * len(body) > _NODES or nested:
                continue
            _Written(main, graph, node, rounds).replace()
            done = True
    return done


def _rounds(node: ir.Node) -> int | None:
    """How often the body runs, if that is certain."""
    body = node.attributes["body"].as_graph()
    if node.op_type == "Scan":
        count = node.attributes["num_scan_inputs"].as_int()
        axes = _ints(node, "scan_input_axes", count)
        sizes = [
            None if v is None or v.shape is None else v.shape[axis]
            for v, axis in zip(node.inputs[-count:], axes, strict=True)
        ]
        return next((d for d in sizes if isinstance(d, int)), None)
    limit, going = const_array(node.inputs[0]), node.inputs[1]
    if limit is None or not (going is None or _true(going)):
        return None
    end: ir.Value | None = body.outputs[0]
    while end is not None and end.producer() is not None and _op(end) == "Identity":
        end = end.producer().inputs[0]  # type: ignore[union-attr]
    return int(limit.reshape(-1)[0]) if end is body.inputs[1] or _true(end) else None


def _op(value: ir.Value) -> str:
    node = value.producer()
    return "" if node is None else node.op_type


def _true(value: ir.Value | None) -> bool:
    array = const_array(value)
    return array is not None and bool(array.reshape(-1)[0])


def _ints(node: ir.Node, name: str, count: int) -> Sequence[int]:
    found = node.attributes.get(name)
    return [0] * count if found is None else found.as_ints()


class _Written:
    """One loop while it is written out."""

    def __init__(self, main: ir.Graph, graph: ir.Graph, node: ir.Node, rounds: int) -> None:
        self.main, self.graph, self.node, self.rounds = main, graph, node, rounds
        self.body = node.attributes["body"].as_graph()
        self.nodes: list[ir.Node] = []

    def replace(self) -> None:
        for value in list(self.body.initializers.values()):
            array = const_array(value)
            assert array is not None
            value.replace_all_uses_with(add_initializer(self.main, value.name or "constant", array))
        made = self._scan() if self.node.op_type == "Scan" else self._loop()
        ir.convenience.replace_nodes_and_values(
            self.graph, self.node, [self.node], self.nodes, self.node.outputs, made
        )

    def _loop(self) -> list[ir.Value]:
        state: list[ir.Value | None] = list(self.node.inputs[2:])
        slices: list[list[ir.Value]] = [[] for _ in self.node.outputs[len(state) :]]
        going = self._number(np.array(True))
        for turn in range(self.rounds):
            made = self._turn([self._number(np.array(turn, np.int64)), going, *state])[1:]
            state = list(made[: len(state)])
            for kept, one in zip(slices, made[len(state) :], strict=True):
                kept.append(one)
        return [*(self._own(v) for v in state), *(self._stacked(kept, 0) for kept in slices)]

    def _scan(self) -> list[ir.Value]:
        count = self.node.attributes["num_scan_inputs"].as_int()
        split = len(self.node.inputs) - count
        state, scanned = list(self.node.inputs[:split]), self.node.inputs[split:]
        results = len(self.node.outputs) - split
        axes, backward = (_ints(self.node, f"scan_input_{n}", count) for n in ("axes", "directions"))
        slices: list[list[ir.Value]] = [[] for _ in range(results)]
        for turn in range(self.rounds):
            parts: list[ir.Value | None] = [
                self._op("Gather", [x, self._number(np.array(self.rounds - 1 - turn if b else turn))], axis=a)
                for x, a, b in zip(scanned, axes, backward, strict=True)
            ]
            made = self._turn([*state, *parts])
            state = list(made[:split])
            for kept, one in zip(slices, made[split:], strict=True):
                kept.append(one)
        axes, backward = (_ints(self.node, f"scan_output_{n}", results) for n in ("axes", "directions"))
        stacked = [
            self._stacked(kept[::-1] if b else kept, a)
            for kept, a, b in zip(slices, axes, backward, strict=True)
        ]
        return [*(self._own(v) for v in state), *stacked]

    def _turn(self, inputs: Sequence[ir.Value | None]) -> list[ir.Value]:
        """The outputs of one round."""
        values: dict[ir.Value, ir.Value | None] = dict(zip(self.body.inputs, inputs, strict=True))
        for node in self.body:
            copy = ir.Node(
                node.domain,
                node.op_type,
                [values.get(v, v) if v is not None else None for v in node.inputs],
                list(node.attributes.values()),
                num_outputs=len(node.outputs),
                name=node.name,
            )
            for old, new in zip(node.outputs, copy.outputs, strict=True):
                new.name, new.type, new.shape = old.name, old.type, old.shape
                new.const_value = old.const_value
                values[old] = new
            self.nodes.append(copy)
        found = [values.get(v, v) for v in self.body.outputs]
        assert all(v is not None for v in found)
        return [v for v in found if v is not None]

    def _stacked(self, slices: Sequence[ir.Value], axis: int) -> ir.Value:
        place = self._number(np.array([axis], np.int64))
        return self._op("Concat", [self._op("Unsqueeze", [v, place]) for v in slices], axis=axis)

    def _own(self, value: ir.Value | None) -> ir.Value:
        """A value of the loop's own for each of its outputs, since two of them may be one."""
        return self._op("Identity", [value])

    def _op(self, op: str, inputs: Sequence[ir.Value | None], **attributes: int) -> ir.Value:
        node = ir.node(op, inputs, attributes=attributes, name=f"{self.node.name}_{op.lower()}")
        node.outputs[0].name = f"{self.node.name}_{op.lower()}"
        self.nodes.append(node)
        return node.outputs[0]

    def _number(self, array: np.ndarray) -> ir.Value:  # type: ignore[type-arg]
        return add_initializer(self.main, f"{self.node.name}_number", array)
