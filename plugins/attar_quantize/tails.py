"""What comes behind the last layer of a network."""

from __future__ import annotations

from collections.abc import Sequence

from attar.kernels import COMPUTE
from attar_quantize.units import Unit


def behind_last_layer(units: Sequence[Unit]) -> dict[Unit, str]:
    """Arithmetic that no layer with weights reads any more, with the reason to leave it in float.

    Its rounding goes straight into the outputs: a mean over a plane, or the Add that puts a residual back
    onto an image, gives more than 8 bits, and there is little of it to save.

    Args:
        units: in topological order.
    """
    owner = {node: unit for unit in units for node in unit.nodes}
    leads_on: set[Unit] = set()
    for unit in reversed(units):
        readers = {owner.get(user) for value in unit.outputs for user, _ in value.uses()}
        if any(r is not None and (r in leads_on or r.main.op_type in COMPUTE) for r in readers):
            leads_on.add(unit)
    return {
        unit: "it comes behind the last layer, where rounding goes straight into the outputs"
        for unit in units
        if unit.rule is not None and unit.rule.role == "arithmetic" and unit not in leads_on
    }
