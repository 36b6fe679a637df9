"""Which part of an item is which input, and which is the labels."""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping, Sequence
from typing import Any

import numpy as np

from attar.adapters import type_path
from attar.calibration.arrays import is_image, is_leaf, to_numpy
from attar.calibration.batch import Array, Batch, Batching, Unit
from attar.calibration.fit import check_finite, check_shape, fit_dtype
from attar.errors import InputError, did_you_mean
from attar.specs import TensorSpec

LABEL_KEYS = ("labels", "label", "y", "targets", "target")

ImageReader = Callable[[Any], Array]


def split(item: Any, specs: Sequence[TensorSpec], where: str) -> tuple[dict[str, Any], Any]:
    """The inputs by name, not yet converted, and the labels or None.

    With n inputs: n parts are the inputs in order, n + 1 parts have the labels last; `(inputs, labels)` with
    the inputs as a tuple, list or dict likewise; a dict is read by its keys.

    Raises:
        InputError: the parts do not fit the inputs.
    """
    if isinstance(item, Batch):
        return split_mapping(item.inputs, specs, where)[0], item.labels
    if isinstance(item, Mapping):
        return split_mapping(item, specs, where)
    if is_leaf(item):
        return _positional((item,), specs, where), None
    if not isinstance(item, tuple | list):
        raise InputError(
            f"{where}: expected arrays, got {type_path(item)[0]} {str(item)[:60]!r}",
            hint="give arrays, (inputs, labels) tuples or dicts of them",
        )
    if not item:
        raise InputError(f"{where} is an empty {type(item).__name__}")
    if not is_leaf(item[0]) and (
        len(item) == 2 or (len(item) == 1 and isinstance(item[0], tuple | list | Mapping))
    ):
        inner = item[0]
        labels = item[1] if len(item) == 2 else None
        if isinstance(inner, Mapping):
            inputs, inner_labels = split_mapping(inner, specs, where)
            return inputs, inner_labels if labels is None else labels
        if isinstance(inner, tuple | list):
            if len(item) == 1:
                return split(inner, specs, where)
            return _positional(inner, specs, where), labels
    if len(item) == len(specs) + 1:
        return _positional(item[:-1], specs, where), item[-1]
    return _positional(item, specs, where), None


def fits(item: Sequence[Any], count: int) -> bool:
    """Whether a tuple looks like one item for `count` inputs, so that `(x, y)` is told from a tuple of
    items."""
    if len(item) in (count, count + 1) and all(is_leaf(part) for part in item[:count]):
        return True
    if len(item) == 2 and isinstance(item[0], Mapping):
        return not isinstance(item[1], Mapping)
    return (
        len(item) == 2
        and isinstance(item[0], tuple | list)
        and not is_leaf(item[0])
        and len(item[0]) == count
        and is_leaf(item[1])
        and all(is_leaf(part) for part in item[0])
    )


def assign(keys: Collection[str], specs: Sequence[TensorSpec], where: str) -> str | None:
    """Check that `keys` name every input; return the key of the labels, if there is one.

    Raises:
        InputError: an input is missing, with the keys that look like it.
    """
    names = [s.name for s in specs]
    for name in names:
        if name not in keys:
            unknown = sorted(str(k) for k in keys if k not in names and k not in LABEL_KEYS)
            raise InputError(
                f"{where}: nothing is named {name!r}, which the model takes (inputs: {', '.join(names)}; "
                f"given: {', '.join(sorted(map(str, keys))) or 'nothing'})",
                hint=did_you_mean(name, unknown)
                if unknown
                else "the keys must be the names of the model's inputs",
            )
    return next((k for k in LABEL_KEYS if k in keys and k not in names), None)


def split_mapping(
    item: Mapping[str, Any], specs: Sequence[TensorSpec], where: str
) -> tuple[dict[str, Any], Any]:
    """The same for a dict: inputs by their names, labels by `LABEL_KEYS`; keys that are neither are left
    alone."""
    label = assign(item.keys(), specs, where)
    return {s.name: item[s.name] for s in specs}, None if label is None else item[label]


