"""Writing models for other frameworks, and proving that they still compute the same."""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from attar import graph
from attar.adapters import Adapter, Exported
from attar.api import Source, load_source
from attar.conversion.parity import Parity, compare_outputs
from attar.errors import AttarError, ConversionError, InputError, VerifyError
from attar.feeds import sample_feeds
from attar.files import place
from attar.progress import Progress, Silent
from attar.registry import Registry, default_registry
from attar.report import plain
from attar.runtime import OnnxRuntime
from attar.specs import input_specs

if TYPE_CHECKING:
    import onnx_ir as ir

    from attar.feeds import Feeds

# Other rounding at ties moves a quantized value by one step, which later layers spread: the power of the
# difference tells a wrong operator from that, its largest element does not.
_QUANTIZED_RMS = 0.05


@dataclass(frozen=True)
class Conversion:
    """A model that went from one framework to another.

    Attributes:
        native: the framework's own object.
        model: the IR between the two.
        name: of the source.
        source: framework it came from.
        target: framework it went to.
        reading: the IR against the source framework; None if not compared.
        writing: the result, run in its framework, against the source framework, or against the IR where the
            source cannot be run; None if not compared.
        files: what was written, the one to load again first.
        notes: what happened on the way.
        seconds: time of each stage: "read", "write", "verify", "save".
    """

    native: Any
    model: ir.Model
    name: str
    source: str
    target: str
    reading: Parity | None
    writing: Parity | None
    files: tuple[Path, ...]
    notes: tuple[str, ...]
    seconds: Mapping[str, float]

    def to_dict(self) -> dict[str, Any]:
        """Everything but the models, as JSON can hold it."""
        fields = ("name", "source", "target", "notes", "seconds")
        told = {f: getattr(self, f) for f in fields} | {"files": [str(f) for f in self.files]}
        for stage in ("reading", "writing"):
            parity: Parity | None = getattr(self, stage)
            told[stage] = None if parity is None else [dataclasses.asdict(o) for o in parity.outputs]
        fitted = plain(told)
        assert isinstance(fitted, dict)
        return fitted

    def __str__(self) -> str:
        lines = [f"{self.name}: {self.source} -> {self.target}"]
        for stage, what, parity in (("read", "read", self.reading), ("write", "written", self.writing)):
            told = "not compared" if parity is None else str(parity)
            lines.append(f"  {what} in {self.seconds[stage]:.1f} s, {told}")
        lines += [f"  {note}" for note in self.notes]
        lines += [f"  wrote {file}" for file in self.files]
        return "\n".join(lines)


def export(
    model: Any,
    framework: str,
    *,
    inputs: Any = None,
    verify: bool = True,
    registry: Registry | None = None,
    **options: Any,
) -> Any:
    """Write a model as a native one of `framework`, and hold its outputs against the model's own.

    Args:
        model: a model of attar's, or anything that `attar.load` reads without an example.
        framework: an adapter's name, such as "torch" or "tensorflow".
        inputs: what to compare on, as `load` takes it; made-up inputs unless given.
        verify: run the result in its framework and the model in ONNX Runtime, and compare.
        options: for the adapter.

    Raises:
        InputError: no adapter of that name, an unknown option, or the model does not run on the inputs.
        ConversionError: the adapter cannot write, or the framework cannot say some operators; all are listed.
        VerifyError: the result computes something else.
    """
    registry = registry or default_registry()
    source = load_source(model, inputs=inputs, registry=registry, verify=False)
    adapter = registry.get_adapter(framework)
    exported = _write(adapter, source.model, registry, options)
    if verify:
        check(exported, source, adapter)
    return exported.native


