"""Evaluation: what may be given, what comes out, and what is refused."""

from __future__ import annotations

import weakref
from contextlib import contextmanager

import numpy as np
import pytest

from attar.calibration import as_data
from attar.errors import InputError, Refused
from attar.evaluation import Evaluation, as_evaluation, evaluate
from attar.hooks import hookimpl
from attar.metrics import BUILTIN
from attar.registry import Registry
from attar.specs import TensorSpec

SPECS = (TensorSpec("x", np.dtype(np.float32), ("N", 4)),)
RNG = np.random.default_rng(3)
X = RNG.standard_normal((50, 4)).astype(np.float32)
Y = RNG.integers(0, 4, 50)
RIGHT = float(np.mean(X.argmax(1) == Y))


class Session:
    """Gives its input back as scores."""

    def __init__(self):
        self.sizes = []

    def run(self, feeds):
        self.sizes.append(len(feeds["x"]))
        return [feeds["x"]]

    def __call__(self, inputs):
        return self.run({"x": inputs})


def test_data_and_metric():
    session = Session()
    evaluation = as_evaluation(([(X[:20], Y[:20]), (X[20:], Y[20:])], "top1"), SPECS)
    assert evaluation.run(session) == pytest.approx(RIGHT)
    assert session.sizes == [20, 30]
    assert (evaluation.name, evaluation.higher_is_better) == ("top1", True)
    assert evaluation.run(session) == pytest.approx(RIGHT), "again"


def test_metric_of_the_calibration_data():
    calibration = as_data((X, Y), SPECS)
    assert as_evaluation("top1", SPECS, calibration=calibration).run(Session()) == pytest.approx(RIGHT)
    with pytest.raises(InputError, match="'top1' needs labels, the calibration data has none"):
        as_evaluation("top1", SPECS, calibration=as_data(X, SPECS))
    with pytest.raises(InputError, match="needs data with labels"):
        as_evaluation("top1", SPECS)


def test_function():
    def accuracy(model):
        return np.mean(model(X)[0].argmax(1) == Y)

    evaluation = as_evaluation(accuracy, SPECS)
    assert evaluation.run(Session()) == pytest.approx(RIGHT)
    assert evaluation.name == "accuracy"
    assert as_evaluation(lambda model: 1, SPECS).name == "evaluate"
    assert as_evaluation(None, SPECS) is None
    assert as_evaluation(evaluation, SPECS) is evaluation


def test_drop_is_positive_for_worse():
    assert Evaluation(len).drop(0.9, 0.8) == pytest.approx(0.1)
    assert Evaluation(len, higher_is_better=False).drop(0.9, 0.8) == pytest.approx(-0.1)

    def loss(model):
        return 1.0

    loss.higher_is_better = False
    assert as_evaluation(loss, SPECS).drop(1.0, 1.5) == 0.5
    assert as_evaluation(((X, X), "mse"), SPECS).drop(1.0, 1.5) == 0.5


@pytest.mark.parametrize(
    ("value", "number"),
    [(1, 1.0), (np.float32(0.5), 0.5), (np.array(0.25), 0.25), (np.array([2]), 2.0), (np.int64(3), 3.0)],
)
def test_numbers(value, number):
    assert Evaluation(lambda model: value).run(Session()) == number


@pytest.mark.parametrize(
    "value", [None, "0.9", True, np.nan, np.inf, -np.inf, np.zeros(2), (0.9, 10), {"top1": 0.9}, 1j]
)
def test_what_is_no_finite_number_is_refused(value):
    with pytest.raises(InputError, match="'mine'"):
        Evaluation(lambda model: value, "mine").run(Session())


def test_failing_function():
    with pytest.raises(InputError, match="'bad' failed: KeyError: 'scores'") as caught:
        Evaluation(lambda model: {}["scores"], "bad").run(Session())
    assert isinstance(caught.value.__cause__, KeyError)

    def declines(model):
        raise Refused("not this one")

    with pytest.raises(Refused):
        Evaluation(declines).run(Session())


