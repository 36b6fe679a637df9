"""A program: the graph of a model with its inputs, outputs and weights, whatever it was read from."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from attar_tensorflow.reading.values import Const, Variable

Array = np.ndarray[Any, np.dtype[Any]]


@dataclass
class Program:
    """What is lifted.

    Attributes:
        graph: the `tf.Graph`.
        inputs: (name, tensor) of what the caller gives.
        outputs: (name, tensor) of what the caller gets.
        captured: (tensor of the graph, what stands for it) of weights and captured constants.
        run: computes the outputs in TensorFlow from the inputs by name.
        what: the name of the source's class or file, for messages and provenance.
        layers: names of layers, after which nodes are named.
        notes: what a reader of a report should know.
    """

    graph: Any
    inputs: Sequence[tuple[str, Any]]
    outputs: Sequence[tuple[str, Any]]
    captured: Sequence[tuple[Any, Any]]
    run: Callable[[Mapping[str, Array]], list[Array]]
    what: str
    layers: frozenset[str] = frozenset()
    notes: list[str] = field(default_factory=list)


def captures(function: Any, names: Mapping[int, str]) -> list[tuple[Any, Any]]:
    """The captured tensors of a concrete function: variables by name, constants as they are.

    Args:
        function: the `ConcreteFunction`.
        names: id of a variable's handle -> the variable's name.
    """
    graph = function.graph
    known = {id(v.handle): v for v in graph.variables if hasattr(v, "handle")}
    out = []
    inner = [t for _, t in graph.captures] if hasattr(graph, "captures") else []
    for outer, tensor in zip(function.captured_inputs, inner, strict=True):
        out.append((tensor, _held(outer, known.get(id(outer)), names)))
    return out


def _held(outer: Any, variable: Any, names: Mapping[int, str]) -> Any:
    if outer.dtype.name != "resource":
        if outer.dtype.name == "variant" or not hasattr(outer, "numpy"):
            return None
        return Const(np.asarray(outer.numpy()))
    name = names.get(id(outer)) or (variable.name.rpartition(":")[0] if variable is not None else None)
    made: list[Const] = []

    def read() -> Const:
        if not made:
            made.append(Const(np.array(_value(outer, variable)), name))
        return made[0]

    return Variable(read)


def _value(handle: Any, variable: Any) -> Any:
    import tensorflow as tf

    if variable is not None:
        return variable.read_value().numpy()
    data = handle._handle_data if hasattr(handle, "_handle_data") else None
    if data is None or not data.is_set:
        from attar.errors import ConversionError

        raise ConversionError("the model captures a resource that is no variable (a table or an iterator)")
    dtype = tf.dtypes.as_dtype(data.shape_and_type[0].dtype)
    return tf.raw_ops.ReadVariableOp(resource=handle, dtype=dtype).numpy()


def flat_outputs(structure: Any, names: Sequence[str] | None = None) -> list[tuple[str, Any]]:
    """(name, tensor) of the tensors in an output structure: keys of dictionaries, `output_0`, ...
    otherwise.
    """
    import tensorflow as tf

    if isinstance(structure, Mapping):
        out = []
        for key in sorted(structure):
            inner = flat_outputs(structure[key])
            out += [(str(key), inner[0][1])] if len(inner) == 1 else [(f"{key}_{n}", t) for n, t in inner]
        return out
    leaves = [t for t in tf.nest.flatten(structure) if t is not None]
    if names is not None and len(names) == len(leaves):
        return list(zip(names, leaves, strict=True))
    if len(leaves) == 1:
        return [("output", leaves[0])]
    return [(f"output_{k}", t) for k, t in enumerate(leaves)]


def unique(names: Sequence[str]) -> list[str]:
    """Each name once: later ones are numbered."""
    seen: set[str] = set()
    out = []
    for name in names:
        fresh, count = name, 0
        while fresh in seen:
            count += 1
            fresh = f"{name}_{count}"
        seen.add(fresh)
        out.append(fresh)
    return out
