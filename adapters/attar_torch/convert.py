"""From a flat module to the IR: torch.export first, the tracing exporter where that refuses."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import torch

from attar.errors import AttarError, ConversionError
from attar.runtime import OnnxRuntime
from attar_torch.agreement import unfaithful
from attar_torch.axes import Axes, enlarged, is_dynamic, resized, without
from attar_torch.job import OPSET, Job, essence
from attar_torch.keep_norms import optimize_around_norms
from attar_torch.lengths import may_unroll
from attar_torch.quiet import quiet
from attar_torch.strides import forget_memory_formats
from attar_torch.tracing import traced
from attar_torch.translations import translations

_MISSING = re.compile(
    r"No ONNX function found for <OpOverload\(op='([^']+)'|[Ee]xporting the operator '([^']+)'"
)


def convert(job: Job) -> tuple[Any, list[str]]:
    """The IR in normal form, and notes.

    Raises:
        ConversionError: both exporters refuse; operators without counterpart are listed.
    """
    asked, job = job.axes, replace(job, axes=_workable(job))
    try:
        model, kept, notes = _exported(job)
        return model, [*_fixed(job, asked, kept), *notes]
    except AttarError:
        raise
    except Exception as error:  # torch raises dozens of types here; the other exporter gets its chance
        first = error
    try:
        model, kept = traced(job)
        notes = [*_fixed(job, asked, kept), *job.finish(model, kept)]
    except AttarError:
        raise
    except Exception as second:
        raise _refusal(job, first, second) from first
    return model, [*notes, f"torch.export refused ({essence(first)}); the tracing exporter was used"]


def _exported(job: Job) -> tuple[Any, Axes, list[str]]:
    """By torch.export: the model in normal form, its dynamic axes, and notes."""
    program, kept = _capture(job)
    doubtful = _doubtful(program, kept)  # before the exporter takes the program apart
    model = to_ir(program, job.input_names, job.output_names)
    notes = job.finish(model, kept)
    bad = unfaithful(job, OnnxRuntime().open(model), kept) if doubtful else set()
    return _exported(replace(job, axes=without(kept, bad))) if bad else (model, kept, notes)


def to_ir(
    program: Any,
    input_names: Sequence[str],
    output_names: Sequence[str],
    *,
    own: bool = True,
) -> Any:
    """The onnx-ir model that torch makes of an exported program, which may be changed if it is our `own`."""
    with quiet():
        program = forget_memory_formats(program, own=own)
        result = torch.onnx.export(
            program,
            dynamo=True,
            external_data=False,
            opset_version=OPSET,
            input_names=list(input_names),
            output_names=list(output_names),
            verbose=False,
            custom_translation_table=translations(),
            optimize=False,
        )
    assert result is not None
    optimize_around_norms(result.model)
    # An input that is an output as well was named as the output, until an Identity came between the two.
    for value, name in zip(result.model.graph.inputs, input_names, strict=True):
        value.name = name
    return result.model


def _workable(job: Job) -> Axes:
    """The axes along which the module itself runs at another size than the example's.

    torch.export believes a promise that an axis is dynamic even where a reshape to numbers breaks it.
    """

    def runs(name: str, size: int) -> bool:
        try:
            tensors = [
                resized(t, {a for a, n in job.axes.get(i, {}).items() if n == name}, size)
                for i, t in enumerate(job.tensors)
            ]
            with quiet():
                job.flat(*tensors)
        except Exception:  # whatever the module raises on sizes that it cannot take
            return False
        return True

    sizes = {n: job.tensors[i].shape[a] for i, named in job.axes.items() for a, n in named.items()}
    bad = {n for n, d in sizes.items() if not any(runs(n, s) for s in (d - 1, 2 * d, d // 2) if s > 0)}
    return without(job.axes, bad)


def _capture(job: Job) -> tuple[Any, Axes]:
    """The exported program and the axes that stayed dynamic in it."""
    dim = torch.export.Dim
    axes = job.axes
    if axes:
        try:
            return _export(job, axes, dim.DYNAMIC), axes
        except Exception:  # some axis is fixed by the module itself; AUTO finds out which
            pass
        while axes:
            try:
                program = _export(job, axes, dim.AUTO)
            except Exception:  # not for the axes' sake, it seems; the fixed export will tell
                break
            left = _still_dynamic(program, axes)
            if left == axes:
                return program, axes
            axes = left  # again, with the fixed axes at the sizes of the example
    return _export(job, {}, None), {}


def _export(job: Job, axes: Axes, kind: Any) -> Any:
    tensors = enlarged(job.tensors, axes)
    shapes = tuple(dict.fromkeys(axes.get(i, {}), kind) or None for i in range(len(tensors)))
    with quiet():
        return torch.export.export(
            job.flat, tensors, dynamic_shapes=(shapes,) if axes else None, strict=False
        )


def _still_dynamic(program: Any, axes: Axes) -> Axes:
    shapes = _shapes(program)
    left: Axes = {}
    for index, named in axes.items():
        for axis, name in named.items():
            if isinstance(shapes[index][axis], torch.SymInt):
                left.setdefault(index, {})[axis] = name
    return left


def _doubtful(program: Any, axes: Axes) -> bool:
    """Whether the module may have been written out for the sizes of the example.

    torch.export gives an axis that it fixed itself a symbol still. Layers such as an LSTM may follow it all
    the same; loops over it cannot.
    """
    shapes = _shapes(program)
    open_ = all(is_dynamic(shapes[index][axis]) for index, named in axes.items() for axis in named)
    return bool(axes) and (not open_ or may_unroll(program))


def _shapes(program: Any) -> list[Any]:
    users = set(program.graph_signature.user_inputs)
    nodes = [n for n in program.graph.nodes if n.op == "placeholder" and n.name in users]
    return [n.meta["val"].shape for n in nodes]


def _fixed(job: Job, asked: Axes, kept: Axes) -> list[str]:
    """A note on the axes that were asked for and are not dynamic, if there are any."""
    fixed = [
        f"{job.input_names[i]} axis {axis} ({name})"
        for i, named in asked.items()
        for axis, name in named.items()
        if axis not in kept.get(i, {})
    ]
    why = "fixed to the size of the example, because the module depends on it: "
    return [why + ", ".join(fixed)] if fixed else []


def _refusal(job: Job, first: Exception, second: Exception) -> ConversionError:
    found = _unsupported(job)
    for error in (first, second):
        cause: BaseException | None = error
        while cause is not None:
            for pair in _MISSING.findall(str(cause)):
                found.append(next(p for p in pair if p))
            cause = cause.__cause__
    missing: dict[str, list[str]] = {}
    for op in found:  # aten::foo, aten.foo and aten.foo.default are one operator
        missing.setdefault(op.replace("::", ".").removesuffix(".default"), [job.what])
    return ConversionError(
        f"{job.what} cannot be written as ONNX. torch.export: {essence(first)}. Tracing: {essence(second)}",
        missing=missing,
        hint="replace the part in question by operators that ONNX has, or load the module without it",
    )


def _unsupported(job: Job) -> list[str]:
    """All operators of the module that torch's exporter has no translation for; none if it cannot tell."""
    try:
        from torch.onnx._internal.exporter._registration import ONNXRegistry

        program = _export(job, {}, None)
        with quiet():
            registry = ONNXRegistry.from_torchlib()
            program = program.run_decompositions()
        targets = {n.target for n in program.graph.nodes if n.op == "call_function"}
        ops = [t for t in targets if isinstance(t, torch._ops.OpOverload) and not registry.is_registered(t)]
        return sorted(str(t) for t in ops)
    except Exception:  # private parts of torch: the message of the exporter has to do
        return []
