"""From the IR to a `.tflite` file."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import onnx_ir as ir

from attar.conversion import prepare
from attar.conversion.view import op_key
from attar.errors import ConversionError, InputError
from attar.graph import all_nodes, clone, const_array
from attar.registry import Registry
from attar_tensorflow.tflite.emit import Array, Params, Slot
from attar_tensorflow.tflite.gelu import gather_gelu
from attar_tensorflow.tflite.groups import find_groups
from attar_tensorflow.tflite.lift import to_last
from attar_tensorflow.tflite.lower import Placed, Writing, params_of, quantizer
from attar_tensorflow.tflite.outop import OutOp, dims_of

_MOVES = {"Transpose", "Reshape", "Squeeze", "Unsqueeze", "Flatten", "Identity", "Slice"}
_WEIGHTED = {"Conv", "ConvTranspose", "Gemm", "MatMul"}
# Whatever reads an image: an input that one of these reads may be declared channels-last.
_IMAGE = {
    "Conv",
    "ConvTranspose",
    "MaxPool",
    "AveragePool",
    "GlobalAveragePool",
    "GlobalMaxPool",
    "BatchNormalization",
    "InstanceNormalization",
    "Resize",
    "DepthToSpace",
    "SpaceToDepth",
    "LRN",
    "PRelu",
    "Pad",
}


@dataclass(frozen=True)
class Port:
    """One input or output of the file as the model sees it: `order` takes the model's axes to the file's."""

    name: str
    slot: Slot
    dtype: np.dtype[Any]
    order: tuple[int, ...] | None = None

    def feed(self, array: Array) -> Array:
        """What the file wants for the model's `array`."""
        moved = array if self.order is None else np.transpose(array, self.order)
        if self.slot.dtype == moved.dtype or self.slot.params is None:
            return moved
        limits = np.iinfo(self.slot.dtype)
        codes = np.rint(np.asarray(moved, np.float32) / np.float32(self.slot.params.scale))
        return np.clip(codes + float(self.slot.params.zero), limits.min, limits.max).astype(self.slot.dtype)

    def fetch(self, array: Array) -> Array:
        """What the model gives for the file's `array`."""
        if array.dtype != self.dtype and self.slot.params is not None:
            array = (array.astype(np.int64) - int(self.slot.params.zero)).astype(np.float32) * np.float32(
                self.slot.params.scale
            )
        return array if self.order is None else np.transpose(array, np.argsort(self.order))


@dataclass(frozen=True)
class Written:
    """A file with what is needed to use it as the model."""

    data: bytes
    inputs: tuple[Port, ...]
    outputs: tuple[Port, ...]
    notes: tuple[str, ...]


def lower(
    model: ir.Model,
    table: Mapping[str, Callable[[OutOp], None]],
    registry: Registry,
    *,
    int8_io: bool = True,
    channels_last: bool = False,
) -> Written:
    """The file that computes `model`, which stays as it is.

    Args:
        table: operator -> lowering.
        int8_io: inputs that are only quantized, and outputs that are only dequantized, become codes.
        channels_last: images among inputs and outputs are declared `(N, H, W, C)`.

    Raises:
        ConversionError: operators that TFLite cannot say exactly; all are listed.
        InputError: the result does not fit into a file.
    """
    model = clone(model)
    gather_gelu(model)
    model = prepare(model, table.keys(), "tflite", registry=registry)
    graph, opset = model.graph, model.opset_imports[""]
    if len(list(model.graphs())) > 1:
        raise ConversionError("tflite has no counterpart for control flow with subgraphs here")
    writing = Writing(_needs_unsigned(model))
    inputs = [_input(writing, value, int8_io, channels_last) for value in graph.inputs]
    refused: list[ConversionError] = []
    for group in find_groups(graph, writing):
        if any(
            v is not None and v not in writing.held and writing.constant(v) is None for v in group.main.inputs
        ):
            continue  # behind something that was refused
        op = OutOp(writing, group, table[op_key(group.main)], opset)
        try:
            table[op_key(group.main)](op)
        except ConversionError as error:
            refused.append(error)
        except (ValueError, IndexError, KeyError, TypeError, AssertionError, ZeroDivisionError) as error:
            refused.append(op.refuse(f"{type(error).__name__}: {error!s:.150}"))
    if refused:
        missing: dict[str, list[str]] = {}
        for error in refused:
            for kind, nodes in error.missing.items():
                missing.setdefault(kind, []).extend(nodes)
        reasons = "; ".join(dict.fromkeys(e.message.splitlines()[0] for e in refused))
        raise ConversionError(reasons, missing=missing)
    outputs = [_output(writing, value, int8_io, channels_last, inputs) for value in graph.outputs]
    names = [[p.name for p in inputs], [p.name for p in outputs]]
    data = writing.emitter.build(
        [p.slot for p in inputs], [p.slot for p in outputs], names, graph.name or "main"
    )
    return Written(data, tuple(inputs), tuple(outputs), tuple(_notes(writing)))


def _notes(writing: Writing) -> list[str]:
    kinds = writing.emitter.kinds
    notes = sorted(writing.notes)
    if any(s.params is not None for s in writing.emitter.slots):
        real = sorted({k for k, integer in kinds if not integer and k not in ("QUANTIZE", "DEQUANTIZE")})
        count = sum(1 for k, integer in kinds if integer)
        notes.append(
            f"{count} of {len(kinds)} operators compute in integers"
            + (f"; in float: {', '.join(real)}" if real else "")
        )
    return notes


