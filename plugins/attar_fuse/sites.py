"""Places where a runtime may have a faster kernel: what would be replaced, and by which forms.

A `Form` does not hold nodes but makes them, from the values that it reads. So one form serves a small model
made for timing and the model itself.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import onnx_ir as ir

from attar.graph import fresh_name, taken_names
from attar.rewrite.edit import Array, at

CONTRIB = "com.microsoft"
"""The domain of the operators that ONNX Runtime alone knows."""


class Tape:
    """Makes nodes and constants in one graph.

    Args:
        insert: puts a new node into the graph.
    """

    def __init__(self, model: ir.Model, insert: Callable[[ir.Node], None]) -> None:
        self._graph, self._insert = model.graph, insert
        self._imports, self._taken = model.opset_imports, taken_names(model.graph)

    def reserve(self, names: Iterable[str | None]) -> None:
        """Names that nothing new may take."""
        self._taken |= {n for n in names if n}

    def constant(self, base: str, array: Array | np.generic) -> ir.Value:
        """A new initializer."""
        array = np.ascontiguousarray(array) if np.ndim(array) else np.asarray(array)
        name = fresh_name(self._graph, base, self._taken)
        value = ir.Value(name=name, const_value=ir.tensor(array, name=name))
        value.type, value.shape = ir.TensorType(ir.DataType.from_numpy(array.dtype)), ir.Shape(array.shape)
        self._graph.register_initializer(value)
        return value

    def ints(self, base: str, *numbers: int) -> ir.Value:
        """A constant of int64."""
        return self.constant(base, np.array(numbers, np.int64))

    def node(
        self,
        op_type: str,
        inputs: Sequence[ir.Value | None],
        attributes: Mapping[str, Any] | None = None,
        *,
        like: ir.Value | None = None,
        domain: str = "",
        outputs: int = 1,
    ) -> list[ir.Value]:
        """A new node and its outputs, of the type of `like` (int64 without), shapes left open."""
        new = ir.node(op_type, list(inputs), dict(attributes or {}), domain=domain, num_outputs=outputs)
        base = next((v.name for v in inputs if v is not None and v.name), "value")
        new.name = fresh_name(self._graph, f"{base}_{op_type}", self._taken)
        for value in new.outputs:
            value.name = fresh_name(self._graph, f"{base}_{op_type}", self._taken)
            kind = ir.DataType.INT64 if like is None else like.dtype
            value.type = None if kind is None else ir.TensorType(kind)
        if domain:
            self._imports.setdefault(domain, 1)
        self._insert(new)
        return list(new.outputs)

    def one(
        self, op_type: str, inputs: Sequence[ir.Value | None], like: ir.Value, **attributes: Any
    ) -> ir.Value:
        """The output of a new node of the default domain that has one."""
        return self.node(op_type, inputs, attributes, like=like)[0]


Values = Mapping[ir.Value, ir.Value]
"""Value of the model -> what stands for it where the form is made."""


@dataclass(frozen=True)
class Form:
    """One way to compute the outputs of a site.

    Attributes:
        name: what it is called in the report.
        inputs: the values of the model that it reads, constants included.
        make: gives the outputs, in the order of the site's.
        opset: the opset of the default domain that its operators need.
        contrib: whether it uses operators that ONNX Runtime alone knows.
    """

    name: str
    inputs: tuple[ir.Value, ...]
    make: Callable[[Tape, Values], Sequence[ir.Value]]
    opset: int = 0
    contrib: bool = False


@dataclass(frozen=True)
class Site:
    """Values that could be computed otherwise.

    Attributes:
        pattern: what was recognised.
        outputs: the values that a form replaces.
        forms: the ways there are.
        reason: why there are none, where something was recognised that has to stay.
    """

    pattern: str
    outputs: tuple[ir.Value, ...]
    forms: tuple[Form, ...] = ()
    reason: str = ""

    @property
    def node(self) -> ir.Node:
        """The node that makes the last output."""
        node = self.outputs[-1].producer()
        assert node is not None
        return node


@dataclass(frozen=True)
class Finder:
    """Finds the sites of one pattern in a model.

    Attributes:
        name: as in the option `patterns`.
        about: one line for error messages and documentation.
    """

    name: str
    about: str
    find: Callable[[ir.Model], Iterator[Site]] = field(repr=False)


def made_by(value: ir.Value | None, *ops: str) -> ir.Node | None:
    """The node of the default domain behind `value` if it is one of `ops`."""
    node = None if value is None else value.producer()
    return node if node is not None and node.domain == "" and node.op_type in ops else None


def nodes_of(model: ir.Model, *ops: str) -> Iterator[ir.Node]:
    """The nodes of the main graph of these types, in order. The graph may be changed between two."""
    for node in list(model.graph):
        if node.graph is not None and node.domain == "" and node.op_type in ops:
            yield node


def other_input(node: ir.Node, value: ir.Value) -> ir.Value | None:
    """Of a node with two inputs, the one that is not `value`."""
    return at(node, 1) if at(node, 0) is value else at(node, 0)
