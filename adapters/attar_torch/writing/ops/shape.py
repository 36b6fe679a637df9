"""Sizes, ranges and tensors made of nothing but a shape."""

from __future__ import annotations

from typing import Any

import onnx_ir as ir
import torch

from attar.conversion import NodeView
from attar_torch.writing.context import Context
from attar_torch.writing.dtypes import number, torch_dtype
from attar_torch.writing.functions.basic import full
from attar_torch.writing.functions.layout_masks import eye_like, range_of, shape_of, trilu
from attar_torch.writing.table import Table

TABLE = Table()


@TABLE.op("Shape", any_type=True)
def shape(ctx: Context, view: NodeView) -> Any:
    """Only for unknown ranks; the others are `Dims`."""
    end = view.attr("end") if "end" in view.node.attributes else None
    return ctx.call(shape_of, ctx.tensor(view), view.attr("start", 0), end)


@TABLE.op("Size", any_type=True)
def size(ctx: Context, view: NodeView) -> Any:
    return ctx.call(full, [], ctx.method("numel", ctx.tensor(view)), dtype=torch.int64, like=ctx.tensor(view))


@TABLE.op("ConstantOfShape", any_type=True)
def constant_of_shape(ctx: Context, view: NodeView) -> Any:
    value = view.attr("value")
    kind = torch_dtype(view.outputs[0].dtype) if value is not None else torch.float32
    if kind is None or view.outputs[0].dtype in (ir.DataType.INT4, ir.DataType.UINT4):
        raise view.refuse("torch has no such element type")
    fill = 0.0 if value is None else number(value)
    return ctx.call(full, ctx.ints(view, 0), fill, dtype=kind, like=ctx.like)


@TABLE.op("Range")
def lower_range(ctx: Context, view: NodeView) -> Any:
    kind = ctx.dtype(view.outputs[0])
    dims = [ctx.dims(view, k) for k in range(3)]
    if all(d is not None for d in dims) and view.outputs[0].dtype in (ir.DataType.INT64, ir.DataType.INT32):
        start, limit, step = (d.items[0] for d in dims if d is not None)
        return ctx.arange(start, limit, step, kind)
    return ctx.call(range_of, *(ctx.tensor(view, k) for k in range(3)))


@TABLE.op("EyeLike")
def lower_eye_like(ctx: Context, view: NodeView) -> Any:
    return ctx.call(eye_like, ctx.tensor(view), view.attr("k", 0), ctx.dtype(view.outputs[0]))


@TABLE.op("Trilu")
def lower_trilu(ctx: Context, view: NodeView) -> Any:
    k = ctx.ints(view, 1)[0] if view.has(1) else 0
    return ctx.call(trilu, ctx.tensor(view), k, bool(view.attr("upper", 1)))