def _needs_unsigned(model: ir.Model) -> bool:
    """Whether a weight has a zero point of its own, which only the kernels for uint8 know."""
    for node in all_nodes(model):
        if node.op_type in _WEIGHTED and len(node.inputs) > 1 and node.inputs[1] is not None:
            producer = node.inputs[1].producer()
            if producer is None or producer.op_type != "DequantizeLinear":
                continue
            codes, params = const_array(producer.inputs[0]), params_of(producer)
            if (
                codes is not None
                and params is not None
                and codes.dtype == np.uint8
                and (params.zero != 128).any()
            ):
                return True
    return False


# -- the interface
# ---------------------------------------------------------------------------------------------


def _input(writing: Writing, value: ir.Value, int8_io: bool, channels_last: bool) -> Port:
    name, dims = value.name or "input", dims_of(value)
    if value.dtype is None:
        raise InputError(f"the type of the input {name!r} is unknown")
    dtype = np.dtype(value.dtype.numpy())
    if dtype.kind not in "fiub" or dtype in (np.float16, np.float64):
        raise ConversionError(f"the input {name!r} is {dtype}, which tflite's operators do not take")
    last = channels_last and len(dims) > 2 and any(n.op_type in _IMAGE for n in _readers(value))
    order = tuple(to_last(len(dims))) if last else None
    shape = tuple(dims[a] for a in order) if order else dims
    params, wanted = None, dtype
    if dtype.kind == "f" and int8_io:
        params, wanted = _quantized_by_all(value, writing) or (None, dtype)
    elif dtype.kind in "iu" and dtype.itemsize <= 2:
        params = _meaning(value)
    slot = writing.emitter.tensor(name, shape, wanted, params)
    held = slot
    if params is not None:  # the file's own codes may be signed where the model's are not
        settled, kind, _ = writing.settled(params, wanted)
        held = writing.requantized(slot, settled, kind, f"{name}_signed")
    writing.held[value] = Placed(last, held.params, {(held.params is None, last): held})
    return Port(name, slot, dtype, order)


def _readers(value: ir.Value) -> list[ir.Node]:
    """The operators that read a value, through Quantize- and DequantizeLinear."""
    found = []
    for node, _ in value.uses():
        if node.op_type in ("QuantizeLinear", "DequantizeLinear"):
            found += _readers(node.outputs[0])
        else:
            found.append(node)
    return found


def _quantized_by_all(value: ir.Value, writing: Writing) -> tuple[Params, np.dtype[Any]] | None:
    """The codes that every reader of a real input makes of it."""
    uses = list(value.uses())
    if not uses or value.is_graph_output() or any(n.op_type != "QuantizeLinear" or p for n, p in uses):
        return None
    found = [quantizer(n, writing) for n, _ in uses]
    first = found[0]
    if first is None or first[0].axis is not None or any(f is None or not f[0].same(first[0]) for f in found):
        return None
    return first


def _meaning(value: ir.Value) -> Params | None:
    """What the codes of an integer input stand for, as the first DequantizeLinear behind it says."""
    for node, _ in value.uses():
        if node.op_type == "DequantizeLinear":
            params = params_of(node)
            if params is not None and params.axis is None:
                return params
        elif node.op_type in _MOVES and (found := _meaning(node.outputs[0])) is not None:
            return found
    return None


def _output(
    writing: Writing, value: ir.Value, int8_io: bool, channels_last: bool, inputs: list[Port]
) -> Port:
    name, rank = value.name or "output", len(dims_of(value))
    dtype = np.dtype(np.float32 if value.dtype is None else value.dtype.numpy())
    placed = writing.held.get(value)
    last = channels_last and placed is not None and placed.last
    known = writing.constant(value)
    if known is not None and known[1] is not None:
        array, params = known
        real = (array.astype(np.float64) - params.zero) * params.scale
        slot = writing.emitter.constant(name, real.astype(np.float32))
    else:
        coded = placed is not None and placed.params is not None
        real_wanted = dtype.kind == "f" and not (int8_io and coded)
        slot = writing.get(value, real=real_wanted, last=last)
        if coded and dtype.kind != "f" and slot.dtype != dtype:
            assert slot.params is not None
            back = Params(slot.params.scale, slot.params.zero + (128 if dtype == np.uint8 else -128), None)
            slot = writing.requantized(slot, back, dtype, f"{name}_codes")
    if known is not None or any(p.slot.index == slot.index for p in inputs) or slot.index in writing.outputs:
        copy = writing.emitter.tensor(f"{name}_copy", slot.dims, slot.dtype, slot.params)
        if slot.dims.count(None) > 1:
            raise ConversionError(f"the output {name!r} is an input, of more than one dynamic size")
        shape = writing.emitter.constant(
            "shape", np.asarray([-1 if d is None else d for d in slot.dims], np.int32)
        )
        writing.emitter.operator("RESHAPE", [slot, shape], [copy])
        slot = copy
    writing.outputs.add(slot.index)
    if name not in {p.name for p in inputs}:
        writing.emitter.rename(slot, name)
    return Port(name, slot, dtype, tuple(to_last(rank)) if last else None)
