"""Evaluation: one number for a model that can be run, and whether more of it is better."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np

from attar.calibration import Data, as_data
from attar.errors import AttarError, InputError
from attar.metrics import Metric, as_metric
from attar.progress import Progress, Silent

if TYPE_CHECKING:
    from attar.registry import Registry
    from attar.specs import TensorSpec

Array = np.ndarray[Any, np.dtype[Any]]


class Runnable(Protocol):
    """A model that can be run, as `attar.runtime.Session` is."""

    def run(self, feeds: Mapping[str, Array]) -> list[Array]: ...


@dataclass(frozen=True)
class Evaluation:
    """How a model is judged.

    Attributes:
        function: the runnable model -> a number.
        name: what the number is called in reports.
        higher_is_better: which way is good.
        reports_progress: whether the function takes the progress as its second argument.
        data: what it measures on, where that is known; its notes belong in the report.
    """

    function: Callable[..., Any]
    name: str = "evaluate"
    higher_is_better: bool = True
    reports_progress: bool = False
    data: Data | None = None

    def run(self, session: Runnable, progress: Progress | None = None) -> float:
        """The number for `session`.

        Raises:
            InputError: the function failed, or returned something that is not a finite number.
        """
        try:
            value = self.function(session, progress) if self.reports_progress else self.function(session)
        except AttarError:
            raise
        except Exception as error:
            raise InputError(
                f"the evaluation {self.name!r} failed: {type(error).__name__}: {error}",
                hint="it gets the runnable model: model(x) or model.run({name: array}) gives numpy arrays",
            ) from error
        return _number(value, self.name)

    def drop(self, before: float, after: float) -> float:
        """How much worse `after` is than `before`, in units of the number; negative if it is better."""
        return before - after if self.higher_is_better else after - before


def evaluate(
    session: Runnable, data: Data, metric: Metric | Callable[..., Any] | str, progress: Progress | None = None
) -> float:
    """The value of `metric` for `session` over all of `data`, one batch in memory at a time.

    Args:
        session: the runnable model.
        data: inputs with labels.
        metric: a `Metric`, a function `f(outputs, labels) -> (sum, count)` or the name of a built-in metric.
        progress: told of the samples that are done.

    Raises:
        InputError: labels are missing or do not go with the outputs, or the value is not a finite number.
    """
    metric = as_metric(metric)
    state = metric.start()
    with (progress or Silent()).task(f"evaluate {metric.name}", data.count()) as task:
        index = 0  # enumerate() would hold on to the last batch while it fetches the next
        for batch in data:
            if batch.labels is None and metric.needs_labels:
                raise _no_labels(metric.name, f"batch {index}")
            outputs = session.run(batch.inputs)
            try:
                state = metric.update(state, outputs, batch.labels)
            except AttarError as error:
                raise InputError(f"batch {index}: {error.message}", hint=error.hint) from error
            except Exception as error:
                raise InputError(
                    f"metric {metric.name!r} failed on batch {index}: {type(error).__name__}: {error}"
                ) from error
            task.advance(batch.size)
            del batch, outputs
            index += 1  # noqa: SIM113
    return _number(metric.finish(state), metric.name)


def as_evaluation(
    evaluate: Any,
    specs: Sequence[TensorSpec],
    *,
    calibration: Data | None = None,
    registry: Registry | None = None,
    preprocess: Any = None,
) -> Evaluation | None:
    """An `Evaluation` from what the user gives.

    Args:
        evaluate: None; a function of the runnable model that returns a number (with an attribute
            `higher_is_better = False` if less is better); a tuple (data, metric), the metric a name or a
            function `f(outputs, labels) -> (sum, count)`; the name of a metric alone, for the labels of the
            calibration data; an `Evaluation`.
        specs: the model's inputs.
        calibration: the calibration data, if there are any.
        registry: whose metrics are known by name; the built-in ones without it.
        preprocess: for a tuple whose data are a folder of images, as in `as_data`; other data do not need it.

    Raises:
        InputError: it is none of these, the metric is unknown, or there are no labels.
    """
    if evaluate is None or isinstance(evaluate, Evaluation):
        return evaluate
    known = None if registry is None else registry.metrics
    if isinstance(evaluate, str | Metric):
        metric = as_metric(evaluate, known)
        if calibration is None:
            raise InputError(
                f"evaluate={metric.name!r} needs data with labels",
                hint=f"give evaluate=(data, {metric.name!r}), or calibration data with labels",
            )
        if metric.needs_labels and calibration.first().labels is None:
            raise _no_labels(metric.name, "the calibration data")
        return _measured(calibration, metric)
    if isinstance(evaluate, tuple):
        if len(evaluate) != 2:
            raise InputError(
                f"evaluate is a tuple of {len(evaluate)}", hint='(data, metric), like (loader, "top1")'
            )
        metric = as_metric(evaluate[1], known)
        images = preprocess if _of_images(evaluate[0]) else None
        return _measured(as_data(evaluate[0], specs, preprocess=images), metric)
    if callable(evaluate):
        name = str(getattr(evaluate, "__name__", type(evaluate).__name__))
        better = bool(getattr(evaluate, "higher_is_better", True))
        return Evaluation(evaluate, "evaluate" if name == "<lambda>" else name, better)
    raise InputError(
        f"evaluate cannot be {type(evaluate).__name__}",
        hint="a function of the runnable model, (data, metric), or the name of a metric",
    )


def _measured(data: Data, metric: Metric) -> Evaluation:
    def measure(session: Runnable, progress: Progress | None) -> float:
        return evaluate(session, data, metric, progress)

    return Evaluation(measure, metric.name, metric.higher_is_better, reports_progress=True, data=data)


def _of_images(source: Any) -> bool:
    return isinstance(source, str | Path) and Path(source).suffix.lower() not in (".npz", ".npy")


def _no_labels(metric: str, where: str) -> InputError:
    return InputError(
        f"metric {metric!r} needs labels, {where} has none",
        hint='give (inputs, labels) tuples, or a dict with the key "labels"',
    )


def _number(value: Any, name: str) -> float:
    """`value` as a float, if it is a number or an array or tensor of one number."""
    if getattr(value, "shape", None) is not None and callable(getattr(value, "item", None)):
        try:
            value = value.item()
        except (TypeError, ValueError, RuntimeError):
            raise InputError(
                f"{name!r} returned an array of shape {list(value.shape)}, not a number"
            ) from None
    if isinstance(value, bool) or not isinstance(value, int | float | np.integer | np.floating):
        raise InputError(f"{name!r} returned {type(value).__name__} {str(value)[:60]!r}, not a number")
    if not math.isfinite(value):
        raise InputError(f"{name!r} is {value}", hint="look for NaN or infinity in the outputs of the model")
    return float(value)
