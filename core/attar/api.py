"""The top-level functions besides `compress`: load, save, evaluate, profile, compare."""

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
    from attar.conversion.parity import Parity


@dataclass(frozen=True)
class Source:
    """A loaded model with what is known of its origin."""

    model: ir.Model
    name: str
    framework: str
    example: Mapping[str, np.ndarray[Any, Any]] | None = None
    notes: list[str] = field(default_factory=list)
    reference: Reference | None = None
    parity: Parity | None = None


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
    loaded = adapter.load(source, inputs=inputs, registry=registry, **options)
    notes, found = list(loaded.notes), None
    if verify and loaded.reference is not None and loaded.example is not None:
        found = parity(loaded, adapter.name)
        notes.append(f"matches {adapter.name}: {found}")
        # Beyond the tolerance a loaded model is wrong, not merely rounded otherwise.
        if not (found.relative <= loaded.tolerance or found.rms <= loaded.tolerance_rms):
            raise VerifyError(
                f"the loaded model differs from its {adapter.name} source by {found.relative:.2g} "
                "of the largest output",
                hint="load(..., verify=False) gives it all the same",
            )
    origin = graph.provenance(source) if isinstance(source, ir.Model) else {}
    framework = origin.get("framework", adapter.name)
    graph.set_provenance(loaded.model, **{**origin, "framework": framework})
    name = _name_of(source, loaded.model)
    return Source(loaded.model, name, framework, loaded.example, notes, loaded.reference, found)


def parity(loaded: Loaded, who: str = "source") -> Parity:
    """How a loaded model differs from its source, both run on the example.

    Raises:
        InputError: the source cannot be run, or there is no example.
        VerifyError: number or shapes of the outputs differ.
    """
    from attar.conversion.parity import compare_outputs

    if loaded.reference is None or loaded.example is None:
        raise InputError("this source cannot be run in its own framework")
    wanted = loaded.reference(loaded.example)
    session = OnnxRuntime().open(loaded.model)
    return compare_outputs(session.outputs, wanted, session.run(loaded.example), f"the {who} model in ONNX")


def save(model: ir.Model, path: str | Path) -> None:
    """Write a model as ONNX, in one step; large weights go to `<name>.data` beside it.

    Raises:
        InputError: it is no model of attar's, or the folder does not exist or cannot be written.
    """
    if not isinstance(model, ir.Model):
        raise InputError(f"cannot save {type(model).__name__}", hint="attar.load gives the model to save")
    graph.save(model, path)


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
