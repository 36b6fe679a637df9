"""`attar convert` on what cannot, or must not, be read: one clear error, nothing run, nothing written."""

from __future__ import annotations

import importlib.util
import json
import struct
import subprocess
import sys
import textwrap
import zipfile
from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnx
import onnx.parser
import pytest
from click.testing import CliRunner

import attar
from attar.cli import cli
from attar_mxnet.params import write_params
from attar_mxnet.writing import write_symbol

TEXT = """<ir_version: 10, opset_import: ["" : 21]> net (float[N, 3, 8, 8] x) => (float[N, 4] y)
  <float[4, 3, 3, 3] w>
  { a = Conv(x, w) b = Relu(a) c = GlobalAveragePool(b) y = Flatten(c) }"""


def needs(framework: str) -> pytest.MarkDecorator:
    absent = importlib.util.find_spec(framework) is None
    return pytest.mark.skipif(absent, reason=f"{framework} is not installed")


def network() -> onnx.ModelProto:
    proto = onnx.parser.parse_model(TEXT)
    weight = np.random.default_rng(0).normal(size=(4, 3, 3, 3)).astype(np.float32)
    proto.graph.initializer.append(onnx.numpy_helper.from_array(weight, "w"))
    return proto


def refusal(source: Path, *told: str, to: str = "onnx", out: str = "net.onnx") -> dict[str, object]:
    """Convert `source` and check that all there is to see is one error that holds every text of `told`."""
    folder = source.parent / "written"
    folder.mkdir(exist_ok=True)
    before = sorted(source.parent.rglob("*"))
    result = CliRunner().invoke(
        cli, ["convert", str(source), "--to", to, "-o", str(folder / out), "--json"], catch_exceptions=False
    )
    assert result.exit_code == 1, result.output
    assert result.stderr.count("error: ") == 1, result.stderr
    error: dict[str, object] = json.loads(result.stdout)["error"]
    assert "internal error" not in str(error["message"])
    assert len(result.stderr) < 4000
    for text in told:
        assert text in result.stderr, result.stderr
    assert sorted(source.parent.rglob("*")) == before  # neither files half written nor traps gone off
    return error


def trap(folder: Path) -> tuple[bytes, Path]:
    """A pickle that makes a file when it is opened, and that file."""
    mark = folder / "sprung"
    return f"cbuiltins\nopen\n(V{mark}\nVw\ntR.".encode(), mark


# -- operators -----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("to", "out"),
    [
        pytest.param("torch", "net.pt2", marks=needs("torch")),
        pytest.param("tensorflow", "net.keras", marks=needs("tensorflow")),
        pytest.param("tflite", "net.tflite", marks=needs("tensorflow")),
        pytest.param("mxnet", "net-symbol.json", marks=needs("mxnet")),
    ],
)
def test_operators_that_a_framework_lacks_are_listed_at_once(to: str, out: str, tmp_path: Path) -> None:
    text = """<ir_version: 10, opset_import: ["" : 21]> net (float[N, 4] x) => (float[N, 4] y)
      { a = Bernoulli(x) b = Relu(a) c = RandomNormalLike(x) y = Add(b, c) }"""
    onnx.save(onnx.parser.parse_model(text), tmp_path / "net.onnx")
    error = refusal(tmp_path / "net.onnx", "Bernoulli", "RandomNormalLike", to=to, out=out)
    assert error["type"] == "ConversionError"


@needs("tensorflow")
def test_an_operator_of_a_saved_model_that_onnx_lacks(tmp_path: Path) -> None:
    import tensorflow as tf

    class Odd(tf.Module):  # type: ignore[misc]
        @tf.function(input_signature=[tf.TensorSpec([None, 4], name="x")])  # type: ignore[misc]
        def __call__(self, x: object) -> object:
            return tf.math.bessel_i0e(tf.math.igamma(x, x))

    odd = Odd()
    tf.saved_model.save(odd, str(tmp_path / "odd"), signatures=odd.__call__)
    error = refusal(tmp_path / "odd", "BesselI0e", "Igamma")
    assert error["type"] == "ConversionError"


def test_an_operator_of_a_symbol_that_onnx_lacks(tmp_path: Path) -> None:
    nodes = [
        {"op": "null", "name": "data", "attrs": {"__shape__": "(2, 4)"}, "inputs": []},
        {"op": "_contrib_hawkesll", "name": "hawkes", "inputs": [[0, 0, 0]]},
        {"op": "nobody_knows", "name": "mystery", "inputs": [[1, 0, 0]]},
    ]
    symbol = {
        "nodes": nodes,
        "arg_nodes": [0],
        "heads": [[2, 0, 0]],
        "attrs": {"mxnet_version": ["int", 10901]},
    }
    (tmp_path / "net-symbol.json").write_text(json.dumps(symbol))
    write_params(tmp_path / "net-0000.params", {})
    refusal(tmp_path / "net-symbol.json", "_contrib_hawkesll", "nobody_knows")


