"""Small networks of all families written in PyTorch, for pruning: name -> (module, example inputs)."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional

Made = tuple[nn.Module, tuple[np.ndarray, ...]]
NETS: dict[str, Callable[[], Made]] = {}


def _named(name: str) -> Callable[[Callable[[], Made]], Callable[[], Made]]:
    def add(make: Callable[[], Made]) -> Callable[[], Made]:
        NETS[name] = make
        return make

    return add


def images(size: int = 16) -> tuple[np.ndarray, ...]:
    return (np.random.default_rng(0).standard_normal((2, 3, size, size)).astype(np.float32),)


def tokens(length: int = 6, count: int = 32) -> tuple[np.ndarray, ...]:
    return (np.random.default_rng(0).integers(0, count, (2, length)),)


def block(
    i: int, o: int, k: int = 3, stride: int = 1, *, groups: int = 1, act: Any = nn.ReLU
) -> nn.Sequential:
    conv = nn.Conv2d(i, o, k, stride, k // 2, groups=groups, bias=False)
    return nn.Sequential(conv, nn.BatchNorm2d(o), *([act()] if act else []))


def head(c: int, classes: int = 5) -> nn.Sequential:
    return nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(c, classes))


class Plus(nn.Module):
    """x + inner(x), or with another way for x."""

    def __init__(self, inner: nn.Module, way: nn.Module | None = None, act: nn.Module | None = None) -> None:
        super().__init__()
        self.inner, self.way, self.act = inner, way or nn.Identity(), act or nn.Identity()

    def forward(self, x: Tensor) -> Tensor:
        return self.act(self.way(x) + self.inner(x))


class Joined(nn.Module):
    """What several branches make, one behind the other."""

    def __init__(self, *branches: nn.Module) -> None:
        super().__init__()
        self.branches = nn.ModuleList(branches)

    def forward(self, x: Tensor) -> Tensor:
        return torch.cat([branch(x) for branch in self.branches], 1)


class Excite(nn.Module):
    """Squeeze and excitation."""

    def __init__(self, c: int, gate: nn.Module) -> None:
        super().__init__()
        self.down, self.up, self.gate = nn.Conv2d(c, c // 4, 1), nn.Conv2d(c // 4, c, 1), gate

    def forward(self, x: Tensor) -> Tensor:
        s = functional.relu(self.down(x.mean((2, 3), keepdim=True)))
        return x * self.gate(self.up(s))


@_named("MobileNetV1")
def mobilenet_v1() -> Made:
    widths = ((8, 16), (16, 16), (16, 32))
    body = [part for i, o in widths for part in (block(i, i, groups=i), block(i, o, 1))]
    return nn.Sequential(block(3, 8, stride=2), *body, head(32)), images()


def inverted(i: int, o: int, act: Any, *, k: int = 3, gate: nn.Module | None = None) -> nn.Module:
    wide = 4 * i
    squeeze = [Excite(wide, gate)] if gate is not None else []
    layers = (block(i, wide, 1, act=act), block(wide, wide, k, groups=wide, act=act), *squeeze)
    inner = nn.Sequential(*layers, block(wide, o, 1, act=None))
    return Plus(inner) if i == o else inner


@_named("MobileNetV2")
def mobilenet_v2() -> Made:
    steps = [inverted(i, o, nn.ReLU6) for i, o in ((8, 8), (8, 12), (12, 12))]
    return nn.Sequential(block(3, 8), *steps, block(12, 32, 1), head(32)), images()


@_named("MobileNetV3")
def mobilenet_v3() -> Made:
    steps = [inverted(8, o, nn.Hardswish, k=5, gate=nn.Hardsigmoid()) for o in (8, 12)]
    return nn.Sequential(block(3, 8, act=nn.Hardswish), *steps, head(12)), images()


@_named("EfficientNet")
def efficientnet() -> Made:
    steps = [inverted(8, o, nn.SiLU, gate=nn.Sigmoid()) for o in (8, 12)]
    return nn.Sequential(block(3, 8, act=nn.SiLU), *steps, head(12)), images()


def residual(groups: int) -> nn.Sequential:
    steps, c = [], 16
    for o in (16, 32):
        inner = nn.Sequential(block(c, 16, 1), block(16, 16, groups=groups), block(16, o, 1, act=None))
        steps.append(Plus(inner, None if c == o else block(c, o, 1, act=None), nn.ReLU()))
        c = o
    return nn.Sequential(block(3, 16, 7, 2), nn.MaxPool2d(3, 2, 1), *steps, head(c))


@_named("ResNet")
def resnet() -> Made:
    return residual(1), images()


@_named("ResNeXt")
def resnext() -> Made:
    return residual(4), images()


@_named("DenseNet")
def densenet() -> Made:
    layers: list[nn.Module] = [block(3, 8)]
    for c in (8, 14, 20):
        new = nn.Sequential(nn.BatchNorm2d(c), nn.ReLU(), nn.Conv2d(c, 6, 3, padding=1, bias=False))
        layers.append(Joined(nn.Identity(), new))
    return nn.Sequential(*layers, nn.BatchNorm2d(26), nn.ReLU(), head(26)), images()


@_named("SqueezeNet")
def squeezenet() -> Made:
    def conv(i: int, o: int, k: int) -> nn.Module:
        return nn.Sequential(nn.Conv2d(i, o, k, padding=k // 2), nn.ReLU())

    fires = [
        nn.Sequential(conv(i, 6, 1), Joined(conv(6, o, 1), conv(6, o, 3))) for i, o in ((8, 8), (16, 12))
    ]
    last = nn.Sequential(nn.Conv2d(24, 5, 1), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten())
    return nn.Sequential(conv(3, 8, 3), nn.MaxPool2d(2), *fires, nn.Dropout(), last), images()


class Shuffle(nn.Module):
    """The channel shuffle: groups and the places in them change about."""

    def __init__(self, groups: int) -> None:
        super().__init__()
        self.groups = groups

    def forward(self, x: Tensor) -> Tensor:
        n, c, h, w = x.shape
        return x.view(n, self.groups, c // self.groups, h, w).transpose(1, 2).contiguous().view(n, c, h, w)


class Halved(nn.Module):
    """ShuffleNetV2: one half goes on as it is."""

    def __init__(self, c: int) -> None:
        super().__init__()
        h = c // 2
        self.right = nn.Sequential(block(h, h, 1), block(h, h, groups=h, act=None), block(h, h, 1))
        self.shuffle = Shuffle(2)

    def forward(self, x: Tensor) -> Tensor:
        left, right = x.chunk(2, 1)
        return self.shuffle(torch.cat((left, self.right(right)), 1))


@_named("ShuffleNetV1")
def shufflenet_v1() -> Made:
    inner = nn.Sequential(
        block(24, 24, 1, groups=3), Shuffle(3), block(24, 24, groups=24, act=None),
        block(24, 24, 1, groups=3, act=None),
    )  # fmt: skip
    return nn.Sequential(block(3, 24), Plus(inner, act=nn.ReLU()), head(24)), images()


@_named("ShuffleNetV2")
def shufflenet_v2() -> Made:
    return nn.Sequential(block(3, 16), Halved(16), Halved(16), head(16)), images()


@_named("Inception")
def inception() -> Made:
    pool = nn.Sequential(nn.AvgPool2d(3, 1, 1), block(12, 4, 1))
    tall = nn.Sequential(nn.Conv2d(6, 6, (1, 7), padding=(0, 3)), nn.ReLU())
    b = nn.Sequential(block(12, 6, 1), tall, Joined(block(6, 5), block(6, 5, 1)))
    return nn.Sequential(block(3, 12), Joined(block(12, 8, 1), b, pool), head(22)), images()


class UNet(nn.Module):
    """Two levels down and up again, upsampled once by a transposed convolution and once by resizing."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second, self.third = block(3, 8), block(8, 12), block(12, 16)
        self.up = nn.ConvTranspose2d(16, 12, 2, 2)
        self.fourth, self.fifth = block(24, 12), block(20, 8)
        self.last = nn.Conv2d(8, 3, 1)

    def forward(self, x: Tensor) -> Tensor:
        a = self.first(x)
        b = self.second(functional.max_pool2d(a, 2))
        c = self.third(functional.max_pool2d(b, 2))
        b = self.fourth(torch.cat((b, self.up(c)), 1))
        up = functional.interpolate(b, scale_factor=2, mode="bilinear", align_corners=False)
        return self.last(self.fifth(torch.cat((a, up), 1)))