def _positional(parts: Sequence[Any], specs: Sequence[TensorSpec], where: str) -> dict[str, Any]:
    if len(parts) != len(specs):
        names = ", ".join(s.name for s in specs)
        hint = f"give {len(specs)} arrays in this order, or that many and the labels last, or a dict by name"
        if len(parts) == len(specs) + 2:
            hint = "sample weights are not taken; map the data to (inputs, labels)"
        raise InputError(
            f"{where} has {len(parts)} parts; the model has {len(specs)} inputs: {names}", hint=hint
        )
    return {s.name: part for s, part in zip(specs, parts, strict=True)}


def fit_item(
    item: Any, specs: Sequence[TensorSpec], batching: Batching, index: int, image: ImageReader | None = None
) -> Unit:
    """One item as a batch in the model's dtypes, checked against the specs.

    An array of one rank less than its spec is a single sample and gets the batch axis.

    Raises:
        InputError: naming the input, the item's index, what was expected and what came.
    """
    where = f"batch {index}"
    raw, raw_labels = split(item, specs, where)
    inputs: dict[str, Array] = {}
    samples: set[bool] = set()
    for spec in specs:
        place = f"{where}, input {spec.name!r}"
        part = raw[spec.name]
        if is_image(part):
            if image is None:
                raise InputError(
                    f"{place} is an image",
                    hint="say how to make it an array: preprocess=ImagePreprocess(...)",
                )
            part = image(part)
        elif image is not None:
            raise InputError(
                f"{place} is no image, but preprocess= is given",
                hint="preprocess arrays before handing them in",
            )
        array = to_numpy(part, place)
        batched = spec.name in batching.inputs
        if batched:
            sample = spec.shape is not None and array.ndim == len(spec.shape) - 1
            samples.add(sample)
            array = array[np.newaxis] if sample else array
        check_shape(array, spec, place, free_batch=batched and batching.splittable)
        array = fit_dtype(array, spec, place)
        check_finite(array, place)
        inputs[spec.name] = array
    if len(samples) == 2:
        raise InputError(
            f"{where}: some inputs have a batch axis and some have not", hint="give all of them one"
        )
    sample = True in samples
    _check_symbols(inputs, specs, where)
    size = 1 if batching.lead is None else int(inputs[batching.lead].shape[0])
    if size == 0:
        raise InputError(f"{where} has no samples")
    return Unit(Batch(inputs, _labels(raw_labels, sample, size, where), size), sample)


def _labels(raw: Any, sample: bool, size: int, where: str) -> Array | None:
    if raw is None:
        return None
    place = f"{where}, labels"
    if isinstance(raw, str):
        raw = np.asarray(raw)
    if isinstance(raw, Mapping):
        raise InputError(
            f"{place} are a dict",
            hint="labels are one array; for others give evaluate= a function of the runnable model",
        )
    labels = to_numpy(raw, place)
    if labels.dtype.kind == "V" and labels.dtype.name == "bfloat16":
        labels = labels.astype(np.float32)
    if labels.dtype.kind not in "biufU":
        raise InputError(f"{place} have dtype {labels.dtype}", hint="labels are numbers or text")
    check_finite(labels, place)
    if sample:
        labels = labels[np.newaxis]
    elif labels.ndim == 0 and size == 1:
        labels = labels.reshape(1)
    if labels.ndim == 0 or labels.shape[0] != size:
        count = 1 if labels.ndim == 0 else labels.shape[0]
        raise InputError(
            f"{where} has {size} samples but {count} labels", hint="axis 0 of the labels counts the samples"
        )
    return labels


def _check_symbols(inputs: Mapping[str, Array], specs: Sequence[TensorSpec], where: str) -> None:
    """A symbolic dimension has one value in one run."""
    seen: dict[str, tuple[int, str]] = {}
    for spec in specs:
        for dim, length in zip(spec.shape or (), inputs[spec.name].shape, strict=False):
            if isinstance(dim, str):
                first, owner = seen.setdefault(dim, (length, spec.name))
                if first != length:
                    raise InputError(
                        f"{where}: dimension {dim!r} is {first} in input {owner!r} "
                        f"and {length} in input {spec.name!r}"
                    )
