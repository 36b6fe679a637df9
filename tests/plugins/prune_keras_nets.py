"""Networks of all families in Keras, for pruning: name -> (model, example inputs)."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import keras
import numpy as np
from keras import layers as kl

Made = tuple[Any, tuple[np.ndarray, ...]]
NETS: dict[str, Callable[[], Made]] = {}
# Name -> Keras's own network, the size of its images, and options.
APPLICATIONS: dict[str, tuple[str, int, dict[str, Any]]] = {
    "MobileNetV1": ("MobileNet", 32, {"alpha": 0.25}),
    "MobileNetV2": ("MobileNetV2", 32, {"alpha": 0.35}),
    "MobileNetV3": ("MobileNetV3Small", 32, {}),
    "EfficientNet": ("EfficientNetB0", 32, {}),
    "EfficientNetV2": ("EfficientNetV2B0", 32, {}),
    "ResNet": ("ResNet50", 32, {}),
    "DenseNet": ("DenseNet121", 32, {}),
    "Inception": ("InceptionV3", 75, {}),
    "Xception": ("Xception", 71, {}),
    "NASNet": ("NASNetMobile", 32, {}),
}


def application(name: str) -> Made:
    """Keras's own network with random weights, and with statistics far from their initial 0 and 1."""
    kind, size, options = APPLICATIONS[name]
    options = {"weights": None, "classes": 10, "classifier_activation": None, **options}
    model = getattr(keras.applications, kind)(input_shape=(size, size, 3), **options)
    rng = np.random.default_rng(0)
    for layer in model.layers:
        if type(layer).__name__ == "BatchNormalization":
            for value in layer.weights:
                low, high = {"gamma": (0.5, 1.5), "moving_variance": (0.5, 2.0)}.get(value.name, (-0.5, 0.5))
                value.assign(rng.uniform(low, high, value.shape).astype(np.float32))
    return model, images(size)


def images(size: int = 16) -> tuple[np.ndarray, ...]:
    return (np.random.default_rng(0).standard_normal((2, size, size, 3)).astype(np.float32),)


def tokens() -> tuple[np.ndarray, ...]:
    return (np.random.default_rng(0).integers(0, 32, (2, 6)).astype(np.int32),)


def _named(name: str) -> Callable[[Callable[[], Made]], Callable[[], Made]]:
    def add(make: Callable[[], Made]) -> Callable[[], Made]:
        NETS[name] = make
        return make

    return add


def _block(x: Any, o: int, k: int = 3, **options: Any) -> Any:
    return kl.ReLU()(kl.BatchNormalization()(kl.Conv2D(o, k, padding="same", **options)(x)))


def _pooled(x: Any, classes: int = 5) -> Any:
    return kl.Dense(classes)(kl.GlobalAveragePooling2D()(x))


@_named("ResNeXt")
def resnext() -> Made:
    start = keras.Input((16, 16, 3))
    x = _block(start, 16)
    x = kl.Add()([x, kl.Conv2D(16, 1)(_block(x, 16, groups=4))])
    return keras.Model(start, _pooled(x)), images()


@_named("SqueezeNet")
def squeezenet() -> Made:
    start = keras.Input((16, 16, 3))
    x = kl.Conv2D(8, 3, activation="relu")(start)
    for o in (8, 12):
        s = kl.Conv2D(6, 1, activation="relu")(x)
        wide = kl.Conv2D(o, 3, padding="same", activation="relu")(s)
        x = kl.Concatenate()([kl.Conv2D(o, 1, activation="relu")(s), wide])
    return keras.Model(start, kl.GlobalAveragePooling2D()(kl.Conv2D(5, 1, activation="relu")(x))), images()


@_named("ShuffleNetV2")
def shufflenet() -> Made:
    start = keras.Input((16, 16, 3))
    x = _block(start, 16)
    left, right = x[..., :8], x[..., 8:]
    right = _block(kl.DepthwiseConv2D(3, padding="same")(_block(right, 8, 1)), 8, 1)
    x = kl.Reshape((16, 16, 2, 8))(kl.Concatenate()([left, right]))
    x = kl.Reshape((16, 16, 16))(kl.Permute((1, 2, 4, 3))(x))
    return keras.Model(start, _pooled(_block(x, 12, 1))), images()


