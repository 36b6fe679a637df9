"""What later passes must keep of a weight: its zeros, an N:M pattern, the number of its values.

A pass that makes a weight sparse or clusters it says so on the weight (`hold`); the note is metadata of the
value, so it survives copying and saving. After every step the driver compares the weight as its readers see
it before and after (`recheck`): through DequantizeLinear, so that quantization is judged by the numbers that
it stands for. A pass that may break something says so in its class attribute `breaks`; then the note goes
where it became untrue. Any other pass that breaks it fails.
"""

from __future__ import annotations

import json
from collections.abc import Collection, Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import onnx_ir as ir

from attar.errors import VerifyError
from attar.graph.constants import const_array
from attar.graph.structure import all_nodes

Array = np.ndarray[Any, np.dtype[Any]]
KINDS = ("zeros", "pattern", "values")
_KEY = "attar.holds"
_THROUGH = frozenset({"DequantizeLinear", "Transpose", "Reshape", "Identity", "Cast"})


@dataclass(frozen=True)
class Held:
    """What is to be kept of one weight.

    Attributes:
        zeros: where it is zero it stays zero.
        pattern: (n, m, axis): of each m neighbours along the axis at least n are zero.
        values: an output channel has no more distinct values than it had. What scales channels (folding of
            BatchNormalization, quantization per channel) keeps that.
        axis: the axis of output channels.
    """

    zeros: bool = False
    pattern: tuple[int, int, int] | None = None
    values: bool = False
    axis: int = 0

    @property
    def kinds(self) -> tuple[str, ...]:
        """Those of `KINDS` that are held."""
        return tuple(k for k in KINDS if getattr(self, k))

    def without(self, kinds: Collection[str]) -> Held:
        """The same with some kinds let go."""
        return Held(
            self.zeros and "zeros" not in kinds,
            None if "pattern" in kinds else self.pattern,
            self.values and "values" not in kinds,
            self.axis,
        )


def hold(value: ir.Value, *, zeros: bool = False, pattern: tuple[int, int, int] | None = None,
         values: bool = False, axis: int = 0) -> None:  # fmt: skip
    """Note on the weight `value` what it shall keep, beside what was noted before."""
    old = held(value)
    _write(value, Held(zeros or old.zeros, pattern or old.pattern, values or old.values, axis))


def held(value: ir.Value) -> Held:
    """What is noted on a weight; nothing where the note is missing or cannot be read."""
    try:
        found = json.loads(value.metadata_props.get(_KEY, "{}"))
    except (ValueError, RecursionError):  # no JSON, or nested without end
        return Held()
    found = found if isinstance(found, dict) else {}
    pattern, axis = found.get("pattern"), found.get("axis", 0)
    numbers = [axis] if pattern is None else [axis, *(pattern if isinstance(pattern, list) else [None])]
    if any(type(n) is not int or n < 0 for n in numbers):
        return Held()
    if pattern is not None and (len(pattern) != 3 or not 0 < pattern[0] <= pattern[1]):
        return Held()
    parts = None if pattern is None else (pattern[0], pattern[1], pattern[2])
    return Held(found.get("zeros") is True, parts, found.get("values") is True, axis)


def recheck(before: ir.Model, after: ir.Model, breaks: Collection[str] = ()) -> list[str]:
    """Compare the weights of `before` that hold something with what their readers get in `after`.

    Notes move to the tensors that now carry the weights.

    Args:
        breaks: kinds that the pass in between declares that it may break.

    Returns:
        Sentences on what was let go.

    Raises:
        VerifyError: something held was broken and not declared; names the weight.
    """
    told: list[str] = []
    noted = [v for g in before.graphs() for v in g.initializers.values() if held(v).kinds]
    if not noted:
        return told
    nodes = {n.name: n for n in all_nodes(after)}
    kept = {v.name: v for g in after.graphs() for v in g.initializers.values()}
    for weight in noted:
        want = held(weight)
        found = _found(weight, nodes, kept)
        if found is None:
            told.append(f"{weight.name}: the weight is gone, and with it its {' and '.join(want.kinds)}")
            continue
        carrier, old, now = found
        own = held(carrier)
        broken = [(k, why) for k in want.kinds if (why := _broken(k, want, old, now)) is not None]
        for kind, why in broken:
            if kind not in breaks:
                raise VerifyError(
                    f"{weight.name!r} {why}",
                    hint=f"a pass that may do that declares breaks = ({kind!r},)",
                )
            told.append(f"{weight.name}: {why}")
        left = want.without([k for k, _ in broken])
        # What the pass itself noted stands beside what is left of the old note.
        new = own.without([k for k in want.kinds if getattr(own, k) == getattr(want, k)])
        axis = own.axis if own.kinds else left.axis
        _write(
            carrier,
            Held(left.zeros or new.zeros, new.pattern or left.pattern, left.values or new.values, axis),
        )
    return told


def _write(value: ir.Value, what: Held) -> None:
    if not what.kinds:
        value.metadata_props.pop(_KEY, None)
        return
    facts = {k: getattr(what, k) for k in what.kinds} | {"axis": what.axis}
    value.metadata_props[_KEY] = json.dumps(facts)


