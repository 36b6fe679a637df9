"""Convolutions as Keras layers."""

from __future__ import annotations

import keras
import numpy as np

from attar_tensorflow.writing.context import View
from attar_tensorflow.writing.layers.made import Factory, Made, Maker, keras_type, named
from attar_tensorflow.writing.ops.conv import transposed_pads
from attar_tensorflow.writing.windows import Window, window_of

_CONV = {1: keras.layers.Conv1D, 2: keras.layers.Conv2D, 3: keras.layers.Conv3D}
_DEPTHWISE = {1: keras.layers.DepthwiseConv1D, 2: keras.layers.DepthwiseConv2D}
_TRANSPOSED = {
    1: keras.layers.Conv1DTranspose,
    2: keras.layers.Conv2DTranspose,
    3: keras.layers.Conv3DTranspose,
}
_PADDING = {1: keras.layers.ZeroPadding1D, 2: keras.layers.ZeroPadding2D, 3: keras.layers.ZeroPadding3D}
_CROPPING = {1: keras.layers.Cropping1D, 2: keras.layers.Cropping2D, 3: keras.layers.Cropping3D}


def pad_layer(pads: tuple[tuple[int, int], ...], dtype: str | None) -> Factory:
    return named("pad", _PADDING[len(pads)], padding=pads[0] if len(pads) == 1 else pads, dtype=dtype)


def crop_layer(cuts: tuple[tuple[int, int], ...], dtype: str | None) -> Factory:
    return named("crop", _CROPPING[len(cuts)], cropping=cuts[0] if len(cuts) == 1 else cuts, dtype=dtype)


def spatial(view: View) -> list[int | None]:
    """Spatial sizes of the channels-last first input."""
    return [d if isinstance(d, int) else None for d in (view.shape(0) or ())[1:-1]]


def padding_of(window: Window, dtype: str) -> tuple[str, list[Factory]] | None:
    """Keras' padding and the layer before it; None where neither says it."""
    if window.same:
        return "same", []
    if window.pads is None or any(a < 0 or b < 0 for a, b in window.pads):
        return None
    return "valid", [] if window.plain else [pad_layer(window.pads, dtype)]


def _weights(view: View) -> tuple[np.ndarray, np.ndarray | None] | None:
    w = view.const(1)
    b = view.const(2) if view.has(2) else None
    if w is None or (view.has(2) and b is None):
        return None
    return w, b


def _conv(view: View) -> Made | None:
    found, dtype = _weights(view), keras_type(view)
    if found is None or dtype is None or not view.last:
        return None
    w, b = found
    rank, groups = w.ndim - 2, view.attr("group", 1)
    window = window_of(view, w.shape[2:], spatial(view))
    padding = padding_of(window, dtype)
    strided, dilated = max(window.strides) > 1, max(window.dilations) > 1
    if padding is None or (strided and dilated):  # Keras refuses both at once
        return None
    common = {
        "kernel_size": window.kernel,
        "strides": window.strides,
        "padding": padding[0],
        "dilation_rate": window.dilations,
        "use_bias": b is not None,
        "dtype": dtype,
    }
    biases = {} if b is None else {"bias": b}
    sources = (1, 2) if b is not None else (1,)
    key = (padding[0], window.strides, window.dilations, groups, str(window.pads))
    if groups > 1 and w.shape[1] == 1 and rank in _DEPTHWISE:
        if len(set(window.strides)) > 1:
            return None
        if rank == 2:
            common |= {"strides": window.strides[0], "dilation_rate": window.dilations}
        else:
            common |= {
                "strides": window.strides[0],
                "dilation_rate": window.dilations[0],
                "kernel_size": w.shape[2],
            }
        kernel = np.transpose(w, [*range(2, rank + 2), 0, 1])
        kernel = kernel.reshape(*w.shape[2:], groups, w.shape[0] // groups)
        layer = named(
            "conv",
            _DEPTHWISE[rank],
            depth_multiplier=w.shape[0] // groups,
            depthwise_initializer="zeros",
            **common,
        )
        return Made(layer, {"kernel": kernel, **biases}, before=padding[1], sources=sources, key=key)
    if rank not in _CONV or (groups > 1 and rank == 3):
        return None
    kernel = np.transpose(w, [*range(2, rank + 2), 1, 0])
    layer = named(
        "conv", _CONV[rank], filters=w.shape[0], groups=groups, kernel_initializer="zeros", **common
    )
    return Made(layer, {"kernel": kernel, **biases}, before=padding[1], sources=sources, key=key)


def _conv_transpose(view: View) -> Made | None:
    found, dtype = _weights(view), keras_type(view)
    if found is None or dtype is None or not view.last or view.attr("group", 1) != 1:
        return None
    w, b = found
    rank = w.ndim - 2
    strides = tuple(view.attr("strides") or [1] * rank)
    if rank not in _TRANSPOSED or max(view.attr("dilations") or [1]) > 1:
        return None
    if any(k < s for k, s in zip(w.shape[2:], strides, strict=True)):
        return None  # Keras gives size * stride then, ONNX less
    pads, extra = transposed_pads(view, spatial(view), list(strides), list(w.shape[2:]))
    cuts = tuple((before, after - more) for (before, after), more in zip(pads, extra, strict=True))
    if any(a < 0 or c < 0 for a, c in cuts):
        return None
    layer = named(
        "conv",
        _TRANSPOSED[rank],
        filters=w.shape[1],
        kernel_size=w.shape[2:],
        strides=strides,
        padding="valid",
        use_bias=b is not None,
        kernel_initializer="zeros",
        dtype=dtype,
    )
    weights = {"kernel": np.transpose(w, [*range(2, rank + 2), 1, 0])} | ({} if b is None else {"bias": b})
    after = [crop_layer(cuts, dtype)] if any(map(any, cuts)) else []
    return Made(layer, weights, after=after, sources=(1, 2) if b is not None else (1,), key=(strides, cuts))


MAKERS: dict[str, Maker] = {"Conv": _conv, "ConvTranspose": _conv_transpose}
