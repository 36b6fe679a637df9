"""Real numbers to the codes of a tensor and back, for the interfaces of quantized files."""

from __future__ import annotations

from typing import Any

import numpy as np

from attar_tensorflow.tflite.file import Tensor

Array = np.ndarray[Any, np.dtype[Any]]


def encode(array: Array, tensor: Tensor) -> Array:
    """`clip(round(array / scale) + zero point)`; as it is where `tensor` holds no codes."""
    q = tensor.quantization
    if q is None or tensor.dtype.kind not in "iu" or array.dtype.kind != "f":
        return array
    limits = np.iinfo(tensor.dtype)
    codes = np.rint(np.asarray(array, np.float32) / np.float32(q.scale)) + float(q.zero_point)
    return np.clip(codes, limits.min, limits.max).astype(tensor.dtype)


def decode(array: Array, tensor: Tensor) -> Array:
    """`scale * (array - zero point)`; as it is where `tensor` holds no codes."""
    q = tensor.quantization
    if q is None or array.dtype.kind not in "iu":
        return array
    real = (array.astype(np.int64) - int(q.zero_point)).astype(np.float32) * np.float32(q.scale)
    return np.asarray(real, np.float32)
