"""Loops: a recurrent layer where the body is one, ONNX's Loop otherwise."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import onnx_ir as ir

from attar.errors import ConversionError
from attar_tensorflow.reading.recurrent import recurrent
from attar_tensorflow.reading.values import Const, Items, Missing, Shape, Tensor, Written

if TYPE_CHECKING:
    from attar_tensorflow.reading.lifter import Lifter


@dataclass
class Loop:
    """A loop with variables.

    Attributes:
        start: their values at the beginning.
        shapes: their shapes, as far as TensorFlow knows them for every turn.
        invariant: which of them the body hands on unchanged.
        cond: lifts the condition to go on, on values of the variables.
        body: lifts one turn; gives the new values.
        outside: what both see beside the variables.
    """

    name: str
    start: list[Any]
    shapes: Sequence[Shape | None]
    invariant: Sequence[bool]
    cond: Callable[[list[Any]], Any]
    body: Callable[[list[Any]], list[Any]]
    outside: Sequence[Any] = ()

    def lift(self, ctx: Lifter) -> list[Any]:
        """Write the loop. Returns the final values.

        Raises:
            ConversionError: it does what ONNX's Loop cannot say.
        """
        turn = _scalar(np.int64)
        for start in self.start:  # what the body reads is laid out once, before the loop
            thing = start.stack if isinstance(start, Items) else start
            if isinstance(thing, Tensor):
                ctx.plain(thing)
        with ctx.inside() as nodes:
            inside = [self._seen(k) for k in range(len(self.start))]
            after = self.body(inside)
            if any(isinstance(a, Missing) for a in after):
                return [Missing()] * len(self.start)
            self._check_shapes(after)
            count = self._count(ctx, inside, after)
        layer = None if count is None else recurrent(ctx, self, inside, after, count)
        if layer is not None:
            return layer
        return self._write(ctx, nodes, inside=inside, after=after, count=count, turn=turn)

    def counter(self, inside: Sequence[Any], after: Sequence[Any], x: Any) -> int | None:
        """The start of the variable `x` that counts turns by one; None if it does not."""
        for k, value in enumerate(inside):
            if value is x and not self.invariant[k] and isinstance(self.start[k], Const):
                step = after[k]
                if (
                    isinstance(step, Tensor)
                    and step.op in ("Add", "AddV2")
                    and self.start[k].array.dtype.kind == "i"
                ):
                    for a, b in (step.args, step.args[::-1]):
                        if a is x and isinstance(b, Const) and b.array.size == 1 and b.array.reshape(()) == 1:
                            return int(self.start[k].array.reshape(()))
        return None

    def _seen(self, k: int) -> Any:
        """Variable `k` as the body sees it."""
        start = self.start[k]
        if self.invariant[k] or isinstance(start, Items) or not isinstance(start, Tensor | Const):
            return start
        value = ir.Value(name=None, type=ir.TensorType(ir.DataType.from_numpy(start.dtype)))
        shape = self._shape(k)
        if shape is not None:
            value.shape = ir.Shape(list(shape))
        return Tensor(value, start.dtype, shape)

    def _shape(self, k: int) -> Shape | None:
        """The shape of variable `k` in every turn. Loops of TensorFlow 1 keep the shape of the beginning."""
        shape = self.shapes[k]
        return shape if shape is not None else getattr(self.start[k], "shape", None)

    def _check_shapes(self, after: list[Any]) -> None:
        for k, end in enumerate(after):
            shape = self._shape(k)
            if self.invariant[k] or not isinstance(end, Tensor | Const) or shape is None or end.shape is None:
                continue
            pairs = list(zip(shape, end.shape, strict=False))
            if len(shape) != len(end.shape) or any(None not in p and p[0] != p[1] for p in pairs):
                raise ConversionError(
                    f"the loop {self.name!r} changes the shape of a variable from turn to turn"
                )

    def _count(self, ctx: Lifter, inside: list[Any], after: list[Any]) -> list[Any] | None:
        """The bounds of the number of turns (the least counts), each with the counter's start taken off; None
        if
        the condition is not one of counting.
        """
        with ctx.inside():
            condition = self.cond(inside)
        bounds: list[Any] = []
        todo = [condition]
        while todo:
            c = todo.pop()
            if not isinstance(c, Tensor):
                if isinstance(c, Const) and bool(c.array.reshape(-1)[0]):
                    continue
                return None
            if c.op == "LogicalAnd":
                todo += c.args
            elif c.op == "Less":
                begin = self.counter(inside, after, c.args[0])
                limit = c.args[1]
                if begin is None or not (isinstance(limit, Const) or self._from_outside(limit)):
                    return None
                bounds.append((limit, begin))
            elif c.op == "Greater":
                begin = self.counter(inside, after, c.args[1])
                limit = c.args[0]
                if begin is None or not (isinstance(limit, Const) or self._from_outside(limit)):
                    return None
                bounds.append((limit, begin))
            else:
                return None
        return bounds or None

    def _from_outside(self, x: Any) -> bool:
        return any(x is s for s in (*self.start, *self.outside))

    def fixed_count(self, count: list[Any]) -> int | None:
        """The number of turns, if it is known."""
        known = [int(limit.array.reshape(())) - begin for limit, begin in count if isinstance(limit, Const)]
        return max(min(known), 0) if len(known) == len(count) else None

    def full_length(self, items: Items, count: list[Any]) -> bool:
        """Whether a list that is written once a turn from its beginning is full at the end."""
        if items.length == "grows":
            return True
        fixed = self.fixed_count(count)
        if isinstance(items.length, Const):
            return fixed == int(items.length.array.reshape(()))
        return all(limit is items.length and begin == 0 for limit, begin in count)

    # -- ONNX's Loop -----------------------------------------------------------------------------------------

    def _write(
        self,
        ctx: Lifter,
        nodes: list[ir.Node],
        *,
        inside: list[Any],
        after: list[Any],
        count: Any,
        turn: ir.Value,
    ) -> list[Any]:
        carried, lists = [], []
        for k, start in enumerate(self.start):
            if self.invariant[k]:
                continue
            if isinstance(start, Items) or isinstance(after[k], Written):
                if after[k] is not start:
                    self._check_list(k, inside, after, count)
                    lists.append(k)
            elif isinstance(start, Tensor | Const):
                carried.append(k)
            else:
                raise ConversionError(f"the loop {self.name!r} changes a variable, which ONNX's Loop cannot")
        with ctx.inside(nodes):
            news = [ctx.node("Identity", [after[k]])[0] for k in carried]
            items = [ctx.node("Identity", [after[k].item])[0] for k in lists]
            if count is None:
                go_on = ctx.node("Identity", [self.cond(after)])[0]
            else:
                go_on = ctx.node("Identity", [Const(np.array(True))])[0]
        for value, k in zip([*news, *items], [*carried, *lists], strict=True):
            kind = after[k].item if k in lists else after[k]
            value.type = ir.TensorType(ir.DataType.from_numpy(kind.dtype))
        go_on.type = ir.TensorType(ir.DataType.BOOL)
        body = ir.Graph(
            [turn, _scalar(np.bool_), *[inside[k].value for k in carried]],
            [go_on, *news, *items],
            nodes=nodes,
            name=f"{self.name}/body",
        )
        limit, first = None, None
        if count is None:
            first = self.cond(self.start)
        else:
            limit = self._limit(ctx, count)
        made = ctx.node(
            "Loop",
            [limit, first, *[self.start[k] for k in carried]],
            outputs=len(carried) + len(lists),
            body=body,
        )
        ends: list[Any] = list(self.start)
        for value, k in zip(made, carried, strict=False):
            ends[k] = Tensor(value, self.start[k].dtype, self._shape(k))
        for value, k in zip(made[len(carried) :], lists, strict=True):
            ends[k] = self._list_end(ctx, value, after[k], count)
        return ends

    def _check_list(self, k: int, inside: list[Any], after: list[Any], count: Any) -> None:
        written, start = after[k], self.start[k]
        good = isinstance(written, Written) and isinstance(start, Items) and written.before is start
        if good and written.index == "end":
            good = start.length == "grows"
        elif good and isinstance(written.index, Const):
            length = start.length
            good = (
                int(written.index.array.reshape(())) == 0 and isinstance(length, Const) and length.array == 1
            )
        elif good:
            begin = self.counter(inside, after, written.index)
            good = begin == 0 and count is not None and self.full_length(start, count)
        if not good:
            raise ConversionError(
                f"the loop {self.name!r} does not write its list once a turn from beginning to end, "
                "which ONNX's Loop cannot say"
            )

    def _list_end(self, ctx: Lifter, value: ir.Value, written: Written, count: Any) -> Items:
        fixed = None if count is None else self.fixed_count(count)
        item = written.item
        shape = None if item.shape is None else (fixed, *item.shape)
        whole = Tensor(value, item.dtype, shape)
        if isinstance(written.index, Const):  # only the last one is kept
            last = [Const(np.array([n], np.int64)) for n in (-1, np.iinfo(np.int64).max, 0)]
            value = ctx.node("Slice", [whole, *last])[0]
            whole = Tensor(value, item.dtype, None if item.shape is None else (1, *item.shape))
        return Items(whole)

    def _limit(self, ctx: Lifter, count: list[Any]) -> Any:
        fixed = self.fixed_count(count)
        if fixed is not None:
            return Const(np.array(fixed, np.int64))
        limits = []
        for limit, begin in count:
            wide = limit
            if isinstance(limit, Const):
                wide = Const(limit.array.astype(np.int64).reshape(()))
            elif limit.dtype != np.int64:
                wide = ctx.op("Cast", limit, dtype=np.int64, shape=(), to=int(ir.DataType.INT64))
            limits.append(
                wide if begin == 0 else ctx.op("Sub", wide, Const(np.array(begin, np.int64)), dtype=np.int64)
            )
        return limits[0] if len(limits) == 1 else ctx.op("Min", *limits, dtype=np.int64)


def _scalar(dtype: Any) -> ir.Value:
    return ir.Value(
        name=None, type=ir.TensorType(ir.DataType.from_numpy(np.dtype(dtype))), shape=ir.Shape([])
    )
