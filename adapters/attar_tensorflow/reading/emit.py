"""Writing nodes of the IR: constants become initializers, and images are carried in NCHW."""

from __future__ import annotations

import contextlib
import math
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
import onnx_ir as ir

from attar.errors import ConversionError
from attar_tensorflow.reading.values import Array, Const, Order, Shape, Tensor, channels_first


class Emitter:
    """Appends nodes to a graph. Liftings get it as `ctx`.

    Args:
        graph: the main graph, which holds all initializers.
    """

    def __init__(self, graph: ir.Graph) -> None:
        self.main = graph
        self.scopes: list[list[ir.Node]] = [[]]
        self.label = ""
        self._names: set[str] = set()
        self._constants: dict[tuple[int, Any], ir.Value] = {}
        self._derived: dict[tuple[int, Any], Const] = {}
        self._moved: list[dict[tuple[int, Order], ir.Value]] = [{}]
        self._kept: list[Any] = []  # what dictionaries know by id has to live

    # -- nodes -----------------------------------------------------------------------------------------------

    def node(
        self, op_type: str, inputs: Sequence[Any], outputs: int = 1, **attributes: Any
    ) -> list[ir.Value]:
        """Append a node. Inputs are tensors in TensorFlow's layout, constants, arrays, IR values or None."""
        values = [None if x is None else self.plain(x) for x in inputs]
        attrs = [ir.convenience.convert_attribute(k, v) for k, v in attributes.items() if v is not None]
        made = ir.Node("", op_type, values, attrs, num_outputs=outputs, name=self.label or None)
        self.scopes[-1].append(made)
        return list(made.outputs)

    @contextlib.contextmanager
    def inside(self, nodes: list[ir.Node] | None = None) -> Iterator[list[ir.Node]]:
        """Nodes go to a list of their own in the block: the body of a subgraph."""
        nodes = [] if nodes is None else nodes
        self.scopes.append(nodes)
        self._moved.append({})
        try:
            yield nodes
        finally:
            self.scopes.pop()
            self._moved.pop()

    def op(
        self, op_type: str, *inputs: Any, dtype: Any = None, shape: Shape | None = None, **attributes: Any
    ) -> Tensor:
        """Append a node with one output; inputs and output are in TensorFlow's layout.

        Args:
            dtype: element type of the output; that of the first tensor unless given.
            shape: of the output; may be left out for the result of a lifting, which takes TensorFlow's.
        """
        if dtype is None:
            dtype = next((x.dtype for x in inputs if isinstance(x, Tensor | Const)), np.dtype(np.float32))
        return Tensor(self.node(op_type, inputs, **attributes)[0], np.dtype(dtype), shape)

    def map(self, op_type: str, *inputs: Any, dtype: Any = None, **attributes: Any) -> Tensor:
        """An elementwise node with broadcasting, computed in whatever layout its operands are held."""
        tensors = [x for x in inputs if isinstance(x, Tensor)]
        ranks = [len(x.shape) for x in inputs if isinstance(x, Tensor | Const) and x.shape is not None]
        unknown = any(x.shape is None for x in tensors)
        rank = max(ranks, default=0)
        order = None
        if not unknown:
            held = [x.order for x in tensors if x.rank == rank]
            order = next((o for o in held if o is not None), None)
        values = [x if x is None else self.stored(x, order, rank if order else None) for x in inputs]
        made = self.node(op_type, values, **attributes)[0]
        shape = None if unknown else broadcast([x.shape for x in inputs if isinstance(x, Tensor | Const)])
        kind = dtype or next((x.dtype for x in inputs if isinstance(x, Tensor | Const)), np.float32)
        return Tensor(made, np.dtype(kind), shape, order)

    # -- constants -------------------------------------------------------------------------------------------

    def constant(
        self, thing: Const | Array | Sequence[Any], key: Any = None, name: str | None = None
    ) -> ir.Value:
        """The initializer that holds `thing`; one for each constant, however often it is used."""
        const = thing if isinstance(thing, Const) else Const(np.asarray(thing))
        if const.array.dtype == np.dtype(object) or const.array.dtype.kind in "US":
            raise ConversionError(f"{self.label}: strings are not supported")
        place = (id(const), key)
        if place not in self._constants:
            self._kept.append(const)
            if const.name is None and const.array.size <= 8:  # zeros, sixes, axes: one of each
                known = (0, (const.array.dtype.str, const.array.shape, const.array.tobytes()))
                if known not in self._constants:
                    self._constants[known] = self._initializer(const, name)
                self._constants[place] = self._constants[known]
            else:
                self._constants[place] = self._initializer(const, name)
        return self._constants[place]

    def _initializer(self, const: Const, name: str | None) -> ir.Value:
        title = self.unique(const.name or name or f"{self.label}/constant")
        array = np.ascontiguousarray(const.array).reshape(const.array.shape)
        tensor = ir.tensor(array, name=title)
        value = ir.Value(
            name=title, type=ir.TensorType(tensor.dtype), shape=ir.Shape(array.shape), const_value=tensor
        )
        self.main.register_initializer(value)
        return value

    def derived(self, const: Const, key: Any, make: Any) -> Const:
        """`make(const.array)` as a constant of the same name, made once for each `key`."""
        place = (id(const), key)
        if place not in self._derived:
            self._kept.append(const)
            self._derived[place] = Const(make(const.array), const.name)
        return self._derived[place]

    def unique(self, name: str) -> str:
        title, count = name, 0
        while title in self._names:
            count += 1
            title = f"{name}_{count}"
        self._names.add(title)
        return title

    # -- layout ----------------------------------------------------------------------------------------------

    def plain(self, x: Any) -> ir.Value:
        """The IR value of `x` in TensorFlow's layout."""
        return self.stored(x, None)

    def stored(self, x: Any, order: Order | None, rank: int | None = None) -> ir.Value:
        """The IR value of `x` with its axes in `order`, and with leading axes of 1 up to `rank`."""
        if isinstance(x, ir.Value):
            return x
        if not isinstance(x, Tensor):
            const = x if isinstance(x, Const) else Const(np.asarray(x))
            if order is None or (const.array.size == 1 and const.array.ndim == 0):
                return self.constant(const)
            return self.constant(self.derived(const, ("order", order), lambda a: _arranged(a, order)))
        if rank is not None and x.rank is not None and x.rank < rank:
            x = self._raised(x, rank)
        if order == x.order or (order is None and x.order is None):
            return x.value
        perm = self._perm(x, order)
        key = (id(x.value), perm)
        for cache in reversed(self._moved):
            if key in cache:
                return cache[key]
        self._kept.append(x)
        value = self._move(x, order, perm)
        self._moved[-1][key] = value
        return value

    @staticmethod
    def _perm(x: Tensor, order: Order | None) -> Order:
        """The axes of `x.value`, in the order in which they come when `x` is laid out in `order`."""
        rank = x.rank or len(order or x.order or ())
        now, then = x.order or tuple(range(rank)), order or tuple(range(rank))
        return tuple(now.index(axis) for axis in then)

    def image(self, x: Any) -> ir.Value:
        """The IR value of `x` with the last axis, its channels, second: NCHW."""
        assert x.shape is not None
        return self.stored(x, channels_first(len(x.shape)))

    def as_image(self, value: ir.Value, like: Tensor, shape: Shape | None = None) -> Tensor:
        """`value`, which is in NCHW, as a tensor with channels last."""
        rank = len(shape if shape is not None else like.shape or ())
        return Tensor(value, like.dtype, shape, channels_first(rank))

    def turned_image(self, x: Tensor) -> Tensor:
        """`x` kept in NCHW from now on; who wants it as it was gets what it was."""
        value = self.image(x)
        turned = self.as_image(value, x, x.shape)
        self._moved[0][id(value), self._perm(turned, None)] = x.value
        return turned

    def axis(self, x: Tensor, axis: int) -> int:
        """The axis of `x.value` that holds TensorFlow's `axis`."""
        if x.rank is None:
            return axis
        axis %= x.rank
        return axis if x.order is None else x.order.index(axis)

    def reshape(self, x: Any, shape: Sequence[int], known: Shape | None = None) -> Tensor:
        """`x` with a new shape of which at most one entry is -1; an entry of 0 stays as it is in `x`."""
        value = self.plain(x)
        made = value if 0 in shape else self._reshaped(value, shape, same_lead(x.shape, shape))
        if made is value:
            made = self.node("Reshape", [value, Const(np.array(shape, np.int64))])[0]
        return Tensor(made, x.dtype, known or tuple(None if d < 1 else int(d) for d in shape))

    def _reshaped(self, value: ir.Value, shape: Sequence[int], lead: bool) -> ir.Value:
        """`value` with a new shape, less the reshapes that it has behind it.

        Args:
            lead: the first axis stays what it is, which is said by a 0: its name is kept then.
        """
        node = value.producer()
        while node is not None and node.op_type == "Reshape" and node.inputs[1].is_initializer():  # type: ignore[union-attr]
            lead = lead and int(node.inputs[1].const_value.numpy()[0]) == 0  # type: ignore[union-attr]
            value = node.inputs[0]  # type: ignore[assignment]
            node = value.producer()
        dims = [0 if k == 0 and lead else int(d) for k, d in enumerate(shape)]
        return self.node("Reshape", [value, Const(np.array(dims, np.int64))])[0]

    def _raised(self, x: Tensor, rank: int) -> Tensor:
        extra = rank - (x.rank or 0)
        made = self.node("Unsqueeze", [self.plain(x), Const(np.arange(extra))])[0]
        return Tensor(made, x.dtype, (1,) * extra + tuple(x.shape or ()))

    def _move(self, x: Tensor, order: Order | None, perm: Order) -> ir.Value:
        if x.shape is not None and x.shape.count(None) < 2:
            now, then = x.order or tuple(range(len(perm))), order or tuple(range(len(perm)))
            wide = [axis for axis in now if x.shape[axis] != 1]
            if wide == [axis for axis in then if x.shape[axis] != 1]:  # only axes of 1 change places
                dims = [-1 if (d := x.shape[axis]) is None else d for axis in then]
                return self._reshaped(x.value, dims, now[0] == then[0] and dims[0] == -1)
        return self.node("Transpose", [x.value], perm=list(perm))[0]


def same_lead(before: Shape | None, after: Sequence[int]) -> bool:
    """Whether a Reshape leaves an open first axis alone: all others hold as many elements as before."""
    if not before or before[0] is not None or not after or after[0] != -1 or None in before[1:]:
        return False
    return math.prod(d for d in before[1:] if d is not None) == math.prod(after[1:])


def broadcast(shapes: Sequence[Sequence[int | None] | None]) -> Shape | None:
    """The shape that elementwise operands of `shapes` give; None where it hangs on run time."""
    if any(s is None for s in shapes):
        return None
    rank = max((len(s) for s in shapes if s is not None), default=0)
    out: list[int | None] = []
    for axis in range(-rank, 0):
        dims = {s[axis] for s in shapes if s is not None and len(s) >= -axis} - {1}
        out.append(
            1 if not dims else dims.pop() if len(dims) == 1 else max((d for d in dims if d), default=None)
        )
    return tuple(out)


def _arranged(array: Array, order: Order) -> Array:
    full = array.reshape((1,) * (len(order) - array.ndim) + array.shape).transpose(order)
    lead = next((k for k, d in enumerate(full.shape) if d != 1), full.ndim)
    return full.reshape(full.shape[lead:])
