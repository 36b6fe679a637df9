"""Data that are in memory: how items are told apart, fitted to the model, re-batched, limited and hashed."""

from __future__ import annotations

import gc
import tracemalloc
import weakref
from collections import OrderedDict

import ml_dtypes
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from attar.calibration import Batch, as_data
from attar.errors import InputError
from attar.specs import TensorSpec

F32 = np.dtype(np.float32)
VEC = (TensorSpec("x", F32, ("N", 4)),)
PAIR = (TensorSpec("ids", np.dtype(np.int64), ("N", "T")), TensorSpec("mask", np.dtype(np.int64), ("N", "T")))


def rows(count: int, width: int = 4) -> np.ndarray:
    return np.arange(count * width, dtype=np.float32).reshape(count, width)


def joined(data) -> np.ndarray:
    return np.concatenate([b.inputs["x"] for b in data])


def sizes(data) -> list[int]:
    return [b.size for b in data]


# -- sources --


def test_one_array_is_cut_into_views():
    x = rows(70)
    data = as_data(x, VEC)
    assert sizes(data) == [32, 32, 6]
    assert all(np.shares_memory(b.inputs["x"], x) for b in data)
    assert data.count() == 70
    assert np.array_equal(joined(data), x)
    assert np.array_equal(joined(data), x), "a second pass gives the same"


def test_tuple_dict_and_list_sources_agree():
    x, y = rows(10), np.arange(10)
    for source in [
        (x, y),
        {"x": x, "labels": y},
        {"x": x, "target": y, "comment": np.zeros(10)},
        ({"x": x}, y),
        ((x,), y),
        [(x[:4], y[:4]), (x[4:], y[4:])],
        [[x[:4], y[:4]], [x[4:], y[4:]]],
        [{"x": x[:4], "label": y[:4]}, {"x": x[4:], "label": y[4:]}],
        [({"x": x[:7]}, y[:7]), ({"x": x[7:]}, y[7:])],
        list(zip(x, y, strict=True)),
        [{"x": a, "y": int(b)} for a, b in zip(x, y, strict=True)],
        lambda: zip(x, y, strict=True),
        [(a.tolist(), int(b)) for a, b in zip(x, y, strict=True)],
        (x.tolist(), y.tolist()),
        OrderedDict(x=x, y=y),
    ]:
        data = as_data(source, VEC, batch_size=5)
        assert sizes(data) == [5, 5]
        assert np.array_equal(joined(data), x)
        assert np.array_equal(np.concatenate([b.labels for b in data]), y)


def test_single_samples_get_the_batch_axis_and_are_joined():
    data = as_data(list(rows(40)), VEC)
    assert data.count() == 40
    assert sizes(data) == [32, 8]
    assert as_data(rows(1)[0], VEC).first().inputs["x"].shape == (1, 4)


def test_samples_of_different_lengths_are_not_joined():
    specs = (TensorSpec("x", F32, ("N", "T")),)
    items = [np.ones(n, np.float32) for n in (3, 3, 5, 5, 5, 3)]
    assert [b.inputs["x"].shape for b in as_data(items, specs)] == [(2, 3), (3, 5), (1, 3)]


def test_an_array_of_batches():
    x = np.arange(5 * 2 * 4, dtype=np.float32).reshape(5, 2, 4)
    assert [b.inputs["x"].tolist() for b in as_data(x, VEC)] == x.tolist()


def test_two_inputs_by_position_and_nested():
    ids, mask, y = np.ones((6, 5), np.int64), np.zeros((6, 5), np.int64), np.arange(6)
    for source, labelled in [
        ((ids, mask), False),
        ((ids, mask, y), True),
        (((ids, mask), y), True),
        ([((ids, mask), y)], True),
        ([(ids, mask)], False),
        ({"mask": mask, "ids": ids, "labels": y, "extra": y}, True),
    ]:
        batch = as_data(source, PAIR).first()
        assert batch.inputs["ids"].sum() == 30
        assert batch.inputs["mask"].sum() == 0
        assert (batch.labels is not None) == labelled


