"""Metrics: numbers that say how good the outputs of a model are, added up batch by batch.

A metric that is a mean gives (sum, count) for each batch. One that is not (F1, correlations) keeps a small
state of its
own: confusion counts, scalar pairs; never the outputs. All look at the model's first output.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from attar.errors import InputError, did_you_mean

Array = np.ndarray[Any, np.dtype[Any]]
Outputs = Sequence[Array]

_IGNORED = "are all labels marked as ignored?"
_MISMATCH = "labels of shape {} do not go with an output of shape {}"


@dataclass(frozen=True)
class Metric:
    """A metric over a stream of batches. Calling it gives the value for a single batch.

    Attributes:
        name: what it is called.
        start: a new state.
        update: `update(state, outputs, labels)` gives the state with one more batch in it.
        finish: the value of a state.
        higher_is_better: which way is good.
        doc: one line on what it is.
        needs_labels: whether `labels` may not be None.
    """

    name: str
    start: Callable[[], Any]
    update: Callable[[Any, Outputs, Any], Any]
    finish: Callable[[Any], float]
    higher_is_better: bool = True
    doc: str = ""
    needs_labels: bool = True

    def __call__(self, outputs: Outputs, labels: Any) -> float:
        return self.finish(self.update(self.start(), outputs, labels))

    @classmethod
    def mean(
        cls,
        function: Callable[..., tuple[float, float]],
        name: str | None = None,
        *,
        finish: Callable[[float], float] = float,
        higher_is_better: bool | None = None,
        doc: str | None = None,
        needs_labels: bool = True,
    ) -> Metric:
        """A metric from `function(outputs, labels) -> (sum, count)`; the value is `finish(total sum / total
        count)`.

        `higher_is_better` may also be an attribute of the function; it is True where neither says.
        """
        name = name or str(getattr(function, "__name__", type(function).__name__))

        def update(state: tuple[float, float], outputs: Outputs, labels: Any) -> tuple[float, float]:
            answer = function(outputs, labels)
            try:
                total, count = (float(part) for part in answer)
            except (TypeError, ValueError):
                raise InputError(
                    f"metric {name!r} returned {str(answer)[:80]!r}",
                    hint="a metric returns (sum, count): the sum over the batch and the number of samples",
                ) from None
            return state[0] + total, state[1] + count

        def value(state: tuple[float, float]) -> float:
            if state[1] == 0:
                raise InputError(f"metric {name!r} counted no samples", hint=_IGNORED)
            return float(finish(state[0] / state[1]))

        if higher_is_better is None:
            higher_is_better = bool(getattr(function, "higher_is_better", True))
        doc = (function.__doc__ or "").strip().partition("\n")[0] if doc is None else doc
        return cls(name, lambda: (0.0, 0.0), update, value, higher_is_better, doc, needs_labels)


def as_metric(metric: Any, known: Mapping[str, Any] | None = None) -> Metric:
    """A `Metric` from its name, from a function `f(outputs, labels) -> (sum, count)`, or from a `Metric`.

    Raises:
        InputError: there is no metric of this name, or it is nothing that can be called.
    """
    known = BUILTIN if known is None else known
    if isinstance(metric, str):
        if metric not in known:
            raise InputError(f"unknown metric {metric!r}", hint=did_you_mean(metric, known))
        found = known[metric]
        return found if isinstance(found, Metric) else Metric.mean(found, metric)
    if isinstance(metric, Metric):
        return metric
    if not callable(metric):
        raise InputError(
            f"{metric!r} is no metric", hint="a name, or a function f(outputs, labels) -> (sum, count)"
        )
    return Metric.mean(metric)


# -- classification --------------------------------------------------------------------------------


def class_scores(outputs: Outputs, labels: Any) -> tuple[Array, Array]:
    """Scores `[M, C]` and class numbers `[M]` of all that is classified: samples, tokens or pixels.

    The classes are along the last axis, or along axis 1 for maps `[N, C, H, W]` with labels `[N, H, W]`; axes
    of length 1 after the classes are dropped. One-hot labels count as classes. Negative labels mean "ignore"
    and are left out.

    Raises:
        InputError: the shapes do not go together, or a label is no class of the model.
    """
    scores, classes = np.asarray(outputs[0]), np.asarray(labels)
    shapes = list(classes.shape), list(scores.shape)
    if scores.ndim == 4 and scores.shape[2:] == (1, 1) and classes.ndim <= 2:
        scores = scores[:, :, 0, 0]
    if classes.ndim == scores.ndim and 1 in classes.shape[1:] and classes.shape != scores.shape:
        classes = classes.reshape([d for i, d in enumerate(classes.shape) if i == 0 or d != 1])
    if classes.shape not in (scores.shape[:-1], scores.shape) and classes.ndim == scores.ndim - 1 > 1:
        scores = np.moveaxis(scores, 1, -1)
    if scores.ndim < 2 or scores.shape[-1] == 1:
        raise InputError(
            f"the first output has shape {shapes[1]}: one score, not one for each class",
            hint="give a function f(outputs, labels) -> (sum, count) that says where the threshold is",
        )
    if classes.shape == scores.shape:
        classes = _from_one_hot(classes)
    if classes.shape != scores.shape[:-1]:
        raise InputError(
            _MISMATCH.format(*shapes),
            hint="one class number for each row of scores, or one-hot rows",
        )
    flat, number = scores.reshape(-1, scores.shape[-1]), _class_numbers(classes).reshape(-1)
    if number.size and int(number.max()) >= flat.shape[1]:
        raise InputError(
            f"label {int(number.max())} is no class of a model with {flat.shape[1]} classes, counted from 0",
            hint="do the labels count from 1, or has the model a background class that they leave out?",
        )
    if (number < 0).any():
        flat, number = flat[number >= 0], number[number >= 0]
    return flat, number


def _class_numbers(labels: Array) -> Array:
    if labels.dtype.kind in "iub":
        return labels.astype(np.int64)
    if labels.dtype.kind == "f" and (labels == np.floor(labels)).all():
        return labels.astype(np.int64)
    raise InputError(
        f"labels of {labels.dtype} are no class numbers", hint="classes are numbered 0, 1, 2, ..."
    )


def _from_one_hot(labels: Array) -> Array:
    if labels.dtype.kind not in "biuf" or not (
        ((labels == 0) | (labels == 1)).all() and (labels.sum(-1) == 1).all()
    ):
        raise InputError(
            "labels have the shape of the scores but are not one-hot",
            hint="soft or multiple labels need a metric of your own: f(outputs, labels) -> (sum, count)",
        )
    return np.asarray(labels.argmax(-1))


def _predicted(outputs: Outputs, labels: Any) -> tuple[Array, Array, int | None]:
    """Predicted classes, true classes, and how many classes there are (None if the model ends in an ArgMax).

    A row of scores with a NaN predicts -1, which is never right.
    """
    out, true = np.asarray(outputs[0]), np.asarray(labels)
    if out.dtype in (np.int32, np.int64) and out.size == true.size and out.shape[:1] == true.shape[:1]:
        number = _class_numbers(true).reshape(-1)
        return out.reshape(-1)[number >= 0], number[number >= 0], None
    scores, number = class_scores(outputs, labels)
    best = scores.argmax(-1)
    if scores.dtype.kind == "f" and scores.size:
        best = np.where(np.isnan(scores.max(-1)), -1, best)
    return best, number, scores.shape[1]


def _top1(outputs: Outputs, labels: Any) -> tuple[float, float]:
    best, number, _ = _predicted(outputs, labels)
    return float((best == number).sum()), float(number.size)


def _top5(outputs: Outputs, labels: Any) -> tuple[float, float]:
    scores, number = class_scores(outputs, labels)
    if scores.shape[1] <= 5:
        raise InputError(f"top5 says nothing of a model with {scores.shape[1]} classes", hint="use top1")
    true = np.take_along_axis(scores, number[:, None], 1)
    # Ties, which are common in quantized models, go to the lower class number, as argmax does.
    before = np.arange(scores.shape[1]) < number[:, None]
    rank = (scores > true).sum(1) + ((scores == true) & before).sum(1)
    valid = ~np.isnan(scores).any(1) if scores.dtype.kind == "f" else np.ones(len(scores), bool)
    return float(((rank < 5) & valid).sum()), float(number.size)


Confusion = dict[int, Array]
"""class -> [true positives, false positives, false negatives]"""


def _confuse(state: Confusion, outputs: Outputs, labels: Any, *, binary: bool) -> Confusion:
    best, number, classes = _predicted(outputs, labels)
    highest = int(max(best.max(), number.max())) + 1 if number.size else 0
    if binary and (classes or highest) > 2:
        raise InputError(f"f1 is for two classes, here are {classes or highest}", hint="use f1_macro")
    state = dict(state)
    for each in np.union1d(best, number):
        said, right = best == each, number == each
        counts = [int((said & right).sum()), int((said & ~right).sum()), int((~said & right).sum())]
        state[int(each)] = state.get(int(each), np.zeros(3, np.int64)) + np.array(counts)
    return state


def _f1(counts: Array) -> float:
    # F1 = 2 TP / (2 TP + FP + FN), the harmonic mean of precision and recall (van Rijsbergen 1979)
    hit, false, missed = (int(n) for n in counts)
    return 2 * hit / (2 * hit + false + missed) if hit else 0.0


def _f1_value(state: Confusion, *, binary: bool) -> float:
    if not state:
        raise InputError("metric f1 counted no samples", hint=_IGNORED)
    if binary:
        return _f1(state.get(1, np.zeros(3, np.int64)))
    scores = [_f1(counts) for each, counts in state.items() if each >= 0]
    return math.fsum(scores) / len(scores)


def _f1_metric(name: str, binary: bool, doc: str) -> Metric:
    update, value = functools.partial(_confuse, binary=binary), functools.partial(_f1_value, binary=binary)
    return Metric(name, dict, update, value, doc=doc)


def _cross_entropy(outputs: Outputs, labels: Any) -> tuple[float, float]:
    scores, number = class_scores(outputs, labels)
    total, rows = 0.0, max(1, 2**20 // scores.shape[1])  # 8 MB of float64 at a time: vocabularies are large
    for at in range(0, len(scores), rows):
        part = scores[at : at + rows].astype(np.float64)
        # -log softmax(x)[y] = log sum exp(x - m) - (x[y] - m), with m = max x so that exp cannot overflow
        part -= part.max(1, keepdims=True)
        picked = np.take_along_axis(part, number[at : at + rows, None], 1)[:, 0]
        total += float((np.log(np.exp(part).sum(1)) - picked).sum())
    return total, float(number.size)


def _exp(value: float) -> float:
    return math.exp(value) if value < 709 else math.inf  # e^709 is the largest float64 power


# -- numbers ---------------------------------------------------------------------------------------


def _pairs(outputs: Outputs, labels: Any) -> tuple[Array, Array]:
    """Output and label as float64 of one shape. Axes of length 1 may differ; nothing is broadcast."""
    out, true = np.asarray(outputs[0]), np.asarray(labels)
    if true.dtype.kind not in "biuf":
        raise InputError(f"labels of {true.dtype} are no numbers")
    if out.shape != true.shape and (
        out.shape[:1] != true.shape[:1] or _without_ones(out.shape) != _without_ones(true.shape)
    ):
        raise InputError(
            _MISMATCH.format(list(true.shape), list(out.shape)),
            hint="this metric compares the first output with the labels element by element",
        )
    return out.astype(np.float64).reshape(-1), true.astype(np.float64).reshape(-1)


def _without_ones(shape: tuple[int, ...]) -> list[int]:
    return [d for d in shape[1:] if d != 1]


def _squared(outputs: Outputs, labels: Any) -> tuple[float, float]:
    out, true = _pairs(outputs, labels)
    return float(((out - true) ** 2).sum()), float(true.size)


def _absolute(outputs: Outputs, labels: Any) -> tuple[float, float]:
    out, true = _pairs(outputs, labels)
    return float(np.abs(out - true).sum()), float(true.size)


Chunks = tuple[tuple[Array, Array], ...]


def _collect(state: Chunks, outputs: Outputs, labels: Any) -> Chunks:
    return (*state, _pairs(outputs, labels))


def _correlation(state: Chunks, *, ranked: bool) -> float:
    """Pearson's r, of the ranks (ties share their mean rank) for Spearman's rho."""
    x, y = (np.concatenate([c[i] for c in state]) if state else np.zeros(0) for i in (0, 1))
    if np.isnan(x).any() or np.isnan(y).any():
        return math.nan
    if ranked:
        x, y = _ranks(x), _ranks(y)
    if x.size < 2 or np.ptp(x) == 0 or np.ptp(y) == 0:
        raise InputError(
            "the correlation is not defined: the outputs or the labels are all equal",
            hint="it needs at least two samples with different values",
        )
    x, y = x - x.mean(), y - y.mean()
    return float(x @ y / (np.linalg.norm(x) * np.linalg.norm(y)))


def _ranks(values: Array) -> Array:
    _, inverse, counts = np.unique(values, return_inverse=True, return_counts=True)
    ends = np.cumsum(counts)  # ranks of a run of ties: ends - counts + 1 ... ends
    return np.asarray((ends - (counts - 1) / 2)[inverse.reshape(-1)])


def _correlation_metric(name: str, ranked: bool, doc: str) -> Metric:
    return Metric(name, tuple, _collect, functools.partial(_correlation, ranked=ranked), doc=doc)


_mean = functools.partial(Metric.mean, higher_is_better=True)
_error = functools.partial(Metric.mean, higher_is_better=False)
_ALL = (
    _mean(_top1, "top1", doc="share of samples, tokens or pixels whose best class is the right one"),
    _mean(_top5, "top5", doc="share whose right class is among the best five"),
    _f1_metric("f1", True, "F1 of class 1 of two"),
    _f1_metric("f1_macro", False, "mean F1 of the classes that occur"),
    _error(_cross_entropy, "cross_entropy", doc="mean negative log-likelihood, from logits, in nats"),
    _error(_cross_entropy, "perplexity", finish=_exp, doc="exp of the cross entropy, from logits"),
    _error(_squared, "mse", doc="mean squared error"),
    _error(_squared, "rmse", finish=math.sqrt, doc="root of the mean squared error"),
    _error(_absolute, "mae", doc="mean absolute error"),
    _correlation_metric("pearson", False, "linear correlation of output and label"),
    _correlation_metric("spearman", True, "rank correlation of output and label"),
)

BUILTIN: dict[str, Metric] = {metric.name: metric for metric in _ALL}
"""The metrics that come with attar, by name."""
