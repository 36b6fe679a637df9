"""Metrics against scikit-learn and scipy, streamed in batches of odd sizes."""

from __future__ import annotations

import numpy as np
import pytest

from attar.errors import InputError
from attar.metrics import BUILTIN, Metric, as_metric

RNG = np.random.default_rng(7)


def stream(name: str, out: np.ndarray, labels: np.ndarray, cuts=(1, 8, 9, 40)) -> float:
    metric = BUILTIN[name]
    state = metric.start()
    for x, y in zip(np.split(out, cuts), np.split(labels, cuts), strict=True):
        if len(x):
            state = metric.update(state, [x, np.zeros(3)], y)
    return metric.finish(state)


def scores(count: int, classes: int) -> np.ndarray:
    return RNG.integers(-9, 10, (count, classes)).astype(np.float32)  # with many ties


# -- classification --


def test_top1_and_top5():
    out, y = scores(200, 12), RNG.integers(0, 12, 200)
    order = np.argsort(-out, axis=1, kind="stable")
    assert stream("top1", out, y) == np.mean(order[:, 0] == y)
    assert stream("top5", out, y) == np.mean((order[:, :5] == y[:, None]).any(1))
    sklearn = pytest.importorskip("sklearn.metrics")
    distinct = RNG.standard_normal((200, 12))
    assert stream("top1", distinct, y) == pytest.approx(sklearn.accuracy_score(y, distinct.argmax(1)))
    assert stream("top5", distinct, y) == pytest.approx(sklearn.top_k_accuracy_score(y, distinct, k=5))


@pytest.mark.parametrize(
    ("out_shape", "label_shape", "axis"),
    [
        ((6, 4), (6,), 1),
        ((6, 4), (6, 1), 1),
        ((6, 4, 1, 1), (6,), 1),
        ((6, 4, 1, 1), (6, 1), 1),
        ((6, 5, 4), (6, 5), 2),
        ((6, 4, 5), (6, 5), 1),
        ((6, 4, 5, 7), (6, 5, 7), 1),
        ((6, 4, 5, 7), (6, 1, 5, 7), 1),
        ((6, 5, 7, 4), (6, 5, 7), 3),
        ((6, 4, 5, 1), (6, 5, 1), 1),
        ((1, 4), (1,), 1),
        ((1, 4), (1, 1), 1),
    ],
)
@pytest.mark.parametrize("dtype", [np.int64, np.uint8, np.float32])
def test_class_axis(out_shape, label_shape, axis, dtype):
    out = RNG.standard_normal(out_shape).astype(np.float32)
    y = RNG.integers(0, 4, label_shape).astype(dtype)
    want = np.mean(out.argmax(axis).reshape(-1) == y.reshape(-1))
    assert BUILTIN["top1"]([out], y) == pytest.approx(want)


def test_one_hot_and_argmax_outputs():
    out, y = scores(50, 4), RNG.integers(0, 4, 50)
    want = BUILTIN["top1"]([out], y)
    assert BUILTIN["top1"]([out], np.eye(4)[y]) == want
    assert BUILTIN["top1"]([out[:, :, None, None]], np.eye(4, dtype=np.uint8)[y]) == want
    assert BUILTIN["top1"]([out.argmax(1)], y) == want
    assert BUILTIN["top1"]([out.argmax(1)[:, None].astype(np.int32)], y) == want
    assert BUILTIN["top1"]([(out + 9).astype(np.uint8)], y) == want


def test_negative_labels_are_ignored():
    out, y = RNG.standard_normal((8, 5, 4)), RNG.integers(0, 4, (8, 5))
    y[:, 3:] = -100
    keep = y >= 0
    assert BUILTIN["top1"]([out], y) == np.mean(out.argmax(-1)[keep] == y[keep])
    for name in ("top1", "cross_entropy", "f1_macro"):
        with pytest.raises(InputError, match="counted no samples"):
            BUILTIN[name]([out], np.full((8, 5), -100))


