"""Trained and compressed networks written as MXNet, against ONNX Runtime."""

from __future__ import annotations

import importlib.util
from pathlib import Path

import numpy as np
import pytest
from mxnet_files import near
from mxnet_models import convolutional, encoder, normal, recurrent, same_as_onnx, written

from attar.runtime import OnnxRuntime


def mxnet():
    pytest.importorskip("numpy")
    if not hasattr(np, "bool"):
        np.bool = np.bool_
    return pytest.importorskip("mxnet")


def image(seed: int, *shape: int) -> np.ndarray:
    return np.random.default_rng(seed).uniform(-1, 1, shape).astype(np.float32)


@pytest.fixture
def torch_models(attar_data: Path):
    pytest.importorskip("torch")
    spec = importlib.util.spec_from_file_location("torch_models", attar_data / "torch_models.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.mark.parametrize(
    ("name", "weights", "size"),
    [
        pytest.param("MobileNetV1", "mobilenet_v1_075/mobilenet_v1_075_224.pt", 224, marks=pytest.mark.slow),
        ("CifarResNet", "cifar_models/resnet20_cifar10jpeg.pt", 32),
    ],
)
def test_networks_of_torch(torch_models, attar_data: Path, name: str, weights: str, size: int) -> None:
    import torch

    from attar_torch.adapter import TorchAdapter

    mxnet()
    net = torch_models.CifarResNet(3) if name == "CifarResNet" else torch_models.MobileNetV1()
    net.load_state_dict(torch.load(attar_data / weights, weights_only=True))
    model = TorchAdapter().load(net.eval(), inputs=torch.zeros(2, 3, size, size)).model
    (value,) = model.graph.inputs
    feeds = [{value.name: image(b, b, 3, size, size)} for b in (1, 3)]
    exported = same_as_onnx(model, *feeds)
    initializers = model.graph.initializers.items()
    weights = {n for n, v in initializers if v.const_value.size > 1 and v.dtype.is_floating_point()}
    weights -= {n for n in weights if n.endswith(("running_mean", "running_var"))}  # state, not parameters
    assert set(exported.native.trainable) == weights


def test_squeezenet(attar_data: Path) -> None:
    from attar_onnx.adapter import OnnxAdapter

    mxnet()
    model = OnnxAdapter().load(attar_data / "squeezenet11" / "squeezenet11_fp32.onnx").model
    (value,) = model.graph.inputs
    same_as_onnx(model, {value.name: image(0, 2, 3, 224, 224) * 100})


@pytest.mark.slow
def test_a_compressed_network(torch_models, attar_data: Path) -> None:
    import torch

    import attar
    from attar_torch.adapter import TorchAdapter

    mxnet()
    net = torch_models.CifarResNet(3)
    net.load_state_dict(torch.load(attar_data / "cifar_models/resnet20_cifar10jpeg.pt", weights_only=True))
    model = TorchAdapter().load(net.eval(), inputs=torch.zeros(2, 3, 32, 32)).model
    (value,) = model.graph.inputs
    data = [image(seed, 8, 3, 32, 32) for seed in range(4)]
    result = attar.compress(model, calibration=data)
    assert "DequantizeLinear" in {n.op_type for n in result.model.graph}
    exported, feed = written(result.model), {value.name: data[0]}
    (got,) = exported.run(feed)
    (wanted,) = OnnxRuntime().open(result.model, optimize=False).run(feed)
    # A sum that lies between two codes may be rounded to either.
    assert np.sqrt(np.mean((got - wanted) ** 2)) <= 0.02 * np.sqrt(np.mean(wanted**2))
    assert any("quantized weights" in note for note in exported.notes)
    assert all(a.dtype == np.float32 for a in exported.native.parameters.values())


def test_what_was_written_is_read_again() -> None:
    from attar_mxnet.adapter import MxnetAdapter

    mxnet()
    for model, feed in (
        (convolutional(), {"x": normal(0, 2, 3, 8, 8)}),
        (encoder(), {"ids": np.random.default_rng(0).integers(0, 20, (2, 5))}),
        (recurrent(), {"x": normal(0, 6, 2, 3)}),
    ):
        exported = written(model)
        again = MxnetAdapter().load(exported.native, inputs=feed).model
        (wanted,) = OnnxRuntime().open(model).run(feed)
        (got,) = OnnxRuntime().open(again).run(feed)
        near(got, wanted)