@_named("U-Net")
def unet() -> Made:
    return UNet(), images()


class Detector(nn.Module):
    """A feature pyramid of two levels; scores and boxes of both, with a head that both share."""

    def __init__(self) -> None:
        super().__init__()
        self.fine, self.coarse = block(3, 12), block(12, 16, stride=2)
        self.lateral = nn.ModuleList([nn.Conv2d(12, 8, 1), nn.Conv2d(16, 8, 1)])
        self.head, self.scores, self.boxes = block(8, 8), nn.Conv2d(8, 6, 3, padding=1), nn.Conv2d(8, 8, 1)

    def forward(self, x: Tensor) -> tuple[Tensor, ...]:
        fine = self.fine(x)
        coarse = self.lateral[1](self.coarse(fine))
        fine = self.lateral[0](fine) + functional.interpolate(coarse, size=fine.shape[2:], mode="nearest")
        found = []
        for level in (fine, coarse):
            y = self.head(level)
            found.append(self.scores(y).permute(0, 2, 3, 1).reshape(x.shape[0], -1, 3).sigmoid())
            found.append(self.boxes(y).permute(0, 2, 3, 1).reshape(x.shape[0], -1, 4))
        return torch.cat(found[::2], 1), torch.cat(found[1::2], 1), fine.amax((2, 3))


