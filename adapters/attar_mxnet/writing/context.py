"""What a lowering works with: the graph under construction, its parameters, and the values made so far.

Scalars: MXNet 1 has none in its classic mode (no axes mean "shape unknown"), so a value of rank 0 is held as
one of shape (1,). Only a graph output becomes a scalar again.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any, TypeAlias

import numpy as np
import onnx_ir as ir

from attar.conversion import NodeView
from attar.conversion.view import shape_of
from attar.graph import const_array
from attar_mxnet.reading.values import DTYPE_CODES
from attar_mxnet.symbol_json import Entry, SymbolGraph

Array = np.ndarray[Any, np.dtype[Any]]
Lowered: TypeAlias = Entry | tuple[Entry | None, ...]
Lowering: TypeAlias = Callable[["WriteContext", NodeView], Lowered]

DTYPES = ("float32", "float64", "float16", "uint8", "int32", "int8", "int64", "bool")
"""Element types that MXNet's classic operators know."""

_LARGEST_BIAS = 1e4  # beyond it an added constant is a mask, not something learnt
_WHOLE_FLOAT32 = 1 << 24
_INFINITIES = ((-1, "lowest"), (1, "highest"))


class WriteContext:
    """The MXNet graph of one model while it is written."""

    def __init__(self) -> None:
        self.graph = SymbolGraph()
        self.params: dict[str, Array] = {}  # arg:NAME or aux:NAME, as in the file
        self.constants: set[str] = set()  # arguments that are behind a BlockGrad
        self.folded: dict[
            ir.Value, Array
        ] = {}  # weights that were stored quantized, as the floats they stand for
        self.notes: dict[str, None] = {}
        self._given_names: dict[ir.Value, str] = {}
        self._entries: dict[ir.Value, Entry] = {}
        self._weights: dict[tuple[ir.Value, str], Entry] = {}
        self._shared: dict[tuple[Any, ...], Entry] = {}
        self._dims: dict[str, tuple[Entry, int]] = {}
        self._names: set[str] = set()
        self._view: NodeView | None = None
        self._half = False

    # -- making nodes ----------------------------------------------------------------------------------------

    def op(self, op: str, *inputs: Entry, outputs: int = 1, **attrs: Any) -> Entry:
        """Append an operator; attributes are written the way MXNet spells them (None: left out)."""
        base = f"{self._view.name}_{op.strip('_').lower()}" if self._view else op.lower()
        text = {key: spelt(value) for key, value in attrs.items() if value is not None}
        return self.graph.add(op, self.fresh(base), inputs, **text)

    def scalar(self, op: str, x: Entry, value: float) -> Entry:
        """One of the `_plus_scalar` family."""
        return self.op(op, x, scalar=value)

    def cast(self, x: Entry, dtype: Any) -> Entry:
        return self.op("Cast", x, dtype=np.dtype(dtype).name)

    def fresh(self, base: str) -> str:
        """`base`, or `base_1`, ... if a node or variable is called that."""
        name, count = base, 0
        while name in self._names:
            count += 1
            name = f"{base}_{count}"
        self._names.add(name)
        return name

    # -- values ----------------------------------------------------------------------------------------------

    def input_variable(self, value: ir.Value) -> None:
        """A graph input, under its own name, with what is known of its shape and type as MXNet's hints."""
        name = value.name or "data"
        self._names.add(name)
        hints = {}
        shape = shape_of(value)
        if shape:  # 0 is what MXNet writes for a size that is not known
            hints["__shape__"] = spelt(tuple(d if isinstance(d, int) else 0 for d in shape))
        if value.dtype is not None and value.dtype != ir.DataType.FLOAT:
            hints["__dtype__"] = str(DTYPE_CODES.index(value.dtype.numpy()))
        self._entries[value] = self.graph.variable(name, **hints)
        for axis, dim in enumerate(shape_of(value) or ()):
            if isinstance(dim, str):
                self._dims.setdefault(dim, (self._entries[value], axis))

    def begin(self, view: NodeView, half: bool) -> None:
        """Lower `view` from now on. `half`: compute in float32 what is float16."""
        self._view, self._half = view, half

    def finish(self, view: NodeView, made: Lowered, first: int) -> None:
        """Take the entries that the lowering made for the outputs; nodes from `first` on are its."""
        entries = made if isinstance(made, tuple) and not isinstance(made, Entry) else (made,)
        for value, entry in zip(view.outputs, entries, strict=False):
            if entry is None:
                continue
            narrow = self._half and value.dtype == ir.DataType.FLOAT16
            self._entries[value] = self.cast(entry, np.float16) if narrow else entry
        last = entries[0]
        if last is not None and last.node >= first and not self.graph.nodes[last.node].is_variable:
            node = self.graph.nodes[last.node]
            if view.node.name and view.node.name not in self._names:
                self._names.discard(node.name)
                node.name = self.fresh(view.node.name)
        self._view, self._half = None, False

    def get(self, view: NodeView, index: int = 0) -> Entry:
        """Input `index` of `view`, whatever it is; constants that are not learnt get no gradient."""
        value = view.input(index)
        if value is None:
            raise view.refuse(f"input {index} is missing")
        return self.value(view, value)

    def value(self, view: NodeView, value: ir.Value) -> Entry:
        """As `get`, for a value that is not an input by number."""
        entry = self._entries.get(value)
        if entry is None:
            array = self.array_of(value)
            if array is None:
                raise view.refuse(f"{value.name!r} comes from nowhere")
            entry = self._entries[value] = self.constant(array, value.name or "constant", view=view)
        return self._widened(entry, value.dtype == ir.DataType.FLOAT16)

    def known(self, value: ir.Value) -> Entry | None:
        """The entry of a value that was computed or given; None for a constant."""
        return self._entries.get(value)

    def dimension(self, name: object) -> tuple[Entry, int] | None:
        """A graph input and the axis of it that has the size called `name`."""
        return self._dims.get(name) if isinstance(name, str) else None

    def array_of(self, value: ir.Value | None) -> Array | None:
        """The constant behind `value`, also where it is stored quantized."""
        if value is None:
            return None
        found = self.folded.get(value)
        return const_array(value) if found is None else found

    def array(self, view: NodeView, index: int) -> Array | None:
        """As `NodeView.const`, also for weights that are stored quantized."""
        return self.array_of(view.input(index))

    def dtype(self, view: NodeView, index: int = 0) -> np.dtype[Any]:
        """The element type that input `index` has while the node is lowered."""
        dtype = view.dtype(index)
        return np.dtype(np.float32) if self._half and dtype == np.float16 else dtype

    def rank(self, view: NodeView, index: int = 0) -> int:
        """The rank that input `index` has in MXNet: 1 for a scalar."""
        return max(view.need_rank(index), 1)

    def fold(self, value: ir.Value, array: Array, name: str | None) -> None:
        """Let `value` count as a constant, stored, if it comes to that, under `name`."""
        self.folded[value] = array
        self._given_names[value] = name or value.name or "weight"

    # -- parameters ------------------------------------------------------------------------------------------

    def weight(
        self,
        view: NodeView,
        index: int,
        change: Callable[[Array], Array] | None = None,
        tag: str = "",
    ) -> Entry:
        """Input `index` as a trainable parameter under its own name, if it is a constant; else its value.

        Args:
            change: what to do to the array before it is stored, where MXNet's layout differs.
            tag: names the change, so that nodes which need the same one share the parameter.
        """
        value = view.input(index)
        array = self.array_of(value)
        if value is None or array is None:
            return self.get(view, index)
        key = (value, tag)
        if key not in self._weights:
            stored = array if change is None else change(array)
            self._weights[key] = self.parameter(
                stored, self._given_names.get(value) or value.name or "weight", view
            )
        return self._widened(self._weights[key], array.dtype == np.float16)

    def parameter(self, array: Array, name: str, view: NodeView | None = None) -> Entry:
        """A new trainable parameter."""
        self._check_dtype(array.dtype, view)
        name = self.fresh(name)
        self.params[f"arg:{name}"] = np.atleast_1d(array)
        return self.graph.variable(name)

    def state(self, array: Array, name: str) -> Entry:
        """A new auxiliary state (statistics of a BatchNorm)."""
        name = self.fresh(name)
        self.params[f"aux:{name}"] = array
        return Entry(self.graph.variable(name).node, 0, 1)

    def constant(self, array: Array, name: str = "", *, view: NodeView | None = None) -> Entry:
        """An array that is not learnt: written into the graph where it is uniform, else a parameter without a
        gradient."""
        self._check_dtype(array.dtype, view)
        array = np.atleast_1d(array)
        if array.size == 0:
            raise self._refuse(view, "arrays without elements do not exist in MXNet 1")
        small = array.size <= 4096
        key = (array.dtype.str, array.shape, array.tobytes()) if small else ()
        if small and key in self._shared:
            return self._shared[key]
        entry = self._constant(array, name or (f"{view.name}_constant" if view else "constant"), view)
        if small:
            self._shared[key] = entry
        return entry

    def _constant(self, array: Array, name: str, view: NodeView | None) -> Entry:
        first = array.flat[0]
        held = array.dtype.kind in "fb" or abs(int(first)) < 1 << 53
        if held and np.isfinite(first) and (array == first).all():
            return self.op("_full", shape=array.shape, dtype=array.dtype.name, value=float(first))
        if array.dtype.kind == "f" and np.isinf(array).any():
            # A trainer multiplies what it updates by its weight decay, and 0 * inf is no number: infinities
            # are made in the graph, as the logarithm of 0.
            parts = [(np.where(np.isinf(array), 0, array).astype(array.dtype), f"{name}_finite")]
            parts += [((array != s * np.inf).astype(array.dtype), f"{name}_{n}") for s, n in _INFINITIES]
            finite, below, above = (self.constant(a, n, view=view) for a, n in parts)
            lowered = self.op("elemwise_add", finite, self.op("log", below))
            return self.op("elemwise_sub", lowered, self.op("log", above))
        stored = array
        if array.dtype.kind != "f":  # trainers update floating point parameters only
            wide = np.abs(array.astype(object)).max() >= _WHOLE_FLOAT32
            stored = array.astype(np.float64 if wide else np.float32)
            if (stored.astype(object) != array.astype(object)).any():
                raise self._refuse(view, "it uses whole numbers beyond 2^53")
        name = self.fresh(name)
        self.params[f"arg:{name}"] = stored
        self.constants.add(name)
        entry = self.op("BlockGrad", self.graph.variable(name))
        return entry if stored.dtype == array.dtype else self.cast(entry, array.dtype)

    def learnt(self, view: NodeView, index: int) -> Entry:
        """Input `index` of an addition or multiplication: a vector of floats is a learnt bias or scale, all
        else is as `get` gives it."""
        array = self.array(view, index)
        value = view.input(index)
        if (
            array is None
            or value is None
            or (self.known(value) is not None and (value, "") not in self._weights)
        ):
            return self.get(view, index)
        if array.dtype.kind != "f" or array.size < 2 or not (np.abs(array) <= _LARGEST_BIAS).all():
            return self.get(view, index)
        return self.weight(view, index)

    # -- small things many lowerings need --------------------------------------------------------------------

    def lift(self, x: Entry, rank: int, wanted: int) -> Entry:
        """Axes of size 1 in front until the rank is `wanted`, as broadcasting demands."""
        for _ in range(wanted - rank):
            x = self.op("expand_dims", x, axis=0)
        return x

    def reshape(self, x: Entry, shape: Sequence[int]) -> Entry:
        return self.op("Reshape", x, shape=tuple(int(d) for d in shape))

    def transpose(self, x: Entry, axes: Sequence[int]) -> Entry:
        if list(axes) == list(range(len(axes))):
            return x
        return self.op("transpose", x, axes=tuple(int(a) for a in axes))

    def slice_axis(self, x: Entry, axis: int, begin: int, end: int | None) -> Entry:
        return self.op("slice_axis", x, axis=axis, begin=begin, end="None" if end is None else end)

    def per_channel(self, x: Entry, rank: int, axis: int = 1) -> Entry:
        """A vector with axes of size 1 around it, to be broadcast along `axis` of a value of rank `rank`."""
        shape = [1] * rank
        shape[axis] = -1
        return x if rank == 1 else self.reshape(x, shape)

    def through(self, x: Entry, dtype: Any, make: Callable[[Entry], Entry]) -> Entry:
        """`make(x)` computed on bytes if `x` is bool, which few of MXNet's classic operators take."""
        if np.dtype(dtype) != np.bool_:
            return make(x)
        return self.cast(make(self.cast(x, np.uint8)), np.bool_)

    def note(self, text: str) -> None:
        self.notes.setdefault(text)

    def _widened(self, entry: Entry, is_half: bool) -> Entry:
        return self.cast(entry, np.float32) if self._half and is_half else entry

    def _check_dtype(self, dtype: np.dtype[Any], view: NodeView | None) -> None:
        if dtype.name not in DTYPES:
            raise self._refuse(view, f"MXNet 1 has no arrays of {dtype}")

    def _refuse(self, view: NodeView | None, reason: str) -> Exception:
        view = view or self._view
        assert view is not None
        return view.refuse(reason)


def spelt(value: Any) -> str:
    """An attribute as MXNet writes and parses it."""
    if isinstance(value, str):
        return value
    if isinstance(value, bool | np.bool_):
        return "True" if value else "False"
    if isinstance(value, float | np.floating):
        return repr(float(value))
    if isinstance(value, tuple | list):
        inner = ", ".join(spelt(v) for v in value)
        return f"({inner},)" if len(value) == 1 else f"({inner})"
    return str(value)


def table_of(*tables: Mapping[str, Lowering]) -> dict[str, Lowering]:
    """One table of several; an operator in two of them is a mistake."""
    merged: dict[str, Lowering] = {}
    for table in tables:
        twice = merged.keys() & table.keys()
        if twice:
            raise ValueError(f"lowered twice: {sorted(twice)}")
        merged.update(table)
    return merged
