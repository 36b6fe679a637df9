"""Normalizations."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import onnx_ir as ir

from attar_mxnet.reading.builder import Builder
from attar_mxnet.reading.operation import Operation
from attar_mxnet.reading.table import Table

table = Table()


@table(
    "BatchNorm",
    "BatchNorm_v1",
    "CuDNNBatchNorm",
    "_npx_batch_norm",
    "_contrib_SyncBatchNorm",
    "_contrib_BatchNormWithReLU",
)
def batch_norm(ctx: Builder, op: Operation) -> ir.Value:
    """`fix_gamma` is True unless it is said: gamma counts as 1 then, whatever is stored."""
    x = op.input(0)
    if op.flag("output_mean_var"):
        raise op.refuse("output_mean_var, which gives statistics out of training")
    axis = op.whole("axis", 1) % ctx.rank(x)
    gamma = op.input(1)
    if op.flag("fix_gamma", True):
        held = ctx.array(gamma)
        if held is None:
            raise op.refuse("gamma is not a stored parameter")
        ones = np.ones_like(held)
        gamma = gamma if np.array_equal(held, ones) else ctx.weight(f"{gamma.name}_fixed", ones)
    order = list(range(ctx.rank(x)))
    order.insert(1, order.pop(axis))
    moved = x if axis == 1 else ctx.emit("Transpose", x, perm=order)
    y = ctx.emit(
        "BatchNormalization",
        moved,
        gamma,
        *(op.input(i) for i in (2, 3, 4)),
        epsilon=op.number("eps", 1e-3),
        shape=ctx.shape(moved),
    )
    y = y if axis == 1 else ctx.emit("Transpose", y, perm=[int(i) for i in np.argsort(order)])
    return ctx.emit("Relu", y) if op.op == "_contrib_BatchNormWithReLU" else y


@table("LayerNorm", "_npx_layer_norm")
def layer_norm(ctx: Builder, op: Operation) -> ir.Value:
    x, gamma, beta = (op.input(i) for i in range(3))
    if op.flag("output_mean_var"):
        raise op.refuse("output_mean_var")
    rank = ctx.rank(x)
    axis = op.whole("axis", -1) % rank
    epsilon = op.number("eps", 1e-5)
    if axis == rank - 1:
        return ctx.emit("LayerNormalization", x, gamma, beta, axis=-1, epsilon=epsilon)
    order = [i for i in range(rank) if i != axis] + [axis]
    y = ctx.emit(
        "LayerNormalization", ctx.emit("Transpose", x, perm=order), gamma, beta, axis=-1, epsilon=epsilon
    )
    return ctx.emit("Transpose", y, perm=[int(i) for i in np.argsort(order)])


@table("InstanceNorm")
def instance_norm(ctx: Builder, op: Operation) -> ir.Value:
    return ctx.emit("InstanceNormalization", *op.inputs[:3], epsilon=op.number("eps", 1e-3))


@table("GroupNorm")
def group_norm(ctx: Builder, op: Operation) -> ir.Value:
    """Gamma and beta have a number for each group (MXNet 1) or for each channel (MXNet 2)."""
    x, gamma, beta = (op.input(i) for i in range(3))
    if op.flag("output_mean_var"):
        raise op.refuse("output_mean_var")
    groups, channels = op.whole("num_groups", 1), ctx.shape(x)[1]
    if not isinstance(channels, int) or groups < 1 or channels % groups:
        raise op.refuse(f"{channels} channels in {groups} groups")
    weights = []
    for value in (gamma, beta):
        held = ctx.array(value)
        if ctx.shape(value) == (channels,):
            weights.append(value)
        elif ctx.shape(value) != (groups,) or held is None:
            raise op.refuse(f"{value.name} of shape {list(ctx.shape(value))}, or computed")
        else:
            repeated = np.repeat(held, channels // groups)
            weights.append(ctx.weight(f"{value.name}_of_channels", repeated))
    epsilon = op.number("eps", 1e-5)
    return ctx.emit("GroupNormalization", x, *weights, num_groups=groups, epsilon=epsilon, shape=ctx.shape(x))


@table("L2Normalization")
def l2_normalization(ctx: Builder, op: Operation) -> ir.Value:
    """x / sqrt(sum(x^2) + eps); over all but the batch, over the channels, or over what lies behind them."""
    x = op.input(0)
    mode, rank = op.text("mode", "instance"), ctx.rank(x)
    over = {"instance": range(1, rank), "channel": range(1, 2), "spatial": range(2, rank)}
    if mode not in over:
        raise op.refuse(f"mode {mode}")
    total = ctx.emit("ReduceSumSquare", x, list(over[mode]), keepdims=1)
    return ctx.emit(
        "Div", x, ctx.emit("Sqrt", ctx.emit("Add", total, ctx.scalar(op.number("eps", 1e-10), x)))
    )


@table("LRN")
def lrn(ctx: Builder, op: Operation) -> ir.Value:
    size = op.whole("nsize")
    if size % 2 == 0:
        raise op.refuse("nsize must be odd")
    return ctx.emit(
        "LRN",
        op.input(0),
        size=size,
        alpha=op.number("alpha", 1e-4),
        beta=op.number("beta", 0.75),
        bias=op.number("knorm", 2.0),
    )


@table("moments")
def moments(ctx: Builder, op: Operation) -> Sequence[ir.Value]:
    """Mean and variance over `axes`."""
    x, keep = op.input(0), op.flag("keepdims")
    axes = [a % ctx.rank(x) for a in op.wholes("axes", ())] or list(range(ctx.rank(x)))
    mean = ctx.emit("ReduceMean", x, axes, keepdims=1)
    apart = ctx.emit("Sub", x, mean)
    variance = ctx.emit("ReduceMean", ctx.emit("Mul", apart, apart), axes, keepdims=1)
    if keep:
        return mean, variance
    squeezed = [ctx.emit("Squeeze", v, axes) for v in (mean, variance)]
    if len(axes) == ctx.rank(x) and not op.np_shape:
        squeezed = [ctx.reshape(v, [1]) for v in squeezed]
    return squeezed
