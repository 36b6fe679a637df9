"""Arrays of any framework as numpy arrays, recognised by their type's name and never by importing the
framework."""

from __future__ import annotations

import numbers
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from attar.adapters import type_path
from attar.calibration.batch import Array
from attar.errors import AttarError, InputError


def is_image(thing: Any) -> bool:
    """Whether `thing` is a PIL image."""
    return "PIL.Image.Image" in type_path(thing)


def is_array(thing: Any) -> bool:
    """Whether `thing` is an array or tensor of some framework (also one on disk that is read by slicing)."""
    if isinstance(thing, np.ndarray):
        return True
    if isinstance(thing, str | bytes | Path | Mapping | list | tuple | type) or is_image(thing):
        return False
    # Modules and mocks have attributes of these names too; a shape has a length.
    return hasattr(thing, "dtype") and hasattr(getattr(thing, "shape", None), "__len__")


def is_leaf(thing: Any) -> bool:
    """Whether `thing` stands for one array: an array, an image, a number, or a (nested) list of numbers."""
    if isinstance(thing, list):
        return is_numbers(thing)
    if isinstance(thing, str | bytes | Path | Mapping | tuple | type):
        return False
    return (
        isinstance(thing, numbers.Number) or is_array(thing) or is_image(thing) or hasattr(thing, "__array__")
    )


def is_numbers(thing: Any) -> bool:
    """Whether `thing` is a list of numbers, or of such lists."""
    if not isinstance(thing, list) or not thing:
        return False
    if isinstance(thing[0], numbers.Number | np.generic):
        return all(isinstance(e, numbers.Number | np.generic) for e in thing)
    return all(isinstance(e, list) for e in thing) and is_numbers(thing[0])


def to_numpy(thing: Any, what: str) -> Array:
    """`thing` as a numpy array, sharing memory where the framework allows.

    Args:
        thing: an array or tensor of numpy, torch, TensorFlow, MXNet or anything with `__array__`; numbers;
            lists of them.
        what: what the array is, for the error.

    Raises:
        InputError: it is no array, holds Python objects, or is masked.
    """
    try:
        array = _convert(thing)
    except AttarError as error:
        raise InputError(f"{what}: {error.message}", hint=error.hint) from None
    except Exception as error:  # the frameworks raise what they like
        raise InputError(f"{what}: cannot read {type_path(thing)[0]} as an array: {error}") from error
    if isinstance(array, np.ma.MaskedArray):
        raise InputError(f"{what} is a masked array", hint="fill it first: array.filled(0)")
    if array.dtype == object and array.size and all(isinstance(e, str) for e in array.flat):
        array = array.astype(np.str_)
    if array.dtype.hasobject:
        raise InputError(
            f"{what}: {type_path(thing)[0]} holds Python objects, not numbers",
            hint="give arrays of one shape and a numeric dtype; pad ragged lists or give one by one",
        )
    return array


def _convert(thing: Any) -> Array:
    if isinstance(thing, np.ndarray):
        return thing
    if isinstance(thing, list | tuple):
        if thing and not is_numbers(thing) and not isinstance(thing[0], str | numbers.Number):
            return np.stack([_convert(e) for e in thing])
        return np.asarray(thing)
    if isinstance(thing, str | bytes | Path | Mapping | set) or thing is None:
        raise InputError(f"expected an array, got {type(thing).__name__} {str(thing)[:60]!r}")
    path = type_path(thing)
    if "torch.Tensor" in path:
        tensor = thing.detach().cpu()
        if getattr(tensor, "is_quantized", False):
            tensor = tensor.dequantize()
        if "bfloat16" in str(tensor.dtype) or "float8" in str(tensor.dtype):
            tensor = tensor.float()  # exact; numpy has neither type
        return np.asarray(tensor.numpy(force=True))
    for method in ("asnumpy", "numpy"):  # MXNet; TensorFlow
        if callable(getattr(thing, method, None)):
            return np.asarray(getattr(thing, method)())
    return np.asarray(thing)
