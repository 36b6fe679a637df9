"""The top-level functions besides `compress`: load, save, export, evaluate, profile, compare."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import onnx_ir as ir

from attar import graph
from attar.adapters import Loaded, find_adapter, type_path
from attar.errors import InputError, VerifyError
from attar.feeds import one_sample, sample_feeds
from attar.measure import differences, interleaved, latency, snapshot
from attar.progress import Progress
from attar.registry import Registry, default_registry
from attar.report import Kernel, OutputDiff, Snapshot, Speed, plain
from attar.runtime import OnnxRuntime
from attar.specs import input_specs

if TYPE_CHECKING:
    from attar.adapters import Reference

# Beyond this relative difference from its own framework a loaded model is wrong, not merely rounded
# otherwise.
_PARITY = 1e-3


@dataclass(frozen=True)
class Source:
    """A loaded model with what is known of its origin."""

    model: ir.Model
    name: str
    framework: str
    example: Mapping[str, np.ndarray[Any, Any]] | None = None
    notes: list[str] = field(default_factory=list)


def load(
    source: Any,
    *,
    inputs: Any = None,
    verify: bool = True,
    registry: Registry | None = None,
    **options: Any,
) -> ir.Model:
    """Read a model of any framework into the IR. The source is never changed and shares no memory with the
    result.

    Args:
        source: a path, bytes, `onnx.ModelProto`, `torch.nn.Module`, `ExportedProgram`, or whatever a plugin's
            adapter reads.
        inputs: example inputs, where the source has no fixed signature (an `nn.Module`): an array or tensor,
            a tuple of them, or a mapping by argument name.
        verify: run the source in its own framework and the result in ONNX Runtime on `inputs`, and compare.
        options: passed on to the adapter.

    Raises:
        InputError: the source or the example is unusable.
        ConversionError: it uses operators that the IR cannot say.
        VerifyError: the result does not compute what the source computes.
    """
    return load_source(source, inputs=inputs, verify=verify, registry=registry, **options).model


def load_source(
    source: Any,
    *,
    inputs: Any = None,
    verify: bool = True,
    registry: Registry | None = None,
    **options: Any,
) -> Source:
    """`load`, with name, framework, example and notes."""
    registry = registry or default_registry()
    adapter = find_adapter(source, registry)
    loaded = adapter.load(source, inputs=inputs, **options)
    notes = list(loaded.notes)
    if verify and loaded.reference is not None and loaded.example is not None:
        difference = parity(loaded)
        notes.append(
            f"matches {adapter.name} within {difference:.1e} (largest difference over largest output)"
        )
        if not difference <= _PARITY:
            raise VerifyError(
                f"the loaded model differs from its {adapter.name} source by {difference:.2g} "
                "of the largest output",
                hint="load(..., verify=False) gives it all the same",
            )
    origin = graph.provenance(source) if isinstance(source, ir.Model) else {}
    framework = origin.get("framework", adapter.name)
    graph.set_provenance(loaded.model, **{**origin, "framework": framework})
    return Source(loaded.model, _name_of(source, loaded.model), framework, loaded.example, notes)


def parity(loaded: Loaded) -> float:
    """Largest difference between a source and its loaded form, over the largest magnitude of each output."""
    reference: Reference | None = loaded.reference
    if reference is None or loaded.example is None:
        raise InputError("this source cannot be run in its own framework")
    wanted = reference(loaded.example)
    session = OnnxRuntime().open(loaded.model)
    worst = 0.0
    for name, theirs, ours in zip(session.outputs, wanted, session.run(loaded.example), strict=True):
        if theirs.shape != ours.shape:
            raise VerifyError(
                f"output {name!r} has shape {list(ours.shape)}, the source gives {list(theirs.shape)}"
            )
        if theirs.size:
            a, b = theirs.astype(np.float64), ours.astype(np.float64)
            same = (a == b) | (np.isnan(a) & np.isnan(b))  # masks of -inf stay -inf
            gap = np.where(same, 0.0, np.abs(np.where(same, 0.0, a) - np.where(same, 0.0, b)))
            gap[np.isnan(gap)] = np.inf  # a NaN on one side only; max() would pass over it
            reach = np.abs(a[np.isfinite(a)]).max(initial=0.0)
            worst = max(worst, float(gap.max()) / max(float(reach), 1e-12))
    return worst


def save(model: ir.Model, path: str | Path) -> None:
    """Write a model as ONNX, in one step; large weights go to `<name>.data` beside it.

    Raises:
        InputError: it is no model of attar's, or the folder does not exist or cannot be written.
    """
    if not isinstance(model, ir.Model):
        raise InputError(f"cannot save {type(model).__name__}", hint="attar.load gives the model to save")
    graph.save(model, path)


def export(model: ir.Model, framework: str, *, registry: Registry | None = None, **options: Any) -> Any:
    """Write a model as a native one of `framework`.

    Raises:
        InputError: no adapter of that name.
        ConversionError: the adapter cannot write, or the framework cannot say some operators; all are listed.
    """
    return (registry or default_registry()).get_adapter(framework).export(model, **options)


def evaluate(
    model: Any,
    data: Any,
    metric: Any = "top1",
    *,
    preprocess: Any = None,
    inputs: Any = None,
    threads: int = 1,
    progress: Progress | None = None,
    registry: Registry | None = None,
) -> float:
    """The value of a metric over labelled data.

    Raises:
        InputError: the data do not fit the model, have no labels, or the metric is unknown.
    """
    from attar.evaluation import as_evaluation

    registry = registry or default_registry()
    loaded = load_source(model, inputs=inputs, registry=registry).model
    specs = input_specs(loaded)
    evaluation = as_evaluation((data, metric), specs, registry=registry, preprocess=preprocess)
    assert evaluation is not None
    return evaluation.run(OnnxRuntime().open(loaded, threads=threads), progress=progress)


@dataclass(frozen=True)
class Profile:
    """Where a model's time goes.

    Attributes:
        latency_ms: median milliseconds of one run.
        kernels: the runtime's kernels with the median milliseconds of each.
        shapes: input name -> shape that was run.
    """

    latency_ms: float
    kernels: tuple[Kernel, ...]
    shapes: Mapping[str, tuple[int, ...]]
    threads: int = 1

    def to_dict(self) -> dict[str, Any]:
        fitted = plain(dataclasses.asdict(self))
        assert isinstance(fitted, dict)
        return fitted


def profile(
    model: Any,
    *,
    threads: int = 1,
    runs: int = 30,
    inputs: Any = None,
    registry: Registry | None = None,
) -> Profile:
    """Time a model in ONNX Runtime, kernel by kernel.

    Args:
        inputs: what to run it on, as `load` takes it; one made-up sample unless given.
    """
    source = load_source(model, inputs=inputs, registry=registry)
    feeds = _feeds(source, inputs)
    runtime = OnnxRuntime()
    total = latency(runtime.open(source.model, threads=threads), feeds, runs=runs)
    kernels = runtime.open(source.model, threads=threads, profile=True).profile(feeds, runs=runs)
    return Profile(total, kernels, {n: tuple(a.shape) for n, a in feeds.items()}, threads)


@dataclass(frozen=True)
class Comparison:
    """Two models side by side: `before` and `after`, their speed interleaved, their outputs on the same
    inputs."""

    before: Snapshot
    after: Snapshot
    speed: Speed
    outputs: list[OutputDiff]

    def to_dict(self) -> dict[str, Any]:
        fitted = plain(dataclasses.asdict(self))
        assert isinstance(fitted, dict)
        return fitted


def compare(
    before: Any,
    after: Any,
    *,
    data: Any = None,
    preprocess: Any = None,
    threads: int = 1,
    runs: int = 60,
    progress: Progress | None = None,
    registry: Registry | None = None,
) -> Comparison:
    """Size, speed and outputs of two models with the same interface.

    Args:
        data: what to compare the outputs on; made-up inputs unless given, which say little about a trained
            network.

    Raises:
        InputError: their inputs or outputs differ, or the data do not fit.
    """
    from attar.calibration import as_data

    first = load_source(before, registry=registry)
    second = load_source(after, registry=registry)
    specs = input_specs(first.model)
    if [s.name for s in specs] != [s.name for s in input_specs(second.model)]:
        raise InputError(
            f"the models' inputs differ: {', '.join(map(str, specs))} and "
            f"{', '.join(map(str, input_specs(second.model)))}"
        )
    runtime = OnnxRuntime()
    a, b = (runtime.open(m, threads=threads) for m in (first.model, second.model))
    if data is None:
        batches: Any = [sample_feeds(specs, seed=i) for i in range(4)]
        feeds: Mapping[str, Any] = batches[0]
        total: float | None = 4
    else:
        source = as_data(data, specs, preprocess=preprocess)
        feeds, total = one_sample(source.first().inputs, specs), None
        batches = (batch.inputs for batch in source)
    outputs = differences(a, b, batches, total=total, progress=progress)
    speed = interleaved(a, b, feeds, threads=threads, runs=runs)
    return Comparison(snapshot(first.model, a.kernels()), snapshot(second.model, b.kernels()), speed, outputs)


def _feeds(source: Source, inputs: Any) -> Mapping[str, Any]:
    specs = input_specs(source.model)
    if source.example is not None:
        return source.example
    if inputs is None:
        return sample_feeds(specs)
    if isinstance(inputs, Mapping):
        return {name: np.asarray(array) for name, array in inputs.items()}
    arrays: Sequence[Any] = inputs if isinstance(inputs, tuple | list) else (inputs,)
    return {spec.name: np.asarray(a) for spec, a in zip(specs, arrays, strict=False)}


def _name_of(source: Any, model: ir.Model) -> str:
    if isinstance(source, str | Path):
        return Path(source).name
    if isinstance(source, ir.Model) or type_path(source)[0].startswith(("onnx.", "builtins.")):
        return model.graph.name or "model"
    return type(source).__name__
