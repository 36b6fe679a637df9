"""Reading live TensorFlow and Keras models: the outputs are TensorFlow's own, and images are NCHW inside."""

from __future__ import annotations

import subprocess
import sys
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
    registry,
    sequential,
    shake,
    transformer,
    unet,
)

from attar import graph  # noqa: E402
from attar.errors import ConversionError, InputError  # noqa: E402
from attar.hooks import hookimpl  # noqa: E402

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


def test_names_are_those_of_the_layers() -> None:
    image = keras.Input((8, 8, 3), name="image")
    x = L.Conv2D(4, 3, name="stem")(image)
    x = L.ReLU(name="rectify")(L.BatchNormalization(name="norm")(x))
    x = L.Dense(2, name="head")(L.GlobalAveragePooling2D()(x))
    loaded = ADAPTER.load(shake(keras.Model(image, x)), inputs=noise(1, 8, 8, 3))
    assert {"stem", "rectify", "norm", "head"} <= {n.name for n in loaded.model.graph}
    assert {"stem/kernel", "stem/bias", "norm/gamma", "norm/moving_variance", "head/kernel"} <= set(
        loaded.model.graph.initializers
    )
    assert [v.name for v in loaded.model.graph.inputs] == ["image"]
    assert [v.name for v in loaded.model.graph.outputs] == ["head"]
    assert graph.provenance(loaded.model) == {"framework": "tensorflow", "source": "Functional"}


def test_shared_layers_share_their_weight() -> None:
    a, b = keras.Input((5,), name="a"), keras.Input((5,), name="b")
    dense = L.Dense(5, name="twice")
    loaded = ADAPTER.load(
        keras.Model([a, b], [dense(a), dense(dense(b))]), inputs={"a": noise(2, 5), "b": noise(2, 5, seed=4)}
    )
    parity(loaded)
    assert sum(n.startswith("twice/kernel") for n in loaded.model.graph.initializers) == 1


def test_many_inputs_and_outputs_and_dictionaries() -> None:
    image, more = keras.Input((8, 8, 3), name="image"), keras.Input((4,), name="more")
    x = L.Flatten()(L.Conv2D(2, 3)(image))
    net = keras.Model({"image": image, "more": more}, {"sum": L.Dense(3)(x) + L.Dense(3)(more), "x": x})
    loaded = ADAPTER.load(net, inputs={"more": noise(2, 4), "image": noise(2, 8, 8, 3)})
    parity(loaded)
    assert sorted(v.name for v in loaded.model.graph.inputs) == ["image", "more"]
    assert sorted(v.name for v in loaded.model.graph.outputs) == ["sum", "x"]


class Subclassed(keras.Model):
    def __init__(self) -> None:
        super().__init__()
        self.conv, self.head = L.Conv2D(4, 3), L.Dense(2)

    def call(self, x, training=False):
        return {
            "logits": self.head(tf.reduce_mean(tf.nn.relu(self.conv(x)), [1, 2])),
            "batch": tf.shape(x)[0],
        }


def test_a_subclassed_model_needs_inputs() -> None:
    with pytest.raises(InputError, match="example inputs"):
        ADAPTER.load(Subclassed())
    loaded = ADAPTER.load(Subclassed(), inputs=noise(2, 8, 8, 3))
    parity(loaded)
    assert [v.name for v in loaded.model.graph.outputs] == ["batch", "logits"]


def test_functions_and_modules() -> None:
    weight = tf.Variable(noise(4, 3), name="weight")

    @tf.function(input_signature=[tf.TensorSpec([None, 4], name="x")])
    def fixed(x):
        return {"y": tf.nn.softmax(x @ weight), "z": tf.where(x > 0, x, tf.exp(x) - 1)}

    loaded = ADAPTER.load(fixed)
    feeds = {"x": noise(5, 4)}
    parity(loaded, feeds)
    assert "weight" in loaded.model.graph.initializers
    parity(ADAPTER.load(fixed.get_concrete_function()), feeds)

    class Module(tf.Module):
        def __init__(self):
            super().__init__()
            self.w = tf.Variable(noise(3, 3, 2, 4), name="w")

        def __call__(self, image, scale):
            return tf.nn.conv2d(image, self.w, 2, "SAME") * scale

    with pytest.raises(InputError, match="example inputs"):
        ADAPTER.load(Module())
    loaded = ADAPTER.load(Module(), inputs=(noise(2, 7, 7, 2), noise(2, 1, 1, 1)))
    parity(loaded)
    assert [v.name for v in loaded.model.graph.inputs] == ["image", "scale"]


