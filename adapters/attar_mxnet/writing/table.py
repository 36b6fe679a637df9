"""All operators of ONNX that attar writes in MXNet."""

from __future__ import annotations

from attar_mxnet.writing import (
    activation,
    borders,
    elementwise,
    indexing,
    integers,
    layers,
    normalization,
    pooling,
    quantization,
    recurrent,
    reduce,
    resample,
    shaping,
    spreading,
)
from attar_mxnet.writing.context import Lowering, table_of

LOWERINGS: dict[str, Lowering] = table_of(
    elementwise.TABLE,
    activation.TABLE,
    shaping.TABLE,
    spreading.TABLE,
    borders.TABLE,
    reduce.TABLE,
    layers.TABLE,
    normalization.TABLE,
    pooling.TABLE,
    indexing.TABLE,
    recurrent.TABLE,
    quantization.TABLE,
    integers.TABLE,
    resample.TABLE,
)
"""Operator key -> lowering; see `context.Lowering` for the signature."""
