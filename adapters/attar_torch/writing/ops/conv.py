"""Convolutions."""

from __future__ import annotations

import operator
from typing import Any

import torch
from torch.nn import functional

from attar.conversion import NodeView
from attar_torch.writing.context import Context
from attar_torch.writing.dtypes import FLOATING, torch_dtype
from attar_torch.writing.functions.windows import deform_conv, same_pads
from attar_torch.writing.table import Table

TABLE = Table()

_CONV = {1: torch.nn.Conv1d, 2: torch.nn.Conv2d, 3: torch.nn.Conv3d}
_TRANSPOSE = {1: torch.nn.ConvTranspose1d, 2: torch.nn.ConvTranspose2d, 3: torch.nn.ConvTranspose3d}
_F_CONV = {1: functional.conv1d, 2: functional.conv2d, 3: functional.conv3d}
_F_TRANSPOSE = {
    1: functional.conv_transpose1d,
    2: functional.conv_transpose2d,
    3: functional.conv_transpose3d,
}


def text(value: Any) -> str:
    return value.decode() if isinstance(value, bytes) else str(value)


def spatial_rank(view: NodeView) -> int:
    """Number of spatial axes: torch has layers for one to three."""
    rank = view.rank(0) or view.rank(1)
    if rank is None or not 3 <= rank <= 5:
        raise view.refuse("torch has it for one to three spatial axes only")
    return rank - 2


def flat_pads(pads: list[int]) -> list[int]:
    """ONNX's (begins..., ends...) in the order of `functional.pad`: the last axis first."""
    half = len(pads) // 2
    return [n for axis in range(half - 1, -1, -1) for n in (pads[axis], pads[axis + half])]


