"""Units: the pieces that become one kernel together, and so are quantized or left in float together.

A unit is an operator with what the target's kernel absorbs: the bias Add behind a MatMul, a Relu or Clip
behind a Conv, Gemm, MatMul, Add or Mul.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import onnx_ir as ir

from attar import graph
from attar.lowering import window_of
from attar.targets import IntegerOp, Target

Array = np.ndarray[Any, np.dtype[Any]]


@dataclass(eq=False)
class Unit:
    """One or more nodes that run as one kernel.

    Attributes:
        nodes: the operator first, then what it absorbs, in order.
        rule: how it becomes an integer kernel; None: it cannot, and `why` says why.
        inputs: the activations that must be quantized, constants that are quantized like activations
            included.
        bias: the constant that is added behind a MatMul, if that Add belongs to the unit.
        kind: class in the cost table.
        macs: multiply-accumulates of a typical run.
        elements: elements read and written by a typical run.
    """

    nodes: list[ir.Node]
    rule: IntegerOp | None
    why: str = ""
    inputs: tuple[ir.Value, ...] = ()
    bias: ir.Value | None = None
    kind: str = ""
    macs: int = 0
    elements: int = 0

    @property
    def main(self) -> ir.Node:
        return self.nodes[0]

    @property
    def output(self) -> ir.Value:
        return self.nodes[-1].outputs[0]

    @property
    def outputs(self) -> Sequence[ir.Value]:
        return self.nodes[-1].outputs

    @property
    def names(self) -> tuple[str, ...]:
        """Names of its nodes and of the values that it makes, as a runtime's kernel may bear them."""
        values = [v.name for n in reversed(self.nodes) for v in n.outputs if v.name]
        return (*(n.name for n in self.nodes if n.name), *values, *(f"{v}_quantized" for v in values))

    @property
    def weight(self) -> ir.Value | None:
        """The constant weight of a compute unit."""
        if self.rule is None or self.rule.role != "compute" or len(self.main.inputs) < 2:
            return None
        value = self.main.inputs[1]
        return value if graph.const_array(value) is not None else None


Shapes = Mapping[str, tuple[int, ...]]


def shape_of(value: ir.Value | None, shapes: Shapes) -> tuple[int, ...]:
    """The shape in a typical run; sizes that nobody knows count as 1."""
    if value is None:
        return ()
    if value.name in shapes:
        return shapes[value.name]
    if value.shape is None:
        return (1,)
    return tuple(d if isinstance(d, int) and d > 0 else 1 for d in value.shape)


def size_of(value: ir.Value | None, shapes: Shapes) -> int:
    """Elements in a typical run."""
    return math.prod(shape_of(value, shapes))


def find_units(
    model: ir.Model,
    target: Target,
    operators: frozenset[str] | None = None,
    shapes: Shapes | None = None,
) -> list[Unit]:
    """Split the main graph into units, in topological order.

    Args:
        operators: operator types that may be quantized; None for all that the target has integer kernels for.
        shapes: value name -> shape in a typical run, for costs.
    """
    shapes = shapes or {}
    taken: set[ir.Node] = set()
    units = []
    for node in model.graph:
        if node in taken:
            continue
        rule, why = _rule(node, target, operators)
        unit = Unit([node], rule, why)
        if rule is not None:
            _absorb(unit, rule)
            unit.inputs = _activations(node, rule)
        unit.kind = kind_of(unit, shapes)
        unit.macs = _macs(unit, shapes)
        unit.elements = sum(size_of(v, shapes) for v in (*unit.inputs, unit.output))
        taken.update(unit.nodes)
        units.append(unit)
    return units


def is_outside(value: ir.Value) -> bool:
    """Whether something other than this graph's nodes needs the value under its name: an output or a
    subgraph."""
    if value.is_graph_output():
        return True
    owner = value.graph
    return any(user.graph is not owner for user, _ in value.uses())


def _rule(node: ir.Node, target: Target, operators: frozenset[str] | None) -> tuple[IntegerOp | None, str]:
    if node.domain not in ("", "ai.onnx"):
        return None, f"{node.domain}.{node.op_type} has no integer kernel on {target.name}"
    rule = target.integer_ops.get(node.op_type)
    if rule is None:
        return None, f"{node.op_type} has no integer kernel on {target.name}"
    if operators is not None and node.op_type not in operators:
        return None, "not among the operators to quantize"
    if node.op_type == "Split":
        outputs: Sequence[ir.Value] = node.outputs
    elif len(node.outputs) != 1:
        return None, f"{node.op_type} with several outputs has no integer kernel"
    else:
        outputs = node.outputs[:1]
    for value in (*(v for v in _activations(node, rule)), *outputs):
        if value.dtype != ir.DataType.FLOAT:
            kind = "an unknown type" if value.dtype is None else str(value.dtype)
            return None, f"{value.name} is {kind}, integer kernels take float32"
    problem = _problem(node, rule)
    return (None, problem) if problem else (rule, "")


