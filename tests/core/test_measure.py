"""Interleaved timing on a scripted clock, differences against plain numpy, snapshots against the file."""

from __future__ import annotations

import itertools
import math
from pathlib import Path
from typing import Any

import numpy as np
import onnx_ir as ir
import pytest
from hypothesis import given
from hypothesis import strategies as st
from spine_models import Clock, ScriptedSession, cnn

from attar import graph, measure
from attar.errors import InputError
from attar.measure import differences, interleaved, latency, snapshot
from attar.report import Speed
from attar.runtime import OnnxRuntime
from attar.testing import ZOO

FEEDS = {"x": np.zeros((2, 3), np.float32)}


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    made = Clock()
    monkeypatch.setattr(measure, "time", made)
    return made


def timed(clock: Clock, before: Any, after: Any, **options: Any) -> Speed:
    a = ScriptedSession(clock, before, name="a")
    b = ScriptedSession(clock, after, name="b")
    return interleaved(a, b, FEEDS, threads=3, **options)


def test_ratio_and_medians(clock: Clock) -> None:
    speed = timed(clock, lambda run: 0.004, lambda run: 0.001, runs=21, seconds=1e9)
    assert (speed.before_ms, speed.after_ms) == (pytest.approx(4), pytest.approx(1))
    assert (speed.ratio, speed.low, speed.high) == (pytest.approx(0.25),) * 3
    assert (speed.runs, speed.threads, dict(speed.shapes)) == (21, 3, {"x": (2, 3)})


def test_who_runs_first_alternates(clock: Clock) -> None:
    timed(clock, lambda run: 1.0, lambda run: 1.0, runs=4, seconds=1e9)
    assert "".join(clock.order) == "aaabbb" + "ab" + "ba" + "ab" + "ba"


def test_drift_of_the_machine_cancels_in_the_pairs(clock: Clock) -> None:
    """The machine slows down tenfold during the measurement; the ratio of neighbours does not move."""
    speed = timed(clock, lambda run: 1.0 + run, lambda run: 0.5 * (1.0 + run), runs=20, seconds=1e9)
    assert (speed.ratio, speed.low, speed.high) == (pytest.approx(0.5),) * 3


def test_an_outlier_does_not_move_the_median(clock: Clock) -> None:
    speed = timed(clock, lambda run: 1.0, lambda run: 1000.0 if run == 9 else 2.0, runs=31, seconds=1e9)
    assert speed.ratio == 2.0
    assert speed.after_ms == 2000.0


def test_the_interval_holds_the_order_statistics_of_the_binomial(clock: Clock) -> None:
    """60 pairs with ratios 1..60 in shuffled order: ranks 30 -+ 0.98 sqrt(60) = 22.4 and 37.6, outwards."""
    order = np.random.default_rng(0).permutation(60) + 1.0
    speed = timed(clock, lambda run: 1.0, lambda run: 1.0 if run < 3 else float(order[run - 3]), seconds=1e9)
    assert speed.ratio == pytest.approx(30.5)
    assert speed.low == pytest.approx(23)  # index 22 of the sorted ratios
    assert speed.high == pytest.approx(39)
    exact = sum(math.comb(60, k) for k in range(23, 39)) / 2**60  # P(23rd <= median < 39th value)
    assert 0.95 < exact < 0.98


def test_time_runs_out_but_never_before_ten_pairs(clock: Clock) -> None:
    assert timed(clock, lambda run: 10.0, lambda run: 10.0, runs=60, seconds=1.0).runs == 10
    assert timed(clock, lambda run: 0.1, lambda run: 0.1, runs=60, seconds=3.0).runs in (15, 16)
    assert timed(clock, lambda run: 0.1, lambda run: 0.1, runs=5, seconds=3.0).runs == 5


def test_latency_is_the_median_after_warming_up(clock: Clock) -> None:
    session = ScriptedSession(clock, lambda run: 100.0 if run < 3 else 0.001 * (run - 2))
    assert latency(session, FEEDS, runs=5) == pytest.approx(3.0)


# -- differences ---------------------------------------------------------------------------------------------


def pair(before: np.ndarray[Any, Any], after: np.ndarray[Any, Any]) -> Any:
    """Two sessions that answer with these arrays, one batch after the other along the first axis."""
    counts = itertools.count(), itertools.count()
    return [
        ScriptedSession(function=lambda feeds, a=a, c=c: [a[next(c)]])
        for a, c in zip((before, after), counts, strict=True)
    ]


@given(st.integers(0, 2**32 - 1), st.integers(1, 4), st.floats(1e-3, 10))
def test_differences_are_those_of_numpy(seed: int, batches: int, noise: float) -> None:
    rng = np.random.default_rng(seed)
    x = rng.standard_normal((batches, 5, 7)).astype(np.float32)
    y = (x + noise * rng.standard_normal(x.shape)).astype(np.float32)
    seen: list[int] = []
    [diff] = differences(*pair(x, y), ({"x": FEEDS["x"]} for i in range(batches) if not seen.append(i)))
    a, b = x.astype(np.float64), y.astype(np.float64)
    assert diff.sqnr_db == pytest.approx(10 * np.log10((a**2).sum() / ((a - b) ** 2).sum()), rel=1e-9)
    assert diff.max_abs == pytest.approx(np.abs(a - b).max(), rel=1e-12)
    assert diff.max_rel == pytest.approx(np.abs(a - b).max() / np.abs(a).max(), rel=1e-12)
    assert diff.agreement == pytest.approx((a.argmax(-1) == b.argmax(-1)).mean(), rel=1e-12)
    assert (diff.name, diff.samples, seen) == ("y", 5 * batches, list(range(batches)))


