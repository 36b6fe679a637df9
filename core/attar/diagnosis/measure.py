"""Quantizes a model layer by layer, and measures what each layer does to the outputs."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import onnx_ir as ir

from attar import graph
from attar.context import Context
from attar.diagnosis.causes import Cause, find_causes, quantized_view, saturated_sums
from attar.diagnosis.saturation import Saturation, predict
from attar.errors import AttarError, InputError
from attar.feeds import Feeds, first_pieces, one_sample
from attar.lowering import lower
from attar.measure import differences, interleaved, worst_sqnr
from attar.passes import Pass
from attar.progress import Progress, Silent
from attar.registry import Registry, default_registry
from attar.report import plain
from attar.run import run_recipe
from attar.runtime import Session
from attar.specs import input_specs

_LAYERS = ("Conv", "ConvTranspose", "Gemm", "MatMul")


@dataclass(frozen=True)
class Layer:
    """One quantized layer.

    Attributes:
        name, op: the node.
        alone_db: SQNR of the model's outputs when this layer alone is quantized; the smaller, the more it
            costs.
        propagated_db: SQNR of the layer's own result in the quantized model: its noise and all before it.
        causes: what stands out, the gravest first.
        gain: what the metric gains when this layer alone is left in float; None if it was not tried.
        cost_ms: milliseconds that it costs; None if it was not tried.
    """

    name: str
    op: str
    alone_db: float
    propagated_db: float
    causes: tuple[Cause, ...]
    gain: float | None = None
    cost_ms: float | None = None


@dataclass(frozen=True)
class Diagnosis:
    """Where a quantized model loses, the gravest layer first.

    Attributes:
        output_db: SQNR of its outputs with all layers quantized.
        metric_name: "" without an evaluation.
        before, after: the metric of the original and of the quantized model.
        saturation: what becomes of it on an x86 processor without VNNI; None where the target is none.
    """

    layers: tuple[Layer, ...]
    output_db: float
    metric_name: str = ""
    before: float | None = None
    after: float | None = None
    saturation: Saturation | None = None

    def to_dict(self) -> dict[str, Any]:
        fitted = plain(dataclasses.asdict(self))
        assert isinstance(fitted, dict)
        return fitted

    def __str__(self) -> str:
        if not self.layers:
            return f"already quantized\n{self.saturation}"
        lines = [f"outputs at {self.output_db:.1f} dB with {len(self.layers)} layers quantized"]
        if self.before is not None and self.after is not None:
            lines[0] += f", {self.metric_name} {self.before:.4g} -> {self.after:.4g}"
        if self.saturation is not None:
            lines.append(str(self.saturation))
        for layer in self.layers:
            lines.append(
                f"{layer.name} ({layer.op}): {layer.alone_db:.1f} dB alone, "
                f"{layer.propagated_db:.1f} dB with those before it"
            )
            if layer.cost_ms is not None:
                gained = "" if layer.gain is None else f"{layer.gain:+.4g} {self.metric_name}, "
                lines.append(f"    float here: {gained}{layer.cost_ms:+.3g} ms")
            lines += [f"    {c.kind}: {c.text}; try {c.remedy}" for c in layer.causes]
        return "\n".join(lines)


def diagnose(
    model: Any,
    recipe: Any = None,
    *,
    calibration: Any,
    preprocess: Any = None,
    evaluate: Any = None,
    target: str = "cpu",
    top: int = 5,
    samples: int = 16,
    inputs: Any = None,
    threads: int = 1,
    seed: int = 0,
    progress: Progress | None = None,
    registry: Registry | None = None,
) -> Diagnosis:
    """Find out why a model loses accuracy when it is quantized.

    For a target that saturates (`cpu-avx2`) the accuracy that it will give is predicted by simulation.

    Args:
        model: the float model, as `compress` takes it; of one that is quantized already only what it will
            give on a processor without VNNI is told.
        recipe: a recipe with a quantizing step; "int8" unless given. Nothing is repaired here.
        calibration: data as for `compress`.
        evaluate: as for `compress`; without it layers are told by the outputs' noise alone.
        top: for how many of the gravest layers to try what leaving them in float would give.
        samples: how many calibration samples outputs are compared on.

    Raises:
        InputError: the recipe quantizes nothing, or data or model are unusable.
    """
    from attar.api import load_source
    from attar.calibration import as_data
    from attar.evaluation import as_evaluation
    from attar.recipe import load_recipe

    registry, progress = registry or default_registry(), progress or Silent()
    place = registry.get_target(target)
    runtime = registry.runtimes[place.runtime]
    steps = load_recipe("int8" if recipe is None else recipe, registry)
    source = load_source(model, inputs=inputs, registry=registry).model
    specs = input_specs(source)
    data = as_data(calibration, specs, preprocess=preprocess)
    evaluation = as_evaluation(evaluate, specs, calibration=data, registry=registry, preprocess=preprocess)
    feeds = one_sample(data.first().inputs, specs)
    ctx = Context(registry, place, runtime, data, evaluation, feeds, seed, threads)
    if _is_quantized(source):
        known = predict(source, ctx, samples=samples, evaluation=evaluation)
        return Diagnosis((), math.inf, known.metric_name, known.exact, known.saturated, known)
    planning = [step for step in steps if type(step).plans]
    if not planning:
        raise InputError("no step of the recipe quantizes by a plan", hint="diagnose(..., recipe='int8')")
    quantized, _, fused = run_recipe(steps, source, ctx, feeds)
    layers = _quantized_layers(fused, quantized)
    if not layers:
        raise InputError("the recipe left every layer of this model in float, so there is nothing to explain")
    work = _Work(ctx, planning, fused, source, samples)
    found = work.layers(layers, quantized, progress)
    session = work.open(quantized)
    output_db = work.sqnr(work.open(source), session)
    before = after = None
    if evaluation is not None:
        before, after = evaluation.run(work.open(source)), evaluation.run(session)
    saturation = _saturation(quantized, ctx, samples)
    if place.saturates:
        found = _with_saturation(found, saturation)
    ranked = sorted(found, key=lambda layer: layer.alone_db)
    with progress.task("leaving layers in float", min(top, len(ranked))) as task:
        for position, layer in enumerate(ranked[:top]):
            ranked[position] = work.counterfactual(layer, session, after)
            task.advance()
    name = "" if evaluation is None else evaluation.name
    return Diagnosis(tuple(ranked), output_db, name, before, after, saturation)


def _is_quantized(model: ir.Model) -> bool:
    """Whether layers of it compute on codes already."""
    for node in model.graph:
        if node.op_type in ("QLinearConv", "QLinearMatMul", "MatMulInteger"):
            return True
        if node.op_type in _LAYERS and _reads_codes(node):
            return True
    return False


def _reads_codes(node: ir.Node) -> bool:
    """Whether DequantizeLinear of a computed value feeds the node."""
    maker = node.inputs[0].producer() if node.inputs and node.inputs[0] is not None else None
    if maker is None or maker.op_type != "DequantizeLinear":
        return False
    return graph.const_array(maker.inputs[0]) is None


def _saturation(quantized: ir.Model, ctx: Context, samples: int) -> Saturation | None:
    """The prediction for processors without VNNI; with the metric only where the target is one of them."""
    if ctx.target.elsewhere or ctx.target.activation_type != "uint8":
        return None
    return predict(
        quantized, ctx, samples=samples, evaluation=ctx.evaluation if ctx.target.saturates else None
    )


def _with_saturation(layers: Sequence[Layer], found: Saturation | None) -> list[Layer]:
    shares = {} if found is None else dict(found.layers)
    return [
        replace(
            layer,
            causes=(saturated_sums(shares[layer.name]), *(c for c in layer.causes if c.kind != "rounding")),
        )
        if layer.name in shares
        else layer
        for layer in layers
    ]


def _quantized_layers(fused: ir.Model, quantized: ir.Model) -> dict[str, tuple[ir.Node, ir.Node]]:
    """Name -> (float node, quantized node) of the layers that compute on codes."""
    there = {n.name: n for n in quantized.graph}
    pairs = {}
    for node in fused.graph:
        other = there.get(node.name)
        if node.op_type not in _LAYERS or other is None or other.op_type != node.op_type:
            continue
        if _reads_codes(other):
            pairs[node.name or ""] = (node, other)
    return pairs


class _Work:
    """The measurements; one object so that sessions and data are not handed around."""

    def __init__(
        self, ctx: Context, planning: Sequence[Pass], fused: ir.Model, source: ir.Model, samples: int
    ) -> None:
        self.ctx, self.planning, self.fused, self.source, self.samples = ctx, planning, fused, source, samples

    def open(self, model: ir.Model) -> Session:
        return self.ctx.runtime.open(lower(model, self.ctx.target)[0], threads=self.ctx.threads)

    def sqnr(self, before: Session, after: Session) -> float:
        """Of the worst output, in decibels."""
        return worst_sqnr(before, after, self._inputs())

    def _inputs(self) -> Iterator[Feeds]:
        return first_pieces(self.ctx.calibration, self.samples)

    def layers(
        self, pairs: Mapping[str, tuple[ir.Node, ir.Node]], quantized: ir.Model, progress: Progress
    ) -> list[Layer]:
        values = {name: node.inputs[0].name or "" for name, (node, _) in pairs.items() if node.inputs[0]}
        wanted = {
            values[name]: 1 if node.op_type.startswith("Conv") else None for name, (node, _) in pairs.items()
        }
        statistics = self.ctx.statistics(self.fused, wanted)
        inside = self._propagated(pairs, quantized)
        reference, found = self.open(self.fused), []
        with progress.task("quantizing layers one by one", len(pairs)) as task:
            for name, (node, other) in pairs.items():
                causes = find_causes(node, statistics.get(values[name]), quantized_view(other))
                alone = self._alone(name, pairs, reference)
                found.append(Layer(name, node.op_type, alone, inside[name], causes))
                task.advance()
        return found

    def _alone(self, name: str, pairs: Mapping[str, Any], reference: Session) -> float:
        keep = {other: "diagnosis" for other in pairs if other != name}
        try:
            probe = replace(self.ctx, keep_float=keep, probing=True)
            model, _, _ = run_recipe(self.planning, self.fused, probe)
            return self.sqnr(reference, self.open(model))
        except AttarError:
            return math.inf  # alone it is not quantized at all, so alone it costs nothing

    def _propagated(
        self, pairs: Mapping[str, tuple[ir.Node, ir.Node]], quantized: ir.Model
    ) -> dict[str, float]:
        """SQNR of each layer's own result, float against quantized."""
        names = list(pairs)
        before, after = (
            self.ctx.runtime.open(_tapped(model, names), threads=self.ctx.threads, optimize=False)
            for model in (self.fused, quantized)
        )
        taps = differences(before, after, self._inputs())[-len(names) :]
        return {name: tap.sqnr_db for name, tap in zip(names, taps, strict=True)}

    def counterfactual(self, layer: Layer, quantized: Session, metric: float | None) -> Layer:
        """`layer` with what the metric gains and the time costs when it alone is left in float."""
        try:
            probe = replace(self.ctx, keep_float={layer.name: "diagnosis"})
            model, _, _ = run_recipe(self.planning, self.fused, probe)
            session = self.open(model)
        except AttarError:
            return layer  # it is all that there is to quantize
        feeds = self.ctx.feeds
        assert feeds is not None
        speed = interleaved(quantized, session, feeds, threads=self.ctx.threads)
        gain = None
        if metric is not None:
            gain = self.ctx.evaluate.drop(self.ctx.evaluate.run(session), metric)
        return replace(layer, gain=gain, cost_ms=speed.after_ms - speed.before_ms)


def _tapped(model: ir.Model, names: Sequence[str]) -> ir.Model:
    """`model` with the results of the named nodes as further outputs."""
    copy = graph.clone(model)
    nodes = {n.name: n for n in copy.graph}
    for position, name in enumerate(names):
        value = nodes[name].outputs[0]
        tap = ir.node("Identity", [value])
        tap.outputs[0].name = f"attar/tap/{position}"
        tap.outputs[0].type = ir.TensorType(value.dtype or ir.DataType.FLOAT)
        copy.graph.append(tap)
        copy.graph.outputs.append(tap.outputs[0])
    return copy
