"""Pooling."""

from __future__ import annotations

from attar_tensorflow.reading.lifter import Lift, Lifter
from attar_tensorflow.reading.table.conv import as_flat_image, as_nchw, as_output, is_first, padding, spatial
from attar_tensorflow.reading.values import Tensor
from attar_tensorflow.reading.view import OpView


def pooling(op_type: str) -> Lift:
    """MaxPool and AvgPool of two and three dimensions; an average never counts the padding."""

    def lift(ctx: Lifter, view: OpView) -> Tensor:
        rank = view.rank(0)
        if len(view.inputs) > 1:  # MaxPoolV2
            sizes, steps = view.ints(1, "ksize"), view.ints(2, "strides")
        else:
            sizes, steps = view.attr("ksize"), view.attr("strides")
        kernel, strides = spatial(view, sizes, rank), spatial(view, steps, rank)
        others = [*sizes, *steps]
        if sum(v != 1 for v in others) != sum(v != 1 for v in (*kernel, *strides)):
            raise view.refuse("pooling over batch or channels is not supported")
        flat = _one_dimensional(ctx, view, op_type, kernel, strides)
        if flat is not None:
            return flat
        x, dims = as_nchw(ctx, view, 0)
        pads = padding(view, dims, kernel, strides, [1] * len(kernel))
        more = {"count_include_pad": 0} if op_type == "AveragePool" else {}
        if op_type == "AveragePool" and pads.get("pads") == [0] * (2 * len(kernel)) and kernel == dims:
            made = ctx.node("GlobalAveragePool", [x])[0]
        else:
            made = ctx.node(op_type, [x], kernel_shape=kernel, strides=strides, **pads, **more)[0]
        return as_output(view, made, view.input(0))

    return lift


def _one_dimensional(
    ctx: Lifter, view: OpView, op_type: str, kernel: list[int], strides: list[int]
) -> Tensor | None:
    """Pooling over time, which TensorFlow writes as ExpandDims, pooling of images, Squeeze."""
    x = view.input(0)
    if not (isinstance(x, Tensor) and x.op == "ExpandDims") or is_first(view) or len(kernel) != 2:
        return None
    before, where = x.args
    if not isinstance(before, Tensor) or before.rank != 3 or before.shape is None:
        return None
    axis = int(where.array.reshape(())) % 4
    if (
        axis not in (1, 2)
        or kernel[axis - 1] != 1
        or strides[axis - 1] != 1
        or view.attr("padding") == "EXPLICIT"
    ):
        return None
    kept = 2 - axis
    size, step = [kernel[kept]], [strides[kept]]
    more = {"count_include_pad": 0} if op_type == "AveragePool" else {}
    pads = padding(view, [before.shape[1]], size, step, [1])
    made = ctx.node(op_type, [ctx.image(before)], kernel_shape=size, strides=step, **pads, **more)[0]
    full = view.out_shape()
    shape = (None,) * 3 if full is None else tuple(d for a, d in enumerate(full) if a != axis)
    flat = ctx.as_image(made, before, shape)
    flat.op, flat.args = view.op, (before,)
    return as_flat_image(ctx, flat, where, full)


LIFTINGS: dict[str, Lift] = {
    **{op: pooling("MaxPool") for op in ("MaxPool", "MaxPoolV2", "MaxPool3D")},
    **{op: pooling("AveragePool") for op in ("AvgPool", "AvgPool3D")},
}
