"""Matrix products."""

from __future__ import annotations

from typing import Any

import numpy as np

from attar_tensorflow.reading.lifter import Lift, Lifter
from attar_tensorflow.reading.partial import sizes_of
from attar_tensorflow.reading.table.einsum import lift_einsum
from attar_tensorflow.reading.values import Const, Tensor
from attar_tensorflow.reading.view import OpView


def turned(ctx: Lifter, x: Any) -> Any:
    """The last two axes of `x` exchanged."""
    if isinstance(x, Const):
        return ctx.derived(x, "turned", lambda a: np.swapaxes(a, -1, -2))
    rank = len(x.shape)
    order = list(x.order or range(rank))
    # Logical axis a of the result is axis swap(a) of x, so the order names the exchanged axes.
    swap = {rank - 1: rank - 2, rank - 2: rank - 1}
    shape = (*x.shape[:-2], x.shape[-1], x.shape[-2])
    return Tensor(x.value, x.dtype, shape, tuple(swap.get(a, a) for a in order))


def matmul(ctx: Lifter, view: OpView) -> Tensor:
    """MatMul and its batched forms. A weight on the right makes it a layer, to which a bias can come."""
    a, b = view.input(0), view.input(1)
    view.rank(0), view.rank(1)
    if view.attr("transpose_a", False) or view.attr("adj_x", False):
        a = turned(ctx, a)
    if view.attr("transpose_b", False) or view.attr("adj_y", False):
        b = turned(ctx, b)
    a = _unflattened(a, b)
    flat = _flattened(ctx, a, b)
    if flat is not None:
        return flat
    out = ctx.op("MatMul", a, b)
    if len(a.shape) == len(b.shape) == 2:
        out.shape = (a.shape[0], b.shape[1])
    if any(view.attr(f, False) for f in ("transpose_a", "transpose_b", "adj_x", "adj_y")):
        out.facts["transposed"] = True
    if isinstance(b, Const) and b.array.ndim == 2 and isinstance(a, Tensor):
        out.facts["channels"] = (b.array.shape[1], -1)
        if a is not view.inputs[0] and a.rank != view.rank(0):
            assert a.shape is not None
            whole = Tensor(out.value, out.dtype, (*a.shape[:-1], b.array.shape[1]), facts=out.facts)
            lead = sizes_of(a)
            whole.facts["sizes"] = None if lead is None else (*lead[:-1], b.array.shape[1])
            flat = ctx.reshape(whole, [-1, b.array.shape[1]])
            flat.facts["whole"] = whole
            return flat
    return out


def _flattened(ctx: Lifter, a: Any, b: Any) -> Tensor | None:
    """A weight after an image that was flattened: the image is flattened as it is held, with channels first,
    and the
    weight's rows follow. Nothing has to be transposed then.
    """
    image = a.facts.get("flattened") if isinstance(a, Tensor) else None
    if image is None or not isinstance(b, Const) or b.array.ndim != 2:
        return None
    sizes = tuple(int(d) for d in image.shape[1:])
    rank = len(sizes) + 1

    def rows(w: Any) -> Any:
        return w.reshape(*sizes, -1).transpose(rank - 2, *range(rank - 2), rank - 1).reshape(w.shape)

    flat = ctx.node("Flatten", [image.value], axis=1)[0]
    out = Tensor(ctx.node("MatMul", [flat, ctx.constant(ctx.derived(b, ("rows", sizes), rows))])[0], a.dtype,
                 (image.shape[0], b.array.shape[1]))  # fmt: skip
    out.facts["channels"] = (b.array.shape[1], -1)
    return out


def _unflattened(a: Any, b: Any) -> Any:
    """The tensor that was flattened to a matrix just before a weight comes: MatMul takes it as it was.

    Keras writes Dense on [batch, length, features] as Reshape, MatMul, Reshape.
    """
    if not (isinstance(a, Tensor) and a.op == "Reshape" and isinstance(b, Const) and b.array.ndim == 2):
        return a
    x = a.args[0]
    if isinstance(x, Tensor) and x.shape is not None and len(x.shape) > 2 and x.shape[-1] == b.array.shape[0]:
        return x if a.rank == 2 and any(d != 1 for d in x.shape[1:-1]) else a
    return a


def einsum(ctx: Lifter, view: OpView) -> Any:
    return lift_einsum(ctx, view)


LIFTINGS: dict[str, Lift] = {
    **dict.fromkeys(("MatMul", "BatchMatMul", "BatchMatMulV2", "BatchMatMulV3"), matmul),
    "Einsum": einsum,
}
