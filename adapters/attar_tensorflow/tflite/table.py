"""The op tables that the plugin brings: `attar_liftings("tflite")` and `attar_lowerings("tflite")`."""

from __future__ import annotations

from attar_tensorflow.tflite.lifting import LIFTINGS
from attar_tensorflow.tflite.lowering import LOWERINGS

__all__ = ["LIFTINGS", "LOWERINGS"]
