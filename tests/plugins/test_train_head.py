"""New classes, and loops of one's own: what leaves attar to be trained comes back as the same model."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

torch = pytest.importorskip("torch")

from train_data import accuracy, context, images, mlp, network  # noqa: E402

import attar  # noqa: E402
from attar import graph, invariants  # noqa: E402
from attar.errors import InputError, Refused  # noqa: E402
from attar.run import run_pass  # noqa: E402
from attar.runtime import OnnxRuntime  # noqa: E402
from attar.specs import output_specs  # noqa: E402
from attar.testing import conformance  # noqa: E402
from attar.testing.build import Net  # noqa: E402
from attar_train import Distill, FineTune, head_of, new_head, prepare  # noqa: E402

TRAIN, TEST = images(320), images(300, seed=9)


@pytest.mark.parametrize("softmax", [False, True])
def test_a_new_head_for_other_classes(softmax: bool) -> None:
    model = network(softmax=softmax)
    content = graph.to_bytes(model)
    made = new_head(model, 3, seed=1)
    assert graph.to_bytes(model) == content
    assert output_specs(made)[0].shape == ("N", 3)
    assert head_of(made).names == head_of(model).names == ("layer31.weight", "layer31.bias")
    old, new = ({n: graph.const_array(v) for n, v in m.graph.initializers.items()} for m in (model, made))
    for name, array in old.items():
        if name in head_of(model).names:
            assert new[name].shape == (3, *array.shape[1:])
        else:
            np.testing.assert_array_equal(new[name], array)
    assert (new["layer31.bias"] == 0).all()
    limit = np.sqrt(6 / (16 + 3))
    assert 0.8 * limit < np.abs(new["layer31.weight"]).max() <= limit
    OnnxRuntime().open(made).run({"x": TRAIN[0][:2]})
    other = graph.const_array(new_head(model, 3, seed=2).graph.initializers["layer31.weight"])
    assert (other != new["layer31.weight"]).any()


def test_a_head_behind_a_reshape_and_one_of_a_convolution() -> None:
    net = Net("conv head", 1)
    y = net.conv(net.input("x", "N", 3, 4, 4), 3, 6)
    scores = net.op("GlobalAveragePool", net.op("Relu", net.conv(y, 6, 5, (1, 1))))
    made = new_head(net.model(y=net.op("Flatten", scores)), 2)  # as SqueezeNet ends
    assert output_specs(made)[0].shape == ("N", 2)
    assert OnnxRuntime().open(made).run({"x": np.ones((3, 3, 4, 4), np.float32)})[0].shape == (3, 2)
    net = Net("reshaped", 1)
    y = net.op("GlobalAveragePool", net.conv(net.input("x", "N", 3, 4, 4), 3, 6))
    made = new_head(net.model(y=net.op("Reshape", net.conv(y, 6, 5, (1, 1)), net.ints([0, 5]))), 2)
    assert output_specs(made)[0].shape[1] == 2
    net = Net("map", 1)  # as many classes as pixels in a row
    y = net.conv(net.input("x", "N", 3, 5, 5), 3, 6)
    made = new_head(net.model(y=net.op("Relu", net.conv(y, 6, 5, (1, 1)))), 2)
    assert output_specs(made)[0].shape == ("N", 2, 5, 5)
    net = Net("product", 1)
    made = new_head(net.model(y=net.dense(net.input("x", "N", 7, 4), 4, 5, gemm=False)), 2)
    assert output_specs(made)[0].shape == ("N", 7, 2)
    with pytest.raises(InputError, match="classes must be at least 1"):
        new_head(mlp(), 0)
    with pytest.raises(InputError, match="no output 'z'"):
        new_head(mlp(), 2, output="z")
    net = Net("bounded", 0)
    made = new_head(net.model(y=net.op("Tanh", net.dense(net.input("x", "N", 4), 4, 5))), 3)
    assert output_specs(made)[0].shape == ("N", 3)
    net = Net("none", 0)
    bare = net.model(y=net.op("Relu", net.input("x", "N", 3)))
    with pytest.raises(Refused, match="no dense layer"):
        new_head(bare, 2)


def test_transfer_and_compression_in_one_recipe() -> None:
    """First the head alone, then everything, then smaller, taught by what was fine-tuned."""
    from attar_prune import Channels

    base, _ = run_pass(FineTune(epochs=3, batch_size=32, lr=0.01), network(), context(network(), TRAIN))
    train, test = ((x, (y % 2).astype(np.int64)) for x, y in (TRAIN, TEST))
    model = new_head(base, 2)
    recipe = [
        FineTune(epochs=2, batch_size=32, lr=0.02, only=head_of(model).names, batch_norm="frozen"),
        FineTune(epochs=2, batch_size=32, lr=0.003),
        Channels(ratio=0.4, block=1),
        Distill(epochs=3, batch_size=32, lr=0.005, teachers=("trained",)),
    ]
    result = attar.compress(model, recipe, training=train, evaluate=(test, "top1"))
    assert [s.refused for s in result.report.steps] == [""] * 4
    assert accuracy(result.model, test) > 0.9
    size = {n: v.const_value.size for n, v in result.model.graph.initializers.items()}
    assert sum(size.values()) < 0.7 * sum(v.const_value.size for v in model.graph.initializers.values())
    with pytest.raises(InputError, match="no step before this one has fine-tuned"):
        attar.compress(model, [Distill(teachers=("trained",))], training=train)


def test_a_loop_of_ones_own() -> None:
    """Held zeros stay through any optimizer; what comes back is the plain model."""
    model = network()
    weight = model.graph.initializers["layer1.weight"]
    zero = np.random.default_rng(0).random(weight.const_value.shape) < 0.6
    graph.replace_weight(weight, np.where(zero, 0, graph.const_array(weight)).astype(np.float32))
    invariants.hold(weight, zeros=True)
    made = prepare(model).train()
    optimizer = torch.optim.Adam(made.module.parameters(), lr=0.01, weight_decay=0.001)
    before = accuracy(model, TEST)
    for start in 3 * list(range(0, 320, 32)):
        optimizer.zero_grad()
        x, y = (torch.from_numpy(a[start : start + 32]) for a in TRAIN)
        torch.nn.functional.cross_entropy(made.forward({"x": x})["scores"], y).backward()
        optimizer.step()
    done = made.finish()
    assert [n.op_type for n in done.graph] == [n.op_type for n in model.graph]
    new = graph.const_array(done.graph.initializers["layer1.weight"])
    assert (new[zero] == 0).all()
    assert (new[~zero] != graph.const_array(weight)[~zero]).all()
    assert accuracy(done, TEST) > before + 0.2
    with torch.no_grad():
        ours = made.eval().forward({"x": torch.from_numpy(TEST[0])})["scores"].numpy()
    theirs = OnnxRuntime().open(done).run({"x": TEST[0]})[0]
    np.testing.assert_allclose(ours, theirs, rtol=1e-3, atol=1e-4)


SOME = ["mlp", "residual_cnn", "shared_weight", "attention"]


@conformance(FineTune(steps=2), Distill(steps=2), models=SOME)
def test_the_passes_conform() -> None:
    """Every promise of a pass, on some models."""


@pytest.mark.slow
@conformance(FineTune(steps=2), Distill(steps=2))
def test_the_passes_conform_everywhere() -> None:
    """Every promise of a pass, on all models of the zoo."""


def test_the_command_line_trains(tmp_path: Any) -> None:
    from click.testing import CliRunner

    from attar.cli.app import cli

    attar.save(network(), tmp_path / "model.onnx")
    np.savez(tmp_path / "train.npz", x=TRAIN[0], labels=TRAIN[1])
    np.savez(tmp_path / "test.npz", x=TEST[0], labels=TEST[1])
    arguments = [
        "compress", str(tmp_path / "model.onnx"), "--pass", "train.finetune:epochs=3,lr=0.01,batch_size=32",
        "--train", str(tmp_path / "train.npz"), "--evaluate", "top1", "--data", str(tmp_path / "test.npz"),
        "-o", str(tmp_path / "out.onnx"),
    ]  # fmt: skip
    done = CliRunner().invoke(cli, arguments)
    assert done.exit_code == 0, done.output
    assert accuracy(attar.load(tmp_path / "out.onnx"), TEST) > 0.8
    place = arguments.index("--train")
    without = CliRunner().invoke(cli, arguments[:place] + arguments[place + 2 :])
    assert without.exit_code != 0
    assert "needs training data" in without.output + str(without.exception)
