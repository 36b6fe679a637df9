"""One TFLite operator, as a lifting sees it."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import onnx_ir as ir

from attar.errors import ConversionError
from attar_tensorflow.tflite import schema
from attar_tensorflow.tflite.file import Array, Operator, Quantization, Tensor
from attar_tensorflow.tflite.lift import Building, Operand, to_first


class Op:
    """One operator, as a lifting sees it. Inputs and outputs are named by position."""

    def __init__(self, building: Building, operator: Operator) -> None:
        self._b, self._op = building, operator
        self.kind = operator.kind
        self.label = (
            building.label(operator.outputs[0]) if operator.outputs else f"{operator.kind}_{operator.index}"
        )

    # -- looking
    # -----------------------------------------------------------------------------------------------

    @property
    def count(self) -> int:
        """How many inputs there are."""
        return len(self._op.inputs)

    @property
    def outputs(self) -> int:
        """How many outputs there are."""
        return len(self._op.outputs)

    def option(self, name: str, default: Any = 0) -> Any:
        """An option of the operator; `default` where the file leaves all options out."""
        found = getattr(self._op.options, name, default)
        return default if found is None else found

    def activation(self) -> str:
        """The activation that is fused into the operator."""
        code = self.option("fused_activation_function")
        return schema.ACTIVATIONS[code] if 0 <= code < len(schema.ACTIVATIONS) else "?"

    def has(self, i: int) -> bool:
        return i < len(self._op.inputs) and self._op.inputs[i] >= 0

    def tensor(self, i: int) -> Tensor:
        if not self.has(i):
            raise self.refuse(f"its input {i} is missing")
        return self._b.graph.tensors[self._op.inputs[i]]

    def out(self, k: int = 0) -> Tensor:
        return self._b.graph.tensors[self._op.outputs[k]]

    def shape(self, i: int) -> tuple[int | None, ...]:
        return self.tensor(i).shape

    def rank(self, i: int) -> int:
        return len(self.tensor(i).shape)

    def array(self, i: int) -> Array | None:
        """The stored content of a constant input."""
        return self._b.arrays.get(self.tensor(i).index)

    def need(self, i: int, what: str) -> Array:
        """The stored content of an input that must be constant.

        Raises:
            ConversionError: it is computed.
        """
        found = self.array(i)
        if found is None:
            raise self.refuse(f"{what} is computed while the model runs")
        return found

    def whole(self, i: int, what: str) -> list[int]:
        """A constant input as whole numbers."""
        return [int(n) for n in self.need(i, what).reshape(-1)]

    def quantized(self, i: int) -> Quantization | None:
        return self._b.quantization(self.tensor(i).index)

    def gives_codes(self, k: int = 0) -> bool:
        """Whether output `k` is quantized."""
        return self._b.quantization(self._op.outputs[k]) is not None

    def is_first(self, i: int) -> bool:
        """Whether input `i` is held channels-first."""
        index = self.tensor(i).index
        return index not in self._b.arrays and index in self._b.held and self._b.held[index].first

    def refuse(self, reason: str) -> ConversionError:
        return ConversionError(
            f"the IR cannot say the {self.kind} {self.label!r} exactly: {reason}",
            missing={self.kind: [self.label]},
        )

    def note(self, text: str) -> None:
        """Tell the reader of the report."""
        self._b.notes.add(text)

    # -- operands
    # ----------------------------------------------------------------------------------------------

    def real(self, i: int, first: bool = False) -> ir.Value:
        """Input `i` as real numbers: integers without scale, and everything else that is not quantized, as
        they are."""
        return self._b.get(self.tensor(i).index, real=True, first=first and self.rank(i) > 2)

    def raw(self, i: int, first: bool = False) -> ir.Value:
        """Input `i` as it is stored."""
        return self._b.get(self.tensor(i).index, real=False, first=first and self.rank(i) > 2)

    def long(self, i: int) -> ir.Value:
        """Input `i` as int64, which is what ONNX wants of shapes and indices."""
        array = self.array(i)
        if array is not None:
            return self.constant(array.astype(np.int64), f"{self._b.label(self.tensor(i).index)}_long")
        return self.emit("Cast", [self.raw(i)], to=ir.DataType.INT64)

    def weight(self, i: int, order: Sequence[int], shape: Sequence[int] | None = None) -> ir.Value:
        """A constant operand, reshaped to `shape` if given and then transposed by `order`; codes stay codes.

        Raises:
            ConversionError: it is computed, or its scales lie along an axis that the reshaping does not keep.
        """
        tensor = self.tensor(i)
        array, q, label = self.need(i, "its weight"), self.quantized(i), self._b.label(tensor.index)
        axis = None
        if q is not None and q.axis is not None:
            axis = q.axis
            if shape is not None:
                # The last axis of the file is the one that every reshaping here keeps together or cuts
                # evenly.
                if axis != array.ndim - 1:
                    raise self.refuse("its scales lie along an axis of their own")
                axis = [d for d, n in enumerate(shape) if n == array.shape[-1]][-1]
            axis = list(order).index(axis)
        stored = array if shape is None else array.reshape(shape)
        value = self.constant(np.transpose(stored, order), label)
        return value if q is None else self._b.dequantize(value, q, label, array.ndim, axis=axis)

    def bias(self, i: int, weight: int) -> ir.Value | None:
        """A bias vector, None if there is none: float, or int32 with the scales of input times weight."""
        if not self.has(i):
            return None
        array, q = self.array(i), self.tensor(i).quantization
        if array is None:
            return self.raw(i)
        array, label = array.reshape(-1), self._b.label(self.tensor(i).index)
        if array.dtype.kind == "f":
            return self.constant(array.astype(np.float32), label)
        wide = array.astype(np.int32)
        if (wide != array).any():
            raise self.refuse("its 64-bit bias does not fit into 32 bits")
        if q is None or np.shape(q.scale) not in ((), (len(wide),)):
            x, w = self.quantized(0), self.quantized(weight)
            if x is None or w is None:
                raise self.refuse("its integer bias has no scale")
            q = Quantization(
                np.asarray(x.scale * w.scale, np.float32), np.asarray(0), None if w.axis is None else 0
            )
        if np.any(q.zero_point):
            raise self.refuse("its bias has a zero point")
        q = Quantization(q.scale, q.zero_point, 0 if np.ndim(q.scale) else None)
        return self._b.dequantize(self.constant(wide, label), q, label, 1, axis=0)

    def aligned(self, *positions: int) -> tuple[list[ir.Value], bool]:
        """Operands of a broadcasting operator in one layout, and whether that is channels-first."""
        rank = max(self.rank(i) for i in positions)
        first = rank > 2 and any(self.is_first(i) and self.rank(i) == rank for i in positions)
        if not first:
            return [self.real(i) for i in positions], False
        return [self._raised(i, rank) for i in positions], True

    def _raised(self, i: int, rank: int) -> ir.Value:
        own = self.rank(i)
        if own == rank:
            return self.real(i, first=True)
        array = self.array(i)
        if own == 0 or (array is not None and array.size == 1):
            return self.real(i)
        if array is not None:
            q, label = self.quantized(i), self._b.label(self.tensor(i).index)
            shape = [1] * (rank - own) + list(array.shape)
            value = self.constant(np.transpose(array.reshape(shape), to_first(rank)), label)
            if q is None:
                return value
            axis = None if q.axis is None else to_first(rank).index(q.axis + rank - own)
            return self._b.dequantize(value, q, label, rank, axis=axis)
        wide = self.emit("Unsqueeze", [self.real(i), np.arange(rank - own)])
        return self.emit("Transpose", [wide], perm=to_first(rank))

    # -- results
    # -----------------------------------------------------------------------------------------------

    def constant(self, array: Array, label: str | None = None) -> ir.Value:
        return self._b.constant(label or f"{self.label}/constant", array)

    def emit(self, kind: str, inputs: Sequence[Operand], **attributes: Any) -> ir.Value:
        """One node with one output."""
        return self._b.emit(kind, inputs, self.label, attributes)[0]

    def emits(
        self, kind: str, inputs: Sequence[Operand], outputs: int, **attributes: Any
    ) -> tuple[ir.Value, ...]:
        """One node with several outputs."""
        return self._b.emit(kind, inputs, self.label, attributes, outputs)

    def fold(self, array: Array, k: int = 0) -> None:
        """Output `k` is a constant."""
        self._b.arrays[self._op.outputs[k]] = array

    def rounded(self, value: ir.Value, k: int = 0) -> ir.Value:
        """`value` rounded to the grid of output `k`, where that is quantized: what is only moved behind it
        stays
        exact, and the pair of nodes is where a runtime cuts out an integer kernel."""
        if not self.gives_codes(k):
            return value
        index = self._op.outputs[k]
        q = self._b.graph.tensors[index].quantization
        assert q is not None
        return self._b.dequantize(self._b.quantize(value, index), q, self.label, 0)

    def settled(self, value: ir.Value, i: int) -> ir.Value:
        """`value`, elements of input `i` moved, between a pair of nodes of its own where that is quantized.

        ONNX Runtime 1.32 cannot load signed codes that are moved without (its change of sign forgets
        `output_dtype`).
        """
        q, index = self.quantized(i), self.tensor(i).index
        if q is None or q.axis is not None or self.array(i) is not None:
            return value
        return self._b.dequantize(self._b.quantize(value, index), q, self.label, 0)

    def give(self, value: ir.Value, k: int = 0, first: bool = False) -> None:
        """`value` (real numbers) is output `k`. The fused activation is applied, then it is quantized."""
        self.give_plain(self._activated(value, self._op.outputs[k]), k, first)

    def give_plain(self, value: ir.Value, k: int = 0, first: bool = False) -> None:
        """`give` for operators whose activation is part of them."""
        index = self._op.outputs[k]
        first = first and len(self.out(k).shape) > 2
        if self._b.quantization(index) is not None:
            value = self._b.quantize(value, index)
        value.name = self._b.name(self._b.label(index))
        self._b.keep(index, value, real=False, first=first)

    def _activated(self, value: ir.Value, index: int) -> ir.Value:
        kind = self.activation()
        if kind == "NONE":
            return value
        if kind == "TANH":
            return self.emit("Tanh", [value])
        bounds = {"RELU": (0.0, None), "RELU6": (0.0, 6.0), "RELU_N1_TO_1": (-1.0, 1.0)}.get(kind)
        if bounds is None:
            raise self.refuse(f"the fused activation {kind} has no counterpart")
        return self.clip(value, *bounds, index=index)

    def clip(self, value: ir.Value, low: float, high: float | None, index: int | None = None) -> ir.Value:
        """`value` within bounds; as it is where the codes of tensor `index` reach no further anyway."""
        q = None if index is None else self._b.quantization(index)
        if q is not None and index is not None and q.axis is None:
            # TFLite clamps codes, and rounds the bounds to codes first.
            limits = np.iinfo(self._b.graph.tensors[index].dtype)
            zero, scale = int(q.zero_point), float(q.scale)
            if limits.min >= zero + round(low / scale) and (
                high is None or limits.max <= zero + round(high / scale)
            ):
                return value
        if low == 0.0 and high is None:
            return self.emit("Relu", [value])
        return self.emit("Clip", [value, np.float32(low), *([] if high is None else [np.float32(high)])])
