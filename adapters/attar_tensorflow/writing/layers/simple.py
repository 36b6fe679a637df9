"""Activations and the layers that merge tensors."""

from __future__ import annotations

import math

import keras
import numpy as np

from attar_tensorflow.writing.context import View
from attar_tensorflow.writing.layers.made import Made, Maker, keras_type, named


def _activation(function: str, **only_if: object) -> Maker:
    """Keras' activation `function`, for nodes whose attributes are `only_if`."""

    def make(view: View) -> Made | None:
        dtype = keras_type(view)
        for name, wanted in only_if.items():
            have = view.attr(name)
            same = math.isclose(have, wanted, rel_tol=1e-6) if isinstance(wanted, float) else have == wanted
            if not same:
                return None
        return (
            None
            if dtype is None
            else Made(named("act", keras.layers.Activation, activation=function, dtype=dtype))
        )

    return make


def _relu(view: View) -> Made | None:
    return (
        None if keras_type(view) is None else Made(named("relu", keras.layers.ReLU, dtype=keras_type(view)))
    )


def _clip(view: View) -> Made | None:
    low, high, dtype = view.const(1), view.const(2), keras_type(view)
    if dtype is None or low is None or low.size != 1 or float(low.reshape(())) != 0:
        return None
    if high is None or high.size != 1 or not 0 < float(high.reshape(())) < 1e30:
        return None
    return Made(named("relu", keras.layers.ReLU, max_value=float(high.reshape(())), dtype=dtype))


def _leaky(view: View) -> Made | None:
    slope = view.attr("alpha", 0.01)
    if keras_type(view) is None or not 0 <= slope <= 1:
        return None
    return Made(named("relu", keras.layers.LeakyReLU, negative_slope=slope, dtype=keras_type(view)))


def _elu(view: View) -> Made | None:
    if keras_type(view) is None:
        return None
    return Made(named("elu", keras.layers.ELU, alpha=view.attr("alpha", 1.0), dtype=keras_type(view)))


def _softmax(view: View) -> Made | None:
    rank = view.rank(0)
    if keras_type(view) is None or rank is None or view.attr("axis", -1) % rank == 0:
        return None
    axis = view.attr("axis", -1) % rank
    axis = -1 if axis == rank - 1 else axis
    return Made(named("softmax", keras.layers.Softmax, axis=axis, dtype=keras_type(view)))


def _prelu(view: View) -> Made | None:
    slope, rank, shape = view.const(1), view.rank(0), view.shape(0)
    if slope is None or keras_type(view) is None or rank is None or rank < 2:
        return None
    whole = slope.reshape([1] * (rank - slope.ndim) + list(slope.shape)) if slope.ndim <= rank else None
    if whole is None or whole.shape[0] != 1:
        return None
    shared = [a for a in range(1, rank) if whole.shape[a] == 1 and shape[a] != 1]
    if any(not isinstance(shape[a], int) for a in range(1, rank) if a not in shared):
        return None
    layer = named("prelu", keras.layers.PReLU, shared_axes=shared or None, dtype=keras_type(view))
    return Made(layer, {"alpha": whole[0]}, sources=(1,), key=tuple(shared))


def _merge(make: type, count: int | None = None) -> Maker:
    """A merging layer on tensors of one rank."""

    def maker(view: View) -> Made | None:
        dtype, rank, number = keras_type(view), view.rank(0), len(view.inputs)
        if dtype is None or number < 2 or (count is not None and number != count) or not rank:
            return None
        shapes = [view.shape(i) for i in range(number)]
        if any(s is None or len(s) != rank or view.is_const(i) for i, s in enumerate(shapes)):
            return None
        if len({s[0] for s in shapes}) > 1 or shapes[0][0] is None:
            return None
        for sizes in zip(*shapes, strict=True):
            if len({d for d in sizes if d != 1}) > 1:
                return None
        return Made(named("merge", make, dtype=dtype), inputs=tuple(range(number)), many=True)

    return maker


def _dropout(view: View) -> Made | None:
    if view.wants(1) or keras_type(view) is None:
        return None
    if view.has(2) and bool(np.any(view.need_const(2, "training_mode"))):
        return None
    rate = float(np.asarray(view.option(1, "ratio", 0.5)).reshape(()))
    return Made(named("dropout", keras.layers.Dropout, rate=rate, dtype=keras_type(view)))


MAKERS: dict[str, Maker] = {
    "Add": _merge(keras.layers.Add),
    "Clip": _clip,
    "Dropout": _dropout,
    "Elu": _elu,
    "Exp": _activation("exponential"),
    "Gelu": _activation("gelu", approximate="none"),
    "HardSigmoid": _activation("hard_sigmoid", alpha=1 / 6, beta=0.5),
    "HardSwish": _activation("hard_silu"),
    "LeakyRelu": _leaky,
    "Max": _merge(keras.layers.Maximum),
    "Mean": _merge(keras.layers.Average),
    "Min": _merge(keras.layers.Minimum),
    "Mul": _merge(keras.layers.Multiply),
    "PRelu": _prelu,
    "Relu": _relu,
    "Sigmoid": _activation("sigmoid"),
    "Softmax": _softmax,
    "Softsign": _activation("softsign"),
    "Sub": _merge(keras.layers.Subtract, 2),
    "Sum": _merge(keras.layers.Add),
    "Swish": _activation("silu", alpha=1.0),
    "Tanh": _activation("tanh"),
}
