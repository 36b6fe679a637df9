"""`factor.lowrank`: linear layers and convolutions as products of thinner ones."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Annotated, Any, ClassVar, Literal

import onnx_ir as ir

from attar import graph, solve
from attar.context import Context
from attar.errors import RecipeError, Refused
from attar.gram import Gram
from attar.gram_sums import summed
from attar.passes import Choice, Doc, Pass, Range
from attar.patterns import check_patterns, matches
from attar_factor.budget import Offer, distribute
from attar_factor.candidates import Candidate, Grid, candidates, methods_for
from attar_factor.layers import Array, Layer, find_layers
from attar_factor.parts import Part, cost_of, parts, whole
from attar_factor.refit import STAGES, refit
from attar_factor.sensitivity import sensitivities
from attar_factor.write import Writer, Written

_DAMPING = 1e-3
_UNITS = {"parameters": "parameters", "macs": "multiply-accumulates", "latency": "estimated time"}
_RATIO = 0.7
# Share of the output energy that the probe of a layer's sensitivity loses, about; what counts as exact.
_PROBE, _EXACT = 0.05, 1e-9


@dataclass(frozen=True)
class Chosen:
    """A candidate with the layers that it writes."""

    candidate: Candidate
    chain: tuple[Part, ...]


@dataclass
class _Case:
    """A layer with its offers: itself first, then what pays."""

    layer: Layer
    offers: list[Offer[Chosen]]
    mean: Array | None
    best_unpaid: str = ""


class _Aim:
    """Size, of the class and of most settings; speed where time is what the factors are to save."""

    def __get__(self, step: LowRank | None, owner: type[LowRank]) -> str:
        return "speed" if step is not None and step.of == "latency" else "size"


class LowRank(Pass, name="factor.lowrank"):
    """Write linear layers and convolutions as products of thinner ones, where the outputs lose least.

    svd: a layer as two (a matrix of rank r; of a k x k convolution k x k to r channels, then 1 x 1), the
    principal directions of its outputs. spatial: k x 1, then 1 x k. tucker: 1 x 1, k x k, 1 x 1. cp: 1 x 1,
    depthwise k x k, 1 x 1. With calibration data errors are weighed by the second moments of the layers'
    inputs, so that what is lost is what the data does not use, and last layers are refitted afterwards.

    One budget is spread over all layers: each saves where it costs its outputs least.
    """

    requires = ("fuse.inference",)
    aim: ClassVar[Any] = _Aim()

    ratio: Annotated[
        float | None,
        Range(0.0, 1.0, open_low=True),
        Doc(f"share of the cost of the layers looked at that may remain (unless another is given: {_RATIO})"),
    ] = None
    energy: Annotated[
        float | None,
        Range(0.0, 1.0, open_low=True),
        Doc("instead: the share of the energy of every layer's outputs that must be kept"),
    ] = None
    rank: Annotated[int | None, Range(1), Doc("instead: the rank of every layer")] = None
    of: Annotated[
        str,
        Choice("parameters", "macs", "latency"),
        Doc("the cost: parameters, multiply-accumulates, or the target's measured kernel times"),
    ] = "parameters"
    method: Annotated[
        str,
        Choice("auto", "svd", "spatial", "tucker", "cp"),
        Doc("of convolutions; auto takes for each layer what loses least: svd, spatial or tucker"),
    ] = "auto"
    data_aware: Annotated[
        bool | None, Doc("weigh errors by calibration data; unless given, if there is such data")
    ] = None
    refit: Annotated[
        Literal["auto", "off", "once", "sequential"],
        Doc("solve last layers again for the inputs that they get in the factored network: all at once, or "
            "one by one from the front; auto: one by one if there is calibration data"),
    ] = "auto"  # fmt: skip
    multiple: Annotated[
        int | None,
        Range(1),
        Doc("ranks are multiples of this; unless given, of the target's channel block where layers are wide"),
    ] = None
    sensitivity: Annotated[
        bool | None,
        Doc("weigh each layer's errors by what they do to the model's outputs, measured on calibration data; "
            "unless given, where errors are weighed by data and the model is below half a gigabyte"),
    ] = None  # fmt: skip
    keep: Annotated[tuple[str, ...], Doc("patterns of node or output names to leave alone")] = ()
    force: Annotated[bool, Doc("factor by `energy` or `rank` also where that costs more")] = False

    def __post_init__(self) -> None:
        super().__post_init__()
        given = [n for n in ("ratio", "energy", "rank") if getattr(self, n) is not None]
        if len(given) > 1:
            raise RecipeError(f"{self.name}: give {' or '.join(given)}, not both")
        if self.force and given in ([], ["ratio"]):
            raise RecipeError(f"{self.name}: option 'force' needs 'energy' or 'rank'")

    def apply(self, model: ir.Model, ctx: Context) -> None:
        aware = self.data_aware if self.data_aware is not None else ctx.data is not None
        how = self.refit if self.refit != "auto" else ("sequential" if ctx.data is not None else "off")
        if aware or how != "off":
            ctx.calibration  # noqa: B018  says by name what is missing
        layers = self._layers(model, ctx)
        whole_cost, cases = 0.0, []
        for layer, gram in _inputs(model, layers, ctx, aware):
            case = self._case(layer, gram, ctx)
            if isinstance(case, str):
                _skip(layer, case, ctx)
                continue
            whole_cost += case.offers[0].cost
            cases.append(case)
        if not cases:
            raise Refused("no layer can be factored")
        if self._measured(model, aware):
            _weigh(model, cases, ctx)
        chosen = self._choose(cases, whole_cost)
        order = {node: i for i, node in enumerate(model.graph)}
        pairs = sorted(zip(cases, chosen, strict=True), key=lambda p: order[p[0].layer.node])
        if all(offer.item is None for _, offer in pairs):
            raise Refused(f"no layer gains {_UNITS[self.of]}: {_most_said([c.best_unpaid for c in cases])}")
        original = graph.clone(model) if how != "off" else model
        writer, written = Writer(model), []
        for case, offer in pairs:
            if offer.item is None:
                _skip(case.layer, case.best_unpaid or "other layers lose less for what it would save", ctx)
                continue
            found = _write(writer, case, offer, ctx)
            written += [] if found is None else [found]
        graph.tidy(model)
        if how != "off" and written:
            count = refit(model, original, written, ctx, writer, stages=1 if how == "once" else STAGES)
            ctx.note(f"last layers of {count} products refitted on calibration data")
        spent = sum(offer.cost for offer in chosen)
        number, unit = sum(offer.item is not None for offer in chosen), _UNITS[self.of]
        ctx.note(f"{number} of {len(cases)} layers factored: {spent / whole_cost:.1%} of all {unit} remain")

    def _measured(self, model: ir.Model, aware: bool) -> bool:
        if self.energy is not None or self.rank is not None:
            return False
        return self.sensitivity if self.sensitivity is not None else aware and _small(model)

    # -- which layers ----------------------------------------------------------------------------------------

    def _layers(self, model: ir.Model, ctx: Context) -> list[Layer]:
        layers, refused = find_layers(model, ctx.shapes(model))
        check_keep(
            self.name, self.keep, [n for layer in layers for n in layer.nodes] + [n for n, _ in refused]
        )
        for node, reason in refused:
            ctx.skip(node, reason)
        kept = [layer for layer in layers if any(is_kept(node, self.keep) for node in layer.nodes)]
        for layer in kept:
            _skip(layer, "kept by option keep", ctx)
        left = [layer for layer in layers if layer not in kept]
        if not left:
            raise Refused("no layer with constant weights can be factored")
        return left

    # -- what they could become ------------------------------------------------------------------------------

    def _case(self, layer: Layer, gram: Gram | None, ctx: Context) -> _Case | str:
        """The offers of a layer, or why there are none."""
        methods, why = methods_for(layer, self.method)
        costs = ctx.target.costs
        now = cost_of([whole(layer)], self.of, costs)
        if now is None:
            return f"the target's cost table does not know {whole(layer).kind}"
        if why:
            return why
        h, mean = None, None
        if gram is not None:
            mean = gram.mean if layer.bias is not None else None
            h = solve.damped(gram.moment if mean is None else gram.covariance, _DAMPING)
        offers: list[Offer[Chosen]] = [Offer(now, 0.0, None)]
        needed = ""
        forced = self.force and self.ratio is None
        for method in methods:
            for candidate in candidates(layer, method, h, self._grid(layer, ctx), ctx.rng(layer.name)):
                chain = parts(layer, method, candidate.rank)
                cost = cost_of(chain, self.of, costs)
                if cost is None:
                    needed = f"the target's cost table does not know the kernels of {method}"
                elif cost < now or forced:
                    offers.append(Offer(cost, candidate.error, Chosen(candidate, chain)))
        if len(offers) == 1:
            needed = needed or f"no rank that is tried saves {_UNITS[self.of]}"
        return _Case(layer, offers, mean, needed)

    def _grid(self, layer: Layer, ctx: Context) -> Grid:
        if self.rank is not None:
            return Grid(only=self.rank)
        if self.multiple is not None:
            return Grid(self.multiple)
        block = ctx.target.channel_block
        width = min(layer.rows.shape[1], layer.channels if layer.is_conv else layer.rows.shape[2])
        if self.of == "latency":
            return Grid(block)
        return Grid(block if width >= 8 * block else 1)

    # -- what they become ------------------------------------------------------------------------------------

    def _choose(self, cases: Sequence[_Case], total: float) -> list[Offer[Chosen]]:
        if self.rank is None and self.energy is None:
            ratio = _RATIO if self.ratio is None else self.ratio
            chosen = distribute([case.offers for case in cases], ratio * total)
            if chosen is None:
                least = sum(min(o.cost for o in case.offers) for case in cases)
                raise Refused(
                    f"the layers can go down to {least / total:.1%} of their {_UNITS[self.of]}, "
                    f"not to {ratio:.1%}",
                    hint="ask for less, or choose another method",
                )
            return chosen
        return [self._alone(case) for case in cases]

    def _alone(self, case: _Case) -> Offer[Chosen]:
        """The offer of a layer by rank or energy."""
        real = case.offers[1:]
        if self.energy is not None:
            least = min((o.error for o in real), default=1.0)
            real = [o for o in real if o.error <= 1 - self.energy + 1e-12]
            if not real and not case.best_unpaid:
                case.best_unpaid = f"what saves {_UNITS[self.of]} keeps at most {1 - least:.1%} of its energy"
            return min(real, key=lambda o: (o.cost, o.error), default=case.offers[0])
        return min(real, key=lambda o: (o.error, o.cost), default=case.offers[0])


def check_keep(name: str, keep: Sequence[str], nodes: Sequence[ir.Node]) -> None:
    """Raise RecipeError for a pattern that matches no layer."""
    names = [n.name or "" for n in nodes] + [v.name or "" for n in nodes for v in n.outputs]
    check_patterns(keep, names, option=f"{name}: option 'keep'", of="layer")


def is_kept(node: ir.Node, patterns: Sequence[str]) -> bool:
    names = (node.name or "", *(v.name or "" for v in node.outputs))
    return matches(names, patterns)


def _inputs(
    model: ir.Model, layers: Sequence[Layer], ctx: Context, aware: bool
) -> Iterator[tuple[Layer, Gram | None]]:
    """Layers with the Gram matrices of their inputs, as these come."""
    if not aware:
        yield from ((layer, None) for layer in layers)
        return
    wants = {number: layer.wants for number, layer in enumerate(layers)}
    for number, gram in summed(model, wants, ctx):
        yield layers[number], gram


def _weigh(model: ir.Model, cases: Sequence[_Case], ctx: Context) -> None:
    """Turn the errors of each layer's offers into what they do to the model's outputs, taken as proportional:
    one weight for each layer, measured with one of its offers."""
    probes = []
    for case in cases:
        real = [o for o in case.offers if o.item is not None and o.error > _EXACT]
        if real:
            probes.append((case, min(real, key=lambda o: abs(math.log(o.error / _PROBE)))))
    built = [(c.layer, o.item.candidate.build(), c.mean) for c, o in probes if o.item is not None]
    found = sensitivities(model, built, ctx)
    if not any(found):
        return
    for (case, probe), effect in zip(probes, found, strict=True):
        weight = effect / probe.error
        case.offers = [replace(o, error=o.error * weight) for o in case.offers]


def _small(model: ir.Model) -> bool:
    return graph.byte_size(model) <= 1 << 29


def _write(writer: Writer, case: _Case, offer: Offer[Chosen], ctx: Context) -> Written | None:
    assert offer.item is not None
    candidate, layer = offer.item.candidate, case.layer
    name = layer.name
    written = writer.write(layer, offer.item.chain, candidate.build(), case.mean)
    rank = " x ".join(map(str, candidate.rank))
    ctx.note(
        f"{name}: {candidate.method} of rank {rank}, {1 - max(0.0, candidate.error):.2%} of its energy kept"
    )
    return written


def _skip(layer: Layer, reason: str, ctx: Context) -> None:
    for node in layer.nodes:
        ctx.skip(node, reason)


def _most_said(reasons: Sequence[str]) -> str:
    said = [r for r in reasons if r]
    return max(said, key=said.count) if said else "all were left whole"
