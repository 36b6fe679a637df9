"""`.params` files: written byte for byte as MXNet does, every version read, nothing absurd believed."""

from __future__ import annotations

import importlib.util
import io
import struct
import zipfile
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from attar.errors import InputError
from attar_mxnet.params import params_bytes, parse_params, read_params, write_params

TYPES = [
    np.float32, np.float64, np.float16, np.uint8, np.int32, np.int8, np.int64, np.bool_, np.int16, np.uint16,
    np.uint32, np.uint64, ml_dtypes.bfloat16,
]  # fmt: skip
Array = np.ndarray[Any, np.dtype[Any]]


def arrays() -> dict[str, Array]:
    return {f"arg:{np.dtype(t).name}": np.arange(6).reshape(2, 3).astype(t) for t in TYPES}


def head(count: int) -> bytes:
    return struct.pack("<QQQ", 0x112, 0, count)


def tail(*names: str) -> bytes:
    return struct.pack("<Q", len(names)) + b"".join(struct.pack("<Q", len(n)) + n.encode() for n in names)


def dense(array: Array, magic: int = 0xF993FAC9, code: int = 0) -> bytes:
    shape = struct.pack(f"<i{array.ndim}q", array.ndim, *array.shape)
    return struct.pack("<Ii", magic, 0) + shape + struct.pack("<3i", 1, 0, code) + array.tobytes()


X = np.arange(6, dtype=np.float32).reshape(2, 3)


def test_what_is_written_is_read_again(tmp_path: Path) -> None:
    write_params(tmp_path / "net.params", arrays())
    again = read_params(tmp_path / "net.params")
    assert list(again) == list(arrays())
    for name, array in arrays().items():
        assert again[name].dtype == array.dtype
        assert again[name].tobytes() == array.tobytes()


def test_the_bytes_are_those_of_the_format() -> None:
    assert params_bytes({"arg:x": X}) == head(1) + dense(X) + tail("arg:x")
    assert params_bytes({"x": X}, np_shape=True) == head(1) + dense(X, 0xF993FACA) + tail("x")
    assert params_bytes({"x": X.T}) == head(1) + dense(np.ascontiguousarray(X.T)) + tail("x")


@pytest.mark.skipif(importlib.util.find_spec("mxnet") is None, reason="compares with MXNet")
def test_the_bytes_are_those_of_mxnet(tmp_path: Path) -> None:
    from attar_mxnet.reading.live import mxnet

    mx = mxnet()
    ours = {n: a for n, a in arrays().items() if a.dtype.name not in ("int16", "uint16", "uint32", "uint64")}
    del ours["arg:bfloat16"]  # MXNet's Python front end cannot make one from an array
    path = tmp_path / "net.params"
    mx.nd.save(str(path), {n: mx.nd.array(a, dtype=a.dtype) for n, a in ours.items()})
    assert params_bytes(ours) == path.read_bytes()
    write_params(path, ours)
    theirs = mx.nd.load(str(path))
    for name, array in ours.items():
        np.testing.assert_array_equal(theirs[name].asnumpy(), array)
    half = {"w": mx.nd.array(X).astype(np.dtype([("bfloat16", np.uint16)]))}
    mx.nd.save(str(path), half)
    assert params_bytes({"w": X.astype(ml_dtypes.bfloat16)}) == path.read_bytes()
    with mx.util.np_shape(True):
        mx.nd.save(str(path), {"a": mx.nd.zeros((0, 3)), "b": mx.nd.ones((2,))})
        assert params_bytes(
            {"a": np.zeros((0, 3), np.float32), "b": np.ones(2, np.float32)}, np_shape=True
        ) == (path.read_bytes())


@pytest.mark.skipif(importlib.util.find_spec("mxnet") is None, reason="compares with MXNet")
def test_sparse_arrays_of_mxnet_come_out_dense(tmp_path: Path) -> None:
    from attar_mxnet.reading.live import mxnet

    mx = mxnet()
    rows = mx.nd.sparse.row_sparse_array((np.ones((2, 3), np.float32), [1, 3]), shape=(5, 3))
    csr = mx.nd.sparse.csr_matrix(np.array([[0, 1, 0], [2, 0, 3]], np.float32))
    mx.nd.save(str(tmp_path / "s.params"), {"rows": rows, "csr": csr})
    found = read_params(tmp_path / "s.params")
    np.testing.assert_array_equal(found["rows"], rows.asnumpy())
    np.testing.assert_array_equal(found["csr"], csr.asnumpy())


def test_old_versions() -> None:
    first = struct.pack("<I", 0xF993FAC8) + dense(X)[8:]
    oldest = struct.pack("<3I", 2, 2, 3) + struct.pack("<3i", 2, 1, 0) + X.tobytes()  # saved on a GPU
    found = parse_params(head(2) + first + oldest + tail("first", "oldest"))
    np.testing.assert_array_equal(found["first"], X)
    np.testing.assert_array_equal(found["oldest"], X)


def test_lists_without_names_are_numbered() -> None:
    assert list(parse_params(head(2) + dense(X) + dense(X) + tail())) == ["0", "1"]


