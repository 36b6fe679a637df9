"""From the IR to Keras models and `tf.Module`s: the same answers, readable, trainable, saved and loaded
again."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest

tf = pytest.importorskip("tensorflow")
import keras  # noqa: E402
import onnx_ir as ir  # noqa: E402
from tensorflow_writing import agrees, image_net, layers, write  # noqa: E402

from attar.errors import ConversionError, InputError  # noqa: E402
from attar.hooks import hookimpl  # noqa: E402
from attar.registry import Registry  # noqa: E402
from attar.testing.build import Net  # noqa: E402
from attar.testing.zoo import ZOO, ZooModel  # noqa: E402
from attar_tensorflow.writing import save_exported, write_model  # noqa: E402

# -- the same answers ----------------------------------------------------------------------------------------

# Five roundings of float16, and one step of an int8 output, which a sum that rounds to the other side moves.
_LOOSE = {"half": 5e-3, "quantized": 1 / 127}


@pytest.mark.parametrize("options", [{}, {"layout": "channels_last"}, {"form": "module"}], ids=str)
@pytest.mark.parametrize("zoo", ZOO.values(), ids=list(ZOO))
def test_the_zoo_answers_as_onnx_runtime_does(zoo: ZooModel, options: dict[str, str]) -> None:
    model = zoo.build()
    exported = write(model, **options)
    for batch in (1, 3):
        agrees(exported, model, zoo.inputs(seed=batch, batch=batch), _LOOSE.get(zoo.name, 1e-5))


def test_the_ir_stays_as_it_is() -> None:
    model = image_net()
    before = ir.to_proto(model).SerializeToString()
    write(model)
    assert ir.to_proto(model).SerializeToString() == before


def test_images_are_channels_last_inside_with_one_transpose_at_the_border() -> None:
    exported = write(image_net())
    kinds = layers(exported)
    assert kinds["Permute"] == 1
    assert kinds["Operator"] == 0
    assert {"Conv2D", "BatchNormalization", "Add", "GlobalAveragePooling2D", "Dense"} <= set(kinds)
    assert exported.native.input_shape == (None, 3, 16, 16)


def test_the_border_can_be_channels_last_too() -> None:
    model = image_net()
    exported = write(model, layout="channels_last")
    assert layers(exported)["Permute"] == 0
    assert exported.native.input_shape == (None, 16, 16, 3)
    agrees(exported, model, {"image": np.random.default_rng(0).normal(size=(2, 3, 16, 16)).astype("f")})


def test_transposes_at_the_border_of_the_ir_cancel_out() -> None:
    net = Net("keras", seed=5)
    x = net.input("x", "batch", 10, 12, 3)
    y = net.conv(net.op("Transpose", x, perm=[0, 3, 1, 2]), 3, 4)
    y = net.op("Concat", net.op("Relu", y), net.op("Sigmoid", y), axis=1)
    model = net.model(y=net.op("Transpose", y, perm=[0, 2, 3, 1]))
    exported = write(model)
    assert layers(exported)["Permute"] == layers(exported)["Operator"] == 0
    assert exported.native.output_shape == (None, 10, 12, 8)
    agrees(exported, model, {"x": np.random.default_rng(0).normal(size=(2, 10, 12, 3)).astype("f")})


def test_layers_are_called_as_their_parameters_are() -> None:
    model = write(image_net()).native
    assert model.get_layer("stem.conv").kernel.shape == (3, 3, 3, 8)
    assert [t.name for t in model.inputs] == ["image"]


# -- training ------------------------------------------------------------------------------------------------


def test_a_step_of_training_lowers_the_loss_and_reaches_every_weight() -> None:
    model = write(image_net()).native
    rng = np.random.default_rng(0)
    x, y = tf.constant(rng.normal(size=(16, 3, 16, 16)).astype("f")), tf.constant(rng.integers(0, 5, 16))
    loss_of = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
    norm = next(layer for layer in model.layers if isinstance(layer, keras.layers.BatchNormalization))
    before = norm.moving_mean.numpy().copy()
    with tf.GradientTape() as tape:
        loss = loss_of(y, model(x, training=True))
    gradients = tape.gradient(loss, [v.value for v in model.trainable_weights])
    assert len(gradients) == 8
    assert all(g is not None and np.any(np.asarray(g) != 0) for i, g in enumerate(gradients) if i != 1)
    assert not np.allclose(norm.moving_mean.numpy(), before)
    model.compile(keras.optimizers.SGD(0.05), loss_of)
    history = model.fit(x, y, epochs=4, batch_size=16, verbose=0).history["loss"]
    assert history[-1] < history[0]


def test_statistics_of_batch_norm_are_not_trained() -> None:
    model = write(image_net()).native
    assert len(model.non_trainable_weights) == 2
    assert all("moving" in v.path for v in model.non_trainable_weights)


@pytest.mark.parametrize("name", ["lstm", "gru", "encoder"])
def test_sequences_are_trained_through_attars_layer_too(name: str) -> None:
    zoo = ZOO[name]
    exported = write(zoo.build())
    feeds = [tf.constant(a) for a in zoo.inputs(seed=1, batch=4).values()]
    with tf.GradientTape() as tape:
        out = exported.native(feeds if len(feeds) > 1 else feeds[0])
        outs = out if isinstance(out, list | tuple) else [out]
        loss = sum(tf.reduce_sum(tf.square(tf.cast(o, tf.float32))) for o in outs)
    weights = exported.native.trainable_weights
    assert weights
    assert all(g is not None for g in tape.gradient(loss, [v.value for v in weights]))


def test_a_module_is_trained_too() -> None:
    zoo = ZOO["weight_in_if"]
    exported = write(zoo.build())
    assert not isinstance(exported.native, keras.Model)
    assert any("subgraph" in note for note in exported.notes)
    assert exported.native.trainable_variables


# -- files ---------------------------------------------------------------------------------------------------

_LOAD = """
import sys, numpy as np
from attar_tensorflow.writing.registration import register_layer
register_layer()
assert "keras" not in sys.modules
import keras
model = keras.models.load_model(sys.argv[1])
feeds = np.load(sys.argv[2])
x = [feeds[k] for k in feeds.files]
np.save(sys.argv[3], np.asarray(model(x if len(x) > 1 else x[0])))
"""
_SERVE = """
import sys, numpy as np, tensorflow as tf
serve = tf.saved_model.load(sys.argv[1]).signatures["serving_default"]
feeds = np.load(sys.argv[2])
(out,) = serve(**{k: tf.constant(feeds[k]) for k in feeds.files}).values()
assert not any(name.split(".")[0].startswith("attar") for name in sys.modules)
np.save(sys.argv[3], out.numpy())
"""


def elsewhere(program: str, tmp_path: Path, model: Path, feeds: dict[str, np.ndarray]) -> np.ndarray:
    """What a fresh process answers."""
    np.savez(tmp_path / "feeds.npz", **feeds)
    command = [
        sys.executable,
        "-c",
        program,
        str(model),
        str(tmp_path / "feeds.npz"),
        str(tmp_path / "y.npy"),
    ]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr[-2000:]
    return np.load(tmp_path / "y.npy")


@pytest.mark.parametrize(
    ("name", "suffix"), [("pad_slice_shortcut", ".keras"), ("gru", ".keras"), ("unet", ".h5")]
)
def test_a_saved_model_is_the_same_in_a_fresh_process(tmp_path: Path, name: str, suffix: str) -> None:
    zoo = ZOO[name]
    exported = write(zoo.build())
    (path,) = save_exported(exported, tmp_path / f"model{suffix}")
    feeds = zoo.inputs(seed=4, batch=2)
    got, wanted = elsewhere(_LOAD, tmp_path, path, feeds), exported.run(feeds)[0]
    np.testing.assert_allclose(got, wanted, rtol=0, atol=1e-6 * np.abs(wanted).max())


@pytest.mark.parametrize("form", ["keras", "module"])
def test_a_saved_model_folder_needs_no_attar(tmp_path: Path, form: str) -> None:
    zoo = ZOO["pad_slice_shortcut"]
    exported = write(zoo.build(), form=form)
    (path,) = save_exported(exported, tmp_path / "served")
    feeds = zoo.inputs(seed=4, batch=2)
    got, wanted = elsewhere(_SERVE, tmp_path, path, feeds), exported.run(feeds)[0]
    np.testing.assert_allclose(got, wanted, rtol=0, atol=1e-6 * np.abs(wanted).max())
    save_exported(exported, tmp_path / "served")  # in the place of the old one
    assert sorted(p.name for p in tmp_path.iterdir()) == ["feeds.npz", "served", "y.npy"]


def test_a_damaged_layer_is_told_apart_and_holds_no_code() -> None:
    from attar_tensorflow.writing.operator_layer import Operator

    model = write(ZOO["pad_slice_shortcut"].build()).native
    layer = next(item for item in model.layers if isinstance(item, Operator))
    config = layer.get_config()
    again = Operator.from_config(config)
    assert again.get_config() == config
    config["node"]["op"] = "Nonsense"
    with pytest.raises(InputError, match="Nonsense"):
        Operator.from_config(config)
    del config["node"]["inputs"]
    with pytest.raises(InputError, match="damaged"):
        Operator.from_config(config)


def test_places_that_cannot_be_written_are_named(tmp_path: Path) -> None:
    module = write(ZOO["weight_in_if"].build())
    with pytest.raises(InputError, match=r"tf\.Module"):
        save_exported(module, tmp_path / "m.keras")
    with pytest.raises(InputError, match="no files"):
        save_exported(module, tmp_path / "m.bin")
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "precious.txt").write_text("x")
    with pytest.raises(InputError, match="other things"):
        save_exported(module, tmp_path / "full")
    with pytest.raises(InputError, match="cannot write"):
        save_exported(module, tmp_path / "nowhere" / "m")
    assert (tmp_path / "full" / "precious.txt").read_text() == "x"


# -- options, refusals, plugins ------------------------------------------------------------------------------


def test_options_are_checked() -> None:
    with pytest.raises(InputError, match="no option 'layuot'"):
        write(image_net(), layuot="source")
    with pytest.raises(InputError, match="layout must be one of"):
        write(image_net(), layout="nchw")
    with pytest.raises(ConversionError, match="a Keras model cannot say"):
        write(ZOO["weight_in_if"].build(), form="keras")


@pytest.mark.parametrize("form", ["auto", "keras", "module"])
def test_what_cannot_be_said_exactly_is_refused_while_writing(form: str) -> None:
    net = Net("random")
    x = net.input("x", "batch", 4)
    model = net.model(y=net.op("Bernoulli", x, dtype=1))
    (node,) = model.graph
    with pytest.raises(ConversionError, match=f"Bernoulli node '{node.name}'.*random") as caught:
        write(model, form=form)
    assert caught.value.missing == {"Bernoulli": (node.name,)}


def _custom() -> ir.Model:
    net = Net("custom")
    x = net.input("x", "batch", 4)
    twice = net.op("Twice", x, domain="my.ops", factor=3.0)
    twice.shape, twice.type = x.shape, x.type
    value = net.op("Relu", twice)
    value.name, value.shape, value.type = "y", x.shape, x.type
    graph = ir.Graph(net.inputs, [value], nodes=net.nodes, opset_imports={"": 21, "my.ops": 1}, name="custom")
    return ir.Model(graph, ir_version=10)


class Plugin:
    @hookimpl
    def attar_lowerings(self, framework: str) -> dict[str, Any] | None:
        if framework != "tensorflow":
            return None
        return {"my.ops::Twice": lambda ctx, view: ctx[0] * view.attr("factor", 2.0)}


def test_a_plugin_teaches_an_operator() -> None:
    with pytest.raises(ConversionError, match=r"my\.ops::Twice"):
        write(_custom())
    registry = Registry()
    registry.register(Plugin(), name="custom")
    exported = write_model(_custom(), registry=registry)
    x = np.array([[1, -1, 2, 0]], np.float32)
    np.testing.assert_array_equal(exported.run({"x": x})[0], np.maximum(x * 3, 0))


# -- quantization --------------------------------------------------------------------------------------------


def test_fake_quantization_differs_by_a_step_at_most_and_trains() -> None:
    zoo = ZOO["quantized"]
    model = zoo.build()
    exported = write(model, fake_quantize=True)
    assert any("fake quantization" in note for note in exported.notes)
    agrees(exported, model, zoo.inputs(seed=1, batch=2), rel=_LOOSE["quantized"])
    x = tf.constant(next(iter(zoo.inputs(seed=1, batch=4).values())))
    with tf.GradientTape() as tape:
        loss = tf.reduce_sum(tf.square(exported.native(x)))
    weights = [v.value for v in exported.native.trainable_weights]
    assert all(g is not None for g in tape.gradient(loss, weights))
