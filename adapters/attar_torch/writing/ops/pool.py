"""Pooling."""

from __future__ import annotations

import operator
from typing import Any

import torch

from attar.conversion import NodeView
from attar_torch.writing.context import Context
from attar_torch.writing.dtypes import FLOATING
from attar_torch.writing.functions import windows
from attar_torch.writing.ops.conv import spatial_rank, text
from attar_torch.writing.table import Table

TABLE = Table()

_MAX = {1: torch.nn.MaxPool1d, 2: torch.nn.MaxPool2d, 3: torch.nn.MaxPool3d}
_AVERAGE = {1: torch.nn.AvgPool1d, 2: torch.nn.AvgPool2d, 3: torch.nn.AvgPool3d}
_MEAN = {1: torch.nn.AdaptiveAvgPool1d, 2: torch.nn.AdaptiveAvgPool2d, 3: torch.nn.AdaptiveAvgPool3d}


class _Window:
    """Attributes of a pooling node."""

    def __init__(self, view: NodeView) -> None:
        count = spatial_rank(view)
        self.kernel = list(view.attr("kernel_shape"))
        self.strides = list(view.attr("strides") or [1] * count)
        self.dilations = list(view.attr("dilations") or [1] * count)
        self.ceil = bool(view.attr("ceil_mode", 0))
        self.pads = list(view.attr("pads") or [0] * 2 * count)
        mode = text(view.attr("auto_pad") or "NOTSET")
        if mode == "VALID":
            self.pads = [0] * 2 * count
        if mode in ("SAME_UPPER", "SAME_LOWER"):
            self.pads = self._same(view, mode == "SAME_UPPER")
            self.ceil = False
        self.count = count

    def _same(self, view: NodeView, upper: bool) -> list[int]:
        shape = view.shape(0)
        assert shape is not None
        small, large = [], []
        for size, kernel, stride, dilation in zip(
            shape[2:], self.kernel, self.strides, self.dilations, strict=True
        ):
            span = (kernel - 1) * dilation + 1
            if not isinstance(size, int) and stride != 1:
                raise view.refuse("auto_pad with strides depends on a size that is not known")
            total = (
                max((-(-size // stride) - 1) * stride + span - size, 0) if isinstance(size, int) else span - 1
            )
            small.append(total // 2)
            large.append(total - total // 2)
        return [*small, *large] if upper else [*large, *small]

    @property
    def plain(self) -> bool:
        """Whether torch's own padding says it: the same on both sides, at most half a window."""
        begins, ends = self.pads[: self.count], self.pads[self.count :]
        return begins == ends and all(0 <= b <= k // 2 for b, k in zip(begins, self.kernel, strict=True))

    def general(self) -> tuple[Any, ...]:
        return self.kernel, self.strides, self.dilations, self.pads, self.ceil


@TABLE.op("MaxPool")
def max_pool(ctx: Context, view: NodeView) -> Any:
    window = _Window(view)
    x, indices = ctx.tensor(view), view.wants(1)
    if window.plain and not indices and view.outputs[0].dtype in FLOATING:
        module = _MAX[window.count](
            tuple(window.kernel), tuple(window.strides), tuple(window.pads[: window.count]),
            tuple(window.dilations), ceil_mode=window.ceil,
        )  # fmt: skip
        return ctx.layer(view, module, x)
    made = ctx.call(windows.max_pool, x, *window.general(), bool(view.attr("storage_order", 0)), indices)
    first = ctx.call(operator.getitem, made, 0)
    return (first, ctx.call(operator.getitem, made, 1)) if indices else (first, ...)


@TABLE.op("AveragePool")
def average_pool(ctx: Context, view: NodeView) -> Any:
    window = _Window(view)
    include = bool(view.attr("count_include_pad", 0))
    x = ctx.tensor(view)
    if window.plain and set(window.dilations) == {1} and window.count:
        module = _AVERAGE[window.count](
            tuple(window.kernel), tuple(window.strides), tuple(window.pads[: window.count]), window.ceil,
            include,
        )  # fmt: skip
        return ctx.layer(view, module, x)
    return ctx.call(windows.average_pool, x, *window.general(), include)


@TABLE.op("LpPool")
def lp_pool(ctx: Context, view: NodeView) -> Any:
    return ctx.call(windows.lp_pool, ctx.tensor(view), view.attr("p"), *_Window(view).general())


@TABLE.op("GlobalAveragePool")
def global_average_pool(ctx: Context, view: NodeView) -> Any:
    rank = view.need_rank(0)
    if 3 <= rank <= 5:
        return ctx.layer(view, _MEAN[rank - 2](1), ctx.tensor(view))
    return ctx.call(torch.mean, ctx.tensor(view), tuple(range(2, rank)), True)


@TABLE.op("GlobalMaxPool")
def global_max_pool(ctx: Context, view: NodeView) -> Any:
    return ctx.call(torch.amax, ctx.tensor(view), tuple(range(2, view.need_rank(0))), True)


@TABLE.op("GlobalLpPool")
def global_lp_pool(ctx: Context, view: NodeView) -> Any:
    axes = tuple(range(2, view.need_rank(0)))
    return ctx.call(torch.linalg.vector_norm, ctx.tensor(view), view.attr("p"), axes, True)


@TABLE.op("MaxUnpool")
def max_unpool(ctx: Context, view: NodeView) -> Any:
    x, known, kernel = ctx.tensor(view), view.shape(0), view.attr("kernel_shape")
    strides = view.attr("strides") or [1] * len(kernel)
    pads = view.attr("pads") or [0] * 2 * len(kernel)
    if known is None or any(not isinstance(d, int) for d in known):
        raise view.refuse("the size of its output is known only while the model runs")
    shape = [int(d) for d in known[:2]]  # type: ignore[arg-type]
    for k, size in enumerate(known[2:]):
        shape.append((int(size) - 1) * strides[k] + kernel[k] - pads[k] - pads[k + len(kernel)])  # type: ignore[arg-type]
    if view.has(2) and list(view.need_const(2, "its output_shape")) != shape:
        raise view.refuse("what its indices mean in an output of another shape is not agreed upon")
    return ctx.call(windows.max_unpool, x, ctx.tensor(view, 1), shape)


@TABLE.op("LRN")
def lrn(ctx: Context, view: NodeView) -> Any:
    size, alpha, beta, bias = (view.attr(n) for n in ("size", "alpha", "beta", "bias"))
    if size % 2:
        return ctx.layer(view, torch.nn.LocalResponseNorm(size, alpha, beta, bias), ctx.tensor(view))
    return ctx.call(windows.even_lrn, ctx.tensor(view), size, alpha, beta, bias)
