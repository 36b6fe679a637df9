"""QuantizeLinear and DequantizeLinear: the same tensor seen as real numbers and as codes."""

from __future__ import annotations

from attar_tensorflow.tflite.lower import Placed, params_of, quantizer
from attar_tensorflow.tflite.outop import Lowering, OutOp


def quantize(op: OutOp) -> None:
    """Nothing to do where the operator before has already written these codes."""
    found = quantizer(op.view.node, op.w)
    if found is None or found[0].axis is not None:
        raise op.refuse("its scale is computed, or there is one for each channel of an activation")
    params, dtype = found
    if dtype.itemsize > 2:
        raise op.refuse(f"it quantizes to {dtype}")
    last = op.is_last(0)
    coded = op.has_codes(0)
    slot = op.operand(0, last=last, real=not coded)
    op.give(op.w.requantized(slot, params, dtype, op.label), last=last)


def dequantize(op: OutOp) -> None:
    """The codes keep standing for the real numbers; DEQUANTIZE is written when an operator asks for them."""
    if op.w.constant(op.group.outputs[0]) is not None:
        return
    params, value = params_of(op.view.node), op.value(0)
    held = op.w.held.get(value)
    if params is None or held is None or held.params is None:
        raise op.refuse("its scale is computed, or its input is no quantized activation")
    if not op.w.settled(params, op.view.dtype(0))[0].same(held.params):
        raise op.refuse("its scale or zero point is not that of its input")
    op.w.held[op.group.outputs[0]] = held


def identity(op: OutOp) -> None:
    value = op.value(0)
    if op.w.constant(value) is not None:
        op.give(op.operand(0, real=True))
        return
    held = op.w.held[value]
    op.w.held[op.group.outputs[0]] = Placed(held.last, held.params, held.forms)


def dropout(op: OutOp) -> None:
    """Does nothing when a network is used."""
    training = op.view.const(2)
    if (op.view.has(2) and (training is None or training.any())) or op.view.wants(1):
        raise op.refuse("it drops elements, or its mask is used")
    identity(op)


LOWERINGS = {
    "QuantizeLinear": Lowering(quantize),
    "DequantizeLinear": Lowering(dequantize),
    "Identity": Lowering(identity),
    "Dropout": Lowering(dropout),
}
