"""Shapes: asked for, changed, filled."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import onnx_ir as ir

from attar_tensorflow.reading.lifter import Lift, Lifter, numbers_of
from attar_tensorflow.reading.values import Const, Tensor, channels_first
from attar_tensorflow.reading.view import OpView


def int64(ctx: Lifter, x: Any) -> Any:
    """`x` as ONNX wants sizes and indices."""
    if isinstance(x, Const):
        return x if x.dtype == np.int64 else ctx.derived(x, "int64", lambda a: a.astype(np.int64))
    return (
        x
        if x.dtype == np.int64
        else ctx.op("Cast", x, dtype=np.int64, shape=x.shape, to=int(ir.DataType.INT64))
    )


def vector(values: Sequence[int]) -> Const:
    """A constant int64 vector."""
    return Const(np.array(values, np.int64).reshape(-1))


def as_type(ctx: Lifter, x: Tensor, dtype: Any) -> Tensor:
    """`x` cast to `dtype`, if it is not that already."""
    kind = np.dtype(dtype)
    if x.dtype == kind:
        return x
    return ctx.op("Cast", x, dtype=kind, shape=x.shape, to=int(ir.DataType.from_numpy(kind)))


def shape_of(ctx: Lifter, x: Any) -> Tensor:
    """The shape of `x`, in TensorFlow's order of axes, as int64."""
    value = x.value if isinstance(x, Tensor) else ctx.plain(x)
    made = ctx.node("Shape", [value])[0]
    order = x.order if isinstance(x, Tensor) else None
    if order is not None:
        made = ctx.node("Gather", [made, vector([order.index(a) for a in range(len(order))])], axis=0)[0]
    return Tensor(made, np.dtype(np.int64), None if x.shape is None else (len(x.shape),))


def lift_shape(ctx: Lifter, view: OpView) -> Any:
    made = as_type(ctx, shape_of(ctx, view.input(0)), view.out_dtype())
    return made


def shape_n(ctx: Lifter, view: OpView) -> Any:
    out = []
    for k in range(len(view.inputs)):
        shape = view.shape(k)
        if shape is not None and None not in shape:
            out.append(Const(np.array(shape, view.out_dtype(k))))
        else:
            out.append(as_type(ctx, shape_of(ctx, view.input(k)), view.out_dtype(k)))
    return tuple(out)


def size(ctx: Lifter, view: OpView) -> Tensor:
    x = view.input(0)
    value = x.value if isinstance(x, Tensor) else ctx.plain(x)
    return as_type(ctx, Tensor(ctx.node("Size", [value])[0], np.dtype(np.int64), ()), view.out_dtype())


def rank(ctx: Lifter, view: OpView) -> Const:
    return Const(np.array(view.rank(0), np.int32))


def target(view: OpView, numbers: Any) -> list[int] | None:
    """A Reshape's target with at most one -1, if it can be told beforehand."""
    for known in (numbers, view.out_shape()):
        if known is not None:
            dims = [int(d) if isinstance(d, int) else -1 for d in known]
            if dims.count(-1) <= 1 and 0 not in dims:
                return dims
    if numbers is not None and view.out_shape() is not None and len(numbers) == len(view.out_shape() or ()):
        both = zip(numbers, view.out_shape() or (), strict=True)
        dims = [a if isinstance(a, int) and a != -1 else -1 if b is None else b for a, b in both]
        if dims.count(-1) <= 1 and 0 not in dims:
            return dims
    return None


def reshape(ctx: Lifter, view: OpView) -> Any:
    """Reshape, in TensorFlow's layout. A matrix product that was flattened for its weight comes back
    whole.
    """
    x = view.input(0)
    numbers = numbers_of(view.inputs[1])
    whole = x.facts.get("whole") if isinstance(x, Tensor) else None
    if whole is not None and numbers is not None and numbers == whole.facts.get("sizes"):
        return whole
    dims = target(view, numbers)
    if dims is None:
        made = ctx.node("Reshape", [x, int64(ctx, view.input(1))], allowzero=1)[0]
        return Tensor(made, x.dtype, view.out_shape())
    repeated = repeat(ctx, x, dims)
    if repeated is not None:
        return repeated
    if whole is not None and [-1 if d is None else d for d in whole.shape] == dims:
        return whole
    if x.shape is not None and [-1 if d is None else d for d in x.shape] == dims:
        return x
    out = ctx.reshape(x, dims)
    if (
        (
            isinstance(x, Tensor)
            and x.order == channels_first(x.rank or 0)
            and len(dims) == 2
            and x.shape is not None
        )
        and None not in x.shape[1:]
        and dims[1] == np.prod(x.shape[1:])
    ):  # type: ignore[arg-type]
        out.facts["flattened"] = x
    return out


