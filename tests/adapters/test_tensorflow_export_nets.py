"""Real networks and recurrent layers, from the IR to Keras."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

pytest.importorskip("tensorflow")
from tensorflow_writing import agrees, layers, write

from attar.testing.build import Net


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
