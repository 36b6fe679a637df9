"""From a trained constrained model back to plain ONNX: codes, scales, zeros and shared numbers.

Everything is computed in float32 in the order of `attar_train.fake_quantize`, so that the codes stand for
exactly the numbers that the module multiplied with.
"""

from __future__ import annotations

import json
from typing import Any

import numpy as np
import onnx_ir as ir

from attar import graph
from attar.errors import InputError
from attar.graph.learned import unmark_learned
from attar_train import held
from attar_train.operators import (
    DOMAIN,
    FAKE_BIAS,
    FAKE_QUANTIZE,
    GAINS,
    MASKED,
    MOST_BIAS,
    NOTE,
    SHARED,
)
from attar_train.pairs import write_pair

Array = np.ndarray[Any, np.dtype[Any]]


def release(model: ir.Model) -> ir.Model:
    """A copy of a constrained model, trained or not, without operators of training.

    Raises:
        InputError: it was changed so that a constraint has lost its note or its numbers.
    """
    copy = graph.clone(model)
    _Releaser(copy).run()
    for owner in copy.graphs():
        for value in owner.initializers.values():
            unmark_learned(value)
    graph.tidy(copy)
    return copy


class _Releaser:
    def __init__(self, model: ir.Model) -> None:
        self._model = model
        self._taken = graph.taken_names(model.graph)
        self._nodes = [n for n in graph.all_nodes(model) if n.domain == DOMAIN]
        self._scales: dict[ir.Node, Array] = {}

    def run(self) -> None:
        quantizers = [n for n in self._nodes if n.op_type == FAKE_QUANTIZE]
        self._scales = {n: _scale(n) for n in quantizers}
        biases = [n for n in self._nodes if n.op_type == FAKE_BIAS]
        for node in biases:
            self._make_room(node)
        for node in biases:
            self._bias(node)
        parameters = self._parameters(quantizers)
        codes: dict[str, ir.Value] = {}
        for node in quantizers:
            note = _note(node.metadata_props, node.name)
            if note["is"] == "weight":
                self._weight(node, note, parameters[node], codes)
            else:
                self._activation(node, note, parameters[node])
        for node in reversed(self._nodes):
            if node.op_type in (MASKED, SHARED):
                self._held(node)

    # -- scales and zero points ------------------------------------------------------------------------------

    def _parameters(self, quantizers: list[ir.Node]) -> dict[ir.Node, list[ir.Value]]:
        """Scale and, where there is one, zero point of each quantizer, as initializers with what was learned.

        An initializer keeps its name where all its readers learned the same.
        """
        out: dict[ir.Node, list[ir.Value]] = {}
        known: dict[tuple[Any, ...], ir.Value] = {}
        readers: dict[ir.Value, set[ir.Node]] = {}
        for node in quantizers:
            for value in node.inputs[1:3]:
                if value is not None:
                    readers.setdefault(value, set()).add(node)
        zeros = {node: _zero(node) for node in quantizers}
        started = {v: graph.const_array(v) for v in readers}
        for node in quantizers:
            out[node] = []
            for value, array in zip(node.inputs[1:3], (self._scales[node], zeros[node]), strict=False):
                if value is None or array is None:
                    continue
                old = started[value]
                assert old is not None
                key = (value, array.tobytes())
                if key not in known:
                    same = array.tobytes() == old.tobytes()
                    own = {u.node for u in value.uses()} == readers[value] and not any(
                        k[0] is value for k in known
                    )
                    if (
                        not same
                        and own
                        and all(
                            self._of(n, value, zeros).tobytes() == array.tobytes() for n in readers[value]
                        )
                    ):
                        graph.replace_weight(value, array)
                        known[key] = value
                    elif same:
                        known[key] = value
                    else:
                        owner = value.graph
                        assert owner is not None
                        known[key] = graph.add_initializer(owner, value.name or "scale", array, self._taken)
                out[node].append(known[key])
        return out

    def _of(self, node: ir.Node, value: ir.Value, zeros: dict[ir.Node, Array | None]) -> Array:
        found = self._scales[node] if node.inputs[1] is value else zeros[node]
        assert found is not None
        return found

    # -- weights and activations -----------------------------------------------------------------------------

    def _weight(
        self, node: ir.Node, note: dict[str, Any], parameters: list[ir.Value], codes: dict[str, ir.Value]
    ) -> None:
        source = node.inputs[0]
        numbers = held.released(source)
        if numbers is None or source is None:
            raise InputError(f"the weight of {node.name!r} is computed, so it cannot be stored as codes")
        name = str(note["codes"])
        if name not in codes:
            owner = _owner(source)
            made = _codes(node, numbers.astype(np.float32), self._scales[node], _zero(node))
            tensor = _tensor(made, ir.DataType(node.attributes["type"].as_int()), name)
            codes[name] = graph.add_initializer(owner, name, tensor, self._taken)
            codes[name].metadata_props.update(note.get("holds", {}))
        self._write(node, note["dequantize"], [codes[name], *parameters])

    def _activation(self, node: ir.Node, note: dict[str, Any], parameters: list[ir.Value]) -> None:
        owner = _owner(parameters[0])

        def constant(name: str, array: Array | ir.TensorProtocol) -> ir.Value:
            return graph.add_initializer(owner, name, array, self._taken)

        self._write(node, note["dequantize"], [write_pair(node, note, parameters, constant), *parameters])

    def _write(self, node: ir.Node, part: dict[str, Any], inputs: list[ir.Value]) -> None:
        """A DequantizeLinear in the place of a FakeQuantize."""
        made = ir.node("DequantizeLinear", inputs, part["attributes"], name=part["node"])
        made.metadata_props.update(part["notes"])
        replace_node(node, made)

    def _held(self, node: ir.Node) -> None:
        """A float weight that held something: its numbers as the readers saw them."""
        out, home = node.outputs[0], node.graph
        assert home is not None
        if out.uses() or out.is_graph_output():
            numbers = held.released(out)
            if numbers is None:
                raise InputError(f"what {node.name!r} holds is computed, so it cannot be stored")
            name = str(_note(node.metadata_props, node.name)["name"])
            value = home.initializers.get(name)
            if value is None:
                value = graph.add_initializer(home, name, numbers)
                value.metadata_props.update(out.metadata_props)
            else:
                graph.replace_weight(value, numbers)
            for user, place in list(out.uses()):
                user.replace_input_with(place, value)
        home.remove(node, safe=True)

    # -- biases ----------------------------------------------------------------------------------------------

    def _partners(self, bias: ir.Node) -> list[ir.Node]:
        """The quantizers of the input and of the weight beside a bias whose scale follows theirs."""
        uses = list(bias.outputs[0].uses())
        follows = uses and _note(bias.metadata_props, bias.name)["follows"]
        return partners_of(uses[0].node) if follows else []

    def _make_room(self, bias: ir.Node) -> None:
        """Raise the scale of a weight where the bias beside it would not fit into 32 bits.

        It happens where a channel is all but silent and only its bias speaks.
        """
        array, partners = graph.const_array(bias.inputs[0]), self._partners(bias)
        if len(partners) != 2 or array is None:
            return
        x, weight = (self._scales[n] for n in partners)
        reach = np.abs(array.astype(np.float64)).reshape(-1)
        least = 2 * (reach if weight.ndim == 1 else reach.max(initial=0.0)) / (MOST_BIAS * float(x))
        if (2 * weight < least).any():
            self._scales[partners[1]] = np.maximum(weight, least).astype(np.float32)

    def _bias(self, node: ir.Node) -> None:
        value, note, partners = node.inputs[0], _note(node.metadata_props, node.name), self._partners(node)
        array, scale = graph.const_array(value), graph.const_array(node.inputs[1])
        if value is None or array is None or scale is None:
            raise InputError(f"the bias of {node.name!r} is computed, so it cannot be stored as codes")
        if len(partners) == 2:
            x, weight = (self._scales[n] for n in partners)
            scale = np.asarray(x * weight)
        owner = _owner(value)
        steps = np.maximum(scale, np.finfo(np.float32).tiny)
        stored = np.clip(np.rint(array / steps), -MOST_BIAS, MOST_BIAS).astype(np.int32)
        inputs = [graph.add_initializer(owner, str(note["codes"]), stored, self._taken)]
        if len(partners) == 2:
            inputs.append(graph.add_initializer(owner, str(note["scale"]), scale, self._taken))
        else:
            inputs += [v for v in node.inputs[1:2] if v is not None]
        self._write(node, note["dequantize"], inputs)


