"""Writing models of the IR in TensorFlow, and comparing them with ONNX Runtime."""

from __future__ import annotations

from collections import Counter
from typing import Any

import numpy as np
import onnx_ir as ir
import pytest

pytest.importorskip("tensorflow")

from attar.adapters import Exported
from attar.registry import default_registry
from attar.runtime import OnnxRuntime
from attar.testing.build import Net
from attar_tensorflow.writing import write_model


def write(model: ir.Model, **options: Any) -> Exported:
    return write_model(model, registry=default_registry(), **options)


def agrees(exported: Exported, model: ir.Model, feeds: dict[str, np.ndarray], rel: float = 1e-5) -> None:
    """Every output equals ONNX Runtime's: real numbers within `rel` of the largest one, others exactly.

    Unless told otherwise that is a hundred roundings of float32, for layers that sum in another order.
    """
    expected = OnnxRuntime().open(model).run(feeds)
    got = exported.run(feeds)
    assert len(got) == len(expected)
    for a, b in zip(got, expected, strict=True):
        assert (a.shape, a.dtype) == (b.shape, b.dtype)
        if b.dtype.kind != "f":
            np.testing.assert_array_equal(a, b)
            continue
        error = np.abs(a.astype(np.float64) - b.astype(np.float64)).max(initial=0)
        assert error <= rel * np.abs(b.astype(np.float64)).max(initial=0)


def layers(exported: Exported) -> Counter[str]:
    return Counter(type(layer).__name__ for layer in exported.native.layers)


def image_net() -> ir.Model:
    """Convolution, BatchNormalization, a residual, pooling and a classifier, with PyTorch's kind of names."""
    net = Net("images", seed=3)
    x = net.input("image", "batch", 3, 16, 16)
    w = net.weight(8, 3, 3, 3, name="stem.conv.weight", gain=1.4)
    y = net.op("Conv", x, w, net.vector(8, -0.1, 0.1, "stem.conv.bias"), pads=[1, 1, 1, 1], strides=[2, 2])
    y = net.op("Relu", net.batch_norm(y, 8))
    y = net.op("Add", y, net.conv(y, 8, 8))
    return net.model(logits=net.dense(net.pooled(net.op("Relu", y)), 8, 5))
