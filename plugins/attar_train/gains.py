"""What is learned of scales and zero points: which quantizers share it, and the initializers that hold it."""

from __future__ import annotations

import numpy as np
import onnx_ir as ir

from attar import graph
from attar.graph.learned import mark_learned
from attar.ops import rule_of
from attar.registry import Registry
from attar_train.operators import DOMAIN, FAKE_QUANTIZE


def learn_scales(model: ir.Model, registry: Registry, *, offsets: bool, taken: set[str]) -> bool:
    """Give every FakeQuantize of `model` a gain; those between which values are only moved share one, so that
    what moves integers goes on moving them.

    Args:
        offsets: give activations shifts of their zero points, too.
        taken: names in use.

    Returns:
        False if all scales are powers of two: hardware wants them so, and they stay.
    """
    found = [n for n in graph.all_nodes(model) if n.op_type == FAKE_QUANTIZE and n.domain == DOMAIN]
    if found and all(_powers_of_two(n) for n in found):
        return False
    groups = _groups(found, registry)
    made: dict[ir.Node, list[ir.Value]] = {}
    for node in found:
        key = groups[node]
        if key not in made:
            made[key] = [_learned(node, "gain", 1.0, taken)]
            if offsets and _has_offset(node):
                made[key].append(_learned(node, "shift", 0.0, taken))
        node.resize_inputs(3)
        for value in made[key]:
            node.resize_inputs(len(node.inputs) + 1)
            node.replace_input_with(len(node.inputs) - 1, value)
    return True


def _powers_of_two(node: ir.Node) -> bool:
    scale = graph.const_array(node.inputs[1])
    return scale is not None and bool((np.frexp(scale)[0] == 0.5).all())


def _has_offset(node: ir.Node) -> bool:
    """Whether it is an activation whose zero is not at an end of the codes: there it stands for a Relu."""
    zero = graph.const_array(node.inputs[2]) if len(node.inputs) > 2 else None
    if "weight" in node.attributes or zero is None:
        return False
    wide = zero.astype(np.int64)
    return all((wide != node.attributes[end].as_int()).all() for end in ("qmin", "qmax"))


def _learned(node: ir.Node, what: str, start: float, taken: set[str]) -> ir.Value:
    scale = node.inputs[1]
    array = graph.const_array(scale)
    assert scale is not None
    assert scale.graph is not None
    assert array is not None
    value = graph.add_initializer(
        scale.graph, f"{scale.name}_{what}", np.full(array.shape, start, np.float32), taken
    )
    mark_learned(value)
    return value


def _groups(nodes: list[ir.Node], registry: Registry) -> dict[ir.Node, ir.Node]:
    """Quantizer -> representative of those that must keep one scale: values are only moved between them."""
    parent = {n: n for n in nodes}

    def find(node: ir.Node) -> ir.Node:
        while parent[node] is not node:
            node = parent[node]
        return node

    for node in nodes:
        stack = [] if "weight" in node.attributes else [node.inputs[0]]
        while stack:
            source = stack.pop()
            maker = None if source is None else source.producer()
            if maker is None:
                continue
            if maker in parent:
                if "weight" not in maker.attributes and same_parameters(maker, node):
                    parent[find(node)] = find(maker)
                continue
            rule = rule_of(maker, registry)
            if rule is not None and rule.keeps_values_of(maker):
                stack += [maker.inputs[i] for i in rule.quantizable_inputs(maker)]
    same: dict[tuple[int, int], ir.Node] = {}
    out: dict[ir.Node, ir.Node] = {}
    for node in nodes:
        root = find(node)
        if "weight" in node.attributes:  # one stored weight has one scale, however many read it
            root = same.setdefault((id(node.inputs[0]), id(node.inputs[1])), root)
        out[node] = root
    return out


def same_parameters(one: ir.Node, other: ir.Node) -> bool:
    """Whether two quantizing nodes have the same scale, zero point, axis and block."""
    for place in (1, 2):
        a, b = (n.inputs[place] if len(n.inputs) > place else None for n in (one, other))
        if a is b:
            continue
        x, y = graph.const_array(a), graph.const_array(b)
        if x is None or y is None or x.dtype != y.dtype or x.shape != y.shape or (x != y).any():
            return False
    scale = graph.const_array(one.inputs[1])
    keys = () if scale is None or scale.ndim == 0 else ("axis", "block_size")
    return all(attribute(one, k) == attribute(other, k) for k in keys)


def attribute(node: ir.Node, name: str) -> int:
    """An integer attribute of a quantizing node, or its default."""
    found = node.attributes.get(name)
    return {"axis": 1}.get(name, 0) if found is None else found.as_int()
