"""`attar_train.trainable`: the IR's module trains as the one that somebody wrote by hand."""

from __future__ import annotations

import functools
import sys
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
import onnx_ir as ir
import pytest

torch = pytest.importorskip("torch")

from train_data import one_thread  # noqa: E402, F401
from train_nets import Residual, cases  # noqa: E402

import attar  # noqa: E402
from attar import graph  # noqa: E402
from attar.errors import InputError, Refused  # noqa: E402
from attar.runtime import OnnxRuntime  # noqa: E402
from attar.testing import ZOO  # noqa: E402
from attar.testing.build import Net  # noqa: E402
from attar_train import trainable  # noqa: E402

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "adapters"))


pytestmark = pytest.mark.usefixtures("one_thread")


def load(module: Any, x: Any) -> ir.Model:
    return attar.load(module.eval(), inputs=x)


@functools.cache
def residual() -> ir.Model:
    torch.manual_seed(0)
    return load(Residual(), torch.randn(2, 3, 8, 8))


def weights_of(model: ir.Model) -> dict[str, np.ndarray[Any, Any]]:
    arrays = {n: graph.const_array(v) for n, v in model.graph.initializers.items()}
    return {n: a for n, a in arrays.items() if a is not None}


def far(a: Any, b: Any) -> float:
    """Largest difference over the largest magnitude."""
    a, b = np.asarray(a, np.float64), np.asarray(b, np.float64)
    return float(np.abs(a - b).max() / max(np.abs(b).max(), 1e-9))


@pytest.mark.parametrize("name", ["residual", "mlp", "transformer", "recurrent"])
def test_two_steps_equal_those_of_the_hand_written_module(name: str) -> None:
    """SGD with momentum and weight decay, the statistics of BatchNorm included; then both are run."""
    module, x, target = cases()[name]
    made = trainable(load(module, x))
    assert len(made.weights) == len(list(module.parameters())) or name in ("recurrent", "transformer")
    options = {"lr": 0.05, "momentum": 0.9, "weight_decay": 1e-3}
    by_hand = torch.optim.SGD(module.train().parameters(), **options)
    ours = torch.optim.SGD([p for p in made.train().weights.values() if p.requires_grad], **options)
    before = {n: p.detach().clone() for n, p in made.weights.items()}
    for _ in range(2):
        by_hand.zero_grad()
        (module(x) - target).square().mean().backward()
        by_hand.step()
        ours.zero_grad()
        (made.forward({made.inputs[0]: x})[made.outputs[0]] - target).square().mean().backward()
        ours.step()
    assert all((before[n] != p).any() for n, p in made.weights.items()), "every weight has moved"
    expected = {n: t.detach().numpy() for n, t in module.state_dict().items()}
    compared = 0
    for weight, array in made.arrays().items():
        source = weight.removesuffix("_t")  # what a MatMul wants of a dense layer's weight
        if source in expected and array.size == expected[source].size:
            compared += 1
            same = expected[source].T if source != weight else expected[source].reshape(array.shape)
            assert far(array, same) < 2e-6, weight
    assert compared >= {"residual": 17, "mlp": 6, "transformer": 12, "recurrent": 2}[name]
    finished = made.finish()
    with torch.no_grad():
        wanted = module.eval()(x).numpy()
    got = OnnxRuntime().open(finished).run({made.inputs[0]: x.numpy()})[0]
    assert far(got, wanted) < 1e-5


def test_what_comes_back_is_the_same_graph_with_other_numbers() -> None:
    model = residual()
    content = graph.to_bytes(model)
    made = trainable(model)
    assert made.finish() is not model
    assert graph.fingerprint(made.finish()) == graph.fingerprint(model)
    with torch.no_grad():
        for parameter in made.weights.values():
            parameter.mul_(1.5)
    back = graph.clone(model)
    changed = made.write_back(back)
    assert graph.to_bytes(model) == content, "the caller's model is as it was"
    assert set(changed) >= {"conv1.weight", "head.weight", "bn1.weight"}
    old, new = weights_of(model), weights_of(back)
    assert old.keys() <= new.keys()
    for name in changed:
        if name in old:
            assert new[name].dtype == old[name].dtype
            np.testing.assert_array_equal(new[name], old[name] * np.float32(1.5))
    assert [n.op_type for n in back.graph] == [n.op_type for n in model.graph]
    with pytest.raises(InputError, match="no weight"):
        made.write_back(ZOO["mlp"].build())


