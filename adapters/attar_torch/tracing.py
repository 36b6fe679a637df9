"""The tracing exporter: takes what torch.export refuses, and is believed only as far as it was checked."""

from __future__ import annotations

import io
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch

from attar.errors import AttarError, ConversionError
from attar_torch.axes import Axes, enlarged
from attar_torch.job import Job
from attar_torch.quiet import no_stdout, quiet
from attar_torch.structure import to_numpy

_TRACED_OPSET = 17  # the newest that the tracing exporter writes without gaps
_MODES = torch.onnx.TrainingMode


def traced(job: Job) -> tuple[Any, Axes]:
    """The model and its dynamic axes. Tracing bakes sizes in silently, so axes must work at another size.

    Raises:
        ConversionError: the module branches on data.
    """
    if job.axes:
        try:
            model = _trace(job, job.axes)
            if _holds(job, model, job.axes, _repeated(job)):
                _refuse_branches(job, model, job.axes)
                return model, job.axes
        except AttarError:
            raise
        except Exception:  # fixed shapes may still work
            pass
    model = _trace(job, {})
    _refuse_branches(job, model, {})
    return model, {}


def _trace(job: Job, axes: Axes) -> Any:
    from attar.graph import from_proto, parse

    buffer = io.BytesIO()
    inner = job.flat.module
    # TorchScript needs no tracing, and refuses to be traced from outside.
    source = inner if isinstance(inner, torch.jit.ScriptModule) else job.flat
    with quiet(), no_stdout():
        torch.onnx.export(
            source,
            enlarged(job.tensors, axes),
            buffer,  # type: ignore[arg-type]
            dynamo=False,
            # It folds BatchNorm unless told to leave the modes as they are, which are those of inference.
            training=_MODES.PRESERVE,
            opset_version=_TRACED_OPSET,
            input_names=list(job.input_names),
            output_names=list(job.output_names),
            dynamic_axes={job.input_names[i]: dict(named) for i, named in axes.items()},
        )
    return from_proto(parse(buffer.getvalue(), "the traced module"), None, "the traced module")


def _refuse_branches(job: Job, model: Any, axes: Axes) -> None:
    """Tracing follows one way through the code. Inputs of another sign and order show if there are more."""
    if job.tensors and not model.graph.inputs:
        raise ConversionError(
            f"{job.what} computes its result in Python or by operators that torch cannot trace: "
            "traced, it depends on none of its inputs"
        )
    other = []
    for tensor in job.tensors:
        flipped = tensor.flip(tensor.ndim - 1) if tensor.ndim else tensor
        other.append(-flipped if tensor.is_floating_point() else flipped)
    try:
        job.flat(*other)
    except Exception:  # the module does not take such inputs, so they tell nothing
        return
    if not _holds(job, model, axes, other):
        raise ConversionError(
            f"{job.what} takes another way through its code for other data, "
            "which a traced graph cannot follow",
            hint="write the choice with torch.where or torch.cond",
        )


def _repeated(job: Job) -> list[torch.Tensor]:
    """The example with the dynamic axes three times as long."""
    out = []
    for index, tensor in enumerate(job.tensors):
        repeats = [3 if a in job.axes.get(index, {}) else 1 for a in range(tensor.ndim)]
        out.append(tensor.repeat(repeats) if repeats else tensor)
    return out


def _holds(job: Job, model: Any, axes: Axes, probe: Sequence[torch.Tensor]) -> bool:
    """Whether `model` gives what the module gives on the inputs `probe`."""
    from attar.graph import clone
    from attar.runtime import OnnxRuntime

    expected = [to_numpy(t) for t in job.flat(*probe)]
    finished = clone(model)
    job.finish(finished, axes)
    present = {v.name for v in finished.graph.inputs}
    feeds = {n: to_numpy(t) for n, t in zip(job.input_names, probe, strict=True) if n in present}
    with quiet():
        got = OnnxRuntime().open(finished).run(feeds)
    return all(
        a.shape == b.shape and np.allclose(a.astype(np.float64), b.astype(np.float64), rtol=1e-2, atol=1e-3)
        for a, b in zip(expected, got, strict=True)
    )
