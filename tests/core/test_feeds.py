"""Inputs for one run: cut, split and made up."""

from __future__ import annotations

import numpy as np
import pytest

from attar.errors import InputError
from attar.feeds import batch_of, one_sample, pieces, sample_feeds
from attar.runtime import OnnxRuntime
from attar.specs import TensorSpec, input_specs
from attar.testing import ZOO

F4 = np.dtype(np.float32)
FREE = (TensorSpec("x", F4, ("N", 3, "H")), TensorSpec("n", np.dtype(np.int64), (None,)))
FIXED = (TensorSpec("x", F4, (4, 3)),)


def batch(count: int) -> dict[str, np.ndarray]:
    return {"x": np.arange(count * 12, dtype=np.float32).reshape(count, 3, 4), "n": np.arange(count)}


@pytest.mark.parametrize(
    ("count", "elements", "sizes"),
    [(10, 10**9, [10]), (70, 10**9, [32, 32, 6]), (7, 1, [1] * 7), (8, 39, [3, 3, 2])],
)
def test_pieces_cover_the_batch_once_in_order_without_copies(
    count: int, elements: int, sizes: list[int]
) -> None:
    whole = batch(count)
    parts = list(pieces(whole, FREE, elements))
    assert [len(p["x"]) for p in parts] == sizes
    for name, array in whole.items():
        np.testing.assert_array_equal(np.concatenate([p[name] for p in parts]), array)
        assert all(np.shares_memory(p[name], array) for p in parts)


def test_a_fixed_batch_stays_whole() -> None:
    feeds = {"x": np.ones((4, 3), np.float32)}
    [part] = pieces(feeds, FIXED, 1)
    assert part["x"] is feeds["x"]
    assert batch_of(feeds, FIXED) is None
    assert one_sample(feeds, FIXED)["x"].shape == (4, 3)


def test_inputs_of_different_lengths_stay_whole() -> None:
    feeds = {"x": np.ones((4, 3, 2), np.float32), "n": np.arange(5)}
    assert batch_of(feeds, FREE) is None
    [part] = pieces(feeds, FREE, 1)
    assert part["n"].shape == (5,)


def test_one_sample_is_the_first_and_contiguous() -> None:
    feeds = {"x": np.asfortranarray(batch(5)["x"]), "n": np.arange(5)}
    assert batch_of(feeds, FREE) == 5
    sample = one_sample(feeds, FREE)
    np.testing.assert_array_equal(sample["x"], feeds["x"][:1])
    assert sample["x"].flags.c_contiguous
    assert sample["n"].tolist() == [0]


def test_a_model_of_unknown_rank_is_left_alone() -> None:
    specs = (TensorSpec("x", F4, None), TensorSpec("s", F4, ()))
    feeds = {"x": np.ones((2, 2), np.float32), "s": np.float32(1.0)[()]}
    assert batch_of({"x": feeds["x"]}, specs) is None
    assert batch_of({"s": np.ones((), np.float32)}, specs) is None


def test_made_up_inputs_fit_and_are_the_same_every_time() -> None:
    specs = (
        TensorSpec("x", F4, ("N", 3, "T")),
        TensorSpec("y", np.dtype(np.float16), ("N", "T", None)),
        TensorSpec("i", np.dtype(np.int64), (2, "T")),
        TensorSpec("m", np.dtype(np.bool_), ("N",)),
    )
    made = sample_feeds(specs, seed=3, batch=5, length=7)
    assert {n: (a.dtype.name, a.shape) for n, a in made.items()} == {
        "x": ("float32", (5, 3, 7)),
        "y": ("float16", (5, 7, 7)),
        "i": ("int64", (2, 7)),
        "m": ("bool", (5,)),
    }
    assert set(np.unique(made["i"])) <= {0, 1}
    assert made["m"].all()
    again = sample_feeds(specs, seed=3, batch=5, length=7)
    assert all(np.array_equal(made[n], again[n]) for n in made)
    assert not np.array_equal(made["x"], sample_feeds(specs, seed=4, batch=5, length=7)["x"])


@pytest.mark.parametrize("spec", [TensorSpec("x", F4, None), TensorSpec("seq", np.dtype(object), (1,))])
def test_what_cannot_be_made_up_is_named(spec: TensorSpec) -> None:
    with pytest.raises(InputError, match=f"cannot make up a value for input {spec.name}"):
        sample_feeds([spec])


@pytest.mark.parametrize("name", sorted(ZOO))
def test_made_up_inputs_run_on_every_model_of_the_zoo(name: str) -> None:
    model = ZOO[name].build()
    results = OnnxRuntime().open(model).run(sample_feeds(input_specs(model), length=8))
    assert all(np.isfinite(r).all() for r in results if r.dtype.kind == "f")
