"""The layers of a quantized model that ONNX Runtime computes by products of u8 activations and s8 weights.

They are read off a model in QDQ form, in the operators that fuse it (QLinearConv, QLinearMatMul), or with
activations that are quantized at run time (MatMulInteger).
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import onnx
from onnx import numpy_helper

from attar.diagnosis.saturating import (
    Lost,
    convolution_sums,
    exact_sums,
    matrices,
    pair_bound,
    saturating_sums,
)
from attar.gram import LayerInput

Array = np.ndarray[Any, np.dtype[Any]]
Nodes = Mapping[str, onnx.NodeProto]


@dataclass
class IntegerLayer:
    """One layer.

    Attributes:
        name, op: of the operator.
        codes: name of the uint8 activations.
        zero: their zero point; a name where it is only known at run time.
        weight, weight_zero: int8 codes, in their own layout, and the zero points of the outputs.
        unit: real number that one step of the sums stands for, per output or for all; None: sums are wanted.
        bias: in steps of the sums, None without one.
        result: name of what the layer makes.
        scale, offset: of the result's codes; no scale: it is a real number.
        geometry: of a convolution.
        covers: names of values that are computed on the way.
        lost: what was cut off in all runs so far.
    """

    name: str
    op: str
    codes: str
    zero: int | str
    weight: Array
    weight_zero: Array
    unit: Array | None
    bias: Array | None
    result: str
    scale: float | None = None
    offset: Array = field(default_factory=lambda: np.zeros((), np.uint8))
    geometry: LayerInput | None = None
    covers: tuple[str, ...] = ()
    lost: Lost = field(default_factory=Lost)

    @property
    def bound(self) -> int:
        """The largest magnitude that a sum of two neighbouring products can have."""
        if self.geometry is None:
            return pair_bound(self.weight)
        return max(pair_bound(m) for m in matrices(self.weight, self.geometry.group))

    def run(self, codes: Array, zero: int, *, saturate: bool) -> Array:
        """The layer's result for uint8 `codes` with that zero point."""
        if self.geometry is not None:
            sums = convolution_sums(
                codes, self.weight, self.geometry, zero, saturate=saturate, lost=self.lost
            )
            sums = sums - self._of_zeros(codes, zero)
            along = (-1, *[1] * (sums.ndim - 2))
        else:
            rows = codes.reshape(-1, codes.shape[-1])
            sums = (
                saturating_sums(rows, self.weight, self.lost) if saturate else exact_sums(rows, self.weight)
            )
            columns = self.weight.astype(np.int64).sum(axis=0)
            depth, own = self.weight.shape[0], self.weight_zero.astype(np.int64)
            sums = (
                sums - zero * columns - own * rows.sum(axis=1, dtype=np.int64)[:, None] + zero * depth * own
            )
            sums = sums.reshape(*codes.shape[:-1], -1)
            along = (-1,)
        if self.bias is not None:
            sums = sums + self.bias.reshape(along)
        if self.unit is None:
            return sums.astype(np.int32)
        unit = self.unit.astype(np.float32)
        if self.scale is None:
            return np.asarray(sums.astype(np.float32) * unit.reshape(along))
        # As the kernels do it: one factor in float32, the ends cut off, rounded half to even.
        factor = (unit / np.float32(self.scale)).reshape(along)
        info, offset = np.iinfo(self.offset.dtype), int(self.offset)
        scaled = np.clip(sums.astype(np.float32) * factor, info.min - offset, info.max - offset)
        return np.asarray(np.rint(scaled) + offset, self.offset.dtype)

    def _of_zeros(self, codes: Array, zero: int) -> Array:
        """What zero points add to the sums of a convolution."""
        assert self.geometry is not None
        weight = self.weight.astype(np.int64)
        total = weight.reshape(len(weight), -1).sum(axis=1).reshape(-1, *[1] * (codes.ndim - 2))
        if not self.weight_zero.any():
            return np.asarray(zero * total)
        ones = np.ones(self.weight.shape, np.int8)
        seen = convolution_sums(codes, ones, self.geometry, zero, saturate=False)
        depth = int(np.prod(self.weight.shape[1:]))
        own = np.broadcast_to(self.weight_zero.astype(np.int64), (len(weight),))
        own = own.reshape(-1, *[1] * (codes.ndim - 2))
        return np.asarray(zero * total + own * (seen - zero * depth))


