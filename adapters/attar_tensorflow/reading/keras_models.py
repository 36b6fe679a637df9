"""Keras models: live ones, `.keras` and `.h5` files. Files are opened in safe mode only, and no custom code
runs.
"""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

from attar.errors import AttarError, ConversionError, InputError
from attar_tensorflow.reading.functions import essence, from_concrete, specs_of, trace
from attar_tensorflow.reading.program import Program, flat_outputs, unique

_UNKNOWN = re.compile(r"(?:Could not locate (?:class|function)|Unknown (?:layer|object):?) '?([\w>.]+)")


def read_file(path: Path) -> Any:
    """The model in a `.keras` or `.h5` file.

    Raises:
        InputError: it is damaged, or needs custom objects or code of its own.
    """
    import keras

    _check_container(path)
    try:
        if path.suffix.lower() == ".keras":
            return keras.models.load_model(path, compile=False, safe_mode=True)
        from attar_tensorflow.reading.legacy_h5 import load_h5

        return load_h5(path)
    except AttarError:
        raise
    except Exception as error:  # Keras raises whatever its parts raise
        text = str(error)
        if "Lambda" in text or "safe_mode" in text or "marshal" in text or "unsafe" in text:
            raise InputError(
                f"{path} holds a Lambda layer, whose Python code would be run on loading, so it is not read",
                hint="build the model in Python, load its weights and give the model",
            ) from error
        if "custom" in text.lower() or "Unknown layer" in text or "could not locate" in text.lower():
            named = dict.fromkeys(_UNKNOWN.findall(text))
            raise InputError(
                f"{path} needs custom objects that are not registered: {', '.join(named) or essence(error)}",
                hint="register them with keras.saving.register_keras_serializable, or give the live model",
            ) from error
        raise InputError(f"{path} cannot be read as a Keras model: {essence(error)}") from error


def _check_container(path: Path) -> None:
    """The file is what its name says, and what it unpacks to is not out of proportion."""
    import zipfile

    try:
        with path.open("rb") as file:
            head = file.read(8)
    except OSError as error:
        raise InputError(f"cannot read {path}: {error.strerror or error}") from error
    if path.suffix.lower() == ".keras":
        if not zipfile.is_zipfile(path):
            raise InputError(f"{path} is damaged, or no .keras file (it is no zip archive)")
        with zipfile.ZipFile(path) as archive:
            unpacked = sum(i.file_size for i in archive.infolist())
        if unpacked > 64 * max(path.stat().st_size, 1 << 20):
            raise InputError(f"{path} would unpack to {unpacked:,} bytes, which is out of proportion")
    elif head != b"\x89HDF\r\n\x1a\n":
        raise InputError(f"{path} is damaged, or no .h5 file")


def from_keras(model: Any, example: Any, what: str) -> Program:
    """A live model, traced for inference; its weights are copied when they are read.

    Raises:
        InputError: it was never built, and `example` does not say on what to trace it.
        ConversionError: it cannot be traced.
    """
    import keras

    if keras.backend.backend() != "tensorflow":
        raise ConversionError(
            f"Keras runs on {keras.backend.backend()} here; the adapter traces it with TensorFlow",
            hint="set KERAS_BACKEND=tensorflow before keras is imported",
        )
    if example is None or getattr(model, "_functional", None) is not None or _has_inputs(model):
        specs, names, packed = _own_inputs(model, what)
    else:
        specs, names, packed = _given_inputs(example)

    def call(*tensors: Any) -> Any:
        return model(packed(tensors), training=False)

    concrete = trace(call, specs, what)
    tensors = concrete.inputs[: len(specs)]
    outputs = flat_outputs(concrete.structured_outputs, _output_names(model))
    found = []
    for name, (_, t) in zip(unique([n for n, _ in outputs]), outputs, strict=True):
        found.append((name, next((o for o in concrete.outputs if o is t), t)))
    if len(found) == len(concrete.outputs):
        order = _order(concrete, found)
        found = order or found
    return from_concrete(
        concrete,
        list(zip(names, tensors, strict=True)),
        found,
        what,
        names=_weight_names(model),
        layers=_layers(model),
    )


def _order(concrete: Any, found: list[tuple[str, Any]]) -> list[tuple[str, Any]] | None:
    """Names on the tensors of the graph, where the structure holds copies of them."""
    ids = {id(t) for t in concrete.outputs}
    if all(id(t) in ids for _, t in found):
        return None
    return [(name, t) for (name, _), t in zip(found, concrete.outputs, strict=True)]


def _has_inputs(model: Any) -> bool:
    try:
        return bool(model.inputs)
    except (AttributeError, ValueError):
        return False


def _own_inputs(model: Any, what: str) -> tuple[list[Any], list[str], Any]:
    """Specs and names of a model that knows its inputs, and how to pack them as it is called."""
    import tensorflow as tf

    if not _has_inputs(model):
        raise InputError(
            f"{what} can be read only with example inputs: it was never called on symbolic ones",
            hint="give inputs=...: what you would call the model with",
        )
    structure = getattr(model, "_inputs_struct", None)
    if structure is None:
        structure = model.inputs if len(model.inputs) > 1 else model.inputs[0]
    flat = tf.nest.flatten(structure)
    names = unique([_name(t.name, k) for k, t in enumerate(flat)])
    specs = [tf.TensorSpec(tuple(t.shape), t.dtype, name=_scope(n)) for t, n in zip(flat, names, strict=True)]

    def packed(tensors: Any) -> Any:
        return tf.nest.pack_sequence_as(structure, list(tensors))

    return specs, names, packed


def _given_inputs(example: Any) -> tuple[list[Any], list[str], Any]:
    import tensorflow as tf

    specs = specs_of(example)
    if isinstance(specs, dict):
        names = list(specs)
        return list(specs.values()), names, lambda tensors: dict(zip(names, tensors, strict=True))
    names = [f"input_{k}" for k in range(len(specs))] if len(specs) > 1 else ["input"]
    return (
        [tf.TensorSpec(s.shape, s.dtype, name=n) for s, n in zip(specs, names, strict=True)],
        names,
        lambda tensors: tensors[0] if len(tensors) == 1 else list(tensors),
    )


def _name(name: str | None, k: int) -> str:
    return (name or f"input_{k}").partition(":")[0]


def _scope(name: str) -> str:
    """A name that a graph takes."""
    return "".join(c if c.isalnum() or c in "_." else "_" for c in name)


def _output_names(model: Any) -> list[str] | None:
    try:
        return [str(n) for n in model.output_names]
    except (AttributeError, ValueError, TypeError):
        return None


def _weight_names(model: Any) -> dict[int, str]:
    names = {}
    for v in model.variables:
        handle = getattr(getattr(v, "_value", v), "handle", None)
        path = getattr(v, "path", None) or str(v.name).partition(":")[0]
        if handle is not None:
            names[id(handle)] = path.removeprefix(f"{model.name}/")
    return names


def _layers(model: Any) -> frozenset[str]:
    try:
        return frozenset(layer.name for layer in model._flatten_layers(include_self=False))
    except AttributeError:
        return frozenset()
