"""Operators of one tensor that act on each element."""

from __future__ import annotations

import math
from collections.abc import Callable

import numpy as np
import tensorflow as tf

from attar_tensorflow.writing.context import Ctx, Lowering, Tensor, View
from attar_tensorflow.writing.tensors import rank_of, wide


def _each(function: Callable[[Tensor], Tensor]) -> Lowering:
    def lower(ctx: Ctx, view: View) -> Tensor:
        return function(ctx[0])

    return lower


def _wide(function: Callable[[Tensor], Tensor]) -> Lowering:
    def lower(ctx: Ctx, view: View) -> Tensor:
        return wide(function, ctx[0])

    return lower


def _identity(ctx: Ctx, view: View) -> Tensor:
    return tf.identity(ctx[0])


def _relu(ctx: Ctx, view: View) -> Tensor:
    return tf.nn.relu(ctx[0])


def _leaky(ctx: Ctx, view: View) -> Tensor:
    x, alpha = ctx[0], view.attr("alpha", 0.01)
    return tf.nn.leaky_relu(x, alpha) if 0 <= alpha <= 1 else tf.where(x >= 0, x, x * alpha)


def _elu(ctx: Ctx, view: View) -> Tensor:
    x, alpha = ctx[0], view.attr("alpha", 1.0)
    if alpha == 1.0:
        return tf.nn.elu(x)
    # The minimum keeps the branch that is not taken finite, and with it the gradient.
    return tf.where(x > 0, x, alpha * tf.math.expm1(tf.minimum(x, 0)))


def _celu(ctx: Ctx, view: View) -> Tensor:
    x, alpha = ctx[0], view.attr("alpha", 1.0)
    return tf.where(x > 0, x, alpha * tf.math.expm1(tf.minimum(x, 0) / alpha))


def _selu(ctx: Ctx, view: View) -> Tensor:
    x, alpha = ctx[0], view.attr("alpha", 1.67326319217681884765625)
    gamma = view.attr("gamma", 1.05070102214813232421875)
    return gamma * tf.where(x > 0, x, alpha * tf.math.expm1(tf.minimum(x, 0)))


def _hard_sigmoid(ctx: Ctx, view: View) -> Tensor:
    x, alpha, beta = ctx[0], view.attr("alpha", 0.2), view.attr("beta", 0.5)
    if math.isclose(alpha, 1 / 6, rel_tol=1e-6) and beta == 0.5:
        return tf.nn.relu6(x + 3) * (1 / 6)  # the form that TensorFlow Lite knows
    return tf.clip_by_value(alpha * x + beta, 0, 1)


def _hard_swish(ctx: Ctx, view: View) -> Tensor:
    return ctx[0] * tf.nn.relu6(ctx[0] + 3) * (1 / 6)


def _swish(ctx: Ctx, view: View) -> Tensor:
    x, alpha = ctx[0], view.attr("alpha", 1.0)
    return x * tf.sigmoid(x if alpha == 1.0 else alpha * x)


def _mish(ctx: Ctx, view: View) -> Tensor:
    return ctx[0] * tf.tanh(tf.nn.softplus(ctx[0]))


def _gelu(ctx: Ctx, view: View) -> Tensor:
    return tf.nn.gelu(ctx[0], approximate=view.attr("approximate", "none") == "tanh")


def _thresholded(ctx: Ctx, view: View) -> Tensor:
    x = ctx[0]
    return tf.where(x > tf.cast(view.attr("alpha", 1.0), x.dtype), x, tf.zeros_like(x))


def _shrink(ctx: Ctx, view: View) -> Tensor:
    def function(x: Tensor) -> Tensor:
        lambd, bias = tf.cast(view.attr("lambd", 0.5), x.dtype), tf.cast(view.attr("bias", 0.0), x.dtype)
        return tf.where(x < -lambd, x + bias, tf.where(x > lambd, x - bias, tf.zeros_like(x)))

    return wide(function, ctx[0])


def _clip(ctx: Ctx, view: View) -> Tensor:
    x, low, high = ctx[0], _bound(ctx, view, 1, "min"), _bound(ctx, view, 2, "max")
    if low is not None and high is not None and x.dtype == tf.float32:
        known = (view.const(1), view.const(2))
        if all(k is not None for k in known) and (float(known[0]), float(known[1])) == (0.0, 6.0):
            return tf.nn.relu6(x)
    if low is not None:
        x = tf.maximum(x, low)
    return tf.minimum(x, high) if high is not None else x


