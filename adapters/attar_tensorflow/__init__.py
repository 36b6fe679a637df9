"""Reads and writes TensorFlow: Keras models, SavedModels, functions, frozen graphs, and `.tflite` files."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

from attar.adapters import Adapter
from attar.hooks import hookimpl
from attar_tensorflow.writing.registration import register_layer

register_layer()  # so that files with attar's layer open after `import attar_tensorflow`


@hookimpl
def attar_adapters() -> Sequence[Adapter]:
    """The adapters for TensorFlow and for `.tflite` files."""
    from attar_tensorflow.adapter import TensorFlowAdapter
    from attar_tensorflow.tflite.adapter import TFLiteAdapter

    return [TensorFlowAdapter(), TFLiteAdapter()]


@hookimpl
def attar_liftings(framework: str) -> Mapping[str, Callable[..., Any]] | None:
    """TensorFlow operator -> function that writes it in the IR."""
    if framework == "tensorflow":
        from attar_tensorflow.reading.table import LIFTINGS

        return LIFTINGS
    if framework == "tflite":
        from attar_tensorflow.tflite.table import LIFTINGS as TFLITE

        return TFLITE
    return None


@hookimpl
def attar_lowerings(framework: str) -> Mapping[str, Callable[..., Any]] | None:
    """ONNX operator -> function that writes it in TensorFlow, or in `.tflite`."""
    if framework == "tensorflow":
        from attar_tensorflow.writing.table import LOWERINGS

        return LOWERINGS
    if framework == "tflite":
        from attar_tensorflow.tflite.table import LOWERINGS as TFLITE

        return TFLITE
    return None