def test_unknown_metrics_and_things():
    with pytest.raises(InputError, match="did you mean 'top1'"):
        as_evaluation(((X, Y), "top_1"), SPECS)
    with pytest.raises(InputError, match="did you mean 'spearman'"):
        as_evaluation("speerman", SPECS, calibration=as_data((X, Y), SPECS))
    with pytest.raises(InputError, match="tuple of 3"):
        as_evaluation((X, Y, "top1"), SPECS)
    with pytest.raises(InputError, match="cannot be int"):
        as_evaluation(3, SPECS)
    with pytest.raises(InputError, match="is no metric"):
        as_evaluation(((X, Y), 3), SPECS)


def test_labels_are_needed_and_checked():
    with pytest.raises(InputError, match="needs labels, batch 0 has none"):
        as_evaluation((X, "top1"), SPECS).run(Session())
    with pytest.raises(InputError, match="batch 1: label 4 is no class"):
        as_evaluation(([(X, Y), (X, Y + 1)], "top1"), SPECS).run(Session())
    with pytest.raises(InputError, match="50 samples but 49 labels"):
        as_evaluation(([(X, Y[:49])], "top1"), SPECS).run(Session())


def test_broken_and_nan_metrics():
    def broken(outputs, labels):
        return outputs["scores"], 1

    with pytest.raises(InputError, match="metric 'broken' failed on batch 0: TypeError"):
        evaluate(Session(), as_data((X, Y), SPECS), broken)

    class Nan(Session):
        def run(self, feeds):
            return [feeds["x"] * np.nan]

    with pytest.raises(InputError, match="'mse' is nan"):
        evaluate(Nan(), as_data((X, X), SPECS), "mse")


def test_metrics_without_labels():
    from attar.metrics import Metric

    norm = Metric.mean(
        lambda outputs, labels: (np.abs(outputs[0]).sum(), outputs[0].size), "norm", needs_labels=False
    )
    assert evaluate(Session(), as_data(X, SPECS), norm) == pytest.approx(np.abs(X).mean())
    assert as_evaluation(norm, SPECS, calibration=as_data(X, SPECS)).run(Session()) == pytest.approx(
        np.abs(X).mean()
    )


def test_metrics_of_plugins():
    class Plugin:
        @hookimpl
        def attar_metrics(self):
            return {"closest": lambda outputs, labels: ((outputs[0].argmax(1) == labels).sum(), len(labels))}

    registry = Registry()
    registry.register(Plugin(), name="plugin")
    evaluation = as_evaluation(((X, Y), "closest"), SPECS, registry=registry)
    assert evaluation.run(Session()) == pytest.approx(RIGHT)
    assert evaluation.name == "closest"
    assert set(registry.metrics) == {*BUILTIN, "closest"}


def test_progress_counts_samples():
    seen = []

    class Progress:
        @contextmanager
        def task(self, description, total=None):
            seen.append((description, total))

            class Task:
                def advance(self, steps=1):
                    seen.append(steps)

            yield Task()

    evaluate(Session(), as_data((X, Y), SPECS), "top1", Progress())
    assert seen == [("evaluate top1", 50), 32, 18]
    seen.clear()
    as_evaluation(((X, Y), "top1"), SPECS).run(Session(), progress=Progress())
    assert seen == [("evaluate top1", 50), 32, 18]
    assert Evaluation(lambda model: 1.0).run(Session(), progress=Progress()) == 1.0


def test_preprocess_is_for_folders_only(tmp_path):
    image = pytest.importorskip("PIL.Image")
    specs = (TensorSpec("x", np.dtype(np.float32), ("N", 3, 4, 4)),)
    for name in ("a", "b"):
        (tmp_path / name).mkdir()
        image.new("RGB", (4, 4), (255, 0, 0) if name == "a" else (0, 255, 0)).save(tmp_path / name / "0.png")

    class Brightest:
        def run(self, feeds):
            return [feeds["x"].mean(axis=(2, 3))]

    for data in (tmp_path, (np.zeros((2, 3, 4, 4), np.float32), np.zeros(2, int))):
        evaluation = as_evaluation((data, "top1"), specs, preprocess={"size": 4})
        assert evaluation.run(Brightest()) == 1.0


def test_one_batch_in_memory():
    alive: list[weakref.ref] = []

    def source():
        for _ in range(5):
            assert all(r() is None for r in alive)
            x = RNG.standard_normal((30, 4)).astype(np.float32)
            alive.append(weakref.ref(x))
            yield x, x.argmax(1)
            del x

    assert evaluate(Session(), as_data(source, SPECS), "top1") == 1.0
    assert len(alive) == 5
