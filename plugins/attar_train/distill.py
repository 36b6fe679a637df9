"""`train.distill`: the weights trained on, to give what a teacher gives. No labels are needed."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Annotated, Any

import onnx_ir as ir

from attar.context import Context
from attar.passes import Choice, Doc, Range
from attar_train.apply import train
from attar_train.batches import Samples
from attar_train.hidden import Pair, attention_maps, pairs
from attar_train.losses import Labels, as_logits, end_of
from attar_train.module import Trainable
from attar_train.options import Training
from attar_train.teachers import Teacher, teachers

if TYPE_CHECKING:
    import torch


class Distill(Training, name="train.distill"):
    """Train the weights to give what a teacher gives: by default the model as it came, uncompressed.

    No labels are needed. What passes before it made of the weights stays: zeros stay zero, patterns and
    shared values stay, and a quantized model is trained through its rounding.
    """

    temperature: Annotated[
        float,
        Range(0.0, open_low=True),
        Doc("of the softmax that is compared; higher shows more of the rest"),
    ] = 4.0
    loss: Annotated[
        str,
        Choice("auto", "kl", "mse"),
        Doc("kl for scores of classes, mse for anything else; auto: kl where an output is a row of scores"),
    ] = "auto"
    labels: Annotated[
        float, Range(0.0, 1.0), Doc("weight of the loss against labels beside that of the teacher")
    ] = 0.0
    hidden: Annotated[
        tuple[str, ...],
        Doc("hidden values to compare too: 'auto', names, or 'value of the teacher=value of the student'"),
    ] = ()
    hidden_loss: Annotated[
        str,
        Choice("auto", "mse", "projection", "attention", "relation"),
        Doc("how they are compared; auto goes by their shapes"),
    ] = "auto"
    hidden_weight: Annotated[float, Range(0.0), Doc("weight of hidden values in the loss")] = 1.0
    attention: Annotated[float, Range(0.0), Doc("weight of the attention maps of transformers")] = 0.0
    teachers: Annotated[
        tuple[str, ...],
        Doc("files of models to learn from; 'original': the model as it came, 'trained': as fine-tuned"),
    ] = ()
    weights: Annotated[tuple[float, ...], Range(0.0), Doc("weights of the teachers, in their order")] = ()
    output: Annotated[str | None, Doc("the output that is compared; all unless given")] = None

    def apply(self, model: ir.Model, ctx: Context) -> None:
        train(self, model, ctx, lambda trainable: self.loss_for(trainable, model, ctx))

    def loss_for(self, trainable: Trainable, model: ir.Model, ctx: Context) -> Distillation:
        """The loss for a module of `model`, for passes that distill among other things."""
        names = trainable.outputs if self.output is None else (end_of(trainable, self.output).output,)
        first = teachers(self.teachers, self.weights, trainable, model, ctx, names[0])
        parts = [Scores(trainable, name, first, index, self) for index, name in enumerate(names)]
        hidden: list[tuple[float, Teacher, list[Pair]]] = []
        for teacher in first:
            if self.hidden:
                found = pairs(self.hidden, self.hidden_loss, teacher, trainable, ctx.seed)
                hidden.append((teacher.weight * self.hidden_weight / len(found), teacher, found))
            if self.attention:
                maps = attention_maps(teacher, trainable)
                hidden.append((teacher.weight * self.attention / len(maps), teacher, maps))
        against = Labels(trainable, output=self.output) if self.labels else None
        return Distillation(parts, first, hidden, against, self.labels)


class Scores:
    """One output of the student against those of the teachers.

    With classes: T^2 KL(p || q), p the mean of the teachers' softmax(z / T), q the student's (Hinton et al.
    2015, arXiv:1503.02531). Else the mean square of the difference to the teachers' mean, over the variance
    of that.
    """

    def __init__(
        self, student: Trainable, name: str, found: Sequence[Teacher], index: int, options: Distill
    ) -> None:
        self.end = end_of(student, name)
        self._temperature = options.temperature
        value = next(v for v in student.model.graph.outputs if v.name == name)
        rank = None if value.shape is None else len(value.shape)
        wide = value.shape is None or value.shape[-1] != 1
        classes = bool(self.end.kind) and self.end.kind != "sigmoid"
        self._kl = options.loss == "kl" or (options.loss == "auto" and (classes or (rank == 2 and wide)))
        self._axis = 1 if rank == 4 and not classes else -1
        if self._kl:
            self.end = end_of(student, name, unbounded=True)
        self._found = [(t, end_of(t.module, _twin(t, index), unbounded=self._kl)) for t in found]

    @property
    def wanted(self) -> list[tuple[Teacher, str]]:
        """What is wanted of which teacher."""
        return [(teacher, end.value) for teacher, end in self._found]

    def __call__(
        self, outputs: dict[str, torch.Tensor], said: Sequence[dict[str, torch.Tensor]]
    ) -> torch.Tensor:
        from torch.nn import functional

        if not self._kl:
            target = sum(
                t.weight * answer[e.value].float() for (t, e), answer in zip(self._found, said, strict=True)
            )
            mine = outputs[self.end.value].float()
            target = _formed(target, mine)
            spread = (target - target.mean()).square().mean().clamp_min(1e-12)
            return (mine - target).square().mean() / spread
        mine = as_logits(outputs, self.end).movedim(self._axis, -1)
        mine = mine.reshape(-1, mine.shape[-1])
        mixed: Any = 0.0
        for (teacher, end), answer in zip(self._found, said, strict=True):
            scores = as_logits(answer, end).movedim(self._axis, -1)
            mixed = mixed + teacher.weight * functional.softmax(
                scores.reshape(mine.shape) / self._temperature, 1
            )
        log_mine = functional.log_softmax(mine / self._temperature, 1)
        return functional.kl_div(log_mine, mixed, reduction="batchmean") * self._temperature**2


def _formed(target: Any, mine: torch.Tensor) -> torch.Tensor:
    return target if target.shape == mine.shape else target.reshape(mine.shape)


def _twin(teacher: Teacher, index: int) -> str:
    """The teacher's output that goes with the student's number `index`."""
    names = teacher.module.outputs
    return names[index] if index and index < len(names) else teacher.end.output


class Distillation:
    """The loss of `train.distill`."""

    def __init__(
        self, parts: Sequence[Scores], found: Sequence[Teacher],
        hidden: Sequence[tuple[float, Teacher, list[Pair]]], labels: Labels | None, share: float,
    ) -> None:  # fmt: skip
        self._parts, self._teachers, self._hidden = tuple(parts), tuple(found), tuple(hidden)
        self._labels, self._share = labels, share
        for part in parts:
            for teacher, value in part.wanted:
                teacher.taps = tuple(dict.fromkeys((*teacher.taps, value)))
        students = [p.student for _, _, some in hidden for p in some]
        ends = [p.end.value for p in parts]
        own = [] if labels is None else list(labels.taps)
        self.taps = tuple(dict.fromkeys((*ends, *students, *own)))
        self.models = [t.module.model for t in found]
        self.modules = [p.projection for _, _, some in hidden for p in some if p.projection is not None]

    def __call__(self, outputs: dict[str, torch.Tensor], samples: Samples) -> torch.Tensor:
        """The mean over the samples, in the teachers' and the labels' shares."""
        said = [teacher(samples.inputs) for teacher in self._teachers]
        loss: Any = sum(part(outputs, said) for part in self._parts) / len(self._parts)
        if self._labels is not None:
            loss = (1 - self._share) * loss + self._share * self._labels(outputs, samples)
        for weight, teacher, found in self._hidden:
            answer = said[self._teachers.index(teacher)]
            for pair in found:
                loss = loss + weight * pair.distance(answer[pair.teacher], outputs[pair.student])
        return loss
