"""What one turn of a loop computes, recognised as a cell: LSTM, GRU or the simple RNN.

The gates are compared as linear forms x W + h R + b of the turn's input x and the state h, whatever way they
are written: two products or one of [x, h], one product for all gates that is split, biases added anywhere.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from attar_tensorflow.reading.values import Array, Const, Tensor

_ACTIVATIONS = ("Sigmoid", "Tanh", "Relu")


@dataclass
class Form:
    """X W + h R + b; a part that is missing is None."""

    w: Array | None = None
    r: Array | None = None
    b: Array | None = None
    name: str | None = None

    def plus(self, other: Form) -> Form:
        parts = [
            q if p is None else p if q is None else p + q
            for p, q in ((self.w, other.w), (self.r, other.r), (self.b, other.b))
        ]
        return Form(*parts, self.name or other.name)

    def columns(self, start: int, stop: int) -> Form:
        cut = [None if p is None else p[..., start:stop] for p in (self.w, self.r, self.b)]
        return Form(*cut, self.name)


@dataclass
class Cell:
    """A recognised layer: gates in ONNX's order, as forms; `inner` is the candidate's form of h, for a GRU
    that
    resets after the product.
    """

    kind: str
    gates: list[Form]
    activations: list[str]
    h: int
    c: int | None
    inner: Form | None = None


def cell_of(inside: Sequence[Any], after: Sequence[Any], states: list[int], x: Tensor) -> Cell | None:
    if len(states) == 1:
        k = states[0]
        return _gru(after[k], x, inside[k], k) or _simple(after[k], x, inside[k], k)
    for h, c in (states, states[::-1]):
        cell = _lstm((after[h], after[c]), x, (inside[h], inside[c]), (h, c))
        if cell is not None:
            return cell
    return None


def _lstm(
    new: tuple[Any, Any], x: Tensor, old_states: tuple[Tensor, Tensor], at: tuple[int, int]
) -> Cell | None:
    """C' = f c + i g, h' = o act(c')."""
    (new_h, new_c), (h, c) = new, old_states
    for kept, added in _pairs(new_c, "AddV2", "Add"):
        for f, old in _pairs(kept, "Mul"):
            if old is not c:
                continue
            for i, g in _pairs(added, "Mul"):
                for o, out in _pairs(new_h, "Mul"):
                    if not (_act(out) and out.args[0] is new_c):
                        continue
                    forms = [_gate(t, x, h) for t in (i, o, f, g)]
                    if all(forms) and i.op == o.op == f.op:
                        return Cell("LSTM", forms, [i.op, g.op, out.op], *at)  # type: ignore[arg-type]
    return None


def _gru(new_h: Any, x: Tensor, h: Tensor, at: int) -> Cell | None:
    """H' = z h + (1 - z) n, n = act(x W + r (h R + b)) or act(x W + (r h) R + b)."""
    for kept, added in _pairs(new_h, "AddV2", "Add"):
        for z, old in _pairs(kept, "Mul"):
            if old is not h:
                continue
            for rest, n in _pairs(added, "Mul"):
                if not (
                    isinstance(rest, Tensor)
                    and rest.op == "Sub"
                    and rest.args[1] is z
                    and all_are(rest.args[0], 1)
                ):
                    continue
                update = _gate(z, x, h)
                found = _candidate(n, x, h)
                if update and found and found[0].op == z.op:
                    reset, form, inner = found
                    gate = _gate(reset, x, h)
                    if gate:
                        return Cell("GRU", [update, gate, form], [z.op, n.op], at, None, inner)
    return None


def _candidate(n: Any, x: Tensor, h: Tensor) -> tuple[Tensor, Form, Form | None] | None:
    if not _act(n):
        return None
    for outer, product in _pairs(n.args[0], "AddV2", "Add", "BiasAdd"):
        for r, recurrent_part in _pairs(product, "Mul"):
            form, inner = _linear(outer, x, None), _linear(recurrent_part, None, h)
            if _act(r) and form is not None and inner is not None and inner.r is not None:
                return r, form, inner
    for product in _below(n.args[0]):
        for r, old in _pairs(product, "Mul"):
            if old is h and _act(r):
                form = _linear(n.args[0], x, product)
                if form is not None and form.r is not None:
                    return r, form, None
    return None


def _simple(new_h: Any, x: Tensor, h: Tensor, at: int) -> Cell | None:
    form = _gate(new_h, x, h)
    return Cell("RNN", [form], [new_h.op], at, None) if form else None


def _gate(t: Any, x: Tensor, h: Tensor) -> Form | None:
    form = _linear(t.args[0], x, h) if _act(t) else None
    return form if form is not None and form.w is not None and form.r is not None else None


def _act(t: Any) -> bool:
    return isinstance(t, Tensor) and t.op in _ACTIVATIONS


def all_are(c: Any, number: float) -> bool:
    """Whether `c` is a constant of nothing but `number`."""
    return isinstance(c, Const) and bool((c.array == number).all())


def _pairs(t: Any, *ops: str) -> list[tuple[Any, Any]]:
    """The two operands of `t` in both orders, if it is one of `ops`."""
    if not (isinstance(t, Tensor) and t.op in ops and len(t.args) == 2):
        return []
    return [(t.args[0], t.args[1]), (t.args[1], t.args[0])]


def _below(t: Any, depth: int = 8) -> list[Tensor]:
    """The tensors behind `t`."""
    if not isinstance(t, Tensor) or depth == 0:
        return []
    return [t, *(u for a in t.args for u in _below(a, depth - 1))]


def _linear(t: Any, x: Tensor | None, h: Tensor | None) -> Form | None:
    """`t` as a linear form of `x` and `h`; None if it is none."""
    if isinstance(t, Const):
        return Form(b=t.array.reshape(-1)) if t.array.ndim < 2 or t.array.size == t.array.shape[-1] else None
    if not isinstance(t, Tensor):
        return None
    if t.op in ("Add", "AddV2", "BiasAdd"):
        parts = [_linear(a, x, h) for a in t.args]
        return parts[0].plus(parts[1]) if parts[0] is not None and parts[1] is not None else None
    if t.op == "MatMul" and isinstance(t.args[1], Const) and "transposed" not in t.facts:
        return _product(t.args[0], t.args[1], x, h)
    columns = t.facts.get("columns")
    if columns is not None:
        source, start, stop = columns
        whole = _linear(source, x, h)
        wide = None if whole is None else next((p for p in (whole.w, whole.r) if p is not None), None)
        if whole is None or wide is None:
            return None
        if whole.b is not None and whole.b.size == 1:
            whole.b = np.repeat(whole.b, wide.shape[1])
        return whole.columns(start, stop)
    return None


def _product(a: Any, weight: Const, x: Tensor | None, h: Tensor | None) -> Form | None:
    array = weight.array
    if array.ndim != 2:
        return None
    if x is not None and a is x:
        return Form(w=array, name=weight.name)
    if h is not None and a is h:
        return Form(r=array, name=weight.name)
    if isinstance(a, Tensor) and a.op == "ConcatV2" and len(a.args) == 3 and x is not None and h is not None:
        rows = 0
        form = Form(name=weight.name)
        for part in a.args[:2]:
            if not isinstance(part, Tensor) or part.shape is None or part.shape[-1] is None:
                return None
            piece = _product(part, Const(array[rows : rows + part.shape[-1]], weight.name), x, h)
            if piece is None:
                return None
            form = form.plus(piece)
            rows += part.shape[-1]
        return form if rows == array.shape[0] else None
    return None
