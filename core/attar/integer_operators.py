"""QDQ to QOperator: DequantizeLinear -> operator -> QuantizeLinear written as the one operator on integers
that it stands for.

QDQ is what attar works on, and what ONNX Runtime fuses by itself when it loads a model. Other runtimes, and
ONNX Runtime with its optimizations off, want the integer operators written out: QLinearConv and
QLinearMatMul of ONNX, the others of the domain `com.microsoft` (schemas: ONNX Runtime's ContribOperators.md).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import onnx_ir as ir

from attar import graph

_CONTRIB = "com.microsoft"
# Operators that only move codes: the same operator on integers, where input and output share their scale.
_MOVES = ("MaxPool", "Reshape", "Flatten", "Squeeze", "Unsqueeze", "Transpose", "Slice", "Gather")
# A bias has the scale of the products that it is added to; float32 products differ in their last bits.
_BIAS_SCALE = 1e-5

Array = np.ndarray[Any, Any]
Writer = Callable[["_Place"], "ir.Node | None"]


class _Place:
    """A node between its DequantizeLinear and QuantizeLinear nodes."""

    def __init__(self, owner: ir.Graph, node: ir.Node, after: ir.Node) -> None:
        self.owner, self.node, self.after = owner, node, after

    def source(self, position: int) -> ir.Node | None:
        """The DequantizeLinear that makes an input."""
        value = self.node.inputs[position] if position < len(self.node.inputs) else None
        made = value.producer() if value is not None else None
        return made if made is not None and made.op_type == "DequantizeLinear" and not made.domain else None

    def activation(self, position: int) -> list[ir.Value | None] | None:
        """Codes, scale and zero point of an input with one scale."""
        made = self.source(position)
        return None if made is None else self.codes(made, None)

    def weight(self, position: int, axis: int) -> list[ir.Value | None] | None:
        """Codes, scale and zero point of a constant with one scale, or one for each slice along `axis`."""
        made = self.source(position)
        if made is None or graph.const_array(made.inputs[0]) is None:
            return None
        return self.codes(made, axis)

    def codes(self, made: ir.Node, axis: int | None) -> list[ir.Value | None] | None:
        scale, block = graph.const_array(made.inputs[1]), made.attributes.get("block_size")
        codes = made.inputs[0]
        if scale is None or codes is None or codes.dtype is None or (block is not None and block.value):
            return None
        if codes.dtype not in (ir.DataType.INT8, ir.DataType.UINT8) or scale.dtype != np.float32:
            return None
        if scale.ndim:
            given = made.attributes.get("axis")
            at = 1 if given is None else given.value
            rank = len(codes.shape) if codes.shape is not None else None
            if axis is None or rank is None or scale.ndim > 1 or at % rank != axis % rank:
                return None
        return [codes, made.inputs[1], self.zero(made, codes.dtype, scale.shape)]

    def zero(self, made: ir.Node, dtype: ir.DataType, shape: tuple[int, ...]) -> ir.Value | None:
        """The zero point; QDQ may leave it out, the integer operators may not."""
        if len(made.inputs) > 2 and made.inputs[2] is not None:
            return made.inputs[2]
        base = f"{made.name}/zero_point"
        return graph.add_initializer(self.owner, base, np.zeros(shape, dtype.numpy()))

    def target(self) -> list[ir.Value | None] | None:
        """Scale and zero point of the output."""
        scale, codes = graph.const_array(self.after.inputs[1]), self.after.outputs[0]
        if scale is None or scale.ndim or scale.dtype != np.float32:
            return None
        if codes.dtype not in (ir.DataType.INT8, ir.DataType.UINT8):
            return None
        return [self.after.inputs[1], self.zero(self.after, codes.dtype, ())]

    def bias(self, position: int, product: Array) -> tuple[bool, ir.Value | None]:
        """Whether the bias is one that can be added to the sums, and its int32 codes."""
        if position >= len(self.node.inputs) or self.node.inputs[position] is None:
            return True, None
        made = self.source(position)
        codes = graph.const_array(made.inputs[0]) if made is not None else None
        if made is None or codes is None or codes.dtype != np.int32:
            return False, None
        scale = graph.const_array(made.inputs[1])
        zero = graph.const_array(made.inputs[2]) if len(made.inputs) > 2 else None
        if (
            scale is None
            or (zero is not None and zero.any())
            or not np.allclose(np.broadcast_to(product, codes.shape), scale, _BIAS_SCALE, 0.0)
        ):
            return False, None
        return True, made.inputs[0]

    def make(
        self, op: str, inputs: Sequence[ir.Value | None], domain: str = _CONTRIB, **extra: Any
    ) -> ir.Node:
        """The integer operator, with the attributes of the node it replaces."""
        return ir.node(
            op, inputs, domain=domain, attributes={**dict(self.node.attributes), **extra},
            name=graph.fresh_name(self.owner, f"{self.node.name}/integer"),
        )  # fmt: skip


def integer_operators(model: ir.Model) -> int:
    """Write operators between DequantizeLinear and QuantizeLinear as integer operators. What has none, or
    gives float, keeps its QDQ form. Returns how many were written."""
    count = 0
    for node in list(model.graph):
        writer = _WRITERS.get(node.op_type) if not node.domain else None
        after = _quantized(node) if writer is not None else None
        if writer is None or after is None:
            continue
        made = writer(_Place(model.graph, node, after))
        if made is None:
            continue
        out, old = made.outputs[0], after.outputs[0]
        out.name = graph.fresh_name(model.graph, f"{old.name}_integer")
        out.type, out.shape = old.type, old.shape
        model.graph.insert_before(after, made)
        if old.is_graph_output():
            model.graph.outputs[list(model.graph.outputs).index(old)] = out
            out.name, old.name = old.name, out.name
        for user, position in list(old.uses()):
            user.replace_input_with(position, out)
        if made.domain:
            model.opset_imports.setdefault(made.domain, 1)
        count += 1
    return count


def _quantized(node: ir.Node) -> ir.Node | None:
    """The QuantizeLinear that alone reads a node's output, perhaps behind a Relu that it does itself."""
    value = node.outputs[0]
    users = [user for user, _ in value.uses()]
    if len(node.outputs) != 1 or len(users) != 1 or value.is_graph_output():
        return None
    after = users[0]
    if after.op_type == "Relu" and not after.domain:
        behind = _quantized(after)
        zero = graph.const_array(behind.inputs[2]) if behind is not None and len(behind.inputs) > 2 else None
        # Below the lowest code there is nothing: a zero point there cuts off what Relu would.
        lowest = (
            zero is not None and zero.dtype.kind in "iu" and bool(np.all(zero == np.iinfo(zero.dtype).min))
        )
        return behind if lowest else None
    return after if after.op_type == "QuantizeLinear" and not after.domain else None