def partners_of(node: ir.Node) -> list[ir.Node]:
    """The quantizers of the input and of the weight of a layer; empty if one is not directly before it."""
    found = [None if v is None else v.producer() for v in node.inputs[:2]]
    return [n for n in found if n is not None and n.op_type == FAKE_QUANTIZE] if None not in found else []


def replace_node(node: ir.Node, made: ir.Node) -> None:
    """Put `made`, of one output, in the place of `node`; its output takes over name, type, shape and
    readers."""
    old, new, home = node.outputs[0], made.outputs[0], node.graph
    assert home is not None
    new.name, new.type = old.name, old.type
    new.shape = None if old.shape is None else old.shape.copy()
    home.insert_before(node, made)
    for user, place in list(old.uses()):
        user.replace_input_with(place, new)
    for place, output in enumerate(home.outputs):
        if output is old:
            home.outputs[place] = new
    home.remove(node, safe=True)


def _scale(node: ir.Node) -> Array:
    scale, gain = graph.const_array(node.inputs[1]), None
    if len(node.inputs) > 3:
        gain = graph.const_array(node.inputs[3])
        if gain is None:
            raise InputError(f"the gain of {node.name!r} is computed, so its scale cannot be stored")
    if scale is None:
        raise InputError(f"the scale of {node.name!r} is computed, so it cannot be stored")
    if gain is None:
        return scale
    return np.asarray(scale * np.clip(gain.astype(np.float32), *np.float32(GAINS)))


