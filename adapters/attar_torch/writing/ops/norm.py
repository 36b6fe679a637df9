"""Normalization."""

from __future__ import annotations

import operator
from typing import Any

import numpy as np
import torch

from attar.conversion import NodeView
from attar_torch.writing.context import Context
from attar_torch.writing.dtypes import FLOATING, torch_dtype
from attar_torch.writing.functions import norm as functions
from attar_torch.writing.table import Table

TABLE = Table()

_BATCH = {
    2: torch.nn.BatchNorm1d, 3: torch.nn.BatchNorm1d, 4: torch.nn.BatchNorm2d, 5: torch.nn.BatchNorm3d,
}  # fmt: skip
_INSTANCE = {3: torch.nn.InstanceNorm1d, 4: torch.nn.InstanceNorm2d, 5: torch.nn.InstanceNorm3d}


@TABLE.op("BatchNormalization")
def batch_norm(ctx: Context, view: NodeView) -> Any:
    epsilon, momentum = view.attr("epsilon"), view.attr("momentum")
    if view.attr("training_mode", 0):
        made = ctx.call(
            functions.batch_norm_training, *(ctx.tensor(view, k) for k in range(5)), epsilon, momentum
        )
        return tuple(ctx.call(operator.getitem, made, k) for k in range(len(view.outputs)))
    rank = view.rank(0)
    weights = [view.const(k) for k in range(1, 5)]
    kind = torch_dtype(view.outputs[0].dtype)
    same = all(view.input(k).dtype == view.outputs[0].dtype for k in range(1, 5))  # type: ignore[union-attr]
    if rank in _BATCH and all(w is not None for w in weights) and same:
        assert weights[0] is not None
        module = _BATCH[rank](weights[0].size, eps=epsilon, momentum=1 - momentum, device="meta", dtype=kind)
        return ctx.layer(
            view, module, ctx.tensor(view), weights={"weight": view.input(1), "bias": view.input(2)},
            buffers={"running_mean": view.input(3), "running_var": view.input(4)},
        )  # fmt: skip
    return ctx.call(
        functions.batch_norm, ctx.tensor(view), ctx.parameter(view, 1), ctx.parameter(view, 2),
        ctx.tensor(view, 3), ctx.tensor(view, 4), epsilon,
    )  # fmt: skip


@TABLE.op("InstanceNormalization")
def instance_norm(ctx: Context, view: NodeView) -> Any:
    shape, scale, bias = view.shape(0), view.const(1), view.const(2)
    known = (
        shape is not None and len(shape) in _INSTANCE and any(isinstance(d, int) and d > 1 for d in shape[2:])
    )
    if known and scale is not None and bias is not None:
        assert shape is not None
        module = _INSTANCE[len(shape)](
            scale.size, eps=view.attr("epsilon"), affine=True, device="meta",
            dtype=torch_dtype(view.outputs[0].dtype),
        )  # fmt: skip
        return ctx.layer(
            view, module, ctx.tensor(view), weights={"weight": view.input(1), "bias": view.input(2)}
        )
    return ctx.call(
        functions.instance_norm, ctx.tensor(view), ctx.parameter(view, 1), ctx.parameter(view, 2),
        view.attr("epsilon"),
    )  # fmt: skip


@TABLE.op("LayerNormalization")
def layer_norm(ctx: Context, view: NodeView) -> Any:
    rank, epsilon = view.need_rank(0), view.attr("epsilon")
    axis = view.attr("axis") % rank
    scale, bias, shape = view.const(1), view.const(2) if view.has(2) else None, view.shape(0)
    assert shape is not None
    fits = scale is not None and tuple(scale.shape) == tuple(shape[axis:]) and view.attr("stash_type") == 1
    beside = not view.has(2) or (bias is not None and scale is not None and bias.shape == scale.shape)
    if fits and beside and not view.wants(1) and not view.wants(2):
        assert scale is not None
        module = torch.nn.LayerNorm(
            scale.shape,
            eps=epsilon,
            bias=view.has(2),
            device="meta",
            dtype=torch_dtype(view.outputs[0].dtype),
        )
        weights = {"weight": view.input(1)} | ({"bias": view.input(2)} if view.has(2) else {})
        return ctx.layer(view, module, ctx.tensor(view), weights=weights), ..., ...
    if view.attr("stash_type") != 1:
        raise view.refuse("stash_type is not float32")
    made = ctx.call(
        functions.layer_norm, ctx.tensor(view), ctx.parameter(view, 1),
        ctx.parameter(view, 2) if view.has(2) else None, axis, epsilon,
    )  # fmt: skip
    return tuple(ctx.call(operator.getitem, made, k) for k in range(3))


@TABLE.op("GroupNormalization")
def group_norm(ctx: Context, view: NodeView) -> Any:
    groups, epsilon, scale, bias = view.attr("num_groups"), view.attr("epsilon"), view.const(1), view.const(2)
    shape = view.shape(0)
    channels = None if shape is None else shape[1]
    if not isinstance(channels, int):
        raise view.refuse("the number of its channels is unknown")
    if scale is not None and bias is not None and view.opset >= 21 and view.outputs[0].dtype in FLOATING:
        module = torch.nn.GroupNorm(
            groups, channels, epsilon, device="meta", dtype=torch_dtype(view.outputs[0].dtype)
        )
        return ctx.layer(
            view, module, ctx.tensor(view), weights={"weight": view.input(1), "bias": view.input(2)}
        )
    repeat = channels // groups if view.opset < 21 else 1
    return ctx.call(
        functions.group_norm, ctx.tensor(view), ctx.parameter(view, 1), ctx.parameter(view, 2), groups,
        repeat, epsilon,
    )  # fmt: skip


@TABLE.op("RMSNormalization")
def rms_norm(ctx: Context, view: NodeView) -> Any:
    rank, shape, scale = view.need_rank(0), view.shape(0), view.const(1)
    axis = view.attr("axis") % rank
    assert shape is not None
    if scale is not None and tuple(scale.shape) == tuple(shape[axis:]) and view.outputs[0].dtype in FLOATING:
        module = torch.nn.RMSNorm(
            tuple(scale.shape),
            eps=view.attr("epsilon"),
            device="meta",
            dtype=torch_dtype(view.outputs[0].dtype),
        )
        return ctx.layer(view, module, ctx.tensor(view), weights={"weight": view.input(1)})
    return ctx.call(functions.rms_norm, ctx.tensor(view), ctx.parameter(view, 1), axis, view.attr("epsilon"))


@TABLE.op("LpNormalization")
def lp_normalization(ctx: Context, view: NodeView) -> Any:
    return ctx.call(functions.lp_normalization, ctx.tensor(view), view.attr("p"), view.attr("axis"))


@TABLE.op("MeanVarianceNormalization")
def mean_variance(ctx: Context, view: NodeView) -> Any:
    axes = view.attr("axes") or [0, 2, 3]
    return ctx.call(functions.mean_variance, ctx.tensor(view), [int(a) for a in np.atleast_1d(axes)])
