"""Normalizations."""

from __future__ import annotations

import numpy as np

from attar.conversion import NodeView
from attar_mxnet.symbol_json import Entry
from attar_mxnet.writing.context import Lowering, WriteContext
from attar_mxnet.writing.layers import floats_only
from attar_mxnet.writing.shaping import known_shape


def batch_norm(ctx: WriteContext, view: NodeView) -> Entry | tuple[Entry, ...]:
    """BatchNorm with its statistics as auxiliary states, which training updates."""
    floats_only(view)
    if view.attr("training_mode", 0):
        return _batch_statistics(ctx, view)
    eps = view.attr("epsilon", 1e-5)
    mean, var = ctx.array(view, 3), ctx.array(view, 4)
    constant = all(ctx.array(view, i) is not None for i in (1, 2))
    if mean is None or var is None or not constant or ctx.rank(view) < 2:
        rank = ctx.rank(view)
        scale, bias, mid, spread = (
            ctx.per_channel(ctx.get(view, i), rank, min(1, rank - 1)) for i in (1, 2, 3, 4)
        )
        return _normalized(ctx, ctx.get(view), mid, spread, [scale, bias], eps=eps)
    values = [view.input(i) for i in (3, 4)]
    states = [
        ctx.state(np.asarray(a, np.float32 if a.dtype == np.float16 else a.dtype), (v and v.name) or "state")
        for a, v in zip((mean, var), values, strict=True)
    ]
    return ctx.op(
        "BatchNorm",
        ctx.get(view),
        ctx.weight(view, 1),
        ctx.weight(view, 2),
        *states,
        eps=float(eps),
        momentum=float(view.attr("momentum", 0.9)),
        fix_gamma=False,
        axis=1,
    )


def _normalized(
    ctx: WriteContext, x: Entry, mean: Entry, var: Entry, affine: list[Entry], *, eps: float
) -> Entry:
    """(x - mean) / sqrt(var + eps) * scale + bias"""
    scale, bias = affine
    spread = ctx.op("sqrt", ctx.scalar("_plus_scalar", var, float(eps)))
    y = ctx.op("broadcast_div", ctx.op("broadcast_sub", x, mean), spread)
    return ctx.op("broadcast_add", ctx.op("broadcast_mul", y, scale), bias)


def _batch_statistics(ctx: WriteContext, view: NodeView) -> tuple[Entry, ...]:
    """Training mode: normalizes by the batch at hand and gives new running statistics."""
    rank, x = ctx.rank(view), ctx.get(view)
    over = tuple(i for i in range(rank) if i != 1)
    mean = ctx.op("mean", x, axis=over, keepdims=True)
    var = ctx.op("mean", ctx.op("square", ctx.op("broadcast_sub", x, mean)), axis=over, keepdims=True)
    affine = [ctx.per_channel(ctx.weight(view, i), rank) for i in (1, 2)]
    y = _normalized(ctx, x, mean, var, affine, eps=view.attr("epsilon", 1e-5))
    share = view.attr("momentum", 0.9)
    outputs = [y]
    for index, now in ((3, mean), (4, var)):
        before = ctx.scalar("_mul_scalar", ctx.get(view, index), share)
        fresh = ctx.scalar("_mul_scalar", ctx.reshape(now, (-1,)), 1 - share)
        outputs.append(ctx.op("broadcast_add", before, fresh))
    return tuple(outputs)


def layer_norm(ctx: WriteContext, view: NodeView) -> tuple[Entry, ...]:
    floats_only(view)
    shape = known_shape(view)
    rank, eps = len(shape), view.attr("epsilon", 1e-5)
    axis = view.attr("axis", -1) % rank
    x, sizes = ctx.get(view), shape[axis:]
    width = sizes[0] if len(sizes) == 1 else None
    scale = ctx.array(view, 1)
    bias = ctx.array(view, 2) if view.has(2) else None
    plain = isinstance(width, int) and scale is not None and scale.shape == (width,)
    plain = plain and (not view.has(2) or (bias is not None and bias.shape == (width,)))
    if plain and not view.wants(1) and not view.wants(2):
        beta = (
            ctx.weight(view, 2)
            if view.has(2)
            else ctx.op("_full", shape=(width,), dtype=ctx.dtype(view).name, value=0.0)
        )
        return (ctx.op("LayerNorm", x, ctx.weight(view, 1), beta, axis=axis, eps=float(eps)),)
    over = tuple(range(axis, rank))
    mean = ctx.op("mean", x, axis=over, keepdims=True)
    centred = ctx.op("broadcast_sub", x, mean)
    var = ctx.op("mean", ctx.op("square", centred), axis=over, keepdims=True)
    inverse = ctx.op("rsqrt", ctx.scalar("_plus_scalar", var, float(eps)))
    y = ctx.op("broadcast_mul", centred, inverse)
    y = ctx.op("broadcast_mul", y, ctx.lift(ctx.learnt(view, 1), ctx.rank(view, 1), rank))
    if view.has(2):
        y = ctx.op("broadcast_add", y, ctx.lift(ctx.learnt(view, 2), ctx.rank(view, 2), rank))
    return y, mean, inverse


