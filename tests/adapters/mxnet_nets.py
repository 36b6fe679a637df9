"""Gluon networks for the tests, made when asked for: importing this needs no MXNet."""

from __future__ import annotations

from typing import Any

import numpy as np

import attar_mxnet
from attar.registry import Registry
from attar_mxnet.reading.live import mxnet


def with_mxnet() -> Registry:
    """The installed plugins, and the adapter if it is not among them."""
    registry = Registry.discover()
    if "mxnet" not in registry.adapters:
        registry.register(attar_mxnet, name="mxnet")
    return registry


def randomised(net: Any, inputs: Any, seed: int = 0) -> Any:
    """`net` run once, with statistics, scales and shifts far from their initial 0 and 1."""
    mx = mxnet()
    given = inputs if isinstance(inputs, tuple) else (inputs,)
    net.initialize(mx.init.Xavier())
    net(*[mx.nd.array(a, dtype=a.dtype) for a in given])
    rng = np.random.default_rng(seed)
    ranges = {
        "gamma": (0.5, 1.5),
        "beta": (-0.5, 0.5),
        "running_mean": (-0.5, 0.5),
        "running_var": (0.5, 2.0),
    }
    for name, parameter in net.collect_params().items():
        for kind, (low, high) in ranges.items():
            if name.endswith(kind):
                parameter.set_data(mx.nd.array(rng.uniform(low, high, parameter.shape)))
    return net


def encoder(units: int = 32, heads: int = 4) -> Any:
    """Embedding with sliced positions, masked self-attention spelt out in reshape codes, GELU, LayerNorm."""
    mx = mxnet()
    nn = mx.gluon.nn

    class Encoder(mx.gluon.HybridBlock):  # type: ignore[name-defined,misc]
        def __init__(self) -> None:
            super().__init__()
            with self.name_scope():
                self.embedding = nn.Embedding(50, units)
                self.position = self.params.get("position", shape=(1, 64, units), init=mx.init.Normal())
                self.qkv = nn.Dense(3 * units, flatten=False)
                self.out = nn.Dense(units, flatten=False)
                self.wide = nn.Dense(4 * units, flatten=False)
                self.narrow = nn.Dense(units, flatten=False)
                self.first, self.second = nn.LayerNorm(), nn.LayerNorm()

        def hybrid_forward(self, F: Any, tokens: Any, length: Any, position: Any) -> Any:  # noqa: N803
            x = self.embedding(tokens)
            x = F.broadcast_add(x, F.slice_like(position, x, axes=(1,)))
            parts = F.split(self.qkv(x), num_outputs=3, axis=-1)
            q, k, v = (
                F.reshape(
                    F.transpose(F.reshape(p, shape=(0, 0, -4, heads, -1)), axes=(0, 2, 1, 3)), shape=(-3, -2)
                )
                for p in parts
            )
            scores = F.batch_dot(F.contrib.div_sqrt_dim(q), k, transpose_b=True)
            steps = F.contrib.arange_like(tokens, axis=1)
            inside = F.broadcast_lesser(F.reshape(steps, shape=(1, -1)), F.reshape(length, shape=(-1, 1)))
            mask = F.repeat(F.expand_dims(F.cast(inside, "float32"), axis=1), repeats=heads, axis=0)
            scores = F.broadcast_add(scores, (mask - 1) * 1e4)
            y = F.batch_dot(F.softmax(scores), v)
            y = F.transpose(F.reshape(y, shape=(-4, -1, heads, -2)), axes=(0, 2, 1, 3))
            x = self.first(x + self.out(F.reshape(y, shape=(0, 0, -3))))
            return self.second(x + self.narrow(F.LeakyReLU(self.wide(x), act_type="gelu")))

    return Encoder()


def interleaved(units: int = 32, heads: int = 4) -> Any:
    """GluonNLP's attention: time first, interleaved projections, masked outputs."""
    mx = mxnet()

    class Attention(mx.gluon.HybridBlock):  # type: ignore[name-defined,misc]
        def __init__(self) -> None:
            super().__init__()
            with self.name_scope():
                self.qkv = mx.gluon.nn.Dense(3 * units, flatten=False)
                self.out = mx.gluon.nn.Dense(units, flatten=False)

        def hybrid_forward(self, F: Any, x: Any, length: Any) -> Any:  # noqa: N803
            qkv = self.qkv(F.transpose(x, axes=(1, 0, 2)))
            scores = F.softmax(F.contrib.interleaved_matmul_selfatt_qk(qkv, heads=heads))
            y = F.contrib.interleaved_matmul_selfatt_valatt(qkv, scores, heads=heads)
            y = F.SequenceMask(y, length, use_sequence_length=True)
            return F.transpose(self.out(y), axes=(1, 0, 2))

    return Attention()


def wrapped(inner: Any, steps: int | None = None) -> Any:
    """A recurrent layer, or a cell unrolled over `steps`, with a layer behind it."""
    mx = mxnet()

    class Net(mx.gluon.HybridBlock):  # type: ignore[name-defined,misc]
        def __init__(self) -> None:
            super().__init__()
            with self.name_scope():
                self.inner = inner
                self.dense = mx.gluon.nn.Dense(7)

        def hybrid_forward(self, F: Any, x: Any) -> Any:  # noqa: N803
            if steps is None:
                return self.dense(self.inner(x))
            return self.dense(self.inner.unroll(steps, x, layout="NTC", merge_outputs=True)[0])

    return Net()
