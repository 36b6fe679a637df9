"""`prune.channels`: what it removes, when it declines, and that the refit earns its keep."""

from __future__ import annotations

import contextlib
import time
from types import SimpleNamespace

import numpy as np
import onnx_ir as ir
import pytest
from prune_nets import NETS

from attar import graph
from attar.calibration import as_data
from attar.context import Context
from attar.errors import InputError, RecipeError, Refused
from attar.ops import BUILTIN, model_macs
from attar.registry import default_registry
from attar.runtime import OnnxRuntime
from attar.specs import input_specs
from attar.testing import conformance
from attar.testing.build import Net
from attar.testing.zoo import ZOO
from attar_prune import Channels
from attar_prune.channels_plan import Costs
from attar_prune.groups import Grouping, components

RUNTIME = OnnxRuntime()


def images(count: int, seed: int = 0) -> np.ndarray:
    # Smooth ones: neighbours agree, as in photographs, so that channels can stand in for each other.
    rng = np.random.default_rng(seed)
    coarse = rng.standard_normal((count, 3, 4, 4)).astype(np.float32)
    return np.repeat(np.repeat(coarse, 4, 2), 4, 3)


def prepared(name: str) -> ir.Model:
    model = NETS[name]()
    graph.normalize(model)
    graph.refresh_shapes(model)
    return model


def context(model: ir.Model, data: np.ndarray | None = None, registry: object = None) -> Context:
    known = default_registry()
    found = None if data is None else as_data([{"x": x[None]} for x in data], input_specs(model))
    return Context(registry or known, known.get_target("cpu-vnni"), RUNTIME, found)  # type: ignore[arg-type]


def applied(model: ir.Model, step: Channels, data: np.ndarray | None = None) -> tuple[ir.Model, Context]:
    copy, ctx = graph.clone(model), context(model, data)
    step.apply(copy, ctx)
    graph.tidy(copy)
    return copy, ctx


def error(before: ir.Model, after: ir.Model) -> float:
    x = {"x": images(64, seed=1)}
    a, b = RUNTIME.open(before).run(x)[0], RUNTIME.open(after).run(x)[0]
    return float(((a - b) ** 2).sum() / ((a - a.mean(0)) ** 2).sum())


@conformance(
    Channels(ratio=0.3, block=1),
    models=[
        "residual_cnn",
        "depthwise_cnn",
        "concat_split",
        "encoder",
        "shared_weight",
        "half",
        "weight_in_if",
    ],
)
def test_conformance(check: object) -> None:
    check()  # type: ignore[operator]


@pytest.mark.parametrize("name", ["ResNet", "MobileNetV2", "SqueezeNet", "ViT"])
def test_refit_recovers_half_of_what_removal_loses(name: str) -> None:
    model = prepared(name)
    plain, _ = applied(model, Channels(ratio=0.3, block=1, importance="l1"))
    fitted, ctx = applied(model, Channels(ratio=0.3, block=1, importance="l1", refit=True), images(96))
    assert error(model, fitted) < 0.5 * error(model, plain)
    assert any("refitted" in change for change in ctx.step.changes)


@pytest.mark.parametrize("importance", ["l1", "l2", "bn", "geometric_median", "activation", "gram", "random"])
@pytest.mark.parametrize("scope", ["local", "global"])
def test_every_importance(importance: str, scope: str) -> None:
    model = prepared("MobileNetV1")
    result, _ = applied(
        model, Channels(ratio=0.3, block=1, importance=importance, scope=scope, refit=False), images(8)
    )
    assert graph.byte_size(result) < 0.9 * graph.byte_size(model)


def test_importance_finds_dead_channels() -> None:
    net = Net("dead", 0)
    weight = net.array(8, 3, 3, 3)
    weight[[1, 4, 6]] *= 1e-4
    y = net.op("Relu", net.op("Conv", net.input("x", "N", 3, 16, 16), net.const(weight), pads=[1, 1, 1, 1]))
    model = net.model(logits=net.dense(net.pooled(y), 8, 3))
    for importance in ("l1", "l2", "activation", "gram"):
        step = Channels(ratio=3 / 8, block=1, importance=importance, refit=False)
        assert error(model, applied(model, step, images(16))[0]) < 1e-5


@pytest.mark.parametrize("scope", ["local", "global"])
def test_by_macs_and_size(scope: str) -> None:
    model = prepared("ResNet")
    less, _ = applied(model, Channels(ratio=0.4, by="macs", block=1, scope=scope))
    assert 0.45 < model_macs(less) / model_macs(model) <= 0.6
    small, _ = applied(model, Channels(ratio=0.4, by="size", block=1, scope=scope))
    assert 0.45 < graph.byte_size(small) / graph.byte_size(model) <= 0.6