def _zero(node: ir.Node) -> Array | None:
    zero = graph.const_array(node.inputs[2]) if len(node.inputs) > 2 else None
    shift = graph.const_array(node.inputs[4]) if len(node.inputs) > 4 else None
    if zero is None or shift is None:
        return zero
    low, high = node.attributes["qmin"].as_int(), node.attributes["qmax"].as_int()
    moved = zero.astype(np.float32) + np.float32(high - low) * np.clip(shift.astype(np.float32), -1.0, 1.0)
    return np.asarray(np.rint(np.clip(moved, low, high)).astype(zero.dtype))


def _codes(node: ir.Node, numbers: Array, scale: Array, zero: Array | None) -> Array:
    """clip(round(x / s) + z) of numbers, float32."""
    from attar_train.gains import attribute

    axis, block = attribute(node, "axis"), attribute(node, "block_size")

    def along(array: Array) -> Array:
        if block and array.ndim == numbers.ndim:
            return np.repeat(array, block, axis=axis).take(range(numbers.shape[axis]), axis=axis)
        if array.ndim == 1 and numbers.ndim:
            at = axis % numbers.ndim
            return array.reshape([-1 if a == at else 1 for a in range(numbers.ndim)])
        return array

    offset = 0 if zero is None else along(zero.astype(np.int64))
    codes = np.rint(numbers / along(scale)) + offset
    low, high = node.attributes["qmin"].as_int(), node.attributes["qmax"].as_int()
    return np.asarray(np.clip(codes, low, high).astype(np.int64))


def _tensor(codes: Array, kind: ir.DataType, name: str) -> ir.Tensor:
    return ir.Tensor(codes.astype(kind.numpy()), dtype=kind, name=name)


def _owner(value: ir.Value) -> ir.Graph:
    if value.graph is not None:
        return value.graph
    node = value.producer()
    assert node is not None
    assert node.graph is not None
    return node.graph


def _note(metadata: Any, name: str | None) -> dict[str, Any]:
    try:
        found = json.loads(metadata[NOTE])
        return dict(found)
    except (KeyError, ValueError, TypeError):
        raise InputError(
            f"{name!r} has lost the note that says what it stands for",
            hint="train the constrained model as it is; do not rewrite its graph",
        ) from None
