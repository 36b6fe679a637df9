"""Which type each weight and each activation gets: the target's, the options', and those by name."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

import onnx_ir as ir

from attar.errors import RecipeError
from attar.patterns import check_patterns, matches
from attar_quantize.ranges import Values
from attar_quantize.scheme import FORMATS, QType
from attar_quantize.units import Plan, Unit

_BITS = re.compile(r"(?:w(\d+))?(?:a(\d+))?")


@dataclass(frozen=True)
class Override:
    """Other bits for the layers that a pattern matches.

    Attributes:
        weight, activation: bits; None: as elsewhere.
        keep_float: the layers stay in float.
    """

    pattern: str
    weight: int | None = None
    activation: int | None = None
    keep_float: bool = False

    def matches(self, unit: Unit) -> bool:
        return matches(unit.names, (self.pattern,))


def parse_override(text: str, where: str) -> Override:
    """`pattern=w4`, `pattern=a16`, `pattern=w4a16` or `pattern=float`.

    Raises:
        RecipeError: it is none of these, or the bits are out of range.
    """
    pattern, equals, kind = text.rpartition("=")
    if not equals or not pattern:
        raise RecipeError(f"{where} = {text!r} is not of the form 'pattern=w4a8'", hint="e.g. 'conv_1*=w4'")
    if kind in ("float", "float32"):
        return Override(pattern, keep_float=True)
    found = _BITS.fullmatch(kind)
    if not kind or found is None:
        raise RecipeError(
            f"{where} = {text!r}: {kind!r} does not say bits of weights and activations",
            hint="w4, a16, w4a8, or float",
        )
    weight, activation = (None if b is None else int(b) for b in found.groups())
    for bits in (weight, activation):
        if bits is not None and not 2 <= bits <= 16:
            raise RecipeError(f"{where} = {text!r}: bits must lie in [2, 16]")
    return Override(pattern, weight, activation)


def check_names(overrides: Sequence[Override], units: Sequence[Unit], where: str) -> None:
    """A pattern that matches nothing is a mistake, not silence.

    Raises:
        RecipeError: one matches no node or value.
    """
    names = [name for unit in units for name in unit.names]
    check_patterns([o.pattern for o in overrides], names, option=f"{where}: pattern", of="node or value")


def base_type(kind: str, bits: int | None, *, symmetric: bool | None, power_of_two: bool) -> QType:
    """The type that `kind` (int8, uint16, float8e4m3fn ...) and a number of bits say.

    Args:
        symmetric: None: as kernels for such codes want it, 16-bit signed ones symmetric.
    """
    if kind in FORMATS:
        return QType(format=kind, power_of_two=power_of_two)
    plain = QType.of(kind)
    chosen = plain.bits if bits is None else bits
    even = plain.signed and chosen > 8 if symmetric is None else symmetric
    return QType(plain.signed, chosen, even, power_of_two=power_of_two)


def layers_of(plan: Plan) -> list[Unit]:
    """The integer units with weights, in order."""
    return [u for u in plan.units if u.weight is not None and u in plan.integer]


def activation_types(
    plan: Plan, values: Values, base: QType, edge_bits: int, overrides: Sequence[Override]
) -> dict[ir.Value, QType]:
    """The type of every quantized activation.

    A value is read in one form by all, so it gets the most bits that any of its readers, or of the values
    that share its scale, wants. With few bits the inputs of the first and the last layer get `edge_bits`.
    """
    layers = layers_of(plan)
    edges = {layers[0], layers[-1]} if layers else set()
    wanted: dict[ir.Value, int] = {}
    for unit in plan.units:
        if unit not in plan.integer:
            continue
        bits = max(base.bits, edge_bits) if unit in edges and base.bits < 8 else base.bits
        own = next((o.activation for o in overrides if o.activation and o.matches(unit)), None)
        for value in unit.inputs:
            root = values.group_of[value]
            wanted[root] = max(wanted.get(root, 0), bits if own is None else own)
    if base.format:
        return dict.fromkeys(values.group_of, base)
    return {v: replace(base, bits=wanted.get(root, base.bits)) for v, root in values.group_of.items()}


def weight_bits(
    plan: Plan,
    bits: int,
    edge_bits: int,
    overrides: Sequence[Override],
    chosen: Mapping[ir.Value, int],
) -> dict[Unit, int]:
    """Bits of every layer's weight: by name, else as `chosen` by sensitivity, else those of the first and the
    last layer, else `bits`."""
    layers = layers_of(plan)
    found = {}
    for unit in layers:
        own = next((o.weight for o in overrides if o.weight and o.matches(unit)), None)
        edge = unit in (layers[0], layers[-1]) and bits <= 8
        assert unit.weight is not None
        found[unit] = own or chosen.get(unit.weight) or (edge_bits if edge else bits)
    return found
