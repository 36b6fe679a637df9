"""The contract: verdicts, repairs and what is handed over. Times are scripted where a verdict depends on
them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import onnx_ir as ir
import pytest
from spine_models import (
    Clock,
    SlowRuntime,
    adds,
    cnn,
    images,
    is_quantized,
    mlp,
    registry_with,
)

import attar
from attar import graph, judge, measure
from attar.calibration import as_data
from attar.context import Context
from attar.contract import Contract
from attar.errors import Refused
from attar.evaluation import Evaluation
from attar.feeds import one_sample
from attar.passes import Pass
from attar.registry import Registry, default_registry
from attar.runtime import OnnxRuntime, Runtime
from attar.specs import input_specs
from attar.testing import ZOO
from attar.testing.build import Net
from attar_quantize import Static


def load(model: ir.Model) -> ir.Model:
    return attar.load(model)


def contract_for(  # noqa: PLR0917
    model: ir.Model,
    recipe: list[Pass],
    runtime: Runtime | None = None,
    data: list[Any] | None = None,
    registry: Registry | None = None,
    evaluation: Evaluation | None = None,
    max_drop: float = 0.01,
) -> Contract:
    registry = registry or default_registry()
    specs = input_specs(model)
    source = as_data(data or images(), specs)
    feeds = one_sample(source.first().inputs, specs)
    place = registry.get_target("cpu")
    ctx = Context(registry, place, runtime or OnnxRuntime(), source, evaluation, feeds)
    return Contract(model, recipe, ctx, feeds, max_drop)


def same_content(one: ir.Model, other: ir.Model) -> bool:
    return graph.fingerprint(one, annotations=False) == graph.fingerprint(other, annotations=False)


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    made = Clock()
    monkeypatch.setattr(measure, "time", made)
    return made


# -- verdicts by speed and size ------------------------------------------------------------------------------


def test_faster_and_smaller_is_accepted(clock: Clock) -> None:
    model = load(cnn())
    runtime = SlowRuntime(clock, lambda m: 1.0 if is_quantized(m) else 3.0)
    result = contract_for(model, [Static(plan="everything")], runtime).fulfil()
    report = result.report
    assert report.verdict == "accepted"
    assert report.speed is not None
    assert report.speed.ratio == pytest.approx(1 / 3)
    assert report.headline.startswith("3.00x faster, 2")
    assert report.after.bytes < 0.4 * report.before.bytes
    assert is_quantized(result.model)
    assert report.after.count("integer", compute=True) == 4


def test_slower_is_planned_again_and_then_returned_unchanged(clock: Clock) -> None:
    model = load(cnn())
    before = graph.to_bytes(model)
    runtime = SlowRuntime(clock, lambda m: 3.0 if is_quantized(m) else 2.0)
    made = contract_for(model, [Static(plan="everything")], runtime)
    tried: list[Any] = []
    real = made._try
    made._try = lambda recipe: tried.append(made._ctx.measured) or real(recipe)  # type: ignore[method-assign]
    result = made.fulfil()
    assert result.report.verdict == "unchanged"
    assert "slower: 3 ms" in result.report.headline
    assert tried[0] is None
    assert tried[1] is not None  # with kernel times measured on this model
    assert tried[1].before
    assert graph.to_bytes(result.model) == graph.to_bytes(result.runnable) == before
    assert result.report.after == result.report.before
    assert result.report.decisions[-1].endswith("this is the original model")


def test_noise_is_not_slowness(clock: Clock) -> None:
    """A median 1 % up with an interval that reaches below 1 says nothing."""
    runs = iter(np.random.default_rng(0).normal(1.0, 0.2, 10**6))

    def cost(model: ir.Model) -> float:
        return 1.0

    class Noisy(SlowRuntime):
        def open(self, *args: Any, **options: Any) -> Any:
            session = super().open(*args, **options)
            real = session.run

            def run(feeds: Any) -> Any:
                clock.now += 0.0002 * float(next(runs))
                return real(feeds)

            session.run = run  # type: ignore[method-assign]
            return session

    result = contract_for(load(cnn()), [Static(plan="everything")], Noisy(clock, cost)).fulfil()
    speed = result.report.speed
    assert speed is not None
    assert speed.low < 1 < speed.high
    assert result.report.verdict == "accepted"
    assert result.report.headline.startswith("as fast as before")


class Bloat(Pass, name="test.bloat"):
    """Adds a large weight and an Add of it."""

    def apply(self, model: ir.Model, ctx: Context) -> None:
        out = model.graph.outputs[0]
        node = next(n for n in model.graph if out in n.outputs)
        extra = graph.add_initializer(model.graph, "ballast", np.zeros((3000, 10), np.float32))
        total = ir.node("ReduceSum", [extra], attributes={"keepdims": 0}, name="total")
        total.outputs[0].name = "total_out"
        node.outputs[0].name = "inner"
        add = ir.node("Add", [node.outputs[0], total.outputs[0]], name="add_ballast")
        new = add.outputs[0]
        new.name, new.type, new.shape = "y", out.type, out.shape
        model.graph.extend([total, add])
        model.graph.outputs[0] = new


def test_larger_is_refused(clock: Clock) -> None:
    model = load(cnn(8))
    runtime = SlowRuntime(clock, lambda m: 1.0)
    result = contract_for(model, [Bloat()], runtime, registry=registry_with(Bloat)).fulfil()
    assert result.report.verdict == "unchanged"
    assert "larger: " in result.report.headline
    assert same_content(result.model, model)


# -- verdicts by accuracy, and their repairs -----------------------------------------------------------------


def outlier_net() -> ir.Model:
    """The second convolution's input has one huge channel, which takes all eight bits of the others."""
    net = Net("outlier")
    x = net.input("x", "N", 3, 24, 24)
    h = net.op("Relu", net.conv(x, 3, 32))
    gain = np.ones((1, 32, 1, 1), np.float32)
    gain[0, 0] = 3e4
    shrink = np.ones((1, 32, 1, 1), np.float32)
    shrink[0, 0] = 0
    h = net.op("Tanh", net.op("Mul", net.conv(net.op("Mul", h, net.const(gain)), 32, 32), net.const(shrink)))
    h = net.op("Relu", net.conv(h, 32, 64))
    return net.model(y=net.dense(net.pooled(h), 64, 10))


