"""`quantize.dynamic`: integer products whose activations are quantized with the range of each run."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Annotated, Literal

import numpy as np
import onnx_ir as ir

from attar import graph
from attar.context import Context
from attar.errors import Refused
from attar.passes import Doc, Pass
from attar.patterns import check_patterns, matches
from attar_quantize.scheme import Array, QType, weight_params

_NO_KERNEL: Mapping[str, str] = {
    "Conv": "ConvInteger is several times slower than the float convolution; use quantize.static",
    "ConvTranspose": "there is no dynamic integer kernel; use quantize.static",
    "LSTM": "recurrent layers have no dynamic integer kernel in standard ONNX; use quantize.weights",
    "GRU": "recurrent layers have no dynamic integer kernel in standard ONNX; use quantize.weights",
    "RNN": "recurrent layers have no dynamic integer kernel in standard ONNX; use quantize.weights",
}
# DynamicQuantizeLinear reads its input twice: once for the range, once for the codes.
_PASSES = 2.0


@dataclass(frozen=True, eq=False)
class _Layer:
    """A MatMul or Gemm that could be dynamic: its weight as [K, N], and where it is stored the other way."""

    node: ir.Node
    weight: ir.Value
    transposed: bool
    rows: int
    depth: int
    columns: int

    @property
    def names(self) -> tuple[str, ...]:
        after = [u for u, _ in self.node.outputs[0].uses()]
        behind = [v.name for u in after if u.op_type == "Add" for v in u.outputs]
        return tuple(n for n in (self.node.name, self.node.outputs[0].name, *behind) if n)


class Dynamic(Pass, name="quantize.dynamic"):
    """Multiply in 8-bit integers with activation ranges taken anew from every input; needs no data.

    Only MatMul and Gemm with constant weights, where the target's table says that integers pay including the
    quantization of the input; ONNX Runtime then runs DynamicQuantizeMatMul. What it has no quick kernel for
    is reported, never written: a dynamic convolution is several times slower than the float one.
    """

    requires = ("fuse.inference",)
    plans = True
    aim = "speed"

    granularity: Annotated[
        Literal["per_channel", "per_tensor"], Doc("one weight scale a column, or one a tensor")
    ] = "per_channel"
    reduce_range: Annotated[
        bool | None, Doc("7-bit weights, against saturation in 16-bit sums; default: as the target needs")
    ] = None
    plan: Annotated[
        Literal["fastest", "everything"],
        Doc("fastest: where it pays on the target; everything: wherever a quick kernel exists"),
    ] = "fastest"
    keep_float: Annotated[
        tuple[str, ...], Doc("patterns of node or value names to leave in float (*, ?)")
    ] = ()

    def apply(self, model: ir.Model, ctx: Context) -> None:
        self._check_names(model)
        given = {} if ctx.feeds is None else {name: array.shape for name, array in ctx.feeds.items()}
        shapes = graph.concrete_shapes(model, given)
        reasons: list[tuple[str, str]] = []
        chosen: list[_Layer] = []

        def left(node: ir.Node, reason: str, names: tuple[str, ...] = ()) -> None:
            reasons.append((node.name or "?", reason))
            ctx.skip(node, reason, names=names)
            node.metadata_props["attar.float"] = reason

        for node in model.graph:
            if node.domain not in ("", "ai.onnx"):
                continue
            if node.op_type in _NO_KERNEL:
                left(node, _NO_KERNEL[node.op_type])
            elif node.op_type in ("MatMul", "Gemm"):
                layer, why = _layer(node, shapes)
                if layer is None:
                    left(node, why)
                elif why := self._kept(layer, ctx):
                    left(node, why, layer.names)
                else:
                    chosen.append(layer)
        readers: dict[ir.Value, list[_Layer]] = {}
        for layer in chosen:
            source = layer.node.inputs[0]
            assert source is not None
            readers.setdefault(source, []).append(layer)
        worth = [self._worth(layers, ctx) for layers in readers.values()]
        for layers, why in zip(readers.values(), worth, strict=True):
            for layer in layers if why else ():
                left(layer.node, why, layer.names)
        if all(worth):
            raise Refused(
                "no operator is worth quantizing dynamically"
                if reasons
                else "the model has no MatMul or Gemm",
                nodes=reasons,
            )
        writer = _Writer(model, self._weight_type(ctx), per_channel=self.granularity == "per_channel")
        for (source, layers), why in zip(readers.items(), worth, strict=True):
            if not why:
                writer.write(source, layers)
        done = sum(len(layers) for layers, why in zip(readers.values(), worth, strict=True) if not why)
        ctx.note(f"{done} MatMul and Gemm quantized dynamically, {len(reasons)} left in float")

    def _worth(self, layers: list[_Layer], ctx: Context) -> str:
        """Why the layers that read one value are quicker in float; empty if they are not."""
        if self.plan == "everything" or ctx.probing:
            return ""
        table, in_float, in_int = ctx.target.costs, 0.0, 0.0
        for layer in layers:
            macs, elements = (
                layer.rows * layer.depth * layer.columns,
                layer.rows * (layer.depth + layer.columns),
            )
            kind = "matmul.rows" if layer.rows >= 16 else "matmul.row"
            own = (None, None) if ctx.measured is None else ctx.measured.times(layer.names)
            estimates = [
                table.estimate(kind, dtype, macs=macs, elements=elements) for dtype in ("float", "int8")
            ]
            first, second = (a if a is not None else b for a, b in zip(own, estimates, strict=True))
            if first is None or second is None:
                return f"{ctx.target.name} has no measured times for {kind}"
            in_float, in_int = in_float + first, in_int + second
        size = layers[0].rows * layers[0].depth
        in_int += _PASSES * (table.estimate("quantize", "int8", elements=size) or 1e-4 * size)
        if in_int < in_float:
            return ""
        return f"quicker in float here: about {in_float:.0f} us against {in_int:.0f} us"

    def _weight_type(self, ctx: Context) -> QType:
        reduce = ctx.target.saturates if self.reduce_range is None else self.reduce_range
        return QType(signed=True, bits=7 if reduce else 8, symmetric=True, narrow=True)

    def _kept(self, layer: _Layer, ctx: Context) -> str:
        for name in layer.names:
            if name in ctx.keep_float:
                return ctx.keep_float[name]
        if matches(layer.names, self.keep_float):
            return "kept in float by option keep_float"
        return ""

    def _check_names(self, model: ir.Model) -> None:
        names = [n.name or "" for n in model.graph] + [v.name or "" for n in model.graph for v in n.outputs]
        check_patterns(self.keep_float, names, option=f"{self.name}: option 'keep_float'", of="node or value")


def _layer(node: ir.Node, shapes: Mapping[str, tuple[int, ...]]) -> tuple[_Layer | None, str]:
    """The layer that `node` is, or None and why it cannot be dynamic."""
    data, weight = node.inputs[0], node.inputs[1]
    array = graph.const_array(weight)
    if data is None or weight is None or array is None:
        return None, "its weight is not constant"
    if graph.const_array(data) is not None:
        return None, "its first input is constant"
    if array.ndim != 2:
        return None, f"its weight has {array.ndim} dimensions, not 2"
    if array.dtype != np.float32:
        return None, f"its weight is {array.dtype}, integer kernels replace float32"
    if not np.isfinite(array).all():
        return None, "its weight has NaN or infinite elements"
    if data.shape is None or len(data.shape) < 2:
        return None, "its input is a vector or of unknown rank, for which there is no integer kernel"
    attributes = {k: a.value for k, a in node.attributes.items()}
    transposed = bool(attributes.get("transB", 0))
    if node.op_type == "Gemm" and (
        attributes.get("alpha", 1.0) != 1.0
        or attributes.get("beta", 1.0) != 1.0
        or attributes.get("transA", 0)
    ):
        return None, "alpha, beta or transA is set"
    depth, columns = array.shape[::-1] if transposed else array.shape
    shape = shapes.get(data.name or "")
    declared = [d if isinstance(d, int) else 1 for d in data.shape]
    return _Layer(node, weight, transposed, math.prod((shape or declared)[:-1]), depth, columns), ""


class _Writer:
    """Writes x W (+ b) as DynamicQuantizeLinear, MatMulInteger, Cast and Mul, which ONNX Runtime fuses with
    the addition into one kernel. The form with DequantizeLinear would leave the bias apart."""

    def __init__(self, model: ir.Model, qtype: QType, *, per_channel: bool) -> None:
        self._graph, self._qtype, self._per_channel = model.graph, qtype, per_channel
        self._taken = graph.taken_names(model.graph)
        self._codes: dict[tuple[ir.Value, bool], tuple[ir.Value, ir.Value, ir.Value]] = {}

    def write(self, source: ir.Value, layers: list[_Layer]) -> None:
        """Quantize `source` once for all layers that read it."""
        name = source.name or "x"
        quantize = ir.node(
            "DynamicQuantizeLinear", [source], num_outputs=3, name=self._fresh(f"{name}/quantize")
        )
        kinds = (ir.DataType.UINT8, ir.DataType.FLOAT, ir.DataType.UINT8)
        for value, suffix, kind in zip(
            quantize.outputs, ("quantized", "scale", "zero_point"), kinds, strict=True
        ):
            value.name, value.type = self._fresh(f"{name}_{suffix}"), ir.TensorType(kind)
        layers[0].node.prepend(quantize)
        codes, scale, zero = quantize.outputs
        for layer in layers:
            self._layer(layer, codes, scale, zero)

    def _layer(self, layer: _Layer, codes: ir.Value, scale: ir.Value, zero: ir.Value) -> None:
        node, out = layer.node, layer.node.outputs[0]
        weight, weight_scale, weight_zero = self._stored(layer)
        base = node.name or out.name or "matmul"

        def made(operator: str, inputs: list[ir.Value], kind: ir.DataType, **attributes: int) -> ir.Value:
            new = ir.node(
                operator, inputs, attributes=attributes, name=self._fresh(f"{base}/{operator.lower()}")
            )
            new.outputs[0].name = self._fresh(f"{out.name}_{operator.lower()}")
            new.outputs[0].type = ir.TensorType(kind)
            node.prepend(new)
            return new.outputs[0]

        sums = made("MatMulInteger", [codes, weight, zero, weight_zero], ir.DataType.INT32)
        real = made("Cast", [sums], ir.DataType.FLOAT, to=ir.DataType.FLOAT.value)
        result = made("Mul", [real, made("Mul", [scale, weight_scale], ir.DataType.FLOAT)], ir.DataType.FLOAT)
        bias = node.inputs[2] if node.op_type == "Gemm" and len(node.inputs) > 2 else None
        if bias is not None:
            result = made("Add", [result, bias], ir.DataType.FLOAT)
        result.shape = out.shape
        for user, position in list(out.uses()):
            user.replace_input_with(position, result)
        for i, output in enumerate(self._graph.outputs):
            if output is out:
                self._graph.outputs[i] = result
        # The result takes the name over: callers and measurements know the value by it.
        name = out.name
        out.name, result.name = self._fresh(f"{name}_float"), name
        self._graph.remove(node, safe=True)

    def _stored(self, layer: _Layer) -> tuple[ir.Value, ir.Value, ir.Value]:
        key = (layer.weight, layer.transposed)
        if key not in self._codes:
            array = graph.const_array(layer.weight)
            assert array is not None
            matrix: Array = np.ascontiguousarray(array.T if layer.transposed else array)
            params = weight_params(matrix, self._qtype, 1 if self._per_channel else None)
            name = layer.weight.name or "weight"
            self._codes[key] = (
                self._constant(f"{name}_quantized", params.quantize(matrix)),
                self._constant(f"{name}_scale", params.scale),
                self._constant(f"{name}_zero_point", params.zero_point),
            )
        return self._codes[key]

    def _constant(self, base: str, array: Array) -> ir.Value:
        return graph.add_initializer(self._graph, base, array, self._taken)

    def _fresh(self, base: str) -> str:
        return graph.fresh_name(self._graph, base, self._taken)
