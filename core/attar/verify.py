"""Checks that a pass kept its promises: same interface, sound graph, loads, finite outputs."""

from __future__ import annotations

import numpy as np
import onnx_ir as ir

from attar import graph
from attar.errors import InputError, VerifyError
from attar.feeds import Feeds
from attar.runtime import Runtime
from attar.specs import TensorSpec, input_specs, output_specs


def same_interface(before: ir.Model, after: ir.Model) -> None:
    """Inputs and outputs keep names, order, types, ranks and fixed dimensions.

    Raises:
        VerifyError: they do not; the message shows both.
    """
    for what, old, new in (
        ("inputs", input_specs(before), input_specs(after)),
        ("outputs", output_specs(before), output_specs(after)),
    ):
        if [s.name for s in old] != [s.name for s in new]:
            raise VerifyError(
                f"the {what} changed from {', '.join(s.name for s in old)} to {', '.join(s.name for s in new)}"
            )
        for mine, theirs in zip(old, new, strict=True):
            if not _compatible(mine, theirs):
                raise VerifyError(f"{what.removesuffix('s')} changed from {mine} to {theirs}")


def _compatible(old: TensorSpec, new: TensorSpec) -> bool:
    if old.dtype != new.dtype:
        return False
    if old.shape is None or new.shape is None:
        return True
    return len(old.shape) == len(new.shape) and all(
        a == b or not (isinstance(a, int) and isinstance(b, int)) for a, b in zip(old.shape, new.shape, strict=True)
    )


def sound(model: ir.Model) -> None:
    """Names are unique, every value is made before it is used, shapes follow from the operators, the checker agrees.

    Raises:
        VerifyError: the first thing that is wrong.
    """
    import onnx

    graph.refresh_shapes(model)
    try:
        if graph.byte_size(model) < 1 << 30:
            onnx.checker.check_model(graph.to_proto(model))
        else:
            from attar.graph.light import light_proto

            # Structure only: the checker wants one message below 2 GB.
            onnx.checker.check_model(light_proto(model)[0])
    except onnx.checker.ValidationError as error:
        raise VerifyError(f"not valid ONNX: {str(error).strip().splitlines()[0]}") from error


def runs(model: ir.Model, runtime: Runtime, feeds: Feeds | None) -> None:
    """The runtime loads it without optimizations and, given inputs, computes finite outputs.

    Raises:
        VerifyError: it does not.
    """
    try:
        session = runtime.open(model, optimize=False)
        results = session.run(feeds) if feeds is not None else []
    except InputError as error:
        raise VerifyError(error.message) from error
    for name, array in zip(session.outputs, results, strict=False):
        if isinstance(array, np.ndarray) and np.issubdtype(array.dtype, np.floating) and np.isnan(array).any():
            raise VerifyError(f"output {name!r} has NaN")


def verify(before: ir.Model, after: ir.Model, runtime: Runtime, feeds: Feeds | None = None) -> None:
    """All of the above.

    Raises:
        VerifyError: what is wrong.
    """
    same_interface(before, after)
    sound(after)
    runs(after, runtime, feeds)
