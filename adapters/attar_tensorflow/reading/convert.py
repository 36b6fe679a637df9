"""A program as a model of the IR."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from typing import Any

import onnx_ir as ir

from attar import graph
from attar.errors import AttarError, ConversionError, InputError
from attar_tensorflow.reading.lifter import Lift, Lifter
from attar_tensorflow.reading.program import Program
from attar_tensorflow.reading.values import Const, Items, Missing, Tensor, numpy_dtype

OPSET = 21


def to_ir(program: Program, table: Mapping[str, Lift]) -> tuple[ir.Model, list[str]]:
    """Lift `program` with `table`. Gives the model in normal form, and notes.

    Raises:
        ConversionError: it uses operators that the table does not hold, or what ONNX cannot say; all are
        listed.
    """
    main = ir.Graph([], [], nodes=[], opset_imports={"": OPSET}, name=program.what)
    lifter = Lifter(main, table, labels(program))
    lifter._names.update(name for name, _ in program.inputs)
    given: dict[tuple[str, int], Any] = {}
    for name, tensor in program.inputs:
        given[tensor.op.name, tensor.value_index] = _input(main, name, tensor)
    for name, tensor in program.inputs:
        if _is_image(tensor):
            lifter.label = f"{name}/nchw"
            plain = given[tensor.op.name, tensor.value_index]
            given[tensor.op.name, tensor.value_index] = lifter.turned_image(plain)
    for tensor, held in program.captured:
        given[tensor.op.name, tensor.value_index] = held
    results = lifter.run(program.graph, given, [t for _, t in program.outputs])
    lifter.check(program.what)
    for (name, _), result in zip(program.outputs, results, strict=True):
        if isinstance(result, Missing | Items) or not isinstance(result, Tensor | Const):
            raise ConversionError(f"the output {name!r} of {program.what} is no tensor of numbers")
        main.outputs.append(_output(lifter, name, result, main))
    main.extend(lifter.scopes[0])
    model = ir.Model(main, ir_version=10, producer_name="attar")
    return model, _finish(model, program)


def _input(main: ir.Graph, name: str, tensor: Any) -> Tensor:
    dtype = numpy_dtype(tensor.dtype)
    if dtype.kind == "O":
        raise ConversionError(f"the input {name!r} is a string, which is not supported")
    if tensor.shape.rank is None:
        raise InputError(
            f"the rank of the input {name!r} is unknown",
            hint="give example inputs: inputs=..., or a signature",
        )
    shape = tuple(tensor.shape.as_list())
    dims = [d if d is not None else "batch" if k == 0 else f"{name}_{k}" for k, d in enumerate(shape)]
    value = ir.Value(name=name, type=ir.TensorType(ir.DataType.from_numpy(dtype)), shape=ir.Shape(dims))
    main.inputs.append(value)
    return Tensor(value, dtype, shape)


# Operations that are the same in every layout, or can be, between an input and the first layer.
_PASSING = frozenset(
    {
        "Identity",
        "Cast",
        "Mul",
        "Add",
        "AddV2",
        "Sub",
        "RealDiv",
        "Div",
        "BiasAdd",
        "Pad",
        "MirrorPad",
        "Neg",
        "Relu",
    }
)
_LAYERS = frozenset(
    {"Conv2D", "DepthwiseConv2dNative", "MaxPool", "AvgPool"}
    | {"FusedBatchNorm", "FusedBatchNormV2", "FusedBatchNormV3"}
)


def _is_image(tensor: Any) -> bool:
    """Whether an input goes to a layer that wants NCHW, with nothing between that cares: it is turned at
    once.
    """
    if tensor.shape.rank != 4 or not tensor.dtype.is_floating:
        return False
    todo, seen = [tensor], 0
    found = False
    while todo and seen < 50:
        t = todo.pop()
        for user in t.consumers():
            seen += 1
            if user.type in _PASSING and user.outputs[0].shape.rank == 4:
                todo.append(user.outputs[0])
            elif user.type in _LAYERS and user.get_attr("data_format") == b"NHWC":
                found = True
            elif user.type not in ("Shape", "ShapeN"):
                return False
    return found


def _output(lifter: Lifter, name: str, result: Tensor | Const, main: ir.Graph) -> ir.Value:
    lifter.label = name
    value = lifter.plain(result)
    if value.producer() is None or value in main.outputs or value.name:
        value = lifter.node("Identity", [value])[0]
    value.name = name
    value.type = ir.TensorType(ir.DataType.from_numpy(result.dtype))
    if result.shape is not None:
        value.shape = ir.Shape(list(result.shape))
    return value


def _finish(model: ir.Model, program: Program) -> list[str]:
    try:
        graph.tidy(model)
        _names(model)
        notes = graph.normalize(model, OPSET)
        graph.check(model)
    except AttarError as error:
        raise ConversionError(
            f"{program.what} became a model that is not valid, a fault of the reader: {error.message}"
        ) from error
    graph.set_provenance(model, framework="tensorflow", source=program.what)
    return [n for n in notes if n.startswith("stays")]


def _names(model: ir.Model) -> None:
    """Layers with a weight are named after it: `block_1/conv` for `block_1/conv/kernel`; every node once, and
    values
    after the nodes that give them.
    """
    used: set[str] = set()
    nodes = list(graph.all_nodes(model))
    titles = {id(node): _of_weight(node) for node in nodes}
    for named in (True, False):  # the layer itself has the first right to its name
        for node in nodes:
            if (titles[id(node)] is not None) == named:
                node.name = _fresh(titles[id(node)] or node.name or node.op_type, node.op_type, used)
    kept = {id(v) for v in (*model.graph.inputs, *model.graph.outputs)}
    for node in nodes:
        for k, value in enumerate(node.outputs):
            if id(value) not in kept and (value.uses() or value.is_graph_output()):
                value.name = f"{node.name}:{k}"


def _of_weight(node: ir.Node) -> str | None:
    for value in node.inputs[1:]:
        name = (value.name or "") if value is not None and value.is_initializer() else ""
        if "/" in name and name.rpartition("/")[2].startswith(("kernel", "depthwise", "gamma", "embeddings")):
            return name.rpartition("/")[0]
    return None


def _fresh(title: str, op_type: str, used: set[str]) -> str:
    if title in used and title.rpartition("/")[2] != op_type:
        title = f"{title}/{op_type}"
    fresh, count = title, 0
    while fresh in used:
        count += 1
        fresh = f"{title}_{count}"
    used.add(fresh)
    return fresh


def labels(program: Program) -> Callable[[str], str]:
    """Operation of the graph -> name of its nodes: scopes that are no layers go, as do the numbers that
    tracing adds
    to layers' names.
    """
    layers = program.layers

    def label(operation: str) -> str:
        parts = [p for p in operation.split("/") if p not in ("StatefulPartitionedCall", "PartitionedCall")]
        if not layers:
            return "/".join(parts) or operation
        kept = []
        for part in parts[:-1]:
            plain = re.sub(r"_\d+$", "", part)
            if part in layers:
                kept.append(part)
            elif plain in layers:
                kept.append(plain)
        if not kept:
            return parts[-1]
        return "/".join(kept)

    return label
