"""Reading TensorFlow's files: what was trained keeps its accuracy, what is broken or dangerous is told."""

from __future__ import annotations

import json
import shutil
import sys
import zipfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest

tf = pytest.importorskip("tensorflow")
keras = pytest.importorskip("keras")

from tensorflow_import_nets import ADAPTER, L, kinds, noise, parity, sequential, transformer  # noqa: E402

from attar.errors import ConversionError, InputError  # noqa: E402
from attar.runtime import OnnxRuntime  # noqa: E402


@pytest.fixture(scope="module")
def net() -> Any:
    return sequential(L.Conv2D(4, 3), L.BatchNormalization(), L.Flatten(), L.Dense(3), shape=(8, 8, 3))


@pytest.fixture(scope="module")
def folder(net: Any, tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("models")
    net.save(path / "m.keras")
    net.save(path / "m.h5")
    net.export(path / "saved", verbose=False)
    return path


@pytest.mark.parametrize("name", ["m.keras", "m.h5", "saved"])
def test_files_of_keras(name: str, folder: Path, net: Any) -> None:
    x = noise(2, 8, 8, 3)
    loaded = ADAPTER.load(folder / name, inputs=x)
    parity(loaded)
    got = OnnxRuntime().open(loaded.model).run(dict(loaded.example or {}))[0]
    wanted = net(x, training=False).numpy()
    np.testing.assert_allclose(got, wanted, rtol=0, atol=1e-5 * np.abs(wanted).max())
    assert kinds(loaded) == {"Transpose": 1, "Conv": 1, "BatchNormalization": 1, "Flatten": 1, "Gemm": 1}
    assert any(n.endswith("gamma") for n in loaded.model.graph.initializers)


class Served(tf.Module):
    def __init__(self) -> None:
        super().__init__()
        self.w = tf.Variable(noise(4, 3), name="w")

    @tf.function(input_signature=[tf.TensorSpec([None, 4], name="x")])
    def twice(self, x):
        return {"a": x @ self.w, "b": tf.reduce_sum(x @ self.w, -1)}

    @tf.function(input_signature=[tf.TensorSpec([None, 4], name="x"), tf.TensorSpec([None, 4], name="y")])
    def both(self, x, y):
        return {"c": (x + y) @ self.w}


def test_signatures_of_a_saved_model(tmp_path: Path) -> None:
    module = Served()
    tf.saved_model.save(module, str(tmp_path / "m"), {"twice": module.twice, "both": module.both})
    with pytest.raises(InputError, match=r"several signatures(.|\n)*both, twice"):
        ADAPTER.load(tmp_path / "m")
    with pytest.raises(InputError, match="twice"):
        ADAPTER.load(tmp_path / "m", signature="twise")
    parity(ADAPTER.load(tmp_path / "m", signature="twice", inputs=noise(5, 4)))
    loaded = ADAPTER.load(
        tmp_path / "m", signature="both", inputs={"x": noise(5, 4), "y": noise(5, 4, seed=2)}
    )
    parity(loaded)
    assert [v.name for v in loaded.model.graph.outputs] == ["c"]
    assert "w" in loaded.model.graph.initializers


def test_a_saved_model_of_recurrent_layers(tmp_path: Path) -> None:
    model = sequential(L.Bidirectional(L.LSTM(4, return_sequences=True)), L.GRU(3), shape=(6, 5))
    model.export(tmp_path / "m", verbose=False)
    loaded = ADAPTER.load(tmp_path / "m", inputs=noise(2, 6, 5))
    parity(loaded)
    assert {k: kinds(loaded)[k] for k in ("LSTM", "GRU", "Loop")} == {"LSTM": 2, "GRU": 1, "Loop": 0}


def test_a_saved_transformer(tmp_path: Path) -> None:
    transformer().export(tmp_path / "m", verbose=False)
    tokens = np.random.default_rng(0).integers(0, 30, (2, 11)).astype(np.int32)
    loaded = ADAPTER.load(tmp_path / "m", inputs=tokens)
    parity(loaded)
    assert kinds(loaded)["LayerNormalization"] == 2


def test_a_frozen_graph_by_names(tmp_path: Path) -> None:
    with tf.Graph().as_default() as g:
        x = tf.compat.v1.placeholder(tf.float32, [None, 8, 8, 3], name="x")
        h = tf.nn.relu(tf.nn.conv2d(x, noise(3, 3, 3, 4), 1, "VALID"), name="hidden")
        tf.reduce_mean(h, [1, 2], name="y")
        tf.reduce_max(h, [1, 2, 3], name="z")
    path = tmp_path / "frozen.pb"
    path.write_bytes(g.as_graph_def().SerializeToString())
    loaded = ADAPTER.load(path, inputs=noise(2, 8, 8, 3))
    parity(loaded)
    assert [v.name for v in loaded.model.graph.outputs] == ["y", "z"]
    loaded = ADAPTER.load(path, outputs=["hidden"], inputs=noise(2, 8, 8, 3))
    parity(loaded)
    loaded = ADAPTER.load(path, outputs="y:0", input_names=["hidden"], inputs=np.abs(noise(2, 6, 6, 4)))
    parity(loaded)
    with pytest.raises(InputError, match="hidden"):
        ADAPTER.load(path, outputs=["hiden"])


# -- broken and dangerous files ------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["m.keras", "m.h5", "saved/saved_model.pb"])
@pytest.mark.parametrize("kept", [0, 11, 500, -100])
def test_cut_files_are_told(name: str, kept: int, folder: Path, tmp_path: Path) -> None:
    shutil.copytree(folder, tmp_path / "f")
    path = tmp_path / "f" / name
    path.write_bytes(path.read_bytes()[:kept])
    source = path.parent if path.name == "saved_model.pb" else path
    with pytest.raises(InputError, match=source.name):
        ADAPTER.load(source)


def test_other_things_under_our_names(tmp_path: Path) -> None:
    for name in ("a.keras", "a.h5", "a.pb"):
        (tmp_path / name).write_bytes(b"no model at all" * 50)
        with pytest.raises(InputError, match=name):
            ADAPTER.load(tmp_path / name)
        with pytest.raises(InputError, match="no such file"):
            ADAPTER.load(tmp_path / f"missing-{name}")
    (tmp_path / "empty").mkdir()
    with pytest.raises(InputError, match="no SavedModel"):
        ADAPTER.load(tmp_path / "empty")


def test_weights_missing_from_a_saved_model(folder: Path, tmp_path: Path) -> None:
    shutil.copytree(folder / "saved", tmp_path / "m")
    shutil.rmtree(tmp_path / "m" / "variables")
    with pytest.raises(InputError, match=str(tmp_path / "m")):
        ADAPTER.load(tmp_path / "m")


def test_python_code_in_a_file_is_not_run(tmp_path: Path) -> None:
    image = keras.Input((4,))
    model = keras.Model(image, L.Lambda(lambda x: x * 2)(image))
    for name in ("m.keras", "m.h5"):
        model.save(tmp_path / name)
        with pytest.raises(InputError, match="Lambda"):
            ADAPTER.load(tmp_path / name)


def test_custom_layers_are_told(tmp_path: Path) -> None:
    class Mine(L.Layer):
        def call(self, x):
            return x * 2

    image = keras.Input((4,))
    keras.Model(image, Mine()(image)).save(tmp_path / "m.keras")
    with pytest.raises(InputError, match="custom objects that are not registered: Mine"):
        ADAPTER.load(tmp_path / "m.keras")


def test_a_configuration_cannot_name_any_class(tmp_path: Path, folder: Path) -> None:
    with zipfile.ZipFile(folder / "m.keras") as old, zipfile.ZipFile(tmp_path / "m.keras", "w") as new:
        for item in old.infolist():
            data = old.read(item)
            if item.filename == "config.json":
                config = json.loads(data)
                config.update(module="os", class_name="system", config={"command": f"touch {tmp_path}/ran"})
                data = json.dumps(config).encode()
            new.writestr(item, data)
    with pytest.raises(InputError):
        ADAPTER.load(tmp_path / "m.keras")
    assert not (tmp_path / "ran").exists()


def test_operators_that_reach_files_are_not_run(tmp_path: Path) -> None:
    with tf.Graph().as_default() as g:
        x = tf.compat.v1.placeholder(tf.float32, [2], name="x")
        with tf.control_dependencies([tf.io.write_file(str(tmp_path / "ran"), "x")]):
            tf.identity(x, name="y")
    (tmp_path / "m.pb").write_bytes(g.as_graph_def().SerializeToString())
    with pytest.raises(InputError, match="WriteFile"):
        ADAPTER.load(tmp_path / "m.pb")

    class Writer(tf.Module):
        @tf.function(input_signature=[tf.TensorSpec([2])])
        def __call__(self, x):
            tf.io.write_file(str(tmp_path / "ran"), "x")
            return x

    tf.saved_model.save(Writer(), str(tmp_path / "m"))
    with pytest.raises(InputError, match="WriteFile"):
        ADAPTER.load(tmp_path / "m")
    assert not (tmp_path / "ran").exists()


def test_an_h5_of_weights_only(tmp_path: Path, net: Any) -> None:
    net.save_weights(tmp_path / "m.weights.h5")
    with pytest.raises(InputError, match=r"weights only"):
        ADAPTER.load(tmp_path / "m.weights.h5")


def test_old_h5_files_with_arguments_that_say_nothing(tmp_path: Path) -> None:
    import h5py

    model = sequential(L.DepthwiseConv2D(3), L.Conv2DTranspose(2, 2), shape=(8, 8, 3))
    model.save(tmp_path / "m.h5")
    for groups in (1, 3):
        with h5py.File(tmp_path / "m.h5", "r+") as file:
            config = json.loads(file.attrs["model_config"])
            for layer in config["config"]["layers"]:
                if layer["class_name"] == "DepthwiseConv2D":
                    layer["config"]["groups"] = groups
            file.attrs["model_config"] = json.dumps(config)
        if groups == 1:
            parity(ADAPTER.load(tmp_path / "m.h5", inputs=noise(2, 8, 8, 3)))
        else:
            with pytest.raises(InputError, match="groups"):
                ADAPTER.load(tmp_path / "m.h5")


def test_strings_are_refused(tmp_path: Path) -> None:
    class Strings(tf.Module):
        @tf.function(input_signature=[tf.TensorSpec([None], tf.string)])
        def __call__(self, x):
            return tf.strings.length(x)

    tf.saved_model.save(Strings(), str(tmp_path / "m"))
    with pytest.raises(ConversionError, match="string"):
        ADAPTER.load(tmp_path / "m")


# -- trained models ------------------------------------------------------------------------------------------


def loaders(attar_data: Path) -> Any:
    if str(attar_data) not in sys.path:
        sys.path.insert(0, str(attar_data))
    return pytest.importorskip("load")


def accuracy(loaded: Any, x: np.ndarray, y: np.ndarray, batch: int) -> float:
    session = OnnxRuntime().open(loaded.model)
    name = session.inputs[0].name
    out = [session.run({name: x[k : k + batch]})[0] for k in range(0, len(x), batch)]
    return float((np.concatenate(out).argmax(1) == y).mean())


WORDS = "silence unknown yes no up down left right on off stop go".split()  # noqa: SIM905


@pytest.mark.parametrize(
    ("file", "batch", "wanted"), [("DS_CNN_S", 500, 0.888), ("DS_CNN_L", 500, 0.898), ("LSTM_L", 1, 0.862)]
)
def test_frozen_keyword_spotters(attar_data: Path, file: str, batch: int, wanted: float) -> None:
    data, labels = loaders(attar_data).kws("dev", WORDS)
    x = data["mlkws490"]
    loaded = ADAPTER.load(attar_data / "kws" / "tf_frozen" / f"{file}.pb", inputs=x[:batch][:8])
    parity(loaded)
    assert accuracy(loaded, x, labels, batch) == pytest.approx(wanted, abs=6e-4)
    assert kinds(loaded)["Transpose"] == (file == "LSTM_L")  # its sequence comes first


def test_a_trained_saved_model(attar_data: Path) -> None:
    data, labels = loaders(attar_data).kws("dev")
    x = data["mlperf"].astype("float32")
    loaded = ADAPTER.load(attar_data / "kws" / "keras_saved_model", inputs=x[:8])
    parity(loaded)
    assert accuracy(loaded, x, labels, 250) == pytest.approx(0.932, abs=6e-4)
    assert kinds(loaded)["BatchNormalization"] == 9


@pytest.mark.parametrize(
    ("file", "wanted"),
    [("cifar_models/resnet8_cifar10jpeg.h5", 0.834), ("mlperf_tiny/resnet8_cifar10_original.h5", 0.758)],
)
def test_trained_old_h5_files(attar_data: Path, file: str, wanted: float) -> None:
    x, labels = loaders(attar_data).cifar10("dev")
    loaded = ADAPTER.load(attar_data / file, inputs=x[:8].astype("float32"))
    parity(loaded)
    assert accuracy(loaded, x.astype("float32"), labels, 250) == pytest.approx(wanted, abs=6e-4)


@pytest.mark.slow
def test_the_trained_mobilenet(attar_data: Path) -> None:
    load = loaders(attar_data)
    images, labels = load.imagenet("dev")
    x = load.mobilenet_v1(images).astype(np.float32)
    loaded = ADAPTER.load(attar_data / "mobilenet_v1_075" / "mobilenet_v1_075_224.keras", inputs=x[:4])
    parity(loaded, rel=1e-4)  # through many layers
    assert accuracy(loaded, x, labels, 50) == pytest.approx(0.708, abs=1e-3)
    assert {"conv1/kernel", "conv1_bn/gamma", "conv_dw_1/kernel"} <= set(loaded.model.graph.initializers)
