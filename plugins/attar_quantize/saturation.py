"""What becomes of the result on processors whose integer kernels saturate."""

from __future__ import annotations

import onnx_ir as ir

from attar.context import Context
from attar.errors import InputError

_SAMPLES = 8


def tell_saturation(model: ir.Model, ctx: Context) -> None:
    """Note what a target without VNNI will give: predicted by simulation, with the metric if there is one."""
    if not ctx.target.saturates or ctx.probing:
        return
    from attar.diagnosis.saturation import predict

    try:
        found = predict(model, ctx, samples=_SAMPLES, evaluation=ctx.evaluation)
    except InputError as error:
        ctx.note(f"what a processor without VNNI will give was not predicted: {error.message}")
        return
    ctx.note(str(found))