@_named("U-Net")
def unet() -> Made:
    start = keras.Input((16, 16, 3))
    a = _block(start, 8)
    b = _block(kl.MaxPool2D()(a), 12)
    c = _block(kl.MaxPool2D()(b), 16)
    x = _block(kl.Concatenate()([b, kl.Conv2DTranspose(12, 2, strides=2)(c)]), 12)
    x = _block(kl.Concatenate()([a, kl.UpSampling2D(interpolation="bilinear")(x)]), 8)
    return keras.Model(start, kl.Conv2D(3, 1)(x)), images()


@_named("detector")
def detector() -> Made:
    start = keras.Input((16, 16, 3))
    fine = _block(start, 12)
    coarse = kl.Conv2D(12, 1)(_block(fine, 16, strides=2))
    fine = kl.Add()([fine, kl.UpSampling2D()(coarse)])
    score, box = kl.Conv2D(6, 3, padding="same", activation="sigmoid"), kl.Conv2D(8, 1)
    scores = [kl.Reshape((-1, 3))(score(level)) for level in (fine, coarse)]
    boxes = [kl.Reshape((-1, 4))(box(level)) for level in (fine, coarse)]
    return keras.Model(start, [kl.Concatenate(axis=1)(scores), kl.Concatenate(axis=1)(boxes)]), images()


def _layers(x: Any, count: int, *, causal: bool = False) -> Any:
    for _ in range(count):
        y = kl.LayerNormalization()(x)
        x = kl.Add()([x, kl.MultiHeadAttention(4, 6)(y, y, use_causal_mask=causal)])
        y = kl.Dense(32, activation="gelu")(kl.LayerNormalization()(x))
        x = kl.Add()([x, kl.Dense(16)(y)])
    return kl.LayerNormalization()(x)


@_named("ViT")
def vit() -> Made:
    start = keras.Input((16, 16, 3))
    x = kl.Reshape((16, 16))(kl.Conv2D(16, 4, 4)(start))
    return keras.Model(start, kl.Dense(5)(kl.GlobalAveragePooling1D()(_layers(x, 1)))), images()


@_named("BERT-like")
def bert() -> Made:
    start = keras.Input((6,), dtype="int32")
    x = _layers(kl.Embedding(32, 16)(start), 2)
    return keras.Model(start, kl.Dense(3)(kl.Dense(16, activation="tanh")(x[:, 0]))), tokens()


@_named("GPT-like, shared embedding")
def gpt() -> Made:
    start = keras.Input((6,), dtype="int32")
    table = kl.ReversibleEmbedding(32, 16)
    return keras.Model(start, table(_layers(table(start), 2, causal=True), reverse=True)), tokens()


@_named("MLP-Mixer")
def mixer() -> Made:
    start = keras.Input((16, 16, 3))
    x = kl.Reshape((16, 12))(kl.Conv2D(12, 4, 4)(start))
    y = kl.Dense(20, activation="gelu")(kl.Permute((2, 1))(kl.LayerNormalization()(x)))
    x = kl.Add()([x, kl.Permute((2, 1))(kl.Dense(16)(y))])
    y = kl.Dense(24, activation="gelu")(kl.LayerNormalization()(x))
    x = kl.Add()([x, kl.Dense(12)(y)])
    return keras.Model(start, kl.Dense(5)(kl.GlobalAveragePooling1D()(x))), images()


def _recurrent(*cells: Any) -> Made:
    start = keras.Input((6,), dtype="int32")
    x = kl.Dense(12, activation="relu")(kl.Embedding(32, 10)(start))
    for cell in cells:
        x = cell(x)
    return keras.Model(start, kl.Dense(3)(kl.Dense(9, activation="relu")(x))), tokens()


@_named("LSTM")
def lstm() -> Made:
    return _recurrent(kl.LSTM(14, return_sequences=True), kl.LSTM(11))


@_named("GRU")
def gru() -> Made:
    return _recurrent(kl.GRU(14, return_sequences=True), kl.GRU(11, reset_after=False))


@_named("BiLSTM")
def bilstm() -> Made:
    return _recurrent(kl.Bidirectional(kl.LSTM(14)))
