"""Parts of a network that can be left out: what lies between two values of the same type and shape.

A *branch* ends in a residual sum: the sum becomes its other operand. A *segment* of a chain lies between two
values through which everything passes: the later one becomes the earlier. Whether a network can do without
them is measured, not guessed from the form.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import onnx_ir as ir

from attar import graph
from attar.ops import OpRule, op_key
from attar_prune.staged import reads


@dataclass(frozen=True)
class Block:
    """Nodes that nothing needs any more when the value `out` becomes the value `kept`, by name.

    Attributes:
        nodes: names of the nodes, in order.
        layers: those of them that multiply with weights.
        macs: their multiply-accumulates, symbolic dimensions counted as 1.
        bytes: of the weights that go with them.
    """

    out: str
    kept: str
    nodes: tuple[str, ...]
    layers: tuple[str, ...]
    macs: int
    bytes: int

    @property
    def name(self) -> str:
        """The name of its first layer, for people."""
        return self.layers[0] if len(self.layers) == 1 else f"{self.layers[0]} to {self.layers[-1]}"


def find_blocks(model: ir.Model, rules: Mapping[str, OpRule]) -> list[Block]:
    """All branches and segments with weights, in the order of the graph; of those with the same layers the
    shortest."""
    order = {node: k for k, node in enumerate(model.graph)}
    before = _ancestors(model)
    found: dict[tuple[str, ...], Block] = {}

    def offer(out: ir.Value, kept: ir.Value) -> None:
        block = _block(model, out, kept, rules, order)
        if block is not None:
            found.setdefault(block.layers, block)

    for node in model.graph:
        if node.op_type == "Add" and node.domain == "" and len(node.inputs) == 2:
            for kept, gone in _choices(model, node, before, rules, order):
                del gone
                offer(node.outputs[0], kept)
    passes = _narrow(model)
    for k, out in enumerate(passes):
        for kept in reversed(passes[:k]):
            if _alike(out, kept):
                offer(out, kept)
                if any(b.out == out.name and b.kept == kept.name for b in found.values()):
                    break
    place = {node.name: k for node, k in order.items()}
    return sorted(found.values(), key=lambda b: place[b.layers[0]])


def leave_out(model: ir.Model, block: Block) -> ir.Node:
    """Make `block.out` a copy of `block.kept`; what nothing needs any more stays until `graph.tidy`.

    Returns:
        The Identity that keeps the name, for `forget`.
    """
    values = {v.name: v for v in model.graph.inputs} | {o.name: o for n in model.graph for o in n.outputs}
    out, kept = values[block.out], values[block.kept]
    maker = out.producer()
    assert maker is not None
    copy = ir.node("Identity", [kept], name=graph.fresh_name(model.graph, f"{maker.name}/left_out"))
    new = copy.outputs[0]
    new.type, new.shape = out.type, out.shape
    model.graph.insert_before(maker, copy)
    ir.convenience.replace_all_uses_with(out, new, replace_graph_outputs=True)
    out.name, new.name = graph.fresh_name(model.graph, f"{out.name}/before"), out.name
    return copy


def forget(copies: list[ir.Node]) -> None:
    """Take the Identity nodes of `leave_out` away again where nothing asks for their names."""
    for node in copies:
        source, out = node.inputs[0], node.outputs[0]
        assert source is not None
        if not out.is_graph_output():
            ir.convenience.replace_all_uses_with(out, source)


# -- what could go -------------------------------------------------------------------------------------------


def _block(
    model: ir.Model, out: ir.Value, kept: ir.Value, rules: Mapping[str, OpRule], order: dict[ir.Node, int]
) -> Block | None:
    last = out.producer()
    if last is None:
        return None
    gone = _dead(last, out, kept)
    layers, macs = [], 0
    weights: dict[ir.Value, None] = {}
    nodes = sorted(gone, key=order.__getitem__)
    for node in nodes:
        rule = rules.get(op_key(node.domain, node.op_type))
        constants = [v for v in node.inputs if graph.const_array(v) is not None]
        work = rule.macs(node) if rule is not None else None
        macs += work or 0
        if work and constants:
            layers.append(node.name or "")
        for value in constants:
            if value is not None and all(use.node in gone for use in value.uses()):
                weights[value] = None
    if not layers:
        return None
    size = sum(v.const_value.nbytes for v in weights if v.const_value is not None)
    return Block(
        out.name or "", kept.name or "", tuple(n.name or "" for n in nodes), tuple(layers), macs, size
    )


def _dead(last: ir.Node, out: ir.Value, kept: ir.Value) -> set[ir.Node]:
    """Nodes that only serve `out`, which `last` makes, when `kept` is there anyway."""
    others = [o for o in last.outputs if o is not out and (o.uses() or o.is_graph_output())]
    if others:
        return set()
    found = {last}
    waiting = [last]
    while waiting:
        node = waiting.pop()
        for value in reads(node):
            maker = value.producer()
            if maker is None or maker in found or value is kept or maker.graph is not last.graph:
                continue
            served = [use.node for o in maker.outputs for use in o.uses()]
            free = all(user in found for user in served) and kept not in maker.outputs
            if free and not any(o.is_graph_output() for o in maker.outputs):
                found.add(maker)
                waiting.append(maker)
    return found


def _choices(
    model: ir.Model,
    node: ir.Node,
    before: dict[ir.Value, int],
    rules: Mapping[str, OpRule],
    order: dict[ir.Node, int],
) -> list[tuple[ir.Value, ir.Value]]:
    """(operand that stays, operand that goes) of a sum of two activations."""
    a, b = node.inputs
    out = node.outputs[0]
    if (
        a is None
        or b is None
        or a is b
        or graph.const_array(a) is not None
        or graph.const_array(b) is not None
    ):
        return []
    pairs = [(kept, gone) for kept, gone in ((a, b), (b, a)) if _alike(kept, out)]
    direct = [(kept, gone) for kept, gone in pairs if before.get(gone, 0) & _bit(before, kept)]
    if direct:
        return direct
    if not before.get(a, 0) & before.get(b, 0):
        return []  # two inputs of the model are added: neither is a branch of the other
    costs = {}
    for kept, gone in pairs:
        block = _block(model, out, kept, rules, order)
        costs[kept] = 0 if block is None else block.macs
        del gone
    return [max(pairs, key=lambda p: costs[p[0]])] if pairs else []


def _ancestors(model: ir.Model) -> dict[ir.Value, int]:
    """Value -> the values that it is computed from, itself included, as bits of a number; constants and
    inputs of the model left out."""
    found: dict[ir.Value, int] = {}
    count = 0
    for node in model.graph:
        union = 0
        for value in reads(node):
            union |= found.get(value, 0)
        for out in node.outputs:
            found[out] = union | 1 << count
            count += 1
    for value in model.graph.inputs:
        found[value] = 0
    return found


def _bit(before: dict[ir.Value, int], value: ir.Value) -> int:
    """The bit of the value itself: the highest of its own number."""
    bits = before.get(value, 0)
    return 1 << (bits.bit_length() - 1) if bits else 0


def _alike(one: ir.Value, other: ir.Value) -> bool:
    if one.dtype != other.dtype or one.dtype is None or not one.dtype.is_floating_point():
        return False
    if one.shape is None or other.shape is None or len(one.shape) != len(other.shape):
        return False
    pairs = zip(one.shape, other.shape, strict=True)
    return all(_known(a) is not None and _known(a) == _known(b) for a, b in pairs)


def _known(dim: int | ir.SymbolicDim) -> int | str | None:
    return dim if isinstance(dim, int) else dim.value


def _narrow(model: ir.Model) -> list[ir.Value]:
    """Values of floats that everything computed later is computed from, in order."""
    left: dict[ir.Value, int] = {}
    live: set[ir.Value] = set()
    for node in model.graph:
        for value in reads(node):
            left[value] = left.get(value, 0) + 1
    for value in model.graph.inputs:
        if left.get(value) and value.dtype is not None and value.dtype.is_floating_point():
            live.add(value)
    found = [value for value in model.graph.inputs if live == {value}]
    for node in model.graph:
        for value in reads(node):
            left[value] -= 1
            if not left[value]:
                live.discard(value)
        for out in node.outputs:
            if left.get(out) and out.dtype is not None and out.dtype.is_floating_point() and _varies(node):
                live.add(out)
        if len(live) == 1 and node.outputs[0] in live:
            found.append(node.outputs[0])
    return found


def _varies(node: ir.Node) -> bool:
    """Whether a node reads anything at all."""
    return bool(reads(node))