def test_keras_like_sequence_and_getitem_only():
    class Sequence:
        def __len__(self):
            return 3

        def __getitem__(self, i):
            if not 0 <= i < 3:
                raise RuntimeError("asked beyond the end")
            return rows(4) + i, np.full(4, i)

    class Endless(Sequence):  # generators of old Keras have __next__ too and never stop
        def __iter__(self):
            return self

        def __next__(self):
            return rows(4), np.zeros(4)

    for source in (Sequence(), Endless()):
        assert (
            np.concatenate([b.labels for b in as_data(source, VEC)]).tolist() == [0] * 4 + [1] * 4 + [2] * 4
        )


def test_inputs_without_batch_axis_go_through_as_they_came():
    specs = (
        TensorSpec("x", F32, ("N", 4)),
        TensorSpec("state", F32, (2, "N", 3)),
        TensorSpec("scale", F32, ()),
    )
    item = {"x": rows(5), "state": np.ones((2, 5, 3), np.float32), "scale": np.float32(2)}
    batch = as_data([item], specs, batch_size=2).first()
    assert batch.size == 5
    assert batch.inputs["scale"].shape == ()
    assert batch.inputs["state"].shape == (2, 5, 3)


def test_data_of_data():
    data = as_data((rows(10), np.arange(10)), VEC)
    assert as_data(data, VEC) is data
    again = as_data(data, (TensorSpec("x", np.dtype(np.float16), ("N", 4)),), batch_size=3)
    assert sizes(again) == [3, 3, 3, 1]
    assert again.first().inputs["x"].dtype == np.float16
    assert np.array_equal(np.concatenate([b.labels for b in again]), np.arange(10))
    assert as_data(list(data), VEC).first().labels.tolist() == list(range(10))


# -- sizes --


