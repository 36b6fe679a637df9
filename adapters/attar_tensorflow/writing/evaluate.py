"""Running a graph of the IR by its lowerings, node by node, on tensors that TensorFlow traces."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import onnx_ir as ir
import tensorflow as tf

from attar.errors import AttarError, ConversionError
from attar.graph import const_array
from attar_tensorflow.writing.context import Ctx, Lowering, Tensor, View
from attar_tensorflow.writing.refusals import Refusals

_BYTES = {"int4": np.int8, "int2": np.int8, "uint4": np.uint8, "uint2": np.uint8}
_NUMBERS = ("int8", "uint8", "int16", "uint16", "int32", "uint32", "int64", "uint64")
_NATIVE = frozenset((*_NUMBERS, "bool", "float16", "float32", "float64", "bfloat16", "object", "str"))


def held(array: np.ndarray[Any, Any]) -> np.ndarray[Any, Any]:
    """`array` in a type that TensorFlow computes with: four-bit integers travel in bytes."""
    return array.astype(_BYTES[array.dtype.name]) if array.dtype.name in _BYTES else array


def tensor_of(array: np.ndarray[Any, Any], view: View) -> Tensor:
    """A constant."""
    if array.dtype.name not in _NATIVE and array.dtype.name not in _BYTES and array.dtype.kind not in "US":
        raise view.refuse(f"TensorFlow does not compute with {array.dtype}")
    return tf.constant(held(array))


def shape_for(value: ir.Value) -> list[int | None] | None:
    """The static shape of `value`, None for dimensions that vary."""
    if value.shape is None:
        return None
    return [d if isinstance(d, int) else None for d in value.shape]


def type_for(value: ir.Value) -> tf.DType:
    """The TensorFlow type of `value`.

    Raises:
        ConversionError: there is none.
    """
    if value.dtype is None or not isinstance(value.type, ir.TensorType):
        raise ConversionError(f"TensorFlow cannot say {value.name!r}: it is no tensor of a known type")
    if value.dtype == ir.DataType.STRING:
        return tf.string
    dtype = np.dtype(value.dtype.numpy())
    if dtype.name not in _NATIVE and dtype.name not in _BYTES:
        raise ConversionError(f"TensorFlow cannot say {value.name!r}: it has no computations on {dtype}")
    return tf.as_dtype(_BYTES.get(dtype.name, dtype))


def lowered(lower: Lowering, ctx: Ctx, view: View) -> tuple[Tensor, ...]:
    """The outputs of one node, with the shapes that the IR knows; whatever fails is a refusal."""
    try:
        result = lower(ctx, view)
    except AttarError:
        raise
    except Exception as error:  # TensorFlow itself declines: a kernel, a rank or a type that it lacks
        text = (str(error).strip() or type(error).__name__).splitlines()[0]
        raise view.refuse(f"{text[:200]}") from error
    outputs = result if isinstance(result, tuple | list) else (result,)
    for tensor, value in zip(outputs, view.outputs, strict=False):
        shape = shape_for(value)
        if shape is not None:
            try:
                tensor.set_shape(shape)
            except ValueError as error:
                raise view.refuse(f"it gives {tensor.shape} where the model says {shape}") from error
    return tuple(outputs)


class Evaluator:
    """Runs graphs of one model.

    Args:
        opset: version of the default domain.
        table: the lowerings.
        variables: constants that are variables.
    """

    def __init__(
        self, opset: int, table: Mapping[str, Lowering], variables: Mapping[ir.Value, tf.Variable]
    ) -> None:
        self.opset, self.table, self.variables = opset, table, variables

    def run(
        self, graph: ir.Graph, inputs: Sequence[Tensor], outer: Mapping[ir.Value, Tensor] | None = None
    ) -> list[Tensor]:
        """Outputs of `graph` for `inputs`; `outer` holds what surrounding graphs computed."""
        known: dict[ir.Value, Tensor] = dict(outer or {})
        known.update(zip(graph.inputs, inputs, strict=True))

        def value_of(value: ir.Value | None, view: View) -> Tensor | None:
            if value is None:
                return None
            if value in known:
                return known[value]
            if value in self.variables:
                return tf.convert_to_tensor(self.variables[value])
            array = const_array(value)
            if array is None:
                raise view.refuse(f"{value.name!r} has no value")
            return tensor_of(array, view)

        def lower(node: ir.Node) -> None:
            view = View(node, opset=self.opset)
            ctx = Ctx(
                [value_of(v, view) for v in node.inputs],
                subgraph=lambda inner, tensors: self.run(inner, tensors, known),
            )
            outputs = lowered(self.table[view.op], ctx, view)
            known.update(zip(node.outputs, outputs, strict=False))

        refusals = Refusals()
        for node in graph:
            refusals.attempt(node, lower)
        refusals.check()
        end = View(ir.node("Identity", []), opset=self.opset)
        found = [value_of(v, end) for v in graph.outputs]
        if any(t is None for t in found):
            raise ConversionError("an output of the model has no value")
        return found
