"""Writes the IR as a Keras model or a `tf.Module`."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import onnx_ir as ir

    from attar.adapters import Exported
    from attar.registry import Registry


def write_model(model: ir.Model, *, registry: Registry, **options: Any) -> Exported:
    """Write `model`, which stays as it is, in TensorFlow.

    Args:
        registry: whose `attar_lowerings("tensorflow")` say how each operator is written.
        options: `form`: "keras" (a functional `keras.Model`), "module" (a `tf.Module`) or "auto", which is
            Keras where Keras can say the network, else a module, with a note that says why. `layout`:
            "source" keeps the axes of inputs and outputs as the IR has them; "channels_last" gives and takes
            images as TensorFlow does (a Keras model only). `fake_quantize`: write pairs of QuantizeLinear and
            DequantizeLinear as TensorFlow's fake quantization, which trains and which TensorFlow Lite turns
            into integers, but rounds ties in another way.

    Raises:
        InputError: an option is unknown or has an impossible value.
        ConversionError: TensorFlow cannot say some operators exactly.
    """
    from attar_tensorflow.writing.write import write

    return write(model, registry=registry, **options)


def save_exported(exported: Exported, path: Path, **options: Any) -> tuple[Path, ...]:
    """Save what `write_model` gave: `.keras`, `.h5`, or a folder as a SavedModel.

    Raises:
        InputError: the place cannot be written, or the form of the model does not go into such a file.
    """
    from attar_tensorflow.writing.save import save

    return save(exported, path, **options)
