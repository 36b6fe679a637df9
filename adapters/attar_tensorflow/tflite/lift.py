"""What a lifting works with: the IR of one graph while it grows, and one operator of it at a time.

TFLite is channels-last, the IR channels-first. Every tensor is held in the layout in which it was made, and
brought into
the other when an operator asks for it, so transposes arise only where two kinds of operators meet. "First" is
the layout
`(N, C, spatial...)` of a tensor that the file has as `(N, spatial..., C)`; it exists from rank 3 on.

A quantized tensor has a stored form (integers) and a real one (DequantizeLinear of it): liftings compute on
real forms,
and `give` quantizes with the file's own scale and zero point.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import onnx_ir as ir

from attar_tensorflow.tflite.file import Array, Graph, Quantization

CODES = ("INT8", "UINT8", "INT16", "INT4", "UINT4")
Operand = ir.Value | Array | None


def to_first(rank: int) -> list[int]:
    """The permutation that takes a channels-last tensor to channels-first."""
    return [0, rank - 1, *range(1, rank - 1)]


def to_last(rank: int) -> list[int]:
    """The permutation that takes a channels-first tensor to channels-last."""
    return [0, *range(2, rank), 1]


@dataclass
class Held:
    """The forms of one tensor that exist in the IR, by (real, first)."""

    first: bool = False
    forms: dict[tuple[bool, bool], ir.Value] = field(default_factory=dict)


class Building:
    """The IR of one graph while it grows."""

    def __init__(self, graph: Graph) -> None:
        self.graph = graph
        self.nodes: list[ir.Node] = []
        self.initializers: dict[str, ir.Value] = {}
        self.held: dict[int, Held] = {}
        self.arrays: dict[int, Array] = {t.index: t.array for t in graph.tensors if t.array is not None}
        self.notes: set[str] = set()
        self._names: set[str] = {*graph.input_names, *graph.output_names}
        self._shared: dict[tuple[str, tuple[int, ...], bytes], ir.Value] = {}

    # -- making values
    # -----------------------------------------------------------------------------------------

    def name(self, base: str) -> str:
        name, count = base, 0
        while name in self._names:
            count += 1
            name = f"{base}_{count}"
        self._names.add(name)
        return name

    def constant(self, base: str, array: Array) -> ir.Value:
        """An initializer; small equal ones (shapes, axes, zero points) are shared."""
        array = np.asarray(array, order="C")
        key = (
            array.dtype.str,
            array.shape,
            array.tobytes() if array.size <= 16 and array.dtype.kind in "iub" else b"",
        )
        if key[2] and key in self._shared:
            return self._shared[key]
        name = self.name(base)
        tensor = ir.Tensor(array, name=name)
        value = ir.Value(
            name=name, type=ir.TensorType(tensor.dtype), shape=ir.Shape(array.shape), const_value=tensor
        )
        self.initializers[name] = value
        if key[2]:
            self._shared[key] = value
        return value

    def emit(
        self,
        kind: str,
        inputs: Sequence[Operand],
        base: str,
        attributes: Mapping[str, Any] | None = None,
        outputs: int = 1,
    ) -> tuple[ir.Value, ...]:
        """A node named after `base`; arrays among its inputs become initializers."""
        values = [
            self.constant(f"{base}/{kind.lower()}_{i}", v) if isinstance(v, np.ndarray | np.generic) else v
            for i, v in enumerate(inputs)
        ]
        node = ir.node(kind, values, attributes=attributes or {}, num_outputs=outputs, name=self.name(base))
        for value in node.outputs:
            value.name = self.name(f"{base}_{kind.lower()}")
        self.nodes.append(node)
        return tuple(node.outputs)

    # -- tensors
    # -----------------------------------------------------------------------------------------------

    def quantization(self, index: int) -> Quantization | None:
        """Scale and zero point of a tensor that holds codes."""
        tensor = self.graph.tensors[index]
        return tensor.quantization if tensor.type in CODES else None

    def label(self, index: int) -> str:
        """A short name of a tensor: writers join the names of all that they fused by semicolons."""
        return self.graph.tensors[index].name.partition(";")[0] or f"tensor_{index}"

    def keep(self, index: int, value: ir.Value, *, real: bool, first: bool) -> None:
        held = self.held.setdefault(index, Held(first))
        held.forms[real, first] = value

    def get(self, index: int, *, real: bool, first: bool) -> ir.Value:
        """A tensor in the wanted form, made of the one that exists."""
        quantization = self.quantization(index)
        real = real and quantization is not None
        if index in self.arrays:
            self.held.setdefault(index, Held())
        held = self.held[index]
        if (real, first) in held.forms:
            return held.forms[real, first]
        label, rank = self.label(index), len(self.graph.tensors[index].shape)
        if real:
            assert quantization is not None
            value = self.dequantize(
                self.get(index, real=False, first=first), quantization, label, rank, first=first
            )
        elif index in self.arrays:
            array = self.arrays[index]
            value = self.constant(label, np.transpose(array, to_first(rank)) if first else array)
        else:
            native = held.forms[False, held.first]
            value = self._turned(native, to_first(rank) if first else to_last(rank), label)
        held.forms[real, first] = value
        return value

    def _turned(self, value: ir.Value, order: list[int], label: str) -> ir.Value:
        """`value` transposed; of what was just dequantized the codes are, which keeps the pair of nodes
        together."""
        node = value.producer()
        base = f"{label}/to_{'first' if order[-1] != 1 else 'last'}"
        if node is None or node.op_type != "DequantizeLinear" or "axis" in node.attributes:
            return self.emit("Transpose", [value], base, {"perm": order})[0]
        (codes,) = self.emit("Transpose", [node.inputs[0]], base, {"perm": order})
        return self.emit("DequantizeLinear", [codes, *node.inputs[1:]], f"{label}/dequantize")[0]

    def dequantize(
        self,
        codes: ir.Value,
        q: Quantization,
        label: str,
        rank: int,
        *,
        first: bool = False,
        axis: int | None = None,
    ) -> ir.Value:
        """DequantizeLinear; `axis` overrides the file's along which the scales lie."""
        attributes = {}
        if q.axis is not None:
            attributes["axis"] = (
                axis if axis is not None else to_first(rank).index(q.axis) if first else q.axis
            )
        return self.emit(
            "DequantizeLinear", [codes, *self._scales(q, codes, label)], f"{label}/dequantize", attributes
        )[0]

    def quantize(self, value: ir.Value, index: int) -> ir.Value:
        """QuantizeLinear with the scale and zero point of tensor `index`."""
        q, tensor = self.graph.tensors[index].quantization, self.graph.tensors[index]
        assert q is not None
        label = self.label(index)
        zero = np.asarray(q.zero_point, tensor.dtype)
        inputs = [
            value,
            self.constant(f"{label}_scale", np.asarray(q.scale)),
            self.constant("zero_point", zero),
        ]
        attributes = {} if q.axis is None else {"axis": q.axis}
        return self.emit("QuantizeLinear", inputs, f"{label}/quantize", attributes)[0]

    def _scales(self, q: Quantization, codes: ir.Value, label: str) -> list[ir.Value]:
        assert codes.dtype is not None or codes.producer() is not None
        kind = self._stored_type(codes)
        scale = self.constant(f"{label}_scale", np.asarray(q.scale))
        if kind == np.int32:
            return [scale]  # biases; ONNX knows no zero point for them
        return [scale, self.constant("zero_point", np.asarray(q.zero_point, kind))]

    def _stored_type(self, codes: ir.Value) -> np.dtype[Any]:
        while codes.dtype is None:  # codes pass through nothing but transposes until types are inferred
            node = codes.producer()
            assert node is not None
            source = node.inputs[2] if node.op_type == "QuantizeLinear" else node.inputs[0]
            assert source is not None
            codes = source
        return np.dtype(codes.dtype.numpy())
