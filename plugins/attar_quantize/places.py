"""Where weights stand: which constants are weights, and along which axes their channels and blocks lie."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, replace

import numpy as np
import onnx_ir as ir

from attar import graph
from attar.context import Context
from attar_quantize.scheme import QType

# Operator -> (position of a weight, axis of its output channels, axis that products sum over or, for tables,
# along which a row lies). Axes count from the front where the rank varies at the back, and the reverse.
OPERATORS: Mapping[str, tuple[tuple[int, ...], int, int]] = {
    "MatMul": ((1,), -1, -2),
    "Gemm": ((1,), -1, -2),
    "Gather": ((0,), 0, -1),
    "Conv": ((1,), 0, 1),
    "ConvTranspose": ((1,), 1, 0),
    "LSTM": ((1, 2), 1, 2),
    "GRU": ((1, 2), 1, 2),
    "RNN": ((1, 2), 1, 2),
}
_MOVES = frozenset(["Transpose", "Reshape", "Identity", "Squeeze", "Unsqueeze", "Flatten", "Slice", "Split"])


@dataclass(frozen=True, eq=False)
class Place:
    """A constant that operators use as their weight.

    Attributes:
        weight: the initializer.
        users: the operators.
        channel_axis, block_axis: of the weight as it will be stored.
        transposed: it will be stored transposed, and its users changed: kernels want [K, N].
        rows: rows that a MatMul or Gemm multiplies it with in a typical run; None: not known, or another
            operator.
        why: why it must be left alone; empty if it need not.
    """

    weight: ir.Value
    users: tuple[ir.Node, ...]
    channel_axis: int
    block_axis: int
    transposed: bool = False
    rows: int | None = None
    why: str = ""

    @property
    def shape(self) -> tuple[int, ...]:
        assert self.weight.const_value is not None
        shape = tuple(self.weight.const_value.shape.numpy())
        return shape[::-1] if self.transposed else shape

    @property
    def names(self) -> tuple[str, ...]:
        """Names that overrides may match: the weight's, its users', and what they make."""
        made = [v.name for n in self.users for v in n.outputs if v.name]
        return tuple(dict.fromkeys([self.weight.name or "?", *(n.name for n in self.users if n.name), *made]))

    @property
    def operators(self) -> frozenset[str]:
        return frozenset(n.op_type for n in self.users)

    @property
    def bytes(self) -> int:
        return 4 * math.prod(self.shape)

    def bytes_as(self, qtype: QType) -> int:
        """What codes, scales and zero points will take."""
        axis = self.block_axis if qtype.block else self.channel_axis
        size = self.shape[axis]
        scales = math.prod(self.shape) // size * -(-size // qtype.block) if qtype.block else size
        each = 4 if qtype.symmetric else 4 + qtype.stored.bitwidth / 8
        return int(math.prod(self.shape) * qtype.stored.bitwidth / 8 + scales * each)

    def fitted(self, qtype: QType) -> QType:
        """`qtype` with a block only where blocks fit: in an axis that is at least twice as long."""
        if qtype.block and self.shape[self.block_axis] < 2 * qtype.block:
            return replace(qtype, block=0)
        return qtype


def bits_of(name: str) -> int:
    return QType.of(name).bits


def find_places(model: ir.Model, operators: frozenset[str], ctx: Context) -> list[Place]:
    """The weights of `operators`, in order of use, those included that must be left alone."""
    # Not ctx.shapes, which keeps them by the content of the model: to read all weights costs a second a GB.
    given = {} if ctx.feeds is None else {name: array.shape for name, array in ctx.feeds.items()}
    shapes = graph.concrete_shapes(model, given)
    found: dict[ir.Value, None] = {}
    for node in graph.all_nodes(model):
        if node.domain in ("", "ai.onnx") and node.op_type in operators:
            for position in OPERATORS[node.op_type][0]:
                value = node.inputs[position] if position < len(node.inputs) else None
                if value is not None and value.is_initializer() and value.const_value is not None:
                    found[value] = None
    return [_place(value, operators, shapes) for value in found]


def _place(value: ir.Value, operators: frozenset[str], shapes: Mapping[str, tuple[int, ...]]) -> Place:
    tensor = value.const_value
    assert tensor is not None
    rank = len(tensor.shape)
    uses = [(user, position) for user, position in value.uses()]
    users = tuple(dict.fromkeys(user for user, _ in uses))
    main = [(u, p) for u, p in uses if u.op_type in operators and p in OPERATORS[u.op_type][0]]
    kinds = {OPERATORS[u.op_type][1:] for u, _ in main}
    channel, block = next(iter(kinds))
    place = Place(value, users, channel % max(rank, 1), block % max(rank, 1))
    why = _problem(value, tensor, rank, uses, main)
    if why:
        return replace(place, why=why)
    if all(u.op_type == "Gemm" for u in users):
        flags = {_flag(u, "transB") for u in users}
        if flags == {1}:
            place = replace(place, transposed=True)
    elif any(u.op_type == "Gemm" and _flag(u, "transB") for u in users):
        place = replace(place, channel_axis=0, block_axis=1)
    if place.operators <= {"MatMul", "Gemm"} and rank == 2:
        seen = [shapes.get(u.inputs[0].name or "") for u in users if u.inputs[0] is not None]
        if seen and all(s for s in seen):
            place = replace(place, rows=max(math.prod(s[:-1]) for s in seen if s))
    return place


def _problem(
    value: ir.Value,
    tensor: ir.TensorProtocol,
    rank: int,
    uses: list[tuple[ir.Node, int]],
    main: list[tuple[ir.Node, int]],
) -> str:
    if tensor.dtype != ir.DataType.FLOAT:
        return f"is {tensor.dtype}; weights are quantized from float32"
    if rank < 2:
        return "is a vector"
    if value.is_graph_input() or value.is_graph_output():
        return "is an input or output of the model"
    for user, position in uses:
        if (user, position) not in main and user.op_type not in _MOVES:
            return f"is also used by {user.op_type} {user.name!r}, which is not among the operators"
    if any(u.op_type == "Gather" and _flag(u, "axis") % rank for u, _ in main):
        return "Gather picks along an axis that is not the first"
    if any(u.op_type == "Gemm" and (_flag(u, "transA")) for u, _ in main):
        return "transA is set"
    with graph.borrow(tensor) as array:
        if not array.size:
            return "is empty"
        pieces = np.array_split(array.reshape(-1), 1 + (array.size >> 18))  # no mask of the whole
        finite = all(bool(np.isfinite(piece).all()) for piece in pieces)
    return "" if finite else "has NaN or infinite elements"


def _flag(node: ir.Node, name: str) -> int:
    attribute = node.attributes.get(name)
    return 0 if attribute is None else int(attribute.value)
