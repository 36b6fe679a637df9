"""Broken and hostile ONNX files end in an InputError that says what is wrong, and nothing else."""

from __future__ import annotations

import contextlib
from pathlib import Path

import numpy as np
import onnx
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from onnx import TensorProto, helper, numpy_helper
from onnx_models import X, same, small

from attar.errors import AttarError, InputError
from attar_onnx.adapter import OnnxAdapter

ADAPTER = OnnxAdapter()


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.data())
def test_damaged_bytes_never_escape_as_anything_else(data: st.DataObject) -> None:
    content = bytearray(small().SerializeToString())
    start = data.draw(st.integers(0, len(content) - 1))
    kind = data.draw(st.sampled_from(["cut", "flip", "noise"]))
    if kind == "cut":
        del content[start:]
    elif kind == "flip":
        content[start] ^= data.draw(st.integers(1, 255))
    else:
        content[start : start + 16] = data.draw(st.binary(min_size=16, max_size=16))
    with contextlib.suppress(AttarError):
        ADAPTER.load(bytes(content))


@pytest.mark.parametrize("content", [b"", b"not a model", bytes(range(256)) * 8, b"PK\x03\x04" + b"\0" * 100])
def test_files_that_are_no_models(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "bad.onnx").write_bytes(content)
    with pytest.raises(InputError, match=r"bad\.onnx"):
        ADAPTER.load(tmp_path / "bad.onnx")


def test_folders_and_missing_files(tmp_path: Path) -> None:
    (tmp_path / "dir.onnx").mkdir()
    with pytest.raises(InputError, match="folder"):
        ADAPTER.load(tmp_path / "dir.onnx")
    with pytest.raises(InputError, match="cannot read"):
        ADAPTER.load(tmp_path / "none.onnx")
    with pytest.raises(InputError, match="not an ONNX model"):
        ADAPTER.load(3.5)


def test_what_the_ir_would_drop_is_refused() -> None:
    sparse = small()
    values = numpy_helper.from_array(np.ones(1, np.float32), "thin")
    indices = numpy_helper.from_array(np.zeros(1, np.int64), "i")
    sparse.graph.sparse_initializer.append(helper.make_sparse_tensor(values, indices, [4]))
    with pytest.raises(InputError, match="sparse initializer 'thin'"):
        ADAPTER.load(sparse)
    training = small()
    training.training_info.add()
    with pytest.raises(InputError, match="training_info"):
        ADAPTER.load(training)


def test_weights_that_are_not_what_they_declare() -> None:
    proto = small()
    proto.graph.initializer[0].raw_data = proto.graph.initializer[0].raw_data[:-4]
    with pytest.raises(InputError, match="tensor 'w'"):
        ADAPTER.load(proto)
    proto.graph.initializer[0].dims[0] = 1 << 60  # nothing of that size may be allocated
    with pytest.raises(InputError, match="tensor 'w'"):
        ADAPTER.load(proto)
    proto.graph.initializer[0].dims[0] = -4
    with pytest.raises(InputError, match="negative"):
        ADAPTER.load(proto)


def test_contradicting_shapes_and_dangling_names() -> None:
    proto = small()
    proto.graph.initializer[0].CopyFrom(numpy_helper.from_array(np.ones((5, 3), np.float32), "w"))
    with pytest.raises(InputError, match="MatMul"):
        ADAPTER.load(proto)
    proto = small()
    proto.graph.node[0].input[1] = "nowhere"
    with pytest.raises(InputError, match="'nowhere', which nothing makes"):
        ADAPTER.load(proto)
    proto = small()
    proto.graph.node[0].op_type = "Frobnicate"
    with pytest.raises(InputError, match="Frobnicate"):
        ADAPTER.load(proto)


def external(folder: Path, **entries: str) -> Path:
    proto = small()
    tensor = proto.graph.initializer[0]
    (folder / "w.bin").write_bytes(tensor.raw_data)
    tensor.ClearField("raw_data")
    tensor.data_location = TensorProto.EXTERNAL
    for key, text in ({"location": "w.bin"} | entries).items():
        tensor.external_data.add(key=key, value=text)
    onnx.save(proto, folder / "m.onnx")
    return folder / "m.onnx"


def test_external_data_is_mapped_and_outlives_its_file(tmp_path: Path) -> None:
    model = ADAPTER.load(external(tmp_path)).model
    (tmp_path / "w.bin").unlink()
    same(small().SerializeToString(), {"x": X}, model)


@pytest.mark.parametrize(
    ("entries", "message"),
    [
        ({"location": "gone.bin"}, "gone.bin"),
        ({"location": "../w.bin"}, "outside the model's folder"),
        ({"location": "/etc/hostname"}, "outside the model's folder"),
        ({"offset": "4"}, "w.bin, which has only 48"),
        ({"offset": "-4"}, "-4|offset|negative"),
        ({"length": "40"}, "declared as 40 bytes"),
        ({"offset": "99999999999999"}, "which has only 48"),
        ({"offset": "many"}, "not a valid ONNX model"),
        ({"location": "."}, "outside the model's folder"),
    ],
)
def test_external_data_that_cannot_be_right(tmp_path: Path, entries: dict[str, str], message: str) -> None:
    with pytest.raises(InputError, match=message):
        ADAPTER.load(external(tmp_path, **entries))


def test_links_out_of_the_folder_are_not_followed(tmp_path: Path) -> None:
    (tmp_path / "secret.bin").write_bytes(b"\0" * 48)
    folder = tmp_path / "model"
    folder.mkdir()
    path = external(folder)
    (folder / "w.bin").unlink()
    (folder / "w.bin").symlink_to(tmp_path / "secret.bin")
    with pytest.raises(InputError, match="outside the model's folder"):
        ADAPTER.load(path)


def test_bytes_with_external_data_say_what_to_do(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="give the path"):
        ADAPTER.load(external(tmp_path).read_bytes())
