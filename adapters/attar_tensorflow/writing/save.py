"""What was written, as files."""

from __future__ import annotations

import shutil
import tempfile
from pathlib import Path
from typing import Any

from attar.adapters import Exported
from attar.errors import InputError
from attar.files import place, replacing

SUFFIXES = (".keras", ".h5")


def save(exported: Exported, path: Path, **options: Any) -> tuple[Path, ...]:
    """See `attar_tensorflow.writing.save_exported`."""
    if options:
        raise InputError(f"saving for TensorFlow has no option {next(iter(options))!r}")
    path = Path(path)
    is_keras = hasattr(exported.native, "layers")
    if path.suffix in SUFFIXES:
        if not is_keras:
            raise InputError(
                f"cannot write {path}: a tf.Module does not go into {path.suffix} files",
                hint="name a folder, for a SavedModel; the notes say why the network is no Keras model",
            )
        return (_keras_file(exported.native, place(path)),)
    if path.suffix not in ("", ".savedmodel", ".saved_model"):
        raise InputError(
            f"cannot write {path}: TensorFlow has no files {path.suffix!r}",
            hint="use .keras, .h5, or a name without suffix for a SavedModel folder",
        )
    return (_saved_model(exported.native, path, is_keras),)


def _keras_file(model: Any, path: Path) -> Path:
    with tempfile.TemporaryDirectory() as folder:  # Keras goes by the suffix, which a part file has not
        made = Path(folder) / f"model{path.suffix}"
        try:
            model.save(made)
        except Exception as error:
            raise InputError(f"cannot write {path}: Keras says: {error}") from error
        with replacing(path) as part, made.open("rb") as source, part.open("wb") as target:
            shutil.copyfileobj(source, target)
    return path


def _saved_model(model: Any, path: Path, is_keras: bool) -> Path:
    if path.is_file():
        raise InputError(f"cannot write {path}: a SavedModel is a folder, and this is a file")
    if path.is_dir() and any(path.iterdir()) and not (path / "saved_model.pb").is_file():
        raise InputError(f"cannot write {path}: the folder holds other things than a SavedModel")
    try:
        staging = tempfile.TemporaryDirectory(dir=path.parent, prefix=f".{path.name[:60]}.")
    except (OSError, ValueError) as error:
        raise InputError(f"cannot write {path}: {getattr(error, 'strerror', None) or error}") from error
    with staging as folder:
        made = Path(folder) / "model"
        try:
            if is_keras:
                _export(model, made)
            else:
                _export_module(model, made)
        except Exception as error:
            raise InputError(f"cannot write {path}: TensorFlow says: {error}") from error
        old = Path(folder) / "old"
        try:
            if path.is_dir():
                path.rename(old)
            made.rename(path)
        except OSError as error:
            if old.is_dir() and not path.exists():
                old.rename(path)
            raise InputError(f"cannot write {path}: {error.strerror or error}") from error
    return path


def _export(model: Any, folder: Path) -> None:
    """A SavedModel that needs neither Keras nor attar; its signature names inputs and outputs."""
    import keras
    import tensorflow as tf

    from attar_tensorflow.writing.names import Names

    names = Names()
    specs = [tf.TensorSpec(t.shape, t.dtype, name=names.give(t.name)) for t in model.inputs]
    outputs = getattr(model, "attar_outputs", None) or [f"output_{i}" for i in range(len(model.outputs))]

    def serve(*tensors: Any) -> dict[str, Any]:
        found = model(list(tensors) if len(tensors) > 1 else tensors[0], training=False)
        found = found if isinstance(found, list | tuple) else [found]
        return dict(zip(outputs, found, strict=True))

    archive = keras.export.ExportArchive()
    archive.track(model)
    archive.add_endpoint("serve", serve, input_signature=specs)
    archive.write_out(str(folder), verbose=False)


def _export_module(module: Any, folder: Path) -> None:
    import tensorflow as tf

    tf.saved_model.save(module, str(folder), signatures={"serving_default": module.signature})
