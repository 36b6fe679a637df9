"""Nested arguments and results as flat, named tensors, and back."""

from __future__ import annotations

import dataclasses
import inspect
import re
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
import torch

from attar.errors import ConversionError, InputError


@dataclasses.dataclass(frozen=True)
class Inputs:
    """The tensors among the arguments of a call, in order, with names, and the way back to the arguments."""

    names: tuple[str, ...]
    tensors: tuple[torch.Tensor, ...]
    rebuild: Callable[[Sequence[Any]], tuple[tuple[Any, ...], dict[str, Any]]]


@dataclasses.dataclass(frozen=True)
class _Slot:
    index: int


def bind(module: torch.nn.Module, example: Any) -> Inputs:
    """The arguments for `module` in `example`, on the module's device.

    Raises:
        InputError: they do not fit the signature of its `forward`, or hold no tensor.
    """
    args, kwargs = _split(module, example)
    signature = _signature(module)
    if signature is None:
        bound = None
    else:
        try:
            bound = signature.bind(*args, **kwargs)
        except TypeError as error:
            raise InputError(
                f"the example inputs do not fit {type(module).__name__}.forward{signature}: {error}",
                hint="a tuple gives positional arguments, a dict gives keyword arguments",
            ) from error
    names: list[str] = []
    tensors: list[torch.Tensor] = []
    home = _home(module)

    def lift(value: Any, name: str) -> Any:
        if isinstance(value, torch.Tensor | np.ndarray):
            names.append(_unique(name, names))
            tensors.append(_tensor(value, name, *home))
            return _Slot(len(tensors) - 1)
        if isinstance(value, np.generic):
            return value.item()
        return _map(value, name, lift)

    # The template repeats the nesting of the call with a slot for every tensor.
    template: tuple[tuple[Any, ...], dict[str, Any]]
    if signature is None or bound is None:
        template = (
            tuple(lift(a, f"input_{i}") for i, a in enumerate(args)),
            {n: lift(v, n) for n, v in kwargs.items()},
        )
    else:
        for name, value in list(bound.arguments.items()):
            free = signature.parameters[name].kind is inspect.Parameter.VAR_KEYWORD
            bound.arguments[name] = {k: lift(v, k) for k, v in value.items()} if free else lift(value, name)
        template = (bound.args, bound.kwargs)
    if not tensors:
        raise InputError("the example inputs hold no tensor or array", hint="numbers alone become constants")

    def rebuild(flat: Sequence[Any]) -> tuple[tuple[Any, ...], dict[str, Any]]:
        def fill(value: Any, name: str) -> Any:
            return flat[value.index] if isinstance(value, _Slot) else _map(value, name, fill)

        return tuple(fill(a, "") for a in template[0]), {k: fill(v, "") for k, v in template[1].items()}

    return Inputs(tuple(names), tuple(tensors), rebuild)


def flatten_outputs(result: Any) -> tuple[list[Any], list[str], list[str]]:
    """The tensors in a result in order, their names, and the paths of things left out because they are no
    tensors.

    A lone tensor is named `output`; members of dictionaries, dataclasses and named tuples keep their names.

    Raises:
        ConversionError: there is no tensor in it.
    """
    tensors: list[Any] = []
    names: list[str] = []
    left: list[str] = []

    def walk(value: Any, name: str) -> None:
        if isinstance(value, torch.Tensor | Leaf):
            tensors.append(value)
            names.append(_unique(name or "output", names))
        elif value is None:
            return
        elif (members := _members(value)) is not None:
            for key, member in members:
                walk(member, f"{name}_{key}" if name else (f"output_{key}" if key.isdigit() else key))
        else:
            left.append(f"{name or 'output'} ({type(value).__name__})")

    walk(result, "")
    if not tensors:
        raise ConversionError(f"the module returns no tensor but {type(result).__name__}")
    return tensors, names, left


class Leaf:
    """Stands for a tensor where only the nesting is known."""


def to_numpy(tensor: torch.Tensor) -> np.ndarray:
    """A copy of `tensor` on the CPU; bfloat16 comes as `ml_dtypes.bfloat16`."""
    tensor = tensor.detach().to("cpu").contiguous()
    if tensor.dtype == torch.bfloat16:
        import ml_dtypes

        return tensor.view(torch.int16).numpy().view(ml_dtypes.bfloat16).copy()
    return np.array(tensor.numpy())


