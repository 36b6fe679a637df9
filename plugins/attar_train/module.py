"""A model of the IR as a torch module that trains, and what it learned back into the IR by name.

The torch module is the torch adapter's own; it comes from the registry, so nothing here knows how an operator
is written. What training may change is what the adapter makes a parameter of and the model holds as an
initializer; constants that are computed from other constants keep their numbers.
"""

from __future__ import annotations

import copy
import fnmatch
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import numpy as np
import onnx_ir as ir

from attar import graph
from attar.adapters import Exported, Placed
from attar.errors import InputError, Refused, did_you_mean
from attar.registry import Registry, default_registry
from attar.specs import input_specs, output_specs
from attar_train.ties import Copies, separate, tie

if TYPE_CHECKING:
    import torch

Array = np.ndarray[Any, np.dtype[Any]]

_NARROW = (ir.DataType.FLOAT16, ir.DataType.BFLOAT16)


class Trainable:
    """A model as a `torch.nn.Module`. Made by `trainable` or `prepare`.

    Attributes:
        module: the module; parameters and buffers may be changed and moved to a device as with any other.
        model: the IR that it was written from, a copy of the caller's.
        inputs: names of the inputs, in the order of the module's arguments.
        outputs: names of the outputs, in the order of the module's results.
        weights: initializer -> parameter. One that the module holds in several pieces (the gates and
            directions of a recurrent layer) appears as `name[0]`, `name[1]`, ...
        values: names that `tap` can give.
        release: what makes a finished model of the one that trains; None where they are the same.
    """

    def __init__(self, model: ir.Model, exported: Exported, copies: Copies) -> None:
        self.model, self.module = model, exported.native
        self.inputs = tuple(s.name for s in input_specs(model))
        self.outputs = tuple(s.name for s in output_specs(model))
        self.values = tuple(exported.values)
        self._nodes, self._copies = dict(exported.values), copies
        known = model.graph.initializers
        self._placed: dict[str, tuple[Placed, ...]] = {
            name: places
            for name, places in exported.weights.items()
            if graph.const_array(known.get(name)) is not None
        }
        self.weights: dict[str, torch.nn.Parameter] = {}
        self._states: dict[str, str] = {}
        parameters = dict(self.module.named_parameters())
        for name, places in self._placed.items():
            keys = [name] if len(places) == 1 else [f"{name}[{i}]" for i in range(len(places))]
            for key, place in zip(keys, places, strict=True):
                if place.path in parameters:
                    self.weights[key] = parameters[place.path]
                else:
                    self._states[key] = place.path
        known_here = {id(p) for p in self.weights.values()}  # what the model computes from others stays
        for parameter in parameters.values():
            if id(parameter) not in known_here:
                parameter.requires_grad_(False)
        self.release: Callable[[ir.Model], ir.Model] | None = None
        self._tapped: dict[tuple[str, ...], Any] = {}
        self._running: dict[tuple[str, ...], Any] = {}

    @property
    def places(self) -> Mapping[str, tuple[Placed, ...]]:
        """Initializer -> where the module holds its numbers."""
        return self._placed

    @property
    def state(self) -> dict[str, torch.Tensor]:
        """Initializer -> buffer that training changes without a gradient: the running statistics of
        BatchNormalization."""
        return {name: self.module.get_buffer(path) for name, path in self._states.items()}

    # -- running ---------------------------------------------------------------------------------------------

    def forward(self, feeds: Mapping[str, torch.Tensor], tap: Iterable[str] = ()) -> dict[str, torch.Tensor]:
        """Outputs by name, for inputs by name; with `tap`, other values of the model beside them.

        Raises:
            InputError: an input is missing, or the module does not compute a value to be tapped.
        """
        missing = [name for name in self.inputs if name not in feeds]
        if missing:
            raise InputError(
                f"no input named {missing[0]!r} was given", hint="inputs: " + ", ".join(self.inputs)
            )
        names = tuple(n for n in dict.fromkeys(tap) if n not in self.outputs)
        runner = self._running.get(names) or self.tapping(names)
        result = runner(*(feeds[name] for name in self.inputs))
        parts = result if isinstance(result, tuple | list) else (result,)
        return dict(zip((*self.outputs, *names), parts, strict=True))

    __call__ = forward

    def tap(self, names: Iterable[str]) -> Any:
        """A function of inputs by name that gives the outputs and the values `names`.

        Raises:
            InputError: the module does not compute one of them.
        """
        chosen = tuple(names)
        self.tapping(tuple(n for n in dict.fromkeys(chosen) if n not in self.outputs))
        return lambda feeds: self.forward(feeds, chosen)

    def tapping(self, names: tuple[str, ...]) -> Any:
        """The module, or one that shares everything with it and gives the values `names` beside the
        outputs."""
        if not names:
            return self.module
        if names not in self._tapped:
            import torch.fx

            for name in names:
                if name not in self._nodes:
                    raise InputError(
                        f"the module does not compute {name!r}", hint=did_you_mean(name, self._nodes)
                    )
            twin = copy.copy(self.module)
            body = torch.fx.Graph(tracer_cls=self.module.graph._tracer_cls)
            made: dict[Any, Any] = {}
            result = body.graph_copy(self.module.graph, made)
            first = tuple(result) if isinstance(result, tuple | list) else (result,)
            by_name = {node.name: node for node in self.module.graph.nodes}
            body.output((*first, *(made[by_name[self._nodes[n]]] for n in names)))
            twin.graph = body
            self._tapped[names] = twin
        return self._tapped[names]

    def to(self, device: Any) -> Trainable:
        """Move the module, and what shares its weights, to a device."""
        for part in (self.module, *self._tapped.values()):
            part.to(device)
        return self

    def share_state(self) -> None:
        """Let all forms of the module read the same buffers; moving them to a device has made them two."""
        for path in self._states.values():
            above, _, name = path.rpartition(".")
            tensor = self.module.get_buffer(path)
            for part in self._tapped.values():
                owner = part.get_submodule(above)
                if owner._buffers.get(name) is not tensor and name in owner._buffers:
                    owner._buffers[name] = tensor

    @contextmanager
    def running(self, names: tuple[str, ...], module: Any) -> Iterator[None]:
        """Let `forward` call `module` where it would call `tapping(names)`: a wrapper of it."""
        self._running[names] = module
        try:
            yield
        finally:
            del self._running[names]

    def train(self, mode: bool = True) -> Trainable:
        """Put the module into training mode: BatchNormalization goes by the batch and keeps statistics."""
        for part in (self.module, *self._tapped.values()):
            part.train(mode)
        return self

    def eval(self) -> Trainable:
        """Put the module into the mode in which it computes what the model computes."""
        return self.train(False)

    def freeze(self, patterns: Sequence[str], *, others: bool = False) -> list[str]:
        """Let no gradient reach the weights whose names match a pattern such as `features.*`.

        Args:
            others: the patterns name what stays trainable instead.

        Returns:
            The names of what is frozen now.

        Raises:
            InputError: a pattern matches no weight.
        """
        for pattern in patterns:
            if not fnmatch.filter(self.weights, pattern):
                raise InputError(
                    f"no weight is named like {pattern!r}", hint=did_you_mean(pattern, self.weights)
                )
        frozen = []
        for name, parameter in self.weights.items():
            if any(fnmatch.fnmatchcase(name, p) for p in patterns) != others:
                parameter.requires_grad_(False)
                frozen.append(name)
        return frozen

    # -- numbers ---------------------------------------------------------------------------------------------

    def arrays(self) -> dict[str, Array]:
        """Initializer -> what the module holds of it now, in the model's shape and type."""
        found = {}
        tensors = {**dict(self.module.named_parameters()), **dict(self.module.named_buffers())}
        for name, places in self._placed.items():
            old = graph.const_array(self.model.graph.initializers[name])
            assert old is not None
            new = np.array(old, order="C")  # so that its flat form is no copy
            flat = new.reshape(-1)
            for place in places:
                held = tensors[place.path].detach().float().cpu().numpy()
                if place.change is None:
                    flat[:] = held.reshape(-1).astype(new.dtype)
                else:  # the change only moves elements: moved positions tell which went where
                    positions = place.change(np.arange(new.size).reshape(new.shape))
                    flat[positions.reshape(-1)] = held.reshape(-1).astype(new.dtype)
            found[name] = new
        return found

    def write_back(self, model: ir.Model) -> list[str]:
        """Put what the module holds now into the initializers of `model`, by name.

        Args:
            model: the model that the module was made from, or a copy of it.

        Returns:
            The names of the initializers that changed.

        Raises:
            InputError: the model does not have them, in these shapes.
        """
        arrays = self.arrays()
        changed = []
        for name, array in arrays.items():
            value = self._copies.home(model, name)
            old = graph.const_array(value)
            if value is None or old is None or old.shape != array.shape:
                raise InputError(
                    f"the model has no weight {name!r} of shape {list(array.shape)}",
                    hint="write back into the model that the module was made from",
                )
            if old.tobytes() != array.tobytes():
                changed.append(name)
                self._copies.put(model, name, array)
        return changed

    def finish(self) -> ir.Model:
        """The model with what the module holds now; the module can go on training."""
        model = graph.clone(self._copies.original)
        self.write_back(model)
        return model if self.release is None else self.release(model)