def test_nan_scores_are_never_right():
    out = np.full((4, 8), np.nan, np.float32)
    for name in ("top1", "top5", "f1_macro"):
        assert BUILTIN[name]([out], np.zeros(4, np.int64)) == 0
    out[0] = [9, 1, 1, 1, 1, 1, 1, 1]
    assert BUILTIN["top1"]([out], np.zeros(4, np.int64)) == 0.25


def test_f1_against_sklearn():
    sklearn = pytest.importorskip("sklearn.metrics")
    out, y = scores(300, 5), RNG.choice([0, 1, 4], 300)
    y[:20] = 0
    assert stream("f1_macro", out, y) == pytest.approx(sklearn.f1_score(y, out.argmax(1), average="macro"))
    few = np.zeros((9, 5), np.float32)  # only class 0 is said, only 0 and 2 are so
    true = np.array([0, 0, 0, 2, 2, 0, 0, 0, 0])
    want = sklearn.f1_score(true, few.argmax(1), average="macro")
    assert BUILTIN["f1_macro"]([few], true) == pytest.approx(want)
    two, y2 = scores(300, 2), RNG.integers(0, 2, 300)
    assert stream("f1", two, y2) == pytest.approx(sklearn.f1_score(y2, two.argmax(1)))
    assert BUILTIN["f1"]([np.float32([[1, 0], [1, 0]])], np.array([0, 0])) == 0
    with pytest.raises(InputError, match="use f1_macro"):
        BUILTIN["f1"]([out], np.zeros(300, np.int64))


def test_cross_entropy_and_perplexity():
    scipy = pytest.importorskip("scipy.special")
    out, y = (RNG.standard_normal((60, 7, 11)) * 50).astype(np.float32), RNG.integers(0, 11, (60, 7))
    y[3] = -100
    log = scipy.log_softmax(out.astype(np.float64), axis=-1)
    want = -np.take_along_axis(log, np.maximum(y, 0)[..., None], -1)[..., 0][y >= 0].mean()
    assert stream("cross_entropy", out, y) == pytest.approx(want, rel=1e-12)
    assert stream("perplexity", out, y) == pytest.approx(np.exp(want), rel=1e-10)
    assert not BUILTIN["perplexity"].higher_is_better
    large = np.array([[1e4, -1e4]])
    assert BUILTIN["cross_entropy"]([large], np.array([1])) == pytest.approx(2e4)
    assert BUILTIN["perplexity"]([large], np.array([1])) == np.inf


def test_cross_entropy_of_a_large_vocabulary_in_parts():
    out, y = RNG.standard_normal((40, 60_000)).astype(np.float32), RNG.integers(0, 60_000, 40)
    exact = out.astype(np.float64)
    want = (np.log(np.exp(exact).sum(1)) - exact[np.arange(40), y]).mean()
    assert BUILTIN["cross_entropy"]([out], y) == pytest.approx(want, rel=1e-12)


@pytest.mark.parametrize(
    ("name", "out", "labels", "message"),
    [
        ("top1", np.zeros((3, 4)), np.array([0, 1, 4]), "label 4 is no class of a model with 4 classes"),
        ("top1", np.zeros((3, 4)), np.array([0, 1]), r"labels of shape \[2\] do not go with"),
        ("top1", np.zeros((3, 4)), np.array([0.5, 1, 2]), "no class numbers"),
        ("top1", np.zeros((3, 4)), np.array(["a", "b", "c"]), "no class numbers"),
        ("top1", np.zeros((3, 4)), np.full((3, 4), 0.25), "not one-hot"),
        ("top1", np.zeros((3, 1)), np.array([0, 1, 1]), "one score"),
        ("top1", np.zeros(3), np.array([0, 1, 1]), "one score"),
        ("top5", np.zeros((3, 5)), np.array([0, 1, 1]), "says nothing"),
        ("mse", np.zeros((3, 4)), np.zeros(3), r"\[3\] do not go with an output of shape \[3, 4\]"),
        ("mae", np.zeros((3, 1)), np.zeros(1), r"\[1\] do not go"),
        ("mse", np.zeros(3), np.array(["a", "b", "c"]), "no numbers"),
        ("pearson", np.ones(5), np.arange(5), "not defined"),
        ("spearman", np.ones(1), np.ones(1), "not defined"),
    ],
)
def test_labels_that_do_not_fit(name, out, labels, message):
    with pytest.raises(InputError, match=message):
        BUILTIN[name]([out], labels)


