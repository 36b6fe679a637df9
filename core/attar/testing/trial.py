"""One pass on one model of the zoo, run as the driver runs it, and the evidence that the checks look at."""

from __future__ import annotations

import functools
import hashlib
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np
import onnx_ir as ir

from attar.context import Context
from attar.errors import Refused
from attar.passes import Pass
from attar.report import Step
from attar.testing.zoo import Array, ZooModel

if TYPE_CHECKING:
    from attar.registry import Registry
    from attar.runtime import Runtime, Session

_CALIBRATION_BATCHES = 4


class NonConformance(AssertionError):  # noqa: N818  it is a finding about a pass, like a failed assertion
    """A pass or an adapter does not keep a promise; the message says which, where, and usually what to do."""


@dataclass(frozen=True)
class Setup:
    """What the trials of one pass share."""

    registry: Registry
    target: str = "cpu"
    seed: int = 0

    @functools.cached_property
    def runtime(self) -> Runtime:
        from attar.runtime import OnnxRuntime

        return OnnxRuntime()

    def context(self, step: Pass, zoo: ZooModel, model: ir.Model) -> Context:
        """A new context with calibration data drawn for this model, and an evaluation by closeness to the
        original.
        """
        from attar.calibration import as_data
        from attar.specs import input_specs

        batches = [zoo.inputs(seed=100 + i) for i in range(_CALIBRATION_BATCHES)]
        return Context(
            registry=self.registry,
            target=self.registry.get_target(self.target),
            runtime=self.runtime,
            data=as_data(batches, input_specs(model)),
            evaluation=self._evaluation(step, zoo, model),
            seed=self.seed,
            step=Step(step.name, {k: v for k, v in step.to_dict().items() if k != "name"}),
            training_data=self._training(step, zoo, model),
            original=model,
        )

    def _training(self, step: Pass, zoo: ZooModel, model: ir.Model) -> Any:
        """Batches with targets a little smaller than what the model makes of them."""
        if "training" not in step.needs:
            return None
        from attar.specs import input_specs
        from attar.training import as_training

        session = self.runtime.open(model, optimize=False)
        pairs = []
        for i in range(_CALIBRATION_BATCHES):
            feeds = zoo.inputs(seed=300 + i)
            made = session.run(feeds)[0]
            pairs.append((feeds, (0.9 * made).astype(made.dtype) if made.dtype.kind == "f" else made))
        return as_training(pairs, input_specs(model))

    def _evaluation(self, step: Pass, zoo: ZooModel, model: ir.Model) -> Any:
        if "evaluate" not in step.needs:
            return None
        from attar.evaluation import as_evaluation
        from attar.specs import input_specs

        feeds = zoo.inputs(seed=200)
        expected = self.runtime.open(model, optimize=False).run(feeds)

        def closeness(session: Session) -> float:
            """1 when all outputs equal the original's, falling towards 0."""
            worst = max(relative_difference(y, z) for y, z in zip(expected, session.run(feeds), strict=True))
            return 1 / (1 + worst)

        return as_evaluation(closeness, input_specs(model))


