"""Networks to read, and comparing what was read with PyTorch itself."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import pytest

torch = pytest.importorskip("torch")
nn, functional = torch.nn, torch.nn.functional

from attar.adapters import Loaded  # noqa: E402
from attar.runtime import OnnxRuntime  # noqa: E402
from attar_torch.adapter import TorchAdapter  # noqa: E402

ADAPTER = TorchAdapter()


def parity(loaded: Loaded, feeds: Mapping[str, np.ndarray] | None = None, rel: float = 1e-4) -> None:
    """Every output equals torch's within `rel` of its largest magnitude."""
    feeds = dict(loaded.example or {}) if feeds is None else feeds
    assert loaded.reference is not None
    expected = loaded.reference(feeds)
    got = OnnxRuntime().open(loaded.model).run(feeds)
    assert len(expected) == len(got) == len(loaded.model.graph.outputs)
    for a, b in zip(expected, got, strict=True):
        assert a.shape == b.shape
        assert a.dtype == b.dtype
        error = np.abs(a.astype(np.float64) - b.astype(np.float64)).max()
        assert error <= rel * max(np.abs(a.astype(np.float64)).max(), 1e-6)


def at(loaded: Loaded, **sizes: int) -> dict[str, np.ndarray]:
    """The example with its dynamic dimensions set to `sizes`."""
    out = {}
    for spec in OnnxRuntime().open(loaded.model).inputs:
        array = loaded.example[spec.name]
        shape = [
            sizes.get(d, n) if isinstance(d, str) else n for d, n in zip(spec.shape, array.shape, strict=True)
        ]
        out[spec.name] = np.resize(array, shape).astype(array.dtype)
    return out


def shapes(loaded: Loaded) -> dict[str, list[int | str]]:
    return {s.name: list(s.shape) for s in OnnxRuntime().open(loaded.model).inputs}


class UNet(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.down, self.norm = nn.Conv2d(3, 8, 3, padding=1), nn.BatchNorm2d(8)
        self.mid, self.up = nn.Conv2d(8, 16, 3, padding=1), nn.ConvTranspose2d(16, 8, 2, 2)
        self.out = nn.Conv2d(16, 2, 3, padding=1)

    def forward(self, x):
        a = functional.relu(self.norm(self.down(x)))
        return self.out(torch.cat([a, self.up(functional.relu(self.mid(functional.max_pool2d(a, 2))))], 1))


class Encoder(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.layers = nn.TransformerEncoder(nn.TransformerEncoderLayer(32, 4, 64, batch_first=True), 2)

    def forward(self, x, mask=None):
        return self.layers(x, src_key_padding_mask=mask)


class Recurrent(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.lstm = nn.LSTM(8, 16, 2, batch_first=True, bidirectional=True)
        self.gru, self.head = nn.GRU(32, 12, batch_first=True), nn.Linear(12, 3)

    def forward(self, x):
        y, (h, _) = self.lstm(x)
        z, _ = self.gru(y)
        return self.head(z[:, -1]), h


class Tied(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.embed, self.mid = nn.Embedding(50, 16), nn.Linear(16, 16)
        self.head = nn.Linear(16, 50, bias=False)
        self.head.weight = self.embed.weight

    def forward(self, input_ids):
        return self.head(torch.tanh(self.mid(self.embed(input_ids))))