def test_a_shared_weight_stays_one_and_equal_ones_go_apart() -> None:
    """The embedding that is the head, too, is one parameter. Two scales that are all ones were stored as one
    initializer; trained, they are two."""
    module, x, _ = cases()["transformer"]
    made = trainable(load(module, x))
    tables = [n for n, p in made.weights.items() if tuple(p.shape) == (20, 16)]
    assert len(tables) == 1
    net = Net("ones", 1)
    y = net.input("x", "N", 4)
    one = net.const(np.ones(4, np.float32), "scale")
    zero = net.const(np.zeros(4, np.float32), "shift")
    for _ in range(2):
        y = net.op("LayerNormalization", net.op("Tanh", y), one, zero)
    model = net.model(y=net.dense(y, 4, 2))
    made = trainable(model)
    scales = [n for n in made.weights if n.startswith("scale")]
    assert len(scales) == 2
    with torch.no_grad():
        made.weights[scales[0]].fill_(2.0)
        made.weights[scales[1]].fill_(3.0)
    back = graph.clone(model)
    made.write_back(back)
    graph.tidy(back)
    norms = [n for n in back.graph if n.op_type == "LayerNormalization"]
    assert sorted(float(graph.const_array(n.inputs[1])[0]) for n in norms) == [2.0, 3.0]
    feeds = {"x": np.random.default_rng(0).standard_normal((3, 4)).astype(np.float32)}
    ours = made.eval().forward({"x": torch.from_numpy(feeds["x"])})["y"].detach().numpy()
    assert far(OnnxRuntime().open(back).run(feeds)[0], ours) < 1e-6


def test_a_matrix_that_two_layers_read_in_two_layouts_is_one_parameter() -> None:
    net = Net("tied", 2)
    x = net.input("x", "N", 6)
    weight = net.weight(6, 6, name="w")
    y = net.op("Gemm", net.op("Tanh", net.op("Gemm", x, weight, transB=1)), weight)
    model = net.model(y=y)
    made = trainable(model)
    assert list(made.weights) == ["w"]
    feeds = {"x": torch.randn(5, 6)}
    made.forward(feeds)["y"].square().mean().backward()
    w = torch.tensor(weights_of(model)["w"], requires_grad=True)
    (torch.tanh(feeds["x"] @ w.T) @ w).square().mean().backward()
    assert far(made.weights["w"].grad, w.grad) < 1e-6


def test_moves_of_a_weight_are_not_computed_beforehand() -> None:
    """MatMul(x, Transpose(w)): the gradient reaches w itself."""
    net = Net("moved", 3)
    x = net.input("x", "N", 6)
    w = net.weight(4, 6, name="w")
    model = net.model(y=net.op("MatMul", x, net.op("Transpose", w, perm=[1, 0])))
    made = trainable(model)
    assert [tuple(p.shape) for p in made.weights.values()] == [(4, 6)]
    feeds = {"x": torch.randn(5, 6)}
    made.forward(feeds)["y"].sum().backward()
    assert far(made.weights["w"].grad, feeds["x"].sum(0).expand(4, 6)) < 1e-6
    assert "Transpose" in {n.op_type for n in made.finish().graph}


def test_hidden_values_are_tapped_by_name() -> None:
    model, x = residual(), torch.randn(4, 3, 8, 8)
    made = trainable(model).eval()
    names = [v.name for n in model.graph if n.op_type in ("Relu", "Add") for v in n.outputs][:3]
    found = made.tap(names)({made.inputs[0]: x})
    copy = graph.clone(model)
    for name in names:
        value = next(v for v in graph.all_values(copy) if v.name == name)
        copy.graph.outputs.append(value)
    expected = dict(
        zip([v.name for v in copy.graph.outputs], OnnxRuntime().open(copy).run({made.inputs[0]: x.numpy()}),
            strict=True)
    )  # fmt: skip
    for name in (*names, *made.outputs):
        assert far(found[name].detach().numpy(), expected[name]) < 1e-5, name
    made.train()
    assert found[names[0]].grad_fn is not None
    with pytest.raises(InputError, match=r"does not compute 'nothing'"):
        made.tap(["nothing"])
    linear = trainable(ZOO["mlp"].build())
    bare = [n.outputs[0].name for n in linear.model.graph if n.op_type == "MatMul"]
    assert all(n not in linear.values for n in bare), "a product whose Add became a bias is nowhere"


def test_freezing_goes_by_pattern() -> None:
    made = trainable(residual())
    assert set(made.freeze(["bn*", "conv1.weight"])) >= {"bn1.weight", "bn3.bias", "conv1.weight"}
    assert [n for n, p in made.weights.items() if p.requires_grad and n.startswith(("bn", "conv1"))] == []
    made = trainable(residual())
    made.freeze(["head.*"], others=True)
    assert {n for n, p in made.weights.items() if p.requires_grad} == {"head.weight", "head.bias"}
    with pytest.raises(InputError, match=r"no weight is named like 'layer9\.\*'"):
        made.freeze(["layer9.*"])


def test_what_cannot_train_says_so() -> None:
    net = Net("none", 0)
    model = net.model(y=net.op("Relu", net.input("x", "N", 3)))
    with pytest.raises(Refused, match="no weight that can be trained"):
        trainable(model)
    half = Net("half", 0, dtype=ir.DataType.FLOAT16)
    x = half.input("x", "N", 3)
    with pytest.raises(Refused, match="half precision"):
        trainable(half.model(y=half.op("MatMul", x, half.weight(3, 3))))
    made = trainable(ZOO["mlp"].build())
    with pytest.raises(InputError, match="no input named"):
        made.forward({})