# -- damage --------------------------------------------------------------------------------------------


def _array(shape: tuple[int, ...]) -> bytes:
    """The head of a float32 array of `shape` in a `.params` file."""
    sizes = struct.pack(f"<i{len(shape)}q", len(shape), *shape)
    return struct.pack("<Ii", 0xF993FAC9, 0) + sizes + struct.pack("<iii", 1, 0, 0)


DAMAGE: dict[str, Callable[[bytes], bytes]] = {
    "another magic": lambda data: struct.pack("<Q", 0x113) + data[8:],
    "no magic": lambda data: b"params" + data[6:],
    "nothing": lambda data: b"",
    "a cut array": lambda data: data[: len(data) // 2],
    "cut names": lambda data: data[:-3],
    "an absurd shape": lambda data: struct.pack("<3Q", 0x112, 0, 1) + _array((1 << 40, 1 << 40)) + data[24:],
    "a negative shape": lambda data: struct.pack("<3Q", 0x112, 0, 1) + _array((-4, 3)) + data[24:],
    "too many arrays": lambda data: struct.pack("<3Q", 0x112, 0, 1 << 60) + data[24:],
    "a pickle": lambda data: b"cbuiltins\nopen\n(Vsprung\nVw\ntR.",
}


@pytest.mark.parametrize("damage", DAMAGE)
def test_damaged_params(damage: str, tmp_path: Path) -> None:
    registry = attar.default_registry()
    written = write_symbol(attar.load(network()), registry=registry).native
    _, params = written.save(tmp_path / "net")
    params.write_bytes(DAMAGE[damage](params.read_bytes()))
    for source in (tmp_path / "net-symbol.json", params):
        error = refusal(source, "net-0000.params", to="onnx")
        assert error["type"] == "InputError"


def test_parameters_of_another_network(tmp_path: Path) -> None:
    registry = attar.default_registry()
    written = write_symbol(attar.load(network()), registry=registry).native
    written.save(tmp_path / "net")
    proto = network()
    wider = np.zeros((5, 3, 3, 3), np.float32)
    proto.graph.initializer[0].CopyFrom(onnx.numpy_helper.from_array(wider, "w"))
    proto.graph.output[0].type.tensor_type.shape.dim[1].dim_value = 5
    other = write_symbol(attar.load(proto), registry=registry).native
    other.save(tmp_path / "other")
    (tmp_path / "net-0000.params").write_bytes((tmp_path / "other-0000.params").read_bytes())
    refusal(tmp_path / "net-symbol.json", "w")


@pytest.mark.parametrize(
    "name", ["net.onnx", "net.tflite", "net-symbol.json", "net.pb", "net.keras", "net.pt2"]
)
def test_noise_under_every_name(name: str, tmp_path: Path) -> None:
    framework = {"pb": "tensorflow", "keras": "tensorflow", "pt2": "torch"}.get(name.rsplit(".", 1)[1])
    if framework is not None and importlib.util.find_spec(framework) is None:
        pytest.skip(f"{framework} is not installed")
    (tmp_path / name).write_bytes(np.random.default_rng(0).bytes(4096))
    refusal(tmp_path / name, name)


# -- code ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("suffix", [".pt", ".pth", ".pkl", ".pickle"])
def test_a_pickle_is_not_opened(suffix: str, tmp_path: Path) -> None:
    content, mark = trap(tmp_path)
    (tmp_path / f"net{suffix}").write_bytes(content)
    refusal(tmp_path / f"net{suffix}", "is a pickle")
    zipped = tmp_path / f"zipped{suffix}"
    with zipfile.ZipFile(zipped, "w") as archive:
        archive.writestr("zipped/data.pkl", content)
        archive.writestr("zipped/version", "3\n")
    refusal(zipped, "is a pickle")
    assert not mark.exists()


@pytest.mark.parametrize(
    "name", ["net.h5", "net.keras", "net.onnx", "net.tflite", "net-0000.params", "net.pt2"]
)
def test_a_pickle_under_another_name_is_not_opened(name: str, tmp_path: Path) -> None:
    content, mark = trap(tmp_path)
    (tmp_path / name).write_bytes(content)
    (tmp_path / "net-symbol.json").write_text(
        write_symbol(attar.load(network()), registry=attar.default_registry()).native.json
    )
    refusal(tmp_path / name)
    assert not mark.exists()


@needs("tensorflow")
@pytest.mark.parametrize("suffix", [".h5", ".keras"])
def test_a_lambda_layer_is_not_run(suffix: str, tmp_path: Path) -> None:
    import keras

    mark = tmp_path / "sprung"
    place = str(mark)
    spring = keras.layers.Lambda(lambda x: [x, open(place, "w")][0])  # noqa: PTH123, SIM115
    net = keras.Sequential([keras.Input((4,)), spring])
    path = tmp_path / f"net{suffix}"
    net.save(path)
    mark.unlink(missing_ok=True)
    refusal(path, "Lambda")
    assert not mark.exists()


@needs("tensorflow")
@pytest.mark.parametrize("suffix", [".h5", ".keras"])
def test_a_layer_of_ones_own_is_named(suffix: str, tmp_path: Path) -> None:
    import keras

    class Twice(keras.layers.Layer):  # type: ignore[misc]
        def call(self, x: object) -> object:
            return x + x  # type: ignore[operator]

    keras.Sequential([keras.Input((4,)), Twice()]).save(tmp_path / f"net{suffix}")
    refusal(tmp_path / f"net{suffix}", "Twice")


# -- places --------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("to", "out"),
    [
        pytest.param("torch", "net.keras", marks=needs("torch")),
        pytest.param("tensorflow", "net.pt2", marks=needs("tensorflow")),
        pytest.param("tflite", "net.onnx", marks=needs("tensorflow")),
        pytest.param("mxnet", "net.onnx", marks=needs("mxnet")),
        ("onnx", "net.keras"),
        ("onnx", "net.attar"),
        ("caffe", "net.caffe"),
    ],
)
def test_a_name_that_is_not_the_frameworks(to: str, out: str, tmp_path: Path) -> None:
    onnx.save(network(), tmp_path / "net.onnx")
    refusal(tmp_path / "net.onnx", out if to != "caffe" else "unknown framework 'caffe'", to=to, out=out)


