"""QuantizeLinear and DequantizeLinear become FakeQuantize for training, and come back.

    x -> Q -> DQ                    <->   x -> FakeQuantize(scale, zero_point, gain)
    codes -> DQ (a weight)          <->   latent float weight -> FakeQuantize(scale, zero_point, gain)
    int32 codes -> DQ (a bias)      <->   a float bias

What the way back needs beside the numbers (names, attributes, types) is noted on the new node or value as
JSON, so that a constrained model can be saved, trained elsewhere and released later.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import onnx_ir as ir

from attar import graph, invariants
from attar.graph.learned import mark_learned
from attar.ops import rule_of
from attar.registry import Registry
from attar_train.gains import attribute, learn_scales
from attar_train.operators import DOMAIN, FAKE_BIAS, FAKE_QUANTIZE, NOTE
from attar_train.pairs import RANGES, find_pair, part_of
from attar_train.release import partners_of, replace_node

Array = np.ndarray[Any, np.dtype[Any]]
_THROUGH = ("Transpose", "Reshape", "Identity", "Squeeze", "Unsqueeze", "Cast")


@dataclass
class Rewriter:
    """Rewrites the quantized parts of one model in place.

    Args:
        model: a copy that may be changed.
        method: gradients of scales, see `attar_train.fake_quantize`.
        offsets: learn zero points of activations, too.
        latent: float weights by name: where the float model's numbers are known, training starts from them,
            each moved to within half a step of its code, so that nothing is rounded otherwise at the start.
        hold: puts what a weight holds (zeros, few values) between its latent numbers and its reader.
    """

    model: ir.Model
    registry: Registry
    method: str
    offsets: bool
    latent: Mapping[str, Array]
    hold: Callable[[ir.Graph, str, ir.Value, Array, invariants.Held], ir.Value]
    taken: set[str]
    skipped: list[tuple[str, str]] = field(default_factory=list)
    weights: int = 0
    activations: int = 0
    biases: int = 0

    def __post_init__(self) -> None:
        self._following: list[tuple[ir.Node, ir.Node]] = []
        self._latents: dict[ir.Value, tuple[ir.Value, ir.Value, ir.Value]] = {}

    def rewrite(self) -> None:
        nodes = [n for n in graph.all_nodes(self.model) if n.domain == ""]
        for node in nodes:
            if node.op_type == "QuantizeLinear":
                self._pair(node)
        constants = [
            n for n in nodes if n.op_type == "DequantizeLinear" and graph.const_array(n.inputs[0]) is not None
        ]
        # Biases last: their scale follows those of their layer's input and weight.
        for role in ("weight", "bias"):
            for node in constants:
                if node.graph is not None and _role(node.outputs[0], self.registry) == role:
                    self._constant(node, role)
        learned = self.method == "ste" or learn_scales(
            self.model, self.registry, offsets=self.offsets, taken=self.taken
        )
        if not learned:
            self.skipped.append(("scales", "they stay as they are: all are powers of two"))
        for node, layer in self._following:
            x, weight = partners_of(layer)
            gains = [n.inputs[3] for n in (x, weight) if len(n.inputs) > 3]
            inputs = [node.inputs[0], x.inputs[1], weight.inputs[1], *gains]
            node.resize_inputs(len(inputs))
            for place, value in enumerate(inputs):
                node.replace_input_with(place, value)

    # -- activations -----------------------------------------------------------------------------------------

    def _pair(self, quantize: ir.Node) -> None:
        if graph.const_array(quantize.inputs[0]) is not None:
            return
        pair = find_pair(quantize)
        if isinstance(pair, str):
            self.skipped.append((quantize.name or "?", f"no gradient passes it: {pair}"))
            return
        outputs, home = pair.outputs, quantize.graph
        assert home is not None
        # The caller knows an output by its name.
        named = next((v.name for v in outputs if v.is_graph_output()), outputs[0].name)
        node = self._node(quantize, pair.source, pair.kind, pair.codes, pair.note(), False)
        home.insert_before(quantize, node)
        for output in outputs:
            _stand_in(node.outputs[0], output)
        for gone in (*pair.readers, pair.clip if pair.on_codes else None, quantize, pair.clip):
            if gone is not None and gone.graph is not None:
                gone.graph.remove(gone, safe=True)
        node.outputs[0].name = named
        self.activations += 1

    # -- weights and biases ----------------------------------------------------------------------------------

    def _constant(self, node: ir.Node, role: str) -> None:
        codes, scale = node.inputs[0], graph.const_array(node.inputs[1])
        kind = None if codes is None else codes.dtype
        if codes is None or kind is None or node.outputs[0].is_graph_output():
            return
        if scale is None or scale.dtype != np.float32:
            self.skipped.append((codes.name or "?", "not trained: its scale is no float32 constant"))
        elif role == "bias" and kind == ir.DataType.INT32:
            self._bias(node)
        elif role == "weight" and kind.name in RANGES:
            self._weight(node, kind)
        else:
            self.skipped.append((codes.name or "?", f"not trained: a {role} of type {kind.name.lower()}"))

    def _weight(self, node: ir.Node, kind: ir.DataType) -> None:
        codes = node.inputs[0]
        assert codes is not None
        array = graph.const_array(codes)
        assert array is not None
        parameters = tuple(v for v in (*node.inputs[1:], None) if v is not None)
        known = self._latents.get(codes)
        if known is None:
            numbers = invariants.dequantized(node, array)
            value, source = self._latent(node, codes, numbers)
            known = self._latents[codes] = (value, source, parameters[0])
        elif known[2] is not parameters[0]:
            self.skipped.append((codes.name or "?", "not trained: read with two scales"))
            return
        value = known[1]
        note = {
            "is": "weight",
            "codes": codes.name,
            "holds": dict(codes.metadata_props),
            "dequantize": part_of(node),
        }
        made = self._node(node, value, kind, _used(node, array, kind), note, True)
        replace_node(node, made)
        self.weights += 1

    def _latent(self, node: ir.Node, codes: ir.Value, numbers: Array) -> tuple[ir.Value, ir.Value]:
        """The trained numbers, and what the quantizer reads: they, or what is held of them."""
        owner = codes.graph
        assert owner is not None
        name = (codes.name or "weight").removesuffix("_quantized")
        start = _near(self.latent.get(name), numbers, np.abs(_along(node, 1, numbers.shape)))
        value = graph.add_initializer(owner, name, start.astype(np.float32), self.taken)
        mark_learned(value)
        held = invariants.held(codes)
        source = self.hold(owner, str(codes.name), value, numbers, held)
        return value, source

    def _bias(self, node: ir.Node) -> None:
        codes, output = node.inputs[0], node.outputs[0]
        assert codes is not None
        assert codes.graph is not None
        uses = list(output.uses())
        array = graph.const_array(codes)
        zero = graph.const_array(node.inputs[2]) if len(node.inputs) > 2 else None
        if len(uses) != 1 or len(codes.uses()) != 1 or (zero is not None and zero.any()):
            self.skipped.append(
                (codes.name or "?", "not trained: a bias of several operators, or off centre")
            )
            return
        assert array is not None
        name = (codes.name or "bias").removesuffix("_quantized")
        numbers = invariants.dequantized(node, array).astype(np.float32)
        value = graph.add_initializer(codes.graph, name, numbers, self.taken)
        mark_learned(value)
        scale, user = graph.const_array(node.inputs[1]), uses[0].node
        assert scale is not None
        made = ir.node(FAKE_BIAS, [value, node.inputs[1]], domain=DOMAIN, name=node.name)
        note = {
            "is": "bias",
            "codes": codes.name,
            "scale": node.inputs[1].name,  # type: ignore[union-attr]
            "follows": self._is_product(user, scale),
            "dequantize": part_of(node),
        }
        made.metadata_props[NOTE] = json.dumps(note)
        mark_learned(node.inputs[1], False)  # type: ignore[arg-type]
        replace_node(node, made)
        if note["follows"]:
            self._following.append((made, user))
        self.biases += 1

    @staticmethod
    def _is_product(layer: ir.Node, scale: Array) -> bool:
        """Whether the scale of a bias is that of the input times that of the weight, as integer kernels have
        it."""
        partners = partners_of(layer)
        if len(partners) != 2:
            return False
        x, weight = (graph.const_array(n.inputs[1]) for n in partners)
        assert x is not None
        assert weight is not None
        return x.size == 1 and weight.ndim < 2 and bool(np.allclose(x * weight, scale, rtol=1e-4, atol=0))

    # -- parts -----------------------------------------------------------------------------------------------

    def _node(  # noqa: PLR0917
        self, like: ir.Node, x: ir.Value | None, kind: ir.DataType, codes: tuple[int, int],
        note: dict[str, Any], weight: bool,
    ) -> ir.Node:  # fmt: skip
        attributes: dict[str, Any] = {"qmin": codes[0], "qmax": codes[1], "type": int(kind)}
        for key in ("axis", "block_size"):
            if key in like.attributes:
                attributes[key] = like.attributes[key].as_int()
        attributes["gradient"] = self.method
        if self.method == "pact" and (weight or not _is_positive(like, codes[0])):
            attributes["gradient"] = "lsq"
        if weight:
            attributes["weight"] = 1
        node = ir.node(FAKE_QUANTIZE, [x, *like.inputs[1:3]], attributes, domain=DOMAIN, name=f"{like.name}")
        node.metadata_props[NOTE] = json.dumps(note)
        for value in like.inputs[1:3]:
            if value is not None:
                mark_learned(value, False)
        return node


def _is_positive(node: ir.Node, lowest: int) -> bool:
    """Whether the lowest code of a quantizer stands for zero: then it clips at its upper end alone."""
    zero = graph.const_array(node.inputs[2]) if len(node.inputs) > 2 else None
    return lowest == 0 if zero is None else bool((zero.astype(np.int64) == lowest).all())


def _used(node: ir.Node, codes: Array, kind: ir.DataType) -> tuple[int, int]:
    """The codes that a weight's quantizer used: those of the narrowest type that holds all that occur."""
    low, high = RANGES[kind.name]
    if not codes.size:
        return low, high
    least, most = int(codes.min()), int(codes.max())
    zero = graph.const_array(node.inputs[2]) if len(node.inputs) > 2 else None
    centred = zero is None or not zero.astype(np.int64).any()
    if low == 0:
        return low, min(high, (1 << max(2, most.bit_length())) - 1)
    bits = max(2, most.bit_length() + 1, (-least - 1).bit_length() + 1)
    low, high = max(low, -(1 << (bits - 1))), min(high, (1 << (bits - 1)) - 1)
    return (low + 1 if centred and least > low else low), high


