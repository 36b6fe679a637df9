"""`train.qat`: a quantized model trained through its own rounding."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Annotated, Any

import onnx_ir as ir

from attar import graph
from attar.context import Context
from attar.errors import Refused
from attar.passes import Choice, Doc, Range
from attar_train.apply import latent, train
from attar_train.callback import Callback
from attar_train.constrain import constrain
from attar_train.distill import Distill
from attar_train.module import Trainable
from attar_train.operators import DOMAIN, FAKE_QUANTIZE
from attar_train.options import Options

if TYPE_CHECKING:
    import torch


class Qat(Distill, name="train.qat"):
    """Train a quantized model through its rounding, by default to give what it gave before; no labels are
    needed.

    Put it behind the step that quantizes. What trains is the very graph that will run: each QuantizeLinear
    and DequantizeLinear pair rounds and saturates in training as it will in the runtime, so the accuracy that
    was trained is the accuracy that is deployed. Scales are learned with the weights (LSQ).
    """

    lr: Annotated[
        float | None,
        Range(0.0, open_low=True),
        Doc("largest learning rate; unless given it goes by the fewest bits: see docs/qat.md"),
    ] = None
    scales: Annotated[
        str,
        Choice("lsq", "pact", "ste"),
        Doc("how scales are trained: learned step sizes, learned clipping of what is positive, not at all"),
    ] = "lsq"
    offsets: Annotated[bool, Doc("zero points of activations are trained, too, where zero is inside")] = False
    norms: Annotated[
        float,
        Range(0.0, 1.0),
        Doc("share of the steps in which BatchNormalization that is left re-estimates its statistics"),
    ] = 0.5

    def apply(self, model: ir.Model, ctx: Context) -> None:
        held = constrain(
            model, latent=latent(ctx), method=self.scales, offsets=self.offsets, registry=ctx.registry
        )
        if not held.quantized:
            raise Refused(
                "the model has nothing quantized to train",
                hint="put quantize.static before it: it chooses what is quantized and how",
            )
        for name, reason in held.skipped:
            ctx.note(f"{name}: {reason}")
        rate = self.lr if self.lr is not None else rate_for(fewest_bits(held.model), self.optimizer)
        step = replace(self, lr=rate)
        train(
            step,
            model,
            ctx,
            lambda trainable: step.loss_for(trainable, model, ctx),
            hold=lambda _: held,
            callbacks=self._callbacks,
        )

    def settings(self) -> Options:
        """The options that concern the loop; how long statistics are kept is `norms`'s."""
        made = super().settings()
        return replace(made, batch_norm="frozen") if self.norms == 0 else made

    def _callbacks(self, trainable: Trainable) -> Sequence[FrozenNorms]:
        norms = [m for m in trainable.module.modules() if type(m).__name__.startswith("BatchNorm")]
        return [FrozenNorms(norms, self.norms)] if norms else []


class FrozenNorms(Callback):
    """BatchNormalization goes by the batch for a share of the steps, then by what it has gathered: towards
    the end the network is trained as it will run."""

    def __init__(self, norms: Sequence[Any], share: float) -> None:
        self._norms, self._share = tuple(norms), share

    def before_step(self, step: int, steps: int) -> torch.Tensor | None:
        if step >= self._share * steps:
            for norm in self._norms:
                norm.eval()
        return None


def fewest_bits(model: ir.Model) -> int:
    """The fewest bits of a quantizer of a constrained model."""
    found = [
        (n.attributes["qmax"].as_int() - n.attributes["qmin"].as_int()).bit_length()
        for n in graph.all_nodes(model)
        if n.op_type == FAKE_QUANTIZE and n.domain == DOMAIN
    ]
    return min(found, default=8)


def rate_for(bits: int, optimizer: str) -> float:
    """The learning rate where none is given: fewer bits have further to go."""
    if optimizer == "sgd":
        return 2e-3 if bits < 6 else 5e-4
    return 5e-4 if bits < 6 else 1e-4
