"""Data in .npz and .npy files, whole and broken."""

from __future__ import annotations

import struct
import tracemalloc
import zipfile
from pathlib import Path

import numpy as np
import pytest

from attar.calibration import as_data
from attar.errors import InputError
from attar.specs import TensorSpec

F32 = np.dtype(np.float32)
VEC = (TensorSpec("x", F32, ("N", 4)),)


def rows(count: int) -> np.ndarray:
    return np.random.default_rng(count).standard_normal((count, 4)).astype(np.float32)


def joined(data, name="x") -> np.ndarray:
    return np.concatenate([b.inputs[name] for b in data])


@pytest.mark.parametrize("save", [np.savez, np.savez_compressed])
@pytest.mark.parametrize("keys", [("x", "labels"), ("x", "y"), ("images", "label"), (None, None)])
def test_npz(tmp_path, save, keys):
    x, y = rows(70), np.arange(70)
    path = tmp_path / "data.npz"
    save(path, x, y) if keys[0] is None else save(path, **dict(zip(keys, (x, y), strict=True)))
    data = as_data(path, VEC, batch_size=16)
    assert data.count() == 70
    for _ in range(2):
        assert np.array_equal(joined(data), x)
        assert np.concatenate([b.labels for b in data]).tolist() == y.tolist()
    assert [b.size for b in data] == [16, 16, 16, 16, 6]
    assert [b.size for b in as_data(str(path), (TensorSpec("x", F32, (20, 4)),))] == [20, 20, 20]


def test_npz_of_two_inputs_and_none_of_labels(tmp_path):
    specs = (TensorSpec("a", F32, ("N", 4)), TensorSpec("b", np.dtype(np.int64), ("N",)))
    np.savez(tmp_path / "d.npz", b=np.arange(9), a=rows(9), other=np.zeros(3))
    data = as_data(tmp_path / "d.npz", specs, limit=7)
    assert joined(data, "b").tolist() == list(range(7))
    assert data.first().labels is None
    np.savez(tmp_path / "d.npz", b=np.arange(9), aa=rows(9))
    with pytest.raises(InputError, match=r"d.npz: nothing is named 'a'") as caught:
        as_data(tmp_path / "d.npz", specs)
    assert "'aa'" in str(caught.value)


def test_npz_that_cannot_be_streamed_is_read_whole(tmp_path):
    x = np.asfortranarray(rows(9))
    np.savez(tmp_path / "fortran.npz", x=x)
    assert np.array_equal(joined(as_data(tmp_path / "fortran.npz", VEC, batch_size=2)), x)
    np.savez(tmp_path / "sample.npz", x=x[3])
    assert np.array_equal(joined(as_data(tmp_path / "sample.npz", VEC)), x[3:4])


def test_compressed_npz_needs_one_batch_of_memory(tmp_path):
    x = np.ones((64, 100_000), np.float32)  # 25.6 MB
    np.savez_compressed(tmp_path / "big.npz", x=x)
    specs = (TensorSpec("x", F32, ("N", 100_000)),)
    del x
    tracemalloc.start()
    total = 0.0
    for batch in as_data(tmp_path / "big.npz", specs, batch_size=4):  # 1.6 MB each
        total += float(batch.inputs["x"].sum())
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert total == 6_400_000
    assert peak < 8e6


def test_npy_is_mapped(tmp_path):
    x = rows(50)
    np.save(tmp_path / "x.npy", x)
    data = as_data(tmp_path / "x.npy", VEC)
    batch = data.first().inputs["x"]
    assert isinstance(batch, np.memmap)
    assert not batch.flags.writeable
    assert data.count() == 50
    assert np.array_equal(joined(data), x)


def test_pickles_are_never_loaded(tmp_path):
    class Bomb:
        def __reduce__(self):
            return (Path.touch, (tmp_path / "exploded",))

    array = np.empty(2, object)
    array[0] = Bomb()
    np.save(tmp_path / "x.npy", array, allow_pickle=True)
    np.savez(tmp_path / "x.npz", x=array)
    for name in ("x.npy", "x.npz"):
        with pytest.raises(InputError, match=name):
            list(as_data(tmp_path / name, VEC))
    assert not (tmp_path / "exploded").exists()


def test_broken_files_are_named(tmp_path):
    np.save(tmp_path / "good.npy", rows(50))
    np.savez(tmp_path / "good.npz", x=rows(50))
    npy, npz = (tmp_path / "good.npy").read_bytes(), (tmp_path / "good.npz").read_bytes()
    flipped = bytearray(npz)
    flipped[400] ^= 0xFF  # in the array: the checksum tells
    cases = {
        "cut.npy": npy[:300],
        "tiny.npy": npy[:5],
        "empty.npy": b"",
        "text.npy": b"hello, world",
        "cut.npz": npz[:300],
        "empty.npz": b"",
        "flipped.npz": bytes(flipped),
        "an_npy.npz": npy,
        "an_npz.npy": npz,
    }
    for name, content in cases.items():
        (tmp_path / name).write_bytes(content)
        with pytest.raises(InputError, match=name):
            list(as_data(tmp_path / name, VEC))


def test_header_that_promises_more_than_the_file_holds(tmp_path):
    header = b"{'descr': '<f4', 'fortran_order': False, 'shape': (1000000000000, 4), }".ljust(117) + b"\n"
    content = b"\x93NUMPY\x01\x00" + struct.pack("<H", len(header)) + header + b"\0" * 64
    with zipfile.ZipFile(tmp_path / "liar.npz", "w") as archive:
        archive.writestr("x.npy", content)
    (tmp_path / "liar.npy").write_bytes(content)
    for name in ("liar.npz", "liar.npy"):
        with pytest.raises(InputError, match=name):
            as_data(tmp_path / name, VEC)


def test_npz_with_rows_of_different_number(tmp_path):
    np.savez(tmp_path / "d.npz", x=rows(5), y=np.arange(4))
    with pytest.raises(InputError, match="different length: x 5, y 4"):
        as_data(tmp_path / "d.npz", VEC)


def test_unknown_suffix_and_missing_file(tmp_path):
    (tmp_path / "data.csv").write_text("1,2")
    with pytest.raises(InputError, match=r"\.npz, \.npy and images, not '\.csv'"):
        as_data(tmp_path / "data.csv", VEC)
    with pytest.raises(InputError, match="no such file"):
        as_data(tmp_path / "nothing.npz", VEC)
