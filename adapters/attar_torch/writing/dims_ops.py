"""Arithmetic on sizes: operators on `Dims`, tried before an operator's lowering.

A function gives None where it cannot say the node with numbers; the lowering then works on tensors.
"""

from __future__ import annotations

import operator
from collections.abc import Callable
from typing import Any

import onnx_ir as ir

from attar.conversion import NodeView
from attar_torch.writing.dims import Dims
from attar_torch.writing.functions.basic import truncated

_INTEGERS = (ir.DataType.INT64, ir.DataType.INT32)


def lower_dims(ctx: Any, view: NodeView) -> Dims | None:
    """The node as `Dims`, where it computes with sizes; None if it does not."""
    function = _TABLE.get(view.op)
    if function is None:
        return None
    return function(ctx, view)


def _shape(ctx: Any, view: NodeView) -> Dims | None:
    shape = view.shape(0)
    if shape is None:
        return None
    chosen = range(len(shape))[
        slice(view.attr("start", 0), view.node.attributes.get("end") and view.attr("end"))
    ]
    tensor = None
    items: list[Any] = []
    for axis in chosen:
        if isinstance(shape[axis], int):
            items.append(shape[axis])
        else:
            tensor = ctx.tensor(view) if tensor is None else tensor
            items.append(ctx.size(tensor, axis))
    return Dims(tuple(items))


def _size(ctx: Any, view: NodeView) -> Dims | None:
    shape = view.shape(0)
    if shape is None:
        return None
    if all(isinstance(d, int) for d in shape):
        total = 1
        for d in shape:
            total *= int(d)  # type: ignore[arg-type]
        return Dims((total,), True)
    return Dims((ctx.method("numel", ctx.tensor(view)),), True)


def _is_dims(ctx: Any, view: NodeView, index: int) -> bool:
    return isinstance(ctx.values.get(view.input(index)), Dims)


def _same(ctx: Any, view: NodeView) -> Dims | None:
    return ctx.dims(view, 0) if _is_dims(ctx, view, 0) else None


def _cast(ctx: Any, view: NodeView) -> Dims | None:
    return _same(ctx, view) if view.outputs[0].dtype == ir.DataType.INT64 else None


def _reshape(ctx: Any, view: NodeView) -> Dims | None:
    dims = _same(ctx, view)
    shape = view.out_shape(0)
    if dims is None or shape is None or len(shape) > 1:
        return None
    return Dims(dims.items, not shape)


def _gather(ctx: Any, view: NodeView) -> Dims | None:
    dims, chosen = _same(ctx, view), view.const(1)
    if dims is None or dims.scalar or chosen is None or chosen.ndim > 1:
        return None
    count = len(dims.items)
    if any(not -count <= k < count for k in chosen.reshape(-1)):
        return None
    return Dims(tuple(dims.items[int(k)] for k in chosen.reshape(-1)), chosen.ndim == 0)


def _slice(ctx: Any, view: NodeView) -> Dims | None:
    dims = _same(ctx, view)
    bounds = [view.const(k) if view.has(k) else None for k in range(1, 5)]
    if dims is None or any(b is None and view.has(k + 1) for k, b in enumerate(bounds)):
        return None
    start, end, axes, step = (None if b is None else int(b.reshape(-1)[0]) for b in bounds)
    if axes not in (None, 0, -1) or start is None or end is None:
        return None
    # Python's slices are ONNX's, but for an end below the first element on the way down.
    if step is not None and step < 0 and end < -len(dims.items):
        end = None
    return Dims(dims.items[start : end : step or 1])


def _concat(ctx: Any, view: NodeView) -> Dims | None:
    parts = [ctx.dims(view, k) for k in range(len(view.inputs))]
    if any(p is None or p.scalar for p in parts) or not any(
        _is_dims(ctx, view, k) for k in range(len(parts))
    ):
        return None
    return Dims(tuple(i for p in parts for i in p.items))


def _arithmetic(
    exact: Callable[[int, int], int | None], symbolic: Callable[..., Any]
) -> Callable[[Any, NodeView], Dims | None]:
    def lower(ctx: Any, view: NodeView) -> Dims | None:
        if view.outputs[0].dtype != ir.DataType.INT64:
            return None
        if not (_is_dims(ctx, view, 0) or _is_dims(ctx, view, 1)):
            return None
        a, b = ctx.dims(view, 0), ctx.dims(view, 1)
        if a is None or b is None:
            return None
        count = max(len(a.items), len(b.items))
        if any(len(d.items) not in (1, count) for d in (a, b)):
            return None
        items: list[Any] = []
        for k in range(count):
            x, y = a.items[k % len(a.items)], b.items[k % len(b.items)]
            if isinstance(x, int) and isinstance(y, int):
                made = exact(x, y)
                if made is None:
                    return None
                items.append(made)
            else:
                items.append(_simplified(ctx, symbolic, x, y))
        return Dims(tuple(items), a.scalar and b.scalar)

    return lower


def _simplified(ctx: Any, function: Callable[..., Any], x: Any, y: Any) -> Any:
    if function is operator.mul and (x == 1 or y == 1):
        return y if isinstance(x, int) else x
    if function in (operator.add, operator.sub) and isinstance(y, int) and y == 0:
        return x
    if function is truncated and isinstance(y, int) and y == 1:
        return x
    if function is truncated and isinstance(y, int) and y > 1 and x.target == "size":
        function = operator.floordiv
    return ctx.call(function, x, y)


def _exact_quotient(x: int, y: int) -> int | None:
    return truncated(x, y) if y else None


_TABLE: dict[str, Callable[[Any, NodeView], Dims | None]] = {
    "Shape": _shape,
    "Size": _size,
    "Identity": _same,
    "Cast": _cast,
    "Squeeze": _reshape,
    "Unsqueeze": _reshape,
    "Reshape": _reshape,
    "Gather": _gather,
    "Slice": _slice,
    "Concat": _concat,
    "Add": _arithmetic(operator.add, operator.add),
    "Sub": _arithmetic(operator.sub, operator.sub),
    "Mul": _arithmetic(operator.mul, operator.mul),
    "Div": _arithmetic(_exact_quotient, truncated),
}