def repeat(ctx: Lifter, x: Any, dims: list[int]) -> Tensor | None:
    """Each row or column of an image so many times: ExpandDims, Tile, Reshape, which is how Keras enlarges
    images.
    """
    if not (isinstance(x, Tensor) and x.op == "Tile" and isinstance(x.args[1], Const)):
        return None
    inner, many = x.args[0], [int(n) for n in x.args[1].array.reshape(-1)]
    if not (isinstance(inner, Tensor) and inner.op == "ExpandDims" and isinstance(inner.args[0], Tensor)):
        return None
    source = inner.args[0]
    axis = int(inner.args[1].array.reshape(())) % len(many) - 1
    if source.shape is None or len(source.shape) != 4 or axis not in (1, 2):
        return None
    times = many[axis + 1]
    grown = [-1 if d is None else d * times if a == axis else d for a, d in enumerate(source.shape)]
    if any(n != 1 for a, n in enumerate(many) if a != axis + 1) or grown != dims:
        return None
    base, scales = source.facts.get("repeated", (source, {}))
    scales = {**scales, axis: scales.get(axis, 1) * times}
    factors = Const(np.array([1, 1, scales.get(1, 1), scales.get(2, 1)], np.float32))
    made = ctx.node(
        "Resize",
        [ctx.image(base), None, factors],
        mode="nearest",
        coordinate_transformation_mode="asymmetric",
        nearest_mode="floor",
    )[0]
    out = ctx.as_image(made, source, tuple(None if d < 0 else d for d in dims))
    out.facts["repeated"] = (base, scales)
    return out


def lift_transpose(ctx: Lifter, view: OpView) -> Any:
    """Nothing is moved: the result is the same data under another order of axes, until somebody needs it."""
    x = view.input(0)
    perm = view.ints(1, "the permutation")
    perm = [p % len(perm) for p in perm]
    if not isinstance(x, Tensor):
        x = Tensor(ctx.plain(x), x.dtype, x.shape)
    held = x.order or tuple(range(len(perm)))
    order: Any = tuple(perm.index(axis) for axis in held)
    order = None if order == tuple(range(len(order))) else order
    out = Tensor(x.value, x.dtype, view.out_shape(), order)
    if "turned" in x.facts:
        out.facts["turned"] = x.facts["turned"]
    return out


def expand_dims(ctx: Lifter, view: OpView) -> Any:
    x, full = view.input(0), view.rank(0) + 1
    axis = int(view.need_const(1, "the axis").reshape(())) % full
    where = Const(np.array(axis))
    if isinstance(x, Tensor) and x.order is not None:  # the data stay as they are, and get an axis of 1
        held = tuple(a + (a >= axis) for a in x.order)
        place = 0
        if x.order == channels_first(full - 1) and 0 < axis < full - 1:
            place = channels_first(full).index(axis)
        made = ctx.node("Unsqueeze", [x.value, vector([place])])[0]
        order = (*held[:place], axis, *held[place:])
        return Tensor(made, x.dtype, view.out_shape(), order, op="ExpandDims", args=(x, where))
    made = ctx.node("Unsqueeze", [x, vector([axis])])[0]
    return Tensor(made, x.dtype, view.out_shape(), op="ExpandDims", args=(x, where))


