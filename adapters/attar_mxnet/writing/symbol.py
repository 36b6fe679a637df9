"""A whole model: from the IR to an MXNet graph with its parameters."""

from __future__ import annotations

from collections.abc import Mapping

import onnx_ir as ir

from attar.conversion import NodeView, prepare
from attar.conversion.view import op_key, shape_of
from attar.errors import ConversionError
from attar.registry import Registry
from attar.specs import spec_of
from attar_mxnet.symbol_json import Entry
from attar_mxnet.writing.context import DTYPES, Lowering, WriteContext
from attar_mxnet.writing.native import MxnetModel
from attar_mxnet.writing.sizes import name_sizes

_FRAMEWORK = "MXNet"
_FREE_OF_ARITHMETIC = {
    "Cast", "CastLike", "Concat", "Dropout", "Expand", "Flatten", "Gather", "Identity", "IsInf",
    "IsNaN", "Reshape", "Shape", "Size", "Slice", "Split", "Squeeze", "Tile", "Transpose", "Unsqueeze",
    "Where", "DepthToSpace", "SpaceToDepth", "Equal", "Greater", "Less", "GreaterOrEqual",
    "LessOrEqual", "DequantizeLinear",
}  # fmt: skip


def lower(model: ir.Model, registry: Registry) -> MxnetModel:
    """`model` as an MXNet graph.

    Raises:
        ConversionError: MXNet cannot say some of its nodes exactly; all of them are listed.
    """
    table: Mapping[str, Lowering] = registry.op_table("attar_lowerings", "mxnet")
    ready = prepare(model, table, _FRAMEWORK, registry=registry)
    name_sizes(ready)
    ctx = WriteContext()
    _check_inputs(ready)
    inputs = [v for v in ready.graph.inputs if v.name not in ready.graph.initializers]
    for value in inputs:
        ctx.input_variable(value)
    refused: dict[str, list[str]] = {}
    reasons: list[str] = []
    doubtful: set[ir.Value] = set()  # outputs of refused nodes, and what depends on them
    for node in ready.graph:
        if any(v in doubtful for v in node.inputs):
            doubtful.update(node.outputs)
            continue
        view = NodeView(node, opset=ready.opset_imports.get("", 1), framework=_FRAMEWORK)
        try:
            _lower_node(ctx, view, table[op_key(node)])
        except ConversionError as error:
            reasons.append(error.message.split("\n")[0])
            refused.setdefault(view.op, []).append(view.name)
            doubtful.update(node.outputs)
    if reasons:
        raise ConversionError("\n".join(dict.fromkeys(reasons)), missing=refused)
    for value in ready.graph.outputs:
        ctx.graph.heads.append(_head(ctx, value))
    used = _drop_unused(ctx, {v.name for v in inputs})
    return MxnetModel(
        ctx.graph,
        ctx.params,
        tuple(spec_of(v) for v in inputs),
        frozenset(ctx.constants & used),
        tuple(ctx.notes),
    )


def _drop_unused(ctx: WriteContext, inputs: set[str | None]) -> set[str]:
    """Forget nodes and parameters that no output needs: MXNet takes no file with a parameter too many.

    Returns:
        The names of the nodes that are left.
    """
    graph = ctx.graph
    needed = {e.node for e in graph.heads}
    needed |= {k for k, n in enumerate(graph.nodes) if n.is_variable and n.name in inputs}
    for number in range(len(graph.nodes) - 1, -1, -1):
        if number in needed:
            needed.update(e.node for e in graph.nodes[number].inputs)
    place = {number: k for k, number in enumerate(sorted(needed))}
    graph.nodes = [graph.nodes[number] for number in place]
    for node in graph.nodes:
        node.inputs = [e._replace(node=place[e.node]) for e in node.inputs]
    graph.heads = [e._replace(node=place[e.node]) for e in graph.heads]
    names = {n.name for n in graph.nodes}
    ctx.params = {n: a for n, a in ctx.params.items() if n.partition(":")[2] in names}
    return names