# -- frameworks that are not installed -----------------------------------------------------------------

ABSENT = """
    import sys

    for name in ("torch", "tensorflow", "keras", "mxnet"):
        sys.modules[name] = None  # as good as not installed

    import numpy as np

    import attar
    from attar.errors import InputError

    def missing(extra, act, *arguments, **options):
        try:
            act(*arguments, **options)
        except InputError as error:
            assert f"pip install 'attar[{extra}]'" in str(error), error
        else:
            raise AssertionError(arguments)

    model = attar.load("net.onnx")
    for framework in ("torch", "tensorflow", "mxnet"):
        missing(framework, attar.export, model, framework)
        missing(framework, attar.convert, "net.onnx", framework, "out")
    missing("tensorflow", attar.export, model, "tflite")
    missing("tensorflow", attar.load, "net.keras")
    missing("tensorflow", attar.load, "net.h5")
    missing("tensorflow", attar.load, "net.pb")
    missing("torch", attar.load, "net.pt2")

    x = np.ones((2, 3, 8, 8), np.float32)
    wanted = attar.runtime.OnnxRuntime().open(model)(x)[0]

    def same(source):
        got = attar.runtime.OnnxRuntime().open(attar.load(source))(x)[0]
        assert np.abs(got - wanted).max() <= 1e-6 * np.abs(wanted).max()

    attar.convert("net.onnx", "mxnet", "net-symbol.json", verify=False)  # files need no framework
    attar.convert("net.onnx", "tflite", "net.tflite", verify=False)
    attar.convert("net.onnx", "onnx", "again.onnx")
    for name in ("net-symbol.json", "net.tflite", "again.onnx"):
        same(name)
    assert not attar.default_registry().broken, attar.default_registry().broken
    print(sorted(attar.default_registry().adapters))
"""


def test_a_framework_that_is_not_installed_is_named_and_the_others_work(tmp_path: Path) -> None:
    onnx.save(network(), tmp_path / "net.onnx")
    for name in ("net.keras", "net.h5", "net.pb", "net.pt2"):
        (tmp_path / name).write_bytes(b"whatever")
    done = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(ABSENT)],
        cwd=tmp_path,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.strip() == str(["mxnet", "onnx", "tensorflow", "tflite", "torch"])
    assert not (tmp_path / "out").exists()
    assert not (tmp_path / "out-symbol.json").exists()
