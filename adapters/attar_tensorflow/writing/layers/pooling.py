"""Pooling layers."""

from __future__ import annotations

import keras
import numpy as np

from attar_tensorflow.writing.context import View
from attar_tensorflow.writing.layers.convolution import pad_layer, spatial
from attar_tensorflow.writing.layers.made import Made, Maker, keras_type, named
from attar_tensorflow.writing.windows import Window, window_of

_MAX = {1: keras.layers.MaxPooling1D, 2: keras.layers.MaxPooling2D, 3: keras.layers.MaxPooling3D}
_AVERAGE = {
    1: keras.layers.AveragePooling1D,
    2: keras.layers.AveragePooling2D,
    3: keras.layers.AveragePooling3D,
}
_GLOBAL_AVERAGE = {
    1: keras.layers.GlobalAveragePooling1D,
    2: keras.layers.GlobalAveragePooling2D,
    3: keras.layers.GlobalAveragePooling3D,
}
_GLOBAL_MAX = {
    1: keras.layers.GlobalMaxPooling1D,
    2: keras.layers.GlobalMaxPooling2D,
    3: keras.layers.GlobalMaxPooling3D,
}


def _window(view: View) -> Window | None:
    """The window, if Keras' pooling has its like."""
    kernel = tuple(view.attr("kernel_shape"))
    if not view.last or keras_type(view) is None or len(kernel) not in _MAX:
        return None
    window = window_of(view, kernel, spatial(view))
    sizes = spatial(view)
    if max(window.dilations) > 1:
        return None
    if window.ceil and (None in sizes or any(window.beyond(sizes))):
        return None
    return window


def _pooling(classes: dict, window: Window, padding: str, view: View, pads: bool = False) -> Made:
    size = window.kernel if len(window.kernel) > 1 else window.kernel[0]
    step = window.strides if len(window.strides) > 1 else window.strides[0]
    layer = named(
        "pool",
        classes[len(window.kernel)],
        pool_size=size,
        strides=step,
        padding=padding,
        dtype=keras_type(view),
    )
    return Made(layer, before=[pad_layer(window.pads, keras_type(view))] if pads else [])


def _max_pool(view: View) -> Made | None:
    window = _window(view)
    if window is None or view.wants(1):
        return None
    if window.same:
        return _pooling(_MAX, window, "same", view)
    if window.plain:
        return _pooling(_MAX, window, "valid", view)
    if window.pads is not None and all(a >= 0 and b >= 0 for a, b in window.pads) and _never_negative(view):
        return _pooling(_MAX, window, "valid", view, pads=True)
    return None


def _never_negative(view: View) -> bool:
    """Whether zero can stand for the padding: no element of the input is below it."""
    producer = None if view.input(0) is None else view.input(0).producer()
    if producer is None:
        return False
    if producer.op_type == "Clip":
        low = View(producer, opset=view.opset).const(1)
        return low is not None and bool(np.all(low >= 0))
    return producer.op_type in ("Relu", "Sigmoid", "Softmax")


def _average_pool(view: View) -> Made | None:
    window = _window(view)
    if window is None:
        return None
    include = bool(view.attr("count_include_pad", 0))
    if window.plain:
        return _pooling(_AVERAGE, window, "valid", view)
    if window.same and not include:
        return _pooling(_AVERAGE, window, "same", view)
    if include and window.pads is not None and all(a >= 0 and b >= 0 for a, b in window.pads):
        return _pooling(_AVERAGE, window, "valid", view, pads=True)
    return None


def _global(classes: dict) -> Maker:
    def make(view: View) -> Made | None:
        rank = view.rank(0)
        if not view.last or rank is None or rank - 2 not in classes or keras_type(view) is None:
            return None
        return Made(named("pool", classes[rank - 2], keepdims=True, dtype=keras_type(view)))

    return make


def _reduce(classes: dict) -> Maker:
    """A reduction over the axes between the first and the last."""

    def make(view: View) -> Made | None:
        rank = view.rank(0)
        axes = view.option(1, "axes")
        if rank is None or rank - 2 not in classes or keras_type(view) is None or axes is None:
            return None
        if sorted(int(a) % rank for a in np.asarray(axes)) != list(range(1, rank - 1)):
            return None
        if 0 in (view.shape(0) or ()):
            return None  # Keras takes no maximum of nothing
        keep = bool(view.attr("keepdims", 1))
        return Made(named("pool", classes[rank - 2], keepdims=keep, dtype=keras_type(view)))

    return make


MAKERS: dict[str, Maker] = {
    "AveragePool": _average_pool,
    "GlobalAveragePool": _global(_GLOBAL_AVERAGE),
    "GlobalMaxPool": _global(_GLOBAL_MAX),
    "MaxPool": _max_pool,
    "ReduceMax": _reduce(_GLOBAL_MAX),
    "ReduceMean": _reduce(_GLOBAL_AVERAGE),
}
