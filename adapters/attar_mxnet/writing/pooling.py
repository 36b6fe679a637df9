"""Pooling. MXNet's own where it says the same; else sums, counts and slices that do."""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial

import numpy as np

from attar.conversion import NodeView
from attar_mxnet.symbol_json import Entry
from attar_mxnet.writing.borders import padded
from attar_mxnet.writing.context import Lowering, WriteContext
from attar_mxnet.writing.layers import floats_only, spatial_pads
from attar_mxnet.writing.shaping import known_shape


@dataclass(frozen=True)
class Window:
    """How a pool slides. `overflow`: what ceil_mode reads behind the padding, by axis."""

    kernel: tuple[int, ...]
    stride: tuple[int, ...]
    dilation: tuple[int, ...]
    begin: tuple[int, ...]
    end: tuple[int, ...]
    overflow: tuple[int, ...]

    @property
    def rank(self) -> int:
        return len(self.kernel)

    @property
    def simple(self) -> bool:
        """Whether MXNet's Pooling can say it."""
        inside = all(b < k for b, k in zip(self.begin, self.kernel, strict=True))
        return self.begin == self.end and not any(self.overflow) and set(self.dilation) == {1} and inside


def window(view: NodeView) -> Window:
    kernel = [int(k) for k in view.attr("kernel_shape")]
    rank = len(kernel)
    if rank > 3:
        raise view.refuse(f"a window of {rank} axes")
    stride = view.attr("strides", None) or [1] * rank
    dilation = view.attr("dilations", None) or [1] * rank
    auto = view.attr("auto_pad", "NOTSET") != "NOTSET"
    if auto and (view.attr("ceil_mode", 0) or set(dilation) != {1}):
        raise view.refuse("runtimes differ over auto_pad together with ceil_mode or dilation")
    begin, end = spatial_pads(view, kernel, stride, dilation)
    overflow = [0] * rank
    if view.attr("ceil_mode", 0):
        for axis in range(rank):
            reach = (kernel[axis] - 1) * dilation[axis] + 1
            size, pads = known_shape(view)[axis + 2], (begin[axis], end[axis])
            overflow[axis] = _overflow(view, size, reach, stride[axis], pads)
    parts = (kernel, stride, dilation, begin, end, overflow)
    return Window(*(tuple(int(n) for n in part) for part in parts))