@_named("detector")
def detector() -> Made:
    return Detector(), images()


class Attention(nn.Module):
    def __init__(self, c: int, h: int, *, fused: bool, causal: bool = False) -> None:
        super().__init__()
        self.h, self.causal, self.fused = h, causal, fused
        self.makers = nn.ModuleList([nn.Linear(c, 3 * c)] if fused else [nn.Linear(c, c) for _ in range(3)])
        self.out = nn.Linear(c, c)

    def forward(self, x: Tensor) -> Tensor:
        n, t, c = x.shape
        if self.fused:
            q, k, v = self.makers[0](x).reshape(n, t, 3, self.h, c // self.h).permute(2, 0, 3, 1, 4)
        else:
            q, k, v = (m(x).view(n, t, self.h, c // self.h).transpose(1, 2) for m in self.makers)
        y = functional.scaled_dot_product_attention(q, k, v, is_causal=self.causal)
        return self.out(y.transpose(1, 2).reshape(n, t, c))


def layer(c: int, **options: bool) -> nn.Sequential:
    attention = Plus(nn.Sequential(nn.LayerNorm(c), Attention(c, 4, **options)))
    wide = nn.Sequential(nn.LayerNorm(c), nn.Linear(c, 2 * c), nn.GELU(), nn.Linear(2 * c, c))
    return nn.Sequential(attention, Plus(wide))


class ViT(nn.Module):
    """Patches, a class token, positions, two layers with fused projections."""

    def __init__(self) -> None:
        super().__init__()
        self.patches, self.token = nn.Conv2d(3, 16, 4, 4), nn.Parameter(torch.randn(1, 1, 16))
        self.places = nn.Parameter(torch.randn(1, 17, 16))
        self.layers, self.last = nn.Sequential(layer(16, fused=True), layer(16, fused=True)), nn.LayerNorm(16)
        self.head = nn.Linear(16, 5)

    def forward(self, x: Tensor) -> Tensor:
        y = self.patches(x).flatten(2).transpose(1, 2)
        y = torch.cat((self.token.expand(x.shape[0], -1, -1), y), 1) + self.places
        return self.head(self.last(self.layers(y))[:, 0])


@_named("ViT")
def vit() -> Made:
    return ViT(), images()


class Bert(nn.Module):
    """PyTorch's own encoder layers behind embeddings, and a pooler."""

    def __init__(self) -> None:
        super().__init__()
        self.words, self.places = nn.Embedding(32, 16), nn.Embedding(6, 16)
        one = nn.TransformerEncoderLayer(16, 4, 32, 0.1, functional.gelu, batch_first=True)
        self.encoder = nn.TransformerEncoder(one, 2, enable_nested_tensor=False)
        self.pooler, self.head = nn.Linear(16, 16), nn.Linear(16, 3)

    def forward(self, x: Tensor) -> Tensor:
        y = self.encoder(self.words(x) + self.places(torch.arange(x.shape[1])))
        return self.head(torch.tanh(self.pooler(y[:, 0])))


@_named("BERT-like")
def bert() -> Made:
    return Bert(), tokens()


class GPT(nn.Module):
    """Causal attention; the embedding is the last layer's weight, too."""

    def __init__(self) -> None:
        super().__init__()
        self.words, self.places = nn.Embedding(32, 16), nn.Parameter(torch.randn(1, 6, 16))
        self.layers = nn.Sequential(layer(16, fused=False, causal=True), layer(16, fused=False, causal=True))
        self.last, self.head = nn.LayerNorm(16), nn.Linear(16, 32, bias=False)
        self.head.weight = self.words.weight

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.last(self.layers(self.words(x) + self.places)))


@_named("GPT-like, shared embedding")
def gpt() -> Made:
    return GPT(), tokens()


class Recurrent(nn.Module):
    def __init__(self, cell: Any, layers: int = 2, *, both: bool = False) -> None:
        super().__init__()
        self.words, self.before = nn.Embedding(32, 10), nn.Linear(10, 12)
        self.cell = cell(12, 14, layers, batch_first=True, bidirectional=both)
        self.head = nn.Sequential(nn.Linear(28 if both else 14, 9), nn.ReLU(), nn.Linear(9, 3))

    def forward(self, x: Tensor) -> Tensor:
        y, _ = self.cell(torch.relu(self.before(self.words(x))))
        return self.head(y[:, -1])


@_named("LSTM")
def lstm() -> Made:
    return Recurrent(nn.LSTM), tokens()


@_named("GRU")
def gru() -> Made:
    return Recurrent(nn.GRU), tokens()


@_named("BiLSTM")
def bilstm() -> Made:
    return Recurrent(nn.LSTM, 1, both=True), tokens()


class Mixed(nn.Module):
    """A perceptron over the second axis."""

    def __init__(self, inner: nn.Module) -> None:
        super().__init__()
        self.inner = inner

    def forward(self, x: Tensor) -> Tensor:
        return self.inner(x.transpose(1, 2)).transpose(1, 2)


class Patches(nn.Module):
    def __init__(self, c: int) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, c, 4, 4)

    def forward(self, x: Tensor) -> Tensor:
        return self.conv(x).flatten(2).transpose(1, 2)


class Mean(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return x.mean(1)


@_named("MLP-Mixer")
def mixer() -> Made:
    def wide(c: int, h: int) -> nn.Module:
        return nn.Sequential(nn.Linear(c, h), nn.GELU(), nn.Linear(h, c))

    layers = []
    for _ in range(2):
        layers.append(Plus(nn.Sequential(nn.LayerNorm(12), Mixed(wide(16, 20)))))
        layers.append(Plus(nn.Sequential(nn.LayerNorm(12), wide(12, 24))))
    return nn.Sequential(Patches(12), *layers, nn.LayerNorm(12), Mean(), nn.Linear(12, 5)), images()


@_named("VGG")
def vgg() -> Made:
    layers = (
        nn.Conv2d(3, 8, 3, padding=1),
        nn.PReLU(8),
        nn.MaxPool2d(2),
        nn.Conv2d(8, 12, 3),
        nn.LeakyReLU(),
    )
    return nn.Sequential(*layers, nn.Flatten(), nn.Linear(12 * 36, 20), nn.ReLU(), nn.Linear(20, 5)), images()
