"""Rewriting part of a graph to 16-bit floats, with Casts where it meets the rest."""

from __future__ import annotations

from collections.abc import Set
from typing import TYPE_CHECKING, Any

import onnx
import onnx_ir as ir

from attar import graph
from attar.errors import AttarError

if TYPE_CHECKING:
    from attar.runtime import Runtime

_TYPE = {ir.DataType.FLOAT16: "tensor(float16)", ir.DataType.BFLOAT16: "tensor(bfloat16)"}
# What these make has a type or a value written into an attribute.
_TYPED = frozenset(
    ["Cast", "CastLike", "Constant", "ConstantOfShape", "EyeLike", "RandomNormal", "RandomNormalLike",
     "RandomUniform", "RandomUniformLike", "Bernoulli", "Multinomial", "QuantizeLinear",
     "DequantizeLinear", "DynamicQuantizeLinear"]
)  # fmt: skip


def why_float(node: ir.Node, kind: ir.DataType, opset: int) -> str:
    """Why `node` must compute in float32 by its definition; empty if ONNX defines it on 16-bit floats."""
    if node.domain not in ("", "ai.onnx"):
        return f"{node.domain}.{node.op_type} is not an operator of ONNX"
    if node.op_type in _TYPED:
        return f"{node.op_type} has its type written in"
    if any(a.type in (ir.AttributeType.GRAPH, ir.AttributeType.GRAPHS) for a in node.attributes.values()):
        return f"{node.op_type} has a graph inside"
    try:
        schema = onnx.defs.get_schema(node.op_type, opset, "")
    except onnx.defs.SchemaError:
        return f"{node.op_type} is unknown at opset {opset}"
    for formal, values in ((schema.inputs, node.inputs), (schema.outputs, node.outputs)):
        for index, value in enumerate(values):
            if value is None or value.dtype != ir.DataType.FLOAT:
                continue
            parameter = formal[min(index, len(formal) - 1)]
            if _TYPE[kind] not in parameter.types and not _always_float(parameter):
                return f"{node.op_type} is not defined on {kind.name.lower()}"
    return ""


def _always_float(parameter: Any) -> bool:
    """Whether a parameter is float32 whatever the others are, such as the scales of Resize."""
    return set(parameter.types) == {"tensor(float)"}


class Halver:
    """Rewrites one model. Graph inputs and outputs keep their types."""

    def __init__(self, model: ir.Model, kind: ir.DataType) -> None:
        self._model, self._graph, self._kind = model, model.graph, kind
        self._taken = graph.taken_names(model.graph)
        self._casts = 0

    def write(self, halved: Set[ir.Node]) -> int:
        """Make the nodes of `halved` compute in 16 bits.

        Returns:
            How many Casts were written.
        """
        opset = self._model.opset_imports[""]
        made = {
            v
            for n in halved
            for i, v in enumerate(n.outputs)
            if v.dtype == ir.DataType.FLOAT and not _float_output(n, opset, i)
        }
        read: dict[ir.Value, list[tuple[ir.Node, int]]] = {}
        for node in self._graph:
            for position, value in enumerate(node.inputs):
                if value is not None and value.dtype == ir.DataType.FLOAT:
                    read.setdefault(value, []).append((node, position))
        half_reads = {
            value: [(n, p) for n, p in users if n in halved and not _float_input(n, opset, p)]
            for value, users in read.items()
        }
        for value in made:
            value.type = ir.TensorType(self._kind)
        for value, users in half_reads.items():
            if users and value not in made:
                small = self._constant(value) if value.is_initializer() else self._cast(value, self._kind)
                for node, position in users:
                    node.replace_input_with(position, small)
        for value in made:
            wide = [(n, p) for n, p in value.uses() if (n, p) not in half_reads.get(value, [])]
            if wide or value.is_graph_output():
                self._widen(value, wide)
        return self._casts

    def _constant(self, value: ir.Value) -> ir.Value:
        from attar_quantize.half import fitting

        tensor = value.const_value
        assert tensor is not None
        with graph.borrow(tensor) as array:
            small = fitting(array, self._kind)
        assert small is not None
        name = graph.fresh_name(self._graph, f"{value.name}_half", self._taken)
        return graph.add_initializer(self._graph, name, ir.Tensor(small, dtype=self._kind, name=name))

    def _cast(self, value: ir.Value, to: ir.DataType) -> ir.Value:
        self._casts += 1
        node = ir.node(
            "Cast",
            [value],
            attributes={"to": to.value},
            name=graph.fresh_name(self._graph, f"{value.name}/to_{to.name.lower()}", self._taken),
        )
        out = node.outputs[0]
        out.name = graph.fresh_name(self._graph, f"{value.name}_{to.name.lower()}", self._taken)
        out.type, out.shape = ir.TensorType(to), value.shape
        producer = value.producer()
        if producer is not None:
            self._graph.insert_after(producer, node)
        else:
            self._graph.insert_before(next(iter(self._graph)), node)
        return out

    def _widen(self, value: ir.Value, users: list[tuple[ir.Node, int]]) -> None:
        """Give float32 readers, subgraphs and the caller what they had."""
        wide = self._cast(value, ir.DataType.FLOAT)
        for node, position in users:
            node.replace_input_with(position, wide)
        if value.is_graph_output():
            for i, output in enumerate(self._graph.outputs):
                if output is value:
                    self._graph.outputs[i] = wide
            name = value.name
            value.name, wide.name = graph.fresh_name(self._graph, f"{name}_half", self._taken), name


