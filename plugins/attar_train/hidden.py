"""Hidden layers compared: which values of teacher and student go together, and how far they are apart."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import onnx_ir as ir

from attar import graph
from attar.errors import InputError
from attar_train.batches import number
from attar_train.module import Trainable
from attar_train.teachers import Teacher

if TYPE_CHECKING:
    import torch

_AUTO = 4
"""Pairs that are chosen where none are named."""
_ACTIVATIONS = frozenset(
    {"Relu", "Clip", "LeakyRelu", "PRelu", "HardSwish", "Gelu", "Sigmoid", "Tanh", "Elu"}
)
_MIXERS = frozenset({"Add", "LayerNormalization", "Concat", *_ACTIVATIONS})


@dataclass
class Pair:
    """A value of a teacher and one of the student.

    Attributes:
        kind: "mse", "projection", "attention", "relation" or "map".
        projection: module that brings the student's channels to the teacher's, for "projection".
    """

    teacher: str
    student: str
    kind: str
    projection: Any = None

    def distance(self, teacher: torch.Tensor, student: torch.Tensor) -> torch.Tensor:
        """How far apart the two are: 0 for the same, about 1 for unrelated ones."""
        mine = student if self.projection is None else self.projection(student)
        return _DISTANCES[self.kind](teacher.float(), mine.float())


def _mean_square(teacher: torch.Tensor, student: torch.Tensor) -> torch.Tensor:
    """||s - t||^2 / ||t - mean(t)||^2."""
    spread = (teacher - teacher.mean()).square().mean().clamp_min(1e-12)
    return (student - teacher).square().mean() / spread


def _attention(teacher: torch.Tensor, student: torch.Tensor) -> torch.Tensor:
    """Attention transfer (Zagoruyko & Komodakis 2017, arXiv:1612.03928): the sums over the channels of the
    squares, as unit vectors a sample; half the squared distance. The larger map is averaged down."""
    from torch.nn import functional

    maps = [x.square().mean(1) for x in (teacher, student)]
    if maps[0].shape != maps[1].shape:
        size = [min(a, b) for a, b in zip(maps[0].shape[1:], maps[1].shape[1:], strict=True)]
        pool = functional.adaptive_avg_pool2d if len(size) == 2 else functional.adaptive_avg_pool1d
        maps = [pool(m.unsqueeze(1), size).squeeze(1) for m in maps]
    rows = [functional.normalize(m.flatten(1), dim=1) for m in maps]
    return (rows[0] - rows[1]).square().sum(1).mean() / 2


def _relation(teacher: torch.Tensor, student: torch.Tensor) -> torch.Tensor:
    """Similarity-preserving distillation (Tung & Mori 2019, arXiv:1907.09682): the Gram matrices of the
    samples of a batch, with rows of unit length; mean squared distance of the rows."""
    from torch.nn import functional

    rows = [functional.normalize(f @ f.T, dim=1) for f in (x.flatten(1) for x in (teacher, student))]
    return (rows[0] - rows[1]).square().sum(1).mean()


def _map(teacher: torch.Tensor, student: torch.Tensor) -> torch.Tensor:
    """Attention maps of a transformer, averaged over the heads where their number differs: the divergence of
    the teacher's rows from the student's (Jiao et al. 2020, Sun et al. 2020)."""
    if teacher.shape != student.shape:
        teacher, student = teacher.mean(1), student.mean(1)
    teacher, student = teacher.clamp_min(1e-8), student.clamp_min(1e-8)
    return (teacher * (teacher.log() - student.log())).sum(-1).mean()


_DISTANCES: dict[str, Callable[[torch.Tensor, torch.Tensor], torch.Tensor]] = {
    "mse": _mean_square,
    "projection": _mean_square,
    "attention": _attention,
    "relation": _relation,
    "map": _map,
}


def pairs(named: Sequence[str], kind: str, teacher: Teacher, student: Trainable, seed: int) -> list[Pair]:
    """The pairs of hidden values that the options name.

    Args:
        named: "value", "value of the teacher=value of the student", or "auto": a few values that both have,
            spread over the depth, the results of activations and sums.
        kind: how to compare; "auto": "mse" where the shapes are equal, "attention" for maps of other width,
            "relation" for the rest.

    Raises:
        InputError: a value is not computed by the module, or the two cannot be compared so.
    """
    found: list[tuple[str, str]] = []
    for text in named:
        if text == "auto":
            both = [(v, v) for v in _candidates(student) if v in teacher.module.values]
            if not both:
                raise InputError(
                    "teacher and student have no hidden value of the same name",
                    hint='name pairs: hidden=("value of the teacher=value of the student", ...)',
                )
            count = min(_AUTO, len(both))
            found += [both[math.ceil((i + 1) * len(both) / count) - 1] for i in range(count)]
        else:
            left, _, right = text.partition("=")
            found.append((left.strip(), (right or left).strip()))
    made = [_pair(t, s, kind, teacher, student, seed) for t, s in dict.fromkeys(found)]
    teacher.taps = tuple(dict.fromkeys((*teacher.taps, *(p.teacher for p in made))))
    return made


def attention_maps(teacher: Teacher, student: Trainable) -> list[Pair]:
    """The attention of transformers: what a Softmax gives to a product, by the same name in both.

    Raises:
        InputError: there is none that both have.
    """
    found = []
    for node in student.model.graph:
        out = node.outputs[0] if node.outputs else None
        if node.op_type != "Softmax" or out is None or out.is_graph_output():
            continue
        deep = out.shape is not None and len(out.shape) >= 3
        if deep and out.name in student.values and out.name in teacher.module.values:
            found.append(Pair(str(out.name), str(out.name), "map"))
    if not found:
        raise InputError("teacher and student have no attention map of the same name")
    teacher.taps = tuple(dict.fromkeys((*teacher.taps, *(p.teacher for p in found))))
    return found


def _candidates(student: Trainable) -> list[str]:
    known = set(student.values)
    names = []
    for node in student.model.graph:
        for out in node.outputs:
            inside = node.op_type in _MIXERS and out.name in known and not out.is_graph_output()
            deep = out.shape is not None and len(out.shape) >= 2 and out.dtype == ir.DataType.FLOAT
            if inside and deep:
                names.append(str(out.name))
    return names


def _pair(  # noqa: PLR0917
    left: str, right: str, kind: str, teacher: Teacher, student: Trainable, seed: int
) -> Pair:
    shapes = [_shape(m, n) for m, n in ((teacher.module, left), (student, right))]
    if kind == "auto":
        if shapes[0] is not None and shapes[0] == shapes[1]:
            kind = "mse"
        else:
            kind = "attention" if shapes[1] is not None and len(shapes[1]) in (3, 4) else "relation"
        if kind == "attention" and shapes[1] is not None and len(shapes[1]) == 3:
            kind = "relation"
    if kind == "projection":
        return Pair(left, right, kind, _projection(left, right, shapes, seed))
    return Pair(left, right, kind)


def _shape(module: Trainable, name: str) -> tuple[Any, ...] | None:
    if name not in module.values:
        module.tapping((name,))  # raises with the names that are near
    value = next((v for v in graph.all_values(module.model) if v.name == name), None)
    if value is None or value.shape is None:
        return None
    return tuple(d if isinstance(d, int) else None for d in value.shape)[1:]


def _projection(left: str, right: str, shapes: Sequence[tuple[Any, ...] | None], seed: int) -> Any:
    """A linear map of the student's channels onto the teacher's (FitNets, Romero et al. 2015,
    arXiv:1412.6550): axis 1 of maps, the last axis of the rest."""
    import torch

    theirs, ours = shapes
    place = 0 if ours is not None and len(ours) >= 3 else -1
    if theirs is None or ours is None or len(theirs) != len(ours):
        raise InputError(f"{left!r} and {right!r} have different ranks: no projection leads between them")
    wide, narrow = theirs[place], ours[place]
    if not isinstance(wide, int) or not isinstance(narrow, int):
        raise InputError(f"the number of channels of {left!r} or {right!r} is not known")
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(number(seed, "projection", left, right) % (1 << 63))
        if place == 0:
            kind = {3: torch.nn.Conv2d, 4: torch.nn.Conv3d}[len(ours)]
            return kind(narrow, wide, 1, bias=False)
        return torch.nn.Linear(narrow, wide, bias=False)
