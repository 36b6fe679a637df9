"""Shape arithmetic: what is known of small integer vectors, though some of their entries are not.

`Pack([StridedSlice(Shape(x), 0), 49, 64])` is (None, 49, 64), which is all that a Reshape needs.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from attar_tensorflow.reading.values import Const, Dim, Number, Tensor
from attar_tensorflow.reading.view import OpView

Numbers = tuple[Number, ...]
SMALL = 64


def numbers_of(x: Any) -> Numbers | None:
    """What is known of the entries of an integer scalar or vector; None if nothing is."""
    if isinstance(x, Const):
        small = x.array.dtype.kind in "iu" and x.array.ndim < 2 and x.array.size <= SMALL
        return tuple(int(v) for v in x.array.reshape(-1)) if small else None
    return x.numbers if isinstance(x, Tensor) else None


def partial(view: OpView) -> Numbers | None:
    """What is known of the entries of an operation's output."""
    rule = _RULES.get(view.op)
    if rule is None or view.out_dtype().kind not in "iu":
        return None
    return rule(view)


def _shape(view: OpView) -> Numbers | None:
    return sizes_of(view.inputs[0])


def sizes_of(x: Any) -> Numbers | None:
    """The shape of `x`; sizes that are not known by where they are found."""
    if not isinstance(x, Tensor) or x.shape is None:
        return getattr(x, "shape", None)
    held = x.order or range(len(x.shape))
    places = {axis: k for k, axis in enumerate(held)}
    return tuple(Dim(x.value, places[a]) if d is None else d for a, d in enumerate(x.shape))


def _size(view: OpView) -> Numbers | None:
    shape = view.shape(0)
    return None if shape is None else (_product(shape),)


def _same(view: OpView) -> Numbers | None:
    out = view.out_shape()
    return numbers_of(view.inputs[0]) if out is not None and len(out) < 2 else None


def _pack(view: OpView) -> Numbers | None:
    found = [numbers_of(x) for x in view.inputs]
    if any(s is None or len(s) != 0 for s in (view.shape(k) for k in range(len(found)))):
        return None
    numbers = tuple(None if n is None else n[0] for n in found)
    return numbers if len(numbers) <= SMALL else None


def _concat(view: OpView) -> Numbers | None:
    parts: list[Number] = []
    for k, x in enumerate(view.inputs[:-1]):
        numbers, shape = numbers_of(x), view.shape(k)
        if numbers is None:
            if shape is None or len(shape) != 1 or shape[0] is None:
                return None
            numbers = (None,) * shape[0]
        parts += numbers
    return tuple(parts) if len(parts) <= SMALL else None


def _gather(view: OpView) -> Numbers | None:
    numbers, chosen = numbers_of(view.inputs[0]), view.const(1)
    shape = view.shape(0)
    if numbers is None or chosen is None or chosen.ndim > 1 or shape is None or len(shape) != 1:
        return None
    picked = [int(k) for k in chosen.reshape(-1)]
    return tuple(numbers[k] for k in picked) if all(0 <= k < len(numbers) for k in picked) else None


def _slice(view: OpView) -> Numbers | None:
    numbers, shape = numbers_of(view.inputs[0]), view.shape(0)
    bounds = [view.const(k) for k in (1, 2, 3)]
    masks = [view.attr(m, 0) for m in ("ellipsis_mask", "new_axis_mask")]
    if (
        numbers is None
        or shape is None
        or len(shape) != 1
        or any(b is None or b.size != 1 for b in bounds)
        or any(masks)
    ):
        return None
    begin, end, step = (int(b.reshape(-1)[0]) for b in bounds if b is not None)
    if view.attr("shrink_axis_mask", 0):
        return (numbers[begin],) if -len(numbers) <= begin < len(numbers) else None
    start = None if view.attr("begin_mask", 0) else begin
    stop = None if view.attr("end_mask", 0) else end
    return numbers[slice(start, stop, step)] if step else None


def _prod(view: OpView) -> Numbers | None:
    numbers, axis = numbers_of(view.inputs[0]), view.const(1)
    shape = view.shape(0)
    if numbers is None or axis is None or axis.size != 1 or shape is None or len(shape) != 1:
        return None
    return (_product(numbers),)


def _product(numbers: Sequence[Number]) -> Number:
    wide = [n for n in numbers if n != 1]
    if len(wide) == 1:
        return wide[0]
    known = [n for n in numbers if isinstance(n, int)]
    return math.prod(known) if len(known) == len(numbers) else None


def _binary(function: Callable[[int, int], int | None]) -> Callable[[OpView], Numbers | None]:
    def rule(view: OpView) -> Numbers | None:
        a, b = numbers_of(view.inputs[0]), numbers_of(view.inputs[1])
        if a is None or b is None:
            return None
        size = max(len(a), len(b))
        if {len(a), len(b)} - {1, size}:
            return None
        a, b = (x * size if len(x) == 1 else x for x in (a, b))
        return tuple(
            function(p, q) if isinstance(p, int) and isinstance(q, int) else None
            for p, q in zip(a, b, strict=True)
        )

    return rule


_RULES: dict[str, Callable[[OpView], Numbers | None]] = {
    "Shape": _shape,
    "Size": _size,
    "Identity": _same,
    "Cast": _same,
    "ExpandDims": _same,
    "Squeeze": _same,
    "Reshape": _same,
    "Pack": _pack,
    "ConcatV2": _concat,
    "GatherV2": _gather,
    "StridedSlice": _slice,
    "Prod": _prod,
    "Mul": _binary(lambda a, b: a * b),
    "Add": _binary(lambda a, b: a + b),
    "AddV2": _binary(lambda a, b: a + b),
    "Sub": _binary(lambda a, b: a - b),
    "Maximum": _binary(max),
    "Minimum": _binary(min),
    "FloorDiv": _binary(lambda a, b: a // b if b else None),
}


def as_const(numbers: Numbers, view: OpView) -> Const | None:
    """The output as a constant, if all of it is known."""
    shape = view.out_shape()
    if not all(isinstance(n, int) for n in numbers) or shape is None or len(shape) > 1:
        return None
    array = np.array(numbers, view.out_dtype())
    return Const(array.reshape(()) if not shape else array)
