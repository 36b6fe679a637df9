"""The tracing exporter: takes what torch.export refuses, and is believed only as far as it was checked."""

from __future__ import annotations

import io
from typing import Any

import torch

from attar.errors import ConversionError
from attar.frameworks import muted
from attar_torch.agreement import agrees, unfaithful
from attar_torch.axes import Axes, enlarged, without
from attar_torch.job import Job
from attar_torch.quiet import quiet

_TRACED_OPSET = 17  # the newest that the tracing exporter writes without gaps


def traced(job: Job) -> tuple[Any, Axes]:
    """The model and its dynamic axes. Tracing bakes sizes in silently, so axes must work at other sizes.

    Raises:
        ConversionError: the module branches on data.
    """
    axes = job.axes
    while axes:
        try:
            model = _trace(job, axes)
            session = _session(job, model, axes)
            bad = unfaithful(job, session, axes)
        except Exception:  # fixed shapes may still work
            break
        if not bad:
            _refuse_branches(job, session)
            return model, axes
        axes = without(axes, bad)
    model = _trace(job, {})
    _refuse_branches(job, _session(job, model, {}))
    return model, {}


def _trace(job: Job, axes: Axes) -> Any:
    from attar.graph import from_proto, parse

    buffer = io.BytesIO()
    inner = job.flat.module
    # TorchScript needs no tracing, and refuses to be traced from outside.
    source = inner if isinstance(inner, torch.jit.ScriptModule) else job.flat
    with quiet(), muted(1):  # from C++, torch prints the graphs that it refuses
        torch.onnx.export(
            source,
            enlarged(job.tensors, axes),
            buffer,  # type: ignore[arg-type]
            dynamo=False,
            # It folds BatchNorm unless told to leave the modes as they are, which are those of inference.
            training=torch.onnx.TrainingMode.PRESERVE,
            opset_version=_TRACED_OPSET,
            input_names=list(job.input_names),
            output_names=list(job.output_names),
            dynamic_axes={job.input_names[i]: dict(named) for i, named in axes.items()},
        )
    return from_proto(parse(buffer.getvalue(), "the traced module"), None, "the traced module")


def _session(job: Job, model: Any, axes: Axes) -> Any:
    """What runs `model`, which is left as the exporter made it."""
    from attar.graph import clone
    from attar.runtime import OnnxRuntime

    finished = clone(model)
    job.finish(finished, axes)
    return OnnxRuntime().open(finished)


def _refuse_branches(job: Job, session: Any) -> None:
    """Tracing follows one way through the code. Inputs of another sign and order show if there are more."""
    if job.tensors and not session.inputs:
        raise ConversionError(
            f"{job.what} computes its result in Python or by operators that torch cannot trace: "
            "traced, it depends on none of its inputs"
        )
    other = []
    for tensor in job.tensors:
        flipped = tensor.flip(tensor.ndim - 1) if tensor.ndim else tensor
        other.append(-flipped if tensor.is_floating_point() else flipped)
    try:
        same = agrees(job, session, other)
    except Exception:  # the module does not take such inputs, so they tell nothing
        return
    if not same:
        raise ConversionError(
            f"{job.what} takes another way through its code for other data, "
            "which a traced graph cannot follow",
            hint="write the choice with torch.where or torch.cond",
        )
