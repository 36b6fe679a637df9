"""`quantize.static`: weights and activations in 8 bits, planned for the target's integer kernels."""

from __future__ import annotations

import contextlib
from collections.abc import Mapping
from typing import Annotated, Literal

import onnx_ir as ir

from attar import graph
from attar.context import Context
from attar.errors import RecipeError, Refused, did_you_mean
from attar.kernels import COMPUTE
from attar.passes import Doc, Pass, Range
from attar.patterns import check_operators, check_patterns, matches
from attar.statistics import Statistics
from attar_quantize import planner
from attar_quantize.choose import Correspondence, nearest
from attar_quantize.equalize import Equalize
from attar_quantize.observers import Observer
from attar_quantize.outlier_forms import MARK
from attar_quantize.qdq import Writer
from attar_quantize.ranges import Values, activation_params, mean_axes, quantized_values
from attar_quantize.rest import store_rest
from attar_quantize.rounding import Rounded, round_weights
from attar_quantize.saturation import tell_saturation
from attar_quantize.scheme import Array
from attar_quantize.sequential import round_in_sequence
from attar_quantize.tails import behind_last_layer
from attar_quantize.types import Types
from attar_quantize.units import Plan, Unit, find_units
from attar_quantize.widths import Override, check_names, parse_override


class Static(Pass, name="quantize.static"):
    """Quantize weights and activations to 8 bits with ranges from calibration data.

    The planner reads the target: types, signs and the placement of Q/DQ follow from its integer kernels and
    their measured costs. What would be slower on integers stays in float and is reported with the reason.
    """

    requires = ("fuse.inference",)
    needs = ("calibration",)
    plans = True
    aim = "speed"

    activation: Annotated[
        Literal["auto", "uint8", "int8", "uint16", "int16", "float8e4m3fn", "float8e5m2"],
        Doc("element type of activations; auto: what the target runs fastest"),
    ] = "auto"
    weight: Annotated[
        Literal["auto", "int8", "uint8", "int16", "float8e4m3fn", "float8e5m2"],
        Doc("element type of weights; auto: the target's"),
    ] = "auto"
    symmetric_activations: Annotated[
        bool | None, Doc("zero point in the middle of the range; default: with int16, as its kernels want it")
    ] = None
    symmetric_weights: Annotated[
        bool | None,
        Doc("zero point of weights at zero; default: with 8 bits; fewer codes need all of theirs"),
    ] = None
    granularity: Annotated[
        Literal["per_channel", "per_tensor"], Doc("one weight scale an output channel, or one a tensor")
    ] = "per_channel"
    observer: Annotated[
        str,
        Doc(
            "how activation ranges are chosen: mse, minmax, moving_average, percentile, entropy, "
            "a plugin's; auto: what comes nearest"
        ),
    ] = "auto"
    bias_correction: Annotated[
        bool, Doc("take what rounding the weights adds to the mean out of the biases")
    ] = True
    equalize: Annotated[
        bool | None, Doc("bring channels to one range before; default: with one weight scale a tensor")
    ] = None
    rounding: Annotated[
        Literal["auto", "nearest", "hessian", "adaround"],
        Doc("how weights are rounded: to nearest, or by what it does to the outputs; auto: what pays"),
    ] = "auto"
    sequential: Annotated[
        bool | None,
        Doc("round each layer for what the rounded ones before it give; default: with fewer than 8 bits"),
    ] = None
    weight_bits: Annotated[
        int, Range(2, 16), Doc("bits of weights: fewer than 8 use so many of the codes of 8; int16 has 16")
    ] = 8
    activation_bits: Annotated[
        int | None, Range(2, 16), Doc("bits of activations; default: those of their type")
    ] = None
    edge_bits: Annotated[
        int, Range(2, 8), Doc("bits of the weights of the first and the last layer, where errors cost most")
    ] = 8
    average_bits: Annotated[
        float | None,
        Range(2.0, 8.0),
        Doc("mixed precision: bits of weights by sensitivity, 2 to 8 each, so many on average"),
    ] = None
    overrides: Annotated[
        tuple[str, ...],
        Doc("other bits by name, the first match wins: 'pattern=w4', 'pattern=a16', 'pattern=w4a8' or float"),
    ] = ()
    power_of_two: Annotated[
        bool, Doc("scales are powers of two, which hardware multiplies with by shifting")
    ] = False
    reduce_range: Annotated[
        bool | None, Doc("7-bit weights, against saturation in 16-bit sums; default: as the target needs")
    ] = None
    rest: Annotated[
        Literal["int8", "float"],
        Doc("how weights of what stays in float are stored, embedding tables included: it costs no time"),
    ] = "int8"
    plan: Annotated[
        Literal["fastest", "everything"],
        Doc("fastest: integers where they pay on the target; everything: wherever a kernel exists"),
    ] = "fastest"
    operators: Annotated[
        tuple[str, ...], Doc("operator types to quantize; empty: all that the target can")
    ] = ()
    keep_float: Annotated[
        tuple[str, ...], Doc("patterns of node or value names to leave in float (*, ?)")
    ] = ()

    def __post_init__(self) -> None:
        super().__post_init__()
        self._overrides()

    def apply(self, model: ir.Model, ctx: Context) -> None:
        if self.granularity == "per_tensor" if self.equalize is None else self.equalize:
            with contextlib.suppress(Refused):  # nothing to bring together
                Equalize(through_clip=True).apply(model, ctx)
        shapes = ctx.shapes(model)
        units = find_units(model, ctx.target, frozenset(self.operators) or None, shapes)
        self._check_names(units)
        types = Types.of(self, ctx.target, self._overrides())
        # Nothing computes on wide codes, so what that costs is no reason to leave them out.
        everything = self.plan == "everything" or ctx.probing or ctx.target.elsewhere or types.is_wide
        kept = {} if everything else behind_last_layer(units)
        kept |= {unit: reason for unit in units if (reason := self._kept(unit, ctx))}
        while True:
            plan = planner.plan(
                units,
                ctx.target,
                costs=planner.Costs(ctx.target.costs, ctx.measured),
                shapes=shapes,
                everything=everything,
                kept=kept,
            )
            compute = self._chosen(units, plan, ctx)
            values = quantized_values(plan)
            per_tensor = self.granularity == "per_tensor"
            means = mean_axes(plan) if self.bias_correction or per_tensor or self.average_bits else {}
            wanted = {v.name or "": means.get(v) for v in (*values.observed, *means)}
            statistics = ctx.statistics(model, wanted)
            found = _endless(plan, statistics)
            if not found:
                break
            kept |= found
        self._write(model, plan, values, statistics, types, ctx)
        tell_saturation(model, ctx)
        for unit in units:
            if unit not in plan.integer and unit.main.op_type in COMPUTE:
                ctx.skip(unit.main, plan.reasons[unit], names=unit.names)
                for node in unit.nodes:
                    node.metadata_props["attar.float"] = plan.reasons[unit]
        done = sum(u in plan.integer for u in compute)
        ctx.note(
            f"{done} of {len(compute)} Conv, Gemm and MatMul on integers, "
            f"{len(plan.integer)} operators in all"
        )
        if self.rest == "int8" and not ctx.probing:
            floats = (o.pattern for o in self._overrides() if o.keep_float)
            store_rest(model, ctx, self.operators, (*self.keep_float, *floats))

    # -- the steps ---------------------------------------------------------------------------------------

    def _chosen(self, units: list[Unit], plan: Plan, ctx: Context) -> list[Unit]:
        """The operators that quantization is about.

        Raises:
            Refused: none of them is worth it; all are listed.
        """
        compute = [u for u in units if u.main.op_type in ("Conv", "ConvTranspose", "Gemm", "MatMul")]
        if any(u in plan.integer for u in compute):
            return compute
        for unit in units:
            if unit.main.op_type in COMPUTE:
                ctx.skip(unit.main, plan.reasons[unit], names=unit.names)
        why, hint = "the model has no operator to quantize", None
        if compute:
            why = "no operator is worth quantizing"
        if any(set(u.names) & set(ctx.keep_float) for u in compute):
            why = "what is worth quantizing changes the outputs too much"
            hint = "give evaluate=(data, metric): how much is too much depends on what the outputs are for"
        raise Refused(
            why,
            hint=hint,
            nodes=[(u.main.name or "?", plan.reasons[u]) for u in compute],
        )

    def _write(  # noqa: PLR0917  (what the steps before have found)
        self,
        model: ir.Model,
        plan: Plan,
        values: Values,
        statistics: Mapping[str, Statistics],
        types: Types,
        ctx: Context,
    ) -> None:
        means: dict[ir.Value, Array] = {}
        powers: dict[ir.Value, Array] = {}
        for value in mean_axes(plan):
            known = statistics.get(value.name or "", Statistics())
            if known.mean is not None and known.power is not None:
                powers[value] = known.power
                if self.bias_correction:
                    means[value] = known.mean
        kinds = types.activations(plan, values)
        candidates = {
            name: activation_params(plan, values, statistics, observer, kinds)
            for name, observer in self._observers(ctx).items()
        }
        widths = types.weight_bits(plan, powers)
        if self.average_bits is not None:
            ctx.note("bits of weights: " + ", ".join(f"{u.main.name} {b}" for u, b in widths.items()))

        rounded: dict[ir.Value, Rounded] = {}

        def write(place: ir.Model, name: str) -> None:
            # A copy is written through its own values.
            same = Correspondence(model, place)
            weights = same.keys(
                types.weights(plan, widths, candidates[name], powers)
                | {w: r.params for w, r in rounded.items()}
            )
            activations = same.keys(candidates[name])
            Writer(place, same.plan(plan), activations, weights, same.keys(means), same.keys(rounded)).write()
            graph.tidy(place)

        chosen = nearest(model, candidates, write, ctx)
        method = self._rounding(ctx, min(widths.values(), default=8))
        if method != "nearest":
            in_turn = min(widths.values()) < 8 if self.sequential is None else self.sequential
            rounder = round_in_sequence if in_turn else round_weights
            rounded |= rounder(
                model,
                [u for u in plan.units if u in plan.integer],
                types.weights(plan, widths, candidates[chosen], powers),
                candidates[chosen],
                ctx,
                method=method,
                corrected=means,
            )
        write(model, chosen)

    def _rounding(self, ctx: Context, fewest: int) -> str:
        if self.rounding != "auto":
            return self.rounding
        fine = fewest >= 8 and self.granularity == "per_channel"
        return "nearest" if fine or ctx.probing else "hessian"

    def _overrides(self) -> tuple[Override, ...]:
        return tuple(parse_override(text, f"{self.name}: option 'overrides'") for text in self.overrides)

    def _observers(self, ctx: Context) -> dict[str, Observer]:
        """The observers to choose from, by name."""
        known = ctx.registry.observers
        if self.observer == "auto":
            tried = ("mse",) if ctx.probing else ("mse", "percentile", "minmax")
            return {name: known[name] for name in tried}
        if self.observer not in known:
            raise RecipeError(
                f"{self.name}: unknown observer {self.observer!r}",
                hint=did_you_mean(self.observer, [*known, "auto"]),
            )
        return {self.observer: known[self.observer]}

    def _kept(self, unit: Unit, ctx: Context) -> str:
        for name in unit.names:
            if name in ctx.keep_float:
                return ctx.keep_float[name]
        if MARK in unit.main.metadata_props:
            return unit.main.metadata_props[MARK]
        if matches(unit.names, self.keep_float):
            return "kept in float by option keep_float"
        first = next((o for o in self._overrides() if o.matches(unit)), None)
        return "kept in float by option overrides" if first is not None and first.keep_float else ""

    def _check_names(self, units: list[Unit]) -> None:
        known = {n.op_type for u in units for n in u.nodes}
        check_operators(self.operators, known, where=self.name, why="which the model does not have")
        check_names(self._overrides(), units, f"{self.name}: option 'overrides'")
        names = [n.name or "" for u in units for n in u.nodes]
        names += [v.name or "" for u in units for n in u.nodes for v in n.outputs]
        check_patterns(self.keep_float, names, option=f"{self.name}: option 'keep_float'", of="node or value")


def _endless(plan: Plan, statistics: Mapping[str, Statistics]) -> dict[Unit, str]:
    """Integer units that touch values without a finite range, such as masks of minus infinity."""
    found = {}
    for unit in plan.integer:
        for value in (*unit.inputs, *unit.outputs):
            seen = statistics.get(value.name or "")
            if seen is not None and not seen.finite:
                found[unit] = f"{value.name} is infinite on the calibration data"
    return found
