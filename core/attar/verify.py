"""Checks that a pass kept its promises: same interface, sound graph, loads, finite outputs."""

from __future__ import annotations

from collections.abc import Set
from typing import Any

import numpy as np
import onnx_ir as ir

from attar import graph
from attar.errors import AttarError, InputError, VerifyError
from attar.feeds import Feeds
from attar.runtime import Runtime
from attar.specs import TensorSpec, input_specs, output_specs


def same_interface(before: ir.Model, after: ir.Model) -> None:
    """Inputs and outputs keep names, order, types, ranks and fixed dimensions.

    Raises:
        VerifyError: they do not; the message shows both.
    """
    dynamic = {d for s in input_specs(before) for d in s.shape or () if isinstance(d, str)}
    for what, old, new in (
        ("inputs", input_specs(before), input_specs(after)),
        ("outputs", output_specs(before), output_specs(after)),
    ):
        if [s.name for s in old] != [s.name for s in new]:
            raise VerifyError(
                f"the {what} changed from {', '.join(s.name for s in old)} "
                f"to {', '.join(s.name for s in new)}"
            )
        for mine, theirs in zip(old, new, strict=True):
            if not _compatible(mine, theirs, dynamic):
                raise VerifyError(f"{what.removesuffix('s')} changed from {mine} to {theirs}")


def _compatible(old: TensorSpec, new: TensorSpec, dynamic: Set[str]) -> bool:
    """`dynamic`: symbolic dimensions that the caller chooses. Other symbols of an output only say that its
    size was not known, and may turn out to be fixed."""
    if old.dtype != new.dtype:
        return False
    if old.shape is None:
        return True
    if new.shape is None or len(old.shape) != len(new.shape):
        return False
    for was, now in zip(old.shape, new.shape, strict=True):
        if isinstance(was, int) and isinstance(now, int) and was != now:
            return False
        if isinstance(was, str) and was in dynamic and isinstance(now, int):
            return False
    return True


def sound(model: ir.Model) -> None:
    """Names are unique, every value is made before it is used, shapes follow from the operators, the checker
    agrees.

    Raises:
        VerifyError: the first thing that is wrong.
    """
    import onnx

    try:
        graph.refresh_shapes(model)
    except AttarError:
        raise
    except Exception as error:  # onnx-ir cannot copy a graph with values from nowhere, or with a cycle
        cause: BaseException = error
        while cause.__cause__ is not None:
            cause = cause.__cause__
        raise VerifyError(f"the graph is not consistent: {str(cause).splitlines()[0]:.300}") from error
    try:
        if graph.byte_size(model) < 1 << 30:
            onnx.checker.check_model(graph.to_proto(model))
        else:
            from attar.graph.light import light_proto

            # Structure only: the checker wants one message below 2 GB.
            onnx.checker.check_model(light_proto(model)[0])
    except onnx.checker.ValidationError as error:
        raise VerifyError(f"not valid ONNX: {str(error).strip().splitlines()[0]}") from error


def runs(model: ir.Model, runtime: Runtime, feeds: Feeds | None, before: ir.Model | None = None) -> None:
    """The runtime loads it without optimizations and, given inputs, computes finite outputs.

    Args:
        before: the model that it was made from; where its outputs are NaN or infinite, they may stay so.

    Raises:
        VerifyError: it does not.
    """
    try:
        session = runtime.open(model, optimize=False)
        results = session.run(feeds) if feeds is not None else []
    except InputError as error:
        raise VerifyError(error.message) from error
    bad = {
        name: ~np.isfinite(array)
        for name, array in zip(session.outputs, results, strict=False)
        if isinstance(array, np.ndarray) and np.issubdtype(array.dtype, np.floating)
    }
    bad = {name: mask for name, mask in bad.items() if mask.any()}
    if not bad or feeds is None:
        return
    expected: dict[str, Any] = {}
    if before is not None:
        original = runtime.open(before, optimize=False)
        expected = dict(zip(original.outputs, original.run(feeds), strict=True))
    for name, mask in bad.items():
        wanted = expected.get(name)
        if wanted is None or wanted.shape != mask.shape or np.isfinite(wanted[mask]).any():
            raise VerifyError(f"output {name!r} became NaN or infinite")


def verify(before: ir.Model, after: ir.Model, runtime: Runtime, feeds: Feeds | None = None) -> None:
    """All of the above.

    Raises:
        VerifyError: what is wrong.
    """
    same_interface(before, after)
    sound(after)
    runs(after, runtime, feeds, before)