@pytest.mark.parametrize("steps", [0, 3])
def test_loops_and_conditions(steps: int) -> None:
    @tf.function(input_signature=[tf.TensorSpec([None, 3]), tf.TensorSpec([], tf.int32)])
    def turns(x, n):
        total = tf.zeros_like(x)
        for _ in tf.range(n):
            total = total * 0.5 + x
        if tf.reduce_sum(x) > 0:  # noqa: SIM108  a condition of TensorFlow's
            total = total + 1
        else:
            total = total - 1
        return total

    loaded = ADAPTER.load(turns)
    names = [v.name for v in loaded.model.graph.inputs]
    for sign in (1, -1):
        feeds = {names[0]: sign * np.abs(noise(2, 3)), names[1]: np.array(steps, np.int32)}
        parity(loaded, feeds)
    assert {"Loop", "If"} <= set(kinds(loaded))


def test_all_that_cannot_be_read_is_told_at_once() -> None:
    @tf.function(input_signature=[tf.TensorSpec([4, 4])])
    def hard(x):
        return tf.linalg.det(x) + tf.reduce_sum(tf.linalg.expm(x)) + tf.math.bessel_i0(x)

    with pytest.raises(ConversionError) as found:
        ADAPTER.load(hard)
    assert {"MatrixDeterminant", "BesselI0"} <= set(found.value.missing)
    assert "attar_liftings" in str(found.value)


def test_a_plugin_teaches_an_operator() -> None:
    class Plugin:
        @hookimpl
        def attar_liftings(self, framework: str):
            def bessel(ctx, view):  # a made-up meaning, to see that it is this that runs
                return ctx.map("Exp", view.input(0))

            return {"BesselI0": bessel} if framework == "tensorflow" else None

    @tf.function(input_signature=[tf.TensorSpec([None, 4], name="x")])
    def special(x):
        return tf.math.bessel_i0(x)

    with_plugin = registry()
    with_plugin.register(Plugin(), name="bessel")
    loaded = ADAPTER.load(special, registry=with_plugin)
    from attar.runtime import OnnxRuntime

    x = noise(2, 4)
    assert np.allclose(OnnxRuntime().open(loaded.model).run({"x": x})[0], np.exp(x), atol=1e-6)


def test_bad_examples_are_told() -> None:
    net = sequential(L.Dense(3), shape=(5,))
    for wrong in (noise(2, 6), (noise(2, 5), noise(2, 5)), {"other": noise(2, 5)}):
        with pytest.raises(InputError):
            ADAPTER.load(net, inputs=wrong)
    with pytest.raises(InputError, match="no option"):
        ADAPTER.load(net, dynamic=True)


def test_the_model_is_left_alone() -> None:
    net = sequential(L.Conv2D(4, 3), L.BatchNormalization(), L.Dropout(0.5), shape=(8, 8, 3))
    before = [np.array(v) for v in net.variables]
    flags = [layer.trainable for layer in net.layers]
    loaded = ADAPTER.load(net, inputs=noise(2, 8, 8, 3))
    assert all(np.array_equal(a, np.array(v)) for a, v in zip(before, net.variables, strict=True))
    assert [layer.trainable for layer in net.layers] == flags
    for variable in net.variables:
        variable.assign(variable * 0)
    kernel = next(v for n, v in loaded.model.graph.initializers.items() if n.endswith("kernel"))
    assert np.abs(kernel.const_value.numpy()).max() > 0


def test_importing_does_not_import_tensorflow() -> None:
    code = (
        "import sys, attar_tensorflow\n"
        "for a in attar_tensorflow.attar_adapters(): [a.recognises(x) for x in (object(), 'm.keras', {})]\n"
        "assert not {'tensorflow', 'keras'} & set(sys.modules), 'heavy'"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert done.stderr == ""


def test_reading_is_silent(capfd: pytest.CaptureFixture[str]) -> None:
    import os

    before = os.environ.get("TF_CPP_MIN_LOG_LEVEL")
    ADAPTER.load(sequential(L.Dense(3), shape=(5,)), inputs=noise(2, 5))
    out, err = capfd.readouterr()
    assert (out, err) == ("", "")
    assert os.environ.get("TF_CPP_MIN_LOG_LEVEL") == before
