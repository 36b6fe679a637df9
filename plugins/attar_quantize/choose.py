"""Choosing between settings by what they do to the outputs, on a few samples of the calibration data."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import TypeVar

import onnx_ir as ir

from attar import graph
from attar.context import Context
from attar.feeds import first_pieces
from attar.measure import worst_sqnr
from attar_quantize.units import Plan, Unit

T = TypeVar("T")
# Ranges differ by much or not at all; so many samples tell.
_SAMPLES = 16
# Decibels below which two settings are as good as each other, and the first is taken: the same network from
# two frameworks, or on two machines, shall not be quantized in two ways because of the last bits of a sum.
_CLEAR = 0.5
# What changes the form of an output, or the way its numbers are written.
_SHAPING = (
    "Reshape",
    "Flatten",
    "Squeeze",
    "Unsqueeze",
    "Identity",
    "Transpose",
    "QuantizeLinear",
    "DequantizeLinear",
)


def nearest(
    model: ir.Model,
    candidates: Mapping[str, object],
    write: Callable[[ir.Model, str], None],
    ctx: Context,
) -> str:
    """The candidate whose outputs are nearest to `model`'s: largest SQNR of the worst output. The first of
    them, unless another is clearly nearer.

    Args:
        write: turns a copy of `model` into the candidate of that name.
    """
    names = list(candidates)
    if len(names) == 1:
        return names[0]
    before = ctx.runtime.open(before_squashing(graph.clone(model)), threads=ctx.threads)
    scores: dict[str, float] = {}
    for name in names:
        copy = graph.clone(model)
        write(copy, name)
        session = ctx.runtime.open(before_squashing(copy), threads=ctx.threads)
        scores[name] = worst_sqnr(before, session, first_pieces(ctx.calibration, _SAMPLES))
    best = max(names, key=lambda n: (scores[n], -names.index(n)))
    if not scores[best] > scores[names[0]] + _CLEAR:
        best = names[0]
    ctx.note(f"observer {best}: " + ", ".join(f"{n} {scores[n]:.1f} dB" for n in names))
    return best


def before_squashing(model: ir.Model) -> ir.Model:
    """`model`, changed in place to give the logits where it gives probabilities.

    Behind a Softmax or Sigmoid the samples that the network is sure of show no difference, and few are left
    to choose by.
    """
    outputs = model.graph.outputs
    for position, output in enumerate(outputs):
        value: ir.Value | None = output
        while value is not None and (node := value.producer()) is not None and node.op_type in _SHAPING:
            value = node.inputs[0]
        node = None if value is None else value.producer()
        if node is None or node.op_type not in ("Softmax", "LogSoftmax", "Sigmoid"):
            continue
        source = node.inputs[0]
        if source is not None and source.producer() is not None and not source.is_graph_output():
            outputs[position] = source
            name, output.name = output.name, f"{output.name}/squashed"
            source.name = name
    graph.tidy(model)
    return model


class Correspondence:
    """The values and nodes of one model in a copy of it, by position."""

    def __init__(self, model: ir.Model, copy: ir.Model) -> None:
        self._values: dict[ir.Value, ir.Value] = {}
        self._nodes: dict[ir.Node, ir.Node] = {}
        for mine, theirs in zip(model.graph.inputs, copy.graph.inputs, strict=True):
            self._values[mine] = theirs
        for name, value in model.graph.initializers.items():
            self._values[value] = copy.graph.initializers[name]
        for mine_node, their_node in zip(model.graph, copy.graph, strict=True):
            self._nodes[mine_node] = their_node
            self._values.update(zip(mine_node.outputs, their_node.outputs, strict=True))

    def keys(self, mapping: Mapping[ir.Value, T]) -> dict[ir.Value, T]:
        """`mapping` with the copy's values as keys."""
        return {self._values[value]: item for value, item in mapping.items()}

    def plan(self, plan: Plan) -> Plan:
        """The same plan of the copy."""
        units = {u: self._unit(u) for u in plan.units}
        return Plan(
            list(units.values()),
            {units[u] for u in plan.integer},
            {units[u]: why for u, why in plan.reasons.items()},
        )

    def _unit(self, unit: Unit) -> Unit:
        return Unit(
            [self._nodes[n] for n in unit.nodes],
            unit.rule,
            unit.why,
            tuple(self._values[v] for v in unit.inputs),
            None if unit.bias is None else self._values[unit.bias],
            unit.kind,
            unit.macs,
            unit.elements,
        )