def test_a_metric_that_drops_too_far_is_repaired_or_refused(clock: Clock) -> None:
    """The metric falls as soon as any Q/DQ is there: other settings and more float are tried, in vain."""

    def metric(session: Any) -> float:
        return 0.9 if not any(k.kind == "integer" for k in session.kernels()) else 0.5

    runtime = SlowRuntime(clock, lambda m: 1.0 if is_quantized(m) else 3.0)
    model = load(cnn(8))
    made = contract_for(model, [Static(plan="everything")], runtime, evaluation=Evaluation(metric, "score"))
    result = made.fulfil()
    report = result.report
    assert report.verdict == "unchanged"
    assert "score goes from 0.9 to 0.5, more than max_drop = 0.01" in report.headline
    assert report.before.metric == report.after.metric == 0.9
    assert report.metric_name == "score"
    assert same_content(result.model, model)


def test_within_max_drop_is_accepted(clock: Clock) -> None:
    def metric(session: Any) -> float:
        return 0.9 if not any(k.kind == "integer" for k in session.kernels()) else 0.88

    runtime = SlowRuntime(clock, lambda m: 1.0 if is_quantized(m) else 3.0)
    made = contract_for(
        load(cnn(8)),
        [Static(plan="everything")],
        runtime,
        evaluation=Evaluation(metric, "score"),
        max_drop=0.02,
    )
    result = made.fulfil()
    assert result.report.verdict == "accepted"
    assert result.report.headline.endswith("score 0.9 -> 0.88")


class Noisy(Pass, name="test.noisy"):
    """Adds noise to the weights; its alternatives add less."""

    noise: float = 4.0

    def apply(self, model: ir.Model, ctx: Context) -> None:
        rng = np.random.default_rng(0)
        for value in list(model.graph.initializers.values()):
            array = graph.const_array(value)
            assert array is not None
            if array.ndim > 1:
                noise = self.noise * array.std() * rng.standard_normal(array.shape)
                graph.replace_weight(value, (array + noise).astype(array.dtype))

    def alternatives(self) -> tuple[Pass, ...]:
        return tuple(Noisy(noise=n) for n in (3.0, 0.02) if n != self.noise)


def test_alternatives_are_tried_until_the_outputs_are_near(clock: Clock) -> None:
    found = registry_with(Noisy)
    runtime = SlowRuntime(clock, lambda m: 1.0)
    result = contract_for(load(cnn(8)), [Noisy()], runtime, registry=found).fulfil()
    report = result.report
    assert report.verdict == "accepted"
    assert any("test.noisy(noise=0.02)" in d for d in report.decisions), report.decisions
    assert report.steps[0].options == {"noise": 0.02}
    assert min(d.sqnr_db for d in report.outputs) > 20


class Hopeless(Noisy, name="test.hopeless"):
    """Noise without alternatives."""

    def alternatives(self) -> tuple[Pass, ...]:
        return ()


def test_noise_that_nothing_mends_is_refused_without_a_metric(clock: Clock) -> None:
    model = load(cnn(8))
    runtime = SlowRuntime(clock, lambda m: 1.0)
    made = contract_for(model, [Hopeless()], runtime, registry=registry_with(Hopeless))
    report = made.fulfil().report
    assert report.verdict == "unchanged"
    assert "output 'y' has an SQNR of" in report.headline


