"""Fourier transforms."""

from __future__ import annotations

import numpy as np
import tensorflow as tf

from attar_tensorflow.writing.context import Ctx, Lowering, Tensor, View
from attar_tensorflow.writing.tensors import axis_of, rank_of, static_dims


def _complex(x: Tensor, view: View) -> Tensor:
    """(..., 1) or (..., 2) as complex numbers."""
    if x.dtype not in (tf.float32, tf.float64):
        raise view.refuse(f"Fourier transforms of {x.dtype.name}")
    (parts,) = static_dims(x, [-1], view)
    x = tf.cast(x, tf.float64)  # TensorFlow's transforms in single precision lose more than ONNX allows
    imaginary = tf.zeros_like(x[..., 0]) if parts == 1 else x[..., 1]
    return tf.complex(x[..., 0], imaginary)


def _parts(z: Tensor, like: Tensor) -> Tensor:
    return tf.cast(tf.stack([tf.math.real(z), tf.math.imag(z)], -1), like.dtype)


def _dft(ctx: Ctx, view: View) -> Tensor:
    x = ctx[0]
    rank = rank_of(x, view)
    axis = view.option(2, "axis", -2 if view.opset >= 20 else 1)
    axis = axis_of(int(np.asarray(axis).reshape(())), rank)
    inverse, half = bool(view.attr("inverse", 0)), bool(view.attr("onesided", 0))
    if axis == rank - 1:
        raise view.refuse("the axis of real and imaginary parts is no axis to transform")
    (size,) = static_dims(x, [axis], view, "the length of the signal")
    length = int(view.need_const(1, "dft_length").reshape(())) if view.has(1) else None
    if inverse and half:
        raise view.refuse("the inverse of a one-sided transform")
    length = length or size
    order = [a for a in range(rank - 1) if a != axis] + [axis]
    z = tf.transpose(_complex(x, view), order)
    z = z[..., :length] if size >= length else tf.pad(z, [(0, 0)] * (rank - 2) + [(0, length - size)])
    y = (tf.signal.ifft if inverse else tf.signal.fft)(z)
    if half:
        y = y[..., : length // 2 + 1]
    return _parts(tf.transpose(y, [order.index(a) for a in range(rank - 1)]), x)


def _stft(ctx: Ctx, view: View) -> Tensor:
    x = ctx[0] if ctx[0].shape.rank == 3 else ctx[0][..., None]
    step = int(view.need_const(1, "frame_step").reshape(()))
    window = ctx[2]
    if view.has(3):
        length = int(view.need_const(3, "frame_length").reshape(()))
    elif window is not None:
        (length,) = static_dims(window, [0], view)
    else:
        raise view.refuse("neither a window nor a frame length")
    z = _complex(x, view)
    frames = tf.signal.frame(z, length, step, axis=1)
    if window is not None:
        if window.shape[0] != length:
            raise view.refuse("a window of another length than the frames")
        frames *= tf.cast(tf.cast(window, tf.float64), z.dtype)
    y = tf.signal.fft(frames)
    return _parts(y[..., : length // 2 + 1] if view.attr("onesided", 1) else y, x)


LOWERINGS: dict[str, Lowering] = {"DFT": _dft, "STFT": _stft}
