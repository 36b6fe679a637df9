"""Networks written by hand in PyTorch, for training the same network by hand and as an IR."""

from __future__ import annotations

import pytest

torch = pytest.importorskip("torch")
nn, functional = torch.nn, torch.nn.functional


class Residual(nn.Module):
    """Convolutions with BatchNorm, a residual sum, depthwise and strided layers."""

    def __init__(self) -> None:
        super().__init__()
        self.conv1, self.bn1 = nn.Conv2d(3, 8, 3, padding=1, bias=False), nn.BatchNorm2d(8)
        self.conv2, self.bn2 = nn.Conv2d(8, 8, 3, padding=1, bias=False), nn.BatchNorm2d(8, momentum=0.2)
        self.deep, self.bn3 = nn.Conv2d(8, 8, 3, 2, 1, groups=8, bias=False), nn.BatchNorm2d(8, eps=1e-3)
        self.head = nn.Linear(8, 5)

    def forward(self, x):
        x = functional.relu(self.bn1(self.conv1(x)))
        x = functional.relu(self.bn2(self.conv2(x)) + x)
        return self.head(functional.relu6(self.bn3(self.deep(x))).mean((2, 3)))


class Mlp(nn.Module):
    """Dense layers, a PReLU of one slope, LayerNorm."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.slope, self.norm = nn.Linear(10, 16), nn.PReLU(), nn.LayerNorm(16)
        self.last = nn.Linear(16, 3)

    def forward(self, x):
        return self.last(self.norm(self.slope(self.first(x))))


class Transformer(nn.Module):
    """Embedding, positions, self-attention, and a head that shares the embedding."""

    def __init__(self, words: int = 20, width: int = 16, heads: int = 4) -> None:
        super().__init__()
        self.embedding = nn.Embedding(words, width)
        self.position = nn.Parameter(torch.randn(6, width) / 4)
        self.qkv, self.out = nn.Linear(width, 3 * width), nn.Linear(width, width)
        self.wide, self.narrow = nn.Linear(width, 2 * width), nn.Linear(2 * width, width)
        self.norm1, self.norm2 = nn.LayerNorm(width), nn.LayerNorm(width)
        self.heads = heads

    def forward(self, tokens):
        x = self.embedding(tokens) + self.position
        n, length, width = x.shape
        parts = self.qkv(x).reshape(n, length, 3, self.heads, width // self.heads).permute(2, 0, 3, 1, 4)
        q, k, v = parts[0], parts[1], parts[2]
        weights = (q @ k.transpose(-2, -1) / (width // self.heads) ** 0.5).softmax(-1)
        x = self.norm1(x + self.out((weights @ v).transpose(1, 2).reshape(n, length, width)))
        x = self.norm2(x + self.narrow(functional.gelu(self.wide(x))))
        return x @ self.embedding.weight.T


class Recurrent(nn.Module):
    """A bidirectional LSTM and a GRU."""

    def __init__(self) -> None:
        super().__init__()
        self.lstm = nn.LSTM(6, 8, batch_first=True, bidirectional=True)
        self.gru, self.head = nn.GRU(16, 5, batch_first=True), nn.Linear(5, 3)

    def forward(self, x):
        y, _ = self.lstm(x)
        z, _ = self.gru(y)
        return self.head(z[:, -1])


def cases():
    """name -> (module, batch, targets)."""
    torch.manual_seed(0)
    return {
        "residual": (Residual(), torch.randn(8, 3, 8, 8), torch.randn(8, 5)),
        "mlp": (Mlp(), torch.randn(8, 10), torch.randn(8, 3)),
        "transformer": (Transformer(), torch.randint(0, 20, (4, 6)), torch.randn(4, 6, 20)),
        "recurrent": (Recurrent(), torch.randn(4, 7, 6), torch.randn(4, 3)),
    }
