"""The refit is judged by samples that it was not fitted to, and kept only as far as they gain by it."""

from __future__ import annotations

import re

import numpy as np
import onnx_ir as ir
import pytest
from test_prune_channels import RUNTIME, applied, context, error, images

from attar import graph
from attar.calibration import as_data
from attar.gram import Gram
from attar.specs import input_specs
from attar.testing.build import Net
from attar_prune import Channels, Layers, refit
from attar_prune.effect import Outputs
from attar_prune.held_out import split
from attar_prune.moments import Moments

STEPS = {"layers": (Layers, {"count": 1}), "channels": (Channels, {"ratio": 0.4, "block": 1})}


def deep() -> ir.Model:
    """Eight residual blocks: what a fit learns by heart adds up from one to the next."""
    net = Net("deep", 3)
    x = net.op("Relu", net.conv(net.input("x", "N", 3, 16, 16), 3, 16))
    for _ in range(8):
        x = net.op("Add", x, net.conv(net.op("Relu", net.conv(x, 16, 48, (1, 1))), 48, 16, (1, 1)))
    model = net.model(logits=net.dense(net.pooled(x), 16, 5))
    graph.normalize(model)
    graph.refresh_shapes(model)
    return model


def told(changes: list[str], start: str) -> tuple[float, float]:
    """The error with and without the refit that the record names."""
    line = next(c for c in changes if c.startswith(start))
    numbers = re.findall(r"(?<![\w.])(\d[\d.e+-]*)", line.replace("%", ""))
    return float(numbers[-2]), float(numbers[-1])


@pytest.mark.parametrize("kind", STEPS)
def test_a_fit_that_fails_on_what_is_held_out_is_left_out(kind: str) -> None:
    """The samples to fit to are of another kind than those held out."""
    step, options = STEPS[kind]
    model, data = deep(), images(16)
    others = np.arange(16) % 4 != 3
    data[others] = np.abs(data[others]) * np.float32([30, -20, 0]).reshape(3, 1, 1) + 50
    plain, _ = applied(model, step(**options, refit=False), data)
    fitted, ctx = applied(model, step(**options, refit=True), data)
    refitted, before = told(ctx.step.changes, "the refit was left out")
    assert refitted > before
    assert not any("refitted" in change for change in ctx.step.changes)
    ours, theirs = (RUNTIME.open(m).run({"x": images(8, seed=1)})[0] for m in (fitted, plain))
    assert np.array_equal(ours, theirs)


@pytest.mark.parametrize("kind", STEPS)
def test_a_refit_to_few_images_is_kept_where_it_helps(kind: str) -> None:
    step, options = STEPS[kind]
    model = deep()
    plain, _ = applied(model, step(**options, refit=False), images(8))
    fitted, ctx = applied(model, step(**options, refit=True), images(8))
    refitted, before = told(ctx.step.changes, "the refit is kept")
    assert refitted < 0.1 * before
    assert error(model, fitted) < 0.1 * error(model, plain)


def test_half_of_the_way_is_gone_where_the_whole_is_too_far() -> None:
    """One layer whose fit overshoots: what is wanted lies at 0.4 of the way."""
    net = Net("one", 0)
    model = net.model(logits=net.dense(net.input("x", "N", 6), 6, 3))
    graph.normalize(model)
    graph.refresh_shapes(model)
    own = [v for v in model.graph.initializers.values() if graph.const_array(v).ndim == 2]
    start = graph.const_array(own[0]).astype(np.float64)
    wanted = graph.clone(model)
    graph.replace_weight(wanted.graph.initializers[own[0].name or ""], np.float32(1.4 * start))
    ctx = context(model)
    x = np.random.default_rng(0).standard_normal((8, 6)).astype(np.float32)
    ctx.data = as_data(x, input_specs(model))
    outputs = Outputs(wanted, ctx)
    plain = outputs.error(model)
    graph.replace_weight(own[0], np.float32(2 * start))
    way, left = refit._best_way(model, own, [start], outputs, plain)
    assert way == 0.5
    # The error goes with the square of the distance: 0.1 is left of 0.4.
    assert left == pytest.approx(plain / 16, rel=1e-4)
    np.testing.assert_array_equal(graph.const_array(own[0]), np.float32(1.5 * start))


@pytest.mark.parametrize("centred", [False, True])
def test_weights_stay_where_the_data_tell_nothing(centred: bool) -> None:
    """t = x and noise: over all data no weights do better than those that there were."""
    rng = np.random.default_rng(0)
    x = rng.standard_normal((1, 96, 64))
    t = x + rng.standard_normal(x.shape)
    gram, half = (Gram.zeros(1, 64, paired=True) for _ in range(2))
    gram.add(x, t)
    half.add(x[:, :48], t[:, :48])
    gram.half = half
    w = rng.standard_normal((1, 8, 64))
    rows, _ = refit._fitted(w, gram, np.ones((1, 64), np.bool_), centred=centred)
    weak = Moments(w, gram, np.ones((1, 64), np.bool_), centred=centred).solved(1e-1)
    # The inputs are white, so a layer's loss is the squared distance of its weights.
    assert ((rows - w) ** 2).sum() < 0.05 * ((weak - w) ** 2).sum()


@pytest.mark.parametrize(("count", "held"), [(2, 1), (3, 1), (4, 1), (8, 2), (64, 16), (200, 28)])
def test_what_is_held_out_is_spread_over_the_data(count: int, held: int) -> None:
    net = Net("one", 0)
    model = net.model(logits=net.dense(net.input("x", "N", 2), 2, 3))
    ctx = context(model)
    x = np.arange(2 * count, dtype=np.float32).reshape(count, 2)
    for batches in ([x], list(np.array_split(x, 2)), [row[None] for row in x]):
        ctx.data = as_data([{"x": one} for one in batches], input_specs(model))
        parts = split(ctx)
        assert parts is not None
        found = [np.concatenate([b.inputs["x"] for b in one.calibration]) for one in parts]
        assert [one.calibration.count() for one in parts] == [len(f) for f in found] == [count - held, held]
        assert np.array_equal(np.sort(np.concatenate(found), axis=0), x)
        if held > 1:
            assert len(np.unique(np.diff(found[1][:, 0]))) == 1


def test_whole_batches_are_held_out_where_the_model_takes_no_others() -> None:
    net = Net("one", 0)
    model = net.model(logits=net.dense(net.input("x", 4, 2), 2, 3))
    ctx = context(model)
    x = np.arange(64, dtype=np.float32).reshape(32, 2)
    ctx.data = as_data(x, input_specs(model))
    parts = split(ctx)
    assert parts is not None
    assert [[len(b.inputs["x"]) for b in one.calibration] for one in parts] == [[4] * 6, [4] * 2]
    ctx.data = as_data(x[:4], input_specs(model))
    assert split(ctx) is None
