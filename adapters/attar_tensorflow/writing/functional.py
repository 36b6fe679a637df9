"""IR -> a Keras functional model: real layers where Keras has them, attar's `Operator` for the rest."""

from __future__ import annotations

import operator
from collections.abc import Mapping
from typing import Any

import keras
import numpy as np
import onnx_ir as ir
import tensorflow as tf

from attar.conversion.view import op_key
from attar.graph import const_array
from attar_tensorflow.writing.context import Ctx, Lowering, View
from attar_tensorflow.writing.encode import encode_array, encode_node
from attar_tensorflow.writing.evaluate import held, lowered, shape_for, tensor_of, type_for
from attar_tensorflow.writing.layers import LAYERS
from attar_tensorflow.writing.layers.made import Made
from attar_tensorflow.writing.names import Names, owner
from attar_tensorflow.writing.operator_layer import Operator
from attar_tensorflow.writing.refusals import Refusals
from attar_tensorflow.writing.roles import is_weight

_SMALL = 256  # elements up to which a constant that is no weight stays in the layer's config


def why_not(model: ir.Model) -> str | None:
    """Why `model` cannot be a Keras functional model; None if it can."""
    graph = model.graph
    for node in graph:
        if any(a.type in (ir.AttributeType.GRAPH, ir.AttributeType.GRAPHS) for a in node.attributes.values()):
            return f"the {op_key(node)} node {node.name!r} holds subgraphs"
    inputs = [v for v in graph.inputs if v.name not in graph.initializers]
    if not inputs:
        return "it has no inputs"
    for value in inputs:
        if value.shape is None or not len(value.shape):
            return f"the input {value.name!r} has no batch axis"
        if value.dtype == ir.DataType.STRING:
            return f"the input {value.name!r} holds texts"
    live: set[ir.Value] = set(inputs)
    for node in graph:
        if any(v in live for v in node.inputs):
            live.update(node.outputs)
    for value in graph.outputs:
        if value not in live:
            return f"the output {value.name!r} does not depend on any input"
    return None