def one(x: Any, y: Any) -> Any:
    [diff] = differences(*pair(np.asarray(x)[None], np.asarray(y)[None]), [FEEDS])
    return diff


def test_equal_outputs_have_infinite_sqnr() -> None:
    x = np.random.default_rng(0).standard_normal((3, 4)).astype(np.float32)
    diff = one(x, x.copy())
    assert (diff.max_abs, diff.max_rel, diff.sqnr_db, diff.agreement) == (0, 0, math.inf, 1.0)
    zeros = one(np.zeros((2, 2), "f"), np.zeros((2, 2), "f"))
    assert (zeros.max_rel, zeros.sqnr_db) == (0, math.inf)


def test_noise_where_the_original_is_zero_or_not_finite_is_the_worst_there_is() -> None:
    assert one(np.zeros((2, 2), "f"), np.ones((2, 2), "f")).sqnr_db == -math.inf
    with np.errstate(invalid="ignore"):
        assert one(np.ones((2, 2), "f"), np.full((2, 2), np.nan, "f")).sqnr_db == -math.inf
        assert one(np.ones((2, 2), "f"), np.full((2, 2), np.inf, "f")).sqnr_db == -math.inf


def test_agreement_is_asked_of_rows_of_floats_only() -> None:
    assert one(np.ones(4, "f"), np.ones(4, "f")).agreement is None
    assert one(np.ones((4, 1), "f"), np.ones((4, 1), "f")).agreement is None
    assert one(np.ones((4, 2), "i8"), np.ones((4, 2), "i8")).agreement is None
    assert one([[1.0, 0.0], [0.0, 1.0]], [[1.0, 0.0], [1.0, 0.0]]).agreement == 0.5


def test_integer_and_bool_outputs_are_compared_and_empty_ones_do_no_harm() -> None:
    assert one(np.array([[3, 4]]), np.array([[3, 1]])).max_abs == 3
    assert one(np.array([[True, False]]), np.array([[True, True]])).max_abs == 1
    empty = one(np.zeros((0, 3), "f"), np.zeros((0, 3), "f"))
    assert (empty.samples, empty.sqnr_db, empty.agreement) == (0, math.inf, None)


def test_other_outputs_are_an_error_that_names_them() -> None:
    with pytest.raises(InputError, match="outputs differ: y and z"):
        differences(ScriptedSession(), ScriptedSession(outputs=("z",)), [FEEDS])


def test_where_shapes_differ_nothing_agrees() -> None:
    """Numbers of detections depend on data, and are no reason to stop: such a batch is all noise."""
    diff = one(np.full((2, 2), 3, "f"), np.full((3, 2), 3, "f"))
    assert (diff.sqnr_db, diff.max_rel, diff.agreement) == (0.0, 1.0, 0.0)
    x = np.ones((2, 4, 2), "f")
    half = differences(*pair(x, np.array([x[0], np.ones((3, 2), "f")], object)), [FEEDS, FEEDS])[0]
    assert half.sqnr_db == pytest.approx(10 * np.log10(2))  # 16 units of signal, 8 of them lost
    assert half.samples == 8


def test_two_real_models_agree_with_numpy_on_their_outputs() -> None:
    a, b = OnnxRuntime().open(cnn(seed=0)), OnnxRuntime().open(cnn(seed=0), optimize=False)
    batches = [{"x": np.random.default_rng(i).standard_normal((2, 3, 24, 24)).astype("f")} for i in range(3)]
    [diff] = differences(a, b, batches)
    x, y = (np.concatenate([s.run(f)[0] for f in batches]).astype(np.float64) for s in (a, b))
    assert diff.max_abs == pytest.approx(np.abs(x - y).max(), rel=1e-9)
    assert diff.samples == 6


# -- snapshots -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", sorted(set(ZOO) - {"weight_in_if", "weight_in_loop"}))
def test_bytes_are_those_of_the_file(name: str, tmp_path: Path) -> None:
    model = ZOO[name].build()
    graph.normalize(model)
    graph.save(model, tmp_path / "m.onnx")
    assert snapshot(model).bytes == (tmp_path / "m.onnx").stat().st_size


@pytest.mark.parametrize("name", ["weight_in_if", "weight_in_loop"])
def test_bytes_of_weights_in_subgraphs_are_nearly_those_of_the_file(name: str, tmp_path: Path) -> None:
    model = ZOO[name].build()
    graph.normalize(model)
    graph.save(model, tmp_path / "m.onnx")
    assert abs(snapshot(model).bytes - (tmp_path / "m.onnx").stat().st_size) <= 16


def test_large_weights_are_counted_without_being_read(tmp_path: Path) -> None:
    model = cnn(width=64)
    graph.save(model, tmp_path / "inside.onnx")
    graph.save(model, tmp_path / "beside.onnx", external_data=True)
    mapped = ir.load(tmp_path / "beside.onnx")
    assert abs(snapshot(mapped).bytes - (tmp_path / "inside.onnx").stat().st_size) <= 64


def test_a_snapshot_counts_parameters_and_nodes() -> None:
    model = cnn(width=8)
    shot = snapshot(model, metric=0.5)
    want = 8 * 27 + 8 + 16 * 72 + 16 + 16 * 144 + 16 + 160 + 10
    assert (shot.parameters, shot.metric, shot.kernels) == (want, 0.5, ())
    assert shot.nodes == len(list(model.graph))
