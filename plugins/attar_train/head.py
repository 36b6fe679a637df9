"""Transfer: a trained network with a new last layer, for other classes."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
import onnx_ir as ir

from attar import graph
from attar.errors import InputError, Refused, check_whole, did_you_mean
from attar_train.batches import generator

_PASSED = frozenset(
    {"Softmax", "LogSoftmax", "Sigmoid", "Tanh", "Softsign", "Relu", "Clip", "Dropout", "Identity"}
    | {"Flatten", "Squeeze", "Reshape", "Cast"}
    | {"GlobalAveragePool", "GlobalMaxPool", "AveragePool", "MaxPool"}
)
"""Each class for itself: what may stand between the last layer and the output."""


@dataclass(frozen=True)
class Head:
    """The last layer before an output.

    Attributes:
        node: Gemm, MatMul or Conv.
        weight: its weight.
        axis: axis of the weight that runs over the classes.
        bias: what is added, None if nothing is.
        behind: nodes between the layer and the output, last first.
    """

    node: ir.Node
    weight: ir.Value
    axis: int
    bias: ir.Value | None
    behind: tuple[ir.Node, ...]

    @property
    def names(self) -> tuple[str, ...]:
        """Names of its weights, for `FineTune(only=...)`."""
        return tuple(str(v.name) for v in (self.weight, self.bias) if v is not None)


def head_of(model: ir.Model, output: str | None = None) -> Head:
    """The last layer before an output, the first one unless named.

    Raises:
        InputError: there is no such output.
        Refused: no dense layer with constant float weights makes it.
    """
    names = [str(v.name) for v in model.graph.outputs]
    chosen = output or names[0]
    if chosen not in names:
        raise InputError(f"the model has no output {chosen!r}", hint=did_you_mean(chosen, names))
    value: ir.Value | None = model.graph.outputs[names.index(chosen)]
    behind: list[ir.Node] = []
    bias: ir.Value | None = None
    while value is not None and (node := value.producer()) is not None and node.domain == "":
        if node.op_type in _PASSED:
            behind.append(node)
            value = node.inputs[0]
        elif node.op_type == "Add" and bias is None and (found := _constant_side(node)) is not None:
            behind.append(node)
            bias, value = found
        elif node.op_type in ("Gemm", "MatMul", "Conv"):
            return _as_head(node, bias, tuple(behind), chosen)
        else:
            break
    raise Refused(f"no dense layer makes the output {chosen!r}, so there is nothing to put a new one for")


def _constant_side(node: ir.Node) -> tuple[ir.Value, ir.Value] | None:
    for k in (0, 1):
        one, other = node.inputs[k], node.inputs[1 - k]
        if one is not None and other is not None and graph.const_array(one) is not None:
            return one, other
    return None


def _as_head(node: ir.Node, bias: ir.Value | None, behind: tuple[ir.Node, ...], output: str) -> Head:
    weight = node.inputs[1]
    array = graph.const_array(weight)
    if weight is None or array is None or array.dtype.kind != "f":
        raise Refused(
            f"the weight of the last layer before {output!r} is computed or quantized",
            hint="put the new layer in before anything else",
        )
    if node.op_type == "Conv":
        axis = 0
    elif node.op_type == "Gemm":
        turned = node.attributes.get("transB")
        axis = 0 if turned is not None and turned.as_int() else 1
    else:
        axis = array.ndim - 1
    if len(node.inputs) > 2 and node.inputs[2] is not None:
        bias = node.inputs[2]
    return Head(node, weight, axis, bias, behind)


def new_head(model: ir.Model, classes: int, *, output: str | None = None, seed: int = 0) -> ir.Model:
    """A copy of `model` whose last layer gives scores of `classes` classes and knows nothing yet.

    Everything before it is as it was. The new weights are drawn uniformly from +-sqrt(6 / (fan in + fan out))
    (Glorot & Bengio 2010), biases are zero; names stay.

    Args:
        output: the output that becomes another; the first unless given.
        seed: of the new weights.

    Raises:
        InputError: there is no such output, or `classes` is no positive whole number.
        Refused: no dense layer makes the output.
    """
    check_whole("classes", classes, least=1)
    made = graph.clone(model)
    head = head_of(made, output)
    old = graph.const_array(head.weight)
    assert old is not None
    count = old.shape[head.axis]
    shape = [classes if k == head.axis else n for k, n in enumerate(old.shape)]
    fan_in = math.prod(shape) / classes
    limit = math.sqrt(6 / (fan_in + classes))
    drawn = generator(seed, "head", str(head.weight.name)).uniform(-limit, limit, shape).astype(old.dtype)
    _put(made, head.node, 1, head.weight, drawn)
    if head.bias is not None:
        array = graph.const_array(head.bias)
        if array is not None:
            new = np.zeros([classes if n == count else n for n in array.shape], array.dtype)
            holder = next(n for n in (head.node, *head.behind) if head.bias in n.inputs)
            _put(made, holder, list(holder.inputs).index(head.bias), head.bias, new)
    for node in head.behind:
        target = graph.const_array(node.inputs[1]) if node.op_type == "Reshape" else None
        if target is not None and count in target:
            numbers = np.where(target == count, classes, target).astype(np.int64)
            _put(made, node, 1, node.inputs[1], numbers)
    made_by = head.node.outputs[0]
    rank = None if made_by.shape is None else len(made_by.shape)
    place = 1 if head.node.op_type == "Conv" else -1
    for value in (made_by, *(v for node in head.behind for v in node.outputs)):
        if (
            value.shape is not None and len(value.shape) == rank
        ):  # an image may be as wide as there are classes
            sizes = list(value.shape)
            sizes[place] = classes
            value.shape = ir.Shape(sizes)
        else:
            value.shape = _reshaped(value, count, classes)
    graph.tidy(made)
    graph.refresh_shapes(made)
    return made


def _put(model: ir.Model, node: ir.Node, index: int, value: ir.Value | None, array: np.ndarray) -> None:  # type: ignore[type-arg]
    """Give one input of a node another content; a weight that others read, too, is left to them."""
    assert value is not None
    if len(value.uses()) == 1 and value.is_initializer():
        graph.replace_weight(value, array)
    else:
        node.replace_input_with(index, graph.add_initializer(model.graph, f"{value.name}_new", array))


def _reshaped(value: ir.Value, old: int, new: int) -> ir.Shape | None:
    if value.shape is None:
        return None
    return ir.Shape([new if d == old and k else d for k, d in enumerate(value.shape)])
