"""Activations."""

from __future__ import annotations

import math
from functools import partial

import numpy as np

from attar.conversion import NodeView
from attar_mxnet.symbol_json import Entry
from attar_mxnet.writing.context import Lowering, WriteContext

_SELU = (1.6732632423543772, 1.0507009873554805)


def _floats(view: NodeView) -> None:
    if view.dtype().kind != "f":
        raise view.refuse(f"the input is {view.dtype()}, MXNet's activations take floats")


def activation(kind: str, ctx: WriteContext, view: NodeView) -> Entry:
    x = ctx.get(view)
    if view.dtype().kind != "f":
        if kind != "relu":
            _floats(view)
        return ctx.scalar("_maximum_scalar", x, 0.0)
    return ctx.op("Activation", x, act_type=kind)


def leaky(kind: str, default: float, ctx: WriteContext, view: NodeView) -> Entry:
    _floats(view)
    return ctx.op("LeakyReLU", ctx.get(view), act_type=kind, slope=view.attr("alpha", default))


def prelu(ctx: WriteContext, view: NodeView) -> Entry:
    """MXNet's slope is a number or one for each channel (axis 1)."""
    _floats(view)
    x, rank, shape = ctx.get(view), ctx.rank(view), view.shape(1)
    slope = ctx.weight(view, 1)
    if shape is not None and (math.prod(d if isinstance(d, int) else 2 for d in shape) == 1):
        return ctx.op("LeakyReLU", x, ctx.reshape(slope, (-1,)), act_type="prelu")
    lined: list[object] = [*[1] * (rank - len(shape)), *shape] if shape is not None else []
    if (
        rank > 1
        and lined
        and all(d == 1 for i, d in enumerate(lined) if i != 1)
        and lined[1] == _dim(view, 1)
    ):
        return ctx.op("LeakyReLU", x, ctx.reshape(slope, (-1,)), act_type="prelu")
    slope = ctx.lift(slope, max(len(shape or ()), 1), rank)
    negative = ctx.scalar("_lesser_scalar", x, 0.0)
    scaled = ctx.op("broadcast_mul", x, slope)
    return ctx.op("where", negative, scaled, x)


def _dim(view: NodeView, axis: int) -> object:
    shape = view.shape()
    return None if shape is None else shape[axis]


def selu(ctx: WriteContext, view: NodeView) -> Entry:
    _floats(view)
    alpha, gamma = (
        view.attr("alpha", 1.67326319217681884765625),
        view.attr("gamma", 1.05070102214813232421875),
    )
    x = ctx.get(view)
    if np.allclose((alpha, gamma), _SELU, rtol=1e-6, atol=0):
        return ctx.op("LeakyReLU", x, act_type="selu")
    return ctx.scalar("_mul_scalar", ctx.op("LeakyReLU", x, act_type="elu", slope=alpha), gamma)


def celu(ctx: WriteContext, view: NodeView) -> Entry:
    """alpha * elu(x / alpha) with elu of slope 1."""
    _floats(view)
    alpha = view.attr("alpha", 1.0)
    inner = ctx.op("LeakyReLU", ctx.scalar("_div_scalar", ctx.get(view), alpha), act_type="elu", slope=1.0)
    return ctx.scalar("_mul_scalar", inner, alpha)


def gelu(ctx: WriteContext, view: NodeView) -> Entry:
    _floats(view)
    x = ctx.get(view)
    if view.attr("approximate", "none") != "tanh":
        return ctx.op("LeakyReLU", x, act_type="gelu")
    cube = ctx.op("broadcast_mul", ctx.op("square", x), x)
    inner = ctx.op("broadcast_add", x, ctx.scalar("_mul_scalar", cube, 0.044715))
    bent = ctx.op("tanh", ctx.scalar("_mul_scalar", inner, math.sqrt(2 / math.pi)))
    return ctx.op("broadcast_mul", ctx.scalar("_mul_scalar", x, 0.5), ctx.scalar("_plus_scalar", bent, 1.0))


