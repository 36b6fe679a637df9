"""Writing quantized weights into a graph: integers behind a DequantizeLinear, and how they shall be read.

The stored truth is plain ONNX. A mark on each DequantizeLinear (`attar.weights`) tells the target's lowering
what is quickest there: `load`, float again when the model is loaded; `rows`, only the rows that a Gather
picks; `kernel`, inside the kernel, which ONNX Runtime fuses by itself (MatMulNBits).
"""

from __future__ import annotations

import math

import onnx_ir as ir

from attar import graph
from attar.context import Context
from attar_quantize.places import Place
from attar_quantize.scheme import Array, QParams, QType
from attar_quantize.storage import Store

# What ONNX Runtime's MatMulNBits takes.
_KERNEL_BLOCKS = (16, 32, 64, 128, 256)
# Kernels on few bits quantize the activations, too; for a few percent of time that is no bargain.
_QUICKER = 0.9


class WeightWriter:
    """Replaces weights of one model."""

    def __init__(self, model: ir.Model, ctx: Context, store: Store) -> None:
        self._main, self._ctx, self._store = model.graph, ctx, store
        self._taken = graph.taken_names(model.graph)

    def write(self, place: Place, codes: Array, params: QParams) -> None:
        """Put `codes` in the place of the weight; its users read them through a DequantizeLinear."""
        weight, owner = place.weight, place.weight.graph
        assert owner is not None
        name = weight.name or "weight"
        arguments = [
            self._constant(owner, f"{name}_quantized", codes, params.qtype),
            self._constant(owner, f"{name}_scale", params.scale),
        ]
        if not params.qtype.symmetric or params.qtype.bits == 8:
            # ONNX Runtime reads 8-bit codes without a zero point wrongly behind reshapes (its issue 27845).
            arguments.append(self._constant(owner, f"{name}_zero_point", params.zero_point, params.qtype))
        attributes = {"axis": params.axis or 0}
        if params.block:
            attributes["block_size"] = params.block
        node = ir.node(
            "DequantizeLinear", arguments, attributes=attributes, name=self._fresh(f"{name}/dequantize")
        )
        node.metadata_props["attar.weights"] = kernel_for(place, params, self._ctx)
        out = node.outputs[0]
        out.name = self._fresh(f"{name}_dequantized")
        out.type, out.shape = ir.TensorType(ir.DataType.FLOAT), ir.Shape(codes.shape)
        first = next(iter(owner))
        owner.insert_before(first, node)
        for user, position in list(weight.uses()):
            user.replace_input_with(position, out)
        if place.transposed:
            for user in place.users:
                user.attributes["transB"] = ir.AttrInt64("transB", 0)
        if weight.name and weight.name in owner.initializers:
            del owner.initializers[weight.name]

    def _constant(self, owner: ir.Graph, base: str, array: Array, qtype: QType | None = None) -> ir.Value:
        name = self._fresh(base)
        store = self._store
        tensor = store.array(array, name) if qtype is None else store.tensor(array, qtype, name)
        value = ir.Value(
            name=name, type=ir.TensorType(tensor.dtype), shape=ir.Shape(array.shape), const_value=tensor
        )
        owner.register_initializer(value)
        return value

    def _fresh(self, base: str) -> str:
        return graph.fresh_name(self._main, base, self._taken)


def kernel_for(place: Place, params: QParams, ctx: Context) -> str:
    """How the target reads a quantized weight quickest: `load`, `rows` or `kernel`."""
    qtype = params.qtype
    if qtype.format:
        return "load"
    if place.operators == {"Gather"} and qtype.stored.bitwidth == 8 and params.axis == 0 and not params.block:
        return "rows"
    if (
        place.operators <= {"MatMul", "Gemm"}
        and len(place.shape) == 2
        and params.axis == 0
        and params.block in _KERNEL_BLOCKS
        and place.rows is not None
    ):
        macs, kind = place.rows * math.prod(place.shape), "matmul.rows" if place.rows >= 16 else "matmul.row"
        size = place.rows * sum(place.shape)
        plain = ctx.target.costs.estimate(kind, "float", macs=macs, elements=size)
        # Measured with blocks of 32 and 128; a type that was never measured has no row.
        name = f"nbits{qtype.stored.bitwidth}/{128 if params.block >= 128 else 32}"
        few = ctx.target.costs.estimate(kind, name, macs=macs, elements=size)
        if plain is not None and few is not None and few < _QUICKER * plain:
            return "kernel"
    return "load"
