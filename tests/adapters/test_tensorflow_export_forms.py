"""Keras model or module: types inside a Keras model, and what happens where Keras cannot say a network."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

pytest.importorskip("tensorflow")

import keras
import onnx.parser
import onnx_ir as ir
from onnx.reference import ReferenceEvaluator
from tensorflow_writing import agrees, layers, write

import attar
from attar.adapters import Exported
from attar.errors import ConversionError
from attar.hooks import hookimpl
from attar.registry import Registry
from attar.testing.build import Net
from attar.testing.zoo import ZOO
from attar_tensorflow.writing import save_exported, write_model


def types_are_true(exported: Exported, *arrays: np.ndarray) -> None:
    """Every layer gives tensors of the type that it announces, which later layers are built for."""
    announced = keras.tree.flatten([layer.output for layer in exported.native.layers])
    inside = keras.Model(exported.native.inputs, announced)
    given = inside(list(arrays) if len(arrays) > 1 else arrays[0])
    found = [keras.backend.standardize_dtype(t.dtype) for t in keras.tree.flatten(given)]
    assert found == [t.dtype for t in announced]


def by_definition(model: ir.Model, x: np.ndarray) -> list[np.ndarray]:
    """What ONNX's own evaluator gives, which has all types of all operators."""
    return ReferenceEvaluator(ir.to_proto(model)).run(None, {"x": x})


TYPES = ["BOOL", "UINT8", "INT8", "INT32", "INT64", "FLOAT16", "FLOAT", "DOUBLE"]


@pytest.mark.parametrize("name", TYPES)
def test_layers_that_move_elements_keep_every_type(tmp_path: Path, name: str) -> None:
    net = Net("moves", dtype=ir.DataType[name])
    x = net.input("x", "batch", 4, 6)
    y = net.op("Transpose", net.op("Concat", x, x, axis=2), perm=[0, 2, 1])
    y = net.op("Squeeze", net.op("Unsqueeze", y, net.ints([1])), net.ints([1]))
    y = net.op("Reshape", net.op("Concat", y, y, axis=1), net.ints([0, 8, 12]))
    same = net.op("Equal", y, net.const(np.ones([], net.dtype.numpy())))
    model = net.model(y=net.op("Flatten", y), same=same)
    exported = write(model, form="keras")
    kinds = layers(exported)
    joined = 0 if name == "INT8" else 2  # Keras quantizes in what it calls int8
    assert kinds["Concatenate"] == joined
    assert kinds["Operator"] == 3 - joined  # with Equal
    assert kinds["Permute"] == kinds["Flatten"] == 1
    values = np.random.default_rng(0).integers(0, 2, (3, 4, 6)).astype(net.dtype.numpy())
    types_are_true(exported, values)
    wanted = by_definition(model, values)
    for ours, theirs in zip(exported.run({"x": values}), wanted, strict=True):
        assert ours.dtype == theirs.dtype
        np.testing.assert_array_equal(ours, theirs)
    (path,) = save_exported(exported, tmp_path / "model.keras")
    for ours, theirs in zip(keras.models.load_model(path)(values), wanted, strict=True):
        np.testing.assert_array_equal(ours.numpy(), theirs)


@pytest.mark.parametrize("name", ["encoder", "lstm", "unet", "pad_slice_shortcut", "half"])
def test_every_layer_of_a_network_gives_the_type_that_it_announces(name: str) -> None:
    zoo = ZOO[name]
    types_are_true(write(zoo.build(), form="keras"), *zoo.inputs(seed=1, batch=2).values())


def padded_net(dtype: ir.DataType, *, cut: bool) -> ir.Model:
    net = Net("padded", dtype=dtype)
    x = net.input("x", "batch", 3, 9, 8)
    weight, back = net.weight(4, 3, 3, 3), net.weight(4, 3, 4, 4)
    y = net.op("Relu", net.op("Conv", x, weight, pads=[2, 1, 0, 1], strides=[2, 2]))
    y = net.op("MaxPool", y, kernel_shape=[3, 3], pads=[1, 1, 1, 1], strides=[2, 2])
    y = net.op("Pad", y, net.ints([0, 0, 1, 0, 0, 0, 2, 1]))
    y = net.op("ConvTranspose", y, back, strides=[2, 2], pads=[1, 1, 1, 1])
    return net.model(y=net.op("Pad", y, net.ints([0, 0, -1, 0, 0, 0, -1, -2])) if cut else y)


def test_padding_and_cropping_keep_double_precision() -> None:
    model = padded_net(ir.DataType.DOUBLE, cut=False)  # which the evaluator lacks
    exported = write(model, form="keras")
    kinds = layers(exported)
    assert (kinds["ZeroPadding2D"], kinds["Cropping2D"], kinds["Operator"]) == (3, 1, 0)
    x = np.random.default_rng(0).normal(size=(2, 3, 9, 8))
    types_are_true(exported, x)
    (ours,), (theirs,) = exported.run({"x": x}), by_definition(model, x)
    assert ours.dtype == theirs.dtype == np.float64
    np.testing.assert_allclose(ours, theirs, rtol=0, atol=1e-14 * np.abs(theirs).max())