def rms_norm(ctx: WriteContext, view: NodeView) -> Entry:
    floats_only(view)
    rank = ctx.rank(view)
    over = tuple(range(view.attr("axis", -1) % rank, rank))
    x = ctx.get(view)
    power = ctx.op("mean", ctx.op("square", x), axis=over, keepdims=True)
    inverse = ctx.op("rsqrt", ctx.scalar("_plus_scalar", power, float(view.attr("epsilon", 1e-5))))
    y = ctx.op("broadcast_mul", x, inverse)
    return ctx.op("broadcast_mul", y, ctx.lift(ctx.learnt(view, 1), ctx.rank(view, 1), rank))


def instance_norm(ctx: WriteContext, view: NodeView) -> Entry:
    floats_only(view)
    return ctx.op(
        "InstanceNorm",
        ctx.get(view),
        ctx.weight(view, 1),
        ctx.weight(view, 2),
        eps=float(view.attr("epsilon", 1e-5)),
    )


def group_norm(ctx: WriteContext, view: NodeView) -> Entry:
    """Written out: MXNet's GroupNorm gives the gradients of scale and bias in another shape than theirs."""
    floats_only(view)
    shape = known_shape(view)
    rank, groups, x = len(shape), view.attr("num_groups"), ctx.get(view)
    per_group = known_shape(view, 1)[0] == groups != shape[1]
    if per_group:
        raise view.refuse("scale and bias are by group, as before opset 21")
    grouped = ctx.reshape(x, (0, -4, groups, -1, -2))
    over = tuple(range(2, rank + 1))
    mean = ctx.op("mean", grouped, axis=over, keepdims=True)
    centred = ctx.op("broadcast_sub", grouped, mean)
    var = ctx.op("mean", ctx.op("square", centred), axis=over, keepdims=True)
    spread = ctx.op("sqrt", ctx.scalar("_plus_scalar", var, float(view.attr("epsilon", 1e-5))))
    y = ctx.reshape(ctx.op("broadcast_div", centred, spread), (0, -3, -2))
    y = ctx.op("broadcast_mul", y, ctx.per_channel(ctx.weight(view, 1), rank))
    return ctx.op("broadcast_add", y, ctx.per_channel(ctx.weight(view, 2), rank))


def lrn(ctx: WriteContext, view: NodeView) -> Entry:
    """Over channels: x / (bias + alpha / size * sum of squares) ** beta, in both."""
    floats_only(view)
    size = view.attr("size")
    if size % 2 == 0 or ctx.rank(view) != 4:
        raise view.refuse("MXNet's LRN takes images and windows of odd size")
    return ctx.op(
        "LRN",
        ctx.get(view),
        alpha=view.attr("alpha", 1e-4),
        beta=view.attr("beta", 0.75),
        knorm=view.attr("bias", 1.0),
        nsize=size,
    )


def mean_variance(ctx: WriteContext, view: NodeView) -> Entry:
    """(x - mean) / (std + 1e-9), with ONNX's own epsilon."""
    floats_only(view)
    rank = ctx.rank(view)
    over = tuple(int(a) % rank for a in view.attr("axes", None) or (0, 2, 3))
    x = ctx.get(view)
    mean = ctx.op("mean", x, axis=over, keepdims=True)
    centred = ctx.op("broadcast_sub", x, mean)
    std = ctx.op("sqrt", ctx.op("mean", ctx.op("square", centred), axis=over, keepdims=True))
    return ctx.op("broadcast_div", centred, ctx.scalar("_plus_scalar", std, 1e-9))


TABLE: dict[str, Lowering] = {
    "BatchNormalization": batch_norm,
    "LayerNormalization": layer_norm,
    "RMSNormalization": rms_norm,
    "InstanceNormalization": instance_norm,
    "GroupNormalization": group_norm,
    "LRN": lrn,
    "MeanVarianceNormalization": mean_variance,
}