def _float_input(node: ir.Node, opset: int, index: int) -> bool:
    formal = onnx.defs.get_schema(node.op_type, opset, "").inputs
    return _always_float(formal[min(index, len(formal) - 1)])


def _float_output(node: ir.Node, opset: int, index: int) -> bool:
    formal = onnx.defs.get_schema(node.op_type, opset, "").outputs
    return _always_float(formal[min(index, len(formal) - 1)])


class Kernels:
    """Which operators a runtime can run on 16-bit floats: it is asked with a model of one node each."""

    def __init__(self, runtime: Runtime, kind: ir.DataType, model: ir.Model) -> None:
        self._runtime, self._kind, self._model = runtime, kind, model
        self._known: dict[object, bool] = {}

    def has(self, node: ir.Node) -> bool:
        """Whether the runtime loads `node` on halves. Shapes and values of the inputs are left open."""
        ranks = [None if v is None or v.shape is None else len(v.shape) for v in node.inputs]
        kinds = [None if v is None else v.dtype for v in node.inputs]
        options = sorted((name, str(a.value)) for name, a in node.attributes.items())
        key = (node.op_type, *ranks, *kinds, *options)
        if key not in self._known:
            self._known[key] = self._asked(node)
        return self._known[key]

    def _asked(self, node: ir.Node) -> bool:
        opset = self._model.opset_imports[""]

        def like(value: ir.Value, name: str, wide: bool) -> ir.Value:
            half = value.dtype == ir.DataType.FLOAT and not wide
            kind = self._kind if half else value.dtype or ir.DataType.FLOAT
            # Constants that are no floats (axes, shapes) come along: operators may want to know them.
            tensor = value.const_value if not half and value.is_initializer() else None
            return ir.Value(name=name, type=ir.TensorType(kind), shape=value.shape, const_value=tensor)

        given = [
            None if v is None else like(v, f"x{i}", _float_input(node, opset, i))
            for i, v in enumerate(node.inputs)
        ]
        copy = ir.node(
            node.op_type, given, attributes=dict(node.attributes), num_outputs=len(node.outputs), name="probe"
        )
        for i, (mine, theirs) in enumerate(zip(copy.outputs, node.outputs, strict=True)):
            half = theirs.dtype == ir.DataType.FLOAT and not _float_output(node, opset, i)
            mine.name, mine.type = f"y{i}", ir.TensorType(self._kind if half else theirs.dtype or self._kind)
        probe = ir.Graph(
            [v for v in given if v is not None and v.const_value is None],
            [v for v, theirs in zip(copy.outputs, node.outputs, strict=True) if theirs.name],
            nodes=[copy],
            initializers=[v for v in given if v is not None and v.const_value is not None],
            opset_imports={"": opset},
            name="probe",
        )
        try:
            self._runtime.open(ir.Model(probe, ir_version=self._model.ir_version), optimize=False)
        except AttarError:
            return False
        return True
