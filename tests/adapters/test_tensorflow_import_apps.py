"""Reading Keras's own networks, and making them smaller: nothing of TensorFlow's layout is in the way."""

from __future__ import annotations

import time
from typing import Any

import numpy as np
import pytest

tf = pytest.importorskip("tensorflow")
keras = pytest.importorskip("keras")

from tensorflow_import_nets import ADAPTER, kinds, noise, parity, registry, shake  # noqa: E402

import attar  # noqa: E402
from attar import graph  # noqa: E402

slow = pytest.mark.slow

# Name -> size of the image, and the number of normalizations that Keras has in it.
APPLICATIONS = [
    pytest.param("MobileNetV2", 96, 52),
    pytest.param("MobileNetV3Small", 96, 34),
    pytest.param("EfficientNetB0", 64, 49, marks=slow),
    pytest.param("EfficientNetV2B0", 64, 59, marks=slow),
    pytest.param("ResNet50", 64, 53, marks=slow),
    pytest.param("ResNet50V2", 64, 49, marks=slow),
    pytest.param("DenseNet121", 64, 121, marks=slow),
    pytest.param("InceptionV3", 96, 94, marks=slow),
    pytest.param("Xception", 96, 40, marks=slow),
    pytest.param("NASNetMobile", 96, 192, marks=slow),
]


def application(name: str, size: int, **options: Any) -> Any:
    keras.utils.set_random_seed(0)
    return shake(getattr(keras.applications, name)(weights=None, input_shape=(size, size, 3), **options))


@pytest.mark.parametrize(("name", "size", "norms"), APPLICATIONS)
def test_applications(name: str, size: int, norms: int) -> None:
    model = application(name, size, classifier_activation=None)
    loaded = ADAPTER.load(model, inputs=noise(2, size, size, 3))
    parity(loaded, rel=1e-4)  # through hundreds of layers
    found = kinds(loaded)
    assert found["Transpose"] == 1
    assert loaded.model.graph.inputs[0].uses()[0].node.op_type == "Transpose"
    assert found["BatchNormalization"] == norms
    layers = [layer for layer in model.layers if type(layer).__name__.endswith(("Conv2D", "DepthwiseConv2D"))]
    split = sum(type(layer).__name__ == "SeparableConv2D" for layer in layers)
    assert found["Conv"] == len(layers) + split
    assert found["Sigmoid"] == len({n.inputs[0] for n in loaded.model.graph if n.op_type == "Sigmoid"})


def test_all_normalizations_fold_and_every_convolution_is_quantized() -> None:
    size = 64
    model = application("MobileNetV2", size)
    result = attar.compress(
        ADAPTER.load(model).model, registry=registry(), calibration=noise(16, size, size, 3)
    )
    convs = [n for n in graph.all_nodes(result.model) if n.op_type == "Conv"]
    assert len(convs) == 52
    assert all(n.inputs[1].producer().op_type == "DequantizeLinear" for n in convs)
    kept = {n.op_type for n in graph.all_nodes(result.model)}
    assert not kept & {"BatchNormalization", "Mul", "Sub", "Pad"}


@slow
def test_reading_takes_no_longer_than_keras_own_exporter(tmp_path: Any) -> None:
    model = application("MobileNetV2", 96)
    ADAPTER.load(model)
    begin = time.process_time()
    ADAPTER.load(model)
    ours = time.process_time() - begin
    begin = time.process_time()
    model.export(tmp_path / "m", verbose=False)  # a SavedModel, which is where every other way begins
    theirs = time.process_time() - begin
    assert ours <= max(theirs, 2.0)


@slow
def test_a_network_that_normalizes_layers() -> None:
    model = application("ConvNeXtTiny", 64, classifier_activation=None)
    loaded = ADAPTER.load(model, inputs=noise(2, 64, 64, 3))
    parity(loaded, rel=1e-4)
    assert kinds(loaded)["LayerNormalization"] == 23
    assert kinds(loaded)["Gelu"] == 18
    assert np.isfinite(loaded.reference(loaded.example)[0]).all()  # type: ignore[misc, arg-type]
