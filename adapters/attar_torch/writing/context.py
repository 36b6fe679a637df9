"""What a lowering works with: the graph under construction, the module tree, and the values made so far."""

from __future__ import annotations

import operator
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
import onnx_ir as ir
import torch
import torch.fx

from attar.conversion import NodeView
from attar.graph import const_array
from attar_torch.writing.dims import Dims
from attar_torch.writing.dtypes import FLOATING, number, torch_dtype
from attar_torch.writing.functions.basic import arange, int_tensor
from attar_torch.writing.store import Store
from attar_torch.writing.table import Lowering


class Context:
    """One graph that is being written. Lowerings get it as their first argument.

    Attributes:
        graph: the `torch.fx.Graph`; `call`, `method` and `layer` add to it.
        store: owner of parameters, buffers and submodules.
        table: operator -> lowering, for subgraphs.
    """

    def __init__(self, store: Store, table: Mapping[str, Lowering], opset: int) -> None:
        self.store, self.table, self.opset = store, table, opset
        self.graph = torch.fx.Graph(tracer_cls=store.tracer)
        self.values: dict[ir.Value, Any] = {}
        self.inputs: list[torch.fx.Node] = []
        self.done: set[ir.Node] = set()
        self.poisoned: set[ir.Value] = set()
        self._tensors: dict[Any, torch.fx.Node] = {}
        self._stored: dict[str, torch.fx.Node] = {}

    # -- adding to the graph ---------------------------------------------------------------------------------

    def call(self, function: Callable[..., Any], *args: Any, **kwargs: Any) -> torch.fx.Node:
        """Call a torch function, an operator of Python, or a function marked `leaf`."""
        return self.graph.call_function(function, args, kwargs)

    def method(self, name: str, tensor: Any, *args: Any, **kwargs: Any) -> torch.fx.Node:
        """Call a method of a tensor."""
        return self.graph.call_method(name, (tensor, *args), kwargs)

    def layer(
        self,
        view: NodeView,
        module: torch.nn.Module,
        *args: Any,
        weights: Mapping[str, Any] | None = None,
        buffers: Mapping[str, Any] | None = None,
    ) -> torch.fx.Node:
        """Call `module` as a submodule named after the node or its weight.

        Args:
            module: made with `device="meta"` where it has parameters.
            args: its arguments.
            weights: parameter -> ir.Value, or (ir.Value, change) with a function from its array to the
                parameter's, or an array. A value that is a parameter already is shared.
            buffers: the same for its buffers.
        """
        path = self.store.module(view, module, weights or {}, buffers or {})
        return self.graph.call_module(path, args)

    def size(self, tensor: torch.fx.Node, axis: int) -> torch.fx.Node:
        """Size of an axis of a tensor while the model runs."""
        return self._once(("size", tensor, axis), lambda: self.method("size", tensor, axis))

    # -- inputs of a node ------------------------------------------------------------------------------------

    def value(self, value: ir.Value | None) -> Any:
        """What stands for a value: a node, or a `Dims`; a node that holds it if it is a constant."""
        assert value is not None
        if value in self.values:
            return self.values[value]
        if const_array(value) is None:
            raise KeyError(value.name)
        return self._get(self.store.buffer(value))

    def tensor(self, view: NodeView, index: int = 0) -> torch.fx.Node:
        """Input `index` as a tensor."""
        return self.as_tensor(self.value(view.input(index)))

    def optional(self, view: NodeView, index: int) -> torch.fx.Node | None:
        """Input `index` as a tensor, None if it is left out."""
        return self.tensor(view, index) if view.has(index) else None

    def operand(self, view: NodeView, index: int, other: int) -> Any:
        """Input `index` of an elementwise operator: a Python number if it is a constant that one can stand
        for next to the tensor of input `other`."""
        array = view.const(index)
        if array is None or array.size != 1 or array.dtype.kind not in "fiu" or view.const(other) is not None:
            return self.tensor(view, index)
        rank = view.rank(other)
        if array.ndim == 0 or (rank is not None and array.ndim <= rank):
            return number(array)
        return self.tensor(view, index)

    def parameter(self, view: NodeView, index: int) -> torch.fx.Node:
        """Input `index` as a tensor; trainable if it is a constant of a floating type."""
        value = view.input(index)
        assert value is not None
        if value in self.values or const_array(value) is None or value.dtype not in FLOATING:
            return self.tensor(view, index)
        return self._get(self.store.parameter(value))

    def own(self, view: NodeView, name: str, array: Any, *, trainable: bool = False) -> torch.fx.Node:
        """A constant of the writer's own, next to the node's parameters."""
        return self._get(self.store.constant(view, name, array, trainable))

    def ints(self, view: NodeView, index: int) -> list[Any]:
        """Input `index`, a vector or scalar of integers, as numbers and nodes that give numbers.

        Raises:
            ConversionError: its length is unknown.
        """
        value = view.input(index)
        array = view.const(index)
        if array is not None:
            return [int(v) for v in array.reshape(-1)]
        found = self.values.get(value) if value is not None else None
        if isinstance(found, Dims):
            return list(found.items)
        shape = view.shape(index)
        if shape is None or any(not isinstance(d, int) for d in shape) or len(shape) > 1:
            raise view.refuse(f"it is unknown how many numbers input {index} holds")
        count = 1 if not shape else int(shape[0])  # type: ignore[arg-type]
        listed = self._once(("list", value), lambda: self._listed(view, index))
        return [
            self._once(("item", value, k), lambda k=k: self.call(operator.getitem, listed, k))
            for k in range(count)
        ]

    def _listed(self, view: NodeView, index: int) -> torch.fx.Node:
        tensor = self.tensor(view, index)
        return self.method("tolist", self.method("reshape", tensor, -1))

    def int_option(self, view: NodeView, index: int, name: str) -> list[int] | None:
        """Axes and the like: constant integers from an input or, in older opsets, an attribute."""
        found = view.option(index, name)
        return None if found is None else [int(v) for v in np.asarray(found).reshape(-1)]

    # -- dims ------------------------------------------------------------------------------------------------

    def dims(self, view: NodeView, index: int) -> Dims | None:
        """Input `index` as `Dims`, if it is one or an integer constant that could be."""
        value = view.input(index)
        found = self.values.get(value) if value is not None else None
        if isinstance(found, Dims):
            return found
        array = view.const(index)
        if array is None or array.dtype.kind not in "iu" or array.ndim > 1 or array.size > 64:
            return None
        return Dims(tuple(int(v) for v in array.reshape(-1)), array.ndim == 0)

    def as_tensor(self, value: Any) -> torch.fx.Node:
        """A tensor of `value`; `Dims` become one here."""
        if isinstance(value, Dims):
            items = list(value.items)
            return self._once(
                ("tensor", value), lambda: self.call(int_tensor, items, value.scalar, like=self.like)
            )
        assert isinstance(value, torch.fx.Node), value
        return value

    @property
    def like(self) -> torch.fx.Node | None:
        """A tensor on the device that the model runs on."""
        return self.inputs[0] if self.inputs else None

    def arange(self, start: Any, limit: Any, step: Any, dtype: torch.dtype) -> torch.fx.Node:
        return self.call(arange, start, limit, step, dtype=dtype, like=self.like)

    def dtype(self, value: ir.Value | None) -> torch.dtype:
        """torch's type for a value."""
        found = torch_dtype(None if value is None else value.dtype)
        assert found is not None
        return found

    # -- internals -------------------------------------------------------------------------------------------

    def _get(self, path: str) -> torch.fx.Node:
        if path not in self._stored:
            with self.graph.inserting_before(self._first()):
                self._stored[path] = self.graph.create_node("get_attr", path)
        return self._stored[path]

    def _first(self) -> torch.fx.Node:
        """Where constants are fetched: behind the arguments, so that subgraphs may use them too."""
        for node in self.graph.nodes:
            if node.op != "placeholder":
                return node
        return self.graph._root

    def _once(self, key: Any, make: Callable[[], torch.fx.Node]) -> torch.fx.Node:
        if key not in self._tensors:
            self._tensors[key] = make()
        return self._tensors[key]
