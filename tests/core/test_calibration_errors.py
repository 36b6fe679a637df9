"""Data that do not fit: dtypes, values, shapes, names, labels, sources; every complaint names the place."""

from __future__ import annotations

import ml_dtypes
import numpy as np
import pytest

from attar.calibration import as_data
from attar.errors import InputError
from attar.specs import TensorSpec

F32 = np.dtype(np.float32)
VEC = (TensorSpec("x", F32, ("N", 4)),)
IMAGE = (TensorSpec("x", F32, ("N", 3, 8, 6)),)
PAIR = (TensorSpec("ids", np.dtype(np.int64), ("N", "T")), TensorSpec("mask", np.dtype(np.int64), ("N", "T")))


def rows(count: int, width: int = 4) -> np.ndarray:
    return np.arange(count * width, dtype=np.float32).reshape(count, width)


# -- dtypes --


@pytest.mark.parametrize(
    ("array", "dtype"),
    [
        (np.float64([[1.5, 2, 3, 4]]), np.float32),
        (np.float32([[1.5, 2, 3, 4]]), np.float16),
        (np.float32([[1.5, 2, 3, 4]]), ml_dtypes.bfloat16),
        (np.array([[1.5, 2, 3, 4]], ml_dtypes.bfloat16), np.float32),
        (np.uint8([[0, 255, 3, 4]]), np.float32),
        (np.int64([[-(2**24), 2**24, 3, 4]]), np.float32),
        (np.int64([[-(2**31), 2**31 - 1, 3, 4]]), np.int32),
        (np.array([[True, False, True, True]]), np.int64),
        (np.int64([[0, 1, 1, 0]]), np.bool_),
    ],
)
def test_exact_conversions(array, dtype):
    out = as_data([array], (TensorSpec("x", np.dtype(dtype), ("N", 4)),)).first().inputs["x"]
    assert out.dtype == dtype
    assert out.astype(np.float64).tolist() == array.astype(np.float64).tolist()


@pytest.mark.parametrize(
    ("array", "dtype", "message"),
    [
        (np.float32([[1, 2, 3, 4]]), np.int64, "cannot be fed"),
        (np.int64([[1, 2, 3, 2**31]]), np.int32, "do not fit int32 exactly"),
        (np.int64([[1, 2, 3, 2**24 + 1]]), np.float32, "do not fit float32 exactly"),
        (np.int64([[1, 2, 3, -1]]), np.uint8, "from -1 to 3"),
        (np.int64([[0, 1, 2, 0]]), np.bool_, "do not fit bool"),
        (np.float64([[1, 2, 3, 1e300]]), np.float32, "too large for float32"),
        (np.float32([[1, 2, 3, 70000]]), np.float16, "too large for float16"),
        (np.complex64([[1, 2, 3, 4]]), np.float32, "complex64 cannot be fed"),
        (np.array([["a", "b", "c", "d"]]), np.float32, "cannot be fed"),
        (np.array([[None, 2, 3, 4]], object), np.float32, "Python objects"),
        (np.ma.masked_array(rows(1), mask=[[0, 1, 0, 0]]), np.float32, "masked"),
        ([[1.0, 2.0], [3.0]], np.float32, "cannot read"),
    ],
)
def test_conversions_that_would_change_values_are_refused(array, dtype, message):
    data = as_data([array], (TensorSpec("x", np.dtype(dtype), ("N", 4)),))
    with pytest.raises(InputError, match=message) as caught:
        data.first()
    assert "batch 0, input 'x'" in str(caught.value)


def test_text_inputs():
    specs = (TensorSpec("x", np.dtype(object), ("N",)),)
    for source in (np.array(["a", "bc"]), iter([np.array(["a", "bc"])])):
        data = as_data(source, specs)
        assert [b.inputs["x"].tolist() for b in data] == [["a", "bc"]]
        assert [b.inputs["x"].dtype for b in data] == [np.dtype(object)]
        assert data.digest() == as_data([np.array(["a", "bc"])], specs).digest()


# -- errors --


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
@pytest.mark.parametrize("dtype", [np.float16, np.float32, np.float64, ml_dtypes.bfloat16])
def test_nan_and_inf_are_found_wherever_they_are(bad, dtype):
    specs = (TensorSpec("x", np.dtype(dtype), ("N", 4)),)
    second = rows(2)
    second[1, 2] = bad
    data = as_data([rows(2).astype(dtype), second.astype(dtype)], specs)
    with pytest.raises(InputError, match=r"batch 1, input 'x': 1 of 8 values .* at \(1, 2\)"):
        list(data)


