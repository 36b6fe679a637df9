"""Gathering, scattering, and what sorts."""

from __future__ import annotations

from typing import Any

import numpy as np

from attar_tensorflow.reading.lifter import Lift, Lifter
from attar_tensorflow.reading.table.shape import as_type, int64, vector
from attar_tensorflow.reading.values import Const, Tensor, Variable
from attar_tensorflow.reading.view import OpView


def gather(ctx: Lifter, view: OpView) -> Any:
    """Gather and GatherV2. Indices count from the front; ONNX's from the back are not TensorFlow's."""
    axis = int(view.need_const(2, "the axis").reshape(())) if len(view.inputs) > 2 else 0
    batch = int(view.attr("batch_dims", 0) or 0)
    x, indices = view.input(0), view.input(1)
    full = view.rank(0)
    axis %= full
    if batch:
        batch %= view.rank(1) + 1
        if batch != axis or batch != view.rank(1) - 1 or full < batch + 1:
            raise view.refuse(f"batch_dims={batch} with axis={axis} has no counterpart")
        where = ctx.op("Unsqueeze", int64(ctx, indices), vector([-1]), dtype=np.int64)
        return ctx.op("GatherND", x, where, batch_dims=batch, dtype=x.dtype)
    if isinstance(x, Tensor) and x.order is not None and view.rank(1) == 0:
        made = ctx.node("Gather", [x.value, indices], axis=ctx.axis(x, axis))[0]
        left = [a for a in x.order if a != axis]
        ranks = {a: k for k, a in enumerate(sorted(left))}
        order: Any = tuple(ranks[a] for a in left)
        return Tensor(made, x.dtype, view.out_shape(), None if order == tuple(range(len(order))) else order)
    return ctx.op("Gather", x, indices, axis=axis, dtype=x.dtype)


def resource_gather(ctx: Lifter, view: OpView) -> Any:
    """ResourceGather: the rows of a variable."""
    variable = view.inputs[0]
    if not isinstance(variable, Variable) or int(view.attr("batch_dims", 0) or 0):
        raise view.refuse("only whole rows of a variable can be taken")
    const = variable.read()
    return ctx.op("Gather", const, view.input(1), axis=0, dtype=const.dtype)


def gather_nd(ctx: Lifter, view: OpView) -> Tensor:
    return ctx.op("GatherND", view.input(0), int64(ctx, view.input(1)), dtype=view.dtype(0))


def one_hot(ctx: Lifter, view: OpView) -> Tensor:
    """OneHot; an index outside gives a row of off-values, in ONNX one from the back would count: those are
    sent
    outside."""
    depth = int(view.need_const(1, "the depth").reshape(()))
    indices = int64(ctx, view.input(0))
    negative = ctx.map("Less", indices, Const(np.array(0, np.int64)), dtype=bool)
    safe = ctx.map("Where", negative, Const(np.array(depth, np.int64)), indices, dtype=np.int64)
    safe.shape = view.shape(0)
    on, off = view.input(2), view.input(3)
    pair = ctx.op(
        "Concat",
        ctx.op("Reshape", off, vector([1])),
        ctx.op("Reshape", on, vector([1])),
        axis=0,
        dtype=off.dtype,
    )
    return ctx.op(
        "OneHot",
        safe,
        Const(np.array(depth, np.int64)),
        pair,
        axis=int(view.attr("axis", -1)),
        dtype=on.dtype,
    )


def top_k(ctx: Lifter, view: OpView) -> Any:
    k = ctx.op("Reshape", int64(ctx, view.input(1)), vector([1]), dtype=np.int64, shape=(1,))
    x = view.input(0)
    values, indices = ctx.node("TopK", [x, k], outputs=2, axis=-1, largest=1, sorted=1)
    where = Tensor(indices, np.dtype(np.int64), view.out_shape(1))
    return Tensor(values, x.dtype, view.out_shape(0)), as_type(ctx, where, view.out_dtype(1))


def scatter_nd(ctx: Lifter, view: OpView) -> Tensor:
    import onnx_ir as ir

    zero = ir.tensor(np.zeros(1, view.dtype(1)))
    base = ctx.node("ConstantOfShape", [int64(ctx, view.input(2))], value=zero)[0]
    made = ctx.node("ScatterND", [base, int64(ctx, view.input(0)), view.input(1)], reduction="add")[0]
    return Tensor(made, view.dtype(1), view.out_shape())


def scatter(reduction: str | None) -> Lift:
    def lift(ctx: Lifter, view: OpView) -> Tensor:
        where = int64(ctx, view.input(1))
        made = ctx.node("ScatterND", [view.input(0), where, view.input(2)], reduction=reduction)[0]
        return Tensor(made, view.dtype(0), view.out_shape())

    return lift


def band_part(ctx: Lifter, view: OpView) -> Tensor:
    """MatrixBandPart where it is a triangle."""
    low, high = (int(view.need_const(k, "the bounds").reshape(())) for k in (1, 2))
    x = view.input(0)
    if low < 0 <= high or (low < 0 and high < 0):
        return x if high < 0 else ctx.op("Trilu", x, Const(np.array(high, np.int64)), upper=0)
    upper = ctx.op("Trilu", x, Const(np.array(-low, np.int64)), upper=1)
    return upper if high < 0 else ctx.op("Trilu", upper, Const(np.array(high, np.int64)), upper=0)


LIFTINGS: dict[str, Lift] = {
    **{"Gather": gather, "GatherV2": gather, "ResourceGather": resource_gather, "GatherNd": gather_nd},
    **{"OneHot": one_hot, "TopKV2": top_k, "ScatterNd": scatter_nd, "MatrixBandPart": band_part},
    **{"TensorScatterUpdate": scatter(None), "TensorScatterAdd": scatter("add")},
    **{"TensorScatterMax": scatter("max"), "TensorScatterMin": scatter("min")},
}
