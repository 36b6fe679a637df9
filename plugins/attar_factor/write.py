"""Putting layers in the place of one: plain nodes with names that tell where they come from."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import onnx_ir as ir

from attar import graph
from attar.gram import LayerInput
from attar_factor.candidates import Factors
from attar_factor.layers import Array, Bias, Layer
from attar_factor.parts import Part


@dataclass(frozen=True)
class Written:
    """A factored layer in the model, as far as the refit must know it.

    Attributes:
        want: what the first layer's weight is multiplied with.
        rows: the original weight `[groups, outputs, K]`.
        bias: the original bias and where it is; None: there is no place for one.
        features: F of the layers in front.
        last: L, as it was written.
        node: the last layer, its weight being input 1.
        part: its form.
    """

    want: LayerInput
    rows: Array
    bias: Bias | None
    features: Array
    last: Array
    node: ir.Node
    part: Part


class Writer:
    """Writes layers into one model, under names that are free there."""

    def __init__(self, model: ir.Model) -> None:
        self.graph = model.graph
        self._taken = graph.taken_names(model.graph)

    def write(
        self, layer: Layer, chain: Sequence[Part], factors: Factors, mean: Array | None
    ) -> Written | None:
        """Replace the nodes of `layer` by `chain`.

        Args:
            mean: E[x] `[groups, K]`: what changes of the outputs' means goes into the bias, if there is one.

        Returns:
            What the refit needs; None for a weight of several nodes.
        """
        arrays = (*factors.weights, factors.last)
        kind = layer.weight.dtype
        flipped = is_flipped(layer.node)
        values = [
            self._constant(f"{layer.name}.{part.name}.weight", _stored(array, part, flipped), kind)
            for part, array in zip(chain, arrays, strict=True)
        ]
        for node in layer.nodes:
            base = node.name or node.outputs[0].name or node.op_type
            data = node.inputs[0]
            for part, value in zip(chain[:-1], values[:-1], strict=True):
                data = self._insert(node, f"{base}.{part.name}", data, value, part)
            node.replace_input_with(0, data)
            node.replace_input_with(1, values[-1])
            if node.op_type == "Conv":
                for name in ("kernel_shape", "strides", "dilations", "pads", "group", "auto_pad"):
                    node.attributes.pop(name, None)
                for name, setting in chain[-1].attributes.items():
                    node.attributes.add(ir.convenience.convert_attribute(name, setting))
            node.name = graph.fresh_name(self.graph, f"{base}.{chain[-1].name}", self._taken)
        if len(layer.nodes) > 1:
            return None
        bias = layer.bias
        if bias is not None and mean is not None:
            lost: Array = layer.rows - factors.last @ factors.features
            self.set_bias(bias, _sum(bias.array, np.einsum("gok,gk->go", lost, mean).reshape(-1)))
        return Written(
            layer.wants[0], layer.rows, bias, factors.features, factors.last, layer.node, chain[-1]
        )

    def set_bias(self, bias: Bias, array: Array) -> None:
        """Give the layer this bias `[outputs]`, which may be its first."""
        node = bias.node
        present = node.inputs[bias.index] if len(node.inputs) > bias.index else None
        if present is None:
            if not np.any(array):
                return
            if len(node.inputs) <= bias.index:
                node.resize_inputs(bias.index + 1)
            kind = node.inputs[1].dtype if node.inputs[1] is not None else None
            node.replace_input_with(bias.index, self._constant(f"{node.name}.bias", array, kind))
            return
        old = graph.const_array(present)
        assert old is not None
        new = self._constant(present.name or "bias", array.reshape(old.shape), present.dtype)
        node.replace_input_with(bias.index, new)

    def set_last(self, written: Written, last: Array) -> None:
        """Give the last layer the weights L `[groups, outputs, features]`."""
        value = written.node.inputs[1]
        assert value is not None
        graph.replace_weight(value, cast(_stored(last, written.part, is_flipped(written.node)), value.dtype))

    def _insert(
        self, node: ir.Node, name: str, data: ir.Value | None, weight: ir.Value, part: Part
    ) -> ir.Value:
        attributes = dict(part.attributes)
        if node.op_type == "Gemm" and not is_flipped(node):
            attributes["transB"] = 1
        new = ir.node(node.op_type, [data, weight], attributes)
        new.name = graph.fresh_name(self.graph, name, self._taken)
        new.outputs[0].name = graph.fresh_name(self.graph, f"{name}.output", self._taken)
        new.outputs[0].type = node.outputs[0].type
        self.graph.insert_before(node, new)
        return new.outputs[0]

    def _constant(self, name: str, array: Array, kind: ir.DataType | None) -> ir.Value:
        return graph.add_initializer(self.graph, name, cast(array, kind), self._taken)


def is_flipped(node: ir.Node) -> bool:
    """Whether the weight is stored `[inputs, outputs]`."""
    trans = node.attributes.get("transB")
    return node.op_type == "MatMul" or (node.op_type == "Gemm" and not (trans is not None and trans.value))


def _sum(one: Array | None, other: Array) -> Array:
    return other if one is None else one + other


def _stored(array: Array, part: Part, flipped: bool) -> Array:
    shaped = np.ascontiguousarray(array).reshape(part.shape)
    return np.ascontiguousarray(shaped.T) if flipped and len(part.shape) == 2 else shaped


def cast(array: Array, kind: ir.DataType | None) -> Array:
    """`array` in the element type of a weight."""
    return np.ascontiguousarray(array.astype((kind or ir.DataType.FLOAT).numpy()))
