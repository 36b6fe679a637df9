"""From a `.tflite` file to the IR."""

from __future__ import annotations

from collections.abc import Callable, Mapping

import numpy as np
import onnx_ir as ir

from attar import graph as graphs
from attar.errors import AttarError, ConversionError, InputError
from attar_tensorflow.tflite.file import File, Graph
from attar_tensorflow.tflite.lift import Building
from attar_tensorflow.tflite.liftop import Op

Lifting = Callable[[Op], None]
OPSET = 21


def lift(
    file: File, table: Mapping[str, Lifting], what: str, *, float_io: bool = False
) -> tuple[ir.Model, list[str]]:
    """The IR of the first graph of `file`, in normal form, and notes.

    Args:
        table: operator -> lifting.
        what: what to call the file.
        float_io: inputs and outputs that are codes in the file become real numbers.

    Raises:
        ConversionError: operators without a lifting, or that ONNX cannot say; all are listed.
        InputError: the shapes of the file contradict its operators.
    """
    graph = file.graphs[0]
    missing: dict[str, list[str]] = {}
    for operator in graph.operators:
        if operator.kind not in table:
            missing.setdefault(operator.kind, []).append(_where(graph, operator.outputs))
    if missing:
        plural = "s" if len(missing) > 1 else ""
        raise ConversionError(
            f"{what} has {len(missing)} operator{plural} that the IR has no counterpart for:",
            missing=missing,
            hint="a plugin teaches operators through attar_liftings('tflite')",
        )
    building = Building(graph)
    inputs = [_input(building, k, float_io) for k in range(len(graph.inputs))]
    refused = _operators(building, table)
    if refused:
        reasons = "; ".join(dict.fromkeys(e.message.splitlines()[0] for e in refused))
        raise ConversionError(f"{what}: {reasons}", missing=_merged(refused))
    outputs = [_output(building, k, float_io) for k in range(len(graph.outputs))]
    body = ir.Graph(
        inputs,
        outputs,
        nodes=building.nodes,
        initializers=list(building.initializers.values()),
        opset_imports={"": OPSET},
        name=graph.name or "main",
    )
    model = ir.Model(body, ir_version=10, producer_name="attar")
    try:
        graphs.normalize(model)
        graphs.check(model)
    except AttarError as error:
        raise InputError(f"{what}: the operators contradict each other: {error.message}") from error
    except (ValueError, TypeError, KeyError, AttributeError) as error:
        raise InputError(f"{what}: the operators contradict each other: {error!s:.300}") from error
    return model, sorted(building.notes)


def _operators(building: Building, table: Mapping[str, Lifting]) -> list[ConversionError]:
    refused: list[ConversionError] = []
    for operator in building.graph.operators:
        op = Op(building, operator)
        try:
            table[operator.kind](op)
        except ConversionError as error:
            refused.append(error)
        except (
            ValueError,
            IndexError,
            KeyError,
            TypeError,
            AssertionError,
            ZeroDivisionError,
            OverflowError,
        ) as error:
            refused.append(
                op.refuse(f"its inputs or options do not fit it ({type(error).__name__}: {error!s:.100})")
            )
        for index in operator.outputs:  # those of a refused operator: the rest is looked at all the same
            if index not in building.held and index not in building.arrays:
                building.keep(index, ir.Value(name=building.label(index)), real=False, first=False)
    return refused


def _merged(errors: list[ConversionError]) -> dict[str, list[str]]:
    merged: dict[str, list[str]] = {}
    for error in errors:
        for op, nodes in error.missing.items():
            merged.setdefault(op, []).extend(nodes)
    return merged


def _where(graph: Graph, outputs: tuple[int, ...]) -> str:
    return graph.tensors[outputs[0]].name.partition(";")[0] if outputs else "?"


def _input(building: Building, k: int, float_io: bool) -> ir.Value:
    graph = building.graph
    index, name = graph.inputs[k], graph.input_names[k]
    tensor, q = graph.tensors[index], building.quantization(graph.inputs[k])
    if tensor.dtype == np.object_:
        raise ConversionError(f"input {name!r} is of type {tensor.type}, which the IR does not take")
    real = float_io and q is not None
    dtype = np.dtype(np.float32) if real else tensor.dtype
    dims = [_dim(name, axis, d) for axis, d in enumerate(tensor.shape)]
    value = ir.Value(name=name, type=ir.TensorType(ir.DataType.from_numpy(dtype)), shape=ir.Shape(dims))
    building.keep(index, building.quantize(value, index) if real else value, real=False, first=False)
    return value


def _dim(name: str, axis: int, size: int | None) -> int | str:
    return size if size is not None else "batch" if axis == 0 else f"{name}_dim_{axis}"


def _output(building: Building, k: int, float_io: bool) -> ir.Value:
    graph = building.graph
    index, name = graph.outputs[k], graph.output_names[k]
    value = building.get(index, real=float_io, first=False)
    taken = index in graph.inputs or index in building.arrays or index in graph.outputs[:k]
    if taken or value.is_graph_input() or value.producer() is None:
        (value,) = building.emit("Identity", [value], name)
    value.name = name
    return value
