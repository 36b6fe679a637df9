"""The demo: its data, its network, and the whole compression."""

from __future__ import annotations

import json
import sys
from collections import Counter
from importlib.resources import files
from io import BytesIO
from pathlib import Path

import numpy as np
import onnx
import onnxruntime
import pytest

from attar.demo import run_demo
from attar.demo.digits import PARTS, digits, enlarge
from attar.errors import InputError

NETWORK = files("attar.demo").joinpath("digits.onnx").read_bytes()


def logits(model: bytes | Path, images: np.ndarray) -> np.ndarray:
    """The model run by ONNX Runtime itself, without attar."""
    session = onnxruntime.InferenceSession(
        model if isinstance(model, bytes) else str(model), providers=["CPUExecutionProvider"]
    )
    (name,) = (i.name for i in session.get_inputs())
    return session.run(None, {name: images})[0]


def top1(model: bytes | Path, images: np.ndarray, labels: np.ndarray) -> float:
    return float((logits(model, images).argmax(axis=1) == labels).mean())


def test_the_parts_are_the_whole_data_set_once() -> None:
    parts = {part: digits(part) for part in PARTS}
    assert {part: len(labels) for part, (_, labels) in parts.items()} == {
        "train": 1000,
        "validation": 200,
        "test": 597,
    }
    # The class distribution that the UCI repository states for optdigits.tes.
    labels = np.concatenate([labels for _, labels in parts.values()])
    assert np.bincount(labels).tolist() == [178, 182, 177, 183, 181, 182, 181, 179, 174, 180]
    images = np.concatenate([images for images, _ in parts.values()])
    assert images.shape == (1797, 1, 32, 32)
    assert images.dtype == np.float32
    assert images.min() == 0
    assert images.max() == 1
    assert len({image.tobytes() for image in images}) == 1797  # no image is in two parts


@pytest.mark.parametrize("scale", [1, 2, 3, 4])
def test_enlarging_is_the_resize_of_onnx(scale: int) -> None:
    images = np.random.default_rng(scale).random((3, 5, 8), np.float32)
    resize = onnx.helper.make_node(
        "Resize",
        ["x", "", "scales"],
        ["y"],
        mode="linear",
        coordinate_transformation_mode="half_pixel",
    )
    graph = onnx.helper.make_graph(
        [resize],
        "g",
        [onnx.helper.make_tensor_value_info("x", 1, [3, 1, 5, 8])],
        [onnx.helper.make_tensor_value_info("y", 1, None)],
        [onnx.numpy_helper.from_array(np.array([1, 1, scale, scale], np.float32), "scales")],
    )
    model = onnx.helper.make_model(graph, opset_imports=[onnx.helper.make_opsetid("", 19)], ir_version=10)
    expected = logits(model.SerializeToString(), images[:, None])[:, 0]
    np.testing.assert_allclose(enlarge(images, scale), expected, rtol=0, atol=1e-6)


def test_the_network_is_float_has_its_batchnorms_and_knows_digits() -> None:
    model = onnx.load_from_string(NETWORK)
    onnx.checker.check_model(model, full_check=True)
    assert Counter(node.op_type for node in model.graph.node)["BatchNormalization"] == 9
    assert {i.data_type for i in model.graph.initializer} == {onnx.TensorProto.FLOAT}
    assert top1(NETWORK, *digits("test")) >= 0.995


# The older exporter, which alone keeps BatchNorm, says that it is not the newest.
@pytest.mark.filterwarnings("ignore::DeprecationWarning")
def test_the_training_script_builds_this_network(tmp_path: Path) -> None:
    """With the shipped weights it computes what the shipped file does, and it exports the same graph."""
    torch = pytest.importorskip("torch")
    from attar.demo.train import build, export

    shipped = onnx.load_from_string(NETWORK)
    arrays = {i.name: onnx.numpy_helper.to_array(i) for i in shipped.graph.initializer}
    net = build().eval()
    net.load_state_dict({name: torch.from_numpy(array.copy()) for name, array in arrays.items()})
    images, _ = digits("validation")
    with torch.no_grad():
        expected = net(torch.from_numpy(images)).numpy()
    np.testing.assert_allclose(logits(NETWORK, images), expected, rtol=0, atol=1e-5)  # logits of up to 6

    export(net, tmp_path / "again.onnx")
    again = onnx.load(tmp_path / "again.onnx")
    assert [(n.op_type, list(n.input)) for n in again.graph.node] == [
        (n.op_type, list(n.input)) for n in shipped.graph.node
    ]


def test_the_training_script_writes_this_data(tmp_path: Path) -> None:
    pytest.importorskip("sklearn", reason="scikit-learn, the source of the digits, is not installed")
    from attar.demo.train import write_digits

    write_digits(tmp_path / "digits.npz")
    made = np.load(tmp_path / "digits.npz")
    shipped = np.load(BytesIO(files("attar.demo").joinpath("digits.npz").read_bytes()))
    assert set(made) == set(shipped)
    for name in made:
        np.testing.assert_array_equal(made[name], shipped[name])


def test_the_demo_keeps_its_promises(tmp_path: Path) -> None:
    folder = tmp_path / "new" / "demo"
    result = run_demo(folder)
    assert {path.name for path in folder.iterdir()} == {
        "digits.onnx",
        "digits-int8.onnx",
        "report.html",
        "report.json",
    }
    report = result.report
    assert report.verdict == "accepted"
    assert (folder / "digits.onnx").read_bytes() == NETWORK

    # The report's figures, measured again without attar.
    test = digits("test")
    assert report.before.metric == pytest.approx(top1(NETWORK, *test))
    assert report.after.metric == pytest.approx(top1(folder / "digits-int8.onnx", *test))
    assert report.before.metric - report.after.metric <= 0.01
    # The report's size is reckoned without writing the file: the tags before each weight are not exact.
    assert report.after.bytes == pytest.approx((folder / "digits-int8.onnx").stat().st_size, rel=1e-3)
    assert report.after.bytes < 0.4 * len(NETWORK)

    compressed = onnx.load(folder / "digits-int8.onnx")
    onnx.checker.check_model(compressed, full_check=True)
    assert [i.name for i in compressed.graph.input] == ["image"]
    assert [o.name for o in compressed.graph.output] == ["logits"]
    assert any(i.data_type == onnx.TensorProto.INT8 for i in compressed.graph.initializer)
    # All nine convolutions compute on integers, and the batch is still free.
    assert report.after.count("integer", compute=True) >= 9
    assert logits(folder / "digits-int8.onnx", test[0][:3]).shape == (3, 10)

    assert report.speed is not None
    assert report.speed.low <= report.speed.ratio <= report.speed.high
    assert json.loads((folder / "report.json").read_text()) == report.to_dict()
    assert "<html" in (folder / "report.html").read_text(encoding="utf-8").lower()


def test_without_jinja2_the_readable_report_is_text(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "jinja2", None)
    result = run_demo(tmp_path)
    assert (tmp_path / "report.txt").read_text(encoding="utf-8") == str(result.report)
    assert not (tmp_path / "report.html").exists()


def test_a_folder_that_cannot_be_made_is_an_input_error(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(InputError, match="file"):
        run_demo(tmp_path / "file" / "demo")
