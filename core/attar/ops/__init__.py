"""What every pass needs to know of an operator, once: weights, channel flow, cost, what may be quantized.

`BUILTIN` covers the default ONNX domain; plugins add rules by the hook `attar_ops`. Rules read inferred
shapes and constant inputs of the node itself. What they cannot tell, they leave out: an axis without a link
is pinned.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import TYPE_CHECKING

import onnx_ir as ir

from attar.ops.rule import AxisLink, Contraction, LinkKind, OpRule, op_key
from attar.ops.shapes import constant, known
from attar.ops.table import BUILTIN

if TYPE_CHECKING:
    from attar.registry import Registry

__all__ = ["BUILTIN", "AxisLink", "Contraction", "LinkKind", "OpRule", "model_macs", "op_key", "rule_of"]


def rule_of(node: ir.Node, registry: Registry | None = None) -> OpRule | None:
    """The rule of a node, None for an operator that nobody has described.

    Without a registry only `BUILTIN` is asked.
    """
    table = BUILTIN if registry is None else registry.ops
    return table.get(op_key(node.domain, node.op_type))


def model_macs(model: ir.Model, registry: Registry | None = None) -> int:
    """Multiply-accumulates of one run; symbolic dimensions (the batch) count as 1.

    Of an If the dearer branch counts, a Loop body counts once a trip when the trip count is constant (else
    once), a Scan body once a step. Operators without a rule count nothing.
    """
    return _macs(model.graph, registry)


def _macs(nodes: Iterable[ir.Node], registry: Registry | None) -> int:
    total = 0
    for node in nodes:
        bodies = [_macs(graph, registry) for graph in _bodies(node)]
        if bodies:
            total += max(bodies) * _trips(node)
        rule = rule_of(node, registry)
        if rule is not None:
            total += rule.macs(node) or 0
    return total


def _bodies(node: ir.Node) -> list[ir.Graph]:
    found: list[ir.Graph] = []
    for attribute in node.attributes.values():
        if attribute.is_ref():
            continue
        if attribute.type == ir.AttributeType.GRAPH:
            found.append(attribute.as_graph())
        elif attribute.type == ir.AttributeType.GRAPHS:
            found.extend(attribute.as_graphs())
    return found


def _trips(node: ir.Node) -> int:
    if node.op_type == "Loop":
        trips = constant(node, 0)
        return 1 if trips is None else int(trips.reshape(-1)[0])
    if node.op_type == "Scan":
        count = node.attributes["num_scan_inputs"].as_int()
        first = node.inputs[-count] if count else None
        if first is not None and first.shape is not None and first.shape.rank():
            dim = first.shape[0]
            return known(dim if isinstance(dim, int) else dim.value)
    return 1