def hard_sigmoid(ctx: WriteContext, view: NodeView) -> Entry:
    _floats(view)
    return ctx.op("hard_sigmoid", ctx.get(view), alpha=view.attr("alpha", 0.2), beta=view.attr("beta", 0.5))


def hard_swish(ctx: WriteContext, view: NodeView) -> Entry:
    _floats(view)
    x = ctx.get(view)
    return ctx.op("elemwise_mul", x, ctx.op("hard_sigmoid", x, alpha=1 / 6, beta=0.5))


def swish(ctx: WriteContext, view: NodeView) -> Entry:
    _floats(view)
    x, alpha = ctx.get(view), view.attr("alpha", 1.0)
    inner = x if alpha == 1 else ctx.scalar("_mul_scalar", x, alpha)
    return ctx.op("elemwise_mul", x, ctx.op("Activation", inner, act_type="sigmoid"))


def softplus(ctx: WriteContext, view: NodeView) -> Entry:
    _floats(view)
    return _softplus(ctx, ctx.get(view))


def _softplus(ctx: WriteContext, x: Entry) -> Entry:
    """max(x, 0) + log1p(exp(-|x|)); MXNet's softrelu loses all digits of large negative x."""
    small = ctx.op("log1p", ctx.op("exp", ctx.op("negative", ctx.op("abs", x))))
    return ctx.op("elemwise_add", ctx.op("Activation", x, act_type="relu"), small)


def mish(ctx: WriteContext, view: NodeView) -> Entry:
    _floats(view)
    x = ctx.get(view)
    soft = _softplus(ctx, x)
    return ctx.op("elemwise_mul", x, ctx.op("Activation", soft, act_type="tanh"))


def thresholded_relu(ctx: WriteContext, view: NodeView) -> Entry:
    _floats(view)
    x = ctx.get(view)
    above = ctx.scalar("_greater_scalar", x, view.attr("alpha", 1.0))
    return ctx.op("where", above, x, ctx.op("zeros_like", x))


def softmax(op: str, ctx: WriteContext, view: NodeView) -> Entry:
    _floats(view)
    rank = ctx.rank(view)
    return ctx.op(op, ctx.get(view), axis=view.attr("axis", -1) % rank)


def hardmax(ctx: WriteContext, view: NodeView) -> Entry:
    """One at the first largest element along the axis."""
    _floats(view)
    rank = ctx.rank(view)
    axis = view.attr("axis", -1) % rank
    size = (view.shape() or ())[axis]
    if not isinstance(size, int):
        raise view.refuse("the size of its axis is not fixed")
    best = (
        ctx.op("argmax", ctx.get(view), axis=axis, keepdims=False)
        if rank > 1
        else ctx.op("argmax", ctx.get(view), axis=0, keepdims=True)
    )
    hot = ctx.op("one_hot", best, depth=size, dtype=ctx.dtype(view).name)
    if rank == 1:
        return ctx.reshape(hot, (-1,))
    return ctx.transpose(hot, [*range(axis), rank - 1, *range(axis, rank - 1)])


TABLE: dict[str, Lowering] = {
    "Relu": partial(activation, "relu"),
    "Sigmoid": partial(activation, "sigmoid"),
    "Tanh": partial(activation, "tanh"),
    "Softplus": softplus,
    "Softsign": partial(activation, "softsign"),
    "LeakyRelu": partial(leaky, "leaky", 0.01),
    "Elu": partial(leaky, "elu", 1.0),
    "PRelu": prelu,
    "Selu": selu,
    "Celu": celu,
    "Gelu": gelu,
    "HardSigmoid": hard_sigmoid,
    "HardSwish": hard_swish,
    "Swish": swish,
    "Mish": mish,
    "ThresholdedRelu": thresholded_relu,
    "Softmax": partial(softmax, "softmax"),
    "LogSoftmax": partial(softmax, "log_softmax"),
    "Hardmax": hardmax,
}
