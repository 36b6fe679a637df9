"""`train.student`: a smaller network made of the model, which starts from its weights and learns from it."""

from __future__ import annotations

from typing import Annotated, Any, ClassVar

import onnx_ir as ir

from attar import graph
from attar.context import Context
from attar.errors import RecipeError, Refused
from attar.passes import Doc, Range
from attar_train.apply import train
from attar_train.distill import Distill
from attar_train.shrink import drop_layers, lower_resolution


class Student(Distill, name="train.student"):
    """Make a smaller network out of the model and train it to give what the model gives; no labels are
    needed.

    In this order: layers that matter least are dropped, channels that matter least are removed, convolutions
    become depthwise separable, images are made smaller inside. What is left keeps the teacher's weights,
    which is a far better start than random ones.
    """

    aim: ClassVar[Any] = "speed"
    breaks: ClassVar[Any] = ("values", "zeros", "pattern")

    width: Annotated[float, Range(0.05, 1.0), Doc("share of the channels that stays")] = 0.5
    importance: Annotated[
        str | None,
        Doc("what tells which channels stay, as for prune.channels"),
    ] = None
    block: Annotated[
        int | None, Range(1), Doc("widths stay multiples of this; unless given, of the target's block")
    ] = None
    drop: Annotated[
        float, Range(0.0, 1.0), Doc("share of the residual layers that is left out, those of least effect")
    ] = 0.0
    separable: Annotated[
        bool, Doc("write convolutions as depthwise and 1 x 1, fitted on the calibration data")
    ] = False
    resolution: Annotated[
        float, Range(0.05, 1.0), Doc("images are made smaller by this inside; the input stays as it is")
    ] = 1.0

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.width == 1 and not self.drop and not self.separable and self.resolution == 1:
            raise RecipeError(
                f"{self.name}: the student would be the teacher",
                hint="width, drop, separable or resolution make it smaller; train.distill trains it as it is",
            )

    def apply(self, model: ir.Model, ctx: Context) -> None:
        before = graph.byte_size(model)
        if self.drop:
            _settle(model)
            dropped = drop_layers(model, self.drop, ctx)
            ctx.note(f"left out {len(dropped)} residual layers: {', '.join(dropped)}")
        if self.width < 1:
            given = {"importance": self.importance, "block": self.block, "most": 0.95}
            self._by("prune.channels", model, ctx, ratio=1 - self.width, **given)
        if self.separable:
            self._by("fuse.inference", model, ctx)
            self._by("factor.separable", model, ctx, max_error=1.0)
        if self.resolution < 1:
            where = lower_resolution(model, self.resolution, ctx)
            ctx.note(f"images are made {self.resolution:g} times their size in front of {where}")
        _settle(model)
        ctx.note(f"the student has {graph.byte_size(model)} of {before} bytes of weights")
        train(self, model, ctx, lambda trainable: self.loss_for(trainable, model, ctx))

    def _by(self, name: str, model: ir.Model, ctx: Context, **options: Any) -> None:
        """Let another pass do its part, whoever brings it."""
        if name not in ctx.registry.passes:
            raise Refused(f"this student needs the pass {name!r}, which no plugin brings")
        ctx.registry.get_pass(name)(**options).apply(model, ctx)
        _settle(model)


def _settle(model: ir.Model) -> None:
    graph.tidy(model)
    graph.refresh_shapes(model)