@pytest.mark.parametrize("value", [6e4, 3e38])
def test_large_finite_values_pass(value):
    dtype = np.float16 if value < 1e5 else np.float32
    x = np.full((8, 4), value, dtype)
    with np.errstate(over="ignore"):
        assert not np.isfinite(x.sum())
    assert as_data(x, (TensorSpec("x", np.dtype(dtype), ("N", 4)),)).first().size == 8


def test_other_layout_is_named():
    with pytest.raises(InputError) as caught:
        as_data([np.zeros((2, 3, 8, 6), np.float32), np.zeros((2, 8, 6, 3), np.float32)], IMAGE).take(
            9
        ).digest()
    text = str(caught.value)
    assert "batch 1, input 'x': got shape [2, 8, 6, 3], expected x: float32[N, 3, 8, 6]" in text
    assert "NHWC" in text
    assert "transpose(0, 3, 1, 2)" in text
    last = (TensorSpec("x", F32, (1, 8, 6, 3)),)
    with pytest.raises(InputError, match=r"channels first \(NCHW\).*transpose\(0, 2, 3, 1\)"):
        as_data(np.zeros((2, 3, 8, 6), np.float32), last).first()


def test_wrong_shape_and_rank():
    for shape in [(2, 5), (2, 4, 1, 1), ()]:
        with pytest.raises(InputError, match=r"expected x: float32\[N, 4\]"):
            as_data([np.zeros(shape, np.float32)], VEC).first()


def test_names():
    with pytest.raises(InputError, match=r"'mask'") as caught:
        as_data({"ids": np.ones((2, 3)), "maks": np.ones((2, 3))}, PAIR)
    assert "did you mean 'maks'?" in str(caught.value)
    with pytest.raises(InputError, match="given: X"):
        as_data([{"X": rows(2)}], VEC).first()
    with pytest.raises(InputError, match="has 1 parts; the model has 2 inputs: ids, mask"):
        as_data(np.ones((2, 3), np.int64), PAIR)
    with pytest.raises(InputError, match="sample weights"):
        as_data([(rows(2), np.zeros(2), np.zeros(2))], VEC).first()


def test_symbolic_dimensions_agree_within_a_batch():
    with pytest.raises(InputError, match="dimension 'T' is 3 in input 'ids' and 4 in input 'mask'"):
        as_data([(np.ones((2, 3), np.int64), np.ones((2, 4), np.int64))], PAIR).first()


@pytest.mark.parametrize(
    "source",
    [[], (), {}, np.zeros((0, 4), np.float32), (rows(0), np.zeros(0)), iter([]), lambda: [], [rows(0)]],
)
def test_empty(source):
    with pytest.raises(InputError):
        list(as_data(source, VEC))


@pytest.mark.parametrize(
    "source",
    [
        None,
        3,
        b"bytes",
        object(),
        int,
        "no/such/file.npz",
        "x" * 5000,
        "a\0b",
        np,
        ["text"],
        [None],
        {"x": 1},
    ],
)
def test_not_data(source):
    with pytest.raises(InputError):
        list(as_data(source, VEC))


def test_labels_must_match():
    with pytest.raises(InputError, match="batch 0, labels: 1 of 2 values are NaN"):
        as_data((rows(2), np.array([np.nan, 1.0])), VEC).first()
    with pytest.raises(InputError, match="different length: x 10, labels 9"):
        as_data((rows(10), np.arange(9)), VEC)
    with pytest.raises(InputError, match="batch 0 has 10 samples but 9 labels"):
        as_data([(rows(10), np.arange(9))], VEC).first()
    with pytest.raises(InputError, match="labels are a dict"):
        as_data([(rows(2), {"boxes": np.zeros(2)})], VEC).first()


@pytest.mark.parametrize("option", [{"limit": 0}, {"limit": 1.5}, {"batch_size": -1}, {"limit": True}])
def test_bad_options(option):
    with pytest.raises(InputError, match="positive whole number"):
        as_data(rows(3), VEC, **option)


def test_function_that_gives_the_same_iterator_again():
    once = iter([rows(2)])
    data = as_data(lambda: once, VEC)
    list(data)
    with pytest.raises(InputError, match="new iterator each time"):
        list(data)


def test_error_of_the_source_names_the_item():
    def source():
        yield rows(2)
        raise KeyError("broken.jpg")

    for data in (as_data(source, VEC), as_data(source(), VEC)):
        for _ in range(2):  # a later pass must not take the broken end for the end
            with pytest.raises(InputError, match=r"reading item 1 failed: KeyError: 'broken.jpg'"):
                list(data)