@pytest.fixture
def mixed_precision() -> Iterator[None]:
    before = keras.config.dtype_policy()
    keras.config.set_dtype_policy("mixed_float16")
    yield
    keras.config.set_dtype_policy(before)


@pytest.mark.parametrize("name", ["encoder", "lstm", "gru", "unet", "padded"])
def test_the_policy_of_the_process_is_not_that_of_the_network(name: str, mixed_precision: None) -> None:
    if name == "padded":
        model = padded_net(ir.DataType.FLOAT, cut=True)
        feeds = {"x": np.random.default_rng(0).normal(size=(2, 3, 9, 8)).astype("f")}
    else:
        model, feeds = ZOO[name].build(), ZOO[name].inputs(seed=1, batch=2)
    agrees(write(model, form="keras"), model, feeds)


# -- what Keras cannot say -----------------------------------------------------------------------------------


def plugged() -> ir.Model:
    net = Net("plugged")
    x = net.input("x", "batch", 4)
    held = ir.Attr("held", ir.AttributeType.TENSORS, [ir.tensor(np.full([4], 3, np.float32))])
    node = ir.Node("my.ops", "Scaled", [x], [held], name="scaled")
    (y,) = node.outputs
    y.name, y.shape, y.type = "y", x.shape, x.type
    graph = ir.Graph([x], [y], nodes=[node], opset_imports={"": 21, "my.ops": 1}, name="plugged")
    return ir.Model(graph, ir_version=10)


def scaled(ctx: Any, view: Any) -> Any:
    return ctx[0] * view.attr("held")[0].numpy()


def with_lowerings(**lowerings: Any) -> Registry:
    class Plugin:
        @hookimpl
        def attar_lowerings(self, framework: str) -> dict[str, Any] | None:
            if framework != "tensorflow":
                return None
            return {f"my.ops::{name}": lower for name, lower in lowerings.items()}

    registry = Registry()
    registry.register(Plugin(), name="plugged")
    return registry


def test_where_keras_refuses_the_model_is_a_module_and_the_note_says_why() -> None:
    registry = with_lowerings(Scaled=scaled)
    exported = write_model(plugged(), registry=registry)
    assert not isinstance(exported.native, keras.Model)
    (note,) = exported.notes
    assert note.startswith(
        "written as a tf.Module: a Keras layer cannot hold the my.ops::Scaled node 'scaled'"
    )
    assert "'held'" in note
    x = np.array([[1, -1, 2, 0]], np.float32)
    np.testing.assert_array_equal(exported.run({"x": x})[0], 3 * x)
    with pytest.raises(ConversionError, match="'held'") as caught:
        write_model(plugged(), registry=registry, form="keras")
    assert caught.value.missing == {"my.ops::Scaled": ("scaled",)}
    assert write_model(plugged(), registry=registry, form="module").notes == ()


def test_a_fallback_starts_from_the_network_as_it_was() -> None:
    """Keras' form has joined layers and turned images when it is refused."""

    def no_layer(ctx: Any, view: Any) -> Any:
        if ctx.subgraph is None:
            raise view.refuse("no layer does that")
        return -ctx[0]

    net = Net("turned")
    x = net.input("x", "batch", 3, 8, 8)
    y = net.op("Relu", net.conv(x, 3, 4))
    turned = net.op("Turned", net.dense(net.pooled(y), 4, 5), domain="my.ops")
    turned.name, turned.shape, turned.type = "y", ir.Shape(["batch", 5]), x.type
    opsets = {"": 21, "my.ops": 1}
    graph = ir.Graph(
        net.inputs, [turned], nodes=net.nodes, initializers=net.initializers, opset_imports=opsets, name="g"
    )
    exported = write_model(
        ir.Model(graph, ir_version=10), registry=with_lowerings(Turned=no_layer), layout="channels_last"
    )
    assert [note.partition(":")[0] for note in exported.notes] == [
        "written as a tf.Module",
        "a tf.Module takes and gives images as the source does, not channels-last",
    ]
    plain = Net("turned")
    x = plain.input("x", "batch", 3, 8, 8)
    y = plain.op("Relu", plain.conv(x, 3, 4))
    model = plain.model(y=plain.op("Neg", plain.dense(plain.pooled(y), 4, 5)))
    agrees(exported, model, {"x": np.random.default_rng(0).normal(size=(2, 3, 8, 8)).astype("f")})


def test_a_refusal_outside_a_branch_is_not_told_as_one_inside() -> None:
    text = """<ir_version: 10, opset_import: ["" : 21]> g (float[4] x, bool c) => (float[4] y)
      { r = Bernoulli(x)
        y = If (c) <then_branch = a () => (float[4] t) { t = Add(x, r) },
                    else_branch = b () => (float[4] e) { e = Identity(r) }> }"""
    with pytest.raises(ConversionError, match="random") as caught:
        write(attar.load(onnx.parser.parse_model(text)))
    assert set(caught.value.missing) == {"Bernoulli"}
