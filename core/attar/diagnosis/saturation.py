"""What a quantized model will give on an x86 processor without VNNI, told without having one."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING

from attar.diagnosis.emulator import emulate
from attar.feeds import first_pieces
from attar.lowering import lower
from attar.measure import worst_sqnr

if TYPE_CHECKING:
    import onnx_ir as ir

    from attar.context import Context
    from attar.evaluation import Evaluation


@dataclass(frozen=True)
class Saturation:
    """A prediction, made by running the model with sums that saturate in 16 bits (`emulate`).

    Attributes:
        safe: the weights are such that no input can make a sum saturate; nothing was run then.
        share: share of the pair sums that were cut off.
        output_db: SQNR of the worst output, saturating against exact sums; inf where nothing was cut off.
        layers: (name, share of its pair sums that were cut off), the gravest first, those without left out.
        metric_name: "" without an evaluation.
        exact, saturated: the metric with exact sums, and as predicted; None without an evaluation.
    """

    safe: bool
    share: float = 0.0
    output_db: float = math.inf
    layers: tuple[tuple[str, float], ...] = ()
    metric_name: str = ""
    exact: float | None = None
    saturated: float | None = None

    def __str__(self) -> str:
        if self.safe:
            return "without VNNI: the same, since no sum of two products can leave 16 bits"
        text = f"without VNNI: {self.share:.3%} of the sums of two products saturate in 16 bits"
        if math.isfinite(self.output_db):
            text += f", outputs at {self.output_db:.1f} dB"
        if self.exact is not None and self.saturated is not None:
            text += f", {self.metric_name} {self.exact:.4g} -> {self.saturated:.4g}"
        if not self.layers:
            return text
        worst = ", ".join(f"{name} {share:.2%}" for name, share in self.layers[:3])
        return f"{text}; most in {worst}; weights of 7 bits (reduce_range=True) avoid it"


def predict(
    model: ir.Model,
    ctx: Context,
    *,
    samples: int = 16,
    evaluation: Evaluation | None = None,
) -> Saturation:
    """Run `model` as a processor without VNNI would.

    Args:
        model: quantized, in portable form; the target's lowerings are applied to a copy.
        samples: calibration samples on which outputs are compared.
        evaluation: measured as well, with exact and with saturating sums; the emulation takes several times
            as long as the runtime.
    """
    lowered = lower(model, ctx.target)[0]
    session = emulate(lowered, ctx.runtime, threads=ctx.threads)
    if session.safe:
        return Saturation(safe=True)
    exact = ctx.runtime.open(lowered, threads=ctx.threads)
    if _saturates_here():
        exact = emulate(lowered, ctx.runtime, threads=ctx.threads, saturate=False)
    output_db = math.inf
    if ctx.data is not None:
        output_db = worst_sqnr(exact, session, first_pieces(ctx.data, samples))
    elif ctx.feeds is not None:
        output_db = worst_sqnr(exact, session, [ctx.feeds])
    name, before, after = "", None, None
    if evaluation is not None:
        name, before, after = evaluation.name, evaluation.run(exact), evaluation.run(session)
    shares = [(layer.name, layer.lost.share) for layer in session.layers if layer.lost.cut]
    shares.sort(key=lambda pair: -pair[1])
    return Saturation(False, session.lost.share, output_db, tuple(shares), name, before, after)


def _saturates_here() -> bool:
    """Whether the runtime's own kernels saturate on this machine, so that it cannot give exact sums."""
    from attar.targets import instruction_set

    return instruction_set() == "avx2"
