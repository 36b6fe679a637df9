"""`train.distill`: what is compared and how, teachers of any framework, hidden values, what is refused."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

torch = pytest.importorskip("torch")

from train_data import CLASSES, accuracy, context, images, network, one_thread  # noqa: E402, F401

import attar  # noqa: E402
from attar import graph  # noqa: E402
from attar.errors import InputError  # noqa: E402
from attar.run import run_pass, run_recipe  # noqa: E402
from attar.runtime import OnnxRuntime  # noqa: E402
from attar.testing.build import Net  # noqa: E402
from attar_train import Distill, FineTune, trainable  # noqa: E402
from attar_train.batches import Samples  # noqa: E402
from attar_train.hidden import Pair, attention_maps, pairs  # noqa: E402
from attar_train.teachers import teachers  # noqa: E402

RNG = np.random.default_rng(0)
TRAIN, TEST = images(320), images(400, seed=9)


pytestmark = pytest.mark.usefixtures("one_thread")


@pytest.fixture(scope="module")
def teacher() -> Any:
    """A trained network."""
    model = network()
    trained, _ = run_pass(FineTune(epochs=6, batch_size=32, lr=0.01), model, context(model, TRAIN))
    assert accuracy(trained, TEST) > 0.9
    return trained


def damaged(model: Any) -> Any:
    """The same network with weights that are far off."""
    copy = graph.clone(model)
    rng = np.random.default_rng(1)
    for node in copy.graph:
        if node.op_type == "Conv":
            array = graph.const_array(node.inputs[1])
            noisy = array + rng.standard_normal(array.shape) * array.std()
            graph.replace_weight(node.inputs[1], noisy.astype(np.float32))
    return copy


def far(one: Any, other: Any, x: Any = TEST[0]) -> float:
    """Mean squared difference of the scores over their variance."""
    a, b = (OnnxRuntime().open(m).run({m.graph.inputs[0].name: x})[0] for m in (one, other))
    return float(((a - b) ** 2).mean() / b.var())


def test_the_original_teaches_without_labels(teacher: Any) -> None:
    student = damaged(teacher)
    before = far(student, teacher)
    ctx = context(student, TRAIN[0], original=teacher)
    result, record = run_pass(Distill(epochs=5, batch_size=32, lr=0.005), student, ctx)
    assert accuracy(result, TEST) > accuracy(teacher, TEST) - 0.02 > accuracy(student, TEST) + 0.1
    assert far(result, teacher) < before / 5
    assert record.changes[0].startswith("trained 50 steps")


def test_in_a_recipe_the_model_as_it_came_is_the_teacher(teacher: Any) -> None:
    from attar_prune import Channels

    recipe = [Channels(ratio=0.5, block=1), Distill(epochs=4, batch_size=32, lr=0.01)]
    pruned, _, _ = run_recipe(recipe[:1], teacher, context(teacher, TRAIN[0]))
    result = attar.compress(teacher, recipe, training=TRAIN[0], evaluate=(TEST, "top1"), max_drop=0.5)
    assert [s.refused for s in result.report.steps] == ["", ""]
    assert far(result.model, teacher) < far(pruned, teacher) / 2
    shapes = {n: tuple(v.shape) for n, v in result.model.graph.initializers.items()}
    assert shapes == {n: tuple(v.shape) for n, v in pruned.graph.initializers.items()}


def loss_of(step: Distill, student: Any, ctx: Any, x: Any, labels: Any = None) -> tuple[float, Any]:
    made = trainable(student).eval()
    loss = step.loss_for(made, student, ctx)
    tensor = torch.tensor(x)
    outputs = made.forward({made.inputs[0]: tensor}, loss.taps)
    held = None if labels is None else torch.tensor(labels)
    return float(loss(outputs, Samples({made.inputs[0]: tensor}, held, len(x))).detach()), loss


def softmax(z: Any) -> Any:
    e = np.exp(z - z.max(1, keepdims=True))
    return e / e.sum(1, keepdims=True)


def scores(model: Any, x: Any) -> Any:
    return OnnxRuntime().open(model).run({model.graph.inputs[0].name: x})[0].astype(np.float64)


def test_the_loss_is_that_of_the_paper(teacher: Any, tmp_path: Path) -> None:
    """T^2 KL(p || q), p the mean of the teachers' softmax(z / T) by their weights; a Softmax at the end of
    either is looked through."""
    student, x, y = network(softmax=True, seed=11), TEST[0][:16], TEST[1][:16]
    other = network(seed=12)
    attar.save(teacher, tmp_path / "a.onnx")
    attar.save(other, tmp_path / "b.onnx")
    ctx = context(student, TRAIN[0])
    step = Distill(
        temperature=3.0, teachers=(str(tmp_path / "a.onnx"), str(tmp_path / "b.onnx")), weights=(3.0, 1.0)
    )
    p = 0.75 * softmax(scores(teacher, x) / 3) + 0.25 * softmax(scores(other, x) / 3)
    z = np.log(scores(student, x))
    q = softmax(z / 3)
    expected = 9 * (p * (np.log(p) - np.log(q))).sum(1).mean()
    found, _ = loss_of(step, student, ctx, x)
    assert found == pytest.approx(expected, rel=1e-4)
    mixed = Distill(temperature=3.0, teachers=step.teachers, weights=step.weights, labels=0.25)
    hard = -np.log(scores(student, x))[np.arange(16), y].mean()
    found, _ = loss_of(mixed, student, ctx, x, y)
    assert found == pytest.approx(0.75 * expected + 0.25 * hard, rel=1e-4)
    given = context(student, TRAIN[0], teachers=(teacher,))
    found, _ = loss_of(Distill(loss="mse"), network(seed=11), given, x)
    t, s = scores(teacher, x), scores(network(seed=11), x)
    assert found == pytest.approx(((s - t) ** 2).mean() / t.var(), rel=1e-4)


@pytest.mark.parametrize(
    ("bound", "inverse"), [("Tanh", np.arctanh), ("Softsign", lambda y: y / (1 - abs(y)))]
)
def test_scores_that_end_in_a_bound_are_compared_before_it(bound: str, inverse: Any) -> None:
    """Behind a Tanh nearly all scores are 1 or -1; before it they say more, and the gradient is not lost."""

    def bounded(seed: int) -> Any:
        net = Net("bounded", seed)
        return net.model(y=net.op(bound, net.dense(net.input("x", "N", 6), 6, 5)))

    student, other = bounded(1), bounded(2)
    x = RNG.standard_normal((16, 6)).astype(np.float32)
    ctx = context(student, x, teachers=(other,))
    t, s = (inverse(scores(m, x)) for m in (other, student))
    p, q = softmax(t / 2), softmax(s / 2)
    expected = 4 * (p * (np.log(p) - np.log(q))).sum(1).mean()
    found, _ = loss_of(Distill(temperature=2.0), student, ctx, x)
    assert found == pytest.approx(expected, rel=1e-3)
    # The mean square is that of the outputs themselves.
    t, s = scores(other, x), scores(student, x)
    found, _ = loss_of(Distill(loss="mse"), student, ctx, x)
    assert found == pytest.approx(((s - t) ** 2).mean() / t.var(), rel=1e-4)


def test_distances_of_hidden_values_are_those_of_the_papers() -> None:
    wide, narrow = RNG.standard_normal((5, 8, 6, 6)), RNG.standard_normal((5, 3, 6, 6))

    def distance(kind: str, t: Any, s: Any) -> float:
        return float(Pair("t", "s", kind).distance(torch.tensor(t), torch.tensor(s)))

    def unit(rows: Any) -> Any:
        return rows / np.linalg.norm(rows, axis=1, keepdims=True)

    maps = [unit((a**2).mean(1).reshape(5, -1)) for a in (wide, narrow)]
    expected = ((maps[0] - maps[1]) ** 2).sum(1).mean() / 2
    assert distance("attention", wide, narrow) == pytest.approx(expected, rel=1e-5)
    small = narrow.reshape(5, 3, 3, 2, 3, 2).mean((3, 5))
    pooled = unit((wide**2).mean(1).reshape(5, 3, 2, 3, 2).mean((2, 4)).reshape(5, -1))
    own = unit((small**2).mean(1).reshape(5, -1))
    assert distance("attention", wide, small) == pytest.approx(
        ((pooled - own) ** 2).sum(1).mean() / 2, rel=1e-5
    )
    grams = [unit(a.reshape(5, -1) @ a.reshape(5, -1).T) for a in (wide, narrow)]
    assert distance("relation", wide, narrow) == pytest.approx(
        ((grams[0] - grams[1]) ** 2).sum(1).mean(), rel=1e-5
    )
    assert distance("mse", wide, wide[::-1].copy()) == pytest.approx(
        ((wide - wide[::-1]) ** 2).mean() / wide.var(), rel=1e-5
    )
    rows = [softmax(a.reshape(-1, 6)).reshape(5, 2, 9, 6) for a in (RNG.standard_normal((5, 2, 9, 6)),) * 2]
    assert distance("map", rows[0], rows[1]) == pytest.approx(0.0, abs=1e-7)
    flat = softmax(RNG.standard_normal((90, 6))).reshape(5, 2, 9, 6)
    kl = (rows[0] * np.log(rows[0] / flat)).sum(-1).mean()
    assert distance("map", rows[0], flat) == pytest.approx(kl, rel=1e-4)


def test_hidden_values_pair_up_after_pruning(teacher: Any) -> None:
    from attar_prune import Channels

    pruned, _ = run_pass(Channels(ratio=0.5, block=1), teacher, context(teacher))
    ctx = context(pruned, TRAIN[0], original=teacher)
    made = trainable(pruned)
    (found,) = teachers((), (), made, pruned, ctx)
    chosen = pairs(("auto",), "auto", found, made, 0)
    assert 2 <= len(chosen) <= 4
    assert {p.kind for p in chosen} <= {"attention", "mse", "relation"}
    assert all(p.teacher == p.student for p in chosen)
    step = Distill(epochs=2, batch_size=32, hidden=("auto",), hidden_loss="projection", lr=0.005)
    _, loss = loss_of(step, pruned, ctx, TEST[0][:4])
    assert loss.modules
    weights = [p.clone() for m in loss.modules for p in m.parameters()]
    _, again = loss_of(step, pruned, ctx, TEST[0][:4])
    drawn = [p for m in again.modules for p in m.parameters()]
    assert all(torch.equal(a, b) for a, b in zip(weights, drawn, strict=True)), "the same seed, the same maps"
    result, _ = run_pass(step, pruned, ctx)
    plain, _ = run_pass(Distill(epochs=2, batch_size=32, lr=0.005), pruned, ctx)
    assert graph.fingerprint(result) != graph.fingerprint(plain)
    assert far(result, teacher) < far(pruned, teacher)
    named = Distill(hidden=(f"{chosen[0].teacher}={chosen[-1].student}",), hidden_loss="relation")
    assert loss_of(named, pruned, ctx, TEST[0][:8])[0] > 0
    with pytest.raises(InputError, match="does not compute 'nothing'"):
        loss_of(Distill(hidden=("nothing",)), pruned, ctx, TEST[0][:4])


def attention_net(heads: int, seed: int) -> Any:
    net = Net("attention", seed)
    x = net.input("x", "N", 5, 8)
    shape = net.ints([0, 5, heads, 8 // heads])
    dense = [net.dense(x, 8, 8, gemm=False) for _ in range(3)]
    parts = [net.op("Transpose", net.op("Reshape", y, shape), perm=[0, 2, 1, 3]) for y in dense]
    product = net.op("MatMul", parts[0], net.op("Transpose", parts[1], perm=[0, 1, 3, 2]))
    maps = net.op("Softmax", product, axis=-1)
    maps.name = "maps"
    y = net.op("Transpose", net.op("MatMul", maps, parts[2]), perm=[0, 2, 1, 3])
    return net.model(y=net.dense(net.op("Reshape", y, net.ints([0, 5, 8])), 8, 3, gemm=False))


def test_attention_maps_are_compared() -> None:
    student, other = attention_net(2, 1), attention_net(4, 2)
    x = RNG.standard_normal((6, 5, 8)).astype(np.float32)
    ctx = context(student, x, original=other)
    made = trainable(student)
    (found,) = teachers((), (), made, student, ctx)
    (pair,) = attention_maps(found, made)
    assert (pair.teacher, pair.student, pair.kind) == ("maps", "maps", "map")
    with_maps, _ = loss_of(Distill(attention=2.0), student, ctx, x)
    without, _ = loss_of(Distill(), student, ctx, x)
    copies = []
    for model in (other, student):
        copy = graph.clone(model)
        copy.graph.outputs.append(next(v for v in graph.all_values(copy) if v.name == "maps"))
        copies.append(OnnxRuntime().open(copy).run({"x": x})[1].astype(np.float64).mean(1))
    t, s = copies
    assert with_maps - without == pytest.approx(2 * (t * np.log(t / s)).sum(-1).mean(), rel=1e-3)
    made = trainable(network())
    with pytest.raises(InputError, match="no attention map"):
        attention_maps(teachers((), (), made, network(), context(network()))[0], made)


def test_a_teacher_of_another_framework_gets_what_it_takes(teacher: Any) -> None:
    """A student that takes NHWC learns from a teacher that takes NCHW, under another name."""
    net = Net("last", 3)
    x = net.input("pixels", "N", 8, 8, 3)
    y = net.op("Relu", net.conv(net.op("Transpose", x, perm=[0, 3, 1, 2]), 3, 12))
    y = net.op("Relu", net.conv(y, 12, 16, stride=2))
    student = net.model(scores=net.op("Softmax", net.dense(net.pooled(y), 16, CLASSES), axis=1))
    data, last = TRAIN[0].transpose(0, 2, 3, 1), (TEST[0].transpose(0, 2, 3, 1), TEST[1])
    result = attar.compress(
        student, [Distill(epochs=4, batch_size=32, lr=0.01, temperature=2.0)], training=data,
        teachers=teacher, evaluate=(last, "top1"),
    )  # fmt: skip
    assert accuracy(result.model, last) > max(0.8, accuracy(student, last) + 0.3)
    with pytest.raises(InputError, match="a teacher takes"):
        attar.compress(network(), [Distill()], training=TRAIN[0], teachers=attention_net(2, 1))
    with pytest.raises(InputError, match="2 weights for 1 teachers"):
        attar.compress(teacher, [Distill(weights=(1.0, 2.0))], training=TRAIN[0])
    with pytest.raises(InputError, match="no such file"):
        attar.compress(teacher, [Distill(teachers=("absent.onnx",))], training=TRAIN[0])
