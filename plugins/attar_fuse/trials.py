"""Whether a form is faster than what it replaces: both timed in turn, on the values of a typical run."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import onnx_ir as ir

from attar.errors import InputError
from attar.feeds import one_sample, sample_feeds
from attar.graph import all_values, clone, tidy
from attar.lowering import lower
from attar.measure import interleaved
from attar.report import Speed
from attar.rewrite.edit import Array
from attar.specs import input_specs
from attar_fuse.regions import Region

if TYPE_CHECKING:
    from attar.context import Context
    from attar.feeds import Feeds

_PAIRS = 400  # enough for an interval of about a percent where a run takes microseconds
_OTHERS = 2  # further input shapes, the smallest and the largest that the data have
_BATCHES = 8  # how far the data are looked through for them
_ROUNDINGS = 64
"""Outputs agree if they differ by no more than so many roundings of the largest value: sums of some thousand
terms in another order come to about ten."""


@dataclass(frozen=True)
class Verdict:
    """What came of timing one form of a region.

    Attributes:
        speeds: the typical run first, then those on other input shapes.
        difference: largest difference of an output, relative to its largest value.
        problem: why it could not be timed.
    """

    speeds: tuple[Speed, ...] = ()
    difference: float = 0.0
    problem: str = ""

    @property
    def saved(self) -> float:
        """Milliseconds that one run of the typical size gains."""
        return self.speeds[0].before_ms * (1 - self.speeds[0].ratio) if self.speeds else 0.0

    def against(self, gain: float) -> str:
        """Why the form is not taken; empty if it is: faster than chance by `gain`, and on no shape slower."""
        if self.problem:
            return self.problem
        first = self.speeds[0]
        if first.high >= 1 or first.ratio > 1 - gain:
            return f"takes {told(first)} of the time"
        slower = [s for s in self.speeds[1:] if s.low > 1]
        if slower:
            shapes = ", ".join(str(list(s)) for s in slower[0].shapes.values())
            return f"takes {told(first)} of the time, but {told(slower[0])} at {shapes}"
        return ""


def told(speed: Speed) -> str:
    """`0.89 [0.88, 0.91]`."""
    return f"{speed.ratio:.2f} [{speed.low:.2f}, {speed.high:.2f}]"


class Trials:
    """Times regions of one model, each distinct one once.

    Args:
        seconds: how long a form and what it replaces are timed, together.
    """

    def __init__(self, ctx: Context, specs_of: ir.Model, seconds: float) -> None:
        self._ctx, self._seconds = ctx, seconds
        self.runs = typical_runs(specs_of, ctx)
        self._known: dict[tuple[object, ...], Verdict] = ctx.cache.setdefault("fuse.kernels", {})

    def judge(self, model: ir.Model, regions: Sequence[Region], *, timed: bool) -> list[Verdict]:
        """A verdict for each region of `model`; only whether outputs agree unless `timed`."""
        if not regions:
            return []
        names = dict.fromkeys(v.name or "" for r in regions for v in r.inputs)
        sizes: list[dict[str, tuple[int, ...]]] = []
        for feeds in self.runs:
            found = self._values(model, names, feeds, sizes=True)
            sizes.append({n: tuple(int(d) for d in a) for n, a in found.items()})
        place = (self._ctx.target.name, self._ctx.threads, self._seconds, timed)
        keys = [(*place, *(r.key(s) for s in sizes)) for r in regions]
        new = {k: r for k, r in zip(keys, regions, strict=True) if k not in self._known}
        wanted = dict.fromkeys(v.name or "" for r in new.values() for v in r.inputs)
        held = [self._values(model, wanted, feeds) for feeds in self.runs] if new else []
        with self._ctx.progress.task("timing kernels", len(new)) as task:
            for key, region in new.items():
                self._known[key] = self._time(model, region, held, timed=timed)
                task.advance()
        return [self._known[k] for k in keys]

    def whole(self, before: ir.Model, after: ir.Model) -> Speed:
        """The time of the whole model in its new form against the old, as the target will run them."""
        models = [lower(m, self._ctx.target)[0] for m in (before, after)]
        old, new = (self._ctx.runtime.open(m, threads=self._ctx.threads) for m in models)
        seconds, threads = 4 * self._seconds, self._ctx.threads
        return interleaved(old, new, self.runs[0], threads=threads, runs=_PAIRS, seconds=seconds)

    def _values(
        self, model: ir.Model, names: Collection[str], feeds: Feeds, *, sizes: bool = False
    ) -> dict[str, Array]:
        """The values of these names in one run, or their shapes."""
        copy = clone(model)
        own = {v.name: v for v in all_values(copy) if v.name in names}
        outputs = []
        for name in names:
            if sizes:
                node = ir.node("Shape", [own[name]])
                node.outputs[0].type, node.outputs[0].name = ir.TensorType(ir.DataType.INT64), f"{name}/size"
                copy.graph.append(node)
                outputs.append(node.outputs[0])
            elif not own[name].is_graph_input():
                outputs.append(own[name])
        found = {} if sizes else {n: np.asarray(feeds[n]) for n in names if own[n].is_graph_input()}
        if not outputs:
            return found
        copy.graph.outputs.clear()
        copy.graph.outputs.extend(outputs)
        inputs = set(feeds)
        tidy(copy)
        session = self._ctx.runtime.open(copy, threads=self._ctx.threads, optimize=False)
        results = session.run({n: a for n, a in feeds.items() if n in inputs})
        asked = [n for n in names if n not in found]
        return {**found, **dict(zip(asked, results, strict=True))}

    def _time(
        self, model: ir.Model, region: Region, held: Sequence[Mapping[str, Array]], *, timed: bool
    ) -> Verdict:
        threads = self._ctx.threads
        try:
            before = self._ctx.runtime.open(region.before(model), threads=threads)
            after = self._ctx.runtime.open(region.after(model), threads=threads)
        except InputError as error:
            return Verdict(problem=f"cannot be loaded: {error.message}")
        speeds, worst = [], 0.0
        for values in held:
            feeds = {v.name or "": values[v.name or ""] for v in region.inputs}
            try:
                old, new = before.run(feeds), after.run(feeds)
            except InputError as error:
                return Verdict(problem=f"cannot be run: {error.message}")
            for x, y in zip(old, new, strict=True):
                apart, limit = difference(x, y), _ROUNDINGS * _rounding(x)
                if not apart <= limit:
                    return Verdict(problem=f"differs by {apart:.1e}, more than rounding ({limit:.1e})")
                worst = max(worst, apart)
            if timed:
                speeds.append(
                    interleaved(before, after, feeds, threads=threads, runs=_PAIRS, seconds=self._seconds)
                )
        return Verdict(tuple(speeds), worst)


def typical_runs(model: ir.Model, ctx: Context) -> list[Feeds]:
    """Inputs of the typical run, then of runs with the smallest and the largest other shapes of the data."""
    specs = input_specs(model)
    first = ctx.feeds or sample_feeds(specs)
    seen = {_shapes(first): first}
    if ctx.data is not None:
        for count, batch in enumerate(ctx.data):
            if count == _BATCHES:
                break
            feeds = one_sample(batch.inputs, specs)
            seen.setdefault(_shapes(feeds), feeds)
    others = sorted(list(seen.values())[1:], key=lambda f: sum(a.size for a in f.values()))
    return [first, *(others if len(others) <= _OTHERS else [others[0], others[-1]])]


def _shapes(feeds: Feeds) -> tuple[tuple[str, tuple[int, ...]], ...]:
    return tuple(sorted((n, tuple(a.shape)) for n, a in feeds.items()))


def difference(x: Array, y: Array) -> float:
    """Largest difference relative to the largest value; infinite if shape, type or what is finite differ."""
    if x.shape != y.shape or x.dtype != y.dtype:
        return float("inf")
    if x.dtype.kind != "f":
        return 0.0 if np.array_equal(x, y) else float("inf")
    a, b = x.astype(np.float64), y.astype(np.float64)
    same = ~np.isfinite(a) & ((a == b) | (np.isnan(a) & np.isnan(b)))
    a, b = np.where(same, 0.0, a), np.where(same, 0.0, b)
    if not (np.isfinite(a).all() and np.isfinite(b).all()):
        return float("inf")
    apart, reach = float(np.abs(a - b).max(initial=0.0)), float(np.abs(a).max(initial=0.0))
    return apart / reach if reach else (0.0 if apart == 0 else float("inf"))


def _rounding(x: Array) -> float:
    return float(np.finfo(x.dtype).eps) if x.dtype.kind == "f" else 0.0
