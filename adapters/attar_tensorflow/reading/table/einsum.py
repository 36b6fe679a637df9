"""Einsum: as MatMul where it is one, which runtimes and compression know, and as itself otherwise."""

from __future__ import annotations

from typing import Any

import numpy as np

from attar_tensorflow.reading.lifter import Lifter
from attar_tensorflow.reading.values import Const, Tensor
from attar_tensorflow.reading.view import OpView


def lift_einsum(ctx: Lifter, view: OpView) -> Any:
    """One product of two operands becomes Transpose, Reshape and MatMul.

    With the letters sorted into batch (in both operands and the result), left, right and contracted, it is
    [batch, left, contracted] @ [batch, contracted, right]. A weight is rearranged beforehand.
    """
    equation = str(view.attr("equation")).replace(" ", "")
    product = _as_product(ctx, view, equation)
    if product is not None:
        return product
    return ctx.op("Einsum", *[view.input(k) for k in range(len(view.inputs))], equation=equation)


def _as_product(ctx: Lifter, view: OpView, equation: str) -> Tensor | None:
    if "..." in equation:
        equation = _spelt_out(view, equation) or ""
    if len(view.inputs) != 2 or "->" not in equation:
        return None
    sides, result = equation.split("->")
    a, b = sides.split(",")
    letters = (a, b, result)
    if any(len(set(s)) != len(s) for s in letters):
        return None
    x, y = view.input(0), view.input(1)
    if isinstance(x, Const) and isinstance(y, Tensor):  # a weight goes to the right
        a, b, x, y = b, a, y, x
    if not isinstance(x, Tensor) or x.shape is None or y.shape is None:
        return None
    batch = [c for c in result if c in a and c in b]
    left = [c for c in result if c in a and c not in b]
    right = [c for c in result if c in b and c not in a]
    inner = [c for c in a if c in b and c not in result]
    if not inner or set(a) - {*batch, *left, *inner} or set(b) - {*batch, *right, *inner}:
        return None
    sizes: dict[str, int | None] = {}
    for c, d in (*zip(a, x.shape, strict=True), *zip(b, y.shape, strict=True)):
        if None not in (d, sizes.get(c)) and d != sizes[c]:  # one side is broadcast
            return None
        sizes[c] = sizes.get(c) or d
    if isinstance(y, Const) and not batch:
        return _by_weight(ctx, x, y, a=a, b=b, parts=(left, right, inner), sizes=sizes, result=result)
    unknown = [c for c in (*left, *right, *inner, *batch) if sizes[c] is None]
    if (len(left) != 1 or len(right) != 1 or len(inner) != 1) and len(unknown) > 1:
        return None
    p = _laid(ctx, x, a, [*batch, *left, *inner])
    q = _laid(ctx, y, b, [*batch, *inner, *right])
    lead = [_size(sizes[c]) for c in batch]
    if len(left) != 1 or len(inner) != 1:
        p = ctx.reshape(p, [*lead, _many(left, sizes), _many(inner, sizes)])
    if len(right) != 1 or len(inner) != 1:
        q = ctx.reshape(q, [*lead, _many(inner, sizes), _many(right, sizes)])
    out = ctx.op("MatMul", p, q)
    have = [*batch, *left, *right]
    if len(left) != 1 or len(right) != 1:
        out = ctx.reshape(out, [_size(sizes[c]) for c in have])
    return _finished(out, have, sizes, result)


def _by_weight(
    ctx: Lifter, x: Tensor, w: Const, *, a: str, b: str, parts: tuple[Any, Any, Any], sizes: Any, result: str
) -> Tensor | None:
    """[left..., inner] @ [inner, right]: the weight as a matrix, the left axes as they are."""
    left, right, inner = parts
    order = [b.index(c) for c in (*inner, *right)]
    rows = int(np.prod([sizes[c] for c in inner]))
    matrix = ctx.derived(w, ("matrix", b, result), lambda v: v.transpose(order).reshape(rows, -1))
    p: Any = _laid(ctx, x, a, [*left, *inner])
    if len(inner) > 1:
        p = ctx.reshape(p, [*(sizes[c] or 0 for c in left), rows])
    out = ctx.op("MatMul", p, matrix)
    if len(right) != 1:
        shape = tuple(sizes[c] for c in (*left, *right))
        out = ctx.reshape(out, [sizes[c] or 0 for c in (*left, *right)], shape)
    return _finished(out, [*left, *right], sizes, result)


def _finished(out: Tensor, have: list[str], sizes: Any, result: str) -> Tensor:
    order = tuple(result.index(c) for c in have)
    kept = None if order == tuple(range(len(order))) else order
    return Tensor(out.value, out.dtype, tuple(sizes[c] for c in result), kept)


def _laid(ctx: Lifter, x: Any, have: str, want: list[str]) -> Any:
    """`x` with its axes in the order of `want`, not moved before somebody needs it."""
    perm = [have.index(c) for c in want]
    if isinstance(x, Const):
        return ctx.derived(x, ("perm", tuple(perm)), lambda v: v.transpose(perm))
    held = x.order or tuple(range(len(perm)))
    order = tuple(perm.index(axis) for axis in held)
    kept = None if order == tuple(range(len(order))) else order
    return Tensor(x.value, x.dtype, tuple(x.shape[p] for p in perm), kept)


def _size(dim: int | None) -> int:
    return -1 if dim is None else dim


def _many(letters: list[str], sizes: dict[str, int | None]) -> int:
    found = [sizes[c] for c in letters]
    return -1 if any(d is None for d in found) else int(np.prod([d for d in found if d is not None]))


def _spelt_out(view: OpView, equation: str) -> str | None:
    """The equation with letters for `...`, where each operand has the same number of axes behind it."""
    sides, result = equation.split("->") if "->" in equation else (equation, None)
    free = [c for c in "ABCDEFGHIJKLMNOPQRSTUVWXYZ" if c not in equation]
    terms, dots = sides.split(","), set()
    for k, term in enumerate(terms):
        shape = view.shape(k)
        if shape is None:
            return None
        if "..." in term:
            dots.add(len(shape) - len(term) + 3)
    if len(dots) != 1 or result is None:
        return None
    letters = "".join(free[: dots.pop()])
    return equation.replace("...", letters)
