"""How to train: the options that every pass that trains has."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, Any, ClassVar

from attar.passes import Choice, Doc, Pass, Range

Share = Range(0.0, 1.0)


class Training(Pass):
    """Options of passes that train; a pass adds its own and what it does."""

    needs: ClassVar[tuple[str, ...]] = ("training",)
    aim: ClassVar[Any] = "accuracy"

    epochs: Annotated[float, Range(0.0, open_low=True), Doc("times through the training data")] = 10.0
    steps: Annotated[int | None, Range(1), Doc("optimizer steps, instead of epochs")] = None
    batch_size: Annotated[
        int, Range(1), Doc("samples a step and process, where the data have no batches of their own")
    ] = 128
    accumulate: Annotated[int, Range(1), Doc("batches whose gradients are added up for one step")] = 1
    optimizer: Annotated[str, Choice("adamw", "sgd"), Doc("sgd has momentum after Nesterov")] = "adamw"
    lr: Annotated[
        float | None,
        Range(0.0, open_low=True),
        Doc("largest learning rate; unless given 1e-3 for adamw and 0.02 for sgd"),
    ] = None
    momentum: Annotated[float, Range(0.0, 1.0, open_high=True), Doc("of sgd")] = 0.9
    weight_decay: Annotated[
        float | None,
        Range(0.0),
        Doc("of matrices and kernels, not of norms and biases; unless given 0.01 for adamw, 1e-4 for sgd"),
    ] = None
    schedule: Annotated[
        str,
        Choice("cosine", "linear", "step", "one_cycle", "constant"),
        Doc("course of the learning rate after the warm-up; step: a tenth after half, a hundredth after 3/4"),
    ] = "cosine"
    warmup: Annotated[
        float, Range(0.0, 1.0, open_high=True), Doc("share of the steps in which the rate rises")
    ] = 0.05
    clip: Annotated[
        float | None, Range(0.0, open_low=True), Doc("largest norm of the gradient of all weights")
    ] = None
    precision: Annotated[
        str, Choice("float32", "bfloat16", "float16"), Doc("type of activations; weights stay float32")
    ] = "float32"
    ema: Annotated[
        float | None,
        Range(0.0, 1.0, open_low=True, open_high=True),
        Doc("decay of a running average of the weights, which is then what is kept, such as 0.999"),
    ] = None
    freeze: Annotated[tuple[str, ...], Doc("patterns of weight names that keep their numbers")] = ()
    only: Annotated[tuple[str, ...], Doc("patterns of weight names that alone are trained")] = ()
    batch_norm: Annotated[
        str, Choice("train", "frozen"), Doc("go by the batch and keep statistics, or by the statistics")
    ] = "train"
    flip: Annotated[bool, Doc("augment: images mirrored left to right, half of them")] = False
    crop: Annotated[
        int, Range(0), Doc("augment: images shifted by up to so many pixels, sequences by so many steps")
    ] = 0
    noise: Annotated[
        float, Range(0.0), Doc("augment: normal noise, as a share of the inputs' standard deviation")
    ] = 0.0
    mixup: Annotated[float, Range(0.0), Doc("augment: alpha of mixup (Zhang et al. 2018); 0 is without")] = (
        0.0
    )
    cutmix: Annotated[float, Range(0.0), Doc("augment: alpha of CutMix (Yun et al. 2019); 0 is without")] = (
        0.0
    )
    best: Annotated[
        bool, Doc("evaluate after every epoch, where there is an evaluation, and keep the best weights")
    ] = False
    patience: Annotated[
        int | None, Range(1), Doc("stop after so many evaluations without a better one; keeps the best")
    ] = None
    checkpoint: Annotated[
        str | None, Doc("folder for checkpoints; a training that was killed goes on from there")
    ] = None
    checkpoint_seconds: Annotated[float, Range(0.0), Doc("time between two checkpoints")] = 60.0
    device: Annotated[str, Doc("cpu, cuda, cuda:1, ...; auto is cuda where there is one")] = "auto"
    threads: Annotated[
        int | None, Range(1), Doc("threads of torch on the CPU; unless given, as many as torch takes")
    ] = None

    def settings(self) -> Options:
        """The options that concern the loop."""
        return Options(
            **{name: getattr(self, name) for name in Options.__dataclass_fields__ if hasattr(self, name)}
        )


@dataclass(frozen=True, kw_only=True)
class Options:
    """The same without a pass, for one's own use of `attar_train.fit`. See `Training` for what each is."""

    epochs: float = 10.0
    steps: int | None = None
    batch_size: int = 128
    accumulate: int = 1
    optimizer: str = "adamw"
    lr: float | None = None
    momentum: float = 0.9
    weight_decay: float | None = None
    schedule: str = "cosine"
    warmup: float = 0.05
    clip: float | None = None
    precision: str = "float32"
    ema: float | None = None
    batch_norm: str = "train"
    flip: bool = False
    crop: int = 0
    noise: float = 0.0
    mixup: float = 0.0
    cutmix: float = 0.0
    best: bool = False
    patience: int | None = None
    checkpoint: str | None = None
    checkpoint_seconds: float = 60.0
    device: str = "auto"
    threads: int | None = None

    @property
    def rate(self) -> float:
        """The largest learning rate."""
        return self.lr if self.lr is not None else (1e-3 if self.optimizer == "adamw" else 0.02)

    @property
    def decay(self) -> float:
        """Weight decay."""
        if self.weight_decay is not None:
            return self.weight_decay
        return 0.01 if self.optimizer == "adamw" else 1e-4