def _stand_in(new: ir.Value, old: ir.Value) -> None:
    """Let every reader of `old` read `new`, and take its type and shape; its name when it is free."""
    new.type = ir.TensorType(ir.DataType.FLOAT)
    new.shape = None if old.shape is None else old.shape.copy()
    for user, place in list(old.uses()):
        user.replace_input_with(place, new)
    if old.is_graph_output():
        owner = old.graph
        assert owner is not None
        for place, output in enumerate(owner.outputs):
            if output is old:
                owner.outputs[place] = new


def _role(value: ir.Value, registry: Registry) -> str:
    """ "weight" or "bias" if every reader takes the value for one, else nothing."""
    roles = set()
    for use in value.uses():
        rule = rule_of(use.node, registry)
        if use.node.op_type in _THROUGH and use.idx == 0:
            roles.add(_role(use.node.outputs[0], registry))
        elif rule is not None and use.idx in rule.weights:
            roles.add("weight")
        elif rule is not None and use.idx == rule.bias:
            roles.add("bias")
        else:
            roles.add("")
    return roles.pop() if len(roles) == 1 else ""


def _near(start: Array | None, numbers: Array, step: Array) -> Array:
    """The float weights that were quantized, each within half a step of its code; the codes' own numbers
    where they are not known.

    Beyond half a step rounding would give another code than the quantizer chose, perhaps for the sake of
    other weights. Weights that lie far off most codes are others of the same name, as before a fold; they
    would end where rounding tips over, and every code would be in doubt.
    """
    if start is None or start.shape != numbers.shape or not np.isfinite(start).all():
        return numbers
    away = np.abs(start - numbers) / np.maximum(step, np.finfo(np.float32).tiny)
    if not away.size or np.median(away) > 0.5:
        return numbers
    return np.clip(start, numbers - 0.49 * step, numbers + 0.49 * step)


def _along(node: ir.Node, place: int, shape: tuple[int, ...]) -> Array:
    """A scale of a DequantizeLinear against the array that it scales."""
    array = graph.const_array(node.inputs[place])
    assert array is not None
    block, axis = attribute(node, "block_size"), attribute(node, "axis")
    if block and array.ndim == len(shape):
        return np.repeat(array, block, axis=axis).take(range(shape[axis]), axis=axis)
    if array.ndim == 1 and shape:
        return array.reshape([-1 if a == axis % len(shape) else 1 for a in range(len(shape))])
    return array