def _problem(node: ir.Node, rule: IntegerOp) -> str:
    """What keeps this particular node from an integer kernel; empty if nothing does."""
    weight = graph.const_array(node.inputs[1]) if len(node.inputs) > 1 else None
    if rule.constant_weight and weight is None:
        return "its weight is not constant"
    if rule.role == "compute" and graph.const_array(node.inputs[0]) is not None:
        return "its first input is constant"
    if node.op_type in ("Conv", "Gemm") and len(node.inputs) > 2 and node.inputs[2] is not None:
        bias = graph.const_array(node.inputs[2])
        if bias is None:
            return "its bias is not constant"
        columns = _gemm_columns(node, weight)
        if node.op_type == "Gemm" and bias.shape not in ((columns,), (1, columns)):
            return "its C is not a bias vector"
    if node.op_type == "Gemm":
        attributes = {k: a.value for k, a in node.attributes.items()}
        if (
            attributes.get("alpha", 1.0) != 1.0
            or attributes.get("beta", 1.0) != 1.0
            or attributes.get("transA", 0)
        ):
            return "alpha, beta or transA is set"
    if node.op_type == "MatMul" and weight is not None and weight.ndim != 2:
        return f"its weight has {weight.ndim} dimensions, not 2"
    data = node.inputs[0]
    if node.op_type == "MatMul" and data is not None and data.shape is not None and len(data.shape) < 2:
        return "its input is a vector, for which there is no integer kernel"
    if weight is not None and rule.role == "compute" and not np.isfinite(weight).all():
        return "its weight has NaN or infinite elements"
    if node.op_type == "Resize":
        mode = node.attributes.get("mode")
        if mode is not None and mode.value != "nearest":
            return f"Resize {mode.value} has no integer kernel"
    if node.op_type == "Pad":
        mode = node.attributes.get("mode")
        fill = node.inputs[2] if len(node.inputs) > 2 else None
        array = None if fill is None else graph.const_array(fill)
        if (mode is None or mode.value == "constant") and fill is not None and (array is None or array.any()):
            return "it pads with a value that is not zero"
    constants = [graph.const_array(v) for v in _activations(node, rule)]
    if all(array is not None for array in constants):
        return "all its inputs are constant"
    if any(array is not None and not np.isfinite(array).all() for array in constants):
        return "a constant input has NaN or infinite elements"
    return ""


def _feeds_softmax(node: ir.Node) -> bool:
    """Whether a Softmax reads the node's result, through other arithmetic and moves: attention scores,
    masked or not."""
    pending, seen = [node], {node}
    while pending:
        for value in pending.pop().outputs:
            for user, _ in value.uses():
                if user.op_type in ("Softmax", "LogSoftmax"):
                    return True
                if (
                    user.op_type in ("Add", "Mul", "Reshape", "Transpose", "Where", "Unsqueeze", "Squeeze")
                    and user not in seen
                ):
                    seen.add(user)
                    pending.append(user)
    return False


def _gemm_columns(node: ir.Node, weight: Array | None) -> int:
    if weight is None:
        return -1
    trans = node.attributes.get("transB")
    return int(weight.shape[0 if trans is not None and trans.value else 1])


def _activations(node: ir.Node, rule: IntegerOp) -> tuple[ir.Value, ...]:
    positions = rule.activations or range(len(node.inputs))
    chosen = [node.inputs[i] for i in positions if i < len(node.inputs)]
    if rule.role == "compute" and len(chosen) > 1 and graph.const_array(chosen[1]) is not None:
        chosen = chosen[:1]
    return tuple(v for v in chosen if v is not None)


def _absorb(unit: Unit, rule: IntegerOp) -> None:
    while True:
        value = unit.output
        if len(unit.outputs) != 1 or is_outside(value) or len(list(value.uses())) != 1:
            return
        (follower, position), *_ = value.uses()
        if follower.domain not in ("", "ai.onnx"):
            return
        if unit.main.op_type == "MatMul" and len(unit.nodes) == 1 and follower.op_type == "Add":
            other = follower.inputs[1 - position]
            array = graph.const_array(other)
            columns = unit.main.inputs[1].shape
            # Only a vector along the columns is a bias; anything else is an addition of its own.
            if array is None or unit.weight is None or columns is None or array.shape != (columns[-1],):
                return
            unit.nodes.append(follower)
            unit.bias = other
        elif follower.op_type in rule.absorbs:
            unit.nodes.append(follower)
            return
        else:
            return


def _macs(unit: Unit, shapes: Shapes) -> int:
    """Outputs times the products that each one sums."""
    node = unit.main
    if node.op_type == "Conv":
        return size_of(node.outputs[0], shapes) * math.prod(shape_of(node.inputs[1], shapes)[1:])
    if node.op_type in ("MatMul", "Gemm"):
        trans = node.attributes.get("transA")
        depth = shape_of(node.inputs[0], shapes)[0 if trans is not None and trans.value else -1]
        return size_of(node.outputs[0], shapes) * depth
    window = window_of(node) if node.op_type == "AveragePool" else None
    return 0 if window is None else size_of(node.outputs[0], shapes) * math.prod(window)


def kind_of(unit: Unit, shapes: Shapes) -> str:
    """The unit's class in the cost table; operators that the table does not know give their own name."""
    node = unit.main
    if node.op_type == "Conv":
        weight = unit.weight
        shape = weight.shape.numpy() if weight is not None and weight.shape is not None else (1, 1, 1)
        group = node.attributes.get("group")
        groups = group.value if group is not None else 1
        if groups > 1:
            return "conv.depthwise" if shape[1] == 1 else "conv.grouped"
        if shape[1] < 4:
            return "conv.thin"
        return "conv.pointwise" if math.prod(shape[2:]) == 1 else "conv.spatial"
    if node.op_type in ("MatMul", "Gemm"):
        if unit.rule is not None and unit.weight is None:
            return "matmul.activations"
        family = node.op_type.lower()
        return f"{family}.rows" if math.prod(shape_of(node.inputs[0], shapes)[:-1]) >= 16 else f"{family}.row"
    if node.op_type == "AveragePool" and window_of(node) is not None:
        return "averagepool.window"
    return node.op_type.lower()


@dataclass
class Plan:
    """Which units become integer kernels, and why the others do not.

    Attributes:
        integer: the chosen units.
        reasons: for every compute unit that stays in float, the reason.
    """

    units: list[Unit]
    integer: set[Unit] = field(default_factory=set)
    reasons: dict[Unit, str] = field(default_factory=dict)
