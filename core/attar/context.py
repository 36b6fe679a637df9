"""What a pass may use beside the model: data, evaluation, target, runtime, randomness, progress, and a place
for notes."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Hashable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, TypeVar

import numpy as np

from attar.errors import InputError
from attar.progress import Progress, Silent
from attar.report import Skip, Step

if TYPE_CHECKING:
    import onnx_ir as ir

    from attar.calibration import Data
    from attar.evaluation import Evaluation
    from attar.feeds import Feeds
    from attar.gram import Gram, LayerInput
    from attar.registry import Registry
    from attar.runtime import Runtime
    from attar.statistics import Statistics
    from attar.targets import Target
    from attar.training import TrainingData


T = TypeVar("T")


@dataclass(frozen=True)
class Measured:
    """Microseconds of the kernels of the original and of a compressed form of it, by node or value name."""

    before: Mapping[str, float]
    after: Mapping[str, float]

    def times(self, names: Iterable[str]) -> tuple[float | None, float | None]:
        """(before, after) of the first of `names` that was measured in each."""
        known = tuple(names)
        return (
            next((self.before[n] for n in known if n in self.before), None),
            next((self.after[n] for n in known if n in self.after), None),
        )


@dataclass
class Context:
    """Handed to `Pass.apply`. One context serves a whole `compress`; `step` is the report of the running
    pass."""

    registry: Registry
    target: Target
    runtime: Runtime
    data: Data | None = None
    evaluation: Evaluation | None = None
    feeds: Feeds | None = None
    """Inputs of one typical run: what times are measured on, and what symbolic dimensions are planned
    with."""
    seed: int = 0
    threads: int = 1
    progress: Progress = field(default_factory=Silent)
    step: Step = field(default_factory=lambda: Step("", {}))
    keep_float: Mapping[str, str] = field(default_factory=dict)
    """Node or value name -> why the contract wants it made in float (repairs); quantizing passes leave it
    alone."""
    measured: Measured | None = None
    """Kernel times of this very model, where the contract has measured them; passes that plan prefer them to
    tables."""
    probing: bool = False
    """The result will be looked at and thrown away: costs do not matter, and settings are not searched
    for."""
    cache: dict[Hashable, Any] = field(default_factory=dict)
    """What attempts at the same work share, e.g. statistics."""
    training_data: TrainingData | None = None
    teachers: tuple[ir.Model, ...] = ()
    """Models to learn from, where the caller gave some."""
    original: ir.Model | None = None
    """The model as it came, before any pass: a teacher for what is left of it."""
    unquantized: ir.Model | None = None
    """The model before the step that put integers into it; None as long as it is in float."""

    @property
    def calibration(self) -> Data:
        """The calibration data.

        Raises:
            InputError: the caller gave none.
        """
        return self._given(
            self.data,
            "calibration data",
            "give compress(..., calibration=...): an iterable of input arrays, a DataLoader, "
            "an .npz file or a folder of images",
        )

    @property
    def training(self) -> TrainingData:
        """The training data.

        Raises:
            InputError: the caller gave none.
        """
        return self._given(
            self.training_data,
            "training data",
            "give compress(..., training=...): arrays, (inputs, labels), a Dataset, a loader, "
            "an .npz file or a folder of images",
        )

    @property
    def evaluate(self) -> Evaluation:
        """The evaluation.

        Raises:
            InputError: the caller gave none.
        """
        return self._given(
            self.evaluation,
            "an evaluation",
            "give compress(..., evaluate=...): a function of a runnable model, or (data, metric)",
        )

    def _given(self, what: T | None, name: str, hint: str) -> T:
        if what is None:
            raise InputError(f"pass {self.step.name!r} needs {name}", hint=hint)
        return what

    def statistics(self, model: ir.Model, wanted: Mapping[str, int | None]) -> dict[str, Statistics]:
        """Statistics of `model`'s values over the calibration data, gathered once for the same model and
        data.

        Args:
            wanted: value name -> channel axis of the means, or None for no means.
        """
        from attar import graph
        from attar.statistics import collect

        content = graph.fingerprint(model)
        known: dict[tuple[str, int | None], Statistics] = self.cache.setdefault(("statistics", content), {})
        new = {name: axis for name, axis in wanted.items() if (name, axis) not in known}
        found = collect(
            model, new, self.calibration, self.runtime, threads=self.threads, progress=self.progress
        )
        known.update({(name, new[name]): statistics for name, statistics in found.items()})
        return {name: known[name, axis] for name, axis in wanted.items()}

    def grams(self, model: ir.Model, wanted: Iterable[LayerInput]) -> Iterator[tuple[LayerInput, Gram]]:
        """Gram matrices of what layers multiply their weights with, over the calibration data.

        They come in portions that fit `gram.BUDGET`, one run over the data for each, and are kept for the
        same model and data while they all fit it together. Use each as it comes: what is not kept is gone.

        Args:
            wanted: from `attar.gram.layer_input`.
        """
        from attar import gram, graph

        known: dict[LayerInput, Gram] = self.cache.setdefault(("grams", graph.fingerprint(model)), {})
        items = list(dict.fromkeys(wanted))
        missing = [item for item in items if item not in known]
        yield from [(item, known[item]) for item in items if item in known]
        for portion in gram.sweeps(missing):
            found = gram.collect(
                model,
                portion,
                self.calibration,
                self.runtime,
                threads=self.threads,
                seed=self.seed,
                progress=self.progress,
            )
            if sum(item.nbytes for item in (*known, *missing)) <= gram.BUDGET:
                known.update(found)
            yield from found.items()

    def shapes(self, model: ir.Model) -> dict[str, tuple[int, ...]]:
        """Value name -> shape in a typical run. Values whose shape depends on data are left out."""
        from attar import graph

        key = ("shapes", graph.fingerprint(model))
        if key not in self.cache:
            feeds = {} if self.feeds is None else {n: a.shape for n, a in self.feeds.items()}
            self.cache[key] = graph.concrete_shapes(model, feeds)
        return dict(self.cache[key])

    def rng(self, *key: str | int) -> np.random.Generator:
        """A generator that depends on the seed and `key` alone, not on what ran before."""
        # The list's form tells ("ab",) from ("a", "b"), which the mere bytes would not.
        words = json.dumps([str(word) for word in (self.seed, *key)])
        digest = hashlib.blake2b(words.encode(), digest_size=16).digest()
        return np.random.default_rng(int.from_bytes(digest, "big"))

    def skip(self, what: ir.Node | ir.Value, reason: str, *, names: Iterable[str] = ()) -> None:
        """Record that `what` was left alone, and why.

        Args:
            names: other names under which a runtime may know it, such as those of nodes that fuse with it.
        """
        producer = what.producer() if hasattr(what, "producer") else what
        op = getattr(producer, "op_type", "")
        self.step.skipped.append(Skip(what.name or "?", op or "value", reason, tuple(names)))

    def note(self, change: str) -> None:
        """Record a change, as one sentence."""
        self.step.changes.append(change)