def convert(
    source: Any,
    to: str,
    path: str | Path | None = None,
    *,
    inputs: Any = None,
    verify: bool = True,
    registry: Registry | None = None,
    progress: Progress | None = None,
    reading: Mapping[str, Any] | None = None,
    **options: Any,
) -> Conversion:
    """Turn a model of one framework into a native one of another.

    Args:
        source: whatever `attar.load` reads.
        to: the framework, by the name of its adapter.
        path: where to write files; none are written unless given.
        inputs: example inputs, as `load` takes them.
        verify: compare the outputs of source, IR and result.
        reading: options for the adapter that reads.
        options: for the adapter that writes.

    Raises:
        InputError: the source, an option or the place to write is unusable.
        ConversionError: operators have no counterpart; all are listed.
        VerifyError: IR or result compute something else than the source. No file is written.
    """
    registry, progress = registry or default_registry(), progress or Silent()
    adapter = registry.get_adapter(to)
    target = None if path is None else _place(path)
    seconds: dict[str, float] = {}
    clock = time.perf_counter
    with progress.task(f"converting to {to}", 4) as task:
        start = clock()
        loaded = load_source(source, inputs=inputs, verify=verify, registry=registry, **(reading or {}))
        seconds["read"], start = clock() - start, clock()
        task.advance()
        exported = _write(adapter, loaded.model, registry, options)
        seconds["write"], start = clock() - start, clock()
        task.advance()
        parity = check(exported, loaded, adapter) if verify else None
        seconds["verify"], start = clock() - start, clock()
        task.advance()
        files = () if target is None else adapter.save(exported, target)
        seconds["save"] = clock() - start
        task.advance()
    return Conversion(
        native=exported.native,
        model=loaded.model,
        name=loaded.name,
        source=loaded.framework,
        target=to,
        reading=loaded.parity,
        writing=parity,
        files=files,
        notes=(*loaded.notes, *exported.notes),
        seconds=seconds,
    )


def _write(adapter: Adapter, model: ir.Model, registry: Registry, options: Mapping[str, Any]) -> Exported:
    try:
        return adapter.write(model, registry=registry, **options)
    except AttarError:
        raise
    except Exception as error:  # of a framework, or of a lowering that met what nobody thought of
        raise ConversionError(
            f"{adapter.name} cannot write the model: {type(error).__name__}: {str(error).strip()[:300]}",
            hint="the error behind this one names the place (attar convert --traceback)",
        ) from error


def check(exported: Exported, source: Source, adapter: Adapter) -> Parity:
    """Hold what an adapter wrote against its source: the framework it came from, else ONNX Runtime.

    Raises:
        InputError: the model does not run on the inputs.
        VerifyError: the outputs differ.
    """
    feeds = _feeds(source)
    session = OnnxRuntime().open(source.model)
    quantized = any("QuantizeLinear" in node.op_type for node in graph.all_nodes(source.model))
    if source.reference is not None and not quantized:
        wanted = [np.asarray(array) for array in source.reference(feeds)]
    else:
        wanted = list(session.run(feeds))
    try:
        got = exported.run(feeds)
    except InputError:
        raise
    except Exception as error:  # whatever the framework raises
        raise VerifyError(
            f"the {adapter.name} model does not run: {type(error).__name__}: {str(error).strip()[:300]}"
        ) from error
    parity = compare_outputs(session.outputs, wanted, got, f"the {adapter.name} model")
    right = parity.relative <= exported.tolerance or (quantized and parity.rms <= _QUANTIZED_RMS)
    if not right:
        worst = max(parity.outputs, key=lambda o: o.relative)
        raise VerifyError(
            f"the {adapter.name} model computes something else: output {worst.name!r} differs by "
            f"{worst.absolute:.2g}, {worst.relative:.2g} of its largest value",
            hint="verify=False gives it all the same",
        )
    return parity


def _feeds(source: Source) -> Feeds:
    if source.example is not None:
        return source.example
    return sample_feeds(input_specs(source.model), batch=2, length=16)


def _place(path: str | Path) -> Path:
    path = Path(path)
    if not path.is_dir():  # some frameworks write folders
        place(path)
    if not path.parent.is_dir():
        raise InputError(f"cannot write {path}: there is no folder {path.parent}")
    return path
