"""Whether what an exporter made computes what the module computes, on other inputs than the example's."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch

from attar.adapters import Loaded
from attar.conversion.parity import compare_outputs
from attar.errors import AttarError
from attar_torch.axes import Axes, enlarged, resized
from attar_torch.job import Job
from attar_torch.quiet import quiet
from attar_torch.structure import to_numpy


def agrees(job: Job, session: Any, tensors: Sequence[torch.Tensor]) -> bool:
    """Whether the model that `session` runs gives what the module gives on `tensors`.

    Whatever the module raises on inputs that it cannot take is raised.
    """
    with quiet():
        wanted = [to_numpy(t) for t in job.flat(*tensors)]
    present = {spec.name for spec in session.inputs}
    feeds = {n: to_numpy(t) for n, t in zip(job.input_names, tensors, strict=True) if n in present}
    try:
        parity = compare_outputs(job.output_names, wanted, session.run(feeds), "the exported model")
    except AttarError:  # it does not run on them, or gives other shapes
        return False
    return parity.relative <= Loaded.tolerance


def unfaithful(job: Job, session: Any, axes: Axes) -> set[str]:
    """The names of those dynamic axes along which the model, in normal form, does not follow the module.

    An example may be the same at every step, so that rounds too few or too many change little. Sizes below
    the example's show those even then.
    """
    tensors = enlarged(job.tensors, axes)  # those that the exporters saw
    sizes = {n: tensors[i].shape[a] for i, named in axes.items() for a, n in named.items()}
    return {
        name
        for name, size in sizes.items()
        if any(
            _differs(job, session, tensors, axes, name, s) for s in (size, 2 * size, 2 * size + 1, size // 2)
        )
    }


def _differs(  # noqa: PLR0917
    job: Job, session: Any, tensors: Sequence[torch.Tensor], axes: Axes, name: str, size: int
) -> bool:
    """Whether it does not follow the module where the axes `name` have `size`."""
    if not size:
        return False
    sized = [
        resized(t, {a for a, n in axes.get(i, {}).items() if n == name}, size) for i, t in enumerate(tensors)
    ]
    try:
        return not agrees(job, session, sized)
    except Exception:  # the module itself does not take this size
        return False
