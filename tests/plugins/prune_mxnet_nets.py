"""Networks of all families in MXNet's Gluon, for pruning: name -> (block, example inputs)."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np

from attar_mxnet.reading.live import mxnet

Made = tuple[Any, tuple[np.ndarray, ...]]
# Name -> Gluon's own network, and the size of its images.
ZOO = {
    "MobileNetV1": ("mobilenet0_25", 64),
    "MobileNetV2": ("mobilenet_v2_0_25", 64),
    "ResNet": ("resnet18_v1", 64),
    "ResNetV2": ("resnet18_v2", 64),
    "VGG": ("vgg11_bn", 32),
    "SqueezeNet": ("squeezenet1_1", 224),
    "DenseNet": ("densenet121", 224),
    "Inception": ("inception_v3", 299),
}


def zoo(name: str) -> Made:
    kind, size = ZOO[name]
    return _started(getattr(mxnet().gluon.model_zoo.vision, kind)(classes=10), _images(size))


def _images(size: int = 16) -> np.ndarray:
    return np.random.default_rng(0).uniform(-1, 1, (1, 3, size, size)).astype(np.float32)


def _tokens() -> np.ndarray:
    return np.random.default_rng(0).integers(0, 32, (2, 6)).astype(np.float32)


def _started(net: Any, x: np.ndarray) -> Made:
    """`net` run once, with statistics far from their initial 0 and 1."""
    mx, rng = mxnet(), np.random.default_rng(0)
    mx.random.seed(0)
    net.initialize(mx.init.Xavier())
    net(mx.nd.array(x))
    ranges = {"gamma": (0.5, 1.5), "beta": (-0.5, 0.5), "mean": (-0.5, 0.5), "var": (0.5, 2.0)}
    for name, parameter in net.collect_params().items():
        for kind, (low, high) in ranges.items():
            if name.endswith(kind):
                parameter.set_data(mx.nd.array(rng.uniform(low, high, parameter.shape)))
    return net, (x,)


def recurrent(cell: str) -> Made:
    mx = mxnet()
    nn = mx.gluon.nn

    class Recurrent(mx.gluon.HybridBlock):  # type: ignore[name-defined,misc]
        def __init__(self) -> None:
            super().__init__()
            with self.name_scope():
                self.words, self.head = nn.Embedding(32, 12), nn.Dense(3)
                self.cell = getattr(mx.gluon.rnn, cell)(14, 2, layout="NTC")

        def hybrid_forward(self, F: Any, x: Any) -> Any:  # noqa: N803
            return self.head(F.slice_axis(self.cell(self.words(x)), axis=1, begin=5, end=6))

    return _started(Recurrent(), _tokens())


def transformer(*, causal: bool) -> Made:
    """An encoder with a classifier, or causal with the embedding as the last layer's weight."""
    mx = mxnet()
    nn = mx.gluon.nn

    class Transformer(mx.gluon.HybridBlock):  # type: ignore[name-defined,misc]
        def __init__(self) -> None:
            super().__init__()
            with self.name_scope():
                self.words = nn.Embedding(32, 16)
                self.qkv, self.out = nn.Dense(48, flatten=False), nn.Dense(16, flatten=False)
                self.wide, self.narrow = nn.Dense(32, flatten=False), nn.Dense(16, flatten=False)
                self.norms = [nn.LayerNorm() for _ in range(3)]
                for norm in self.norms:
                    self.register_child(norm)
                shared = {"params": self.words.params, "use_bias": False} if causal else {}
                self.head = nn.Dense(32 if causal else 3, flatten=False, in_units=16, **shared)

        def hybrid_forward(self, F: Any, x: Any) -> Any:  # noqa: N803
            x = self.words(x)
            made = F.split(self.qkv(self.norms[0](x)), num_outputs=3, axis=2)
            q, k, v = (F.transpose(F.reshape(m, (0, 0, 4, 4)), (0, 2, 1, 3)) for m in made)
            scores = F.linalg_gemm2(q, k, transpose_b=True) / 2
            if causal:
                places = F.arange(6)
                later = F.broadcast_greater(F.reshape(places, (1, 1, 1, 6)), F.reshape(places, (1, 1, 6, 1)))
                scores = F.broadcast_add(scores, -1e9 * later)
            y = F.linalg_gemm2(F.softmax(scores), v)
            x = x + self.out(F.reshape(F.transpose(y, (0, 2, 1, 3)), (0, 0, -3)))
            x = x + self.narrow(F.LeakyReLU(self.wide(self.norms[1](x)), act_type="gelu"))
            return self.head(self.norms[2](x) if causal else F.mean(self.norms[2](x), axis=1))

    return _started(Transformer(), _tokens())


def unet() -> Made:
    mx = mxnet()
    nn = mx.gluon.nn

    class UNet(mx.gluon.HybridBlock):  # type: ignore[name-defined,misc]
        def __init__(self) -> None:
            super().__init__()
            with self.name_scope():
                self.first, self.second = nn.Conv2D(8, 3, padding=1), nn.Conv2D(12, 3, padding=1)
                self.norm, self.up = nn.BatchNorm(), nn.Conv2DTranspose(8, 2, strides=2)
                self.third, self.last = nn.Conv2D(8, 3, padding=1), nn.Conv2D(3, 1)

        def hybrid_forward(self, F: Any, x: Any) -> Any:  # noqa: N803
            a = F.relu(self.norm(self.first(x)))
            b = F.relu(self.second(F.Pooling(a, kernel=(2, 2), stride=(2, 2), pool_type="max")))
            return self.last(F.relu(self.third(F.concat(a, self.up(b), dim=1))))

    return _started(UNet(), _images())


NETS: dict[str, Callable[[], Made]] = {
    "LSTM": lambda: recurrent("LSTM"),
    "GRU": lambda: recurrent("GRU"),
    "BERT-like": lambda: transformer(causal=False),
    "GPT-like, shared embedding": lambda: transformer(causal=True),
    "U-Net": unet,
}