def integer_layers(model: onnx.ModelProto) -> list[IntegerLayer]:
    """The layers of the main graph whose sums may saturate, in order. Depthwise convolutions are none:
    they are computed in 32 bits, as are products of two activations. What follows from constants alone is
    left to the runtime, which folds it."""
    found = _Reader(model)
    layers = []
    for node in model.graph.node:
        reader = _READERS.get(node.op_type)
        if reader is not None:
            layer = reader(found, node)
            if layer is not None and layer.codes in found.computed:
                layers.append(layer)
    return layers


class _Reader:
    """Looks up constants, producers and consumers."""

    def __init__(self, model: onnx.ModelProto) -> None:
        self.tensors = {t.name: t for t in model.graph.initializer}
        self.makers = {name: node for node in model.graph.node for name in node.output}
        self.users: dict[str, list[onnx.NodeProto]] = {}
        for node in model.graph.node:
            for name in node.input:
                self.users.setdefault(name, []).append(node)
        self.outputs = {value.name for value in model.graph.output}
        self.computed = {value.name for value in model.graph.input}
        for node in model.graph.node:
            if inputs_of([node]) & self.computed:
                self.computed.update(node.output)

    def array(self, name: str) -> Array | None:
        tensor = self.tensors.get(name)
        return None if tensor is None else numpy_helper.to_array(tensor)

    def input(self, node: onnx.NodeProto, index: int) -> str:
        return node.input[index] if index < len(node.input) else ""

    def dequantized(self, node: onnx.NodeProto, index: int) -> tuple[str, Array, Array | None] | None:
        """(codes, scale, zero point) of an operand that DequantizeLinear makes. Kernels take several scales
        for those of the outputs, whatever axis is named."""
        maker = self.makers.get(self.input(node, index))
        if maker is None or maker.op_type != "DequantizeLinear":
            return None
        scale, zero = self.array(self.input(maker, 1)), self.array(self.input(maker, 2))
        if scale is None or scale.ndim > 1 or _attributes(maker).get("block_size", 0):
            return None
        return maker.input[0], scale, zero

    def follower(self, name: str) -> onnx.NodeProto | None:
        users = self.users.get(name, [])
        return users[0] if len(users) == 1 and name not in self.outputs else None


def _qdq(found: _Reader, node: onnx.NodeProto) -> IntegerLayer | None:
    """Conv, Gemm and MatMul between DequantizeLinear and (a Conv must have it) QuantizeLinear."""
    data, weight = found.dequantized(node, 0), found.dequantized(node, 1)
    if data is None or weight is None or data[1].size != 1:
        return None
    zero, codes = data[2], found.array(weight[0])
    if zero is None or zero.dtype != np.uint8 or codes is None or codes.dtype != np.int8:
        return None
    matrix, geometry = _arranged(node, codes)
    if matrix is None:
        return None
    outputs = matrix.shape[0 if geometry is not None else 1]
    unit = (weight[1].astype(np.float32) * data[1].astype(np.float32)).reshape(-1)
    if unit.size not in (1, outputs):
        return None  # scales of inputs cannot be taken out of the sums
    taken, bias = _bias(found, node, unit, outputs)
    if not taken:
        return None
    own = np.zeros(1, np.int8) if weight[2] is None else weight[2].reshape(-1)
    layer = IntegerLayer(
        node.name or node.output[0], node.op_type, data[0], int(zero.reshape(())), matrix, own,
        unit, bias, node.output[0], geometry=geometry,
    )  # fmt: skip
    follower, covers = found.follower(node.output[0]), []
    if follower is not None and follower.op_type == "Relu":
        covers.append(node.output[0])
        follower = found.follower(follower.output[0])
    if follower is not None and follower.op_type == "QuantizeLinear":
        scale, offset = found.array(found.input(follower, 1)), found.array(found.input(follower, 2))
        # A Relu vanishes where the codes end at zero.
        fits = scale is not None and offset is not None and scale.size == 1 and offset.dtype == np.uint8
        if fits and scale is not None and offset is not None and (not covers or int(offset.reshape(())) == 0):
            layer.scale, layer.offset = float(scale.reshape(())), offset.reshape(())
            layer.covers = (*covers, follower.input[0])
            layer.result = follower.output[0]
            return layer
    return layer if node.op_type != "Conv" else None


def _bias(found: _Reader, node: onnx.NodeProto, unit: Array, outputs: int) -> tuple[bool, Array | None]:
    """Whether integer kernels take the bias, or there is none; and what it is in steps of the sums."""
    name = found.input(node, 2)
    if node.op_type == "MatMul" or not name:
        return True, None
    quantized = found.dequantized(node, 2)
    known = found.array(name if quantized is None else quantized[0])
    # One number an output: a bias of rows would be added along the wrong axis.
    if known is None or known.size not in (1, outputs) or known.shape[-1:] not in ((), (known.size,)):
        return False, None
    flat = known.reshape(-1)
    # The kernels take codes for steps of the sums, whatever their scale says.
    return True, np.asarray(np.rint(flat.astype(np.float64) / unit) if quantized is None else flat, np.int64)


