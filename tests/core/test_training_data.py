"""`attar.training`: samples by number from arrays, files and data sets; loaders in their own order."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from attar.calibration import ImagePreprocess
from attar.errors import InputError
from attar.specs import TensorSpec
from attar.training import KEPT, TrainingData, as_training

SPECS = (TensorSpec("x", np.dtype(np.float32), ("N", 3)),)
TWO = (*SPECS, TensorSpec("z", np.dtype(np.int64), ("N",)))
X, Y = np.arange(30, dtype=np.float32).reshape(10, 3), np.arange(10) % 4


class Rows:
    """A data set of single samples."""

    def __len__(self) -> int:
        return 10

    def __getitem__(self, i: int) -> tuple[Any, int]:
        if not 0 <= i < 10:
            raise IndexError(i)
        return X[i], int(Y[i])


def check(data: TrainingData, labels: bool = True) -> None:
    assert data.count == 10
    batch = data.fetch([7, 0, 3])
    np.testing.assert_array_equal(batch.inputs["x"], X[[7, 0, 3]])
    assert batch.size == 3
    assert data.labelled is labels
    if labels:
        assert batch.labels is not None
        np.testing.assert_array_equal(batch.labels, Y[[7, 0, 3]])


def test_samples_come_by_number_from_arrays_data_sets_and_files(tmp_path: Path) -> None:
    check(as_training((X, Y), SPECS))
    check(as_training({"x": X, "labels": Y}, SPECS))
    check(as_training(X, SPECS), labels=False)
    check(as_training(X.astype(np.int16), SPECS), labels=False)
    check(as_training(Rows(), SPECS))
    check(as_training([(X[i], Y[i]) for i in range(10)], SPECS))
    np.savez(tmp_path / "data.npz", x=X, labels=Y)
    check(as_training(tmp_path / "data.npz", SPECS))
    check(as_training(str(tmp_path / "data.npz"), SPECS))
    np.save(tmp_path / "data.npy", X)
    check(as_training(tmp_path / "data.npy", SPECS), labels=False)
    torch = pytest.importorskip("torch")
    check(as_training((torch.from_numpy(X), torch.from_numpy(Y)), SPECS))
    check(as_training(torch.utils.data.TensorDataset(torch.from_numpy(X), torch.from_numpy(Y)), SPECS))


def test_several_inputs_and_other_names() -> None:
    z = np.arange(10)
    data = as_training(((X, z), Y), TWO)
    batch = data.fetch([4, 2])
    np.testing.assert_array_equal(batch.inputs["z"], [4, 2])
    renamed = as_training(as_training((X, Y), SPECS), (TensorSpec("other", np.dtype(np.float32), ("N", 3)),))
    np.testing.assert_array_equal(renamed.fetch([1]).inputs["other"], X[[1]])
    with pytest.raises(InputError, match="read for 1 inputs, this model has 2"):
        as_training(as_training((X, Y), SPECS), TWO)


def test_images_are_decoded_once(tmp_path: Path) -> None:
    from PIL import Image

    for label in ("a", "b"):
        (tmp_path / label).mkdir()
        for i in range(3):
            Image.new("RGB", (4, 4), (40 * i, 0, 200 * (label == "b"))).save(tmp_path / label / f"{i}.png")
    specs = (TensorSpec("x", np.dtype(np.float32), ("N", 3, 4, 4)),)
    data = as_training(tmp_path, specs, preprocess=ImagePreprocess(size=4))
    assert data.count == 6
    for file in tmp_path.rglob("*.png"):
        file.unlink()
    batch = data.fetch([5, 0])
    assert batch.labels is not None
    assert batch.labels.tolist() == [1, 0]
    assert batch.inputs["x"][0, 2].max() == pytest.approx(200 / 255)


def test_what_is_too_large_to_keep_comes_in_the_files_order(tmp_path: Path, monkeypatch: Any) -> None:
    assert KEPT == 4 << 30
    monkeypatch.setattr("attar.training.KEPT", 1)
    np.savez(tmp_path / "data.npz", x=X, labels=Y)
    data = as_training(tmp_path / "data.npz", SPECS)
    assert data.count is None
    assert any("in the file's order" in note for note in data.notes)
    np.testing.assert_array_equal(np.concatenate([b.inputs["x"] for b in data.stream()]), X)


def test_loaders_keep_their_batches_and_their_order() -> None:
    def loader() -> Any:
        for i in (4, 0):
            yield X[i : i + 4], Y[i : i + 4]

    data = as_training(loader, SPECS)
    assert data.count is None
    for _ in range(2):
        assert [float(b.inputs["x"][0, 0]) for b in data.stream()] == [12.0, 0.0]
    with pytest.raises(InputError, match="is a stream"):
        data.fetch([0])
    with pytest.raises(InputError, match="is no stream"):
        as_training(X, SPECS).stream()
    fixed = (TensorSpec("x", np.dtype(np.float32), ("N", 3)), TensorSpec("h", np.dtype(np.float32), (1, 3)))
    state = [{"x": X[:4], "h": X[:1]}, {"x": X[4:8], "h": X[:1]}]
    assert as_training(state, fixed).count is None, "an input without a batch axis: batches as they are"


@pytest.mark.parametrize(
    ("source", "said"),
    [
        ((X, Y[:9]), "parts of different length"),
        (X[:0], "empty"),
        (np.zeros((10, 5), np.float32), r"got shape \[\d+, 5\]"),
        ("absent.npz", "no such file"),
        (None, "cannot be read"),
        (X.astype(np.complex64), "complex64"),
        ((np.full((10, 3), np.nan, np.float32), Y), "NaN"),
    ],
)
def test_unusable_data_are_refused(source: Any, said: str) -> None:
    with pytest.raises(InputError, match=said):
        as_training(source, SPECS)
