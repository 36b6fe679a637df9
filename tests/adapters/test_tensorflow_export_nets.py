"""Real networks and recurrent layers, from the IR to Keras."""

from __future__ import annotations

from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import pytest

tf = pytest.importorskip("tensorflow")
import onnx_ir as ir  # noqa: E402

from attar.adapters import Exported  # noqa: E402
from attar.registry import default_registry  # noqa: E402
from attar.runtime import OnnxRuntime  # noqa: E402
from attar.testing.build import Net  # noqa: E402
from attar_tensorflow.writing import write_model  # noqa: E402


def write(model: ir.Model, **options: Any) -> Exported:
    return write_model(model, registry=default_registry(), **options)


def agrees(exported: Exported, model: ir.Model, feeds: dict[str, np.ndarray], rel: float = 1e-4) -> None:
    """Every output equals ONNX Runtime's within `rel` of its largest magnitude."""
    expected = OnnxRuntime().open(model).run(feeds)
    got = exported.run(feeds)
    assert len(got) == len(expected)
    for a, b in zip(got, expected, strict=True):
        assert (a.shape, a.dtype) == (b.shape, b.dtype)
        error = np.abs(a.astype(np.float64) - b.astype(np.float64)).max(initial=0)
        assert error <= rel * max(np.abs(b.astype(np.float64)).max(initial=0), 1e-6)


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


def test_squeezenet(attar_data: Path) -> None:
    import attar

    model = attar.load(attar_data / "squeezenet11" / "squeezenet11_fp32.onnx")
    x = np.random.default_rng(0).normal(size=(1, 3, 224, 224)).astype("f") * 50
    agrees(write(model), model, {"data_0": x})


@pytest.mark.parametrize("kind", ["LSTM", "GRU", "RNN"])
@pytest.mark.parametrize("direction", ["forward", "reverse", "bidirectional"])
def test_plain_recurrent_nodes_are_keras_layers(kind: str, direction: str) -> None:
    net = Net("recurrent", seed=2)
    count, gates = 1 + (direction == "bidirectional"), {"LSTM": 4, "GRU": 3, "RNN": 1}[kind]
    x = net.input("x", "batch", 7, 5)
    weights = [
        net.weight(count, gates * 6, 5),
        net.weight(count, gates * 6, 6),
        net.weight(count, gates * 12),
    ]
    turned = net.op("Transpose", x, perm=[1, 0, 2])
    outs = net.ops(kind, turned, *weights, count=2, hidden_size=6, direction=direction)
    model = net.model(y=outs[0], h=outs[1])
    exported = write(model)
    assert any(k in layers(exported) for k in (kind, "SimpleRNN", "Bidirectional"))
    for batch in (1, 3):
        x_now = np.random.default_rng(batch).normal(size=(batch, 7, 5)).astype("f")
        agrees(exported, model, {"x": x_now})
