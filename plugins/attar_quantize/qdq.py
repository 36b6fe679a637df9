"""Writing a plan into the graph as QuantizeLinear / DequantizeLinear pairs with integer weights.

The result is standard ONNX: any tool reads it, and ONNX Runtime fuses each pattern into one integer kernel.
Zero points of 8-bit values are always written, typed: a missing one is read wrongly by ONNX Runtime behind
reshapes (its issue 27845). Biases, which nothing reshapes, go without.
"""

from __future__ import annotations

from collections.abc import Mapping
from types import MappingProxyType

import numpy as np
import onnx_ir as ir

from attar import graph
from attar_quantize.bias import bias_codes, correction
from attar_quantize.ranges import needs_codes
from attar_quantize.rounding import Rounded
from attar_quantize.scheme import Array, QParams
from attar_quantize.units import Plan, Unit


class Writer:
    """Rewrites one graph. `activations` and `weights` give the parameters of the values that become
    integers."""

    def __init__(  # noqa: PLR0917
        self,
        model: ir.Model,
        plan: Plan,
        activations: Mapping[ir.Value, QParams],
        weights: Mapping[ir.Value, QParams],
        means: Mapping[ir.Value, Array],
        rounded: Mapping[ir.Value, Rounded] = MappingProxyType({}),
    ) -> None:
        self._graph = model.graph
        self._plan, self._params, self._weights, self._means = plan, activations, weights, means
        self._rounded = rounded
        self._taken = graph.taken_names(self._graph)
        self._weight_codes: dict[ir.Value, tuple[ir.Value, ir.Value, ir.Value]] = {}
        self._dequantized: dict[ir.Value, ir.Value] = {}
        self._zero_points: dict[tuple[str, tuple[int, ...], bytes], ir.Value] = {}

    def write(self) -> None:
        """Do it: operands of integer units first, then what leaves them."""
        integer = [u for u in self._plan.units if u in self._plan.integer]
        producers = {v: u for u in integer for v in u.outputs}
        # Every consumer is known before any is rewired: uses change while values are split in two.
        readers: dict[ir.Value, list[tuple[Unit, int]]] = {}
        for unit in integer:
            for position, value in enumerate(unit.main.inputs):
                if value is not None and value in unit.inputs and value in self._params:
                    readers.setdefault(value, []).append((unit, position))
        for unit in integer:
            self._write_weights(unit)
        for value, users in readers.items():
            if value not in producers:
                dequantized = self._pair(value)
                for unit, position in users:
                    unit.main.replace_input_with(position, dequantized)
        for unit in integer:
            for value in unit.outputs:
                if value in self._params and needs_codes(value, unit, self._plan):
                    self._requantize(unit, value)

    # -- activations -----------------------------------------------------------------------------------

    def _pair(self, value: ir.Value) -> ir.Value:
        """Q and DQ behind a value that is made in float (or a constant); returns the dequantized value."""
        if value in self._dequantized:
            return self._dequantized[value]
        params = self._params[value]
        array = graph.const_array(value)
        if array is not None:
            codes = self._constant(f"{value.name}_quantized", params.quantize(array))
            node = self._dequantize(
                codes, *self._constants(value.name or "value", params), f"{value.name}_dequantized"
            )
            self._place(value, [node])
            self._dequantized[value] = node.outputs[0]
            return node.outputs[0]
        scale, zero = self._constants(value.name or "value", params)
        nodes = self._ended(value, params, scale, zero)
        dequantize = self._dequantize(nodes[-1].outputs[0], scale, zero, f"{value.name}_dequantized")
        self._place(value, [*nodes, dequantize])
        self._dequantized[value] = dequantize.outputs[0]
        return dequantize.outputs[0]

    def _ended(self, value: ir.Value, params: QParams, scale: ir.Value, zero: ir.Value) -> list[ir.Node]:
        """From numbers to codes. QuantizeLinear ends where its element type does; codes of fewer bits are cut
        off behind it, where integer kernels go on, or, with more than 8 bits, the numbers are before it."""
        qtype, nodes = params.qtype, []
        source = value
        if qtype.format:
            self._unclip(value.producer())
        if qtype.is_clipped and qtype.bits > 8:
            ends = [np.float32(end) for end in (params.low, params.high)]
            nodes.append(self._clip(value, f"{value.name}_clipped", ends, ir.DataType.FLOAT))
            source = nodes[0].outputs[0]
        quantize = ir.node("QuantizeLinear", [source, scale, zero], name=self._name(f"{value.name}/quantize"))
        self._describe(quantize.outputs[0], f"{value.name}_quantized", qtype.element, value.shape)
        nodes.append(quantize)
        if qtype.is_clipped and qtype.bits <= 8:
            codes = [qtype.dtype.type(end) for end in (qtype.qmin, qtype.qmax)]
            nodes.append(self._clip(quantize.outputs[0], f"{value.name}_ended", codes, qtype.element))
        return nodes

    def _unclip(self, node: ir.Node | None) -> None:
        """Make a Clip a Max and a Min. ONNX Runtime 1.32 cannot load it before a QuantizeLinear to small
        floats, since it does not know their zero points."""
        if node is None or node.op_type != "Clip":
            return
        source, low, high = (node.inputs[i] if i < len(node.inputs) else None for i in range(3))
        assert source is not None
        if low is not None and high is not None:
            first = ir.node("Max", [source, low], name=self._name(f"{node.name}/max"))
            out = node.outputs[0]
            self._describe(first.outputs[0], f"{out.name}_max", ir.DataType.FLOAT, out.shape)
            node.prepend(first)
            source = first.outputs[0]
        bound = low if high is None else high
        if bound is not None:
            node.op_type = "Max" if high is None else "Min"
            node.resize_inputs(2)
            node.replace_input_with(0, source)
            node.replace_input_with(1, bound)

    def _clip(self, source: ir.Value, name: str, ends: list[np.generic], kind: ir.DataType) -> ir.Node:
        arguments = [
            self._constant(f"{name}_{at}", np.asarray(e)) for at, e in zip(("low", "high"), ends, strict=True)
        ]
        node = ir.node("Clip", [source, *arguments], name=self._name(f"{name}/clip"))
        self._describe(node.outputs[0], name, kind, source.shape)
        return node

    def _requantize(self, unit: Unit, value: ir.Value) -> None:
        """Q and DQ behind an integer unit's output; everyone reads the dequantized value from then on."""
        params = self._params[value]
        users = list(value.uses())
        dequantized = self._pair(value)
        for user, position in users:
            user.replace_input_with(position, dequantized)
        if value.is_graph_output():
            for i, output in enumerate(self._graph.outputs):
                if output is value:
                    self._graph.outputs[i] = dequantized
            # The caller knows the value by this name: the dequantized one takes it over.
            name = value.name or "output"
            value.name = self._name(f"{name}_float")
            dequantized.name = name
        last = unit.nodes[-1]
        if last is not unit.main and last.op_type in ("Relu", "Clip") and _vanishes(last, params):
            before = last.inputs[0]
            assert before is not None
            for user, position in list(last.outputs[0].uses()):
                user.replace_input_with(position, before)
            self._graph.remove(last, safe=True)
            unit.nodes.remove(last)

    # -- weights ---------------------------------------------------------------------------------------

    def _write_weights(self, unit: Unit) -> None:
        weight = unit.weight
        if weight is None or weight not in self._weights:
            return
        params = self._weights[weight]
        array = graph.const_array(weight)
        assert array is not None
        codes = self._rounded[weight].codes if weight in self._rounded else params.quantize(array)
        if weight not in self._weight_codes:
            self._weight_codes[weight] = (
                self._constant(f"{weight.name}_quantized", codes),
                *self._constants(weight.name or "weight", params),
            )
        stored = self._weight_codes[weight]
        node = self._dequantize(*stored, f"{weight.name}_dequantized", axis=params.axis)
        unit.main.prepend(node)
        unit.main.replace_input_with(1, node.outputs[0])
        self._write_bias(unit, array, codes, params)

    def _write_bias(self, unit: Unit, weight: Array, codes: Array, params: QParams) -> None:
        main = unit.main
        source = unit.inputs[0]
        own = main.inputs[2] if len(main.inputs) > 2 and main.op_type in ("Conv", "Gemm") else unit.bias
        channels = codes.shape[params.axis] if params.axis is not None else _columns(main, codes)
        bias = graph.const_array(own)
        bias = np.zeros(channels) if bias is None else bias.astype(np.float64).reshape(-1)
        mean = self._means.get(source)
        if mean is not None:
            error = params.dequantize(codes) - weight
            shift = self._rounded[unit.weight].shift if unit.weight in self._rounded else None
            bias = bias - (correction(main, error, mean) if shift is None else shift)
        elif own is None:
            return
        if main.op_type == "MatMul":
            # ONNX Runtime takes the bias of a MatMul in float; an int32 one keeps the Add apart.
            if unit.bias is not None:
                new = self._constant(f"{unit.bias.name}_corrected", bias.astype(np.float32))
                add = unit.nodes[1]
                add.replace_input_with(next(i for i, v in enumerate(add.inputs) if v is unit.bias), new)
            return
        name = (own.name if own is not None else None) or f"{unit.output.name}_bias"
        if len(main.inputs) < 3:
            main.resize_inputs(3)
        if params.qtype.format or self._params[source].qtype.format:
            # Products of small floats are added up in floats.
            main.replace_input_with(2, self._constant(f"{name}_corrected", bias.astype(np.float32)))
            return
        stored, scale = bias_codes(bias, params.scale, self._params[source].scale)
        arguments = [
            self._constant(f"{name}_quantized", stored),
            self._constant(f"{name}_scale", scale),
        ]
        node = self._dequantize(*arguments, f"{name}_dequantized", axis=0 if scale.ndim else None)
        main.prepend(node)
        main.replace_input_with(2, node.outputs[0])

    # -- small parts -----------------------------------------------------------------------------------

    def _constant(self, name: str, array: Array) -> ir.Value:
        return graph.add_initializer(self._graph, name, array, self._taken)

    def _constants(self, name: str, params: QParams) -> tuple[ir.Value, ir.Value]:
        """Scale and zero point. Equal zero points are stored once: there are few different ones."""
        zero = params.zero_point
        key = (zero.dtype.name, zero.shape, zero.tobytes())
        if key not in self._zero_points:
            self._zero_points[key] = self._constant(f"zero_point_{zero.dtype.name}", zero)
        return self._constant(f"{name}_scale", params.scale), self._zero_points[key]

    def _dequantize(self, codes: ir.Value, *rest: ir.Value | str, axis: int | None = None) -> ir.Node:
        *arguments, name = rest
        assert isinstance(name, str)
        node = ir.node(
            "DequantizeLinear",
            [codes, *(a for a in arguments if isinstance(a, ir.Value))],
            attributes={} if axis is None else {"axis": axis},
            name=self._name(f"{name.removesuffix('_dequantized')}/dequantize"),
        )
        self._describe(node.outputs[0], name, ir.DataType.FLOAT, codes.shape)
        return node

    def _describe(self, value: ir.Value, name: str, dtype: ir.DataType, shape: ir.Shape | None) -> None:
        value.name = self._name(name)
        value.type = ir.TensorType(dtype)
        value.shape = None if shape is None else shape.copy()

    def _name(self, base: str) -> str:
        return graph.fresh_name(self._graph, base, self._taken)

    def _place(self, value: ir.Value, nodes: list[ir.Node]) -> None:
        producer = value.producer()
        if producer is not None and producer.graph is self._graph:
            self._graph.insert_after(producer, nodes)
            return
        first = next(iter(self._graph), None)
        if first is None:
            self._graph.extend(nodes)
        else:
            self._graph.insert_before(first, nodes)


def _vanishes(node: ir.Node, params: QParams) -> bool:
    """Whether saturation does what a Relu or Clip does: the codes reach exactly from 0 to at most its upper
    bound."""
    if params.low != 0.0:
        return False
    if node.op_type == "Relu":
        return True
    bounds = [
        graph.const_array(node.inputs[i]) if len(node.inputs) > i and node.inputs[i] is not None else None
        for i in (1, 2)
    ]
    given = [len(node.inputs) > i and node.inputs[i] is not None for i in (1, 2)]
    if any(g and b is None for g, b in zip(given, bounds, strict=True)):
        return False
    low, high = bounds
    # A bound below zero clips nothing that the codes could hold; one above zero would.
    low_ok = low is None or float(low.reshape(-1)[0]) <= 0.0
    high_ok = high is None or float(high.reshape(-1)[0]) >= params.high * (1 - 1e-6)
    return low_ok and high_ok


def _columns(node: ir.Node, codes: Array) -> int:
    if node.op_type == "Conv":
        return int(codes.shape[0])
    trans = node.attributes.get("transB")
    return int(codes.shape[0 if trans is not None and trans.value else -1])