def _found(
    weight: ir.Value, nodes: dict[str | None, ir.Node], kept: dict[str | None, ir.Value]
) -> tuple[ir.Value, Array, Array] | None:
    """The initializer that carries the weight now, and the numbers that its readers got and get."""
    for node, place in _readers(weight):
        twin = nodes.get(node.name)
        if twin is None or place >= len(twin.inputs) or twin.op_type != node.op_type:
            continue
        old, new = _seen(node.inputs[place]), _seen(twin.inputs[place])
        if old is not None and new is not None:
            return new[0], old[1], new[1]
    same = kept.get(weight.name)
    if same is not None:
        old, new = _seen(weight), _seen(same)
        if old is not None and new is not None:
            return new[0], old[1], new[1]
    return None


def _readers(value: ir.Value) -> Iterator[tuple[ir.Node, int]]:
    for use in value.uses():
        if use.node.op_type in _THROUGH and use.idx == 0:
            for output in use.node.outputs:
                yield from _readers(output)
        else:
            yield use.node, use.idx


def _seen(value: ir.Value | None) -> tuple[ir.Value, Array] | None:
    """The constant behind `value` and the numbers that it stands for; None if it is not made of one alone."""
    array = const_array(value)
    if value is not None and array is not None:
        return value, array
    node = None if value is None else value.producer()
    if node is None or node.op_type not in _THROUGH:
        return None
    inner = _seen(node.inputs[0])
    if inner is None:
        return None
    carrier, numbers = inner
    if node.op_type == "Transpose":
        order = node.attributes.get("perm")
        return carrier, np.transpose(numbers, None if order is None else order.as_ints())
    if node.op_type == "Reshape":
        shape = const_array(node.inputs[1])
        if shape is None or (shape == 0).any():
            return None
        return carrier, numbers.reshape(tuple(shape))
    if node.op_type == "DequantizeLinear":
        return carrier, dequantized(node, numbers)
    return carrier, numbers


def dequantized(node: ir.Node, codes: Array) -> Array:
    """The numbers, float32, that a DequantizeLinear of constants stands for."""
    scale = const_array(node.inputs[1])
    if scale is None:
        return codes
    zero = const_array(node.inputs[2]) if len(node.inputs) > 2 else None
    axis, block = (node.attributes.get(k) for k in ("axis", "block_size"))
    at = 1 if axis is None else axis.as_int()
    size = 0 if block is None else block.as_int()

    def along(part: Array) -> Array:
        wide = part.astype(np.float32)
        if size:
            return np.repeat(wide, size, axis=at).take(range(codes.shape[at]), axis=at)
        if wide.ndim == 1 and codes.ndim:
            return wide.reshape([-1 if i == at % codes.ndim else 1 for i in range(codes.ndim)])
        return wide

    offset = 0 if zero is None else along(zero)
    return np.asarray((codes.astype(np.float32) - offset) * along(scale))


def _broken(kind: str, want: Held, old: Array, new: Array) -> str | None:
    """What became untrue, in words; None if it holds."""
    if kind == "values":
        was, now = _distinct(old, want.axis), _distinct(_turned(old, new), want.axis)
        if now > was:
            return f"had {was} distinct values an output channel and now has {now}"
        return None
    turned = _turned(old, new)
    if kind == "pattern":
        assert want.pattern is not None
        return None if follows(turned, want.pattern) else f"is no longer {_named(want.pattern)} sparse"
    if turned.shape == old.shape:
        lost = int(np.count_nonzero((old == 0) & (turned != 0)))
        return f"lost {lost} of its {int((old == 0).sum())} zeros" if lost else None
    least, zeros = _least_zeros(old == 0, turned.shape), int((turned == 0).sum())
    return f"had to keep at least {least} zeros and has {zeros}" if zeros < least else None


def follows(array: Array, pattern: tuple[int, int, int]) -> bool:
    """Whether of each m neighbours along the axis at least n are zero."""
    n, m, axis = pattern
    if axis >= array.ndim or array.shape[axis] % m:
        return False
    parts = np.moveaxis(array, axis, -1).reshape(-1, m)
    return bool(((parts == 0).sum(axis=1) >= n).all())


def _named(pattern: tuple[int, int, int]) -> str:
    return f"{pattern[1] - pattern[0]}:{pattern[1]}"


def _turned(old: Array, new: Array) -> Array:
    """`new`, turned as `old` is where it holds the transpose."""
    turned = new.ndim == 2 and new.shape != old.shape and new.shape == old.shape[::-1]
    return new.T if turned else new


def _distinct(array: Array, axis: int) -> int:
    """The largest number of distinct values of an output channel."""
    if not array.size:
        return 0
    rows = np.moveaxis(array, axis, 0) if axis < array.ndim else array[None]
    ordered = np.sort(rows.reshape(len(rows), -1), axis=1)
    return int((np.diff(ordered, axis=1) != 0).sum(axis=1).max(initial=0)) + 1


def _least_zeros(zero: Array, shape: tuple[int, ...]) -> int:
    """A bound from below on the zeros that are left when slices are removed, whichever they are."""
    if len(shape) != zero.ndim or any(n > o for n, o in zip(shape, zero.shape, strict=True)):
        return 0
    removed = 0
    for axis, (now, was) in enumerate(zip(shape, zero.shape, strict=True)):
        counts = zero.sum(axis=tuple(i for i in range(zero.ndim) if i != axis))
        removed += int(np.sort(counts)[now:].sum()) if now < was else 0
    return max(0, int(zero.sum()) - removed)
