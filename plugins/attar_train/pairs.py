"""An activation that is quantized: the nodes that say so, read and written again.

x -> QuantizeLinear -> DequantizeLinear ...
x -> QuantizeLinear -> Clip -> DequantizeLinear ...       codes of fewer bits than their type has
x -> Clip -> QuantizeLinear -> DequantizeLinear ...       the same, cut before
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import onnx_ir as ir

from attar import graph
from attar_train.gains import same_parameters

Array = np.ndarray[Any, np.dtype[Any]]
RANGES = {
    kind: (-(1 << (bits - 1)), (1 << (bits - 1)) - 1) if signed else (0, (1 << bits) - 1)
    for bits in (2, 4, 8, 16)
    for signed, kind in ((True, f"INT{bits}"), (False, f"UINT{bits}"))
}
"""Codes of the integer types that are fake-quantized."""
_KEPT = ("axis", "block_size", "output_dtype", "precision", "saturate")


@dataclass(frozen=True)
class Pair:
    """A QuantizeLinear with what belongs to it.

    Attributes:
        source: what is quantized.
        readers: the DequantizeLinear nodes.
        clip: a Clip of the codes or of the numbers, which leaves fewer codes than the type has.
        on_codes: it is the former.
        kind: element type of the codes.
        codes: the lowest and the highest code.
    """

    source: ir.Value | None
    quantize: ir.Node
    readers: tuple[ir.Node, ...]
    clip: ir.Node | None
    on_codes: bool
    kind: ir.DataType
    codes: tuple[int, int]

    @property
    def outputs(self) -> list[ir.Value]:
        return [r.outputs[0] for r in self.readers]

    def note(self) -> dict[str, Any]:
        """What `write` needs."""
        found = {
            "is": "activation",
            "quantize": part_of(self.quantize),
            "dequantize": part_of(self.readers[0]),
        }
        if self.clip is not None:
            ends = [v.name if v is not None else None for v in (*self.clip.inputs, None, None)[1:3]]
            found["clip"] = {**part_of(self.clip), "ends": ends, "on_codes": self.on_codes}
        return found


def find_pair(quantize: ir.Node) -> Pair | str:
    """The pair that begins with `quantize`, or why it cannot become one operator."""
    codes, scale = quantize.outputs[0], graph.const_array(quantize.inputs[1])
    kind = codes.dtype
    if scale is None or scale.dtype != np.float32:
        return "its scale is computed" if scale is None else f"its scale is {scale.dtype}"
    if kind is None or kind.name not in RANGES:
        return f"there is no fake quantization to {kind.name.lower() if kind else 'an unknown type'}"
    users = [use.node for use in codes.uses()]
    if codes.is_graph_output() or not users:
        return "its codes are an output"
    clip, on_codes, source = None, False, quantize.inputs[0]
    low, high = RANGES[kind.name]
    if len(users) == 1 and users[0].op_type == "Clip" and not users[0].outputs[0].is_graph_output():
        ends = _ends(users[0])
        if ends is not None:
            clip, on_codes = users[0], True
            low, high = max(low, int(ends[0])), min(high, int(ends[1]))
            users = [use.node for use in clip.outputs[0].uses()]
    maker = None if source is None else source.producer()
    if clip is None and source is not None and maker is not None and maker.op_type == "Clip":
        ends = _ends(maker)
        alone = len(source.uses()) == 1 and not source.is_graph_output()
        cut = None if ends is None or not alone else _cut(quantize, ends, (low, high))
        if cut is not None:
            clip, source, (low, high) = maker, maker.inputs[0], cut
    if sum(r.outputs[0].is_graph_output() for r in users) > 1:
        return "it is two outputs at once"
    if any(r.op_type != "DequantizeLinear" or not same_parameters(quantize, r) for r in users):
        return "its codes are read by other operators than one kind of DequantizeLinear"
    return Pair(source, quantize, tuple(users), clip, on_codes, kind, (low, high))


def _ends(clip: ir.Node) -> tuple[float, float] | None:
    """The constant ends of a Clip; infinite where it has none, None where they are computed."""
    found = []
    for place, missing in ((1, -np.inf), (2, np.inf)):
        value = clip.inputs[place] if len(clip.inputs) > place else None
        array = graph.const_array(value)
        if value is not None and (array is None or array.size != 1):
            return None
        found.append(missing if array is None else float(array.reshape(-1)[0]))
    low, high = found
    return None if not np.isfinite(low) or not np.isfinite(high) else (low, high)


def _cut(quantize: ir.Node, ends: tuple[float, float], kind: tuple[int, int]) -> tuple[int, int] | None:
    """The codes at the ends of a Clip of numbers, if it ends on codes and leaves fewer than the type has."""
    scale, zero = graph.const_array(quantize.inputs[1]), _zero(quantize)
    assert scale is not None
    if scale.size != 1 or zero.size != 1:
        return None
    step, offset = float(scale.reshape(-1)[0]), int(zero.reshape(-1)[0])
    places = [end / step + offset for end in ends]
    low, high = (round(p) for p in places)
    exact = all(abs(p - round(p)) < 1e-3 for p in places)
    inside = kind[0] <= low <= offset <= high <= kind[1] and (low, high) != kind
    return (low, high) if exact and inside and low < high else None


def _zero(node: ir.Node) -> Array:
    zero = graph.const_array(node.inputs[2]) if len(node.inputs) > 2 else None
    return np.zeros((), np.int64) if zero is None else zero.astype(np.int64)


def write_pair(
    node: ir.Node,
    note: dict[str, Any],
    parameters: list[ir.Value],
    constant: Callable[[str, Array | ir.TensorProtocol], ir.Value],
) -> ir.Value:
    """Write what stands before the DequantizeLinear, in front of `node`, a FakeQuantize; gives the codes.

    Args:
        note: of `Pair.note`.
        parameters: scale and zero point, as initializers.
        constant: adds an initializer.
    """
    home, source = node.graph, node.inputs[0]
    assert home is not None
    kind = ir.DataType(node.attributes["type"].as_int())
    ends = [node.attributes[end].as_int() for end in ("qmin", "qmax")]
    clip = note.get("clip")

    def put(op: str, inputs: list[ir.Value | None], part: dict[str, Any], of: ir.DataType) -> ir.Value:
        made = ir.node(op, inputs, part["attributes"], name=part["node"])
        made.metadata_props.update(part["notes"])
        out, shape = made.outputs[0], node.outputs[0].shape
        out.name, out.type = part["output"], ir.TensorType(of)
        out.shape = None if shape is None else shape.copy()
        home.insert_before(node, made)
        return out

    if clip and not clip["on_codes"]:
        scale, zero = (graph.const_array(v) for v in (*parameters, None)[:2])
        assert scale is not None
        offset = 0 if zero is None else int(zero.reshape(-1)[0])
        reals = [np.float32(float(scale.reshape(-1)[0]) * (end - offset)) for end in ends]
        bounds = [constant(name, np.asarray(real)) for name, real in zip(clip["ends"], reals, strict=True)]
        source = put("Clip", [source, *bounds], clip, ir.DataType.FLOAT)
    codes = put("QuantizeLinear", [source, *parameters], note["quantize"], kind)
    if clip and clip["on_codes"]:
        stored = [ir.Tensor(np.asarray(end).astype(kind.numpy()), dtype=kind) for end in ends]
        bounds = [constant(name, end) for name, end in zip(clip["ends"], stored, strict=True)]
        codes = put("Clip", [codes, *bounds], clip, kind)
    return codes


def part_of(node: ir.Node) -> dict[str, Any]:
    """What is to be known of a node that goes, to write it again."""
    return {
        "node": node.name,
        "output": node.outputs[0].name,
        "attributes": {k: node.attributes[k].value for k in _KEPT if k in node.attributes},
        "notes": dict(node.metadata_props),
    }
