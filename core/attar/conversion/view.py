"""A node as a lowering wants to see it: attributes, constants and shapes as plain Python and numpy values."""

from __future__ import annotations

from typing import Any

import numpy as np
import onnx
import onnx_ir as ir

from attar.errors import ConversionError
from attar.graph import const_array
from attar.specs import Dim

Array = np.ndarray[Any, np.dtype[Any]]


class NodeView:
    """One node of a model that is being written.

    Args:
        node: the node.
        opset: version of the default domain that the node is written in.
        framework: where it goes; refusals name it.
    """

    def __init__(self, node: ir.Node, *, opset: int, framework: str) -> None:
        self.node, self.opset, self.framework = node, opset, framework

    @property
    def op(self) -> str:
        """The operator's key: its type, or `domain::type` outside the default domain."""
        return op_key(self.node)

    @property
    def name(self) -> str:
        return self.node.name or "?"

    def __repr__(self) -> str:
        return f"NodeView({self.op} {self.name!r})"

    # -- attributes ------------------------------------------------------------------------------------------

    def attr(self, name: str, default: Any = None) -> Any:
        """An attribute as int, float, str, list or numpy array; `default` if it is absent.

        Without a `default`, the one that the operator's schema gives is used.
        """
        found = self.node.attributes.get(name)
        if found is None:
            return self._schema_default(name) if default is None else default
        kind = found.type
        if kind == ir.AttributeType.TENSOR:
            return found.as_tensor().numpy()
        if kind in (ir.AttributeType.INTS, ir.AttributeType.FLOATS, ir.AttributeType.STRINGS):
            return list(found.value)
        return found.value

    def graph_attr(self, name: str) -> ir.Graph:
        """A subgraph."""
        return self.node.attributes[name].as_graph()

    # -- inputs ----------------------------------------------------------------------------------------------

    @property
    def inputs(self) -> tuple[ir.Value | None, ...]:
        return tuple(self.node.inputs)

    @property
    def outputs(self) -> tuple[ir.Value, ...]:
        return tuple(self.node.outputs)

    def input(self, index: int) -> ir.Value | None:
        """Input `index`, None if it is absent or left out."""
        return self.node.inputs[index] if index < len(self.node.inputs) else None

    def has(self, index: int) -> bool:
        return self.input(index) is not None

    def const(self, index: int) -> Array | None:
        """Input `index` as a read-only array if it is a constant, else None."""
        return const_array(self.input(index))

    def need_const(self, index: int, what: str) -> Array:
        """Input `index`, which must be constant.

        Raises:
            ConversionError: it is absent or computed.
        """
        found = self.const(index)
        if found is None:
            raise self.refuse(f"{what} is computed while the model runs")
        return found

    def option(self, index: int, name: str, default: Any = None) -> Any:
        """What newer opsets give as input `index` and older ones as attribute `name`.

        Returns:
            A numpy array from an input, a Python value from an attribute, else `default`.

        Raises:
            ConversionError: the input is there and computed.
        """
        if self.has(index):
            return self.need_const(index, name)
        found = self.node.attributes.get(name)
        return default if found is None else self.attr(name)

    # -- types and shapes ------------------------------------------------------------------------------------

    def shape(self, index: int = 0) -> tuple[Dim, ...] | None:
        """Shape of input `index`: numbers, names or None for dimensions; None if the rank is unknown."""
        return shape_of(self.input(index))

    def rank(self, index: int = 0) -> int | None:
        shape = self.shape(index)
        return None if shape is None else len(shape)

    def need_rank(self, index: int = 0) -> int:
        """Rank of input `index`.

        Raises:
            ConversionError: it is unknown.
        """
        rank = self.rank(index)
        if rank is None:
            raise self.refuse(f"the rank of input {index} is unknown")
        return rank

    def dtype(self, index: int = 0) -> np.dtype[Any]:
        """Element type of input `index`.

        Raises:
            ConversionError: it is unknown.
        """
        return self._dtype(self.input(index), f"input {index}")

    def out_shape(self, index: int = 0) -> tuple[Dim, ...] | None:
        return shape_of(self.node.outputs[index])

    def out_dtype(self, index: int = 0) -> np.dtype[Any]:
        return self._dtype(self.node.outputs[index], f"output {index}")

    def wants(self, index: int) -> bool:
        """Whether anything uses output `index`."""
        if index >= len(self.node.outputs):
            return False
        value = self.node.outputs[index]
        return bool(value.uses()) or value.is_graph_output()

    # -- refusing --------------------------------------------------------------------------------------------

    def refuse(self, reason: str) -> ConversionError:
        """The error that says that this node cannot be written; to be raised."""
        return ConversionError(
            f"{self.framework} cannot say the {self.op} node {self.name!r} exactly: {reason}",
            missing={self.op: [self.name]},
        )

    def _dtype(self, value: ir.Value | None, what: str) -> np.dtype[Any]:
        if value is None or value.dtype is None:
            raise self.refuse(f"the element type of {what} is unknown")
        return np.dtype(value.dtype.numpy())

    def _schema_default(self, name: str) -> Any:
        if self.node.domain != "":
            return None
        try:
            schema = onnx.defs.get_schema(self.node.op_type, self.opset, "")
        except onnx.defs.SchemaError:
            return None
        known = schema.attributes.get(name)
        if known is None or not known.default_value.name:
            return None
        value = onnx.helper.get_attribute_value(known.default_value)
        return value.decode() if isinstance(value, bytes) else value


def shape_of(value: ir.Value | None) -> tuple[Dim, ...] | None:
    if value is None or value.shape is None:
        return None
    return tuple(d if isinstance(d, int) else d.value for d in value.shape)


def op_key(node: ir.Node) -> str:
    """The name of a node's operator in op tables."""
    return node.op_type if node.domain in ("", "ai.onnx") else f"{node.domain}::{node.op_type}"