@dataclass
class Trial:
    """One pass on one model. Everything is computed on first use and kept."""

    step: Pass
    zoo: ZooModel
    setup: Setup
    refused: Refused | None = None
    crash: Exception | None = None
    finish_error: Exception | None = None
    touched: list[str] = field(default_factory=list)
    stale: list[str] = field(default_factory=list)
    used_global_random: bool = False

    def __post_init__(self) -> None:
        self.options = self.step.to_dict()  # as they are before the pass has run

    def __str__(self) -> str:
        return f"{self.step} on zoo model {self.zoo.name!r} ({self.zoo.about})"

    @functools.cached_property
    def original(self) -> ir.Model:
        """The model as the pass finds it: in normal form, with the passes that it requires already run."""
        from attar import graph
        from attar.run import with_required

        model = self.zoo.build()
        graph.normalize(model)
        for required, _ in with_required([self.step], model, self.setup.registry)[:-1]:
            try:
                required.apply(model, self.setup.context(required, self.zoo, model))
            except Refused:
                continue
            finish(model)
        return model

    @functools.cached_property
    def result(self) -> ir.Model | None:
        """What the pass made of a clone, or None when it declined or crashed."""
        before, random_before = prints(self.original), _global_random()
        result, self.refused, self.crash = self.attempt(self.original)
        self.used_global_random = random_before != _global_random()
        after = prints(self.original)
        self.touched = [key for key in before if before[key] != after.get(key)]
        self.touched += [key for key in after if key not in before]
        if result is not None:
            self.stale = list(_stale(result))  # before the driver's inference, which mends it
            try:
                finish(result)
            except Exception as error:
                self.finish_error = error
        return result

    def attempt(self, model: ir.Model) -> tuple[ir.Model | None, Refused | None, Exception | None]:
        """Apply the pass to a clone of `model` in a new context; gives result, refusal and crash, of which
        one is set.
        """
        from attar import graph

        context = self.setup.context(self.step, self.zoo, model)
        work = graph.clone(model)
        try:
            self.step.apply(work, context)
        except Refused as refusal:
            return None, refusal, None
        except Exception as error:
            return None, None, error
        return work, None, None

    @property
    def usable(self) -> bool:
        """Whether there is a result that later checks can look at; what went wrong before is reported by its
        own check.
        """
        return self.result is not None and self.finish_error is None

    @functools.cached_property
    def feeds(self) -> list[dict[str, Array]]:
        """Two sets of inputs that were not calibrated on, of different batch sizes where the model allows."""
        return [self.zoo.inputs(seed=1, batch=2), self.zoo.inputs(seed=2, batch=3)]

    @functools.cached_property
    def expected(self) -> list[list[Array]]:
        session = self.setup.runtime.open(self.original, optimize=False)
        return [session.run(feed) for feed in self.feeds]

    @functools.cached_property
    def session(self) -> Session:
        assert self.result is not None
        return self.setup.runtime.open(self.result, optimize=False)

    @functools.cached_property
    def outputs(self) -> list[list[Array]]:
        return [self.session.run(feed) for feed in self.feeds]


def finish(model: ir.Model) -> None:
    """What the driver does after every pass: remove what nobody reads, infer shapes anew and strictly."""
    from attar import graph

    graph.tidy(model)
    graph.refresh_shapes(model)


def weights(model: ir.Model) -> Iterator[tuple[str, ir.Value, ir.TensorProtocol]]:
    """Initializers of the graph and of all subgraphs as (name, value, tensor)."""
    for graph in model.graphs():
        for name, value in graph.initializers.items():
            if value.const_value is not None:
                yield name, value, value.const_value


def _stale(model: ir.Model) -> Iterator[str]:
    """What is wrong with weights whose value and tensor disagree."""
    for name, value, tensor in weights(model):
        if value.shape is not None and list(value.shape) != list(tensor.shape):
            said, has = list(value.shape), list(tensor.shape)
            yield f"weight {name!r} has shape {has}, but its value still says {said}"
        if value.dtype is not None and value.dtype != tensor.dtype:
            yield f"weight {name!r} holds {tensor.dtype}, but its value still says {value.dtype}"


def held(model: ir.Model) -> Iterator[tuple[str, ir.TensorProtocol]]:
    """Every tensor of a model with a name for messages: initializers and tensor attributes."""
    for name, _, tensor in weights(model):
        yield f"weight {name!r}", tensor
    for node in ir.traversal.RecursiveGraphIterator(model.graph):
        for attribute in node.attributes.values():
            if attribute.type == ir.AttributeType.TENSOR and not attribute.is_ref():
                yield (
                    f"attribute {attribute.name!r} of node {node.name or node.op_type!r}",
                    attribute.as_tensor(),
                )


def prints(model: ir.Model) -> dict[str, str]:
    """A hash of each tensor's content and one of the rest of the graph, by what they are."""
    from attar import graph

    found = {what: hashlib.sha256(tensor.tobytes()).hexdigest() for what, tensor in held(model)}
    found["the graph"] = hashlib.sha256(graph.to_bytes(model)).hexdigest()
    return found


def relative_difference(expected: Array, got: Array) -> float:
    """Largest absolute difference over the largest magnitude of `expected` (over 1 where that is 0)."""
    if expected.shape != got.shape:
        return float("inf")
    if expected.size == 0:
        return 0.0
    with np.errstate(all="ignore"):
        wide, other = np.asarray(expected, np.float64), np.asarray(got, np.float64)
        same = (wide == other) | (np.isnan(wide) & np.isnan(other))
        difference = np.where(same, 0.0, np.abs(wide - other))
        finite = np.abs(wide[np.isfinite(wide)])
    scale = float(finite.max()) if finite.size and finite.max() > 0 else 1.0
    worst = float(np.max(difference)) / scale
    return worst if np.isfinite(worst) else float("inf")


def _global_random() -> tuple[Any, ...]:
    """The state of the random generators that a pass has no business with."""
    import random

    kind, keys, *rest = np.random.get_state(legacy=True)
    return kind, np.asarray(keys).tobytes(), tuple(rest), random.getstate()
