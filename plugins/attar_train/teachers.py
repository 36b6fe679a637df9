"""Teachers: models of any framework that the student learns from, run on the student's inputs."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import onnx_ir as ir

from attar import graph
from attar.context import Context
from attar.errors import InputError
from attar.specs import TensorSpec, input_specs
from attar_train.finetune import TRAINED
from attar_train.losses import End, as_logits, end_of
from attar_train.module import Trainable, trainable

if TYPE_CHECKING:
    import torch

Order = tuple[int, ...] | None
_LAYOUTS: tuple[tuple[int, ...], ...] = ((0, 2, 3, 1), (0, 3, 1, 2))


@dataclass
class Teacher:
    """One teacher.

    Attributes:
        module: its module, which does not learn.
        weight: its share among the teachers.
        end: how it ends.
        feeds: (its input, the student's input, how to turn that) in order.
        taps: values of it that are compared with the student's.
    """

    module: Trainable
    weight: float
    end: End
    feeds: tuple[tuple[str, str, Order], ...]
    taps: tuple[str, ...] = ()
    _home: Any = None

    def __call__(self, inputs: Mapping[str, torch.Tensor]) -> dict[str, torch.Tensor]:
        """Its outputs and taps, on inputs of the student."""
        import torch

        given = {
            own: inputs[other] if order is None else inputs[other].permute(order)
            for own, other, order in self.feeds
        }
        device = next(iter(given.values())).device
        if self._home != device:
            self.module.tapping(tuple(n for n in dict.fromkeys(self._wanted) if n not in self.module.outputs))
            self.module.to(device)
            self._home = device
        with torch.no_grad():
            return self.module.forward(given, self._wanted)

    @property
    def _wanted(self) -> tuple[str, ...]:
        return (self.end.value, *self.taps)

    def logits(self, outputs: dict[str, torch.Tensor]) -> torch.Tensor:
        """What stands before its Softmax."""
        return as_logits(outputs, self.end)


def teachers(  # noqa: PLR0917
    paths: Sequence[str], weights: Sequence[float], student: Trainable, before: ir.Model, ctx: Context,
    output: str | None = None,
) -> list[Teacher]:  # fmt: skip
    """The teachers of a training: those of the pass, those of `compress`, or the model as it came.

    Args:
        paths: files of models; "original" is the model as it came, "trained" what fine-tuning made of it.
        weights: their shares; equal unless given.
        before: the student's model before this training, where nothing else is known.

    Raises:
        InputError: a file cannot be read, or a teacher takes or gives something else than the student.
    """
    models: list[ir.Model] = []
    own = ctx.original if ctx.original is not None else ctx.unquantized or before
    if paths:
        from attar.api import load

        known = {"original": own, "trained": ctx.cache.get(TRAINED)}
        for path in paths:
            found = known[path] if path in known else load(path, registry=ctx.registry)
            if found is None:
                raise InputError(
                    "no step before this one has fine-tuned the model", hint="put train.finetune before it"
                )
            models.append(found)
    else:
        models = list(ctx.teachers) or [own]
    if weights and len(weights) != len(models):
        raise InputError(
            f"{len(weights)} weights for {len(models)} teachers", hint="one weight a teacher, in their order"
        )
    shares = list(weights) or [1.0] * len(models)
    if sum(shares) <= 0:
        raise InputError("the weights of the teachers add up to nothing")
    made = []
    for model, share in zip(models, shares, strict=True):
        module = trainable(graph.clone(model), ctx.registry, learns=False).eval()
        for parameter in module.weights.values():
            parameter.requires_grad_(False)
        place = 0 if output is None else student.outputs.index(end_of(student, output).output)
        if place >= len(module.outputs):
            raise InputError(f"a teacher has {len(module.outputs)} outputs, the student {place + 1} and more")
        end = end_of(module, module.outputs[place])
        made.append(Teacher(module, share / sum(shares), end, _feeds(module, student)))
    return made


def _feeds(teacher: Trainable, student: Trainable) -> tuple[tuple[str, str, Order], ...]:
    """Which input of the student feeds which of the teacher: by name, else by place, turned where the two
    frameworks have the channels in different places."""
    theirs, ours = input_specs(teacher.model), input_specs(student.model)
    if len(theirs) > len(ours):
        raise InputError(f"a teacher takes {len(theirs)} inputs, the student {len(ours)}")
    known = {s.name: s for s in ours}
    found = []
    for place, spec in enumerate(theirs):
        other = known.get(spec.name, ours[place])
        found.append((spec.name, other.name, _order(spec, other)))
    return tuple(found)


def _order(teacher: TensorSpec, student: TensorSpec) -> Order:
    if teacher.dtype != student.dtype:
        raise InputError(f"a teacher takes {teacher}, the student {student}")
    if teacher.shape is None or student.shape is None or _fits(student.shape, teacher.shape):
        return None
    if len(student.shape) == 4:
        for order in _LAYOUTS:
            if _fits(tuple(student.shape[k] for k in order), teacher.shape):
                return order
    raise InputError(f"a teacher takes {teacher}, the student {student}")


def _fits(have: Sequence[Any], want: Sequence[Any]) -> bool:
    return len(have) == len(want) and all(
        a == b or not isinstance(a, int) or not isinstance(b, int) for a, b in zip(have, want, strict=True)
    )