def test_sensitive_operators_stay_in_float(clock: Clock) -> None:
    """A metric that falls only while the second convolution is on integers: exactly that is found by ranking
    the operators, left in float, and written down."""
    model = load(outlier_net())
    runtime = SlowRuntime(clock, lambda m: 3.0 - sum(n.op_type == "DequantizeLinear" for n in m.graph) / 20)
    reference = OnnxRuntime().open(model).run({"x": images(1)[0]})[0]

    def closeness(session: Any) -> float:
        error = np.abs(session.run({"x": images(1)[0]})[0] - reference).max() / np.abs(reference).max()
        return 1.0 - float(error)

    made = contract_for(
        model,
        [Static(plan="everything")],
        runtime,
        evaluation=Evaluation(closeness, "closeness"),
        max_drop=0.03,
    )
    result = made.fulfil()
    report = result.report
    assert report.verdict == "accepted", report.headline
    assert report.after.metric is not None
    assert report.after.metric >= 0.97
    assert any("in float" in decision for decision in report.decisions), report.decisions
    kept = [k for k in report.float_kernels if "sensitive" in k.reason]
    assert kept, report.float_kernels
    assert report.after.count("integer", compute=True) >= 1


# -- nothing to do -------------------------------------------------------------------------------------------


class Declines(Pass, name="test.declines"):
    """Never acts."""

    def apply(self, model: ir.Model, ctx: Context) -> None:
        raise Refused("the moon is full", nodes=[("a", "b")])


def test_a_recipe_that_declines_gives_the_original_and_the_reason() -> None:
    model = cnn(8)
    result = attar.compress(model, [Declines()], registry=registry_with(Declines))
    assert result.report.verdict == "unchanged"
    assert result.report.headline == "left as it was: test.declines: the moon is full"
    assert same_content(result.model, load(model))


def test_nothing_to_quantize() -> None:
    result = attar.compress(adds(), calibration=[np.ones((4, 8), np.float32)])
    assert result.report.verdict == "unchanged"
    assert "no operator to quantize" in result.report.headline


def test_an_already_compressed_model_is_left_alone_with_a_reason() -> None:
    first = attar.compress(cnn(), Static(plan="everything"), calibration=images())
    assert first.report.verdict == "accepted"
    for model in (first.model, first.runnable):
        again = attar.compress(model, calibration=images())
        assert again.report.verdict == "unchanged"
        assert "quantize.static" in again.report.headline
        assert graph.to_bytes(again.model) == graph.to_bytes(again.runnable)
        assert same_content(again.model, load(model))


@pytest.mark.parametrize("name", ["mlp", "lstm", "gru", "quantized", "embedding", "weight_in_loop", "half"])
def test_networks_that_integers_do_not_help_are_never_made_slower(name: str) -> None:
    """Real times: either the original comes back, or what comes back was not measured as slower."""
    zoo = ZOO[name]
    model = zoo.build()
    result = attar.compress(model, calibration=[zoo.inputs(i, 4) for i in range(4)])
    report = result.report
    assert report.speed is not None
    if report.verdict == "unchanged":
        assert same_content(result.model, load(zoo.build()))
        assert report.after == report.before
        assert report.headline.startswith("left as it was: ")
    else:
        assert report.speed.ratio <= 1.02
        assert report.after.bytes <= 1.01 * report.before.bytes + 256
        for diff in report.outputs:
            assert diff.sqnr_db >= judge._LEAST_SQNR


def test_the_report_says_of_the_result_what_measuring_it_again_says(tmp_path: Path) -> None:
    result = attar.compress(cnn(), calibration=images())
    result.save(tmp_path / "m.onnx")
    report = result.report
    assert report.after.bytes == (tmp_path / "m.onnx").stat().st_size
    a, b = OnnxRuntime().open(load(cnn())), OnnxRuntime().open(tmp_path / "m.onnx")
    x, y = (np.concatenate([s(i)[0] for i in images()]).astype(np.float64) for s in (a, b))
    [diff] = report.outputs
    assert diff.sqnr_db == pytest.approx(10 * np.log10((x**2).sum() / ((x - y) ** 2).sum()), abs=0.01)
    assert diff.agreement == (x.argmax(1) == y.argmax(1)).mean()
    assert report.after.kernels
    assert [k.op for k in report.after.kernels if k.compute] == [k.op for k in b.kernels() if k.compute]


def test_every_float_compute_kernel_of_a_quantized_model_has_a_reason() -> None:
    net = Net("mixed")
    x = net.input("x", "N", 3, 24, 24)
    h = net.op("Relu", net.conv(net.op("Relu", net.conv(x, 3, 32)), 32, 64))
    model = net.model(y=net.dense(net.pooled(h), 64, 10))
    first = next(n.name for n in model.graph if n.op_type == "Conv")
    result = attar.compress(model, Static(plan="everything", keep_float=(str(first),)), calibration=images())
    assert result.report.verdict == "accepted", result.report.headline
    [kernel] = result.report.float_kernels
    assert kernel.reason == "kept in float by option keep_float"


def test_tiny_mlp_is_not_made_slower() -> None:
    data = [np.random.default_rng(i).standard_normal((1, 16)).astype(np.float32) for i in range(8)]
    result = attar.compress(mlp(), calibration=data)
    assert result.report.speed is not None
    assert result.report.verdict == "unchanged" or result.report.speed.ratio <= 1.02