def _conv(place: _Place) -> ir.Node | None:
    data, weight, out = place.activation(0), place.weight(1, 0), place.target()
    if data is None or weight is None or out is None:
        return None
    fits, bias = place.bias(2, _product(data, weight))
    if not fits:
        return None
    inputs = [*data, *weight, *out, *([bias] if bias is not None else [])]
    return place.make("QLinearConv", inputs, domain="")


def _matmul(place: _Place) -> ir.Node | None:
    left, right, out = place.activation(0), place.weight(1, -1) or place.activation(1), place.target()
    if left is None or right is None or out is None:
        return None
    scale = graph.const_array(right[1])
    rank = len(right[0].shape) if right[0] is not None and right[0].shape is not None else 0
    if scale is not None and scale.ndim and rank != 2:
        return None
    return place.make("QLinearMatMul", [*left, *right, *out], domain="")


def _gemm(place: _Place) -> ir.Node | None:
    given = {name: a.value for name, a in place.node.attributes.items()}
    data, out = place.activation(0), place.target()
    weight = place.weight(1, 0 if given.get("transB", 0) else 1)
    if data is None or weight is None or out is None or given.get("beta", 1.0) != 1.0:
        return None
    fits, bias = place.bias(2, np.float32(given.get("alpha", 1.0)) * _product(data, weight))
    if not fits:
        return None
    kept = {k: a for k, a in place.node.attributes.items() if k != "beta"}
    node = place.make("QGemm", [*data, *weight, bias, *out])
    node.attributes.clear()
    node.attributes.update(kept)
    return node


def _product(data: Sequence[ir.Value | None], weight: Sequence[ir.Value | None]) -> Array:
    left, right = graph.const_array(data[1]), graph.const_array(weight[1])
    assert left is not None
    assert right is not None
    return np.asarray(left * right, np.float32)


def _binary(op: str) -> Writer:
    def write(place: _Place) -> ir.Node | None:
        left, right, out = place.activation(0), place.activation(1), place.target()
        return None if left is None or right is None or out is None else place.make(op, [*left, *right, *out])

    return write


def _unary(op: str) -> Writer:
    def write(place: _Place) -> ir.Node | None:
        data, out = place.activation(0), place.target()
        return None if data is None or out is None else place.make(op, [*data, *out])

    return write


def _pool(op: str) -> Writer:
    def write(place: _Place) -> ir.Node | None:
        data, out, dilations = place.activation(0), place.target(), place.node.attributes.get("dilations")
        if data is None or out is None or (dilations is not None and set(dilations.value) != {1}):
            return None
        made = place.make(op, [*data, *out], channels_last=0)
        made.attributes.pop("dilations", None)
        return made

    return write


def _concat(place: _Place) -> ir.Node | None:
    parts = [place.activation(i) for i in range(len(place.node.inputs))]
    out = place.target()
    if out is None or any(p is None for p in parts):
        return None
    return place.make("QLinearConcat", [*out, *(v for p in parts if p is not None for v in p)])


def _move(place: _Place) -> ir.Node | None:
    data, out = place.activation(0), place.target()
    if data is None or out is None or data[0] is None or data[0].dtype != place.after.outputs[0].dtype:
        return None
    for mine, theirs in zip(data[1:], out, strict=True):
        left, right = graph.const_array(mine), graph.const_array(theirs)
        if left is None or right is None or not np.array_equal(left, right):
            return None
    return place.make(place.node.op_type, [data[0], *place.node.inputs[1:]], domain="")


_WRITERS: dict[str, Writer] = {
    "Conv": _conv,
    "MatMul": _matmul,
    "Gemm": _gemm,
    "Add": _binary("QLinearAdd"),
    "Mul": _binary("QLinearMul"),
    "Sigmoid": _unary("QLinearSigmoid"),
    "LeakyRelu": _unary("QLinearLeakyRelu"),
    "GlobalAveragePool": _pool("QLinearGlobalAveragePool"),
    "AveragePool": _pool("QLinearAveragePool"),
    "Concat": _concat,
    **dict.fromkeys(_MOVES, _move),
}
