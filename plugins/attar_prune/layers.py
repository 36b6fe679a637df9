"""`prune.layers`: whole layers and blocks left out, those first that the outputs miss least."""

from __future__ import annotations

from collections.abc import Callable
from typing import Annotated, Any, ClassVar

import onnx_ir as ir

from attar import graph
from attar.context import Context
from attar.errors import Refused
from attar.gram import layer_input
from attar.passes import Choice, Doc, Pass, Range
from attar.patterns import check_patterns, matches
from attar_prune.blocks import Block, find_blocks, forget, leave_out
from attar_prune.effect import Outputs
from attar_prune.refit import drop_zero_biases, give_biases, in_order

_UNITS = {"layers": "blocks", "macs": "multiply-accumulates", "size": "bytes of weights", "latency": "time"}


class Layers(Pass, name="prune.layers"):
    """Leave out whole blocks: residual branches, attention and feed-forward parts, layers of a chain that
    keep the shape.

    What the outputs lose without a block is measured on calibration data, again after each block that goes.
    The layers behind are then refitted by least squares, so that they do what was done before.
    """

    aim: ClassVar[Any] = "speed"
    needs = ("calibration",)

    ratio: Annotated[float, Range(0.0, 0.95), Doc("share that goes of what `by` names")] = 0.2
    by: Annotated[
        str,
        Choice("layers", "macs", "size", "latency"),
        Doc("what is reduced: the number of blocks, multiply-accumulates, bytes, or measured time"),
    ] = "macs"
    count: Annotated[int | None, Range(1), Doc("instead of `ratio`: so many blocks go")] = None
    keep: Annotated[tuple[str, ...], Doc("patterns of nodes or values; blocks with one of them stay")] = ()
    most: Annotated[
        float | None, Range(0.0), Doc("leave no block out that takes the outputs' squared error, before the "
        "refit, above this share of their variance"),
    ] = None  # fmt: skip
    refit: Annotated[bool, Doc("refit what follows by least squares")] = True

    def apply(self, model: ir.Model, ctx: Context) -> None:
        ctx.calibration  # noqa: B018  (raises with the way out)
        given = give_biases(model) if self.refit else []
        blocks = self._blocks(model, ctx)
        if not blocks:
            raise Refused(
                "no block can be left out: none with weights lies between two values of one type and shape"
            )
        original = graph.clone(model)
        chosen, error = self._choose(model, blocks, ctx)
        if not chosen:
            raise Refused(
                "no block is small enough to go, or the outputs would change more than `most` allows"
            )
        copies = [leave_out(model, block) for block in chosen]
        graph.tidy(model)
        count = 0
        if self.refit:
            count = in_order(model, original, _behind(model, copies), lambda _: (None, None), ctx)
        left = list(model.graph)
        drop_zero_biases([n for n in given if n in left])
        forget([c for c in copies if c in left])
        graph.tidy(model)
        graph.refresh_shapes(model)
        for block in chosen:
            ctx.note(f"left out: {block.name} ({len(block.layers)} layers)")
        after = Outputs(original, ctx).error(model)
        told = f", {count} layers behind refitted by least squares" if count else ""
        ctx.note(
            f"{len(chosen)} of {len(blocks)} blocks left out{told}: the outputs' error is {after:.3g} of "
            f"their variance (without refit {error:.3g})"
        )

    def alternatives(self) -> tuple[Pass, ...]:
        """Fewer blocks."""
        options = {k: v for k, v in self.to_dict().items() if k != "name"}
        if self.count is not None:
            fewer = sorted({max(1, round(self.count * f)) for f in (0.75, 0.5)} - {self.count}, reverse=True)
            return tuple(type(self)(**{**options, "count": n}) for n in fewer)
        if self.ratio <= 0.05:
            return ()
        return tuple(type(self)(**{**options, "ratio": round(self.ratio * f, 3)}) for f in (0.6, 0.3))

    # -- which -----------------------------------------------------------------------------------------------

    def _blocks(self, model: ir.Model, ctx: Context) -> list[Block]:
        blocks = find_blocks(model, ctx.registry.ops)
        names = {b: (*b.nodes, b.out) for b in blocks}
        known = [n for found in names.values() for n in found]
        check_patterns(self.keep, known, option=f"{self.name}: option 'keep'", of="node in a block")
        nodes = {n.name: n for n in model.graph}
        out = []
        for block in blocks:
            held = [p for p in self.keep if matches(names[block], (p,))]
            if held:
                ctx.skip(nodes[block.layers[0]], f"its block stays: {held[0]!r} is to be kept")
            else:
                out.append(block)
        inside = {name for block in blocks for name in block.layers}
        for node in model.graph:
            if layer_input(node) is not None and node.name not in inside:
                ctx.skip(node, "it is in no block that could be left out: shapes before and behind differ")
        return out

    def _choose(self, model: ir.Model, blocks: list[Block], ctx: Context) -> tuple[list[Block], float]:
        """Blocks in the order in which they go, and the error of the outputs without them.

        Errors grow as blocks go, so one measured earlier is a lower bound: only the best of the queue is
        measured again.
        """
        outputs = Outputs(model, ctx)
        chosen: list[Block] = []
        current, reached = graph.clone(model), 0.0
        enough = self._enough(model, blocks, ctx)
        queue: list[tuple[float, float, int, Block]] = []
        with ctx.progress.task("measuring what blocks do", len(blocks)) as task:
            for block in blocks:
                error = outputs.error(_without(current, block))
                queue.append((error / self._gain(block), error, 0, block))
                task.advance()
        while queue and not enough(chosen, current):
            queue.sort(key=lambda q: q[0])
            price, error, seen, block = queue.pop(0)
            if not _there(current, block):
                continue  # what it would leave out went with another one
            if seen < len(chosen):
                error = outputs.error(_without(current, block))
                price = max(0.0, error - reached) / self._gain(block)
                queue.append((price, error, len(chosen), block))
                if price > min((q[0] for q in queue[:-1]), default=price):
                    continue
                queue.pop()
            if error == float("inf") or (self.most is not None and error > self.most):
                continue
            current, reached = _without(current, block), error
            chosen.append(block)
        if not enough(chosen, current):
            ctx.note(f"no more blocks can go, though {_UNITS[self.by]} are above the aim")
        return chosen, reached

    def _gain(self, block: Block) -> float:
        if self.count is not None or self.by == "layers":
            return 1.0
        return float(max(1, block.bytes if self.by == "size" else block.macs))

    def _enough(
        self, model: ir.Model, blocks: list[Block], ctx: Context
    ) -> Callable[[list[Block], ir.Model], bool]:
        """Whether what is chosen reaches the aim."""
        if self.count is not None or self.by == "layers":
            number = self.count if self.count is not None else max(1, round(self.ratio * len(blocks)))
            return lambda chosen, _: len(chosen) >= number
        if self.by == "latency":
            measure = _clock(ctx)
            aim = (1 - self.ratio) * measure(model)
            return lambda chosen, current: bool(self.ratio == 0 or (chosen and measure(current) <= aim))
        cost = graph.byte_size if self.by == "size" else _macs
        whole = cost(model)
        return lambda _, current: cost(current) <= (1 - self.ratio) * whole


