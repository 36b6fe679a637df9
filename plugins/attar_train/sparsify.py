"""`train.sparsify`: channels trained towards zero, so that they can be removed at little loss."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Annotated, Any

import onnx_ir as ir

from attar.context import Context
from attar.errors import Refused
from attar.passes import Choice, Doc, Range
from attar_train.apply import train
from attar_train.callback import Callback
from attar_train.distill import Distill
from attar_train.module import Trainable
from attar_train.operators import DOMAIN, FAKE_QUANTIZE, MASKED

if TYPE_CHECKING:
    import torch


_READERS = (MASKED, FAKE_QUANTIZE)


class Sparsify(Distill, name="train.sparsify"):
    """Train so that whole channels become small, by default to give what the model gave before.

    Put it before prune.channels: what training has made small costs little to remove. With
    BatchNormalization left in the model its scales are pushed towards zero (network slimming, Liu et al.
    2017, arXiv:1708.06519; then prune with importance "bn"); without, the output channels of convolutions and
    dense layers as groups (group lasso, Wen et al. 2016, arXiv:1608.03665; then prune with "l2").
    """

    penalty: Annotated[
        str,
        Choice("auto", "bn", "group"),
        Doc("what is made small; auto: bn where there are scales"),
    ] = "auto"
    strength: Annotated[float, Range(0.0, open_low=True), Doc("weight of the penalty in the loss")] = 1e-4

    def apply(self, model: ir.Model, ctx: Context) -> None:
        made: list[Penalty] = []

        def callbacks(trainable: Trainable) -> Sequence[Penalty]:
            made.append(Penalty(trainable, self.penalty, self.strength))
            return made

        train(
            self,
            model,
            ctx,
            lambda trainable: self.loss_for(trainable, model, ctx),
            callbacks=callbacks,
        )
        if made:
            ctx.note(str(made[0]))


class Penalty(Callback):
    """Adds to the loss what shall become small.

    bn:    strength sum |gamma|
    group: strength sum over channels of sqrt(n) ||w||_2, n numbers a channel

    Raises:
        Refused: the model has nothing of the kind.
    """

    def __init__(self, trainable: Trainable, kind: str, strength: float) -> None:
        norms = [
            m.weight for m in trainable.module.modules()
            if type(m).__name__.startswith("BatchNorm") and m.weight is not None and m.weight.requires_grad
        ]  # fmt: skip
        self.kind = ("bn" if norms else "group") if kind == "auto" else kind
        layers = _layers(trainable.model)
        kernels = [p for n, p in trainable.weights.items() if n in layers and p.requires_grad]
        self._chosen: list[Any] = norms if self.kind == "bn" else kernels
        if not self._chosen:
            what = "BatchNormalization" if self.kind == "bn" else "convolution or dense layer"
            raise Refused(f"there is no {what} whose scales could be pushed towards zero")
        self._strength = strength
        self._first = self._mean()

    def before_step(self, step: int, steps: int) -> torch.Tensor | None:
        """The penalty."""
        return self._strength * self._sum()

    def __str__(self) -> str:
        what = "scales of BatchNormalization" if self.kind == "bn" else "norms of channels"
        return f"{what}: mean {self._first:.4g} -> {self._mean():.4g}"

    def _norms(self) -> list[torch.Tensor]:
        if self.kind == "bn":
            return [gamma.abs() for gamma in self._chosen]
        found = []
        for weight in self._chosen:
            rows = weight.flatten(1)
            # The root of zero has no derivative; what is zero stays zero.
            found.append((rows.square().sum(1) + 1e-16).sqrt() * rows.shape[1] ** 0.5)
        return found

    def _sum(self) -> Any:
        return sum(n.sum() for n in self._norms())

    def _mean(self) -> float:
        norms = [n.detach() for n in self._norms()]
        return float(sum(n.sum() for n in norms)) / max(1, sum(n.numel() for n in norms))


def _layers(model: ir.Model) -> set[str]:
    """Weights of layers whose output channels come first in torch, also where they are read through a mask or
    a quantizer."""
    found = set()
    for node in model.graph:
        value = node.inputs[1] if node.op_type in ("Conv", "Gemm", "MatMul") else None
        while value is not None and (maker := value.producer()) is not None:
            value = maker.inputs[0] if maker.domain == DOMAIN and maker.op_type in _READERS else None
        if value is not None and value.is_initializer():
            found.add(str(value.name))
    return found
