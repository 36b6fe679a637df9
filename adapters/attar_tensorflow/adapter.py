"""The adapter for TensorFlow and Keras. tensorflow is imported only when something is read or written."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

from attar.adapters import Adapter, Loaded, type_path
from attar.errors import InputError

if TYPE_CHECKING:
    import onnx_ir as ir

    from attar.registry import Registry

_KERAS = (".keras", ".h5", ".hdf5")
_OPTIONS = {"signature": "SavedModels", "outputs": "frozen graphs", "input_names": "frozen graphs"}


class TensorFlowAdapter(Adapter):
    """Keras models and files, SavedModel folders, `tf.function`, `tf.Module`, and frozen graphs (`.pb`)."""

    name: ClassVar[str] = "tensorflow"
    suffixes: ClassVar[tuple[str, ...]] = (*_KERAS, ".pb")

    def recognises(self, source: Any) -> bool:
        if isinstance(source, str | Path):
            path = Path(source)
            return super().recognises(source) or (path.is_dir() and (path / "saved_model.pb").is_file())
        return _is_keras(source) or _is_function(source)

    def load(
        self, source: Any, *, inputs: Any = None, registry: Registry | None = None, **options: Any
    ) -> Loaded:
        """Read a TensorFlow or Keras model. The source is left as it was; its weights are copied.

        Inputs and outputs stay in the source's layout (images NHWC); inside, images are NCHW.

        Args:
            source: a Keras model, a `tf.function`, `ConcreteFunction` or `tf.Module`, or the path of a
            `.keras`,
                `.h5` or frozen `.pb` file or of a SavedModel folder.
            inputs: what the model is called with: an array, a tuple or list of them, or a mapping by name.
            Needed
                where the model does not know its inputs: a module, an untraced function, a subclassed model.
            registry: plugins, whose `attar_liftings("tensorflow")` add operators.
            options: `signature`, of a SavedModel (`serving_default`); `outputs` and `input_names`, the
            operations
                of a frozen graph that are its outputs and inputs, where they are not plain from the graph.

        Raises:
            InputError: the file is damaged, needs custom code, or the inputs are missing or do not fit.
            ConversionError: it uses operators that the IR cannot say; all are listed.
        """
        for name in options:
            if name not in _OPTIONS:
                raise InputError(
                    f"the adapter 'tensorflow' has no option {name!r}", hint=f"it has: {', '.join(_OPTIONS)}"
                )
        from attar_tensorflow.reading.read import read

        return read(source, inputs, registry, **options)

    def write(self, model: ir.Model, *, registry: Registry, **options: Any) -> Any:
        """Write `model` as a Keras model or a `tf.Module`.

        Raises:
            ConversionError: TensorFlow cannot say some of its operators; all are listed.
        """
        from attar_tensorflow.writing import write_model

        return write_model(model, registry=registry, **options)

    def save(self, exported: Any, path: Path, **options: Any) -> tuple[Path, ...]:
        """Write what `write` gave to `path`: `.keras`, or a SavedModel folder."""
        from attar_tensorflow.writing import save_exported

        saved: tuple[Path, ...] = save_exported(exported, path, **options)
        return saved


def kind_of(source: Any) -> str:
    """What `source` is: keras, function, keras-file, saved-model, frozen.

    Raises:
        InputError: none of these.
    """
    if isinstance(source, str | Path):
        path = Path(source)
        if path.is_dir():
            if not (path / "saved_model.pb").is_file():
                raise InputError(f"{path} is a folder without saved_model.pb, so it is no SavedModel")
            return "saved-model"
        if not path.is_file():
            raise InputError(f"no such file: {path}")
        return "keras-file" if path.suffix.lower() in _KERAS else "frozen"
    if _is_keras(source):
        return "keras"
    if _is_function(source):
        return "function"
    raise InputError(f"{type_path(source)[0]} is not a TensorFlow model")


def _is_keras(source: Any) -> bool:
    return any(
        p.startswith(("keras.", "tf_keras.")) and p.endswith((".Layer", ".Model")) for p in type_path(source)
    )


def _is_function(source: Any) -> bool:
    ours = (".ConcreteFunction", ".Function", ".Module", ".AutoTrackable", ".PolymorphicFunction")
    return any(p.startswith("tensorflow.python.") and p.endswith(ours) for p in type_path(source))
