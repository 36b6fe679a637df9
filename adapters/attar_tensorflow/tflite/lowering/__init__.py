"""ONNX operators in terms of TFLite: one function an operator, `write(op: OutOp) -> None`, collected in
`LOWERINGS`."""

from __future__ import annotations

from attar_tensorflow.tflite.lowering import (
    activations,
    codes,
    convolution,
    elementwise,
    images,
    indexing,
    matrix,
    norms,
    pooling,
    reducing,
    shaping,
)
from attar_tensorflow.tflite.outop import Lowering

LOWERINGS: dict[str, Lowering] = {
    **codes.LOWERINGS,
    **convolution.LOWERINGS,
    **pooling.LOWERINGS,
    **matrix.LOWERINGS,
    **elementwise.LOWERINGS,
    **activations.LOWERINGS,
    **shaping.LOWERINGS,
    **indexing.LOWERINGS,
    **reducing.LOWERINGS,
    **norms.LOWERINGS,
    **images.LOWERINGS,
}
