"""`prune.channels`: whole channels removed, least important first, and the rest refitted."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Annotated, Any, ClassVar

import onnx_ir as ir

from attar import graph
from attar.context import Context
from attar.errors import InputError, RecipeError, Refused, did_you_mean
from attar.passes import Choice, Doc, Pass, Range
from attar.patterns import matches
from attar_prune.channels_plan import Costs, Floats, Move, mask, moves, until
from attar_prune.groups import Bools, Group, Grouping
from attar_prune.importance import BUILTIN
from attar_prune.prepare import prepare
from attar_prune.refit import drop_zero_biases, give_biases, refit
from attar_prune.remove import remove, silence


class Channels(Pass, name="prune.channels"):
    """Remove whole channels, hidden units and attention heads, least important first.

    What must go together is found by following every axis through the graph, so residual sums, depthwise and
    grouped convolutions, concatenation, gates and reshapes keep their shapes. With calibration data the
    layers behind are then refitted by least squares. What cannot be pruned is listed with the reason.
    """

    aim: ClassVar[Any] = "speed"

    ratio: Annotated[float, Range(0.0, 0.95), Doc("share that is removed of what `by` names")] = 0.3
    by: Annotated[
        str,
        Choice("channels", "macs", "size", "latency"),
        Doc("what is reduced: channels, multiply-accumulates, bytes, or measured time on the target"),
    ] = "channels"
    importance: Annotated[
        str | None,
        Doc(
            "what tells which channels matter: l1, l2, bn, geometric_median, activation, gram, random or one "
            "that a plugin brings; unless given, gram with calibration data and l2 without"
        ),
    ] = None
    scope: Annotated[
        str, Choice("local", "global"), Doc("equal shares of all groups, or ranked over the whole network")
    ] = "local"
    most: Annotated[float, Range(0.0, 1.0, open_high=True), Doc("largest share of one group that may go")] = (
        0.75
    )
    limits: Annotated[
        tuple[str, ...], Doc("'pattern=share' of node names: largest share of their groups that may go")
    ] = ()
    keep: Annotated[
        tuple[str, ...], Doc("patterns of node or weight names whose channels all stay, such as 'head*'")
    ] = ()
    block: Annotated[
        int | None,
        Range(1, 1024),
        Doc("widths stay multiples of this; unless given, of the block of the target's kernels"),
    ] = None
    refit: Annotated[
        bool | None, Doc("refit by least squares; unless given, where there is calibration data")
    ] = None
    steps: Annotated[
        int, Range(1, 100), Doc("go there in so many steps, judging and refitting anew after each")
    ] = 1

    def apply(self, model: ir.Model, ctx: Context) -> None:
        if self.refit:
            ctx.calibration  # noqa: B018  (raises with the way out)
        limits = [_limit(text) for text in self.limits]
        prepare(model, ctx)
        wanted = ctx.data is not None if self.refit is None else self.refit
        given = give_biases(model) if wanted else []
        first, done = None, False
        for step in range(1, self.steps + 1):
            grouping = Grouping(model, ctx.registry.ops, block=self.block or ctx.target.channel_block)
            now = self._amount(grouping, ctx)
            first = now if first is None else first
            # What is left of the original after this step, as a share of what is left now.
            left = (1 - self.ratio) ** (step / self.steps) * first / max(now, 1e-30)
            share, last = max(0.0, 1 - left), step == self.steps
            done |= self._step(grouping, ctx, share, limits, wanted=wanted, last=last, done=done)
        drop_zero_biases([n for n in given if n.graph is not None])

    def _amount(self, grouping: Grouping, ctx: Context) -> float:
        """How much there is of what `by` names; in one step nobody needs to know."""
        if self.steps == 1:
            return 1.0
        if self.by == "channels":
            return float(sum(g.size for g in grouping.groups))
        if self.by == "latency":
            return float(self._latency(grouping, [], ctx)(0))
        costs = Costs(grouping, ctx.registry.ops)
        return (costs.macs if self.by == "macs" else costs.size)(grouping.nothing())

    def _step(
        self,
        grouping: Grouping,
        ctx: Context,
        ratio: float,
        limits: Sequence[tuple[str, float]],
        *,
        wanted: bool,
        last: bool,
        done: bool,
    ) -> bool:
        """Remove the share `ratio` of what there is now; whether there was anything to remove."""
        model, rules = grouping.model, ctx.registry.ops
        skip = ctx.skip if last else _unsaid
        for node, reason in grouping.pinned.items():
            skip(node, f"its output channels stay: {reason}")
        groups = [g for g in grouping.groups if not self._kept(g, skip)]
        if not groups:
            raise Refused("no channel of this model can be removed")
        scores = self._scores(groups, model, ctx)
        costs = Costs(grouping, rules)
        most = [min([self.most, *(share for p, share in limits if _matches(g, p))]) for g in groups]
        most = [1 - (1 - share) ** (1 / self.steps) for share in most] if self.steps > 1 else most
        possible = moves(
            groups, scores, limits=most, whole=self.scope == "global", gain=self._gain(grouping, costs)
        )
        for group in groups:
            if not any(move.group is group for move in possible):
                skip(
                    group.makers()[0].node,
                    f"its {group.size} channels (or heads) cannot be reduced within the limits in steps of "
                    f"{group.step}",
                )
        total = sum(g.size for g in groups)
        chosen = self._choose(possible, grouping, costs, ctx, ratio=ratio, total=total)
        if not chosen:
            if done or not last:
                return False
            raise Refused("no whole block of channels is small enough to go: lower `block` or raise `ratio`")
        gone = mask(grouping, chosen)
        before = costs.macs(grouping.nothing()), costs.size(grouping.nothing())
        after = costs.macs(gone), costs.size(gone)
        if wanted:
            self._compensate(grouping, gone, ctx)
        remove(grouping, gone)
        units = sum(len(move.units) for move in chosen)
        ctx.note(
            f"{units} of {total} channels removed in "
            f"{len({id(m.group) for m in chosen})} of {len(groups)} groups: "
            f"{1 - after[0] / max(1.0, before[0]):.1%} fewer multiply-accumulates, "
            f"{1 - after[1] / max(1.0, before[1]):.1%} fewer bytes"
        )
        return True

    # -- steps -----------------------------------------------------------------------------------------------

    def _kept(self, group: Group, skip: Callable[[ir.Node, str], None]) -> bool:
        for pattern in self.keep:
            if _matches(group, pattern):
                skip(group.makers()[0].node, f"its channels stay: {pattern!r} is to be kept")
                return True
        return False

    def _scores(self, groups: Sequence[Group], model: ir.Model, ctx: Context) -> list[Floats]:
        name = self.importance or ("gram" if ctx.data is not None else "l2")
        known = {**BUILTIN, **ctx.registry.importances}
        if name not in known:
            raise RecipeError(f"{self.name}: unknown importance {name!r}", hint=did_you_mean(name, known))
        scores = known[name](groups, model, ctx)
        for group, score in zip(groups, scores, strict=True):
            if len(score) != group.size:
                raise InputError(
                    f"importance {name!r} gave {len(score)} scores for {group.size} units of {group.name!r}"
                )
        return list(scores)

    def _gain(self, grouping: Grouping, costs: Costs) -> Any:
        """What a unit of a group saves, of what is to be reduced."""
        measure = costs.size if self.by == "size" else costs.macs

        def gain(group: Group) -> float:
            if self.by == "channels":
                return 1.0
            gone = grouping.nothing()
            gone[group.labels[0]] = True
            whole = measure(grouping.nothing())
            return (whole - measure(gone)) / max(whole, 1.0)

        return gain

    def _choose(
        self,
        possible: list[Move],
        grouping: Grouping,
        costs: Costs,
        ctx: Context,
        *,
        ratio: float,
        total: int,
    ) -> list[Move]:
        if self.by == "channels":
            if self.scope == "local":
                return [m for m in possible if m.priority <= ratio]
            wanted, taken, count = ratio * total, 0, 0
            for move in possible:
                if taken + len(move.units) / 2 > wanted:
                    break
                taken += len(move.units)
                count += 1
            return possible[:count]
        if self.by == "latency":
            measure = self._latency(grouping, possible, ctx)
        else:
            cost = costs.macs if self.by == "macs" else costs.size

            def measure(count: int) -> float:
                return cost(mask(grouping, possible[:count]))

        aim = (1 - ratio) * measure(0)
        count = until(len(possible), lambda n: measure(n) <= aim) if ratio else 0
        if count == len(possible) and measure(count) > aim:
            reached = 1 - measure(count) / measure(0)
            ctx.note(f"the limits allow no more than {reached:.1%} less {self.by}")
        return possible[:count]

    def _latency(self, grouping: Grouping, possible: list[Move], ctx: Context) -> Any:
        """Milliseconds of the model after so many moves, measured."""
        from attar.feeds import sample_feeds
        from attar.measure import latency
        from attar.specs import input_specs

        model = grouping.model
        feeds = ctx.feeds or sample_feeds(input_specs(model))
        block = self.block or ctx.target.channel_block
        known: dict[int, float] = {}

        def measure(count: int) -> float:
            if count not in known:
                copy = graph.clone(model)
                if count:
                    twin = Grouping(copy, ctx.registry.ops, block=block)
                    remove(twin, mask(grouping, possible[:count]))
                    graph.tidy(copy)
                session = ctx.runtime.open(copy, threads=ctx.threads)
                known[count] = min(latency(session, feeds, runs=15) for _ in range(2))
            return known[count]

        return measure

    def _compensate(self, grouping: Grouping, gone: Bools, ctx: Context) -> None:
        original = graph.clone(grouping.model)
        silence(grouping, gone)
        count = refit(grouping, original, gone, ctx)
        if count:
            ctx.note(f"{count} layers refitted by least squares on the calibration data")


def _unsaid(node: ir.Node, reason: str) -> None:
    """What only a later step tells."""


def _matches(group: Group, pattern: str) -> bool:
    names = {use.node.name or "" for use in group.makers()} | {
        use.part.value.name or "" for use in group.uses
    }
    return matches(names, (pattern,))


def _limit(text: str) -> tuple[str, float]:
    pattern, sign, share = text.rpartition("=")
    try:
        value = float(share)
    except ValueError:
        value = -1.0
    if not sign or not 0 <= value < 1:
        raise RecipeError(f"prune.channels: limits = {text!r} is not 'pattern=share' with a share below 1")
    return pattern, value
