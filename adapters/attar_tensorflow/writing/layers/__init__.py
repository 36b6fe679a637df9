"""Keras layers for the operators that have one: operator -> `make(view) -> Made | None`.

None means that Keras' layer does not compute exactly what the node says; attar's own layer then does.
"""

from __future__ import annotations

from attar_tensorflow.writing.layers import convolution, dense, pooling, rearrange, recurrent, simple
from attar_tensorflow.writing.layers.made import Maker

LAYERS: dict[str, Maker] = {
    name: maker
    for theme in (convolution, dense, pooling, rearrange, recurrent, simple)
    for name, maker in theme.MAKERS.items()
}