# -- numbers --


def test_errors():
    out, y = RNG.standard_normal((90, 3)).astype(np.float32), RNG.standard_normal((90, 3))
    delta = out.astype(np.float64) - y
    assert stream("mse", out, y) == pytest.approx(np.mean(delta**2), rel=1e-12)
    assert stream("rmse", out, y) == pytest.approx(np.sqrt(np.mean(delta**2)), rel=1e-12)
    assert stream("mae", out, y) == pytest.approx(np.mean(np.abs(delta)), rel=1e-12)
    assert BUILTIN["mae"]([out[:, :1]], y[:, 0]) == pytest.approx(np.mean(np.abs(delta[:, 0])))
    assert BUILTIN["mse"]([np.uint8([0, 255])], np.uint8([255, 0])) == 255**2, "no wrap-around"


def test_correlations_against_scipy():
    stats = pytest.importorskip("scipy.stats")
    y = RNG.integers(0, 6, 150) / 5.0  # ties
    out = (np.round(y + RNG.standard_normal(150), 1) + 1e6).astype(np.float64)
    assert stream("pearson", out[:, None], y) == pytest.approx(stats.pearsonr(out, y)[0], rel=1e-9)
    assert stream("spearman", out, y) == pytest.approx(stats.spearmanr(out, y)[0], rel=1e-12)
    assert np.isnan(BUILTIN["spearman"]([np.array([1.0, np.nan, 3.0])], np.arange(3)))


# -- the protocol --


def test_plain_functions_become_metrics():
    def within_one(outputs, labels):
        """Share of outputs that are at most one off.

        More.
        """
        return (np.abs(outputs[0] - labels) <= 1).sum(), len(labels)

    metric = as_metric(within_one)
    assert (metric.name, metric.higher_is_better, metric.doc) == (
        "within_one",
        True,
        "Share of outputs that are at most one off.",
    )
    assert metric([np.array([1.0, 5.0, 9.0])], np.array([1, 7, 8])) == pytest.approx(2 / 3)
    within_one.higher_is_better = False
    assert not as_metric(within_one).higher_is_better
    assert as_metric("mine", {"mine": within_one}).name == "mine"
    assert as_metric(metric) is metric


@pytest.mark.parametrize("answer", [None, 3.0, (1, 2, 3), ("a", 1), np.zeros(5)])
def test_functions_that_return_something_else(answer):
    def odd(outputs, labels):
        return answer

    with pytest.raises(InputError, match=r"metric 'odd' returned .*"):
        as_metric(odd)([np.zeros(3)], np.zeros(3))


def test_names():
    with pytest.raises(InputError, match="unknown metric 'top_1'") as caught:
        as_metric("top_1")
    assert "did you mean 'top1'" in str(caught.value)
    with pytest.raises(InputError, match="no metric"):
        as_metric(3)
    for name, metric in BUILTIN.items():
        assert isinstance(metric, Metric)
        assert metric.name == name
        assert metric.doc
    assert not any(BUILTIN[n].higher_is_better for n in ("mse", "rmse", "mae", "cross_entropy", "perplexity"))
    assert all(BUILTIN[n].higher_is_better for n in ("top1", "top5", "f1", "f1_macro", "pearson", "spearman"))


def test_states_are_values():
    """An update gives a new state, so that a search may go on from an older one."""
    for name in ("f1_macro", "pearson", "top1"):
        metric = BUILTIN[name]
        out = scores(30, 4) if name != "pearson" else RNG.standard_normal(30)
        y = RNG.integers(0, 4, 30)
        first = metric.update(metric.start(), [out], y)
        value = metric.finish(first)
        metric.update(first, [out[::-1]], y)
        assert metric.finish(first) == value
