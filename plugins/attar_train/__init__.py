"""Training: fine-tuning, distillation and quantization-aware training of a model of any framework.

from attar_train import Distill

attar.compress(model, [Channels(ratio=0.5), Distill(epochs=10)], training=images)
"""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

from attar import hookimpl
from attar.passes import Pass
from attar_train.callback import Callback
from attar_train.distill import Distill
from attar_train.finetune import FineTune
from attar_train.gradual import Gradual
from attar_train.head import head_of, new_head
from attar_train.loop import History, fit
from attar_train.losses import Labels
from attar_train.module import Trainable, trainable
from attar_train.options import Options
from attar_train.own import prepare
from attar_train.qat import Qat
from attar_train.sparsify import Sparsify
from attar_train.student import Student

__all__ = [
    "Callback",
    "Distill",
    "FineTune",
    "Gradual",
    "History",
    "Labels",
    "Options",
    "Qat",
    "Sparsify",
    "Student",
    "Trainable",
    "fit",
    "head_of",
    "new_head",
    "prepare",
    "trainable",
]


@hookimpl
def attar_passes() -> Sequence[type[Pass]]:
    return [Distill, FineTune, Gradual, Qat, Sparsify, Student]


@hookimpl
def attar_lowerings(framework: str) -> Mapping[str, Callable[..., Any]]:
    from attar_train.lowering import lowerings

    return lowerings(framework)


@hookimpl
def attar_importances() -> Mapping[str, Callable[..., Any]]:
    from attar_train.importances import IMPORTANCES

    return IMPORTANCES
