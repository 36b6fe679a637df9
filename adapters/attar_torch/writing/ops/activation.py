"""Activations."""

from __future__ import annotations

import operator
from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from torch.nn import functional

from attar.conversion import NodeView
from attar_torch.writing.context import Context
from attar_torch.writing.dtypes import FLOATING
from attar_torch.writing.functions.activation import hardmax, shrink
from attar_torch.writing.table import Table

TABLE = Table()


def _layer(make: Callable[[], torch.nn.Module]) -> Callable[[Context, NodeView], Any]:
    def lower(ctx: Context, view: NodeView) -> Any:
        return ctx.layer(view, make(), ctx.tensor(view))

    return lower


for _name, _make in {
    "Sigmoid": torch.nn.Sigmoid, "Tanh": torch.nn.Tanh, "Softplus": torch.nn.Softplus,
    "Softsign": torch.nn.Softsign, "HardSwish": torch.nn.Hardswish, "Mish": torch.nn.Mish,
}.items():  # fmt: skip
    TABLE.op(_name)(_layer(_make))


@TABLE.op("Relu")
def relu(ctx: Context, view: NodeView) -> Any:
    return ctx.layer(view, torch.nn.ReLU(), ctx.tensor(view))


@TABLE.op("LeakyRelu")
def leaky_relu(ctx: Context, view: NodeView) -> Any:
    return ctx.layer(view, torch.nn.LeakyReLU(view.attr("alpha")), ctx.tensor(view))


@TABLE.op("Elu")
def elu(ctx: Context, view: NodeView) -> Any:
    return ctx.layer(view, torch.nn.ELU(view.attr("alpha")), ctx.tensor(view))


@TABLE.op("Celu")
def celu(ctx: Context, view: NodeView) -> Any:
    return ctx.layer(view, torch.nn.CELU(view.attr("alpha")), ctx.tensor(view))


@TABLE.op("Selu")
def selu(ctx: Context, view: NodeView) -> Any:
    alpha, gamma = view.attr("alpha"), view.attr("gamma")
    if np.float32(alpha) == np.float32(1.6732632423543772) and np.float32(gamma) == np.float32(1.0507009873):
        return ctx.layer(view, torch.nn.SELU(), ctx.tensor(view))
    return ctx.call(operator.mul, ctx.call(functional.elu, ctx.tensor(view), alpha), gamma)


@TABLE.op("Gelu")
def gelu(ctx: Context, view: NodeView) -> Any:
    return ctx.layer(view, torch.nn.GELU(view.attr("approximate") or "none"), ctx.tensor(view))


@TABLE.op("Swish")
def swish(ctx: Context, view: NodeView) -> Any:
    alpha = view.attr("alpha")
    if alpha == 1:
        return ctx.layer(view, torch.nn.SiLU(), ctx.tensor(view))
    x = ctx.tensor(view)
    return ctx.call(operator.mul, x, ctx.call(torch.sigmoid, ctx.call(operator.mul, x, alpha)))


@TABLE.op("HardSigmoid")
def hard_sigmoid(ctx: Context, view: NodeView) -> Any:
    alpha, beta = view.attr("alpha"), view.attr("beta")
    if np.float32(alpha) == np.float32(1 / 6) and beta == 0.5:
        return ctx.layer(view, torch.nn.Hardsigmoid(), ctx.tensor(view))
    scaled = ctx.call(operator.add, ctx.call(operator.mul, ctx.tensor(view), alpha), beta)
    return ctx.call(torch.clamp, scaled, 0.0, 1.0)


@TABLE.op("ThresholdedRelu")
def thresholded_relu(ctx: Context, view: NodeView) -> Any:
    return ctx.layer(view, torch.nn.Threshold(view.attr("alpha"), 0.0), ctx.tensor(view))


@TABLE.op("Shrink")
def lower_shrink(ctx: Context, view: NodeView) -> Any:
    if view.outputs[0].dtype not in FLOATING:
        raise view.refuse("integers are not shrunk exactly")
    return ctx.call(shrink, ctx.tensor(view), view.attr("lambd"), view.attr("bias"))


@TABLE.op("Softmax")
def softmax(ctx: Context, view: NodeView) -> Any:
    return ctx.layer(view, torch.nn.Softmax(view.attr("axis")), ctx.tensor(view))


@TABLE.op("LogSoftmax")
def log_softmax(ctx: Context, view: NodeView) -> Any:
    return ctx.layer(view, torch.nn.LogSoftmax(view.attr("axis")), ctx.tensor(view))


@TABLE.op("Hardmax")
def lower_hardmax(ctx: Context, view: NodeView) -> Any:
    return ctx.call(hardmax, ctx.tensor(view), view.attr("axis"))


@TABLE.op("PRelu")
def prelu(ctx: Context, view: NodeView) -> Any:
    """nn.PReLU where the slope lies along axis 1; otherwise the definition, which broadcasts any slope."""
    slope, rank = view.const(1), view.rank(0)
    floating = view.outputs[0].dtype in FLOATING
    if slope is not None and rank is not None and floating:
        aligned = (1,) * (rank - slope.ndim) + slope.shape
        along = len(aligned) == rank and all(d == 1 for k, d in enumerate(aligned) if k != 1)
        if along and (slope.size == 1 or rank >= 2):
            module = torch.nn.PReLU(slope.size, device="meta")
            return ctx.layer(view, module, ctx.tensor(view), weights={"weight": (view.input(1), flat)})
    x = ctx.tensor(view)
    scaled = ctx.call(operator.mul, x, ctx.parameter(view, 1))
    return ctx.call(torch.where, ctx.call(operator.ge, x, 0), x, scaled)


def flat(array: Any) -> Any:
    """All elements in a row."""
    return array.reshape(-1)


@TABLE.op("Dropout")
def dropout(ctx: Context, view: NodeView) -> Any:
    """Idle in eval mode; in train mode it drops, which is what the ratio was kept for."""
    training = view.const(2) if view.has(2) else np.array(False)
    ratio = view.const(1) if view.has(1) else np.array(0.5)
    x = ctx.tensor(view)
    if training is None or ratio is None:
        raise view.refuse("its ratio or mode is computed while the model runs")
    rate = float(ratio.reshape(-1)[0])
    if bool(training.reshape(-1)[0]) and rate:
        raise view.refuse("it drops at random even in inference")
    mask = ctx.call(torch.ones_like, x, dtype=torch.bool) if view.wants(1) else ...
    if not 0 <= rate < 1:
        return x, mask
    return ctx.layer(view, torch.nn.Dropout(rate), x), mask
