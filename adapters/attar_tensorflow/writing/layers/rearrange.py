"""Layers that move elements: Flatten, Reshape, Permute, Concatenate, padding, upsampling."""

from __future__ import annotations

import math

import keras
import numpy as np

from attar_tensorflow.writing.context import View
from attar_tensorflow.writing.layers.convolution import crop_layer, pad_layer
from attar_tensorflow.writing.layers.made import Made, Maker, any_type, keras_type, named
from attar_tensorflow.writing.ops.resize import axes_of, repeats


def _keeps_batch(view: View) -> bool:
    before, after = view.shape(0), view.out_shape(0)
    if not before or not after:
        return False
    if before[0] == after[0] and before[0] is not None:
        return True
    # A batch of unknown size stays what it is if the elements of one sample stay as many.
    rest = [*before[1:], *after[1:]]
    if any(not isinstance(d, int) for d in rest) or isinstance(before[0], int) or isinstance(after[0], int):
        return False
    return math.prod(before[1:]) == math.prod(after[1:]) > 0


def _reshape(view: View) -> Made | None:
    after, dtype = view.out_shape(0), any_type(view)
    if not _keeps_batch(view) or dtype is None or len(after) < 2:
        return None
    open_ = [d for d in after[1:] if not isinstance(d, int)]
    if len(open_) > 1 or (open_ and 0 in after[1:]):
        return None
    target = tuple(d if isinstance(d, int) else -1 for d in after[1:])
    return Made(named("reshape", keras.layers.Reshape, target_shape=target, dtype=dtype))


def _flatten(view: View) -> Made | None:
    dtype, rank = any_type(view), view.rank(0)
    if view.attr("axis", 1) != 1 or dtype is None or rank is None or rank < 2:
        return None
    if not all(isinstance(d, int) for d in (view.shape(0) or ())[1:]):
        return None
    return Made(named("flatten", keras.layers.Flatten, dtype=dtype))


def _permute(view: View) -> Made | None:
    perm, dtype = view.attr("perm"), any_type(view)
    if not perm or perm[0] != 0 or len(perm) < 3 or dtype is None:
        return None
    return Made(named("permute", keras.layers.Permute, dims=tuple(perm[1:]), dtype=dtype))


def _concat(view: View) -> Made | None:
    rank, dtype = view.rank(0), any_type(view)
    axis = view.attr("axis")
    if rank is None or dtype is None or axis % rank == 0 or len(view.inputs) < 2:
        return None
    if view.dtype(0) == np.int8:  # merging layers announce the type of the layer, which is another one then
        return None
    if any(v is None or view.is_const(i) or view.rank(i) != rank for i, v in enumerate(view.inputs)):
        return None
    if len({(view.shape(i) or (None,))[0] for i in range(len(view.inputs))}) > 1:
        return None
    layer = named(
        "concat", keras.layers.Concatenate, axis=-1 if axis % rank == rank - 1 else axis, dtype=dtype
    )
    return Made(layer, inputs=tuple(range(len(view.inputs))), many=True)


def _pad(view: View) -> Made | None:
    rank, pads, dtype = view.rank(0), view.const(1), keras_type(view)
    if rank not in (3, 4, 5) or pads is None or len(pads) != 2 * rank or dtype is None or view.has(3):
        return None
    value = view.const(2) if view.has(2) else np.zeros([], np.float32)
    if view.attr("mode", "constant") != "constant" or value is None or float(value.reshape(())) != 0:
        return None
    amounts = [(int(pads[i]), int(pads[i + rank])) for i in range(rank)]
    if any(amounts[0]) or any(amounts[-1]):
        return None
    inner = tuple(amounts[1:-1])
    if all(a >= 0 and b >= 0 for a, b in inner):
        return Made(pad_layer(inner, dtype))
    if all(a <= 0 and b <= 0 for a, b in inner):
        return Made(crop_layer(tuple((-a, -b) for a, b in inner), dtype))
    return None


_UPSAMPLING = {3: keras.layers.UpSampling1D, 4: keras.layers.UpSampling2D, 5: keras.layers.UpSampling3D}


def _resize(view: View) -> Made | None:
    rank, shape, dtype = view.rank(0), view.shape(0), keras_type(view)
    if rank not in _UPSAMPLING or dtype is None:
        return None
    axes = axes_of(view, [d if isinstance(d, int) else None for d in shape])
    factors = [1] * rank
    linear = view.attr("mode", "nearest") == "linear"
    for a in axes:
        times = repeats(a, view)
        if linear:
            if view.attr("coordinate_transformation_mode") != "half_pixel" or a.scale != int(a.scale):
                return None
            if rank != 4 or a.size is None:
                return None
            times = int(a.scale)
        if times is None:
            return None
        factors[a.axis] = times
    if factors[0] != 1 or factors[-1] != 1 or not axes:
        return None
    size = tuple(factors[1:-1]) if rank > 3 else factors[1]
    options = {"interpolation": "bilinear"} if linear else {}
    return Made(named("upsampling", _UPSAMPLING[rank], size=size, dtype=dtype, **options))


MAKERS: dict[str, Maker] = {
    "Concat": _concat,
    "Flatten": _flatten,
    "Pad": _pad,
    "Reshape": _reshape,
    "Resize": _resize,
    "Squeeze": _reshape,
    "Transpose": _permute,
    "Unsqueeze": _reshape,
}
