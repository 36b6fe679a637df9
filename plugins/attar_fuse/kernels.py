"""`fuse.kernels`: the forms that the target's runtime computes faster, by measurement."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Annotated, Literal

import onnx_ir as ir

from attar.errors import InputError, RecipeError, Refused, did_you_mean
from attar.passes import Doc, Pass, Range

if TYPE_CHECKING:
    from attar.context import Context
    from attar_fuse.regions import Region
    from attar_fuse.sites import Finder, Site
    from attar_fuse.trials import Trials, Verdict


class Kernels(Pass, name="fuse.kernels"):
    """Write attention, normalisation, activations and layers in the form that the runtime computes fastest.

    Every distinct place is cut out and timed in both forms on what a typical run computes there; the new form
    is taken where it is faster beyond chance and its outputs agree up to rounding.
    """

    requires = ("fuse.inference",)
    aim = "speed"
    tolerance = 1e-4

    contrib: Annotated[
        bool, Doc("also operators that ONNX Runtime alone knows; no other tool reads the result")
    ] = False
    plan: Annotated[
        Literal["fastest", "everything"],
        Doc("fastest: what measuring shows to be faster; everything: wherever outputs agree, untimed"),
    ] = "fastest"
    patterns: Annotated[
        tuple[str, ...],
        Doc("what to look for: attention, rms, norm, mish, linear, conv, contrib; empty: all of it"),
    ] = ()
    gain: Annotated[float, Range(0.0, 0.9), Doc("share of its time that a form must save at least")] = 0.02
    seconds: Annotated[
        float,
        Range(0.0, 60.0, open_low=True),
        Doc("how long a form and what it replaces are timed, together"),
    ] = 1.0
    raise_opset: Annotated[
        bool, Doc("raise the opset where an operator needs it: 23 for Attention and RMSNormalization")
    ] = True

    def apply(self, model: ir.Model, ctx: Context) -> None:
        from attar_fuse.trials import Trials

        self._check(ctx)
        finders = self._finders()
        try:
            self._act(model, ctx, finders, Trials(ctx, model, self.seconds))
        except InputError as error:  # of the runtime, or of inputs that cannot be made up
            raise Refused(
                f"the model cannot be run on the inputs at hand: {error.message}", hint=error.hint
            ) from error

    def _act(self, model: ir.Model, ctx: Context, finders: Sequence[Finder], trials: Trials) -> None:
        opsets = (True, False) if self.raise_opset else (False,)
        slower, apart = "", list[str]()
        start = (len(ctx.step.changes), len(ctx.step.skipped))
        for newer in opsets:
            del ctx.step.skipped[start[1] :]
            copy = self._rewritten(model, ctx, finders, trials, newer=newer)
            if copy is None:
                break
            slower = self._whole(model, copy, ctx, trials)
            if not slower:
                _adopt(model, copy)
                return
            apart = ctx.step.changes[start[0] :]
            del ctx.step.changes[start[0] :]
            if copy.opset_imports[""] == model.opset_imports[""]:
                break
        if slower:
            raise Refused(
                f"the parts were faster, but the whole model {slower} of its time",
                nodes=[("cut out", line) for line in apart if "written as" in line],
            )
        if ctx.step.skipped:
            raise Refused("of the patterns found, no other form is faster; the report has the figures")
        raise Refused("none of the patterns is in the model: " + ", ".join(f.about for f in finders))

    def _check(self, ctx: Context) -> None:
        if self.contrib and (ctx.target.runtime != "onnxruntime" or ctx.target.elsewhere):
            raise Refused(
                f"contrib: operators of ONNX Runtime's own cannot run on the target {ctx.target.name}",
                hint="leave contrib out",
            )
        if self.plan == "fastest" and ctx.target.elsewhere:
            raise Refused(f"times measured here say nothing of the target {ctx.target.name}")

    def _finders(self) -> list[Finder]:
        from attar_fuse import attention, forms, scripted

        known = {f.name: f for f in (attention.FINDER, *forms.FINDERS, scripted.FINDER)}
        for name in self.patterns:
            if name not in known:
                raise RecipeError(
                    f"{self.name}: option 'patterns' = {name!r} is none of {', '.join(known)}",
                    hint=did_you_mean(name, known),
                )
        chosen = [f for n, f in known.items() if n in self.patterns or not self.patterns]
        return chosen if self.contrib else [f for f in chosen if f.name not in ("conv", "contrib")]

    def _rewritten(
        self, model: ir.Model, ctx: Context, finders: Sequence[Finder], trials: Trials, *, newer: bool
    ) -> ir.Model | None:
        """A copy of `model` with the forms that are worth it; None if there are none."""
        from attar.graph import clone, refresh_shapes, tidy, to_opset
        from attar_fuse.regions import apply, intact

        copy, acted = clone(model), False
        limit = min(ctx.target.max_opset, _reachable(model)) if newer else model.opset_imports[""]
        for finder in finders:
            sites = list(finder.find(copy))
            pairs = self._possible(sites, copy, ctx, limit)
            verdicts = trials.judge(copy, [r for _, r in pairs], timed=self.plan == "fastest")
            chosen, done = self._chosen(pairs, verdicts, ctx), Counter[str]()
            needed = max((r.form.opset for r, _ in chosen), default=0)
            if needed > copy.opset_imports[""]:
                ctx.note(f"opset {copy.opset_imports['']} -> {needed}")
                to_opset(copy, needed)
                chosen = list(_again(finder, copy, chosen))
            replaced: dict[ir.Value, ir.Value] = {}
            for region, verdict in chosen:
                if not intact(region):
                    continue
                apply(region, copy, replaced)
                done[_line(region, verdict)] += 1
            for line, count in done.items():
                ctx.note(f"{count} {line}")
            if done:
                acted = True
                tidy(copy)
                refresh_shapes(copy)
        return copy if acted else None

    def _possible(
        self, sites: Sequence[Site], model: ir.Model, ctx: Context, limit: int
    ) -> list[tuple[Site, Region]]:
        """The regions that may be timed; the others are told to the report."""
        from attar_fuse.regions import Region, on_integers

        out = []
        for site in sites:
            if site.reason:
                ctx.skip(site.node, f"{site.pattern}: {site.reason}")
            for form in site.forms:
                if form.contrib and not self.contrib:
                    continue
                if form.opset > limit:
                    ctx.skip(site.node, f"{form.name} needs opset {form.opset}, the model may have {limit}")
                    continue
                region = Region.of(site, form)
                if region is None:
                    continue
                if on_integers(region.nodes):
                    ctx.skip(site.node, f"{form.name} computes in float, and this runs on integers")
                    continue
                out.append((site, region))
        return out

    def _chosen(
        self, pairs: Sequence[tuple[Site, Region]], verdicts: Sequence[Verdict], ctx: Context
    ) -> list[tuple[Region, Verdict]]:
        """The best form of every node that has one that is good enough."""
        best: dict[ir.Node, tuple[Region, Verdict]] = {}
        refused: dict[ir.Node, list[str]] = {}
        for (site, region), verdict in zip(pairs, verdicts, strict=True):
            node = _anchor(site)
            against = verdict.problem if self.plan == "everything" else verdict.against(self.gain)
            if against:
                refused.setdefault(node, []).append(f"{region.form.name} {against}")
            elif node not in best or verdict.saved > best[node][1].saved:
                best[node] = (region, verdict)
        for node, reasons in refused.items():
            if node not in best:
                ctx.skip(node, "; ".join(reasons))
        return list(best.values())

    def _whole(self, before: ir.Model, after: ir.Model, ctx: Context, trials: Trials) -> str:
        """Time the whole model; how much longer it takes if it does."""
        from attar_fuse.trials import told

        if self.plan == "everything":
            return ""
        speed = trials.whole(before, after)
        if speed.ratio >= 1:
            return f"takes {told(speed)}"
        times = f"{speed.before_ms:.2f} -> {speed.after_ms:.2f} ms"
        ctx.note(f"the whole model takes {told(speed)} of its time, {times}")
        return ""


def _again(
    finder: Finder, model: ir.Model, chosen: Sequence[tuple[Region, Verdict]]
) -> Iterator[tuple[Region, Verdict]]:
    """The same regions in `model`, which came out of the one that they were found in."""
    from attar_fuse.regions import Region

    wanted = {(r.form.name, tuple(v.name for v in r.site.outputs)): verdict for r, verdict in chosen}
    for site in finder.find(model):
        for form in site.forms:
            verdict = wanted.get((form.name, tuple(v.name for v in site.outputs)))
            region = None if verdict is None else Region.of(site, form)
            if verdict is not None and region is not None:
                yield region, verdict


def _anchor(site: Site) -> ir.Node:
    """What the forms of one place have in common: the product behind a softmax, or what makes the output."""
    node = site.node
    while site.pattern == "attention" and node.op_type in ("Reshape", "Transpose"):
        before = node.inputs[0].producer() if node.inputs[0] is not None else None
        if before is None:
            break
        node = before
    return node


def _line(region: Region, verdict: Verdict) -> str:
    from attar_fuse.trials import told

    what = f"{region.site.pattern} written as {region.form.name}"
    if not verdict.speeds:
        return what
    first = verdict.speeds[0]
    return (
        f"{what}: {told(first)} of the time, {first.before_ms:.3f} -> {first.after_ms:.3f} ms, "
        f"outputs within {verdict.difference:.0e}"
    )


def _reachable(model: ir.Model) -> int:
    """The newest opset that the operators of forms need and that `model` can be brought to."""
    from attar.graph import clone, to_opset
    from attar_fuse.attention_forms import OPSET

    if model.opset_imports[""] >= OPSET:
        return model.opset_imports[""]
    copy = clone(model)
    to_opset(copy, OPSET)
    return copy.opset_imports[""]


def _adopt(model: ir.Model, copy: ir.Model) -> None:
    from attar_fuse.regions import set_opset

    model.graph = copy.graph  # which brings its opset imports
    set_opset(model, copy.opset_imports[""])
