"""What a lowering works with: the file while it grows, and one operator of the IR at a time.

The mirror of `lift`: the IR is channels-first, TFLite channels-last; every value is held in the layout in
which it was made
and brought into the other when an operator asks for it. "Last" is the layout `(N, spatial..., C)` of a value
that the IR has
as `(N, C, spatial...)`; it exists from rank 3 on.

A value between DequantizeLinear and QuantizeLinear is held as codes with exactly their scale and zero point;
where a float
operator wants it, DEQUANTIZE is written.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

import numpy as np
import onnx_ir as ir

from attar.graph import const_array
from attar_tensorflow.tflite.emit import Array, Emitter, Params, Slot
from attar_tensorflow.tflite.lift import to_first, to_last

Integer = Literal["no", "arithmetic", "move"]


@dataclass
class Placed:
    """The forms of one value that exist in the file, by (real, last). `params` are those of its codes."""

    last: bool = False
    params: Params | None = None
    forms: dict[tuple[bool, bool], Slot] = field(default_factory=dict)


@dataclass
class Group:
    """A node with what its operator absorbs: an added bias, an activation."""

    main: ir.Node
    outputs: tuple[ir.Value, ...]
    activation: str = "NONE"
    bias: ir.Value | None = None


class Writing:
    """The file while it grows. `unsigned`: codes are uint8, as before 2020, rather than int8."""

    def __init__(self, unsigned: bool) -> None:
        self.emitter, self.unsigned = Emitter(), unsigned
        self.held: dict[ir.Value, Placed] = {}
        self.notes: set[str] = set()
        self.outputs: set[int] = set()

    # -- codes
    # -------------------------------------------------------------------------------------------------

    def settled(self, params: Params, dtype: np.dtype[Any]) -> tuple[Params, np.dtype[Any], int]:
        """Params and type that codes of `dtype` have in the file, and what is added to each code."""
        wanted = np.dtype(np.uint8 if self.unsigned else np.int8)
        if dtype.itemsize != 1 or dtype == wanted:
            return params, dtype, 0
        shift = 128 if self.unsigned else -128
        return Params(params.scale, params.zero + shift, params.axis), wanted, shift

    # -- values
    # ------------------------------------------------------------------------------------------------

    def constant(self, value: ir.Value | None) -> tuple[Array, Params | None] | None:
        """The content of a constant; codes and their params where it is the DequantizeLinear of one."""
        if value is None:
            return None
        array = const_array(value)
        if array is not None:
            return array, None
        node = value.producer()
        if node is None or node.op_type != "DequantizeLinear":
            return None
        array, params = const_array(node.inputs[0]), params_of(node)
        return None if array is None or params is None else (array, params)

    def get(self, value: ir.Value, *, real: bool, last: bool = False) -> Slot:
        """A value in the wanted form, made of the one that exists."""
        rank = len(value.shape) if value.shape is not None else 0
        placed = self.held.setdefault(value, Placed())
        if placed.params is None:
            real = True  # it is no codes: there is only one form
        if not placed.forms:
            known = self.constant(value)
            assert known is not None, value.name
            assert known[1] is None, value.name
            array = as_tflite(np.asarray(known[0]))
            return self.emitter.constant(
                value.name or "constant", np.transpose(array, to_last(rank)) if last else array
            )
        if (real, last) in placed.forms:
            return placed.forms[real, last]
        if real and placed.params is not None:
            codes = self.get(value, real=False, last=last)
            slot = self.emitter.tensor(f"{value.name}_real", codes.dims, np.float32)
            self.emitter.operator("DEQUANTIZE", [codes], [slot])
        else:
            native = placed.forms[real, placed.last]
            slot = self.transposed(
                native, to_last(rank) if last else to_first(rank), f"{value.name}_transposed"
            )
        placed.forms[real, last] = slot
        return slot

    def codes_of(self, array: Array, params: Params, name: str, order: Sequence[int]) -> Slot:
        """A constant as codes, its axes in `order`."""
        params, dtype, shift = self.settled(params, array.dtype)
        if params.axis is not None:
            params = Params(params.scale, params.zero, list(order).index(params.axis))
        codes = np.transpose(array, order) if array.ndim > 1 else array
        return self.emitter.constant(name, (codes.astype(np.int64) + shift).astype(dtype), params)

    def transposed(self, slot: Slot, order: Sequence[int], name: str) -> Slot:
        dims = tuple(slot.dims[a] for a in order)
        moved = self.emitter.tensor(name, dims, slot.dtype, slot.params)
        self.emitter.operator(
            "TRANSPOSE", [slot, self.emitter.constant("order", np.asarray(order, np.int32))], [moved]
        )
        return moved

    def requantized(self, slot: Slot, params: Params, dtype: np.dtype[Any], name: str) -> Slot:
        """`slot` (real, or codes) as codes of other params; itself where they are the same."""
        if slot.dtype == dtype and params.same(slot.params):
            return slot
        codes = self.emitter.tensor(name, slot.dims, dtype, params)
        self.emitter.operator("QUANTIZE", [slot], [codes])
        return codes


def as_tflite(array: Array) -> Array:
    """Float64 becomes float32, which is all that TFLite computes in."""
    return array.astype(np.float32) if array.dtype == np.float64 else array


def params_of(node: ir.Node) -> Params | None:
    """The params of a QuantizeLinear or DequantizeLinear; None if they are computed or blockwise."""
    scale = const_array(node.inputs[1])
    zero_value = node.inputs[2] if len(node.inputs) > 2 else None
    zero = None if zero_value is None else const_array(zero_value)
    blocks = node.attributes.get("block_size")
    if scale is None or (zero_value is not None and zero is None) or (blocks is not None and blocks.value):
        return None
    if scale.dtype != np.float32 or scale.ndim > 1 or (zero is not None and zero.dtype.kind not in "iu"):
        return None
    axis = None
    if scale.ndim == 1 and scale.size > 1:
        rank = (
            len(node.inputs[0].shape)
            if node.inputs[0] is not None and node.inputs[0].shape is not None
            else 0
        )
        attribute = node.attributes.get("axis")
        axis = (1 if attribute is None else int(attribute.value)) % max(rank, 1)
    else:
        scale = scale.reshape(())
    zeros = np.zeros(scale.shape, np.int64) if zero is None else zero.astype(np.int64).reshape(scale.shape)
    return Params(np.asarray(scale), zeros, axis)


def quantizer(node: ir.Node, writing: Writing) -> tuple[Params, np.dtype[Any]] | None:
    """Params and type of the codes that a QuantizeLinear gives, as the file has them."""
    params = params_of(node)
    out = node.outputs[0].dtype
    if params is None or out is None:
        return None
    settled, dtype, _ = writing.settled(params, np.dtype(out.numpy()))
    return settled, dtype
