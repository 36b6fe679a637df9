"""Which axes of the inputs stay dynamic, and example tensors that do not tempt the exporter to fix them."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from typing import Any

import torch

from attar.errors import InputError, did_you_mean

Axes = dict[int, dict[int, str]]
"""Input position -> axis -> name of the dimension."""


def dynamic_axes(dynamic: Any, names: Sequence[str], tensors: Sequence[torch.Tensor]) -> Axes:
    """The axes that `dynamic` asks for.

    "auto": axis 0 of every input that has the batch size of the first one is `batch`. Axis 1 of integer and
    boolean inputs with two axes (tokens and their masks) is `sequence`, or `sequence_1`, ... where lengths
    differ. So is axis 1 of float inputs with three axes and the same length.

    Raises:
        InputError: an input or axis does not exist, or one name stands for different sizes.
    """
    if dynamic is None or dynamic is False:
        return {}
    if dynamic in ("auto", True):
        return _automatic(tensors)
    if not isinstance(dynamic, Mapping):
        raise InputError(
            f"dynamic={dynamic!r} is not understood", hint="'auto', None, or {input: {axis: name}}"
        )
    axes: Axes = {}
    sizes: dict[str, int] = {}
    for name, wanted in dynamic.items():
        if name not in names:
            raise InputError(f"dynamic names the input {name!r}", hint=did_you_mean(str(name), names))
        index = list(names).index(name)
        if not isinstance(wanted, Mapping):
            raise InputError(f"dynamic[{name!r}] must map axes to names, e.g. {{0: 'batch'}}")
        for place, label in wanted.items():
            rank = tensors[index].ndim
            if not isinstance(place, int) or not -rank <= place < rank:
                raise InputError(f"input {name!r} has {rank} axes, but dynamic names axis {place!r}")
            dim, axis = str(label), place % rank
            size = tensors[index].shape[axis]
            if sizes.setdefault(dim, size) != size:
                raise InputError(f"the dimension {dim!r} is {sizes[dim]} and {size} in the example inputs")
            axes.setdefault(index, {})[axis] = dim
    return axes


def _automatic(tensors: Sequence[torch.Tensor]) -> Axes:
    axes: Axes = {}
    batch = next((t.shape[0] for t in tensors if t.ndim), None)
    lengths: dict[int, str] = {}
    for index, tensor in enumerate(tensors):
        if tensor.ndim and tensor.shape[0] == batch:
            axes.setdefault(index, {})[0] = "batch"
        if tensor.ndim == 2 and not tensor.is_floating_point() and not tensor.is_complex():
            name = f"sequence_{len(lengths)}" if lengths else "sequence"
            axes.setdefault(index, {})[1] = lengths.setdefault(tensor.shape[1], name)
    for index, tensor in enumerate(tensors):  # [batch, sequence, features] beside its mask
        if tensor.ndim == 3 and tensor.is_floating_point() and tensor.shape[1] in lengths:
            axes.setdefault(index, {})[1] = lengths[tensor.shape[1]]
    return axes


def without(axes: Axes, names: Collection[str]) -> Axes:
    """`axes` without those called `names`."""
    left = {i: {a: n for a, n in named.items() if n not in names} for i, named in axes.items()}
    return {i: named for i, named in left.items() if named}


def is_dynamic(size: Any) -> bool:
    """Whether a size in an exported program is open. Where the module fixed one, its symbol is a number."""
    return isinstance(size, torch.SymInt) and size.node.maybe_as_int() is None


def resized(tensor: torch.Tensor, axes: Collection[int], size: int) -> torch.Tensor:
    """`tensor` cut or repeated to `size` along `axes`."""
    for axis in axes:
        index = torch.arange(size, device=tensor.device) % tensor.shape[axis]
        tensor = tensor.index_select(axis, index)
    return tensor


def enlarged(tensors: Sequence[torch.Tensor], axes: Axes) -> tuple[torch.Tensor, ...]:
    """`tensors` with dynamic axes of size 1 repeated to 2: exporters take a size of 1 for a constant."""
    out = []
    for index, tensor in enumerate(tensors):
        repeats = [2 if tensor.shape[a] == 1 and a in axes.get(index, {}) else 1 for a in range(tensor.ndim)]
        out.append(tensor.repeat(repeats) if any(r > 1 for r in repeats) else tensor)
    return tuple(out)
