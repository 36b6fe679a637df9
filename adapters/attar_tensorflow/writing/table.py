"""The operators that attar writes in TensorFlow: `domain::operator` -> `lower(ctx, view)`.

A plugin adds to them by the hook `attar_lowerings("tensorflow")`. A lowering is given the tensors that flow
into the node (`ctx[i]`, None where an input is left out) and the node itself (`view`: attributes, constants,
shapes), and returns a tensor, or a tuple of tensors where the operator has several outputs. It is run while
TensorFlow traces; what it cannot say exactly it refuses: `raise view.refuse("reason")`.
"""

from __future__ import annotations

from attar_tensorflow.writing.context import Lowering
from attar_tensorflow.writing.ops import (
    arithmetic,
    control,
    conv,
    elementwise,
    filling,
    indexing,
    linear,
    norm,
    pool,
    quantize,
    recurrent,
    reduce,
    resize,
    sampling,
    shapes,
    signal,
)

LOWERINGS: dict[str, Lowering] = {
    name: lowering
    for theme in (
        arithmetic,
        control,
        conv,
        elementwise,
        filling,
        indexing,
        linear,
        norm,
        pool,
        quantize,
        recurrent,
        reduce,
        resize,
        sampling,
        shapes,
        signal,
    )
    for name, lowering in theme.LOWERINGS.items()
}
