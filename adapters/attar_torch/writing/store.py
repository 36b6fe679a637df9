"""The module tree of a written model: its parameters, buffers and submodules."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
import onnx_ir as ir
import torch
import torch.fx

from attar.adapters import Placed
from attar.conversion import NodeView
from attar.graph import const_array, is_learned
from attar_torch.writing import naming
from attar_torch.writing.dtypes import FLOATING, to_tensor
from attar_torch.writing.leaf import LeafTracer
from attar_torch.writing.written import WrittenModule

Array = np.ndarray[Any, np.dtype[Any]]
Change = Callable[[Array], Array]


class Store:
    """Registers tensors under the names that the source gave them, each once."""

    tracer = LeafTracer

    def __init__(self) -> None:
        self.root = torch.nn.Module()
        self.paths = naming.Paths()
        self._parameters: dict[Any, torch.nn.Parameter] = {}
        self._where: dict[ir.Value, str] = {}
        self._modules: dict[Any, str] = {}
        self._constants: list[str] = []
        # id of a tensor -> the tensor, which keeps the id its own, the value that it holds and how
        self._sources: dict[int, tuple[torch.Tensor, ir.Value, Change | None]] = {}

    def child(self) -> Store:
        """The store of a subgraph: a tree of its own that shares the parameters."""
        inner = Store()
        inner._parameters, inner._sources = self._parameters, self._sources
        return inner

    def weights(self, module: torch.nn.Module) -> dict[str, tuple[Placed, ...]]:
        """Where `module`, which was made of this tree, holds which initializers."""
        found: dict[str, list[Placed]] = {}
        for path, tensor in (*module.named_parameters(), *module.named_buffers()):
            if id(tensor) in self._sources:
                _, value, change = self._sources[id(tensor)]
                found.setdefault(value.name or "", []).append(Placed(path, change))
        return {name: tuple(places) for name, places in found.items()}

    def finish(self, graph: torch.fx.Graph, name: str = "Model") -> WrittenModule:
        """The module of this tree that runs `graph`."""
        self.root.attar_constants = tuple(self._constants)
        return WrittenModule(self.root, graph, name)

    # -- tensors ---------------------------------------------------------------------------------------------

    def parameter(self, value: ir.Value) -> str:
        """Path of the trainable parameter with the content of `value`, unless it is marked as not learned."""
        if is_learned(value) is False:
            return self.buffer(value)
        path = self._where.get(value)
        if path is None:
            path = self._where[value] = self._path(value)
        elif isinstance(self._at(path), torch.nn.Parameter):
            return path
        else:
            owner, name = self._owner(path)
            delattr(owner, name)
        self._register(path, self._shared(value, None))
        return path

    def buffer(self, value: ir.Value) -> str:
        """Path of a tensor with the content of `value`, not trainable unless it already is elsewhere or is
        marked as learned."""
        if is_learned(value):
            return self.parameter(value)
        if value not in self._where:
            path = self._where[value] = self._path(value)
            if (value, None) in self._parameters:  # a layer's own already: the same tensor by another name
                self._register(path, self._parameters[value, None])
            else:
                array = const_array(value)
                assert array is not None
                # Shapes, masks and single numbers are part of the program; weights are part of its state.
                narrow = value.dtype not in FLOATING and value.dtype not in (
                    ir.DataType.INT64, ir.DataType.INT32, ir.DataType.BOOL)  # fmt: skip
                kept = array.size > 1 and (value.dtype in FLOATING or narrow) and not _uniform(array)
                tensor = to_tensor(array)
                self._register(path, tensor, persistent=kept)
                if is_learned(value) is False:  # whoever marked it may want to find it again
                    self._note(tensor, value, None)
        return self._where[value]

    def constant(self, view: NodeView, name: str, array: Any, trainable: bool) -> str:
        """Path of a tensor that the writer made for a node."""
        base = f"{self._name(view, None)}.{name}"
        path = self.paths.take(base)
        tensor = array if isinstance(array, torch.Tensor) else to_tensor(array)
        self._register(path, torch.nn.Parameter(tensor) if trainable else tensor, persistent=False)
        return path

    # -- submodules ------------------------------------------------------------------------------------------

    def module(
        self,
        view: NodeView,
        module: torch.nn.Module,
        weights: Mapping[str, Any],
        buffers: Mapping[str, Any],
    ) -> str:
        """Register `module` with its tensors filled in; the same layer with the same weights only once."""
        key = self._key(module, weights, buffers)
        if key is not None and key in self._modules:
            return self._modules[key]
        for name, source in weights.items():
            value, change = source if isinstance(source, tuple) else (source, None)
            setattr(module, name, self._shared(value, change))
        for name, source in buffers.items():
            module.register_buffer(name, to_tensor(_array(source)))
            value, change = source if isinstance(source, tuple) else (source, None)
            if isinstance(value, ir.Value):
                self._note(module.get_buffer(name), value, change)
        for name, buffer in module.named_buffers():
            if buffer.is_meta:  # the counter of batches
                setattr(module, name, torch.zeros(buffer.shape, dtype=buffer.dtype))
        module.to("cpu")
        path = self.paths.take(self._name(view, next(iter(weights.values()), None)))
        owner, name = self._owner(path)
        owner.add_module(name, module)
        if key is not None:
            self._modules[key] = path
        return path

    def add(self, view: NodeView, module: torch.nn.Module) -> str:
        """Register a finished submodule."""
        path = self.paths.take(self._name(view, None))
        owner, name = self._owner(path)
        owner.add_module(name, module)
        return path

    # -- internals -------------------------------------------------------------------------------------------

    def _shared(self, source: Any, change: Change | None) -> torch.nn.Parameter:
        if not isinstance(source, ir.Value):
            return torch.nn.Parameter(to_tensor(source))
        array = const_array(source)
        assert array is not None
        # Exporters store equal tensors once. Two layers that are all ones were not tied, only untrained.
        apart = _uniform(array)
        key = (source, change)
        if apart or key not in self._parameters:
            tensor = to_tensor(array if change is None else change(array))
            made = torch.nn.Parameter(tensor, requires_grad=is_learned(source) is not False)
            self._parameters[key] = made
            self._note(made, source, change)
        return self._parameters[key]

    def _note(self, tensor: torch.Tensor, value: ir.Value, change: Change | None) -> None:
        self._sources[id(tensor)] = (tensor, value, change)

    def _key(self, module: Any, weights: Mapping[str, Any], buffers: Mapping[str, Any]) -> Any:
        if not weights:
            return None
        parts = []
        for name, source in (*weights.items(), *buffers.items()):
            value, change = source if isinstance(source, tuple) else (source, None)
            if not isinstance(value, ir.Value) or _uniform(const_array(value)):
                return None
            parts.append((name, value, change))
        return (type(module).__name__, repr(module), tuple(parts))

    def _name(self, view: NodeView, weight: Any) -> str:
        value = weight[0] if isinstance(weight, tuple) else weight
        if isinstance(value, ir.Value) and (name := naming.of_weight(value.name or "")):
            return name
        name = naming.clean(view.name)
        if weight is not None and (above := naming.of_layer(name)):
            return above
        return name or naming.of_operator(view.op)

    def _path(self, value: ir.Value) -> str:
        path = naming.clean(value.name or "") or "constant"
        *above, last = path.split(".")
        if last[0].isdigit():
            last = f"value_{last}"
        return self.paths.take(".".join([*above, last]))

    def _register(self, path: str, tensor: torch.Tensor, persistent: bool = True) -> None:
        owner, name = self._owner(path)
        if isinstance(tensor, torch.nn.Parameter):
            owner.register_parameter(name, tensor)
        else:
            owner.register_buffer(name, tensor, persistent=persistent)
            if not persistent:
                self._constants.append(path)

    def _at(self, path: str) -> Any:
        owner, name = self._owner(path)
        return getattr(owner, name)

    def _owner(self, path: str) -> tuple[torch.nn.Module, str]:
        *above, last = path.split(".")
        owner = self.root
        for piece in above:
            child = owner._modules.get(piece)
            if child is None:
                child = torch.nn.Module()
                owner.add_module(piece, child)
            owner = child
        return owner, last


def _uniform(array: Any) -> bool:
    """Whether all elements are equal."""
    return bool(array.size and (array == array.reshape(-1)[0]).all())


def _array(source: Any) -> Any:
    value, change = source if isinstance(source, tuple) else (source, None)
    array = const_array(value) if isinstance(value, ir.Value) else value
    return array if change is None else change(array)