def squeeze(ctx: Lifter, view: OpView) -> Any:
    x, full = view.input(0), view.rank(0)
    axes = [int(a) % full for a in view.attr("squeeze_dims", []) or []]
    if not axes:
        shape = view.shape(0) or ()
        if any(d is None for d in shape):
            raise view.refuse("which axes have size 1 is known only at run time")
        axes = [a for a, d in enumerate(shape) if d == 1]
    if x.op == "ExpandDims" and isinstance(x, Tensor) and axes == [int(x.args[1].array.reshape(())) % full]:
        return x.args[0]
    if not axes:
        return x
    left = tuple(a for a in range(full) if a not in axes)
    held = None
    if x.order is not None:
        held = tuple(left.index(a) for a in x.order if a in left)
        held = None if held == tuple(range(len(held))) else held
    shape_now = x.shape
    if (
        shape_now is not None
        and sum(shape_now[a] is None for a in left) <= 1
        and all(shape_now[a] == 1 for a in axes)
    ):
        order = x.order or tuple(range(full))
        dims = [-1 if shape_now[a] is None else shape_now[a] for a in order if a in left]
        made = ctx._reshaped(x.value, dims, 0 in left and order[0] == 0 and dims[0] == -1)  # type: ignore[arg-type]
    else:
        made = ctx.node("Squeeze", [x.value, vector(sorted(ctx.axis(x, a) for a in axes))])[0]
    return Tensor(made, x.dtype, view.out_shape(), held)


def fill(ctx: Lifter, view: OpView) -> Any:
    value = view.const(1)
    sizes = int64(ctx, view.input(0))
    if value is not None and value.dtype.kind != "O":
        number = ir.tensor(value.reshape(1))
        made = ctx.node("ConstantOfShape", [sizes], value=number)[0]
        return Tensor(made, view.dtype(1), view.out_shape())
    return ctx.op("Expand", view.input(1), sizes)


def lift_range(ctx: Lifter, view: OpView) -> Tensor:
    return ctx.op("Range", *[view.input(k) for k in range(3)], dtype=view.out_dtype())


def broadcast_to(ctx: Lifter, view: OpView) -> Any:
    x, shape = view.input(0), view.out_shape()
    if shape is not None and x.shape == shape and None not in shape:
        return x
    return ctx.op("Expand", x, int64(ctx, view.input(1)))


def broadcast_args(ctx: Lifter, view: OpView) -> Any:
    a, b = (numbers_of(x) for x in view.inputs)
    if a is None or b is None:
        raise view.refuse("shapes of unknown length")
    n = max(len(a), len(b))
    one = Const(np.ones(n, np.int64))
    p, q = (
        ctx.op("Concat", Const(one.array[: n - len(s)]), int64(ctx, x), axis=0, dtype=np.int64)
        if len(s) < n
        else x
        for s, x in ((a, view.inputs[0]), (b, view.inputs[1]))
    )
    return as_type(
        ctx, ctx.op("Max", int64(ctx, p), int64(ctx, q), dtype=np.int64, shape=(n,)), view.out_dtype()
    )


def pack(ctx: Lifter, view: OpView) -> Tensor:
    full = view.out_shape()
    axis = int(view.attr("axis", 0))
    if full is not None:
        axis %= len(full)
    elif axis < 0:
        raise view.refuse("the rank is unknown")
    parts = [ctx.node("Unsqueeze", [view.input(k), vector([axis])])[0] for k in range(len(view.inputs))]
    made = ctx.node("Concat", parts, axis=axis)[0]
    return Tensor(made, view.dtype(0), full)


def unpack(ctx: Lifter, view: OpView) -> Any:
    axis = int(view.attr("axis", 0)) % view.rank(0)
    count = len(view.operation.outputs)
    x = view.input(0)
    out = []
    for k in range(count):
        made = ctx.node("Gather", [x, Const(np.array(k, np.int64))], axis=axis)[0]
        numbers = numbers_of(x)
        out.append(
            Tensor(made, x.dtype, view.out_shape(k), numbers=None if numbers is None else (numbers[k],))
        )
    return tuple(out)


LIFTINGS: dict[str, Lift] = {
    **{"Reshape": reshape, "Transpose": lift_transpose, "ExpandDims": expand_dims, "Squeeze": squeeze},
    **{"Shape": lift_shape, "ShapeN": shape_n, "Size": size, "Rank": rank, "Fill": fill, "Range": lift_range},
    **{"BroadcastTo": broadcast_to, "BroadcastArgs": broadcast_args, "Pack": pack, "Unpack": unpack},
}
