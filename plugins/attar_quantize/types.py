"""The types of one static quantization: what its options and the target say, for every weight and value."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

import numpy as np
import onnx_ir as ir

from attar import graph
from attar.targets import Target
from attar_quantize import widths
from attar_quantize.bias import weight_scales_for_bias
from attar_quantize.heard import heard_params
from attar_quantize.ranges import Values
from attar_quantize.scheme import Array, QParams, QType, is_wide, power_of_two, weight_params
from attar_quantize.sensitivity import bits_by_sensitivity
from attar_quantize.units import Plan, Unit

if TYPE_CHECKING:
    from attar_quantize.static import Static


@dataclass(frozen=True)
class Types:
    """What weights and activations become.

    Attributes:
        step: the options.
        activation: type of activations, where no option by name says otherwise.
        weight: name of the element type of weights.
        reduced: weights of 8 bits get 7.
    """

    step: Static
    activation: QType
    weight: str
    reduced: bool
    overrides: tuple[widths.Override, ...] = ()

    @classmethod
    def of(cls, step: Static, target: Target, overrides: tuple[widths.Override, ...]) -> Types:
        kind = target.activation_type if step.activation == "auto" else step.activation
        activation = widths.base_type(
            kind,
            step.activation_bits,
            symmetric=step.symmetric_activations,
            power_of_two=step.power_of_two,
        )
        weight = target.weight_type if step.weight == "auto" else step.weight
        reduced = target.saturates if step.reduce_range is None else step.reduce_range
        return cls(step, activation, weight, reduced, overrides)

    @property
    def is_wide(self) -> bool:
        """Whether most of it is nothing that integer kernels take."""
        return is_wide(self.activation) or is_wide(self._weight(self._bits))

    @property
    def _bits(self) -> int:
        return 16 if self.weight == "int16" and self.step.weight_bits <= 8 else self.step.weight_bits

    def activations(self, plan: Plan, values: Values) -> dict[ir.Value, QType]:
        """The type of every quantized activation."""
        return widths.activation_types(plan, values, self.activation, self.step.edge_bits, self.overrides)

    def weight_bits(self, plan: Plan, powers: Mapping[ir.Value, Array]) -> dict[Unit, int]:
        """Bits of every layer's weight.

        Args:
            powers: E[x_c^2] of the inputs, for the choice by sensitivity.
        """
        chosen: dict[ir.Value, int] = {}
        if self.step.average_bits is not None:
            layers = [(u, self._axis(u, plan)) for u in widths.layers_of(plan)]
            chosen = bits_by_sensitivity(layers, powers, self.step.average_bits)
        return widths.weight_bits(plan, self._bits, self.step.edge_bits, self.overrides, chosen)

    def weights(
        self,
        plan: Plan,
        bits: Mapping[Unit, int],
        activations: Mapping[ir.Value, QParams],
        powers: Mapping[ir.Value, Array],
    ) -> dict[ir.Value, QParams]:
        """Scale and zero point of every weight, such that the biases fit beside them."""
        chosen: dict[ir.Value, QParams] = {}
        for unit in widths.layers_of(plan):
            weight = unit.weight
            array = graph.const_array(weight)
            assert weight is not None
            assert array is not None
            axis, qtype = self._axis(unit, plan), self._weight(bits[unit])
            power, source = powers.get(unit.inputs[0]), activations[unit.inputs[0]]
            params = chosen.get(weight) or (
                weight_params(array, qtype, axis)
                if axis is not None or power is None or qtype.format
                else heard_params(array, unit.main, power, qtype)
            )
            bias = (
                unit.main.inputs[2] if unit.main.op_type != "MatMul" and len(unit.main.inputs) > 2 else None
            )
            scale = params.scale
            if not source.qtype.format and not qtype.format:
                scale = weight_scales_for_bias(scale, graph.const_array(bias), source.scale)
                scale = power_of_two(scale, qtype).astype(np.float32)
            chosen[weight] = replace(params, scale=scale)
        return chosen

    def _weight(self, bits: int) -> QType:
        step = self.step
        if self.weight.startswith("float"):
            return QType(format=self.weight, power_of_two=step.power_of_two)
        symmetric = bits >= 8 if step.symmetric_weights is None else step.symmetric_weights
        signed = self.weight.startswith("int")
        return QType(
            signed=signed,
            bits=min(bits, 7) if self.reduced and bits <= 8 else bits,
            symmetric=symmetric,
            narrow=symmetric and signed,
            power_of_two=step.power_of_two,
        )

    def _axis(self, unit: Unit, plan: Plan) -> int | None:
        """Axis of the scales of a weight; tied weights whose outputs lie along different axes have one scale
        for all."""
        axes = {channel_axis(u) for u in plan.integer if u.weight is unit.weight}
        return channel_axis(unit) if self.step.granularity == "per_channel" and len(axes) == 1 else None


def channel_axis(unit: Unit) -> int:
    """Axis of the output channels of a layer's weight."""
    node = unit.main
    if node.op_type == "Conv":
        return 0
    trans = node.attributes.get("transB")
    return 0 if trans is not None and trans.value else 1
