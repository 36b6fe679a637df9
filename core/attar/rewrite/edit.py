"""What a rule may do to the graph, so that names, outputs, shared weights and scopes are treated alike
everywhere.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import onnx_ir as ir

from attar.graph import const_array, fresh_name, replace_weight, taken_names

if TYPE_CHECKING:
    from attar.context import Context

Array = np.ndarray[Any, np.dtype[Any]]
Dim = int | str | None
FLOATS = frozenset({ir.DataType.FLOAT, ir.DataType.DOUBLE, ir.DataType.FLOAT16, ir.DataType.BFLOAT16})


class Edit:
    """One run of rules over a model: changes are counted, refusals remembered, and both told to the report at
    the end.
    """

    def __init__(self, model: ir.Model, ctx: Context) -> None:
        self.model, self.ctx = model, ctx
        self.opset = model.opset_imports.get("", 0)
        self._taken = taken_names(model.graph)
        self._done: Counter[str] = Counter()
        self._refused: dict[int, tuple[ir.Node, str]] = {}
        self._copies: dict[tuple[int, bytes], tuple[ir.Value, ir.Value]] = {}

    # -- telling ---------------------------------------------------------------------------------------------

    def did(self, what: str) -> bool:
        """Count one change; the report says how often. Always True, so that a rule can return it."""
        self._done[what] += 1
        return True

    def refuse(self, node: ir.Node, reason: str) -> bool:
        """Remember why `node` was left alone. Always False. It is reported if the node is still there at the
        end.
        """
        self._refused[id(node)] = (node, reason)
        return False

    def refusal(self, node: ir.Node) -> str:
        """Why `node` was left alone, as far as is known."""
        return self._refused.get(id(node), (node, ""))[1]

    def tell(self) -> None:
        """Hand changes and refusals to the report."""
        for what, count in self._done.items():
            self.ctx.note(f"{count} {what}")
        for node, reason in self._refused.values():
            if node.graph is not None:
                self.ctx.skip(node, reason)

    # -- asking ----------------------------------------------------------------------------------------------

    def producer(self, value: ir.Value | None, *ops: str, beside: ir.Node | None = None) -> ir.Node | None:
        """The node behind `value` if it is one of `ops` of the default domain, in the graph of `beside` if
        given.
        """
        node = None if value is None else value.producer()
        if node is None or node.domain != "" or node.op_type not in ops:
            return None
        return node if beside is None or node.graph is beside.graph else None

    def alone(self, value: ir.Value) -> bool:
        """Whether one node uses `value`, once, and it leaves no graph."""
        return len(value.uses()) == 1 and not value.is_graph_output()

    def why_not_alone(self, value: ir.Value) -> str:
        node = value.producer()
        what = f"the output of the {node.op_type} before it" if node is not None else "its input"
        return f"{what} is a graph output" if value.is_graph_output() else f"{what} is used elsewhere"

    def scalar(self, value: ir.Value | None) -> float | None:
        """The number in a constant of one element."""
        array = const_array(value)
        return float(array.reshape(-1)[0]) if array is not None and array.size == 1 else None

    def ints(self, value: ir.Value | None) -> tuple[int, ...] | None:
        """A constant of integers, flattened."""
        array = const_array(value)
        if array is None or array.dtype.kind not in "iu":
            return None
        return tuple(int(v) for v in array.reshape(-1))

    # -- changing --------------------------------------------------------------------------------------------

    def constant(self, base: str, array: Array | np.generic) -> ir.Value:
        """A new initializer of the main graph, which every subgraph can see."""
        array = np.asarray(array)
        name = fresh_name(self.model.graph, base, self._taken)
        value = ir.Value(name=name, const_value=ir.tensor(array, name=name))
        value.type, value.shape = ir.TensorType(ir.DataType.from_numpy(array.dtype)), ir.Shape(array.shape)
        self.model.graph.register_initializer(value)
        return value

    def reweight(self, node: ir.Node, index: int, array: Array) -> None:
        """Give input `index` of `node` the content `array`. A weight that others use too is copied first.

        Two users that ask for the same new content of the same weight share one copy.
        """
        value = node.inputs[index]
        assert value is not None
        array = np.ascontiguousarray(array)
        key = (id(value), array.tobytes()) if array.nbytes <= 1 << 24 else None
        if key in self._copies:
            node.replace_input_with(index, self._copies[key][1])
        elif self.alone(value) and value.is_initializer():
            replace_weight(value, array)
        else:
            copy = self.constant(value.name or "weight", array)
            node.replace_input_with(index, copy)
            if key is not None:
                self._copies[key] = (value, copy)  # the original is kept alive, so that its id stays its own

    def set_input(self, node: ir.Node, index: int, value: ir.Value) -> None:
        """Set an input that may lie beyond the present ones."""
        if index >= len(node.inputs):
            node.resize_inputs(index + 1)
        node.replace_input_with(index, value)

    def merge_into(self, node: ir.Node, value: ir.Value) -> bool:
        """Remove `node`: `value`, its sole input so far, now is its result and takes its name.

        `value` must be made by a node of the same graph, and be used by `node` alone.
        """
        old = node.outputs[0]
        name, shape, kind = old.name, old.shape, old.type
        old.name = None
        value.name, value.shape, value.type = name, shape, kind
        value.metadata_props.update(old.metadata_props)
        old.replace_all_uses_with(value, replace_graph_outputs=True)
        _remove(node)
        return True

    def bypass(self, node: ir.Node, value: ir.Value) -> bool:
        """Remove `node`, whose result equals `value`. False if an output keeps it in place."""
        old = node.outputs[0]
        if not old.is_graph_output():
            _inherit(value, old)
            old.replace_all_uses_with(value)
            _remove(node)
            return True
        maker = value.producer()
        if maker is None or maker.graph is not node.graph or value.is_graph_output():
            return False  # an input, a constant or an outer value cannot itself be an output
        return self.merge_into(node, value)

    def replace(
        self,
        node: ir.Node,
        op_type: str,
        inputs: Sequence[ir.Value | None],
        attributes: Mapping[str, Any] | None = None,
    ) -> ir.Node:
        """Put a new node in the place of `node`; its first output takes the name, type and shape of the old
        one.
        """
        old = node.outputs[0]
        new = self.before(node, op_type, inputs, attributes, like=old)
        new.name = node.name
        result = new.outputs[0]
        result.name, old.name = old.name, None
        result.metadata_props.update(old.metadata_props)
        old.replace_all_uses_with(result, replace_graph_outputs=True)
        _remove(node)
        return new

    def before(
        self,
        node: ir.Node,
        op_type: str,
        inputs: Sequence[ir.Value | None],
        attributes: Mapping[str, Any] | None = None,
        *,
        like: ir.Value,
        shape: Sequence[Dim] | None = None,
    ) -> ir.Node:
        """A new node in front of `node`, whose output has the type of `like` and its shape unless another is
        given.
        """
        new = ir.node(op_type, list(inputs), dict(attributes or {}))
        result = new.outputs[0]
        result.name = fresh_name(self.model.graph, f"{like.name}_{op_type}", self._taken)
        result.type = like.type
        result.shape = like.shape if shape is None else ir.Shape(list(shape))
        new.name = fresh_name(self.model.graph, f"{node.name or op_type}_{op_type}", self._taken)
        assert node.graph is not None
        node.graph.insert_before(node, new)
        return new


Rule = Callable[[ir.Node, Edit], bool]


def _remove(node: ir.Node) -> None:
    assert node.graph is not None
    node.graph.remove(node, safe=True)


def _inherit(value: ir.Value, old: ir.Value) -> None:
    if value.shape is None:
        value.shape = old.shape
    if value.type is None:
        value.type = old.type


def is_float(value: ir.Value | None) -> bool:
    return value is not None and value.dtype in FLOATS


def dims(value: ir.Value | None) -> tuple[Dim, ...] | None:
    """Dimensions as numbers, names or None; None if the rank is unknown."""
    if value is None or value.shape is None:
        return None
    return tuple(d if isinstance(d, int) else d.value for d in value.shape)


def same_shape(a: ir.Value | None, b: ir.Value | None) -> bool:
    """Whether two values certainly have one shape, symbols included."""
    first, second = dims(a), dims(b)
    return first is not None and first == second and None not in first


def int_of(node: ir.Node, name: str, default: int) -> int:
    found = node.attributes.get(name)
    return default if found is None else int(found.as_int())


def ints_of(node: ir.Node, name: str) -> tuple[int, ...] | None:
    found = node.attributes.get(name)
    return None if found is None else tuple(int(v) for v in found.as_ints())


def float_of(node: ir.Node, name: str, default: float) -> float:
    found = node.attributes.get(name)
    return default if found is None else float(found.as_float())


def string_of(node: ir.Node, name: str, default: str) -> str:
    found = node.attributes.get(name)
    return default if found is None else str(found.as_string())


def at(node: ir.Node, index: int) -> ir.Value | None:
    """Input `index`, None if absent."""
    return node.inputs[index] if index < len(node.inputs) else None
