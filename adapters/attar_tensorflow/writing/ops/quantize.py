"""Quantization. Types that TensorFlow lacks (int4, int2 and their unsigned forms) travel in bytes."""

from __future__ import annotations

import numpy as np
import onnx_ir as ir
import tensorflow as tf

from attar_tensorflow.writing.context import Ctx, Lowering, Tensor, View
from attar_tensorflow.writing.ops.conv import convolve
from attar_tensorflow.writing.ops.linear import matmul
from attar_tensorflow.writing.tensors import axis_of, images, rank_of

RANGES: dict[str, tuple[int, int]] = {
    "UINT2": (0, 3),
    "INT2": (-2, 1),
    "UINT4": (0, 15),
    "INT4": (-8, 7),
    "UINT8": (0, 255),
    "INT8": (-128, 127),
    "UINT16": (0, 65535),
    "INT16": (-32768, 32767),
}


def carrier(kind: str) -> tf.DType:
    """The TensorFlow type that holds values of an ONNX integer type."""
    low, high = RANGES[kind]
    if high <= 255 and low >= 0:
        return tf.uint8
    if high <= 127:
        return tf.int8
    return tf.uint16 if low == 0 else tf.int16


def _along(vector: Tensor, x: Tensor, view: View) -> Tensor:
    """Scales or zero points made to fit `x`: one number, one a slice of an axis, or one a block."""
    if vector.shape.rank == 0:
        return vector
    if vector.shape.rank == 1 and vector.shape[0] == 1:
        return tf.reshape(vector, [])
    rank = rank_of(x, view)
    axis = axis_of(view.attr("axis", 1), rank)
    block = view.attr("block_size", 0)
    if not block:
        if vector.shape.rank != 1:
            raise view.refuse("scales of several axes without a block size")
        shape = [1] * rank
        shape[axis] = -1
        return tf.reshape(vector, shape)
    size = x.shape[axis]
    if size is None:
        raise view.refuse("blocks of an axis whose size is known only while the model runs")
    cut = [slice(None)] * rank
    cut[axis] = slice(0, size)
    return tf.repeat(vector, block, axis=axis)[tuple(cut)]


def _kind(value: ir.Value | None, view: View) -> str:
    name = value.dtype.name if value is not None and value.dtype is not None else "?"
    if name not in RANGES:
        raise view.refuse(f"quantization to {name}")
    return name


def _quantize(ctx: Ctx, view: View) -> Tensor:
    kind = _kind(view.outputs[0], view)
    x = ctx[0] if ctx[0].dtype.is_floating else tf.cast(ctx[0], tf.float32)
    scale = tf.cast(_along(ctx[1], x, view), x.dtype)
    zero = None if ctx[2] is None else tf.cast(_along(ctx[2], x, view), tf.float32)
    return tf.cast(_rounded(x / scale, zero, kind), carrier(kind))


def _rounded(x: Tensor, zero: Tensor | None, kind: str) -> Tensor:
    low, high = RANGES[kind]
    y = tf.cast(tf.round(x), tf.float32)
    return tf.clip_by_value(y if zero is None else y + zero, low, high)


def _dequantize(ctx: Ctx, view: View) -> Tensor:
    x, scale = ctx[0], _along(ctx[1], ctx[0], view)
    if x.dtype in (tf.int32, tf.int64):
        wide = tf.cast(x, tf.float64)  # int32 does not fit in float32 before the subtraction
    elif x.dtype.is_integer:
        wide = tf.cast(x, scale.dtype if scale.dtype == tf.float32 else tf.float32)
    else:
        raise view.refuse(f"dequantization of {x.dtype.name}")
    if ctx[2] is not None:
        wide -= tf.cast(_along(ctx[2], x, view), wide.dtype)
    if wide.dtype == tf.float64:
        wide = tf.cast(wide, tf.float32)
    return tf.cast(wide * tf.cast(scale, wide.dtype), scale.dtype)