@settings(max_examples=60, deadline=None)
@given(
    parts=st.lists(st.integers(1, 9), min_size=1, max_size=6),
    size=st.integers(1, 7),
    fixed=st.booleans(),
    limit=st.none() | st.integers(1, 40),
    sample=st.booleans(),
)
def test_rebatching_keeps_order_and_count(parts, size, fixed, limit, sample):
    total = sum(parts)
    x = rows(total)
    items = list(x) if sample else np.split(x, np.cumsum(parts)[:-1])
    specs = (TensorSpec("x", F32, (size if fixed else "N", 4)),)
    data = as_data(items, specs, batch_size=None if fixed else size, limit=limit)
    want = min(total, limit or total)
    if fixed:
        kept = want - want % size
        if kept == 0:
            with pytest.raises(InputError, match="exactly"):
                list(data)
            return
        assert set(sizes(data)) == {size}
        assert any(f"{want - kept} of {want}" in n for n in data.notes) == (kept < want)
    else:
        kept = want
        assert sizes(data) == [size] * (want // size) + ([want % size] if want % size else [])
    assert np.array_equal(joined(data), x[:kept])
    assert data.count() == kept


def test_count_before_any_pass():
    fixed = (TensorSpec("x", F32, (8, 4)),)
    assert as_data(rows(20), fixed).count() == 16
    assert as_data(rows(20), fixed, limit=9).count() == 8
    assert as_data(list(rows(20)), VEC, limit=9).count() == 9
    unknown = as_data([rows(20)], VEC)
    assert unknown.count() is None
    list(unknown)
    assert unknown.count() == 20


def test_fixed_batch_wins_over_batch_size_and_says_so():
    data = as_data(rows(6), (TensorSpec("x", F32, (2, 4)),), batch_size=3)
    assert sizes(data) == [2, 2, 2]
    assert "batch_size=3 was not used" in data.notes[0]


def test_take_and_first():
    data = as_data(iter(list(rows(50))), VEC)
    assert data.first().size == 32
    assert data.take(3).count() is None
    assert np.array_equal(joined(data.take(3)), rows(3))
    assert np.array_equal(joined(data.take(20).take(30)), rows(20))
    assert np.array_equal(joined(data), rows(50))


def test_digest_is_of_the_content():
    x, y = rows(10), np.arange(10)
    base = as_data((x, y), VEC).digest()
    assert base == as_data(lambda: [(x.copy(), y.copy())], VEC).digest()
    other = x.copy()
    other[9, 3] += 1
    assert (
        len(
            {
                base,
                as_data((other, y), VEC).digest(),
                as_data(x, VEC).digest(),
                as_data((x, y[::-1]), VEC).digest(),
            }
        )
        == 4
    )
    assert as_data((x, y), VEC).take(5).digest() == as_data((x[:5], y[:5]), VEC).digest()


# -- memory --


def test_one_batch_at_a_time():
    alive: list[weakref.ref] = []

    def source():
        for _ in range(6):
            assert sum(r() is not None for r in alive) == 0, "the batch before is still held"
            batch = np.ones((64, 1000), np.float32)
            alive.append(weakref.ref(batch))
            yield batch
            del batch

    specs = (TensorSpec("x", F32, ("N", 1000)),)
    for data in (as_data(source, specs), as_data(source(), specs), as_data(source, specs, batch_size=64)):
        alive.clear()
        iterator = iter(data)
        while (batch := next(iterator, None)) is not None:
            assert batch.size == 64
            del batch
        assert len(alive) == 6


def test_peak_memory_of_joined_samples():
    sample = 250_000  # 1 MB
    specs = (TensorSpec("x", F32, ("N", sample)),)
    data = as_data(lambda: (np.full(sample, i, np.float32) for i in range(40)), specs, batch_size=8)
    tracemalloc.start()
    iterator = iter(data)
    seen = 0
    while (batch := next(iterator, None)) is not None:
        seen += batch.size
        del batch
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert seen == 40
    assert peak < 18e6  # 8 samples and the batch that they are joined to, of 40


# -- one-shot sources --


def test_generator_is_read_once_and_only_as_far_as_needed():
    pulled = []

    def source():
        for i in range(5):
            pulled.append(i)
            yield rows(2) + i, np.array([i, i])

    data = as_data(source(), VEC)
    assert pulled == []
    assert data.first().labels.tolist() == [0, 0]
    assert list(data.take(4))[1].labels.tolist() == [1, 1]
    assert pulled == [0, 1]
    pairs = zip(data, data, strict=True)  # two passes at once
    assert all(np.array_equal(a.inputs["x"], b.inputs["x"]) for a, b in pairs)
    assert pulled == [0, 1, 2, 3, 4]
    assert np.array_equal(joined(data), np.concatenate([rows(2) + i for i in range(5)]))
    assert data.count() == 10


def test_endless_generator_with_limit():
    def source():
        while True:
            yield rows(4)

    assert sizes(as_data(source(), VEC, limit=10)) == [4, 4, 2]


def test_spool_goes_with_the_data():
    data = as_data(iter([rows(3)]), VEC)
    part = data.take(2)
    list(data)
    folder = data._units.folder
    assert folder.is_dir()
    del data
    gc.collect()
    assert folder.is_dir(), "part still needs it"
    assert joined(part).shape == (2, 4)
    del part
    gc.collect()
    assert not folder.exists()


def test_spool_keeps_bfloat16():
    x = rows(3).astype(ml_dtypes.bfloat16)
    data = as_data(iter([x]), (TensorSpec("x", np.dtype(ml_dtypes.bfloat16), ("N", 4)),))
    for _ in range(2):
        out = data.first().inputs["x"]
        assert out.dtype == ml_dtypes.bfloat16
        assert out.astype(np.float32).tolist() == rows(3).tolist()


def test_batch_is_frozen():
    with pytest.raises(AttributeError):
        Batch({}, None, 0).size = 1