@pytest.mark.parametrize("name", sorted(ZOO))
def test_every_small_model_trains_or_refuses_and_comes_back_the_same(name: str) -> None:
    model = ZOO[name].build()
    try:
        made = trainable(model)
    except attar.AttarError:
        return
    assert graph.fingerprint(made.finish()) == graph.fingerprint(model)


def test_a_keras_model_trains_as_in_keras() -> None:
    pytest.importorskip("tensorflow")
    import keras
    import tensorflow as tf

    keras.utils.set_random_seed(0)
    inputs = keras.Input((8, 8, 3))
    y = keras.layers.Conv2D(6, 3, padding="same", use_bias=False, name="conv")(inputs)
    y = keras.layers.ReLU()(keras.layers.BatchNormalization(name="bn")(y))
    y = keras.layers.DepthwiseConv2D(3, strides=2, padding="same", name="deep")(y)
    y = keras.layers.GlobalAveragePooling2D()(y)
    net = keras.Model(inputs, keras.layers.Dense(4, name="head")(y))
    made = trainable(attar.load(net)).train()
    rng = np.random.default_rng(0)
    x, target = rng.standard_normal((8, 8, 8, 3), np.float32), rng.standard_normal((8, 4), np.float32)
    with tf.GradientTape() as tape:
        loss = tf.reduce_mean(tf.square(net(x, training=True) - target))
    gradients = tape.gradient(loss, net.trainable_variables)
    for variable, gradient in zip(net.trainable_variables, gradients, strict=True):
        variable.assign_sub(0.1 * gradient)
    ours = torch.optim.SGD(made.weights.values(), lr=0.1)
    out = made.forward({made.inputs[0]: torch.from_numpy(x)})[made.outputs[0]]
    (out - torch.from_numpy(target)).square().mean().backward()
    ours.step()
    arrays = made.arrays()
    turned = {
        "conv/kernel": net.get_layer("conv").kernel.numpy().transpose(3, 2, 0, 1),
        "bn/gamma": net.get_layer("bn").gamma.numpy(),
        "bn/beta": net.get_layer("bn").beta.numpy(),
        "deep/kernel": net.get_layer("deep").kernel.numpy().transpose(2, 3, 0, 1),
        "head/kernel": net.get_layer("head").kernel.numpy(),
        "head/bias": net.get_layer("head").bias.numpy(),
    }
    for name, expected in turned.items():
        assert far(arrays[name], expected) < 2e-6, name
    back = attar.export(made.finish(), "tensorflow")
    got = np.asarray(back(x[:2]))
    assert far(got, net(x[:2], training=False).numpy()) < 0.2, "statistics differ by Keras' own momentum"


def test_an_mxnet_model_trains_as_in_mxnet() -> None:
    if find_spec("mxnet") is None:
        pytest.skip("mxnet is not installed")
    from mxnet_nets import with_mxnet

    from attar_mxnet.reading.live import mxnet

    mx = mxnet()
    nn = mx.gluon.nn
    mx.random.seed(0)
    net = nn.HybridSequential()
    net.add(
        nn.Conv2D(6, 3, padding=1, use_bias=False), nn.BatchNorm(), nn.Activation("relu"),
        nn.Conv2D(8, 3, strides=2), nn.Activation("relu"), nn.GlobalAvgPool2D(), nn.Flatten(), nn.Dense(4),
    )  # fmt: skip
    net.initialize(mx.init.Xavier())
    rng = np.random.default_rng(0)
    x, target = rng.standard_normal((8, 3, 8, 8), np.float32), rng.standard_normal((8, 4), np.float32)
    net(mx.nd.array(x))
    net.hybridize()
    net(mx.nd.array(x))
    registry = with_mxnet()
    made = trainable(attar.load(net, inputs=x, registry=registry), registry).train()
    with mx.autograd.record():
        loss = mx.nd.mean(mx.nd.square(net(mx.nd.array(x)) - mx.nd.array(target)))
    loss.backward()
    before = made.arrays()
    expected = {
        n: (p.data().asnumpy() - 0.1 * p.grad().asnumpy())
        for n, p in net.collect_params().items()
        if p.grad_req != "null"
    }
    out = made.forward({made.inputs[0]: torch.from_numpy(x)})[made.outputs[0]]
    (out - torch.from_numpy(target)).square().mean().backward()
    torch.optim.SGD(made.weights.values(), lr=0.1).step()
    arrays = made.arrays()
    assert set(expected) <= set(arrays), "the names are MXNet's own"
    for name, wanted in expected.items():
        assert far(arrays[name], wanted) < 5e-6, name
        assert (arrays[name] != before[name]).any()
