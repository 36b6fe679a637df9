"""What is trained on in which step: order and augmentation, which depend on the seed and the step alone.

No state is carried from step to step, so a training that goes on in the middle sees what it would have seen.
"""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from attar.calibration import Batch
from attar.errors import InputError
from attar.training import TrainingData
from attar_train.augment import augmented, mixed
from attar_train.options import Options

if TYPE_CHECKING:
    import torch


@dataclass
class Samples:
    """One batch on the device.

    Attributes:
        inputs: by name.
        labels: one a sample, None where the data have none.
        others: labels of what was mixed in by mixup or CutMix.
        share: weight of `labels` against `others`.
        size: number of samples.
    """

    inputs: dict[str, torch.Tensor]
    labels: Any
    size: int
    others: Any = None
    share: float = 1.0


def number(*key: Any) -> int:
    """64 bits that depend on `key` alone."""
    return int.from_bytes(hashlib.blake2b(json.dumps(key).encode(), digest_size=8).digest(), "big")


def generator(*key: Any) -> np.random.Generator:
    """A generator that depends on `key` alone."""
    return np.random.default_rng(number(*key))


class Batches:
    """The batches of a training, by epoch.

    Attributes:
        per_epoch: batches an epoch, of each process; None until the first epoch of a stream is over.
    """

    def __init__(
        self, data: TrainingData, options: Options, seed: int, rank: int = 0, world: int = 1
    ) -> None:
        self._data, self._options, self._seed = data, options, seed
        self._rank, self._world = rank, world
        self._count = data.count
        self._size = min(options.batch_size, self._count or options.batch_size)
        self.per_epoch = None if self._count is None else max(1, self._count // (self._size * world))

    def epoch(self, epoch: int, first: int = 0) -> Iterator[Batch]:
        """The batches of an epoch from number `first` on.

        Every epoch has another order; the rest that does not fill a batch is left out, another rest each
        time.
        """
        if self._count is None:
            yield from self._streamed(epoch, first)
            return
        order = generator(self._seed, "order", epoch).permutation(self._count)
        assert self.per_epoch is not None
        for index in range(first, self.per_epoch):
            at = (index * self._world + self._rank) * self._size
            chosen = order[at : at + self._size]
            batch = self._data.fetch([int(i) for i in chosen])
            yield self._augmented(batch, epoch, index)

    def _streamed(self, epoch: int, first: int) -> Iterator[Batch]:
        stream = self._data.stream()
        index = count = 0
        while True:
            # What the source draws for a batch depends on its number, not on what was drawn before.
            seed_libraries(number(self._seed, "stream", epoch, index))
            batch = next(stream, None)
            if batch is None:
                break
            if index % self._world == self._rank:
                if count >= first:
                    yield self._augmented(batch, epoch, count)
                count += 1
            index += 1
        if count == 0:
            raise InputError(f"the training data gave no batch in epoch {epoch + 1}")
        self.per_epoch = count

    def _augmented(self, batch: Batch, epoch: int, index: int) -> Batch:
        options = self._options
        if not (options.flip or options.crop or options.noise):
            return batch
        rng = generator(self._seed, "augment", epoch, index, self._rank)
        inputs = {
            n: augmented(a, rng, flip=options.flip, crop=options.crop, noise=options.noise)
            for n, a in batch.inputs.items()
        }
        return Batch(inputs, batch.labels, batch.size)

    def on(self, batch: Batch, device: Any, epoch: int, index: int) -> Samples:
        """A batch as tensors on `device`, mixed with itself if that is asked for."""
        import torch

        options = self._options
        inputs = {n: torch.from_numpy(np.ascontiguousarray(a)).to(device) for n, a in batch.inputs.items()}
        labels = None
        if batch.labels is not None and batch.labels.dtype.kind in "biuf":
            labels = torch.from_numpy(np.ascontiguousarray(batch.labels)).to(device)
        if not (options.mixup or options.cutmix) or batch.size < 2:
            return Samples(inputs, labels, batch.size)
        rng = generator(self._seed, "mix", epoch, index, self._rank)
        inputs, order, share = mixed(inputs, rng, options.mixup, options.cutmix)
        return Samples(inputs, labels, batch.size, None if labels is None else labels[order], share)


def seed_libraries(seed: int) -> None:
    """Seed what a loader of the user's may draw from."""
    import random

    import torch

    random.seed(seed)
    np.random.seed(seed % (1 << 32))  # loaders draw from the global generator
    torch.manual_seed(seed % (1 << 63))


def steps_of(options: Options, per_epoch: int | None) -> int | None:
    """Optimizer steps in all; None where the length of an epoch is not known yet."""
    if options.steps is not None:
        return options.steps
    if per_epoch is None:
        return None
    return max(1, math.ceil(options.epochs * per_epoch / options.accumulate))