@pytest.mark.parametrize("name", NETS)
def test_costs_tell_what_removal_gives(name: str) -> None:
    model = prepared(name)
    grouping = Grouping(model)
    gone = grouping.nothing()
    for group in grouping.groups:
        gone[group.labels[: group.size // 3]] = True
    from attar_prune.remove import remove

    costs = Costs(grouping, BUILTIN)
    told = costs.macs(gone)
    remove(grouping, gone)
    assert told == pytest.approx(model_macs(model), rel=1e-6)


def test_by_latency_measures(monkeypatch: pytest.MonkeyPatch) -> None:
    model = prepared("ResNet")
    opened: list[int] = []

    def latency(session: object, feeds: object, *, runs: int) -> float:
        return opened[-1] / 1e6

    class Counting(OnnxRuntime):
        def open(self, model: ir.Model, **options: object) -> object:  # type: ignore[override]
            opened.append(model_macs(model))
            return super().open(model, **options)  # type: ignore[arg-type]

    monkeypatch.setattr("attar.measure.latency", latency)
    copy, ctx = graph.clone(model), context(model)
    ctx.runtime = Counting()
    Channels(ratio=0.4, by="latency", block=1).apply(copy, ctx)
    assert 0.4 < model_macs(copy) / model_macs(model) <= 0.6


def test_widths_stay_on_the_block() -> None:
    net = Net("wide", 0)
    x = net.op("Relu", net.conv(net.input("x", "N", 3, 16, 16), 3, 48))
    x = net.op("Relu", net.conv(x, 48, 45))
    model = net.model(logits=net.dense(net.pooled(x), 45, 5))
    result, _ = applied(model, Channels(ratio=0.3))
    widths = [v.shape[0] for v in result.graph.initializers.values() if len(v.shape) == 4]
    assert widths == [32, 32]


def test_keep_and_limits() -> None:
    model = prepared("MobileNetV1")
    first = next(n for n in model.graph if n.op_type == "Conv")
    width = first.inputs[1].shape[0]
    kept, ctx = applied(model, Channels(ratio=0.5, block=1, keep=(first.name or "",)))
    assert next(n for n in kept.graph if n.op_type == "Conv").inputs[1].shape[0] == width
    assert any("to be kept" in skip.reason for skip in ctx.step.skipped)
    limited, _ = applied(model, Channels(ratio=0.5, block=1, limits=(f"{first.name}=0.25",)))
    assert next(n for n in limited.graph if n.op_type == "Conv").inputs[1].shape[0] == 0.75 * width


def test_reasons_and_refusals() -> None:
    model = prepared("ResNet")
    _, ctx = applied(model, Channels(ratio=0.3, block=1))
    assert any("output of the model" in skip.reason for skip in ctx.step.skipped)
    with pytest.raises(Refused, match="no channel"):
        applied(model, Channels(keep=("*",)))
    with pytest.raises(Refused, match="block"):
        applied(prepared("MobileNetV2"), Channels(ratio=0.05))
    with pytest.raises(RecipeError, match="nonsense"):
        applied(model, Channels(importance="nonsense"))
    with pytest.raises(RecipeError, match="limits"):
        applied(model, Channels(limits=("conv",)))
    with pytest.raises(InputError, match="calibration"):
        applied(model, Channels(refit=True))


def test_own_importance_by_hook() -> None:
    model = prepared("ResNet")
    plain = default_registry()
    asked: list[str] = []

    def last_first(groups, model, ctx):  # type: ignore[no-untyped-def]
        asked.extend(g.name for g in groups)
        return [-np.arange(g.size, dtype=float) for g in groups]

    registry = SimpleNamespace(ops=plain.ops, importances={"last_first": last_first})
    copy, ctx = graph.clone(model), context(model, registry=registry)
    Channels(ratio=0.25, block=1, importance="last_first").apply(copy, ctx)
    assert asked
    old, new = (next(n for n in m.graph if n.op_type == "Conv").inputs[1] for m in (model, copy))
    kept = new.shape[0]
    assert np.array_equal(graph.const_array(new), graph.const_array(old)[:kept])


@pytest.mark.parametrize("name", list(ZOO))
def test_no_model_of_the_zoo_raises(name: str) -> None:
    model = ZOO[name].build()
    graph.normalize(model)
    graph.refresh_shapes(model)
    for step in (Channels(ratio=0.4, block=1), Channels(ratio=0.4)):
        copy = graph.clone(model)
        with contextlib.suppress(Refused):  # any other error fails the test
            step.apply(copy, context(model))
            graph.tidy(copy)
            RUNTIME.open(copy).run(ZOO[name].inputs())


def test_components_by_brute_force() -> None:
    rng = np.random.default_rng(0)
    for _ in range(50):
        n = int(rng.integers(2, 40))
        a, b = rng.integers(0, n, (2, int(rng.integers(0, 40))))
        label = list(range(n))
        for _ in range(n):
            for x, y in zip(a, b, strict=True):
                label[x] = label[y] = min(label[x], label[y])
        assert components(n, a, b).tolist() == label


@pytest.mark.slow
def test_groups_of_a_long_graph_are_found_quickly() -> None:
    net = Net("long", 0)
    x = net.conv(net.input("x", "N", 3, 8, 8), 3, 64, (1, 1))
    for _ in range(1249):
        x = net.op("Add", x, net.op("Relu", net.batch_norm(net.conv(x, 64, 64, (1, 1)), 64)))
    model = net.model(logits=net.dense(net.pooled(x), 64, 5))
    start = time.process_time()
    assert Grouping(model).groups
    assert time.process_time() - start < 2.0


@pytest.mark.parametrize("by", ["channels", "macs"])
def test_several_steps_reach_the_same_aim(by: str) -> None:
    model = prepared("ResNet")
    once, _ = applied(model, Channels(ratio=0.5, by=by, block=1), images(24))
    slowly, ctx = applied(model, Channels(ratio=0.5, by=by, block=1, steps=3), images(24))
    assert model_macs(slowly) == pytest.approx(model_macs(once), rel=0.25)
    assert model_macs(slowly) < 0.6 * model_macs(model)
    assert sum("channels removed" in change for change in ctx.step.changes) == 3
    assert np.isfinite(error(model, slowly))
