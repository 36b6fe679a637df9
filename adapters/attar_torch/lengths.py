"""Recurrence: torch's exporter unrolls it over the steps of the example and calls the axis dynamic still."""

from __future__ import annotations

from typing import Any

import numpy as np

from attar.errors import AttarError
from attar_torch.axes import Axes, resized
from attar_torch.job import Job
from attar_torch.quiet import quiet
from attar_torch.structure import to_numpy

# A loop in Python over the steps is seen by what it takes apart.
_STEPS = ("aten.lstm", "aten.gru", "aten.rnn_", "aten.select.", "aten.unbind.")


def may_unroll(program: Any) -> bool:
    """Whether an exported program has recurrent layers, or takes tensors apart as loops over steps do."""
    return any(str(n.target).startswith(_STEPS) for n in program.graph.nodes if n.op == "call_function")


def unrolled(job: Job, model: Any, axes: Axes) -> set[str]:
    """The names of those dynamic axes along which `model`, in normal form, does not follow the module."""
    sizes = {n: job.tensors[i].shape[a] for i, named in axes.items() for a, n in named.items()}
    return {name for name, size in sizes.items() if not _follows(job, model, axes, name, size)}


def _follows(job: Job, model: Any, axes: Axes, name: str, size: int) -> bool:
    from attar.runtime import OnnxRuntime

    session = OnnxRuntime().open(model)
    present = {spec.name for spec in session.inputs}
    for other in (size, 2 * size + 1):
        tensors = [
            resized(t, {a for a, n in axes.get(i, {}).items() if n == name}, other)
            for i, t in enumerate(job.tensors)
        ]
        try:
            with quiet():
                wanted = [to_numpy(t) for t in job.flat(*tensors)]
        except Exception:  # the module itself does not take this size
            continue
        feeds = {n: to_numpy(t) for n, t in zip(job.input_names, tensors, strict=True) if n in present}
        try:
            got = session.run(feeds)
        except AttarError:
            return False
        for a, b in zip(wanted, got, strict=True):
            if a.shape != b.shape or not np.allclose(a, b, rtol=1e-2, atol=1e-3, equal_nan=True):
                return False
    return True
