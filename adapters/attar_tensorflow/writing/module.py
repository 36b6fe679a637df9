"""A model as a `tf.Module`: for graphs with branches, loops or interfaces that Keras has not."""

from __future__ import annotations

from collections.abc import Mapping

import onnx_ir as ir
import tensorflow as tf

from attar.graph import const_array
from attar_tensorflow.writing.context import Lowering, Tensor
from attar_tensorflow.writing.evaluate import Evaluator, held, shape_for, type_for
from attar_tensorflow.writing.names import Names
from attar_tensorflow.writing.roles import is_weight

_SMALL = 1024  # elements up to which a constant is written into the graph itself


class Network(tf.Module):
    """The computation of an IR model.

    Calling it with the model's inputs in order gives its output, or a tuple of its outputs. Weights are
    `trainable_variables`, named as in the IR; `signature` takes and gives tensors by name.

    Attributes:
        input_names, output_names: as the IR has them.
    """

    def __init__(self, model: ir.Model, table: Mapping[str, Lowering]) -> None:
        super().__init__(name="network")
        graph = model.graph
        inputs = [v for v in graph.inputs if v.name not in graph.initializers]
        self.input_names = tuple(v.name or "" for v in inputs)
        self.output_names = tuple(v.name or "" for v in graph.outputs)
        names = Names()
        self.parameters: dict[str, tf.Variable] = {}
        variables: dict[ir.Value, tf.Variable] = {}
        for value, trainable in _stored(graph):
            name = names.give(value.name or "weight")
            array = const_array(value)
            variables[value] = tf.Variable(held(array), trainable=trainable, name=name)
            self.parameters[name] = variables[value]
        evaluator = Evaluator(model.opset_imports[""], table, variables)
        keys = Names()
        self._keys = [keys.give(n) for n in self.input_names]
        specs = [
            tf.TensorSpec(shape_for(v), type_for(v), name=k) for v, k in zip(inputs, self._keys, strict=True)
        ]

        def compute(*tensors: Tensor) -> Tensor | tuple[Tensor, ...]:
            found = evaluator.run(graph, tensors)
            found = [tf.identity(t) for t in found]
            return found[0] if len(found) == 1 else tuple(found)

        self._compute = tf.function(compute, input_signature=specs, autograph=False)
        self._compute.get_concrete_function()  # every refusal happens now
        outs = Names()
        results = [outs.give(n) for n in self.output_names]

        def named(*tensors: Tensor) -> dict[str, Tensor]:
            found = self._compute(*tensors)
            return dict(zip(results, found if isinstance(found, tuple) else (found,), strict=True))

        self.signature = tf.function(named, input_signature=specs, autograph=False)

    def __call__(self, *tensors: Tensor) -> Tensor | tuple[Tensor, ...]:
        return self._compute(*tensors)


def _stored(graph: ir.Graph) -> list[tuple[ir.Value, bool]]:
    """Constants that become variables, and whether they are trained; each once."""
    found: dict[ir.Value, bool] = {}
    for node in ir.traversal.RecursiveGraphIterator(graph):
        for index, value in enumerate(node.inputs):
            if value is None or const_array(value) is None:
                continue
            if is_weight(value, node, index):
                found[value] = True
            elif _is_large(value) or (node.op_type == "BatchNormalization" and index in (3, 4)):
                found.setdefault(value, False)
    return list(found.items())


def _is_large(value: ir.Value) -> bool:
    if value.shape is None or value.dtype in (None, ir.DataType.STRING):
        return False
    size = 1
    for dim in value.shape.numpy():
        size *= dim
    return size > _SMALL
