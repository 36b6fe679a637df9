"""The planner: which units become integer kernels so that the whole network is quickest.

Every unit is integer or float; each has a cost in both, and each value that crosses from one side to the
other costs a conversion, once, however many read it. The cheapest assignment is a minimum cut (Greig,
Porteous, Seheult 1989; the conversions are the "one for all" terms of Kohli, Kumar, Torr 2009), so it is
found exactly and in polynomial time. Costs are microseconds, from the target's measured table or
measured on this very model.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from types import MappingProxyType

import onnx_ir as ir

from attar.context import Measured
from attar.costs import CostTable
from attar.targets import Target
from attar_quantize.units import Plan, Shapes, Unit, is_outside, shape_of, size_of

_NEVER = 1e15
# An integer weight is a quarter of the file; a compute unit may cost this much more than float and still be
# wanted.
_COMPUTE_BONUS = 1.25


@dataclass(frozen=True)
class Costs:
    """What the planner weighs.

    Attributes:
        table: the target's measured kernels.
        measured: kernel times of this very model; they override the table.
    """

    table: CostTable
    measured: Measured | None = None

    def of(self, unit: Unit, dtype: str) -> float:
        if self.measured is not None:
            own = self.measured.times(unit.names)[0 if dtype == "float" else 1]
            if own is not None:
                return own
        kind = unit.kind
        if kind == "conv.thin" and dtype == "int8":
            kind = "conv.widened"  # the lowering gives it a fourth input channel
        if kind == "averagepool.window":
            kind = "conv.depthwise" if dtype == "int8" else "averagepool"  # a lowering, too
        if unit.rule is not None and unit.rule.role == "move" and kind != "maxpool":
            # Moving bytes costs a quarter of moving floats, reshapes cost nothing in either.
            return 0.5 if dtype == "int8" else 1.0
        estimate = self.table.estimate(kind, dtype, macs=unit.macs, elements=unit.elements)
        if estimate is not None:
            return estimate
        # Never measured: in favour of integers by memory traffic for compute, indifferent otherwise.
        base = 1e-4 * unit.elements + 2e-5 * unit.macs
        return base * 0.5 if dtype == "int8" and unit.macs else base


def plan(
    units: list[Unit],
    target: Target,
    *,
    costs: Costs | None = None,
    shapes: Shapes | None = None,
    everything: bool = False,
    kept: Mapping[Unit, str] = MappingProxyType({}),
) -> Plan:
    """Choose the integer units.

    Args:
        shapes: value name -> shape in a typical run.
        everything: quantize every unit that can be, whatever it costs.
        kept: units that must stay in float, with the reason.
    """
    costs = costs or Costs(target.costs)
    possible: list[Unit] = []
    result = Plan(units)
    for unit in units:
        reason = unit.why or kept.get(unit, "")
        if unit.rule is not None and not reason:
            possible.append(unit)
        else:
            result.reasons[unit] = reason
    if everything:
        chosen = set(possible)
        result.integer = chosen - _useless_moves(chosen)
        return result
    chosen = _cut(units, set(possible), costs, shapes or {})
    chosen -= _useless_moves(chosen)
    result.integer = chosen
    for unit in possible:
        if unit not in chosen:
            in_float, in_int = costs.of(unit, "float"), costs.of(unit, "int8")
            result.reasons[unit] = (
                f"quicker in float here: about {in_float:.0f} us against {in_int:.0f} us and its conversions"
            )
    return result


def _cut(units: list[Unit], possible: set[Unit], costs: Costs, shapes: Shapes) -> set[Unit]:
    import networkx

    network = networkx.DiGraph()
    network.add_node("int")
    network.add_node("float")

    def arc(tail: object, head: object, capacity: float) -> None:
        if capacity <= 0:
            return
        if network.has_edge(tail, head):
            network[tail][head]["capacity"] += capacity
        else:
            network.add_edge(tail, head, capacity=capacity)

    producer: dict[ir.Value, Unit] = {v: u for u in units for v in u.outputs}
    readers: dict[ir.Value, list[Unit]] = {}
    for unit in units:
        for value in _reads(unit):
            readers.setdefault(value, []).append(unit)
    for unit in units:
        if unit not in possible:
            arc(unit, "float", _NEVER)
            continue
        in_float, in_int = costs.of(unit, "float"), costs.of(unit, "int8")
        if unit.rule is not None and unit.rule.role == "compute":
            in_float *= _COMPUTE_BONUS
        arc("int", unit, in_float)  # paid when the unit ends on the float side
        arc(unit, "float", in_int)
    for value, users in readers.items():
        source = producer.get(value)
        into, out_of = _conversion(value, source, users, costs, shapes)
        integer_users = [u for u in users if u in possible and value in u.inputs]
        if integer_users:
            # Quantized once if the producer is float (or the graph's input) and any user is an integer.
            aux = ("quantize", value)
            for user in integer_users:
                arc(user, aux, _NEVER)
            arc(aux, source if source is not None else "float", into)
        if source in possible and source is not None:
            aux = ("dequantize", value)
            arc(source, aux, out_of)
            for user in users:
                # A user that reads the value otherwise than as a quantized activation reads it in float.
                arc(aux, user if value in user.inputs else "float", _NEVER)
            if is_outside(value):
                arc(aux, "float", _NEVER)
    for unit in possible:
        for value in unit.outputs:
            if value not in readers:
                arc(unit, "float", _conversion(value, unit, [], costs, shapes)[1])
    _, (integer_side, _) = networkx.minimum_cut(network, "int", "float")
    return {u for u in integer_side if isinstance(u, Unit)}


def _reads(unit: Unit) -> list[ir.Value]:
    inside = {v for n in unit.nodes[:-1] for v in n.outputs}
    seen: dict[ir.Value, None] = {}
    for node in unit.nodes:
        for value in node.inputs:
            if value is not None and value not in inside and not value.is_initializer():
                seen[value] = None
    return list(seen)


def _conversion(
    value: ir.Value, source: Unit | None, users: list[Unit], costs: Costs, shapes: Shapes
) -> tuple[float, float]:
    """Microseconds to quantize and to dequantize a value, the change of layout included where convolutions
    meet it."""
    elements = size_of(value, shapes)
    quantize = costs.table.estimate("quantize", "int8", elements=elements) or 1e-4 * elements
    dequantize = costs.table.estimate("dequantize", "int8", elements=elements) or 1e-4 * elements
    if len(shape_of(value, shapes)) == 4:
        bytes_turned = costs.table.estimate("layout", "int8", elements=2 * elements) or 0.0
        floats_turned = costs.table.estimate("layout", "float", elements=2 * elements) or 0.0
        if any(u.main.op_type == "Conv" for u in users):
            quantize += bytes_turned
            dequantize += floats_turned
        if source is not None and source.main.op_type == "Conv":
            quantize += floats_turned
            dequantize += bytes_turned
    if source is not None and source.rule is not None and source.rule.float_output:
        dequantize = 0.0  # the kernel writes float itself
    return quantize, dequantize


def _useless_moves(chosen: set[Unit]) -> set[Unit]:
    """Moves that would run on integers without any integer kernel to feed or to follow."""
    producers = {v: u for u in chosen for v in u.outputs}
    followers: dict[Unit, list[Unit]] = {}
    for unit in chosen:
        for value in unit.inputs:
            if value in producers:
                followers.setdefault(producers[value], []).append(unit)
    useful = {u for u in chosen if u.rule is not None and u.rule.role != "move"}
    grown = True
    while grown:
        grown = False
        for unit in chosen - useful:
            before = any(producers.get(v) in useful for v in unit.inputs)
            after = any(f in useful for f in followers.get(unit, ()))
            if before or after:
                useful.add(unit)
                grown = True
    return chosen - useful
