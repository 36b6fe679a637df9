"""Reductions, softmax, and what runs along an axis."""

from __future__ import annotations

import numpy as np

from attar_tensorflow.reading.lifter import Lift, Lifter
from attar_tensorflow.reading.values import Const, Tensor, channels_first
from attar_tensorflow.reading.view import OpView


def reduction(op_type: str) -> Lift:
    """A reduction, computed in the layout that its operand is in."""

    def lift(ctx: Lifter, view: OpView) -> Tensor:
        x, rank = view.input(0), view.rank(0)
        axes = sorted(a % rank for a in view.ints(1, "the axes")) if rank else []
        keep = bool(view.attr("keep_dims", False))
        if not axes:
            return x  # type: ignore[no-any-return]
        if not isinstance(x, Tensor):
            x = Tensor(ctx.plain(x), x.dtype, x.shape)
        if op_type == "ReduceMean" and _is_global(x, axes):
            return _global_mean(ctx, view, x, keep)
        held = sorted(ctx.axis(x, a) for a in axes)
        where = Const(np.array(held, np.int64))
        made = ctx.node(op_type, [x.value, where], keepdims=int(keep))[0]
        order = x.order
        if order is not None and not keep:
            left = [a for a in order if a not in axes]
            ranks = {a: k for k, a in enumerate(sorted(left))}
            order = tuple(ranks[a] for a in left)
        if order == tuple(range(len(order or ()))):
            order = None
        return Tensor(made, x.dtype, view.out_shape(), order)

    return lift


def _is_global(x: Tensor, axes: list[int]) -> bool:
    rank = x.rank or 0
    return (
        x.dtype.kind == "f"
        and rank in (3, 4, 5)
        and x.order == channels_first(rank)
        and axes == list(range(1, rank - 1))
    )


def _global_mean(ctx: Lifter, view: OpView, x: Tensor, keep: bool) -> Tensor:
    """The mean over height and width, as the layer that runtimes know."""
    pooled = ctx.node("GlobalAveragePool", [x.value])[0]
    rank = x.rank or 0
    if keep:
        return Tensor(pooled, x.dtype, view.out_shape(), channels_first(rank))
    return Tensor(ctx.node("Flatten", [pooled], axis=1)[0], x.dtype, view.out_shape())


def logical(op_type: str) -> Lift:
    """All and Any, by way of integers, which ONNX reduces."""

    def lift(ctx: Lifter, view: OpView) -> Tensor:
        axes = Const(np.array(sorted(a % view.rank(0) for a in view.ints(1, "the axes")), np.int64))
        whole = ctx.op("Cast", view.input(0), dtype=np.int32, to=6)
        made = ctx.op(op_type, whole, axes, keepdims=int(bool(view.attr("keep_dims", False))))
        return ctx.op("Cast", made, dtype=bool, to=9)

    return lift


def along_last(op_type: str) -> Lift:
    """Softmax and LogSoftmax, over TensorFlow's last axis."""

    def lift(ctx: Lifter, view: OpView) -> Tensor:
        x = view.input(0)
        made = ctx.node(op_type, [x.value], axis=ctx.axis(x, view.rank(0) - 1))[0]
        return Tensor(made, x.dtype, x.shape, x.order)

    return lift


def arg(op_type: str) -> Lift:
    """ArgMax and ArgMin."""

    def lift(ctx: Lifter, view: OpView) -> Tensor:
        axis = int(view.need_const(1, "the axis").reshape(())) % view.rank(0)
        made = ctx.op(op_type, view.input(0), dtype=np.int64, axis=axis, keepdims=0)
        if view.out_dtype() != np.int64:
            return ctx.op("Cast", made, dtype=view.out_dtype(), to=_code(view.out_dtype()))
        return made

    return lift


def _code(dtype: np.dtype) -> int:  # type: ignore[type-arg]
    import onnx_ir as ir

    return int(ir.DataType.from_numpy(dtype))


def cumsum(ctx: Lifter, view: OpView) -> Tensor:
    axis = Const(np.array(int(view.need_const(1, "the axis").reshape(())), np.int64))
    return ctx.op(
        "CumSum", view.input(0), axis, exclusive=int(view.attr("exclusive", False)),
        reverse=int(view.attr("reverse", False)),
    )  # fmt: skip


def l2_loss(ctx: Lifter, view: OpView) -> Tensor:
    total = ctx.op("ReduceSumSquare", view.input(0), keepdims=0)
    return ctx.op("Mul", total, Const(np.array(0.5, view.dtype(0))))


LIFTINGS: dict[str, Lift] = {
    **{"Mean": reduction("ReduceMean"), "Sum": reduction("ReduceSum"), "Prod": reduction("ReduceProd")},
    **{"Max": reduction("ReduceMax"), "Min": reduction("ReduceMin"), "EuclideanNorm": reduction("ReduceL2")},
    **{"All": logical("ReduceMin"), "Any": logical("ReduceMax")},
    **{"Softmax": along_last("Softmax"), "LogSoftmax": along_last("LogSoftmax")},
    **{"ArgMax": arg("ArgMax"), "ArgMin": arg("ArgMin"), "Cumsum": cumsum, "L2Loss": l2_loss},
}
