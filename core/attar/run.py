"""`compress`: a recipe run pass by pass as transactions, and the contract that judges the result."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import onnx_ir as ir

from attar import bundle, graph, invariants
from attar.context import Context
from attar.costs import CostTable
from attar.errors import AttarError, InputError, Refused, VerifyError, check_whole
from attar.feeds import Feeds, one_sample, sample_feeds
from attar.passes import Pass
from attar.progress import Progress, Silent
from attar.registry import Registry, default_registry
from attar.report import Report, Step
from attar.specs import TensorSpec, input_specs
from attar.verify import verify


@dataclass(frozen=True)
class Result:
    """What `compress` returns.

    Attributes:
        model: the compressed model in portable form, or the original where compression did not pay.
        report: everything that was done and measured.
        runnable: `model` with the target's lowerings; this is what was measured and what `save` writes.
    """

    model: ir.Model
    report: Report
    runnable: ir.Model

    def save(self, path: str | Path, *, portable: bool = False) -> None:
        """Write the model that was measured; to a name that ends in `.attar`, as a bundle with recipe and
        report.

        Args:
            portable: without the target's lowerings, for other tools and runtimes.

        Raises:
            InputError: the folder does not exist or cannot be written.
        """
        model = self.model if portable else self.runnable
        if bundle.is_bundle(path):
            bundle.write(model, path, report=self.report)
        else:
            graph.save(model, path)


def run_pass(step: Pass, model: ir.Model, ctx: Context, feeds: Feeds | None = None) -> tuple[ir.Model, Step]:
    """One pass as a transaction: clone, apply, tidy, verify; the input is never touched.

    Args:
        feeds: inputs to run the result on, once, with optimizations off.

    Returns:
        The new model and its record.

    Raises:
        Refused: the pass declines.
        VerifyError: the pass broke its promises, or failed with an error that is not attar's.
    """
    options = {k: v for k, v in step.to_dict().items() if k != "name"}
    record = Step(step.name, options, bytes_before=graph.saved_size(model), nodes_before=_count(model))
    ctx.step = record
    started = time.perf_counter()
    copy = graph.clone(model)
    record.changes += ctx.registry.tell("attar_before_pass", step=step, model=copy, ctx=ctx)
    try:
        step.apply(copy, ctx)
        graph.tidy(copy)
    except AttarError:
        raise
    except Exception as error:
        raise VerifyError(
            f"pass {step.name!r} failed: {type(error).__name__}: {error}",
            hint="this is a bug of the pass; the model is as it was",
        ) from error
    try:
        verify(model, copy, ctx.runtime, feeds)
        record.changes += invariants.recheck(model, copy, type(step).breaks)
    except VerifyError as error:
        raise VerifyError(f"pass {step.name!r} broke the model: {error.message}", hint=error.hint) from error
    record.seconds = time.perf_counter() - started
    record.bytes_after, record.nodes_after = graph.saved_size(copy), _count(copy)
    done = graph.provenance(copy).get("passes", "")
    graph.set_provenance(copy, passes=f"{done} {step.name}".strip())
    record.changes += ctx.registry.tell("attar_after_pass", step=step, model=copy, ctx=ctx, record=record)
    return copy, record


def run_recipe(
    recipe: Sequence[Pass], model: ir.Model, ctx: Context, feeds: Feeds | None = None
) -> tuple[ir.Model, list[Step], ir.Model]:
    """All passes in order. A pass that declines is recorded as refused, and the next one goes on from where
    it was.

    Returns:
        The result, the records, and the model that the last planning pass was given (`model` if there was
        none).
    """
    steps = []
    planned_from = model
    ctx.unquantized = None
    with ctx.progress.task("compressing", len(recipe)) as task:
        for step, implied in with_required(recipe, model, ctx.registry):
            if type(step).plans:
                planned_from = model
            before = model
            try:
                model, record = run_pass(step, model, ctx, feeds)
                if ctx.unquantized is None and _quantized(model) and not _quantized(before):
                    ctx.unquantized = before
            except Refused as refusal:
                record = ctx.step
                record.bytes_after, record.nodes_after = record.bytes_before, record.nodes_before
                record.refused = refusal.message
            record.implied = implied
            steps.append(record)
            task.advance(0 if implied else 1)
    return model, steps, planned_from


def with_required(recipe: Sequence[Pass], model: ir.Model, registry: Registry) -> list[tuple[Pass, bool]]:
    """The recipe with the passes that others require put in front of them, unless the model has been through
    them.

    Returns:
        (pass, whether it was put in) pairs.
    """
    done = set(graph.provenance(model).get("passes", "").split())
    out: list[tuple[Pass, bool]] = []

    def add(step: Pass, implied: bool, chain: tuple[str, ...]) -> None:
        for name in step.requires:
            if name not in done and name not in chain:
                add(registry.get_pass(name)(), True, (*chain, step.name))
        out.append((step, implied))
        done.add(step.name)

    for step in recipe:
        add(step, False, ())
    return out


def compress(
    model: Any,
    recipe: Any = None,
    *,
    calibration: Any = None,
    training: Any = None,
    teachers: Any = (),
    preprocess: Any = None,
    evaluate: Any = None,
    target: str = "cpu",
    costs: str | Path | CostTable | None = None,
    max_drop: float | None = None,
    inputs: Any = None,
    threads: int = 1,
    seed: int = 0,
    verify_source: bool = True,
    progress: Progress | None = None,
    registry: Registry | None = None,
) -> Result:
    """Compress a model and prove what came of it.

    After the recipe the result is loaded in the target's runtime, its optimized graph is read, it is timed
    against the original interleaved in one run, and sizes and outputs are compared. A result that is slower,
    larger or too different is repaired (another scheme, other islands); where that does not help the original
    is returned, with `report.verdict == "unchanged"` and the reasons.

    Args:
        model: an IR model, or anything that `attar.load` reads.
        recipe: passes, their names, a preset ("int8", the default), TOML, or a path to it.
        calibration: data without labels, in any form that `attar.calibration.as_data` takes.
        training: data to train on, for passes that train; what `attar.training.as_training` takes.
        teachers: models of any framework to distill from, one or several; the model itself unless given.
        preprocess: how images of a folder become inputs (`ImagePreprocess` or a mapping).
        evaluate: a metric name (labels come with the calibration data), `(data, metric)`, or a function of a
            runnable model that returns a number, higher being better.
        target: where it shall run; see `attar.default_registry().targets`.
        costs: measured kernel times to plan with instead of the target's own, as a `CostTable` or the path of
            the file that `attar calibrate-target` wrote.
        max_drop: largest loss of the metric that is accepted, in its own unit; 0.01 unless given.
        inputs: example inputs, for sources that need them.
        threads: intra-operator threads for timing and calibration.
        seed: of everything random.
        verify_source: compare a loaded source with its own framework.
        progress: where long work reports; silent unless given.
        registry: plugins to use; all installed ones unless given.

    Raises:
        InputError: unusable model, data or argument.
        RecipeError: unusable recipe.
        VerifyError: a pass broke the model. The caller's model is untouched in every case.
    """
    from attar.api import load_source
    from attar.calibration import as_data
    from attar.contract import Contract
    from attar.evaluation import as_evaluation
    from attar.recipe import load_recipe
    from attar.training import as_training

    started = time.perf_counter()
    registry = registry or default_registry()
    _check_numbers(max_drop=max_drop, threads=threads, seed=seed)
    place = registry.get_target(target)
    if costs is not None:
        place = replace(place, costs=costs if isinstance(costs, CostTable) else CostTable.load(costs))
    runtime = registry.runtimes.get(place.runtime)
    if runtime is None:
        raise InputError(f"target {target!r} wants the runtime {place.runtime!r}, which no plugin brings")
    passes = load_recipe("int8" if recipe is None else recipe, registry)
    progress = progress or Silent()
    source = load_source(model, inputs=inputs, verify=verify_source, registry=registry)
    specs = input_specs(source.model)
    data = None if calibration is None else as_data(calibration, specs, preprocess=preprocess)
    evaluation = as_evaluation(evaluate, specs, calibration=data, registry=registry, preprocess=preprocess)
    if max_drop is not None and evaluation is None:
        raise InputError("max_drop needs a metric", hint="give evaluate=(data, 'top1') or another metric")
    for step in passes:
        for need, given in (("calibration", data), ("evaluate", evaluation), ("training", training)):
            if need in step.needs and given is None:
                ctx = Context(registry, place, runtime, data, evaluation, step=Step(step.name, {}))
                getattr(ctx, need)  # raises with the way out
    feeds = _feeds(specs, data, source.example)
    samples = None if training is None else as_training(training, specs, preprocess=preprocess)
    ctx = Context(
        registry, place, runtime, data, evaluation, feeds, seed, threads, progress,
        training_data=samples, original=source.model, teachers=_teachers(teachers, inputs, registry),
    )  # fmt: skip
    contract = Contract(
        original=source.model,
        recipe=passes,
        ctx=ctx,
        feeds=feeds,
        max_drop=0.01 if max_drop is None else max_drop,
    )
    result = contract.fulfil()
    report = result.report
    report.model, report.framework = source.name, source.framework
    report.notes[:0] = source.notes
    report.seconds = time.perf_counter() - started
    return result


def _teachers(given: Any, inputs: Any, registry: Registry) -> tuple[ir.Model, ...]:
    from attar.api import load

    several = given if isinstance(given, list | tuple) else [given]
    return tuple(load(teacher, inputs=inputs, registry=registry) for teacher in several)


def _check_numbers(*, max_drop: Any, threads: Any, seed: Any) -> None:
    check_whole("threads", threads)
    check_whole("seed", seed)
    drop = 0 if max_drop is None else max_drop
    if isinstance(drop, bool) or not isinstance(drop, int | float):
        raise InputError(f"max_drop must be a number, not {drop!r:.60}")
    if not drop >= 0:
        raise InputError(f"max_drop must be at least 0, not {drop}")


def _feeds(specs: Sequence[TensorSpec], data: Any, example: Feeds | None) -> Feeds:
    """Inputs of one run: a sample of the data, else the example, else made up."""
    if data is not None:
        return one_sample(data.first().inputs, specs)
    if example is not None:
        return one_sample(example, specs)
    return sample_feeds(specs)


def _quantized(model: ir.Model) -> bool:
    return any(node.op_type == "DequantizeLinear" for node in graph.all_nodes(model))


def _count(model: ir.Model) -> int:
    return sum(1 for _ in graph.all_nodes(model))
