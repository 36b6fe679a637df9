"""Models of TensorFlow and Keras of every kind: names, inputs, functions, what is refused and left alone."""

from __future__ import annotations

import subprocess
import sys

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
)

from attar import graph  # noqa: E402
from attar.errors import ConversionError, InputError  # noqa: E402
from attar.hooks import hookimpl  # noqa: E402


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
    np.testing.assert_allclose(OnnxRuntime().open(loaded.model).run({"x": x})[0], np.exp(x), rtol=1e-6)


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
