"""Saving: atomic, streamed, and never from under a live model."""

from __future__ import annotations

import numpy as np
import onnx
import onnx_ir as ir
import pytest

from attar import graph
from attar.errors import InputError
from attar.runtime import OnnxRuntime

TEXT = """<ir_version: 10, opset_import: ["": 21]>
net (float[n, 64] x) => (float[n, 64] y) { h = MatMul(x, a) y = MatMul(h, b) }"""
X = np.random.default_rng(0).standard_normal((2, 64)).astype(np.float32)


def made() -> ir.Model:
    rng = np.random.default_rng(1)
    proto = onnx.parser.parse_model(TEXT)
    for name in "ab":
        array = rng.standard_normal((64, 64)).astype(np.float32)
        proto.graph.initializer.append(onnx.numpy_helper.from_array(array, name))
    model = graph.from_proto(proto)
    graph.normalize(model)
    return model


def ran(model: ir.Model | str) -> np.ndarray:
    return OnnxRuntime().open(model).run({"x": X})[0]


def test_external_data_beside_the_model(tmp_path) -> None:
    model = made()
    files = graph.save(model, tmp_path / "m.onnx", external_data=True)
    assert [f.name for f in files] == ["m.onnx", "m.onnx.data"]
    assert (tmp_path / "m.onnx").stat().st_size < 4096
    onnx.checker.check_model(str(tmp_path / "m.onnx"), full_check=True)
    np.testing.assert_array_equal(ran(str(tmp_path / "m.onnx")), ran(model))
    np.testing.assert_array_equal(ran(graph.read_model(tmp_path / "m.onnx")), ran(model))
    assert sorted(p.name for p in tmp_path.iterdir()) == ["m.onnx", "m.onnx.data"]  # no leftovers


@pytest.mark.parametrize("external", [True, False])
def test_saving_over_the_file_that_a_model_came_from(tmp_path, external: bool) -> None:
    path = tmp_path / "m.onnx"
    graph.save(made(), path, external_data=True)
    first, second = graph.read_model(path), graph.read_model(path)
    before = ran(first)
    changed = graph.clone(first)
    graph.replace_weight(changed.graph.initializers["a"], np.eye(64, dtype=np.float32))
    graph.save(changed, path, external_data=external)
    np.testing.assert_array_equal(ran(first), before)  # what was loaded still reads the old weights
    np.testing.assert_array_equal(ran(second), before)
    np.testing.assert_array_equal(ran(graph.read_model(path)), ran(changed))
    assert not np.array_equal(ran(changed), before)
    names = {p.name for p in tmp_path.iterdir()}
    assert names == ({"m.onnx", "m.onnx.1.data"} if external else {"m.onnx"})


def test_lazy_tensors_of_onnx_ir_survive_saving_over_their_file(tmp_path) -> None:
    path = tmp_path / "m.onnx"
    graph.save(made(), path, external_data=True)
    lazy = ir.load(path)
    before = lazy.graph.initializers["b"].const_value.numpy().copy()
    for value in lazy.graph.initializers.values():
        value.const_value.release()
    graph.save(lazy, path, external_data=True)
    np.testing.assert_array_equal(lazy.graph.initializers["b"].const_value.numpy(), before)
    assert graph.const_array(graph.read_model(path).graph.initializers["b"]).tolist() == before.tolist()


def test_data_files_of_others_are_left_alone(tmp_path) -> None:
    (tmp_path / "m.onnx.data").write_bytes(b"mine")
    graph.save(made(), tmp_path / "m.onnx")
    graph.save(made(), tmp_path / "m.onnx", external_data=True)
    assert (tmp_path / "m.onnx.data").read_bytes() == b"mine"
    assert (tmp_path / "m.onnx.1.data").exists()


def test_a_failed_save_leaves_the_old_pair_whole(tmp_path, monkeypatch) -> None:
    path = tmp_path / "m.onnx"
    model = made()
    graph.save(model, path, external_data=True)
    before = {p.name: p.read_bytes() for p in tmp_path.iterdir()}

    def full(*_: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("os.replace", full)
    with pytest.raises(InputError, match="No space left"):
        graph.save(model, path, external_data=True)
    assert {p.name: p.read_bytes() for p in tmp_path.iterdir()} == before


def test_unusual_element_types_survive(tmp_path) -> None:
    import ml_dtypes

    rng = np.random.default_rng(0)
    kinds = {
        "int4": rng.integers(-8, 8, 4001).astype(ml_dtypes.int4),
        "uint4": rng.integers(0, 16, 4001).astype(ml_dtypes.uint4),
        "bf16": rng.standard_normal(4001).astype(ml_dtypes.bfloat16),
        "f8": rng.standard_normal(4001).astype(ml_dtypes.float8_e4m3fn),
        "flag": rng.integers(0, 2, 4001).astype(bool),
        "empty": np.empty((0, 3), np.float32),
        "scalar": np.array(2.5, np.float64),
    }
    model = made()
    for name, array in kinds.items():
        value = graph.add_initializer(model.graph, name, array)
        model.graph.outputs.append(value)
    for external in (True, False):
        graph.save(model, tmp_path / "k.onnx", external_data=external)
        back = graph.read_model(tmp_path / "k.onnx")
        for name, array in kinds.items():
            got = graph.const_array(back.graph.initializers[name])
            assert got.shape == array.shape
            assert got.astype(np.float64).tolist() == array.astype(np.float64).tolist(), name
    assert graph.byte_size(back) == graph.byte_size(model)


def test_shared_tensors_are_written_once(tmp_path) -> None:
    model = made()
    model.graph.initializers["b"].const_value = model.graph.initializers["a"].const_value
    graph.save(model, tmp_path / "m.onnx", external_data=True)
    assert (tmp_path / "m.onnx.data").stat().st_size == 64 * 64 * 4
    np.testing.assert_array_equal(ran(str(tmp_path / "m.onnx")), ran(model))


def test_bad_places_are_input_errors(tmp_path) -> None:
    with pytest.raises(InputError, match="it is a folder"):
        graph.save(made(), tmp_path)
    with pytest.raises(InputError, match="cannot write"):
        graph.save(made(), tmp_path / "nowhere" / "m.onnx")
    with pytest.raises(InputError, match="cannot write"):
        graph.save(made(), tmp_path / "nowhere" / "m.onnx", external_data=True)
