"""The loops of TensorFlow 1: Enter, Merge, Switch, NextIteration and Exit around one LoopCond, taken as one
loop.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from attar.errors import ConversionError
from attar_tensorflow.reading.loops import Loop

if TYPE_CHECKING:
    from attar_tensorflow.reading.lifter import Lifter

_ENTER, _EXIT, _SWITCH = ("Enter", "RefEnter"), ("Exit", "RefExit"), ("Switch", "RefSwitch")
Key = tuple[str, int]


class Frames:
    """The loops of one graph."""

    def __init__(self, graph: Any) -> None:
        self._by_exit: dict[str, Frame] = {}
        operations = graph.get_operations()
        exits = [o for o in operations if o.type in _EXIT]
        if not exits:
            return
        frames: dict[str, Frame] = {}
        for found in exits:
            switch = found.inputs[0].op
            if switch.type not in _SWITCH:
                raise ConversionError(f"{found.name!r} ends a loop in a way that is not known")
            cond = switch.inputs[1].op
            frame = frames.setdefault(cond.name, Frame(cond))
            frame.exits[found.name] = switch.name
            self._by_exit[found.name] = frame
        enters = [o for o in operations if o.type in _ENTER]
        for frame in frames.values():
            frame.complete(operations, enters)

    def ending_in(self, operation: Any) -> Frame | None:
        """The loop that an Exit ends."""
        return self._by_exit.get(operation.name) if operation.type in _EXIT else None

    def inputs_of(self, operation: Any) -> Sequence[Any]:
        """What an operation needs; for the end of a loop, what enters the loop."""
        frame = self.ending_in(operation)
        return operation.inputs if frame is None else frame.needs


class Frame:
    """One loop.

    Attributes:
        exits: names of its Exits -> names of the Switches that they follow.
        needs: the tensors that enter it.
    """

    def __init__(self, cond: Any) -> None:
        self.cond = cond
        self.exits: dict[str, str] = {}
        self.needs: list[Any] = []
        self._switches: list[Any] = []
        self._starts: list[Any] = []
        self._nexts: list[Any] = []
        self._fixed: dict[Key, Any] = {}

    def complete(self, operations: Sequence[Any], enters: Sequence[Any]) -> None:
        """Find the loop variables, and what the loop sees from outside."""
        names = set()
        for switch in operations:
            if switch.type not in _SWITCH or switch.inputs[1].op is not self.cond:
                continue
            merge = switch.inputs[0].op
            enter = next((t.op for t in merge.inputs if t.op.type in _ENTER), None)
            following = next(
                (t.op for t in merge.inputs if t.op.type in ("NextIteration", "RefNextIteration")), None
            )
            if enter is None or following is None:
                raise ConversionError(f"the loop variable {merge.name!r} has no start or no next value")
            names.add(enter.get_attr("frame_name"))
            self._switches.append(switch)
            self._starts.append(enter.inputs[0])
            self._nexts.append(following.inputs[0])
        for enter in enters:
            if enter.get_attr("frame_name") in names and enter.get_attr("is_constant"):
                self._fixed[enter.name, 0] = enter.inputs[0]
        self.needs = [*self._starts, *self._fixed.values()]

    def lift(self, ctx: Lifter, env: Mapping[Key, Any]) -> dict[Key, Any]:
        """Write the loop. Returns what its Exits give."""
        graph = self.cond.graph
        fixed = {key: env[t.op.name, t.value_index] for key, t in self._fixed.items()}
        merges = [(s.inputs[0].op.name, 0) for s in self._switches]

        def given(values: Sequence[Any]) -> dict[Key, Any]:
            inner = dict(fixed)
            for switch, merge, value in zip(self._switches, merges, values, strict=True):
                inner[switch.name, 1] = inner[merge] = value
            return inner

        loop = Loop(
            name=self.cond.name,
            start=[env[t.op.name, t.value_index] for t in self._starts],
            shapes=[_shape(s.outputs[1]) for s in self._switches],
            invariant=[self._passes(s, n) for s, n in zip(self._switches, self._nexts, strict=True)],
            cond=lambda values: ctx.run(graph, given(values), [self.cond.inputs[0]])[0],
            body=lambda values: ctx.run(graph, given(values), self._nexts),
            outside=list(fixed.values()),
        )
        ends = dict(zip([s.name for s in self._switches], loop.lift(ctx), strict=True))
        return {(name, 0): ends[switch] for name, switch in self.exits.items()}

    @staticmethod
    def _passes(switch: Any, following: Any) -> bool:
        while following.op.type == "Identity":
            following = following.op.inputs[0]
        return following.op is switch and following.value_index == 1


def _shape(tensor: Any) -> tuple[int | None, ...] | None:
    return None if tensor.shape.rank is None else tuple(tensor.shape.as_list())
