"""Losses: against labels, and what they are computed from."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Protocol

import onnx_ir as ir

from attar.errors import InputError, did_you_mean
from attar_train.batches import Samples
from attar_train.module import Trainable

if TYPE_CHECKING:
    import torch

_THROUGH = frozenset(
    {"Identity", "Reshape", "Squeeze", "Unsqueeze", "Flatten", "Cast", "QuantizeLinear", "DequantizeLinear"}
    | {"FakeQuantize"}
)
_ENDS = {"Softmax": "softmax", "LogSoftmax": "log_softmax", "Sigmoid": "sigmoid"}
_BOUNDS = frozenset({"Tanh", "Softsign"})
"""Strictly increasing and bounded: they keep the order of scores and hide by how much they differ."""


class Loss(Protocol):
    """What training makes small. Any function of outputs and samples will do; the attributes are optional.

    Attributes:
        taps: values of the model that the loss wants beside the outputs.
        modules: what the loss itself learns, such as projections.
        models: what else the result depends on, such as teachers: a checkpoint is named after them, too.
    """

    taps: tuple[str, ...]

    def __call__(self, outputs: dict[str, torch.Tensor], samples: Samples) -> torch.Tensor: ...


@dataclass(frozen=True)
class End:
    """How a model ends.

    Attributes:
        output: name of the output.
        value: what losses go by: the logits where the model ends in a Softmax or Sigmoid, else the output.
        kind: what the model says of it by how it ends ("softmax", "log_softmax", "sigmoid"); "probabilities"
            or "log_probabilities" where only the result of a Softmax can be had; else "".
    """

    output: str
    value: str
    kind: str


def end_of(trainable: Trainable, output: str | None = None, *, unbounded: bool = False) -> End:
    """The end of an output, the first one unless named.

    Args:
        unbounded: where a row of scores ends in a Tanh, go by what stands before it. The order of the scores
            is the same, but behind it nearly all are 1 or -1, and its slope there lets no gradient through.

    Raises:
        InputError: there is no such output.
    """
    names = trainable.outputs
    name = names[0] if output is None else output
    if name not in names:
        raise InputError(f"the model has no output {name!r}", hint=did_you_mean(name, names))
    value: ir.Value | None = next(v for v in trainable.model.graph.outputs if v.name == name)
    while value is not None:
        node = value.producer()
        if node is None:
            break
        if node.op_type in _ENDS:
            before = node.inputs[0]
            kind = _ENDS[node.op_type]
            if before is not None and before.name in trainable.values and _same_form(before, value):
                return End(name, str(before.name), kind)
            return End(
                name, name, {"softmax": "probabilities", "log_softmax": "log_probabilities"}.get(kind, "")
            )
        if unbounded and node.op_type in _BOUNDS:
            before = node.inputs[0]
            if before is not None and before.name in trainable.values and _same_form(before, value):
                return End(name, str(before.name), "")
        if node.op_type not in _THROUGH:
            break
        value = node.inputs[0]
    return End(name, name, "")


def _same_form(before: ir.Value, after: ir.Value) -> bool:
    return before.shape is not None and after.shape is not None and len(before.shape) == len(after.shape)


def as_logits(outputs: dict[str, torch.Tensor], end: End) -> torch.Tensor:
    """What stands before the Softmax, up to a constant a sample."""
    made = outputs[end.value].float()
    return made.clamp_min(1e-7).log() if end.kind == "probabilities" else made


class Labels:
    """The loss against labels.

    Whole numbers are classes, and the loss is cross entropy: over the axis of the scores that the labels do
    not have. Labels of the shape of the output are targets: of a Sigmoid by binary cross entropy, of a
    Softmax (rows that sum to one) by cross entropy, else by the mean square.

    Args:
        smoothing: share of the target that is spread evenly over the classes (Szegedy et al. 2016).
        kind: "auto", "cross_entropy", "binary", "mse" or "mae".
    """

    def __init__(
        self, trainable: Trainable, *, output: str | None = None, smoothing: float = 0.0, kind: str = "auto"
    ) -> None:
        self.end = end_of(trainable, output)
        if kind in ("mse", "mae"):  # differences are those of the output, not of what stands before a Softmax
            self.end = End(self.end.output, self.end.output, "")
        self.taps = (self.end.value,)
        self._smoothing, self._kind = smoothing, kind

    def __call__(self, outputs: dict[str, torch.Tensor], samples: Samples) -> torch.Tensor:
        """The mean over the samples.

        Raises:
            InputError: there are no labels, or they do not go with the output.
        """
        if samples.labels is None:
            raise InputError(
                "the training data have no labels, which this loss needs",
                hint="give (inputs, labels); or distill from the original, which needs none",
            )
        scores = as_logits(outputs, self.end)
        loss = self._against(scores, samples.labels)
        if samples.others is not None:
            loss = samples.share * loss + (1 - samples.share) * self._against(scores, samples.others)
        return loss

    def _against(self, scores: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
        from torch.nn import functional

        kind = self._kind
        whole = not labels.is_floating_point()
        if kind == "auto":
            if whole and scores.numel() > len(scores):
                kind = "cross_entropy"
            elif whole or self.end.kind == "sigmoid":
                kind = "binary"
            elif self.end.kind in ("softmax", "probabilities"):
                kind = "cross_entropy"
            else:
                kind = "mse"
        if kind == "cross_entropy":
            return self._cross_entropy(scores, labels)
        try:
            target = labels.to(scores.dtype).reshape(scores.shape)
        except RuntimeError:
            raise InputError(
                _unfit(labels, self.end, scores),
            ) from None
        if kind == "binary":
            if self._smoothing:
                target = target * (1 - self._smoothing) + self._smoothing / 2
            return functional.binary_cross_entropy_with_logits(scores, target)
        return functional.l1_loss(scores, target) if kind == "mae" else functional.mse_loss(scores, target)

    def _cross_entropy(self, scores: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
        from torch.nn import functional

        axis = _class_axis(tuple(scores.shape), tuple(labels.shape), labels.is_floating_point())
        if axis is None:
            raise InputError(
                _unfit(labels, self.end, scores),
                hint="one whole number a sample, or a target of the output's shape",
            )
        moved = scores.movedim(axis, -1).reshape(-1, scores.shape[axis])
        if labels.is_floating_point():
            target: Any = labels.to(scores.dtype).movedim(axis, -1).reshape(moved.shape)
        else:
            target = labels.reshape(-1).long()
            low, high = int(target.min()), int(target.max())
            if low < -100 or high >= moved.shape[1] or -100 < low < 0:
                raise InputError(
                    f"labels go from {low} to {high}, the output {self.end.output!r} has "
                    f"{moved.shape[1]} classes"
                )
        return functional.cross_entropy(moved, target, label_smoothing=self._smoothing)


def _unfit(labels: torch.Tensor, end: End, scores: torch.Tensor) -> str:
    return (
        f"labels of shape {list(labels.shape)} do not go with the output {end.output!r} of shape "
        f"{list(scores.shape)}"
    )


def _class_axis(scores: tuple[int, ...], labels: tuple[int, ...], soft: bool) -> int | None:
    """The axis of the scores that runs over the classes."""
    if soft:
        return (1 if len(scores) > 1 else 0) if scores == labels else None
    if labels == scores[:-1]:
        return len(scores) - 1
    if len(scores) > 1 and labels == (scores[0], *scores[2:]):
        return 1
    plain = [n for n in labels if n != 1] or [1]
    for axis in (1, len(scores) - 1):
        rest = [n for k, n in enumerate(scores) if k != axis and n != 1] or [1]
        if 0 < axis < len(scores) and rest == plain:
            return axis
    return None