def trainable(model: ir.Model, registry: Registry | None = None, *, learns: bool = True) -> Trainable:
    """`model`, which stays as it is, as a torch module that trains.

    Args:
        learns: False for one that only runs, as teachers do: it may have no weight to train.

    Raises:
        Refused: torch is not installed, nothing in the model can be trained, or its weights are of a type
            that does not train.
        ConversionError: torch cannot say some of its operators; all are listed.
    """
    registry = registry or default_registry()
    need_torch()
    narrow = [
        v.name for g in model.graphs() for v in g.initializers.values() if v.dtype in _NARROW and _large(v)
    ]
    if narrow and learns:
        raise Refused(
            f"its weights are half precision ({narrow[0]} and {len(narrow) - 1} more), which small steps do "
            "not change",
            hint="train first, and put quantize.float16 behind the training",
        )
    copied = graph.clone(model)
    copies = separate(copied, original=model)
    exported = registry.get_adapter("torch").write(copied, registry=registry)
    if tie(copied, exported):  # one weight in two layouts: written anew so that it is one parameter
        exported = registry.get_adapter("torch").write(copied, registry=registry)
    made = Trainable(copied, exported, copies)
    if learns and not made.weights:
        raise Refused("the model has no weight that can be trained")
    return made


def need_torch() -> None:
    """Raises:
    Refused: torch is not installed.
    """
    from importlib.util import find_spec

    if find_spec("torch") is None:
        raise Refused("training needs PyTorch", hint="pip install attar[torch]")


def _large(value: ir.Value) -> bool:
    return value.shape is not None and len(value.shape) > 1
