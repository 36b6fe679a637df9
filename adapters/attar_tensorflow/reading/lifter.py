"""The walk: every operation that an output needs is lifted by the table, after those that it needs itself."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import onnx_ir as ir

from attar.errors import ConversionError
from attar_tensorflow.reading.emit import Emitter
from attar_tensorflow.reading.fold import fold
from attar_tensorflow.reading.frames import Frames
from attar_tensorflow.reading.partial import as_const, numbers_of, partial
from attar_tensorflow.reading.values import Const, Missing, Tensor
from attar_tensorflow.reading.view import OpView

Lift = Callable[["Lifter", OpView], Any]
Key = tuple[str, int]


class Lifter(Emitter):
    """Lifts graphs into one IR graph. It is the `ctx` of the lifting functions.

    Args:
        graph: receives the nodes at the end, and initializers at once.
        table: operator -> `lift(ctx, view)`, which returns a `Tensor`, a `Const`, or a tuple of them, one for
            each output.
        label: name of an operation -> the name of the nodes that it becomes.
    """

    def __init__(self, graph: ir.Graph, table: Mapping[str, Lift], label: Callable[[str], str]) -> None:
        super().__init__(graph)
        self.table, self._label = table, label
        self.missing: dict[str, list[str]] = {}
        self.refused: list[str] = []
        self._depth = 0
        self._bodies: dict[Any, Body] = {}
        self._definitions: dict[Any, dict[str, Any]] = {}

    def run(self, graph: Any, given: Mapping[Key, Any], wanted: Sequence[Any]) -> list[Any]:
        """Lift what the tensors `wanted` of `graph` need.

        Args:
            given: (operation, output) -> what stands for it: inputs, weights, captured tensors.
        """
        env: dict[Key, Any] = dict(given)
        frames = Frames(graph)
        for operation in _needed(wanted, env, frames):
            frame = frames.ending_in(operation)
            if frame is not None:
                if (operation.name, 0) not in env:
                    self._guarded(operation, lambda f=frame: env.update(f.lift(self, env)))
                    for exit_name in frame.exits:
                        env.setdefault((exit_name, 0), Missing())
                continue
            results = self._lift(operation, [env[_key(t)] for t in operation.inputs])
            for k, result in enumerate(results):
                env[operation.name, k] = result
        return [env[_key(t)] for t in wanted]

    def call(self, body: Body, arguments: Sequence[Any]) -> list[Any]:
        """Lift a function of the graph's library for `arguments`."""
        if self._depth > 60:
            raise ConversionError("functions that call each other more than 60 deep")
        self._depth += 1
        label = self.label
        try:
            given = {_key(t): a for t, a in zip(body.inputs, arguments, strict=True)}
            return self.run(body.graph, given, body.outputs)
        finally:
            self._depth -= 1
            self.label = label

    def function(self, view: OpView, attribute: str) -> Body:
        """The body of the function that an attribute of an operation names."""
        name = view.operation.get_attr(attribute).name
        graph = view.operation.graph
        if hasattr(graph, "captures"):  # a graph that was traced here, whose functions are at hand
            traced = _find_function(graph, name).graph
            return Body(traced, traced.inputs, traced.outputs)
        definitions = self._definitions_of(graph)
        definition = definitions.get(name)
        if definition is None:
            raise view.refuse(f"it calls a function {name!r} that the graph does not hold")
        count = len(definition.signature.input_arg)
        tensors = list(view.operation.inputs)[len(view.operation.inputs) - count :]
        key = (name, tuple(str(t.shape) for t in tensors))
        if key not in self._bodies:
            body = _stored_body(definition, graph, definitions, [t.shape for t in tensors])
            self._bodies[key] = body
            self._definitions[body.graph] = definitions
        return self._bodies[key]

    def _definitions_of(self, graph: Any) -> dict[str, Any]:
        """The functions of a stored graph by name. Asked for one by one they would be put into the eager
        context.
        """
        if graph not in self._definitions:
            library = graph.as_graph_def().library.function
            self._definitions[graph] = {f.signature.name: f for f in library}
        return self._definitions[graph]

    def _lift(self, operation: Any, inputs: list[Any]) -> Sequence[Any]:
        count = len(operation.outputs)
        lift = self.table.get(operation.type)
        if any(isinstance(x, Missing) for x in inputs):
            if lift is None:
                self.missing.setdefault(operation.type, []).append(operation.name)
            return [Missing()] * count
        view = OpView(operation, inputs)
        self.label = self._label(operation.name)
        if inputs and all(isinstance(x, Const) for x in inputs):
            folded = fold(view)
            if folded is not None:
                return folded
        numbers = partial(view) if count == 1 else None
        if numbers is not None and (known := as_const(numbers, view)) is not None:
            return [known]
        if lift is None:
            self.missing.setdefault(operation.type, []).append(operation.name)
            return [Missing()] * count
        results = self._guarded(operation, lambda: lift(self, view))
        if results is None:
            return [Missing()] * count
        results = results if isinstance(results, tuple | list) else (results,)
        if count and len(results) != count:
            raise ConversionError(
                f"the lifting of {operation.type} gave {len(results)} results for {count} outputs"
            )
        for k in range(count):
            if isinstance(results[k], Tensor):
                _complete(results[k], view, k, numbers)
        return results

    def _guarded(self, operation: Any, work: Callable[[], Any]) -> Any:
        """The result of `work`, or None after noting why there is none: all reasons are told at once."""
        before = len(self.scopes)
        try:
            return work()
        except ConversionError as error:
            if error.missing or len(self.refused) > 50:
                raise
            self.refused.append(error.message)
        except (RecursionError, MemoryError):
            raise
        except Exception as error:  # a case that the lifting was not written for, never to pass unseen
            what = f"{type(error).__name__}: {str(error)[:200]}"
            self.refused.append(f"{operation.type} {operation.name!r} cannot be read: {what}")
        del self.scopes[before:]
        del self._moved[before:]
        return None

    def weight_name(self, operation: str) -> str:
        """What to call the constant that an operation of the graph holds."""
        return self._label(operation)

    def check(self, what: str) -> None:
        """Raise one error that lists everything that could not be lifted.

        Raises:
            ConversionError: there was something.
        """
        if not (self.missing or self.refused):
            return
        message = f"{what} cannot be read into the IR"
        if self.refused:
            message += "".join(f"\n  {reason}" for reason in dict.fromkeys(self.refused))
        hint = None
        if self.missing:
            message += "\n  operators that attar does not know:"
            hint = "a plugin can teach them: attar_liftings('tensorflow'), see docs/tensorflow.md"
        raise ConversionError(message, missing=self.missing, hint=hint)


