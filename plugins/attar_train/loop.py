"""The training loop."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from attar.context import Context
from attar.errors import AttarError, InputError
from attar.progress import describe
from attar.training import TrainingData, TrainingEvent
from attar_train.batches import Batches, Samples, number, steps_of
from attar_train.callback import Callback
from attar_train.distributed import Place
from attar_train.module import Trainable
from attar_train.optimize import Average, optimizer, put, swap
from attar_train.options import Options
from attar_train.resume import Memory
from attar_train.schedule import factor

if TYPE_CHECKING:
    import onnx_ir as ir
    import torch

_TOLD = 10
"""Steps between two events for onlookers."""


@dataclass
class History:
    """What came of a training.

    Attributes:
        steps: optimizer steps that were done, with those before a resumption.
        epochs: epochs begun.
        losses: (step, mean loss of the steps since the one before).
        metrics: (step, value of the evaluation).
        best: the best value of the evaluation and its step, None without an evaluation.
        stopped: why it ended before its last step, else "".
        resumed: the step from which it went on, 0 if it began.
        seconds: time of this run.
    """

    steps: int = 0
    epochs: int = 0
    losses: list[tuple[int, float]] = field(default_factory=list)
    metrics: list[tuple[int, float]] = field(default_factory=list)
    best: tuple[float, int] | None = None
    stopped: str = ""
    resumed: int = 0
    seconds: float = 0.0


LossFunction = Callable[[dict[str, Any], Samples], Any]


def fit(
    trainable: Trainable,
    data: TrainingData,
    loss: LossFunction,
    options: Options,
    *,
    ctx: Context,
    snapshot: Callable[[], ir.Model] | None = None,
    callbacks: Sequence[Callback] = (),
    name: str = "train",
) -> History:
    """Train the weights of `trainable` that want a gradient, in place.

    It is left in inference mode, on the CPU. The result depends on the model, the data, the options and
    `ctx.seed` alone: on a CPU to the bit, also when it was killed and went on from a checkpoint.

    Args:
        loss: (outputs by name, samples) -> a number to be made small. Its attribute `taps`, if it has one,
            names further values of the model that it wants among the outputs; `modules` are what it learns
            itself, `models` other models that it goes by.
        snapshot: gives the model that is evaluated; `trainable.finish` unless given.
        callbacks: see `Callback`.
        name: of the training, for events and checkpoints.

    Raises:
        InputError: the data do not fit, the loss is not finite, or a checkpoint cannot be read.
        Refused: what is asked for needs something that is not installed.
    """
    with _own_surroundings(options):
        return _Run(trainable, data, loss, options, ctx, snapshot, callbacks, name).run()


class _Run:
    def __init__(  # noqa: PLR0917
        self, trainable: Trainable, data: TrainingData, loss: LossFunction, options: Options, ctx: Context,
        snapshot: Callable[[], ir.Model] | None, callbacks: Sequence[Callback], name: str,
    ) -> None:  # fmt: skip
        self.trainable, self.loss, self.options, self.ctx, self.name = trainable, loss, options, ctx, name
        self.callbacks, self.snapshot = tuple(callbacks), snapshot or trainable.finish
        self.place = Place(options)
        self.batches = Batches(data, options, ctx.seed, self.place.rank, self.place.world)
        self.taps = tuple(getattr(loss, "taps", ()))
        trainable.tapping(tuple(n for n in dict.fromkeys(self.taps) if n not in trainable.outputs))
        trainable.to(self.place.device)
        modules = list(getattr(loss, "modules", ()))
        for module in modules:
            module.to(self.place.device)
        learned = [*trainable.weights.values(), *(p for m in modules for p in m.parameters())]
        self.parameters = [p for p in learned if p.requires_grad]
        if not self.parameters:
            raise InputError("nothing is left to train: all weights are frozen")
        plain = optimizer(self.parameters, options)
        self.optimizer = self.place.steers(plain)
        live = live_tensors(trainable, modules)
        self.average = None if options.ema is None else Average(live, options.ema)
        self.history = History()
        self.evaluation = ctx.evaluation if options.best or options.patience else None
        self.best: dict[str, torch.Tensor] | None = None
        self.memory = Memory(self, plain, live, data)
        self.live = live

    def run(self) -> History:
        started = time.perf_counter()
        history = self.history
        steps = self._steps()
        epoch, first = self.memory.restore()
        history.resumed = history.steps
        self._tell("start", steps)
        self.memory.touch()
        with self.ctx.progress.task(self.name, steps) as task, self._parallel():
            task.advance(history.steps)
            while history.steps < steps and not history.stopped:
                history.epochs = epoch + 1
                self._epoch(epoch, first, steps, task)
                epoch, first = epoch + 1, 0
                if history.steps < steps and self.evaluation is not None:
                    self._evaluate(steps)
                self.memory.keep(epoch, 0)
        if self.average is not None:
            put(self.live, self.average.kept)
            self.average = None
        if self.evaluation is not None:
            if not history.metrics or history.metrics[-1][0] < history.steps:  # else patience ended it
                self._evaluate(steps)
            if self.best is not None:
                put(self.live, self.best)
        self.trainable.eval().to("cpu")
        history.seconds += time.perf_counter() - started
        self._tell("end", steps)
        return history

    # -- an epoch --------------------------------------------------------------------------------------------

    def _epoch(self, epoch: int, first: int, steps: int, task: Any) -> None:
        import torch

        history, options, place = self.history, self.options, self.place
        self._mode()
        since, gathered, index = 0, None, first
        stream = self.batches.epoch(epoch, first)
        done = False
        while not done:
            torch.manual_seed(number(self.ctx.seed, "step", history.steps, place.rank) % (1 << 63))
            for group in self.optimizer.param_groups:
                group["lr"] = options.rate * factor(options.schedule, history.steps, steps, options.warmup)
            extra = [c.before_step(history.steps, steps) for c in self.callbacks]
            taken = 0
            for _ in range(options.accumulate):
                batch = next(stream, None)
                if batch is None:
                    done = True
                    break
                samples = self.batches.on(batch, place.device, epoch, index)
                value = self._loss(samples, extra)
                place.backward(value / options.accumulate)
                gathered = value.detach() if gathered is None else gathered + value.detach()
                since, index, taken = since + 1, index + 1, taken + 1
            if not taken:
                break
            place.step(self.optimizer, options.clip, self.parameters)
            history.steps += 1
            for callback in self.callbacks:
                callback.after_step(history.steps, steps)
            if self.average is not None:
                self.average.update()
            task.advance()
            last = history.steps >= steps
            if history.steps % _TOLD == 0 or last:
                assert gathered is not None
                self._told(place.mean(gathered / since), steps, task)
                since, gathered = 0, None
            if last:
                break
            if self.memory.due():
                self.memory.keep(epoch, index)
        if gathered is not None:
            self._told(place.mean(gathered / since), steps, task)
        self._tell("epoch", steps, loss=history.losses[-1][1] if history.losses else math.nan)

    def _mode(self) -> None:
        """Training mode, with statistics as they are where that is asked for."""
        import torch

        self.trainable.train()
        if self.options.batch_norm == "frozen":
            for part in self.trainable.module.modules():
                if isinstance(part, torch.nn.modules.batchnorm._BatchNorm):
                    part.eval()

    def _loss(self, samples: Samples, extra: Sequence[Any]) -> Any:
        with self.place.autocast():
            outputs = self.trainable.forward(samples.inputs, self.taps)
            value = self.loss(outputs, samples)
        for part in extra:
            if part is not None:
                value = value + part
        return value

    def _told(self, loss: float, steps: int, task: Any) -> None:
        history = self.history
        if not math.isfinite(loss):
            raise InputError(
                f"the loss is {loss} after {history.steps} steps",
                hint="a lower lr, a warm-up, or clip=1.0; or inputs that are not normalized",
            )
        history.losses.append((history.steps, loss))
        rate = self.optimizer.param_groups[0]["lr"]
        self._tell("step", steps, loss=loss, lr=rate)
        text = f"loss {loss:.4g}"
        if history.metrics:
            text += f", {self.evaluation.name if self.evaluation else 'metric'} {history.metrics[-1][1]:.4g}"
        describe(task, text)

    # -- evaluating ------------------------------------------------------------------------------------------

    def _evaluate(self, steps: int) -> None:
        """Measure what would be kept now, remember it if it is the best, and see whether to stop."""
        evaluation, history, ctx = self.evaluation, self.history, self.ctx
        assert evaluation is not None
        if self.average is not None:
            swap(self.live, self.average.kept)
        value = math.nan
        if self.place.main:
            self.trainable.eval()
            try:
                session = ctx.runtime.open(self.snapshot(), threads=ctx.threads)
                value = evaluation.run(session)
            except AttarError:
                if not history.metrics:
                    raise
        value = self.place.agree(value)
        history.metrics.append((history.steps, value))
        better = math.isfinite(value) and (
            history.best is None or evaluation.drop(history.best[0], value) < 0
        )
        if better:
            history.best = (value, history.steps)
            self.best = {n: t.detach().clone() for n, t in self.live.items()}
        if self.average is not None:
            swap(self.live, self.average.kept)
        self._tell("evaluate", steps, **{evaluation.name: value})
        patience = self.options.patience
        if patience is not None and history.best is not None:
            behind = sum(1 for step, _ in history.metrics if step > history.best[1])
            if behind >= patience and history.steps < steps:
                history.stopped = (
                    f"stopped after {history.steps} of {steps} steps: {evaluation.name} was best at step "
                    f"{history.best[1]}"
                )

    # -- around ----------------------------------------------------------------------------------------------

    def _steps(self) -> int:
        """Optimizer steps in all; a stream of unknown length is gone through once to know."""
        steps = steps_of(self.options, self.batches.per_epoch)
        if steps is None:
            for _ in self.batches.epoch(0):
                pass
            steps = steps_of(self.options, self.batches.per_epoch)
        assert steps is not None
        return steps

    @contextmanager
    def _parallel(self) -> Iterator[None]:
        """The module as all processes run it."""
        names = tuple(n for n in dict.fromkeys(self.taps) if n not in self.trainable.outputs)
        plain = self.trainable.tapping(names)
        wrapped = self.place.wrapped(plain)
        if wrapped is plain:
            yield
            return
        with self.trainable.running(names, wrapped):
            yield
        self.place.wait()

    def _tell(self, kind: Any, steps: int, **values: float) -> None:
        if not self.place.main:
            return
        history = self.history
        event = TrainingEvent(kind, self.name, history.steps, steps, history.epochs, values)
        for failure in self.ctx.registry.tell("attar_training", event=event):
            if failure not in self.ctx.step.changes:
                self.ctx.note(failure)


def live_tensors(trainable: Trainable, modules: Sequence[Any]) -> dict[str, torch.Tensor]:
    """All that training changes, each once: weights, statistics, and what the loss learns."""
    found: dict[str, torch.Tensor] = {}
    seen: set[int] = set()
    sources = [("model", trainable.module), *((f"loss{i}", m) for i, m in enumerate(modules))]
    for prefix, module in sources:
        for name, tensor in module.state_dict(keep_vars=True).items():
            if id(tensor) not in seen:
                seen.add(id(tensor))
                found[f"{prefix}.{name}"] = tensor
    return found


@contextmanager
def _own_surroundings(options: Options) -> Iterator[None]:
    """Leave the caller's random states, and torch's number of threads, as they were."""
    import random

    import numpy as np
    import torch

    kept = random.getstate(), np.random.get_state(), torch.get_rng_state(), torch.get_num_threads()
    if options.threads is not None:
        torch.set_num_threads(options.threads)
    try:
        yield
    finally:
        random.setstate(kept[0])
        np.random.set_state(kept[1])
        torch.set_rng_state(kept[2])
        torch.set_num_threads(kept[3])