def _bound(ctx: Ctx, view: View, index: int, name: str) -> Tensor | None:
    if ctx[index] is not None:
        return tf.reshape(ctx[index], [])
    found = view.attr(name)
    return None if found is None else tf.cast(found, ctx[0].dtype)


def _prelu(ctx: Ctx, view: View) -> Tensor:
    x, slope = ctx[0], ctx[1]
    return wide(lambda x, slope: tf.where(x < 0, x * slope, x), x, slope)


def _is_inf(ctx: Ctx, view: View) -> Tensor:
    x = tf.cast(ctx[0], tf.float32) if ctx[0].dtype.size < 2 else ctx[0]
    found = tf.math.is_inf(x)
    if not view.attr("detect_negative", 1):
        found &= x > 0
    if not view.attr("detect_positive", 1):
        found &= x < 0
    return found


def _is_nan(ctx: Ctx, view: View) -> Tensor:
    return tf.math.is_nan(tf.cast(ctx[0], tf.float32) if ctx[0].dtype.size < 2 else ctx[0])


def _dropout(ctx: Ctx, view: View) -> object:
    x = ctx[0]
    if view.has(2) and bool(view.need_const(2, "training_mode")):
        ratio = view.option(1, "ratio", 0.5)
        if float(np.asarray(ratio)) != 0:
            raise view.refuse("it drops elements at random also when the model is not trained")
    if view.wants(1):
        return x, tf.ones_like(x, tf.bool)
    return x


def _sign(x: Tensor) -> Tensor:
    return tf.sign(x)


def _softplus(ctx: Ctx, view: View) -> Tensor:
    x = ctx[0]
    # log1p(exp(-|x|)) + max(x, 0): TensorFlow's kernel is off by 1e-5 far from zero.
    return tf.maximum(x, 0) + tf.math.log1p(tf.exp(-tf.abs(x)))


def _softmax(function: Callable[..., Tensor]) -> Lowering:
    def lower(ctx: Ctx, view: View) -> Tensor:
        return function(ctx[0], axis=view.attr("axis", -1))

    return lower


def _hardmax(ctx: Ctx, view: View) -> Tensor:
    x = ctx[0]
    axis = view.attr("axis", -1) % rank_of(x, view)
    return tf.one_hot(tf.argmax(x, axis), tf.shape(x)[axis], axis=axis, dtype=x.dtype)


_PLAIN = {
    "Acos": tf.acos,
    "Acosh": tf.acosh,
    "Asin": tf.asin,
    "Asinh": tf.asinh,
    "Atan": tf.atan,
    "Atanh": tf.atanh,
    "Ceil": tf.math.ceil,
    "Cos": tf.cos,
    "Cosh": tf.cosh,
    "Erf": tf.math.erf,
    "Exp": tf.exp,
    "Floor": tf.floor,
    "Log": tf.math.log,
    "Not": tf.logical_not,
    "Reciprocal": tf.math.reciprocal,
    "Round": tf.round,  # ties to even, as ONNX wants
    "Sigmoid": tf.sigmoid,
    "Sin": tf.sin,
    "Sinh": tf.sinh,
    "Softsign": tf.nn.softsign,
    "Sqrt": tf.sqrt,
    "Tan": tf.tan,
    "Tanh": tf.tanh,
}

LOWERINGS: dict[str, Lowering] = {
    **{name: _each(function) for name, function in _PLAIN.items()},
    "Abs": _wide(tf.abs),
    "BitwiseNot": _each(tf.bitwise.invert),
    "Celu": _celu,
    "Clip": _clip,
    "Dropout": _dropout,
    "Elu": _elu,
    "Gelu": _gelu,
    "HardSigmoid": _hard_sigmoid,
    "HardSwish": _hard_swish,
    "Hardmax": _hardmax,
    "Identity": _identity,
    "IsInf": _is_inf,
    "IsNaN": _is_nan,
    "LeakyRelu": _leaky,
    "LogSoftmax": _softmax(tf.nn.log_softmax),
    "Mish": _mish,
    "Neg": _wide(tf.negative),
    "PRelu": _prelu,
    "Relu": _relu,
    "Selu": _selu,
    "Shrink": _shrink,
    "Sign": _wide(_sign),
    "Softmax": _softmax(tf.nn.softmax),
    "Softplus": _softplus,
    "Swish": _swish,
    "ThresholdedRelu": _thresholded,
}
