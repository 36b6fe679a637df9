"""Reading live TensorFlow and Keras models: the outputs are TensorFlow's own, and images are NCHW inside."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

tf = pytest.importorskip("tensorflow")
keras = pytest.importorskip("keras")

from tensorflow_import_nets import (  # noqa: E402
    ADAPTER,
    L,
    kinds,
    noise,
    parity,
    sequential,
    transformer,
    unet,
)

CNNS: dict[str, tuple[Any, tuple[int, ...]]] = {
    "strided": (lambda: [L.Conv2D(6, 3, strides=2, padding="same"), L.LeakyReLU()], (17, 16, 3)),
    "transposed": (
        lambda: [L.Conv2DTranspose(5, 3, strides=2, padding="same"), L.Conv2DTranspose(4, 2, strides=2)],
        (9, 8, 3),
    ),
    "transposed, wide": (lambda: [L.Conv2DTranspose(4, 5, strides=2, padding="valid")], (9, 8, 3)),
    "separable": (lambda: [L.SeparableConv2D(6, 3, padding="same"), L.PReLU(shared_axes=[1, 2])], (9, 9, 3)),
    "depthwise": (
        lambda: [L.DepthwiseConv2D(3, dilation_rate=2, padding="same", depth_multiplier=2)],
        (16, 16, 3),
    ),
    "grouped": (lambda: [L.Conv2D(8, 3, groups=2, dilation_rate=2), L.GroupNormalization(4)], (16, 16, 4)),
    "pooled": (
        lambda: [L.Conv2D(4, 3), L.AveragePooling2D(3, 2, padding="same"), L.MaxPool2D(3, 2, padding="same")],
        (16, 16, 3),
    ),
    "enlarged": (
        lambda: [L.Conv2D(4, 3), L.UpSampling2D((2, 3)), L.UpSampling2D(2, interpolation="bilinear")],
        (8, 8, 3),
    ),
    "resized": (lambda: [L.Conv2D(4, 3), L.Resizing(13, 17)], (9, 8, 3)),
    "scaled": (
        lambda: [L.Rescaling(1 / 127.5, -1), L.ZeroPadding2D(((1, 2), (0, 3))), L.Conv2D(4, 3)],
        (9, 8, 3),
    ),
    "cropped": (lambda: [L.Conv2D(4, 3), L.Cropping2D(((1, 0), (2, 1)))], (12, 13, 3)),
    "volume": (
        lambda: [L.Conv3D(4, 3, padding="same"), L.MaxPooling3D(), L.BatchNormalization(),
                 L.Conv3DTranspose(3, 2, strides=2)],
        (8, 6, 8, 2),
    ),
    "time": (
        lambda: [L.Conv1D(6, 3, padding="same", activation="relu"), L.BatchNormalization(), L.MaxPooling1D(2),
                 L.Conv1D(7, 3, dilation_rate=2, padding="causal"), L.AveragePooling1D(2)],
        (16, 4),
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", CNNS)
def test_images_stay_nchw_from_border_to_border(name: str) -> None:
    layers, shape = CNNS[name]
    loaded = ADAPTER.load(sequential(*layers(), shape=shape), inputs=noise(2, *shape))
    parity(loaded)
    parity(loaded, {k: noise(5, *v.shape[1:], seed=3) for k, v in (loaded.example or {}).items()})
    assert kinds(loaded)["Transpose"] == 2 or name == "grouped"
    assert loaded.model.graph.inputs[0].shape[0] == "batch"
    assert list(loaded.model.graph.inputs[0].shape)[1:] == list(shape)


HEADS: dict[str, tuple[Any, tuple[int, ...], dict[str, int]]] = {
    "flatten": (
        lambda: [L.Conv2D(4, 3), L.Flatten(), L.Dense(5, activation="softmax")],
        (9, 8, 3),
        {"Gemm": 1},
    ),
    "pooled": (
        lambda: [L.Conv2D(4, 3), L.BatchNormalization(), L.ReLU(), L.GlobalAveragePooling2D(), L.Dense(3)],
        (9, 8, 3),
        {"Conv": 1, "BatchNormalization": 1, "Relu": 1, "GlobalAveragePool": 1, "Gemm": 1},
    ),
    "time": (
        lambda: [L.Conv1D(6, 3), L.GlobalAveragePooling1D(), L.Dense(3)],
        (16, 4),
        {"Conv": 1, "Gemm": 1},
    ),
}


@pytest.mark.parametrize("name", HEADS)
def test_heads_have_the_layers_that_keras_has(name: str) -> None:
    layers, shape, wanted = HEADS[name]
    loaded = ADAPTER.load(sequential(*layers(), shape=shape), inputs=noise(2, *shape))
    parity(loaded)
    found = kinds(loaded)
    assert found["Transpose"] == 1
    assert found["MatMul"] == found["Add"] == 0
    assert {k: found[k] for k in wanted} == wanted


ACTIVATIONS = [
    *("elu", "selu", "mish", "softplus", "softsign", "hard_sigmoid", "hard_swish", "log_softmax", "relu6"),
    *("gelu", "silu", "leaky_relu", "exponential", "tanh", "celu", "glu", "sparse_plus"),
]


@pytest.mark.parametrize("name", ACTIVATIONS)
def test_activations(name: str) -> None:
    loaded = ADAPTER.load(sequential(L.Dense(6), L.Activation(name), shape=(5,)), inputs=4 * noise(7, 5))
    parity(loaded)
    if name == "gelu":
        assert kinds(loaded)["Gelu"] == 1
    if name == "silu":
        assert kinds(loaded) == {"Gemm": 1, "Sigmoid": 1, "Mul": 1}


def test_batch_normalization_in_all_its_forms() -> None:
    net = sequential(
        L.BatchNormalization(),
        L.Dense(4),
        L.BatchNormalization(scale=False, center=False),
        L.Dense(3),
        L.BatchNormalization(scale=False),
        L.Dense(3),
        L.BatchNormalization(center=False, epsilon=0.01),
        shape=(8,),
    )
    loaded = ADAPTER.load(net, inputs=noise(2, 8))
    parity(loaded)
    assert kinds(loaded) == {"BatchNormalization": 4, "Gemm": 3}
    kept = [n.rpartition("/")[2] for n in loaded.model.graph.initializers]
    assert kept.count("moving_mean") == kept.count("moving_variance") == 4
    assert (kept.count("gamma"), kept.count("beta")) == (2, 2)


RECURRENT: dict[str, tuple[Any, tuple[int | None, ...], dict[str, int]]] = {
    "lstm": (lambda: [L.LSTM(5)], (12, 8), {"LSTM": 1}),
    "stacked, any length": (lambda: [L.LSTM(5, return_sequences=True), L.LSTM(4)], (None, 8), {"LSTM": 2}),
    "bidirectional": (lambda: [L.Bidirectional(L.LSTM(5, return_sequences=True))], (12, 8), {"LSTM": 2}),
    "bidirectional, last": (lambda: [L.Bidirectional(L.LSTM(5))], (None, 8), {"LSTM": 2}),
    "backwards": (lambda: [L.LSTM(5, return_sequences=True, go_backwards=True)], (7, 8), {"LSTM": 1}),
    "no bias": (lambda: [L.LSTM(5, use_bias=False, activation="relu")], (7, 8), {"LSTM": 1}),
    "gru": (lambda: [L.GRU(5, return_sequences=True), L.GRU(6)], (12, 8), {"GRU": 2}),
    "gru, reset before": (lambda: [L.GRU(5, reset_after=False)], (12, 8), {"GRU": 1}),
    "simple": (lambda: [L.SimpleRNN(5)], (12, 8), {"RNN": 1}),
    "convolutional": (lambda: [L.ConvLSTM2D(4, 3, padding="same")], (5, 8, 8, 3), {"Loop": 1}),
    "of cells": (lambda: [L.RNN([L.LSTMCell(4), L.GRUCell(5)])], (5, 3), {"Loop": 1}),
}


@pytest.mark.parametrize("name", RECURRENT)
def test_recurrent_layers(name: str) -> None:
    layers, shape, wanted = RECURRENT[name]
    fixed = [9 if d is None else d for d in shape]
    loaded = ADAPTER.load(sequential(*layers(), shape=shape), inputs=noise(3, *fixed))
    parity(loaded)
    parity(loaded, {k: noise(1, *fixed, seed=2) for k in loaded.example or {}})
    found = kinds(loaded)
    assert {k: found[k] for k in ("LSTM", "GRU", "RNN", "Loop") if found[k]} == wanted
    if shape[0] is None:
        parity(loaded, {k: noise(2, 4, *fixed[1:], seed=2) for k in loaded.example or {}})


def test_a_masked_recurrent_layer_is_a_loop() -> None:
    net = sequential(L.Embedding(20, 6, mask_zero=True), L.LSTM(5), shape=(12,), dtype="int32")
    tokens = np.random.default_rng(0).integers(1, 20, (3, 12)).astype(np.int32)
    tokens[0, 7:] = tokens[2, 3:] = 0
    loaded = ADAPTER.load(net, inputs=tokens)
    parity(loaded)
    assert kinds(loaded)["Loop"] == 1


def test_unet() -> None:
    loaded = ADAPTER.load(unet(), inputs=noise(2, 32, 32, 3))
    parity(loaded)
    found = kinds(loaded)
    assert found["Transpose"] == 2
    assert found["BatchNormalization"] == found["Relu"] == 5
    assert found["Resize"] == 1


@pytest.mark.parametrize("length", [None, 11])
def test_transformer(length: int | None) -> None:
    tokens = np.random.default_rng(0).integers(0, 30, (2, 11)).astype(np.int32)
    loaded = ADAPTER.load(transformer(length), inputs=tokens)
    parity(loaded)
    found = kinds(loaded)
    assert found["Gelu"] == 1
    assert found["LayerNormalization"] == 2
    assert found["Einsum"] == 0
    assert {"words/embeddings", "wide/kernel", "attention/query/kernel"} <= set(
        loaded.model.graph.initializers
    )
    if length is None:
        parity(loaded, {"tokens": tokens[:1, :5]})
