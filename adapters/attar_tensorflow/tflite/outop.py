"""One ONNX operator, as a lowering sees it."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import onnx_ir as ir

from attar.conversion import NodeView
from attar.errors import ConversionError
from attar_tensorflow.tflite import schema
from attar_tensorflow.tflite.emit import Dims, Params, Slot
from attar_tensorflow.tflite.lift import to_last
from attar_tensorflow.tflite.lower import Group, Placed, Writing, as_tflite, quantizer

Integer = Literal["no", "arithmetic", "move"]


@dataclass(frozen=True)
class Lowering:
    """How one ONNX operator is written.

    Attributes:
        write: does it; `write(op: OutOp) -> None`.
        integer: whether TFLite has an integer kernel: "arithmetic" needs codes behind it, "move" keeps those
        before it.
        data: the inputs that must be codes for that; () for all that are real.
        fuses: whether TFLite's operator can apply an activation.
    """

    write: Callable[[OutOp], None]
    integer: Integer = "no"
    data: tuple[int, ...] = ()
    fuses: bool = False

    def __call__(self, op: OutOp) -> None:
        self.write(op)


class OutOp:
    """One operator of the IR, as a lowering sees it.

    Attributes:
        view: the node.
        integer: whether it is to be written on codes.
        group: the node with what its operator absorbs.
    """

    def __init__(self, writing: Writing, group: Group, lowering: Any, opset: int) -> None:
        self.w, self.group = writing, group
        self.view = NodeView(group.main, opset=opset, framework="tflite")
        self.label = group.outputs[0].name or self.view.name
        self.integer = self._decide(lowering) if isinstance(lowering, Lowering) else False

    def _decide(self, lowering: Lowering) -> bool:
        places = lowering.data or tuple(
            i for i, v in enumerate(self.view.inputs) if v is not None and _is_real(v)
        )
        if lowering.integer == "no" or not places:
            return False
        if lowering.integer == "move":
            return all(self.has_codes(i) for i in places)
        held = any(self.has_codes(i) and self.w.constant(self.view.input(i)) is None for i in places)
        return held and all(self.has_codes(i) for i in places) and self.wanted() is not None

    # -- looking
    # -----------------------------------------------------------------------------------------------

    def refuse(self, reason: str) -> ConversionError:
        return self.view.refuse(reason)

    def value(self, i: int) -> ir.Value:
        found = self.view.input(i)
        if found is None:
            raise self.refuse(f"its input {i} is missing")
        return found

    def dims(self, i: int) -> Dims:
        """The shape of input `i`, as the IR has it; None for a dimension without a number."""
        return dims_of(self.value(i), self)

    def rank(self, i: int = 0) -> int:
        return len(self.dims(i))

    def out_dims(self, k: int = 0) -> Dims:
        return dims_of(self.group.outputs[k], self)

    def has_codes(self, i: int) -> bool:
        """Whether input `i` is held as codes, or is a constant of codes."""
        value = self.view.input(i)
        if value is None:
            return False
        known = self.w.constant(value)
        if known is not None:
            return known[1] is not None
        return value in self.w.held and self.w.held[value].params is not None

    def params(self, i: int) -> Params:
        """The params of the codes of input `i`, as the file has them."""
        known = self.w.constant(self.value(i))
        if known is not None and known[1] is not None:
            return self.w.settled(known[1], known[0].dtype)[0]
        found = self.w.held[self.value(i)].params
        assert found is not None
        return found

    def wanted(self, k: int = 0) -> tuple[Params, np.dtype[Any]] | None:
        """Params and type of the codes that output `k` is quantized to by everyone who reads it; None if
        not."""
        value = self.group.outputs[k]
        uses = list(value.uses())
        if (
            not uses
            or value.is_graph_output()
            or any(u.op_type != "QuantizeLinear" or p != 0 for u, p in uses)
        ):
            return None
        found = [quantizer(u, self.w) for u, _ in uses]
        first = found[0]
        if first is None or any(f is None or not first[0].same(f[0]) or f[1] != first[1] for f in found):
            return None
        return first if first[0].axis is None else None

    def is_last(self, i: int) -> bool:
        """Whether input `i` is held channels-last."""
        value = self.view.input(i)
        return value is not None and value in self.w.held and self.w.held[value].last

    def activation(self) -> int:
        """The code of the activation that the operator applies."""
        return schema.ACTIVATIONS.index(self.group.activation)

    # -- operands
    # ----------------------------------------------------------------------------------------------

    def operand(self, i: int, last: bool = False, real: bool | None = None) -> Slot:
        """Input `i`: codes if the operator computes in integers, else real numbers."""
        value = self.value(i)
        codes = self.integer if real is None else not real
        last = last and self.rank(i) > 2
        known = self.w.constant(value)
        if known is not None and known[1] is not None:
            rank = known[0].ndim
            slot = self.w.codes_of(
                known[0], known[1], value.name or "constant", to_last(rank) if last else range(rank)
            )
            return slot if codes else self.dequantized(slot)
        return self.w.get(value, real=not codes, last=last)

    def dequantized(self, slot: Slot) -> Slot:
        real = self.w.emitter.tensor(f"{self.label}_real", slot.dims, np.float32)
        self.w.emitter.operator("DEQUANTIZE", [slot], [real])
        return real

    def index(self, i: int, what: str) -> list[int]:
        """Constant input `i` as whole numbers."""
        return [int(n) for n in np.asarray(self.view.need_const(i, what)).reshape(-1)]

    def ints(self, values: Any, base: str = "numbers") -> Slot:
        """A constant of 32-bit whole numbers, which is what TFLite takes for shapes and axes."""
        array = np.asarray(values, np.int64)
        low, high = np.iinfo(np.int32).min, np.iinfo(np.int32).max
        return self.w.emitter.constant(base, np.clip(array, low, high).astype(np.int32))

    def const(self, array: Any, base: str | None = None, params: Params | None = None) -> Slot:
        return self.w.emitter.constant(base or f"{self.label}_constant", np.asarray(array), params)

    def aligned(
        self, *positions: int, like: tuple[Params, np.dtype[Any]] | None = None
    ) -> tuple[list[Slot], bool]:
        """Operands of a broadcasting operator in one layout, and whether that is channels-last.

        Args:
            like: requantize codes to these.
        """
        rank = max(self.rank(i) for i in positions)
        constant = {i: self.w.constant(self.value(i)) for i in positions}
        last = rank > 2 and any(self.is_last(i) and self.rank(i) == rank for i in positions)
        last = last and all(constant[i] is not None or self.rank(i) in (0, rank) for i in positions)
        slots = []
        for i in positions:
            known = constant[i]
            if known is not None and last and known[0].size > 1 and known[0].ndim < rank:
                array, params = known
                lift = rank - array.ndim
                wide = array.reshape([1] * lift + list(array.shape))
                name = self.value(i).name or "constant"
                if params is None:
                    slot = self.const(as_tflite(np.transpose(wide, to_last(rank))), name)
                else:
                    axis = None if params.axis is None else params.axis + lift
                    slot = self.w.codes_of(wide, Params(params.scale, params.zero, axis), name, to_last(rank))
                    slot = slot if self.integer else self.dequantized(slot)
            else:
                slot = self.operand(i, last=last)
            if like is not None:
                slot = self.w.requantized(slot, *like, name=f"{self.label}_operand")
            slots.append(slot)
        return slots, last

    # -- results
    # -----------------------------------------------------------------------------------------------

    def make(
        self,
        kind: str,
        inputs: Sequence[Slot | None],
        dims: Dims,
        options: Mapping[str, Any] | None = None,
        *,
        dtype: Any = np.float32,
        params: Params | None = None,
        base: str | None = None,
    ) -> Slot:
        """An operator on the way to the result."""
        slot = self.w.emitter.tensor(base or f"{self.label}_{kind.lower()}", dims, dtype, params)
        self.w.emitter.operator(kind, inputs, [slot], options)
        return slot

    def result(
        self,
        kind: str,
        inputs: Sequence[Slot | None],
        options: Mapping[str, Any] | None = None,
        *,
        last: bool = False,
        like: Slot | None = None,
        params: Params | None = None,
        dims: Dims | None = None,
    ) -> None:
        """The operator that makes output 0.

        Args:
            last: the result is channels-last.
            like: it has the codes of this operand, as with everything that only moves.
            params: it has these codes, whatever is wanted of it.
        """
        slot = self.fresh(0, last=last, like=like, params=params, dims=dims)
        self.w.emitter.operator(kind, inputs, [slot], options)
        self.give(slot, last=last)

    def fresh(
        self,
        k: int,
        *,
        last: bool = False,
        like: Slot | None = None,
        params: Params | None = None,
        dims: Dims | None = None,
    ) -> Slot:
        """A tensor for output `k`; see `result`."""
        shape = self.out_dims(k) if dims is None else dims
        if last and dims is None and len(shape) > 2:
            shape = tuple(shape[a] for a in to_last(len(shape)))
        dtype = self.view.out_dtype(k) if self.group.main.outputs[k] is not None else np.dtype(np.float32)
        if like is not None:
            params, dtype = like.params, like.dtype
        elif params is not None:
            dtype = np.dtype(np.uint8 if self.w.unsigned else np.int8)
        elif self.integer and dtype.kind == "f":
            wanted = self.wanted(k)
            assert wanted is not None
            params, dtype = wanted
        if dtype == np.float64:
            raise self.refuse("it computes in double precision")
        if dtype == np.float16:
            raise self.refuse("it computes in half precision")
        return self.w.emitter.tensor(self.group.outputs[k].name or self.label, shape, dtype, params)

    def give(self, slot: Slot, k: int = 0, *, last: bool = False) -> None:
        """`slot` is output `k`."""
        last = last and len(slot.dims) > 2
        placed = Placed(last, slot.params, {(slot.params is None, last): slot})
        self.w.held[self.group.outputs[k]] = placed


def dims_of(value: ir.Value, op: OutOp | None = None) -> Dims:
    """The shape of a value; None for a dimension without a number.

    Raises:
        ConversionError: not even its rank is known.
    """
    if value.shape is None:
        if op is not None:
            raise op.refuse(f"the shape of {value.name!r} is unknown")
        raise ConversionError(f"the shape of {value.name!r} is unknown")
    return tuple(d if isinstance(d, int) else None for d in value.shape)


def _is_real(value: ir.Value) -> bool:
    return value.dtype is not None and value.dtype.is_floating_point()
