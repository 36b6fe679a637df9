"""What `attar.compress` gives, in every framework: the same answers, and integers where TFLite has them."""

from __future__ import annotations

import importlib.util
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import attar
from attar.run import Result
from attar.runtime import OnnxRuntime
from attar.testing.build import Net

Array = np.ndarray[Any, np.dtype[Any]]


def images(count: int, seed: int = 0) -> Array:
    return np.random.default_rng(seed).normal(size=(count, 3, 16, 16)).astype(np.float32)


@pytest.fixture(scope="module")
def compressed() -> Result:
    """A residual network, all of it in integers."""
    net = Net("net")
    x = net.input("image", "N", 3, 16, 16)
    first = net.op("Relu", net.conv(x, 3, 16))
    second = net.op("Relu", net.conv(first, 16, 16))
    joined = net.op("Relu", net.op("Add", first, net.conv(second, 16, 16)))
    model = net.model(y=net.op("Softmax", net.dense(net.pooled(joined), 16, 10), axis=-1))
    result = attar.compress(model, calibration=[images(16)], target="microcontroller")
    assert result.report.verdict != "unchanged"
    assert any(n.op_type == "QuantizeLinear" for n in result.model.graph)
    return result


def wanted(model: Any, x: Array) -> Array:
    return np.asarray(OnnxRuntime().open(model)(x)[0])


@pytest.mark.parametrize("framework", ["torch", "tensorflow", "mxnet"])
def test_a_compressed_network_answers_alike_in_every_framework(framework: str, compressed: Result) -> None:
    if importlib.util.find_spec(framework) is None:
        pytest.skip(f"{framework} is not installed")
    registry = attar.default_registry()
    exported = registry.get_adapter(framework).write(compressed.model, registry=registry)
    x = images(32, 1)
    ours, theirs = exported.run({"image": x})[0], wanted(compressed.model, x)
    step = 1 / 256  # of the quantized softmax
    assert np.abs(ours - theirs).max() <= 2 * step + 1e-6
    assert float((np.abs(ours - theirs) < 1e-6).mean()) > 0.9


@pytest.mark.skipif(importlib.util.find_spec("tensorflow") is None, reason="runs in TensorFlow's interpreter")
def test_a_compressed_network_as_a_file_of_integers(compressed: Result, tmp_path: Path) -> None:
    import tensorflow as tf

    done = attar.convert(compressed.model, "tflite", tmp_path / "net.tflite", inputs=images(4, 2))
    assert [n for n in done.notes if "in float" in n] == []
    interpreter = tf.lite.Interpreter(str(tmp_path / "net.tflite"))
    details = (*interpreter.get_input_details(), *interpreter.get_output_details())
    assert {d["dtype"] for d in details} == {np.int8}

    again = attar.load(tmp_path / "net.tflite", float_io=True)
    x = images(32, 1)
    assert np.abs(wanted(again, x) - wanted(compressed.model, x)).max() <= 2 / 256 + 1e-6


@pytest.mark.slow
@pytest.mark.skipif(importlib.util.find_spec("tensorflow") is None, reason="reads Keras' files")
def test_a_trained_residual_network_from_h5_to_integers(attar_data: Path, monkeypatch: Any) -> None:
    monkeypatch.syspath_prepend(str(attar_data))
    import load

    x, labels = (a[:1000] for a in load.cifar10("dev"))
    x = x.astype(np.float32)
    model = attar.load(attar_data / "cifar_models" / "resnet8_cifar10jpeg.h5")
    result = attar.compress(model, calibration=x[-200:], target="microcontroller")
    registry = attar.default_registry()
    exported = registry.get_adapter("tflite").write(result.model, registry=registry, layout="channels_last")
    name = result.model.graph.inputs[0].name
    got = exported.run({name: x})[0].argmax(1)
    assert (got == wanted(result.model, x).argmax(1)).mean() >= 0.999
    assert (got == labels).mean() >= (wanted(model, x).argmax(1) == labels).mean() - 0.01
    assert len(exported.native) < 100_000
