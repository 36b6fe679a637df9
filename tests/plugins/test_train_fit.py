"""`attar_train.fit` and `train.finetune`: the loop against one written out, options, data, refusals."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest

torch = pytest.importorskip("torch")

from train_data import accuracy, context, images, mlp, network, one_thread  # noqa: E402, F401

import attar  # noqa: E402
from attar import graph, invariants  # noqa: E402
from attar.errors import InputError, RecipeError, Refused  # noqa: E402
from attar.registry import Registry  # noqa: E402
from attar.run import run_pass  # noqa: E402
from attar.specs import input_specs  # noqa: E402
from attar.training import TrainingEvent, as_training  # noqa: E402
from attar_train import FineTune, Labels, Options, fit, trainable  # noqa: E402
from attar_train.batches import Batches, Samples  # noqa: E402
from attar_train.losses import end_of  # noqa: E402
from attar_train.schedule import factor  # noqa: E402

RNG = np.random.default_rng(0)
TRAIN, TEST = images(320), images(400, seed=9)
ROWS = (RNG.standard_normal((40, 6)).astype(np.float32), RNG.standard_normal((40, 3)).astype(np.float32))


pytestmark = pytest.mark.usefixtures("one_thread")


def trained(model: Any, options: Options, data: Any = ROWS, **more: Any) -> tuple[Any, Any]:
    made = trainable(model)
    ctx = context(model, data, **more)
    return made, fit(made, ctx.training, Labels(made), options, ctx=ctx)


# -- the loop ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", ["sgd", "adamw"])
def test_the_loop_equals_one_written_out(kind: str) -> None:
    """Order, schedule, decay of matrices alone, clipping, accumulation and the running average."""
    options = Options(
        epochs=3, batch_size=8, accumulate=2, optimizer=kind, lr=0.05, weight_decay=0.1, clip=0.5, warmup=0.2,
        ema=0.9,
    )  # fmt: skip
    model = mlp()
    made, history = trained(model, options)
    assert history.steps == 8  # 15 batches of 8, the last step of an epoch has one
    w1, b1, w2, b2 = (
        torch.tensor(graph.const_array(v), requires_grad=True) for v in (
            model.graph.initializers[n] for n in
            sorted(model.graph.initializers, key=lambda n: (n.split(".")[0], n.endswith("bias"))))
    )  # fmt: skip
    groups = [{"params": [w1, w2], "weight_decay": 0.1}, {"params": [b1, b2], "weight_decay": 0.0}]
    kinds = {
        "sgd": lambda: torch.optim.SGD(groups, lr=0.05, momentum=0.9, nesterov=True),
        "adamw": lambda: torch.optim.AdamW(groups, lr=0.05),
    }
    ours, average, step = kinds[kind](), [p.detach().clone() for p in (w1, b1, w2, b2)], 0
    batches = Batches(as_training(ROWS, input_specs(model)), options, seed=0)
    for epoch in range(3):
        stream = list(batches.epoch(epoch))
        assert sorted(int(np.flatnonzero((ROWS[0] == row).all(1))[0]) for b in stream for row in b.inputs["x"]) == list(range(40))  # fmt: skip  # noqa: E501
        for start in range(0, len(stream), 2):
            if step == 8:
                break
            rising = round(0.2 * 8)
            rate = (
                (step + 1) / (rising + 1)
                if step < rising
                else (1 + math.cos(math.pi * (step - rising) / (8 - rising))) / 2
            )
            for group in ours.param_groups:
                group["lr"] = 0.05 * rate
            for batch in stream[start : start + 2]:
                x, target = (torch.tensor(a) for a in (batch.inputs["x"], batch.labels))
                out = torch.tanh(x @ w1.T + b1) @ w2.T + b2
                ((out - target).square().mean() / 2).backward()
            torch.nn.utils.clip_grad_norm_([w1, b1, w2, b2], 0.5)
            ours.step()
            ours.zero_grad()
            step += 1
            decay = min(0.9, (1 + step) / (10 + step))
            with torch.no_grad():
                for kept, live in zip(average, (w1, b1, w2, b2), strict=True):
                    kept.mul_(decay).add_(live, alpha=1 - decay)
    found = sorted(made.arrays().items(), key=lambda pair: (pair[0].split(".")[0], pair[0].endswith("bias")))
    for (name, array), expected in zip(found, average, strict=True):
        np.testing.assert_allclose(array, expected.numpy(), rtol=2e-5, atol=2e-6, err_msg=name)


def test_the_result_depends_on_the_seed_and_on_nothing_that_ran_before() -> None:
    recipe = [FineTune(epochs=1, batch_size=32, mixup=0.2, crop=1, flip=True)]
    model = network()
    content = graph.to_bytes(model)

    def run(seed: int) -> str:
        np.random.seed(3)
        torch.rand(17)
        before = torch.get_rng_state()
        result, _ = run_pass(recipe[0], model, context(model, TRAIN, seed=seed))
        assert torch.equal(before, torch.get_rng_state()), "the caller's random numbers are as they were"
        return graph.fingerprint(result)

    assert run(0) == run(0) != run(1)
    assert graph.to_bytes(model) == content


@pytest.mark.parametrize(
    ("kind", "expected"),
    [
        ("constant", [1, 1, 1, 1, 1]),
        ("cosine", [1, (1 + 2**-0.5) / 2, 0.5, (1 - 2**-0.5) / 2, 0]),
        ("linear", [1, 0.75, 0.5, 0.25, 0]),
        ("step", [1, 1, 0.1, 0.01, 0.01]),
        ("one_cycle", [0.04, 1, 0.75, 0.25, 0]),
    ],
)
def test_schedules(kind: str, expected: list[float]) -> None:
    np.testing.assert_allclose([factor(kind, s, 80, 0.0) for s in range(0, 81, 20)], expected, atol=1e-12)
    if kind != "one_cycle":
        rising = [factor(kind, s, 80, 0.1) for s in range(9)]
        np.testing.assert_allclose(rising, [*((s + 1) / 9 for s in range(8)), 1.0])


# -- the pass ------------------------------------------------------------------------------------------------


def test_finetune_learns_and_says_what_it_did() -> None:
    model = network()
    before = accuracy(model, TEST)
    result = attar.compress(
        model, [FineTune(epochs=4, batch_size=32, lr=0.01)], training=TRAIN, evaluate=(TEST, "top1")
    )
    assert result.report.verdict == "accepted", result.report.headline
    assert accuracy(result.model, TEST) > max(0.9, before + 0.3)
    (step,) = result.report.steps
    assert any(c.startswith("trained 40 steps (4 epochs") for c in step.changes), step.changes
    names = set(model.graph.initializers)
    assert set(result.model.graph.initializers) == names
    statistics = {n.inputs[3].name for n in model.graph if n.op_type == "BatchNormalization"}
    moved = {
        n for n in names
        if (graph.const_array(model.graph.initializers[n])
            != graph.const_array(result.model.graph.initializers[n])).any()
    }  # fmt: skip
    assert statistics < moved, "the statistics of BatchNormalization are trained, too"


def test_without_an_evaluation_training_is_kept_and_the_report_says_that_nothing_judged_it() -> None:
    result = attar.compress(network(), [FineTune(epochs=2, batch_size=32, lr=0.01)], training=TRAIN)
    assert result.report.verdict == "accepted", result.report.headline
    assert any("not judged" in d for d in result.report.decisions)


def test_a_softmax_at_the_end_is_trained_by_what_stands_before_it() -> None:
    plain, ending = network(), network(softmax=True)
    assert end_of(trainable(ending)).kind == "softmax"
    options = Options(epochs=1, batch_size=32)
    one, _ = trained(plain, options, TRAIN)
    two, _ = trained(ending, options, TRAIN)
    for a, b in zip(one.arrays().values(), two.arrays().values(), strict=True):
        np.testing.assert_array_equal(a, b)


def test_what_is_frozen_keeps_its_bits() -> None:
    model = network()
    step = FineTune(epochs=1, batch_size=32, freeze=("layer1.*",), batch_norm="frozen")
    result, _ = run_pass(step, model, context(model, TRAIN))
    old, new = ({n: graph.const_array(v) for n, v in m.graph.initializers.items()} for m in (model, result))
    np.testing.assert_array_equal(old["layer1.weight"], new["layer1.weight"])
    for node in model.graph:
        if node.op_type == "BatchNormalization":
            for value in node.inputs[3:]:
                np.testing.assert_array_equal(old[value.name], new[value.name])
    only = FineTune(epochs=1, batch_size=32, only=("*.bias",), batch_norm="frozen")
    result, _ = run_pass(only, model, context(model, TRAIN))
    changed = {n for n, a in old.items() if (a != graph.const_array(result.graph.initializers[n])).any()}
    assert changed
    assert all(n.endswith(".bias") for n in changed)


def test_held_zeros_stay_and_the_rest_is_trained() -> None:
    model = network()
    weight = model.graph.initializers["layer1.weight"]
    array = np.where(RNG.random(graph.const_array(weight).shape) < 0.5, 0, graph.const_array(weight))
    graph.replace_weight(weight, array.astype(np.float32))
    invariants.hold(weight, zeros=True)
    result, record = run_pass(FineTune(epochs=1, batch_size=32), model, context(model, TRAIN))
    new = graph.const_array(result.graph.initializers["layer1.weight"])
    np.testing.assert_array_equal(new[array == 0], 0)
    assert (new[array != 0] != array[array != 0]).all()
    assert invariants.held(result.graph.initializers["layer1.weight"]).zeros
    assert any("holding 1 masks" in c for c in record.changes), record.changes


def test_the_best_weights_are_kept_and_patience_ends_it() -> None:
    model = network()
    values = iter([0.3, 0.9, 0.5, 0.4, 0.2, 0.1])
    seen: list[str] = []

    def evaluate(session: Any) -> float:
        seen.append("")
        return next(values)

    step = FineTune(epochs=6, batch_size=32, patience=2, optimizer="sgd", lr=0.05)
    events = Listener()
    registry = Registry.discover()
    registry.register(events, name="listener")
    ctx = context(model, TRAIN, evaluate=evaluate, registry=registry)
    result, record = run_pass(step, model, ctx)
    assert any(
        c.startswith("stopped after 40 of 60 steps: evaluate was best at step 20") for c in record.changes
    )
    measured = [e.values["evaluate"] for e in events.heard if e.kind == "evaluate"]
    assert measured == [0.3, 0.9, 0.5, 0.4], "nothing is measured twice"
    best, _ = run_pass(
        FineTune(epochs=6, batch_size=32, optimizer="sgd", lr=0.05), model,
        context(model, TRAIN, registry=registry),
    )  # fmt: skip
    assert graph.fingerprint(best) != graph.fingerprint(result)


class Listener:
    def __init__(self) -> None:
        self.heard: list[TrainingEvent] = []

    @attar.hookimpl
    def attar_training(self, event: TrainingEvent) -> None:
        self.heard.append(event)


def test_onlookers_are_told() -> None:
    listener, registry = Listener(), Registry.discover()
    registry.register(listener, name="listener")
    model = network()
    run_pass(FineTune(epochs=2, batch_size=32), model, context(model, TRAIN, registry=registry))
    kinds = [e.kind for e in listener.heard]
    assert kinds[0] == "start"
    assert kinds[-1] == "end"
    assert kinds.count("epoch") == 2
    steps = [e for e in listener.heard if e.kind == "step"]
    assert [e.step for e in steps] == [10, 20]
    assert {e.steps for e in listener.heard} == {20}
    assert all({"loss", "lr"} <= set(e.values) for e in steps)
    assert steps[1].values["loss"] < steps[0].values["loss"]


def test_bfloat16_trains_float32_weights() -> None:
    model = network()
    before = accuracy(model, TEST)
    result, _ = run_pass(
        FineTune(epochs=3, batch_size=32, lr=0.01, precision="bfloat16"), model, context(model, TRAIN)
    )
    assert accuracy(result, TEST) > before + 0.2
    exact, _ = run_pass(FineTune(epochs=3, batch_size=32, lr=0.01), model, context(model, TRAIN))
    assert graph.fingerprint(result) != graph.fingerprint(exact)
    if not torch.cuda.is_available():
        with pytest.raises(Refused, match="float16 needs"):
            run_pass(FineTune(precision="float16"), model, context(model, TRAIN))


# -- losses --------------------------------------------------------------------------------------------------


def loss_of(labels: Any, scores: Any, model: Any = None, **options: Any) -> float:
    made = trainable(model or network())
    loss = Labels(made, **options)
    outputs = {loss.end.value: torch.tensor(scores), made.outputs[0]: torch.tensor(scores)}
    return float(loss(outputs, Samples({}, torch.tensor(labels), len(labels))))


def test_losses_are_those_of_the_formulas() -> None:
    z = RNG.standard_normal((6, 4)).astype(np.float32)
    y = RNG.integers(0, 4, 6)
    log_p = z - np.log(np.exp(z).sum(1, keepdims=True))
    assert loss_of(y, z) == pytest.approx(-log_p[np.arange(6), y].mean(), rel=1e-5)
    target = np.eye(4)[y] * 0.9 + 0.1 / 4
    assert loss_of(y, z, smoothing=0.1) == pytest.approx(-(target * log_p).sum(1).mean(), rel=1e-5)
    soft = np.exp(log_p[::-1]).astype(np.float32)
    assert loss_of(soft, z, network(softmax=True)) == pytest.approx(-(soft * log_p).sum(1).mean(), rel=1e-5)
    assert loss_of(soft, z) == pytest.approx(((soft - z) ** 2).mean(), rel=1e-5)
    assert loss_of(soft, z, kind="mae") == pytest.approx(np.abs(soft - z).mean(), rel=1e-5)
    bits = (soft > 0.3).astype(np.float32)
    ending = trainable(network(softmax=True))
    for kind in ("mse", "mae"):  # of what the model gives, not of what stands before its Softmax
        assert Labels(ending, kind=kind).taps == (ending.outputs[0],)
    p = 1 / (1 + np.exp(-z))
    wanted = -(bits * np.log(p) + (1 - bits) * np.log(1 - p)).mean()
    assert loss_of(bits, z, kind="binary") == pytest.approx(wanted, rel=1e-4)
    maps = RNG.standard_normal((2, 4, 3, 3)).astype(np.float32)
    where = RNG.integers(0, 4, (2, 3, 3))
    flat = maps.transpose(0, 2, 3, 1).reshape(-1, 4)
    each = flat - np.log(np.exp(flat).sum(1, keepdims=True))
    assert loss_of(where, maps) == pytest.approx(-each[np.arange(18), where.reshape(-1)].mean(), rel=1e-5)
    with pytest.raises(InputError, match=r"labels go from 0 to 7.*has 4 classes"):
        loss_of(np.array([0, 7]), z[:2])
    with pytest.raises(InputError, match=r"labels of shape \[6, 3\] do not go"):
        loss_of(np.zeros((6, 3), np.float32), z)
    with pytest.raises(InputError, match="no output 'nothing'"):
        Labels(trainable(network()), output="nothing")


# -- refusals ------------------------------------------------------------------------------------------------


def test_refusals_name_what_is_missing() -> None:
    model = network()
    with pytest.raises(InputError, match=r"train\.finetune' needs training data"):
        attar.compress(model, [FineTune()])
    with pytest.raises(InputError, match="no labels"):
        attar.compress(model, [FineTune(epochs=1)], training=TRAIN[0])
    with pytest.raises(InputError, match="no weight is named like 'laier"):
        attar.compress(model, [FineTune(freeze=("laier*",))], training=TRAIN)
    with pytest.raises(InputError, match=r"the loss is (nan|inf)"):
        attar.compress(model, [FineTune(optimizer="sgd", lr=1e9, steps=30)], training=TRAIN)
    with pytest.raises(InputError, match="cannot train on device 'quantum'"):
        attar.compress(model, [FineTune(device="quantum")], training=TRAIN)
    with pytest.raises(InputError, match="all weights are frozen"):
        attar.compress(model, [FineTune(freeze=("*",))], training=TRAIN)
    with pytest.raises(RecipeError, match="schedule"):
        FineTune(schedule="cosin")