def _attributes(node: onnx.NodeProto) -> dict[str, Any]:
    return {a.name: onnx.helper.get_attribute_value(a) for a in node.attribute}


def _arranged(node: onnx.NodeProto, codes: Array) -> tuple[Array | None, LayerInput | None]:
    """The weight as products go through it: `[K, columns]`, or its own layout with a convolution's geometry;
    None where sums cannot saturate or the form is unusual."""
    attributes = _attributes(node)
    if node.op_type in ("Conv", "QLinearConv"):
        group, axes = attributes.get("group", 1), codes.ndim - 2
        if codes.shape[1] == 1 and codes.shape[0] == group:
            return None, None  # depthwise
        ones, pads = (1,) * axes, (0,) * 2 * axes
        auto = attributes.get("auto_pad", b"NOTSET")
        return codes, LayerInput(
            "", int(np.prod(codes.shape[1:])), group, codes.shape[2:],
            tuple(attributes.get("strides", ones)), tuple(attributes.get("pads", pads)),
            tuple(attributes.get("dilations", ones)), auto.decode() if isinstance(auto, bytes) else auto,
        )  # fmt: skip
    plain = attributes.get("alpha", 1.0) == attributes.get("beta", 1.0) == 1.0
    if codes.ndim != 2 or attributes.get("transA", 0) or not plain:
        return None, None
    return (np.ascontiguousarray(codes.T) if attributes.get("transB", 0) else codes), None


def _qlinear(found: _Reader, node: onnx.NodeProto) -> IntegerLayer | None:
    """QLinearConv and QLinearMatMul."""
    scale, zero, codes, weight_scale, weight_zero, out_scale, offset = (
        found.array(found.input(node, i)) for i in range(1, 8)
    )
    known = (scale, zero, codes, weight_scale, weight_zero, out_scale, offset)
    if any(a is None for a in known):
        return None
    assert scale is not None and zero is not None and codes is not None  # noqa: PT018
    assert weight_scale is not None and weight_zero is not None  # noqa: PT018
    assert out_scale is not None and offset is not None  # noqa: PT018
    if zero.dtype != np.uint8 or codes.dtype != np.int8:
        return None
    matrix, geometry = _arranged(node, codes)
    if matrix is None:
        return None
    bias = found.array(found.input(node, 8)) if node.op_type == "QLinearConv" else None
    return IntegerLayer(
        node.name or node.output[0], node.op_type, node.input[0], int(zero.reshape(())), matrix,
        weight_zero.reshape(-1), (weight_scale * scale).reshape(-1), bias, node.output[0],
        float(out_scale.reshape(())), offset.reshape(()), geometry,
    )  # fmt: skip


def _dynamic(found: _Reader, node: onnx.NodeProto) -> IntegerLayer | None:
    """MatMulInteger of activations that are quantized at run time."""
    codes, zero = found.array(found.input(node, 1)), found.input(node, 2) or 0
    maker = found.makers.get(node.input[0])
    if codes is None or codes.dtype != np.int8 or codes.ndim != 2:
        return None
    if maker is None or maker.op_type != "DynamicQuantizeLinear":
        return None
    own = found.array(found.input(node, 3))
    own = np.zeros(1, np.int8) if own is None else own.reshape(-1)
    return IntegerLayer(
        node.name or node.output[0], node.op_type, node.input[0], zero, codes, own, None, None, node.output[0]
    )


def inputs_of(nodes: Iterable[onnx.NodeProto]) -> set[str]:
    """Names that nodes read, those inside their subgraphs included."""
    names: set[str] = set()
    for node in nodes:
        names.update(n for n in node.input if n)
        for attribute in node.attribute:
            if attribute.HasField("g"):
                made = {o for inner in attribute.g.node for o in inner.output}
                made |= {t.name for t in attribute.g.initializer} | {i.name for i in attribute.g.input}
                names |= inputs_of(attribute.g.node) - made
                names |= {o.name for o in attribute.g.output} - made
    return names


_READERS = {
    "Conv": _qdq,
    "Gemm": _qdq,
    "MatMul": _qdq,
    "QLinearConv": _qlinear,
    "QLinearMatMul": _qlinear,
    "MatMulInteger": _dynamic,
}