def _overflow(view: NodeView, size: object, reach: int, stride: int, pads: tuple[int, int]) -> int:
    begin, end = pads
    if stride == 1:
        return 0
    if not isinstance(size, int):
        raise view.refuse("ceil_mode needs the sizes of the spatial axes")
    count = -(-(size + begin + end - reach) // stride) + 1
    if (count - 1) * stride >= size + begin:  # the last window would start in the padding
        count -= 1
    return max((count - 1) * stride + reach - (size + begin + end), 0)


def _pool(ctx: WriteContext, x: Entry, kind: str, win: Window, **more: bool) -> Entry:
    return ctx.op(
        "Pooling",
        x,
        kernel=win.kernel,
        pool_type=kind,
        stride=win.stride,
        pad=win.begin if win.simple else (0,) * win.rank,
        pooling_convention="valid",
        **more,
    )


def _taps(ctx: WriteContext, x: Entry, win: Window, join: Callable[[Entry, Entry], Entry]) -> Entry:
    """Join the shifted copies of a padded `x`, one for each place of the window; for dilated windows."""
    reach = [(k - 1) * d + 1 for k, d in zip(win.kernel, win.dilation, strict=True)]
    total: Entry | None = None
    for place in itertools.product(*(range(k) for k in win.kernel)):
        first = [p * d for p, d in zip(place, win.dilation, strict=True)]
        last = [f - (r - 1) or None for f, r in zip(first, reach, strict=True)]
        steps = (None, None, *win.stride) if set(win.stride) != {1} else None
        tap = ctx.op("slice", x, begin=(None, None, *first), end=(None, None, *last), step=steps)
        total = tap if total is None else join(total, tap)
    assert total is not None
    return total


def max_pool(ctx: WriteContext, view: NodeView) -> tuple[Entry | None, ...]:
    if view.wants(1):
        raise view.refuse("MXNet's pooling does not give the places of the maxima")
    win, dtype = window(view), view.dtype()
    if dtype.kind not in "f" and dtype.itemsize > 1:
        raise view.refuse(f"MXNet pools floats, the input is {dtype}")
    x = ctx.get(view) if dtype.kind == "f" else ctx.cast(ctx.get(view), np.float32)
    if win.simple:
        y = _pool(ctx, x, "max", win)
    else:
        lowest = float(np.finfo(np.float32).min) if dtype.kind == "f" else -1e3
        after = [e + o for e, o in zip(win.end, win.overflow, strict=True)]
        x = padded(ctx, x, [0, 0, *win.begin], [0, 0, *after], lowest)
        if set(win.dilation) == {1}:
            y = _pool(ctx, x, "max", win)
        else:
            y = _taps(ctx, x, win, lambda a, b: ctx.op("broadcast_maximum", a, b))
    return (y if dtype.kind == "f" else ctx.cast(y, dtype), None)


def average_pool(ctx: WriteContext, view: NodeView) -> Entry:
    """Sums over windows, divided by how many elements count in each."""
    floats_only(view)
    win, x = window(view), ctx.get(view)
    with_pads = bool(view.attr("count_include_pad", 0))
    if win.simple:
        return _pool(ctx, x, "avg", win, count_include_pad=with_pads)
    total = _window_sum(ctx, x, win, 0.0)
    ones = ctx.op("ones_like", x)
    if with_pads:  # padding counts, what ceil_mode reads behind it does not
        ones = padded(ctx, ones, [0, 0, *win.begin], [0, 0, *win.end], 1.0)
        after = padded(ctx, ones, [0] * (win.rank + 2), [0, 0, *win.overflow])
        count = _slide_sum(ctx, after, win)
    else:
        count = _window_sum(ctx, ones, win, 0.0)
    return ctx.op("elemwise_div", total, count)


def _window_sum(ctx: WriteContext, x: Entry, win: Window, value: float) -> Entry:
    after = [e + o for e, o in zip(win.end, win.overflow, strict=True)]
    return _slide_sum(ctx, padded(ctx, x, [0, 0, *win.begin], [0, 0, *after], value), win)


def _slide_sum(ctx: WriteContext, x: Entry, win: Window) -> Entry:
    """Window sums of an `x` that is padded already."""
    if set(win.dilation) != {1}:
        return _taps(ctx, x, win, lambda a, b: ctx.op("elemwise_add", a, b))
    none = (0,) * win.rank
    bare = Window(win.kernel, win.stride, win.dilation, none, none, none)
    mean = _pool(ctx, x, "avg", bare, count_include_pad=True)
    return ctx.scalar("_mul_scalar", mean, math.prod(win.kernel))


def lp_pool(ctx: WriteContext, view: NodeView) -> Entry:
    floats_only(view)
    p = view.attr("p", 2)
    if p < 1:
        raise view.refuse(f"p is {p}")
    size = ctx.op("abs", ctx.get(view))
    raised = size if p == 1 else ctx.scalar("_power_scalar", size, float(p))
    total = _window_sum(ctx, raised, window(view), 0.0)
    return total if p == 1 else ctx.scalar("_power_scalar", total, 1.0 / p)


def global_pool(kind: str, ctx: WriteContext, view: NodeView) -> Entry:
    floats_only(view)
    rank = ctx.rank(view) - 2
    if not 1 <= rank <= 3:
        return ctx.op(
            "mean" if kind == "avg" else "max", ctx.get(view), axis=tuple(range(2, rank + 2)), keepdims=True
        )
    return ctx.op("Pooling", ctx.get(view), kernel=(1,) * rank, pool_type=kind, global_pool=True)


TABLE: dict[str, Lowering] = {
    "MaxPool": max_pool,
    "AveragePool": average_pool,
    "LpPool": lp_pool,
    "GlobalAveragePool": partial(global_pool, "avg"),
    "GlobalMaxPool": partial(global_pool, "max"),
}