def _without(model: ir.Model, block: Block) -> ir.Model:
    copy = graph.clone(model)
    leave_out(copy, block)
    graph.tidy(copy)
    return copy


def _there(model: ir.Model, block: Block) -> bool:
    """Whether both ends of a block are still in the model, and its layers."""
    values = {v.name for v in model.graph.inputs} | {o.name for n in model.graph for o in n.outputs}
    nodes = {n.name for n in model.graph}
    return block.out in values and block.kept in values and any(name in nodes for name in block.layers)


def _macs(model: ir.Model) -> int:
    from attar.ops import model_macs

    return model_macs(model)


def _clock(ctx: Context) -> Callable[[ir.Model], float]:
    """Milliseconds of a model, each content measured once."""
    from attar.feeds import sample_feeds
    from attar.measure import latency
    from attar.specs import input_specs

    known: dict[str, float] = {}

    def measure(model: ir.Model) -> float:
        key = graph.fingerprint(model)
        if key not in known:
            session = ctx.runtime.open(model, threads=ctx.threads)
            feeds = ctx.feeds or sample_feeds(input_specs(model))
            known[key] = min(latency(session, feeds, runs=15) for _ in range(2))
        return known[key]

    return measure


def _behind(model: ir.Model, copies: list[ir.Node]) -> list[ir.Node]:
    """Layers with weights of their own that see a change, in order."""
    found = []
    reached = {out for node in copies for out in node.outputs}
    for node in model.graph:
        if not any(v in reached for v in node.inputs):
            continue
        reached.update(node.outputs)
        item, weight = layer_input(node), node.inputs[1] if len(node.inputs) > 1 else None
        if item is None or weight is None or not weight.is_initializer() or node.inputs[0] not in reached:
            continue
        if len(weight.uses()) == 1 and not weight.is_graph_output() and (item.group == 1 or item.depth <= 25):
            found.append(node)
    return found