def from_numpy(array: np.ndarray, like: torch.Tensor) -> torch.Tensor:
    """`array` as a tensor of the element type and device of `like`."""
    array = np.ascontiguousarray(array)
    if array.dtype.name == "bfloat16":
        return torch.from_numpy(array.view(np.int16).copy()).view(torch.bfloat16).to(like.device)
    return torch.from_numpy(array.copy()).to(device=like.device, dtype=like.dtype)


def _members(value: Any) -> list[tuple[str, Any]] | None:
    """The (name, member) pairs of a container, None for anything else."""
    if isinstance(value, Mapping):  # first: transformers' ModelOutput is a dataclass too
        return [(_word(k), v) for k, v in value.items()]
    if isinstance(value, tuple) and hasattr(value, "_fields"):
        return list(zip(value._fields, value, strict=True))
    if isinstance(value, tuple | list):
        return [(str(i), v) for i, v in enumerate(value)]
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        return [(f.name, getattr(value, f.name)) for f in dataclasses.fields(value)]
    return None


def _map(value: Any, name: str, change: Callable[[Any, str], Any]) -> Any:
    """A container like `value` with `change(member, name of the member)` for every member; anything else as
    it is."""
    members = None if isinstance(value, _Slot) else _members(value)
    if members is None:
        return value
    changed = [change(member, f"{name}_{key}") for key, member in members]
    if isinstance(value, Mapping):
        return dict(zip(value, changed, strict=True))
    if isinstance(value, tuple):
        return type(value)(*changed) if hasattr(value, "_fields") else tuple(changed)
    if isinstance(value, list):
        return changed
    return dataclasses.replace(value, **{k: v for (k, _), v in zip(members, changed, strict=True)})


def _split(module: torch.nn.Module, example: Any) -> tuple[tuple[Any, ...], dict[str, Any]]:
    if isinstance(example, Mapping):
        keys = [k for k in example if isinstance(k, str)]
        signature = _signature(module)
        takes = [] if signature is None else list(signature.parameters.values())
        any_key = any(p.kind is inspect.Parameter.VAR_KEYWORD for p in takes)
        one = [p for p in takes if p.default is p.empty and p.kind is not p.VAR_POSITIONAL]
        known = {p.name for p in takes}
        if len(one) == 1 and not any_key and not known & set(keys):
            return (dict(example),), {}  # forward(self, batch: dict)
        return (), {k: example[k] for k in keys}
    if isinstance(example, tuple | list) and not hasattr(example, "_fields"):
        return tuple(example), {}
    return (example,), {}


def _signature(module: torch.nn.Module) -> inspect.Signature | None:
    try:
        return inspect.signature(module.forward)
    except (TypeError, ValueError):  # compiled code has none
        return None


def _home(module: torch.nn.Module) -> tuple[torch.device, torch.dtype]:
    """Where the module lives, and its floating element type."""
    tensors = [*module.parameters(), *module.buffers()]
    device = tensors[0].device if tensors else torch.device("cpu")
    floating = [t.dtype for t in tensors if t.dtype.is_floating_point]
    return device, floating[0] if floating else torch.get_default_dtype()


def _tensor(value: Any, name: str, device: torch.device, floating: torch.dtype) -> torch.Tensor:
    if isinstance(value, torch.Tensor):
        return value.detach().to(device).clone()
    try:
        tensor = torch.from_numpy(np.array(value))
    except TypeError as error:
        raise InputError(f"the example for {name!r} cannot become a tensor: {error}") from error
    if tensor.dtype == torch.float64 and floating != torch.float64:
        tensor = tensor.to(floating)  # numpy makes float64 unasked
    return tensor.to(device)


def _word(key: Any) -> str:
    return re.sub(r"\W+", "_", str(key)) or "value"


def _unique(name: str, taken: Sequence[str]) -> str:
    candidate, count = name, 0
    while candidate in taken:
        count += 1
        candidate = f"{name}_{count}"
    return candidate