def _dynamic(ctx: Ctx, view: View) -> tuple[Tensor, Tensor, Tensor]:
    x = ctx[0]
    low, high = tf.minimum(tf.reduce_min(x), 0), tf.maximum(tf.reduce_max(x), 0)
    scale = (high - low) / 255
    scale = tf.where(scale == 0, tf.ones_like(scale), scale)
    zero = tf.clip_by_value(tf.round(-low / scale), 0, 255)
    y = tf.clip_by_value(tf.round(x / scale) + zero, 0, 255)
    return tf.cast(y, tf.uint8), scale, tf.cast(zero, tf.uint8)


def _requantized(total: Tensor, factor: Tensor, zero: Tensor, kind: str) -> Tensor:
    # The product in float32, as runtimes compute it.
    scaled = tf.cast(total, tf.float32) * tf.cast(factor, tf.float32)
    return tf.cast(_rounded(scaled, tf.cast(zero, tf.float32), kind), carrier(kind))


def _centred(x: Tensor, zero: Tensor, shape: list[int] | None = None) -> Tensor:
    zero = tf.cast(zero, tf.float64)
    return tf.cast(x, tf.float64) - (zero if shape is None else tf.reshape(zero, shape))


def _qlinear_conv(ctx: Ctx, view: View) -> Tensor:
    x, x_scale, x_zero, w, w_scale, w_zero, y_scale, y_zero = (ctx[i] for i in range(8))
    ones = [1] * (w.shape.rank - 1)
    total = convolve(_centred(x, tf.reshape(x_zero, [])), _centred(w, w_zero, [-1, *ones]), view)
    if ctx[8] is not None:
        total += tf.cast(ctx[8], tf.float64)
    factor = tf.reshape(x_scale, []) * tf.reshape(w_scale, [-1]) / tf.reshape(y_scale, [])
    return _requantized(total, factor, tf.reshape(y_zero, []), _kind(view.outputs[0], view))


def _qlinear_matmul(ctx: Ctx, view: View) -> Tensor:
    a, a_scale, a_zero, b, b_scale, b_zero, y_scale, y_zero = (ctx[i] for i in range(8))
    if any(t.shape.rank and t.shape.num_elements() != 1 for t in (a_scale, a_zero, y_scale, y_zero)):
        raise view.refuse("scales for each row")
    a_scale, a_zero, y_scale, y_zero = (tf.reshape(t, []) for t in (a_scale, a_zero, y_scale, y_zero))
    total = matmul(_centred(a, a_zero), _centred(b, b_zero))
    return _requantized(total, a_scale * b_scale / y_scale, y_zero, _kind(view.outputs[0], view))


def fake_quantize(ctx: Ctx, view: View) -> Tensor:
    """attar's own operator: QuantizeLinear and DequantizeLinear at once, as TensorFlow trains with them."""
    low, high = np.asarray(view.attr("low"), np.float32), np.asarray(view.attr("high"), np.float32)
    options = {"num_bits": view.attr("bits"), "narrow_range": bool(view.attr("narrow", 0))}
    if low.size == 1:
        return tf.quantization.fake_quant_with_min_max_vars(
            ctx[0], low.reshape(()), high.reshape(()), **options
        )
    x, axis, rank = ctx[0], view.attr("axis"), rank_of(ctx[0], view)
    perm = [a for a in range(rank) if a != axis] + [axis]
    y = tf.quantization.fake_quant_with_min_max_vars_per_channel(
        tf.transpose(x, perm) if axis != rank - 1 else x, low, high, **options
    )
    return tf.transpose(y, [perm.index(a) for a in range(rank)]) if axis != rank - 1 else y


LOWERINGS: dict[str, Lowering] = {
    "DequantizeLinear": _dequantize,
    "DynamicQuantizeLinear": _dynamic,
    "QLinearConv": images(_qlinear_conv),
    "QLinearMatMul": _qlinear_matmul,
    "QuantizeLinear": _quantize,
    "attar::FakeQuantize": fake_quantize,
}