def test_a_csr_file_with_a_wrong_stored_shape() -> None:
    """The number of values is that of the indices."""
    body = struct.pack("<Ii", 0xF993FAC9, 2) + struct.pack("<iq", 1, 99) + struct.pack("<i2q", 2, 2, 3)
    body += struct.pack("<3i", 1, 0, 0) + struct.pack("<iiq", 6, 1, 3) + struct.pack("<iiq", 6, 1, 2)
    body += np.array([5, 7], np.float32).tobytes() + np.array([0, 1, 2], np.int64).tobytes()
    body += np.array([2, 0], np.int64).tobytes()
    np.testing.assert_array_equal(parse_params(head(1) + body + tail("x"))["x"], [[0, 0, 5], [7, 0, 0]])


def test_npz_of_mxnet_2(tmp_path: Path) -> None:
    path = tmp_path / "net.params"
    with path.open("wb") as file:
        np.savez(file, **{"dense.weight": X, "scalar": np.float32(3)})
    found = read_params(path)
    np.testing.assert_array_equal(found["dense.weight"], X)
    assert found["scalar"].shape == ()


def npz(header: str, body: bytes = b"") -> bytes:
    text = header.encode().ljust(117) + b"\n"
    stream = io.BytesIO()
    with zipfile.ZipFile(stream, "w") as archive:
        archive.writestr("x.npy", b"\x93NUMPY\x01\x00" + struct.pack("<H", len(text)) + text + body)
    return stream.getvalue()


def huge(storage: int) -> bytes:
    shape = struct.pack("<i3q", 3, 1 << 40, 1 << 20, 1 << 20)
    return struct.pack("<Ii", 0xF993FAC9, storage) + shape * (1 + (storage > 0)) + struct.pack("<3i", 1, 0, 0)


@pytest.mark.parametrize(
    ("content", "says"),
    [
        (b"", "empty"),
        (b"\x80\x04K\x01.", "header"),
        (struct.pack("<QQQ", 0x113, 0, 0), "starts with 0x113"),
        (head(1 << 60), "number of arrays"),
        (head(1) + dense(X)[:-4] , "array 0 of 1"),
        (head(1) + huge(0), "needs"),
        (head(1) + huge(1), "damaged"),
        (head(1) + struct.pack("<Ii", 0xF993FAC9, 7), "storage type 7"),
        (head(1) + struct.pack("<Iii", 0xF993FAC9, 0, 1 << 20), "rank"),
        (head(1) + struct.pack("<Iiiq", 0xF993FAC9, 0, 1, -5), "negative"),
        (head(1) + struct.pack("<I", 77), "neither a version nor a rank"),
        (head(1) + dense(X, code=13), "element type 13"),
        (head(1) + dense(X) + tail("x", "y"), "2 names"),
        (head(1) + dense(X) + struct.pack("<QQ", 1, 1 << 50), "a name"),
        (head(1) + dense(X) + struct.pack("<QQ", 1, 2) + b"\xff\xfe", "UTF-8"),
        (head(2) + dense(X) * 2 + tail("x", "x"), "two arrays of the name 'x'"),
        (npz("{'descr': '<f4', 'fortran_order': False, 'shape': (1000000000000,), }"), "holds 0 bytes"),
        (npz("{'descr': '|O', 'fortran_order': False, 'shape': (1,), }", b"\x80\x04."), "pickle"),
        (npz("__import__('os')"), "damaged npz"),
        (b"PK\x03\x04 nothing", "damaged npz"),
    ],
    ids=lambda part: part if isinstance(part, str) else "",
)  # fmt: skip
def test_damaged_files(content: bytes, says: str, tmp_path: Path) -> None:
    path = tmp_path / "bad.params"
    path.write_bytes(content)
    with pytest.raises(InputError, match=r"bad\.params") as caught:
        read_params(path)
    assert says in str(caught.value)


def test_a_missing_file_and_a_folder(tmp_path: Path) -> None:
    for path in (tmp_path / "none.params", tmp_path):
        with pytest.raises(InputError, match="cannot read"):
            read_params(path)


def test_what_mxnet_cannot_hold(tmp_path: Path) -> None:
    for array in (np.zeros((), np.float32), np.zeros((0, 3), np.float32), np.zeros(2, np.complex64)):
        with pytest.raises(InputError, match="'x'"):
            write_params(tmp_path / "net.params", {"x": array})
    assert not list(tmp_path.iterdir())


@settings(max_examples=150, deadline=None)
@given(st.data())
def test_flipped_bytes_never_do_more_than_an_error(data: st.DataObject) -> None:
    content = bytearray(params_bytes({"arg:a": X, "aux:b": X.astype(np.int8)}))
    for _ in range(data.draw(st.integers(1, 4))):
        content[data.draw(st.integers(0, len(content) - 1))] = data.draw(st.integers(0, 255))
    del content[data.draw(st.integers(1, len(content))) :]
    try:
        found = parse_params(bytes(content))
    except InputError:
        return
    assert sum(a.nbytes for a in found.values()) <= len(content)