def padded(  # noqa: PLR0917
    ctx: Context, view: NodeView, x: Any, kernel: list[int], strides: list[int], dilations: list[int]
) -> tuple[Any, list[int]]:
    """`x`, padded if torch cannot say it with symmetric padding, and what is left to pad on both sides."""
    count = len(kernel)
    mode = text(view.attr("auto_pad") or "NOTSET")
    pads = list(view.attr("pads") or [0] * 2 * count)
    if mode in ("SAME_UPPER", "SAME_LOWER"):
        shape = view.shape(0)
        spatial = (shape or (None,) * (count + 2))[2:]
        spans = [(k - 1) * d + 1 for k, d in zip(kernel, dilations, strict=True)]
        totals: list[int] = []
        for size, span, stride in zip(spatial, spans, strides, strict=True):
            if isinstance(size, int):
                totals.append(max((-(-size // stride) - 1) * stride + span - size, 0))
            elif stride == 1:
                totals.append(span - 1)
            else:
                return ctx.call(same_pads, x, spans, strides, mode == "SAME_UPPER"), [0] * count
        small = [t // 2 for t in totals]
        large = [t - s for t, s in zip(totals, small, strict=True)]
        pads = [*small, *large] if mode == "SAME_UPPER" else [*large, *small]
    elif mode == "VALID":
        pads = [0] * 2 * count
    begins, ends = pads[:count], pads[count:]
    if begins == ends and min(begins) >= 0:
        return x, begins
    return ctx.call(functional.pad, x, flat_pads(pads)), [0] * count


@TABLE.op("Conv")
def conv(ctx: Context, view: NodeView) -> Any:
    count = spatial_rank(view)
    shape = view.shape(1)
    kernel = view.attr("kernel_shape") or [d for d in (shape or ())[2:] if isinstance(d, int)]
    if len(kernel) != count:
        raise view.refuse("the size of its kernel is unknown")
    strides = view.attr("strides") or [1] * count
    dilations = view.attr("dilations") or [1] * count
    groups = view.attr("group", 1)
    x, padding = padded(ctx, view, ctx.tensor(view), kernel, strides, dilations)
    weight, bias = view.const(1), view.const(2) if view.has(2) else None
    plain = weight is not None and (bias is not None or not view.has(2))
    if not plain or view.outputs[0].dtype not in FLOATING:
        second = ctx.parameter(view, 2) if view.has(2) else None
        return ctx.call(
            _F_CONV[count], x, ctx.parameter(view, 1), second, tuple(strides), tuple(padding),
            tuple(dilations), groups,
        )  # fmt: skip
    assert weight is not None
    module = _CONV[count](
        weight.shape[1] * groups, weight.shape[0], tuple(kernel), tuple(strides), tuple(padding),
        tuple(dilations), groups, bias is not None, device="meta", dtype=torch_dtype(view.outputs[0].dtype),
    )  # fmt: skip
    weights = {"weight": view.input(1)} | ({"bias": view.input(2)} if view.has(2) else {})
    return ctx.layer(view, module, x, weights=weights)


@TABLE.op("ConvTranspose")
def conv_transpose(ctx: Context, view: NodeView) -> Any:
    """Where torch's padding cannot say it, the whole result is computed and cut or padded to size."""
    count = spatial_rank(view)
    shape = view.shape(1)
    kernel = view.attr("kernel_shape") or [d for d in (shape or ())[2:] if isinstance(d, int)]
    if len(kernel) != count:
        raise view.refuse("the size of its kernel is unknown")
    strides = view.attr("strides") or [1] * count
    dilations = view.attr("dilations") or [1] * count
    groups = view.attr("group", 1)
    extra = view.attr("output_padding") or [0] * count
    begins, ends = _transpose_pads(view, kernel, strides, dilations, extra)
    # torch's own padding: the same on both sides, the rest as output padding, which it limits.
    rest = [b - e + o for b, e, o in zip(begins, ends, extra, strict=True)]
    direct = min(begins) >= 0 and all(
        0 <= r < max(s, d) for r, s, d in zip(rest, strides, dilations, strict=True)
    )
    weight, bias = view.const(1), view.const(2) if view.has(2) else None
    plain = weight is not None and (bias is not None or not view.has(2))
    padding, output_padding = (begins, rest) if direct else ([0] * count, [0] * count)
    x = ctx.tensor(view)
    if direct and plain and view.outputs[0].dtype in FLOATING:
        assert weight is not None
        module = _TRANSPOSE[count](
            weight.shape[0], weight.shape[1] * groups, tuple(kernel), tuple(strides), tuple(padding),
            tuple(output_padding), groups, bias is not None, tuple(dilations), device="meta",
            dtype=torch_dtype(view.outputs[0].dtype),
        )  # fmt: skip
        weights = {"weight": view.input(1)} | ({"bias": view.input(2)} if view.has(2) else {})
        return ctx.layer(view, module, x, weights=weights)
    second = ctx.parameter(view, 2) if view.has(2) else None
    made = ctx.call(
        _F_TRANSPOSE[count], x, ctx.parameter(view, 1), second if direct else None, tuple(strides),
        tuple(padding), tuple(output_padding), groups, tuple(dilations),
    )  # fmt: skip
    if direct:
        return made
    cut = [-b for b in begins] + [o - e for o, e in zip(extra, ends, strict=True)]
    made = ctx.call(functional.pad, made, flat_pads(cut))
    if second is None:
        return made
    return ctx.call(operator.add, made, ctx.method("reshape", second, (-1, *[1] * count)))


def _transpose_pads(
    view: NodeView, kernel: list[int], strides: list[int], dilations: list[int], extra: list[int]
) -> tuple[list[int], list[int]]:
    count = len(kernel)
    mode = text(view.attr("auto_pad") or "NOTSET")
    wanted = view.attr("output_shape")
    spans = [(k - 1) * d + 1 for k, d in zip(kernel, dilations, strict=True)]
    if not wanted and mode in ("NOTSET", "VALID"):
        pads = list(view.attr("pads") or [0] * 2 * count) if mode == "NOTSET" else [0] * 2 * count
        return pads[:count], pads[count:]
    totals = []
    if wanted:
        spatial = (view.shape(0) or (None,) * (count + 2))[2:]
        if any(not isinstance(d, int) for d in spatial):
            raise view.refuse("output_shape with an input of unknown size")
        for size, out, stride, span, more in zip(
            spatial, wanted[-count:], strides, spans, extra, strict=True
        ):
            totals.append(stride * (int(size) - 1) + more + span - out)  # type: ignore[arg-type]
    else:  # SAME: the output is stride times the input
        totals = [span + more - stride for span, more, stride in zip(spans, extra, strides, strict=True)]
        if min(totals) < 0:
            raise view.refuse("auto_pad asks for a larger output than its kernel reaches")
    small = [t // 2 if t > 0 else 0 for t in totals]  # what no kernel reaches is at the end
    large = [t - s if t > 0 else 0 for t, s in zip(totals, small, strict=True)]
    begins, ends = (small, large) if mode == "SAME_UPPER" else (large, small)
    return begins, [e if t >= 0 else t for e, t in zip(ends, totals, strict=True)]


@TABLE.op("DeformConv")
def lower_deform_conv(ctx: Context, view: NodeView) -> Any:
    if view.rank(0) != 4:
        raise view.refuse("it is written for two spatial axes only")
    kernel = view.shape(1)
    assert kernel is not None
    pads = view.attr("pads") or [0] * 4
    return ctx.call(
        deform_conv, ctx.tensor(view), ctx.parameter(view, 1), ctx.tensor(view, 2),
        ctx.parameter(view, 3) if view.has(3) else None, ctx.optional(view, 4),
        strides=view.attr("strides") or [1, 1], pads=pads, dilations=view.attr("dilations") or [1, 1],
        groups=view.attr("group", 1), offset_groups=view.attr("offset_group", 1),
    )  # fmt: skip


__all__ = ["TABLE", "flat_pads", "padded", "spatial_rank", "text"]
