"""Whole Gluon networks, read natively from their exported files and live, against MXNet 1.9.1."""

from __future__ import annotations

import importlib.util
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from mxnet_files import near
from mxnet_nets import encoder, interleaved, randomised, with_mxnet, wrapped

from attar.registry import Registry
from attar.runtime import OnnxRuntime

pytestmark = pytest.mark.skipif(importlib.util.find_spec("mxnet") is None, reason="compares with MXNet")

Array = np.ndarray[Any, np.dtype[Any]]


@pytest.fixture(scope="module")
def registry() -> Registry:
    return with_mxnet()


def rand(*shape: int) -> Array:
    return np.random.default_rng(3).uniform(-1, 1, shape).astype(np.float32)


def agree(registry: Registry, source: Any, feeds: tuple[Array, ...], **options: Any) -> Any:
    """Load, and compare on `feeds` and on another batch size."""
    loaded = registry.get_adapter("mxnet").load(source, registry=registry, inputs=feeds, **options)
    names = [v.name for v in loaded.model.graph.inputs]
    session = OnnxRuntime().open(loaded.model)
    assert loaded.reference is not None
    for count in (1, 2):
        given = {n: np.concatenate([a] * count) for n, a in zip(names, feeds, strict=True)}
        wanted, got = loaded.reference(given), session.run(given)
        assert len(wanted) == len(got)
        for a, b in zip(wanted, got, strict=True):
            assert np.abs(a).max() > 0
            near(b, a, rel=1e-5)
    return loaded


ZOO = [  # the smallest of each family, at the smallest image that MXNet takes
    ("resnet18_v1", 64),
    ("resnet18_v2", 64),
    ("squeezenet1_1", 224),
    ("mobilenet0_25", 64),
    ("mobilenet_v2_0_25", 64),
    pytest.param("alexnet", 224, marks=pytest.mark.slow),
    pytest.param("vgg11", 224, marks=pytest.mark.slow),
    pytest.param("vgg11_bn", 224, marks=pytest.mark.slow),
    pytest.param("densenet121", 224, marks=pytest.mark.slow),
    pytest.param("inception_v3", 299, marks=pytest.mark.slow),
]


@pytest.mark.parametrize(("name", "size"), ZOO)
def test_the_gluon_model_zoo(name: str, size: int, tmp_path: Path, registry: Registry) -> None:
    from attar_mxnet.reading.live import mxnet

    x = rand(1, 3, size, size)
    net = getattr(mxnet().gluon.model_zoo.vision, name)(classes=10)
    randomised(net, x)
    agree(registry, net, (x,))
    net.hybridize()
    net(mxnet().nd.array(x))
    net.export(str(tmp_path / "net"))
    loaded = agree(registry, tmp_path / "net-symbol.json", (x,))
    weights = loaded.model.graph.initializers
    kept = [n for n in net.collect_params() if n in weights and n.endswith("weight")]
    assert kept == [n for n in net.collect_params() if n.endswith("weight")]
    # Without inputs the sizes follow from the weights, or stay open.
    alone = registry.get_adapter("mxnet").load(tmp_path / "net-0000.params", registry=registry)
    assert str(alone.model.graph.inputs[0].shape[0]) == "batch"
    assert OnnxRuntime().open(alone.model).run({"data": x})[0].shape == (1, 10)


def _nets() -> dict[str, tuple[Callable[[Any], Any], tuple[Array, ...]]]:
    x = rand(3, 5, 4)
    tokens = np.random.default_rng(1).integers(0, 50, (2, 9))
    length = np.array([4, 9], np.float32)
    return {
        "lstm": (lambda rnn: wrapped(rnn.LSTM(6, 2, layout="NTC", bidirectional=True)), (x,)),
        "gru": (lambda rnn: wrapped(rnn.GRU(6, 2, layout="NTC")), (x,)),
        "rnn_tanh": (
            lambda rnn: wrapped(rnn.RNN(6, activation="tanh", layout="NTC", bidirectional=True)),
            (x,),
        ),
        "rnn_relu": (lambda rnn: wrapped(rnn.RNN(6, 3, activation="relu", layout="NTC")), (x,)),
        "lstm_cell": (lambda rnn: wrapped(rnn.LSTMCell(6), 5), (x,)),
        "gru_cell": (lambda rnn: wrapped(rnn.GRUCell(6), 5), (x,)),
        "two_cells": (lambda rnn: wrapped(rnn.BidirectionalCell(rnn.LSTMCell(6), rnn.GRUCell(6)), 5), (x,)),
        "encoder": (lambda _: encoder(), (tokens.astype(np.float32), length)),
        "encoder_int": (lambda _: encoder(), (tokens.astype(np.int32), length.astype(np.int32))),
        "interleaved": (lambda _: interleaved(), (rand(2, 9, 32), length)),
    }