@dataclass(frozen=True)
class Body:
    """The graph of a function, and which of its tensors are the arguments and results."""

    graph: Any
    inputs: Sequence[Any]
    outputs: Sequence[Any]


def _stored_body(definition: Any, around: Any, definitions: Mapping[str, Any], shapes: list[Any]) -> Body:
    """A function of the stored graph `around` as a graph of its own. The eager context never sees either.

    Args:
        definitions: the functions that it may call in turn, by name.
        shapes: of the arguments.
    """
    import tensorflow as tf
    from tensorflow.python.framework import function_def_to_graph

    signature = definition.signature
    opaque = (tf.resource.as_datatype_enum, tf.variant.as_datatype_enum)
    shapes = [None if a.type in opaque else s for a, s in zip(signature.input_arg, shapes, strict=True)]
    with around.as_default():
        graph_def, flat = function_def_to_graph.function_def_to_graph_def(definition, shapes)
    graph_def.library.function.extend(definitions.values())
    graph = tf.Graph()
    with graph.as_default():
        tf.import_graph_def(graph_def, name="")
    for node in graph_def.node:
        known = node.attr["_output_shapes"].list.shape if "_output_shapes" in node.attr else []
        outputs = graph.get_operation_by_name(node.name).outputs
        for tensor, shape in zip(outputs, known, strict=False):
            tensor.set_shape(shape)
    return Body(
        graph,
        [graph.get_tensor_by_name(flat[a.name]) for a in signature.input_arg],
        [graph.get_tensor_by_name(flat[definition.ret[a.name]]) for a in signature.output_arg],
    )


def _find_function(graph: Any, name: str) -> Any:
    """The function `name` of the library of `graph` or of a graph around it.

    Raises:
        ConversionError: there is none.
    """
    while graph is not None:
        if graph._is_function(name):
            found = graph._get_function(name)
            if found is not None:
                return found
        graph = getattr(graph, "outer_graph", None)
    from tensorflow.python.eager import context

    found = context.context().find_function(name) if hasattr(context.context(), "find_function") else None
    if found is None:
        raise ConversionError(f"the graph calls a function {name!r} that it does not hold")
    return found


def _complete(result: Tensor, view: OpView, k: int, numbers: Any) -> None:
    """Add what TensorFlow knows of the output. A tensor that came in as an input stays what it is."""
    if any(result is x for x in view.inputs):
        return
    shape, dtype = view.out_shape(k), view.out_dtype(k)
    if shape is not None and result.order is not None and len(shape) != len(result.order):
        raise ConversionError(f"{view.op} {view.name!r}: the rank of the result is wrong")
    if shape is not None:
        if result.shape is None or len(result.shape) != len(shape):
            result.shape = shape
        else:
            result.shape = tuple(b if a is None else a for a, b in zip(shape, result.shape, strict=True))
    if dtype.kind != "O":
        result.dtype = np.dtype(dtype)
    if not result.op:
        result.op, result.args = view.op, tuple(view.inputs)
    if numbers is not None and result.numbers is None:
        result.numbers = numbers


def _key(tensor: Any) -> Key:
    return tensor.op.name, tensor.value_index


def _needed(wanted: Sequence[Any], env: Mapping[Key, Any], frames: Frames) -> list[Any]:
    """The operations behind `wanted`, each after those that it needs."""
    order: list[Any] = []
    state: dict[str, int] = {}
    stack = [(t.op, False) for t in reversed(list(wanted)) if _key(t) not in env]
    while stack:
        operation, leaving = stack.pop()
        if leaving:
            state[operation.name] = 2
            order.append(operation)
            continue
        if state.get(operation.name):
            if state[operation.name] == 1:
                raise ConversionError(f"the graph runs in a circle through {operation.name!r}")
            continue
        state[operation.name] = 1
        stack.append((operation, True))
        for tensor in reversed(list(frames.inputs_of(operation))):
            if _key(tensor) not in env and state.get(tensor.op.name) != 2:
                stack.append((tensor.op, False))
    return order


__all__ = ["Body", "Lift", "Lifter", "numbers_of"]
