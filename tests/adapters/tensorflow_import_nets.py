"""Keras networks to read, and comparing what was read with TensorFlow itself."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from typing import Any

import numpy as np
import pytest

tf = pytest.importorskip("tensorflow")
keras = pytest.importorskip("keras")

import attar_tensorflow  # noqa: E402
from attar import graph  # noqa: E402
from attar.adapters import Loaded  # noqa: E402
from attar.registry import Registry  # noqa: E402
from attar.runtime import OnnxRuntime  # noqa: E402
from attar_tensorflow.adapter import TensorFlowAdapter  # noqa: E402

ADAPTER = TensorFlowAdapter()
L = keras.layers


def registry() -> Registry:
    found = Registry.discover()
    if "tensorflow" not in {p.name for p in found.plugins}:
        found.register(attar_tensorflow, name="tensorflow")
    return found


def parity(loaded: Loaded, feeds: Mapping[str, np.ndarray] | None = None, rel: float = 1e-5) -> None:
    """Every output equals TensorFlow's and is not all zeros: real numbers within `rel` of the largest one,
    others exactly.

    Unless told otherwise that is a hundred roundings of float32, for layers that sum in another order.
    """
    feeds = dict(loaded.example or {}) if feeds is None else feeds
    assert loaded.reference is not None
    expected = loaded.reference(feeds)
    got = OnnxRuntime().open(loaded.model).run(feeds)
    assert len(expected) == len(got) == len(loaded.model.graph.outputs)
    for a, b in zip(expected, got, strict=True):
        assert a.shape == b.shape
        assert a.dtype == b.dtype
        reach = np.abs(a.astype(np.float64)).max()
        assert reach > 0
        error = np.abs(a.astype(np.float64) - b.astype(np.float64)).max()
        assert error <= (rel * reach if a.dtype.kind == "f" else 0)


def kinds(loaded: Loaded) -> Counter[str]:
    return Counter(n.op_type for n in graph.all_nodes(loaded.model))


def shake(model: Any, seed: int = 0) -> Any:
    """Give every weight that starts as 0 or 1 (biases, statistics, scales) a value that shows mistakes."""
    rng = np.random.default_rng(seed)
    for variable in model.variables:
        name = variable.path.rpartition("/")[2]
        if name in ("moving_mean", "beta", "bias"):
            variable.assign(rng.normal(0, 0.1, variable.shape))
        elif name in ("moving_variance", "gamma"):
            variable.assign(rng.uniform(0.5, 1.5, variable.shape))
        elif name == "alpha":
            variable.assign(rng.uniform(0.1, 0.3, variable.shape))
    return model


def sequential(*layers: Any, shape: tuple[int | None, ...], dtype: str = "float32") -> Any:
    keras.utils.set_random_seed(0)
    return shake(keras.Sequential([keras.Input(shape, dtype=dtype), *layers]))


def noise(*shape: int, seed: int = 1) -> np.ndarray:
    return np.random.default_rng(seed).uniform(-1, 1, shape).astype(np.float32)


def unet() -> Any:
    def block(filters: int, x: Any) -> Any:
        return L.ReLU()(L.BatchNormalization()(L.Conv2D(filters, 3, padding="same")(x)))

    image = keras.Input((32, 32, 3))
    top = block(8, image)
    middle = block(16, L.MaxPooling2D()(top))
    low = block(32, L.MaxPooling2D()(middle))
    up = block(16, L.Concatenate()([L.UpSampling2D()(low), middle]))
    out = block(8, L.Concatenate()([L.Conv2DTranspose(8, 2, strides=2)(up), top]))
    return shake(keras.Model(image, L.Conv2D(2, 1, activation="sigmoid")(out)))


def transformer(length: int | None = None) -> Any:
    tokens = keras.Input((length,), dtype="int32", name="tokens")
    x = L.Embedding(30, 16, name="words")(tokens)
    x = L.LayerNormalization()(x + L.MultiHeadAttention(2, 8, name="attention")(x, x))
    x = L.LayerNormalization()(x + L.Dense(16)(L.Dense(32, activation="gelu", name="wide")(x)))
    return shake(keras.Model(tokens, L.Dense(3)(L.GlobalAveragePooling1D()(x))))