def _lower_node(ctx: WriteContext, view: NodeView, lowering: Lowering) -> None:
    if any(
        a.type in (ir.AttributeType.GRAPH, ir.AttributeType.GRAPHS) for a in view.node.attributes.values()
    ):
        raise view.refuse("control flow is not written")
    for value in view.outputs:
        if value.name and (value.uses() or value.is_graph_output()):
            _check(view, value)
    _check_ranks(view)
    half = view.op not in _FREE_OF_ARITHMETIC and any(
        v is not None and v.dtype == ir.DataType.FLOAT16 for v in (*view.inputs, *view.outputs)
    )
    ctx.begin(view, half)
    first = len(ctx.graph.nodes)
    ctx.finish(view, lowering(ctx, view), first)


def _check_ranks(view: NodeView) -> None:
    """MXNet's kernels are compiled for few axes: most for any number that falls to 5 when neighbours that are
    treated alike are merged, transposition for 6, slices and borders for 5."""
    shapes = [shape_of(v) for v in (*view.inputs, *view.outputs)]
    rank = max((len(s) for s in shapes if s is not None), default=0)
    alike = len({s for s in shapes if s is not None and len(s)}) == 1
    if (
        rank <= 5
        or view.op in _ANY_RANK
        or (rank == 6 and view.op in _SIX_AXES)
        or (alike and view.op in _BROADCAST)
    ):
        return
    raise view.refuse(f"MXNet does not compute it on {rank} axes")


_ANY_RANK = {
    "Reshape",
    "Flatten",
    "Identity",
    "Cast",
    "Squeeze",
    "Unsqueeze",
    "Split",
    "Dropout",
    "Shape",
    "Size",
}
_SIX_AXES = {
    "Transpose", "Concat", "Softmax", "LogSoftmax", "Gather", "CumSum", "ArgMax", "ArgMin", "MatMul",
}  # fmt: skip
_BROADCAST = {
    "Add", "Sub", "Mul", "Div", "Max", "Min", "Equal", "Greater", "Less", "And", "Or", "Xor", "Relu",
    "Sigmoid", "Tanh", "LeakyRelu", "Elu", "Gelu", "Erf", "Exp", "Log", "Sqrt", "Abs", "Neg", "Not",
    "Sin", "Cos", "Clip", "Softplus", "Round", "Floor", "Ceil", "Reciprocal", "HardSigmoid",
    "HardSwish", "Swish", "Mish",
}  # fmt: skip


def _check(view: NodeView, value: ir.Value) -> None:
    if value.dtype is None or value.shape is None:
        return
    if value.dtype.numpy().name not in DTYPES or value.dtype in _PACKED:
        raise view.refuse(f"MXNet 1 has no arrays of {value.dtype}")
    if any(d == 0 for d in value.shape if isinstance(d, int)) and view.op != "Split":
        raise view.refuse("arrays without elements do not exist in MXNet 1")


_PACKED = {ir.DataType.BFLOAT16, ir.DataType.INT4, ir.DataType.UINT4}


def _check_inputs(model: ir.Model) -> None:
    for value in model.graph.inputs:
        if value.name in model.graph.initializers:
            continue
        where = f"{_FRAMEWORK} cannot take the input {value.name!r}"
        if value.dtype is None or value.dtype.numpy().name not in DTYPES or value.dtype in _PACKED:
            raise ConversionError(f"{where}: it has no arrays of {value.dtype}")
        if value.shape is not None and (len(value.shape) == 0 or any(d == 0 for d in value.shape)):
            raise ConversionError(f"{where}: scalars and arrays without elements do not exist in MXNet 1")


def _head(ctx: WriteContext, value: ir.Value) -> Entry:
    """The graph output: a node of its own where the value is a variable or an output already."""
    entry = ctx.known(value)
    if entry is None:
        array = ctx.array_of(value)
        if array is None:
            raise ConversionError(f"{_FRAMEWORK}: nothing computes the output {value.name!r}")
        entry = ctx.constant(array, value.name or "output")
    if value.shape is not None and len(value.shape) == 0:
        ctx.note(
            f"the output {value.name} is a scalar: MXNet computes its gradient inside np_shape(True) only"
        )
        return ctx.op("_npx_reshape", entry, newshape="()")
    if ctx.graph.nodes[entry.node].is_variable or entry in ctx.graph.heads:
        return ctx.op("identity", entry)
    return entry
