"""TFLite operators in terms of ONNX: one function an operator, `lift(op: Op) -> None`, collected in
`LIFTINGS`."""

from __future__ import annotations

from collections.abc import Callable

from attar_tensorflow.tflite.lifting import (
    arithmetic,
    compute,
    convolution,
    images,
    indexing,
    moving,
    recurrent,
    reducing,
)
from attar_tensorflow.tflite.liftop import Op

Lifting = Callable[[Op], None]

LIFTINGS: dict[str, Lifting] = {
    **convolution.LIFTINGS,
    **compute.LIFTINGS,
    **arithmetic.LIFTINGS,
    **moving.LIFTINGS,
    **indexing.LIFTINGS,
    **reducing.LIFTINGS,
    **images.LIFTINGS,
    **recurrent.LIFTINGS,
}
