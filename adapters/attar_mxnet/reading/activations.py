"""Activations, softmaxes, and the loss layers that are a softmax or nothing at inference."""

from __future__ import annotations

import math

import numpy as np
import onnx_ir as ir

from attar_mxnet.reading.builder import Builder
from attar_mxnet.reading.operation import Operation
from attar_mxnet.reading.table import Table

table = Table()

_BY_NAME = {
    "relu": "Relu",
    "sigmoid": "Sigmoid",
    "tanh": "Tanh",
    "softrelu": "Softplus",
    "softsign": "Softsign",
}


@table("Activation", "_npx_activation")
def activation(ctx: Builder, op: Operation) -> ir.Value:
    kind = op.text("act_type")
    x = op.input(0)
    if kind in _BY_NAME:
        return ctx.emit(_BY_NAME[kind], x)
    if kind == "log_sigmoid":
        return ctx.emit("Neg", ctx.emit("Softplus", ctx.emit("Neg", x)))
    if kind == "mish":
        return ctx.emit("Mul", x, ctx.emit("Tanh", ctx.emit("Softplus", x)))
    raise op.refuse(f"act_type {kind}")


@table("LeakyReLU", "_npx_leaky_relu")
def leaky_relu(ctx: Builder, op: Operation) -> ir.Value:
    x, kind, slope = op.input(0), op.text("act_type", "leaky"), op.number("slope", 0.25)
    if kind == "leaky":
        return ctx.emit("LeakyRelu", x, alpha=slope)
    if kind == "rrelu":  # at inference the slope is the middle of its range
        low, high = op.number("lower_bound", 0.125), op.number("upper_bound", 0.334)
        return ctx.emit("LeakyRelu", x, alpha=(low + high) / 2)
    if kind == "elu":
        return ctx.emit("Elu", x, alpha=slope)
    if kind == "selu":
        return ctx.emit("Selu", x, alpha=1.6732632423543772, gamma=1.0507009873554805)
    if kind == "gelu":
        return gelu(ctx, x)
    if kind != "prelu":
        raise op.refuse(f"act_type {kind}")
    gamma = op.input(1)
    shape = ctx.shape(gamma)
    if len(shape) == 1 and ctx.rank(x) > 2 and shape != (1,):  # a slope for each channel
        gamma = ctx.reshape(gamma, [*shape, *([1] * (ctx.rank(x) - 2))])
    return ctx.emit("PRelu", x, gamma)


def gelu(ctx: Builder, x: ir.Value) -> ir.Value:
    """x * (1 + erf(x / sqrt 2)) / 2"""
    return ctx.emit("Gelu", x)


@table("hard_sigmoid")
def hard_sigmoid(ctx: Builder, op: Operation) -> ir.Value:
    return ctx.emit("HardSigmoid", op.input(0), alpha=op.number("alpha", 0.2), beta=op.number("beta", 0.5))


@table("softmax", "_npx_softmax")
def softmax(ctx: Builder, op: Operation) -> ir.Value:
    return _softmax(ctx, op, "Softmax", 1.0)


@table("softmin")
def softmin(ctx: Builder, op: Operation) -> ir.Value:
    return _softmax(ctx, op, "Softmax", -1.0)


@table("log_softmax", "_npx_log_softmax")
def log_softmax(ctx: Builder, op: Operation) -> ir.Value:
    return _softmax(ctx, op, "LogSoftmax", 1.0)


def _softmax(ctx: Builder, op: Operation, kind: str, sign: float) -> ir.Value:
    x = op.input(0)
    axis = op.whole("axis", -1) % ctx.rank(x)
    if not ctx.is_float(x):
        raise op.refuse("integers")
    dtype = op.dtype("dtype", None)
    if dtype is not None:
        x = ctx.cast(x, dtype)
    factor = sign / op.number("temperature", 1.0)
    if factor != 1.0:
        x = ctx.emit("Mul", x, ctx.scalar(factor, x))
    if not op.flag("use_length"):
        return ctx.emit(kind, x, axis=axis)
    if kind != "Softmax":
        raise op.refuse("use_length on a logarithm")
    # Beyond the length the result is 0. -inf would make rows of length 0 NaN, where MXNet has zeros.
    inside = length_mask(ctx, x, op.input(1), axis)
    low = ctx.const(np.finfo(ctx.dtype(x)).min, ctx.dtype(x))
    y = ctx.emit("Softmax", ctx.emit("Where", inside, x, low), axis=axis)
    return ctx.emit("Where", inside, y, ctx.scalar(0, y))


