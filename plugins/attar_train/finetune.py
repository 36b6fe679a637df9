"""`train.finetune`: the weights trained on, against labels."""

from __future__ import annotations

from typing import Annotated

import onnx_ir as ir

from attar import graph
from attar.context import Context
from attar.passes import Choice, Doc, Range
from attar_train.apply import train
from attar_train.losses import Labels
from attar_train.module import Trainable
from attar_train.options import Training

TRAINED = "attar_train.trained"
"""Where the context keeps what fine-tuning made last, a teacher for what is made of it."""


class FineTune(Training, name="train.finetune"):
    """Train the weights further, against labels.

    What passes before it made of the weights stays: zeros stay zero, patterns and shared values stay, and a
    quantized model is trained through its rounding. Models of any framework train; what comes back is the
    same graph with other numbers.
    """

    loss: Annotated[
        str,
        Choice("auto", "cross_entropy", "binary", "mse", "mae"),
        Doc("auto goes by the labels and by how the model ends"),
    ] = "auto"
    label_smoothing: Annotated[
        float, Range(0.0, 1.0, open_high=True), Doc("share of the target spread over all classes")
    ] = 0.0
    output: Annotated[str | None, Doc("the output that the labels belong to; the first unless given")] = None

    def apply(self, model: ir.Model, ctx: Context) -> None:
        def loss(trainable: Trainable) -> Labels:
            return Labels(trainable, output=self.output, smoothing=self.label_smoothing, kind=self.loss)

        train(self, model, ctx, loss)
        ctx.cache[TRAINED] = graph.clone(model)
