"""Lowerings of weights that are stored in few bits, by the mark that `quantize.weights` leaves on them."""

from __future__ import annotations

from typing import Any

import numpy as np
import onnx_ir as ir

from attar import graph

Array = np.ndarray[Any, np.dtype[Any]]
MARK = "attar.weights"
"""Metadata of a DequantizeLinear: `load`, `rows` or `kernel` (leave it to the runtime to fuse)."""


def weights_on_load(model: ir.Model) -> int:
    """Write DequantizeLinear of a constant as Cast, Sub and Mul, which ONNX Runtime computes on loading.

    It keeps DequantizeLinear out of constant folding, so that a weight would be turned to float again at
    every run. x' = (q - z) s with blocks of b rows is Cast(q) reshaped to [..., n / b, b, ...], less z, times
    s: the same operations on the same numbers, so that the result is equal to the bit.
    """
    count = 0
    for owner in list(model.graphs()):
        for node in list(owner):
            if node.op_type != "DequantizeLinear" or node.metadata_props.get(MARK) != "load":
                continue
            codes, scale = node.inputs[0], node.inputs[1]
            if codes is None or scale is None or codes.const_value is None or scale.const_value is None:
                continue
            _on_load(model, owner, node, codes, scale)
            count += 1
    return count


def rows_of_tables(model: ir.Model) -> int:
    """Gather rows of codes and turn these to numbers, instead of the whole table at every run.

    Gather(DequantizeLinear(q, s), i) becomes Cast(Gather(q, i)) Gather(s, i), less the zero point.
    """
    count = 0
    for owner in list(model.graphs()):
        for node in list(owner):
            if node.op_type != "DequantizeLinear" or node.metadata_props.get(MARK) != "rows":
                continue
            users = list(node.outputs[0].uses())
            if any(u.op_type != "Gather" or p != 0 for u, p in users) or node.outputs[0].is_graph_output():
                continue
            codes, scale = node.inputs[0], node.inputs[1]
            if codes is None or scale is None or scale.const_value is None or codes.shape is None:
                continue
            edit = _Edit(model, owner)
            # One scale a row, with as many axes of 1 behind it as a row has.
            tail = [1] * (len(codes.shape) - 1)
            name = node.outputs[0].name or "table"
            scales = edit.constant(f"{name}/scales", _array(scale).reshape(-1, *tail))
            zero = _array(node.inputs[2]) if len(node.inputs) > 2 and node.inputs[2] is not None else None
            zeros = None
            if zero is not None and zero.any():
                zeros = edit.constant(f"{name}/zero_points", zero.astype(np.float32).reshape(-1, *tail))
            for user, _ in users:
                _gather(edit, user, codes, scales, zeros)
            count += 1
    return count


def _gather(edit: _Edit, user: ir.Node, codes: ir.Value, scales: ir.Value, zeros: ir.Value | None) -> None:
    indices, out = user.inputs[1], user.outputs[0]
    assert indices is not None
    edit.before = user
    picked = edit.node("Cast", [edit.node("Gather", [codes, indices], axis=0)], to=ir.DataType.FLOAT.value)
    if zeros is not None:
        picked = edit.node("Sub", [picked, edit.node("Gather", [zeros, indices], axis=0)])
    result = edit.node("Mul", [picked, edit.node("Gather", [scales, indices], axis=0)])
    edit.replace(out, result)


def _on_load(model: ir.Model, owner: ir.Graph, node: ir.Node, codes: ir.Value, scale: ir.Value) -> None:
    assert codes.const_value is not None
    edit = _Edit(model, owner)
    edit.before = node
    shape = tuple(codes.const_value.shape.numpy())
    steps = _array(scale)
    zero = _array(node.inputs[2]) if len(node.inputs) > 2 and node.inputs[2] is not None else None
    axis_attribute, block_attribute = node.attributes.get("axis"), node.attributes.get("block_size")
    axis = (1 if axis_attribute is None else int(axis_attribute.value)) % max(1, len(shape))
    block = 0 if block_attribute is None else int(block_attribute.value)
    name = node.outputs[0].name or "weight"
    value = edit.node("Cast", [codes], to=ir.DataType.FLOAT.value)
    split = bool(block) and shape[axis] % block == 0
    if split:
        inner = (*shape[:axis], shape[axis] // block, block, *shape[axis + 1 :])
        value = edit.node("Reshape", [value, edit.constant(f"{name}/blocks", np.array(inner, np.int64))])
        along = (*shape[:axis], shape[axis] // block, 1, *shape[axis + 1 :])
    elif block:
        # The last block is short: every element takes its own scale from the list by index.
        index = edit.constant(f"{name}/index", np.arange(shape[axis]) // block)
        along = steps.shape
    else:
        along = tuple(-1 if i == axis and steps.ndim else 1 for i in range(len(shape)))

    def spread(array: Array, what: str) -> ir.Value:
        constant = edit.constant(f"{name}/{what}", array.reshape(along))
        return edit.node("Gather", [constant, index], axis=axis) if block and not split else constant

    if zero is not None and zero.astype(np.float32).any():
        value = edit.node("Sub", [value, spread(zero.astype(np.float32), "zero_points")])
    value = edit.node("Mul", [value, spread(steps, "scales")])
    if split:
        value = edit.node("Reshape", [value, edit.constant(f"{name}/shape", np.array(shape, np.int64))])
    edit.replace(node.outputs[0], value)


class _Edit:
    """Inserts nodes before one node of a graph."""

    def __init__(self, model: ir.Model, owner: ir.Graph) -> None:
        self._main, self._owner = model.graph, owner
        self.before: ir.Node | None = None

    def constant(self, name: str, array: Array) -> ir.Value:
        # Names are looked for in the main graph, so that nothing in a subgraph is shadowed.
        tensor = ir.tensor(np.ascontiguousarray(array), name=graph.fresh_name(self._main, name))
        value = ir.Value(
            name=tensor.name,
            type=ir.TensorType(tensor.dtype),
            shape=ir.Shape(tensor.shape.numpy()),
            const_value=tensor,
        )
        self._owner.register_initializer(value)
        return value

    def node(self, operator: str, inputs: list[ir.Value], **attributes: int) -> ir.Value:
        assert self.before is not None
        base = self.before.outputs[0].name or "weight"
        made = ir.node(
            operator,
            inputs,
            attributes=attributes,
            name=graph.fresh_name(self._main, f"{base}/{operator.lower()}"),
        )
        made.outputs[0].name = graph.fresh_name(self._main, f"{base}/{operator.lower()}_out")
        kind = inputs[0].dtype if operator in ("Gather", "Reshape") else ir.DataType.FLOAT
        made.outputs[0].type = ir.TensorType(kind or ir.DataType.FLOAT)
        self._owner.insert_before(self.before, made)
        return made.outputs[0]

    def replace(self, old: ir.Value, new: ir.Value) -> None:
        """Everyone who read `old` reads `new`; an output of the graph keeps its name."""
        new.shape = old.shape
        for user, position in list(old.uses()):
            user.replace_input_with(position, new)
        owner = self._owner
        for i, output in enumerate(owner.outputs):
            if output is old:
                owner.outputs[i] = new
                old.name, new.name = f"{old.name}/replaced", old.name


def _array(value: ir.Value | None) -> Array:
    assert value is not None
    assert value.const_value is not None
    return value.const_value.numpy()