def length_mask(ctx: Builder, x: ir.Value, length: ir.Value, axis: int) -> ir.Value:
    """Where the place along `axis` is below `length`, which has the other axes of `x`."""
    size = ctx.reshape(ctx.size(ctx.shape(x)[axis]), [])
    places = ctx.emit(
        "Range", ctx.const(0, np.int64), size, ctx.const(1, np.int64), shape=[ctx.shape(x)[axis]]
    )
    shape = [1] * ctx.rank(x)
    shape[axis] = -1
    places = ctx.emit("Reshape", places, shape, shape=[ctx.shape(x)[axis] if d < 0 else 1 for d in shape])
    return ctx.emit("Less", places, ctx.emit("Unsqueeze", ctx.cast(length, np.int64), [axis]))


@table("SoftmaxActivation")
def softmax_activation(ctx: Builder, op: Operation) -> ir.Value:
    return ctx.emit("Softmax", op.input(0), axis=1 if op.text("mode", "instance") == "channel" else -1)


@table("SoftmaxOutput", "Softmax")
def softmax_output(ctx: Builder, op: Operation) -> ir.Value:
    """A softmax; the label counts in training only."""
    x = op.input(0)
    rank = ctx.rank(x)
    if op.flag("multi_output"):
        return ctx.emit("Softmax", x, axis=1)
    if op.flag("preserve_shape") or rank <= 2:
        return ctx.emit("Softmax", x, axis=rank - 1)
    raise op.refuse(f"{rank} axes without multi_output or preserve_shape, on which builds of MXNet differ")


@table("LogisticRegressionOutput", "_sparse_LogisticRegressionOutput")
def logistic_output(ctx: Builder, op: Operation) -> ir.Value:
    return ctx.emit("Sigmoid", op.input(0))


@table(
    "identity",
    "_copy",
    "_np_copy",
    "BlockGrad",
    "stop_gradient",
    "MakeLoss",
    "make_loss",
    "LinearRegressionOutput",
    "MAERegressionOutput",
    "SVMOutput",
    "_sparse_LinearRegressionOutput",
    "_sparse_MAERegressionOutput",
    "IdentityAttachKLSparseReg",
    "_contrib_gradientmultiplier",
    "_identity_with_attr_like_rhs",
    "_CrossDeviceCopy",
    "_npi_share_memory",
)
def identity(ctx: Builder, op: Operation) -> ir.Value:
    """The first input as it is; what else there is counts in training only."""
    return op.input(0)


@table("Dropout", "_npx_dropout")
def dropout(ctx: Builder, op: Operation) -> ir.Value:
    if op.text("mode", "training") == "always":
        raise op.refuse("mode always, which draws random numbers at inference")
    return op.input(0)


@table("smooth_l1", "_npx_smooth_l1")
def smooth_l1(ctx: Builder, op: Operation) -> ir.Value:
    """(s x)^2 / 2 where |x| < 1 / s^2, else |x| - 1 / (2 s^2)."""
    x, square = op.input(0), op.number("scalar", 1.0) ** 2
    size = ctx.emit("Abs", x)
    inner = ctx.emit("Mul", ctx.emit("Mul", x, x), ctx.scalar(square / 2, x))
    outer = ctx.emit("Sub", size, ctx.scalar(0.5 / square, x))
    return ctx.emit("Where", ctx.emit("Less", size, ctx.scalar(1 / square, x)), inner, outer)


@table("_contrib_div_sqrt_dim")
def div_sqrt_dim(ctx: Builder, op: Operation) -> ir.Value:
    """x / sqrt(size of the last axis)"""
    x = op.input(0)
    last = ctx.shape(x)[-1]
    if isinstance(last, int):
        return ctx.emit("Div", x, ctx.scalar(math.sqrt(last), x))
    return ctx.emit("Div", x, ctx.emit("Sqrt", ctx.cast(ctx.size(last), ctx.dtype(x))))


@table("_contrib_quadratic")
def quadratic(ctx: Builder, op: Operation) -> ir.Value:
    """a x^2 + b x + c"""
    x = op.input(0)
    inner = ctx.emit("Mul", x, ctx.scalar(op.number("a", 0.0), x))
    inner = ctx.emit("Mul", ctx.emit("Add", inner, ctx.scalar(op.number("b", 0.0), x)), x)
    return ctx.emit("Add", inner, ctx.scalar(op.number("c", 0.0), x))
