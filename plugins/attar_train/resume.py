"""What a training keeps in its checkpoint, and how it goes on from one."""

from __future__ import annotations

import dataclasses
import hashlib
import json
import time
from typing import TYPE_CHECKING

from attar import graph
from attar.training import TrainingData
from attar_train.batches import number, seed_libraries
from attar_train.checkpoint import Checkpoint, optimizer_tensors, restore_optimizer
from attar_train.optimize import put

if TYPE_CHECKING:
    import torch

    from attar_train.loop import _Run

_NOT_OF_THE_RESULT = ("checkpoint", "checkpoint_seconds", "threads")


class Memory:
    """The checkpoints of one run; does nothing if none are asked for."""

    def __init__(
        self, run: _Run, optimizer: torch.optim.Optimizer, live: dict[str, torch.Tensor], data: TrainingData
    ) -> None:
        self._run, self._optimizer, self._live = run, optimizer, live
        self._written = time.monotonic()
        folder = run.options.checkpoint
        self._checkpoint = None if folder is None else Checkpoint(folder, run.name, _key(run, data))

    def touch(self) -> None:
        """Count the time to the next checkpoint from now."""
        self._written = time.monotonic()

    def due(self) -> bool:
        """Whether the time between two checkpoints is over."""
        if self._checkpoint is None:
            return False
        return time.monotonic() - self._written >= self._run.options.checkpoint_seconds

    def keep(self, epoch: int, batch: int) -> None:
        """Write a checkpoint from which the training goes on with this batch of this epoch."""
        run, checkpoint = self._run, self._checkpoint
        if checkpoint is None or not run.place.main:
            return
        tensors = {f"live.{n}": t for n, t in self._live.items()}
        tensors |= {f"optimizer.{n}": t for n, t in optimizer_tensors(self._optimizer).items()}
        if run.average is not None:
            tensors |= {f"average.{n}": t for n, t in run.average.kept.items()}
        if run.best is not None:
            tensors |= {f"best.{n}": t for n, t in run.best.items()}
        for index, callback in enumerate(run.callbacks):
            tensors |= {f"callback{index}.{n}": t for n, t in callback.state().items()}
        history = dataclasses.asdict(run.history)
        checkpoint.save(
            tensors,
            {
                "epoch": epoch,
                "batch": batch,
                "history": history,
                "averaged": 0 if run.average is None else run.average.steps,
                "scale": run.place.scale(),
            },
        )
        self._written = time.monotonic()

    def restore(self) -> tuple[int, int]:
        """Take up the last checkpoint, if there is one; the epoch and the batch to go on with."""
        found = None if self._checkpoint is None else self._checkpoint.load()
        if found is None:
            return 0, 0
        tensors, numbers = found
        run = self._run

        def part(prefix: str) -> dict[str, torch.Tensor]:
            return {n.removeprefix(prefix): t for n, t in tensors.items() if n.startswith(prefix)}

        put(self._live, part("live."))
        restore_optimizer(self._optimizer, part("optimizer."))
        if run.average is not None:
            put(run.average.kept, part("average."))
            run.average.steps = int(numbers["averaged"])
        if best := part("best."):
            run.best = {n: best[n].to(t.device) for n, t in self._live.items()}
        for index, callback in enumerate(run.callbacks):
            callback.load(part(f"callback{index}."))
        run.place.restore_scale(numbers["scale"])
        history = numbers["history"]
        for name in ("losses", "metrics"):
            history[name] = [tuple(pair) for pair in history[name]]
        history["best"] = None if history["best"] is None else tuple(history["best"])
        for name, value in history.items():
            setattr(run.history, name, value)
        return int(numbers["epoch"]), int(numbers["batch"])


def _key(run: _Run, data: TrainingData) -> str:
    """Names the training: same name, same result."""
    options = {k: v for k, v in dataclasses.asdict(run.options).items() if k not in _NOT_OF_THE_RESULT}
    seed_libraries(number(run.ctx.seed, "stream", 0, 0))  # for a loader that draws at random
    first = data.first()
    sample = hashlib.blake2b(digest_size=16)
    parts = dict(first.inputs)
    if first.labels is not None and first.labels.dtype.kind in "biuf":  # what losses go by
        parts["labels of the samples"] = first.labels
    for name, array in sorted(parts.items()):
        sample.update(f"{name}{array.dtype}{array.shape}".encode())
        sample.update(array.tobytes())
    step = run.ctx.step
    said = {
        "options": options,
        "pass": [step.name, {k: v for k, v in step.options.items() if k not in _NOT_OF_THE_RESULT}],
        "model": graph.fingerprint(run.trainable.model),
        "learned from": [graph.fingerprint(m) for m in getattr(run.loss, "models", ())],
        "evaluation": None if run.evaluation is None else run.evaluation.name,
        "frozen": sorted(n for n, p in run.trainable.weights.items() if not p.requires_grad),
        "data": [data.count, sample.hexdigest()],
        "seed": run.ctx.seed,
        "processes": run.place.world,
    }
    return hashlib.blake2b(json.dumps(said, sort_keys=True, default=str).encode(), digest_size=16).hexdigest()