@pytest.mark.parametrize("name", list(_nets()))
def test_sequences(name: str, tmp_path: Path, registry: Registry) -> None:
    from attar_mxnet.reading.live import mxnet

    mx = mxnet()
    make, feeds = _nets()[name]
    net = make(mx.gluon.rnn)
    net.initialize(mx.init.Normal(0.3))
    agree(registry, net, feeds)  # its sizes are not known before: it is run once
    net.hybridize()
    net(*[mx.nd.array(a, dtype=a.dtype) for a in feeds])
    agree(registry, net, feeds)
    net.export(str(tmp_path / "net"))
    agree(registry, tmp_path / "net", feeds)


def test_states_go_in_and_come_out(tmp_path: Path, registry: Registry) -> None:
    from attar_mxnet.reading.live import mxnet

    mx = mxnet()
    net = mx.gluon.rnn.LSTM(6, 2, bidirectional=True, input_size=4)
    net.initialize(mx.init.Normal(0.3))
    x, h, c = rand(5, 3, 4), rand(4, 3, 6), rand(4, 3, 6) * 2
    loaded = registry.get_adapter("mxnet").load(net, registry=registry, inputs=(x, [h, c]), dynamic=None)
    assert loaded.reference is not None
    wanted = loaded.reference(loaded.example)
    got = OnnxRuntime().open(loaded.model).run(loaded.example)
    assert [a.shape for a in wanted] == [(5, 3, 12), (4, 3, 6), (4, 3, 6)]
    for a, b in zip(wanted, got, strict=True):
        near(b, a)


def test_a_block_in_numpy_mode(tmp_path: Path, registry: Registry) -> None:
    from attar_mxnet.reading.live import mxnet

    mx = mxnet()
    mx.npx.set_np()
    try:
        net = mx.gluon.nn.HybridSequential()
        net.add(mx.gluon.nn.Conv2D(4, 3, in_channels=3), mx.gluon.nn.BatchNorm(), mx.gluon.nn.MaxPool2D())
        net.add(mx.gluon.nn.Flatten(), mx.gluon.nn.Dense(5))
        net.initialize()
        agree(registry, net, (rand(2, 3, 8, 8),))
        net.hybridize()
        net(mx.np.array(rand(2, 3, 8, 8)))
        net.export(str(tmp_path / "net"))
    finally:
        mx.npx.reset_np()
    agree(registry, tmp_path / "net-symbol.json", (rand(2, 3, 8, 8),))


def test_a_symbol_a_pair_and_a_module(registry: Registry) -> None:
    from attar_mxnet.reading.live import mxnet

    mx = mxnet()
    data = mx.sym.var("data")
    symbol = mx.sym.SoftmaxOutput(mx.sym.FullyConnected(data, num_hidden=3, name="fc"), name="softmax")
    x = rand(4, 5)
    module = mx.mod.Module(symbol, label_names=["softmax_label"])
    module.bind(data_shapes=[("data", (4, 5))], for_training=False)
    module.init_params(mx.init.Normal(1.0))
    arguments, states = module.get_params()
    for source, options in (
        (symbol, {"params": arguments}),
        ((symbol, arguments, states), {}),
        (module, {}),
    ):
        loaded = agree(registry, source, (x,), **options)
        assert [v.name for v in loaded.model.graph.inputs] == ["data"]
        assert [v.name for v in loaded.model.graph.outputs] == ["softmax_output"]


def test_reading_leaves_a_block_as_it_was(registry: Registry) -> None:
    from attar_mxnet.reading.live import mxnet

    x = rand(2, 3, 64, 64)
    net = randomised(mxnet().gluon.model_zoo.vision.mobilenet0_25(classes=4), x)
    before = {n: p.data().asnumpy() for n, p in net.collect_params().items()}
    loaded = registry.get_adapter("mxnet").load(net, registry=registry, inputs=x)
    for name, parameter in net.collect_params().items():
        np.testing.assert_array_equal(parameter.data().asnumpy(), before[name])
    name = next(n for n in before if n.endswith("conv0_weight"))
    net.collect_params()[name].set_data(mxnet().nd.zeros(before[name].shape))
    assert np.abs(loaded.model.graph.initializers[name].const_value.numpy()).max() > 0