class Writer:
    """Makes the layers of one model and calls them in order."""

    def __init__(self, model: ir.Model, table: Mapping[str, Lowering]) -> None:
        self.model, self.table = model, table
        self.opset = model.opset_imports[""]
        self.names = Names()
        self.known: dict[ir.Value, Any] = {}
        self._shared: dict[Any, keras.layers.Layer] = {}

    def write(self) -> keras.Model:
        graph = self.model.graph
        inputs = [v for v in graph.inputs if v.name not in graph.initializers]
        for value in inputs:
            self.known[value] = keras.Input(
                batch_shape=tuple(shape_for(value)),
                dtype=type_for(value).name,
                name=self.names.give(value.name or "input"),
            )
        self._reserved = {v: self.names.give(v.name or "output") for v in graph.outputs}
        given = [self.known[v] for v in inputs]
        refusals = Refusals()
        for node in graph:
            refusals.attempt(node, self._node)
        refusals.check()
        outputs = [self.known[v] for v in graph.outputs]
        model = keras.Model(
            given if len(given) > 1 else given[0],
            outputs if len(outputs) > 1 else outputs[0],
            name=self.names.give(graph.name or "model"),
        )
        model.attar_outputs = tuple(self._reserved[v] for v in graph.outputs)  # for a SavedModel's signature
        return model

    def _node(self, node: ir.Node) -> None:
        view = View(node, opset=self.opset)
        if not any(v in self.known for v in node.inputs):
            self._fold(node, view)
            return
        if op_key(node) == "Identity" and node.outputs[0] not in self._reserved:
            self.known[node.outputs[0]] = self.known[node.inputs[0]]
            return
        make = LAYERS.get(op_key(node))
        made = make(view) if make is not None else None
        if made is None:
            self._operator(node)
            return
        self._layers(node, made)

    def _layers(self, node: ir.Node, made: Made) -> None:
        tensors = [self.known[node.inputs[i]] for i in made.inputs]
        x = tensors if made.many else tensors[0]
        base = self._name(node)
        for before in made.before:
            x = before(self.names.give(f"{base}_{type_word(before)}"))(x)
        key = None
        if made.weights:
            key = (op_key(node), made.key, *(id(node.inputs[i]) for i in made.sources))
        layer = self._shared.get(key) if key else None
        if layer is None:
            layer = made.layer(self._final_name(node, base, made))
            x = layer(x)
            for name, array in made.weights.items():
                operator.attrgetter(name)(layer).assign(array)
            if key:
                self._shared[key] = layer
        else:
            x = layer(x)
        for after in made.after:
            x = after(self.names.give(f"{base}_{type_word(after)}"))(x)
        results = made.results(x) if made.results is not None else [x]
        for value, tensor in zip(node.outputs, results, strict=False):
            if tensor is not None:
                self.known[value] = tensor

    def _final_name(self, node: ir.Node, base: str, made: Made) -> str:
        out = node.outputs[0]
        if out in self._reserved and not made.weights and not made.after:
            return self._reserved[out]
        return self.names.give(base)

    def _name(self, node: ir.Node) -> str:
        """What to call the layer of `node`: as its parameters are called, else as what it gives."""
        for index, value in enumerate(node.inputs):
            if value is not None and value not in self.known and value.name and is_weight(value, node, index):
                return owner(value.name)
        return node.outputs[0].name or node.name or node.op_type

    def _fold(self, node: ir.Node, view: View) -> None:
        """Compute a node of constants now."""
        ctx = Ctx([None if v is None else tensor_of(const_array(v), view) for v in node.inputs])
        outputs = lowered(self.table[view.op], ctx, view)
        for value, tensor in zip(node.outputs, outputs, strict=False):
            array = np.asarray(tensor)
            new = ir.Value(
                name=next((v.name for v in node.inputs if v is not None), value.name),
                type=value.type,
                shape=ir.Shape(array.shape),
                const_value=ir.tensor(array),
            )
            value.replace_all_uses_with(new)

    def _operator(self, node: ir.Node) -> None:
        fed = [i for i, v in enumerate(node.inputs) if v is not None and v in self.known]
        constants = {i: const_array(v) for i, v in enumerate(node.inputs) if v is not None and i not in fed}
        stored = {
            i
            for i, array in constants.items()
            if array.dtype.kind != "O" and (is_weight(node.inputs[i], node, i) or array.size > _SMALL)
        }
        read = self._read(node, fed, constants) if stored else set()
        view = View(node, opset=self.opset)
        wanted = [view.wants(k) for k in range(len(node.outputs))]
        data = encode_node(node, self.opset, wanted)
        weights: dict[int, np.ndarray] = {}
        for index, array in constants.items():
            value, entry = node.inputs[index], data["inputs"][index]
            trainable = is_weight(value, node, index)
            if index in stored - read:
                entry["shape"], entry["dtype"] = list(array.shape), _carried(array)
                entry["weight"], entry["trainable"] = _short(value.name, index), trainable
                weights[index] = held(array)
            else:
                entry["constant"] = encode_array(array)
        out = next((v for v, w in zip(node.outputs, wanted, strict=True) if w), node.outputs[0])
        name = (
            self._reserved[out]
            if out in self._reserved and not weights
            else self.names.give(self._name(node))
        )
        layer = Operator(data, table=self.table, name=name)
        layer.fill(weights)
        tensors = [self.known[node.inputs[i]] for i in fed]
        try:
            result = layer(tensors if len(tensors) > 1 else tensors[0])
        except Exception:
            if layer.refusal is not None:
                raise layer.refusal from None
            raise
        results = result if isinstance(result, list | tuple) else [result]
        kept = [v for v, w in zip(node.outputs, wanted, strict=True) if w]
        for value, tensor in zip(kept, results, strict=False):
            self.known[value] = tensor

    def _read(self, node: ir.Node, fed: list[int], constants: dict[int, np.ndarray]) -> set[int]:
        """The constants that the lowering reads as Python values, found by tracing it once."""
        view = View(node, opset=self.opset)
        with tf.__internal__.FuncGraph("trial").as_default():
            tensors: list[Any] = []
            for index, value in enumerate(node.inputs):
                if value is None:
                    tensors.append(None)
                elif index in fed:
                    known = self.known[value]
                    tensors.append(tf.compat.v1.placeholder(known.dtype, known.shape))
                else:
                    tensors.append(tensor_of(constants[index], view))
            lowered(self.table[view.op], Ctx(tensors), view)
        return view.read


def type_word(factory: Any) -> str:
    return str(getattr(factory, "word", "part"))


def _short(name: str | None, index: int) -> str:
    last = (name or "").replace("/", ".").rsplit(".", 1)[-1]
    return last if last.isidentifier() else f"input_{index}"


def _carried(array: np.ndarray) -> str:
    return ir.DataType.from_numpy(held(array).dtype).name
