"""Equalization: nothing computed changes, ranges come together, and quantized outputs come nearer."""

from __future__ import annotations

from typing import Any

import numpy as np
import onnx_ir as ir
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from attar import graph
from attar.calibration import as_data
from attar.context import Context
from attar.measure import differences
from attar.registry import default_registry
from attar.run import run_recipe
from attar.runtime import OnnxRuntime
from attar.specs import input_specs
from attar.statistics import Statistics
from attar.testing.build import Net
from attar_quantize import Equalize, Static, equalize
from attar_quantize.channels import Channels

Array = np.ndarray[Any, np.dtype[Any]]


def data(shape: tuple[int, ...], batches: int = 4, seed: int = 0) -> list[Array]:
    rng = np.random.default_rng(seed)
    return [rng.normal(size=(4, *shape)).astype(np.float32) for _ in range(batches)]


def context(model: ir.Model, batches: list[Array]) -> Context:
    registry = default_registry()
    return Context(
        registry=registry,
        target=registry.get_target("cpu-vnni"),
        runtime=OnnxRuntime(),
        data=as_data(batches, input_specs(model)),
        feeds={input_specs(model)[0].name: batches[0]},
    )


def skewed(model: ir.Model, seed: int = 0) -> ir.Model:
    """`model` with the channels of its activations multiplied by factors from 1/8 to 8, which the layers that
    read them take back: what folded BatchNormalization often leaves."""
    rng = np.random.default_rng(seed)
    copy = graph.clone(model)
    for group in equalize._groups(Channels(copy)):
        equalize._scale(group, 2.0 ** rng.uniform(-3, 3, group.size))
    return copy


def worst_sqnr(model: ir.Model, other: ir.Model, batches: list[Array]) -> float:
    runtime = OnnxRuntime()
    name = input_specs(model)[0].name
    found = differences(runtime.open(model), runtime.open(other), [{name: b} for b in batches])
    return min(d.sqnr_db for d in found)


def chain(net: Net, x: ir.Value) -> tuple[ir.Value, int]:
    h = net.op("Relu", net.conv(x, 3, 8))
    h = net.op("MaxPool", h, kernel_shape=[2, 2], strides=[2, 2])
    return net.op("LeakyRelu", net.conv(h, 8, 12), alpha=0.1), 12


def residual(net: Net, x: ir.Value) -> tuple[ir.Value, int]:
    a = net.op("Relu", net.conv(x, 3, 8))
    b = net.conv(net.op("Relu", net.conv(a, 8, 8)), 8, 8)
    return net.op("Relu", net.op("Add", a, b)), 8


def joined(net: Net, x: ir.Value) -> tuple[ir.Value, int]:
    a = net.op("Relu", net.conv(x, 3, 6))
    b = net.op("Relu", net.conv(a, 6, 4))
    c = net.op("Relu", net.conv(a, 6, 8))
    h = net.op("Concat", b, c, axis=1)
    return net.op("Relu", net.conv(net.op("AveragePool", h, kernel_shape=[2, 2], strides=[2, 2]), 12, 8)), 8


def depthwise(net: Net, x: ir.Value) -> tuple[ir.Value, int]:
    h = net.op("Relu", net.conv(x, 3, 8))
    h = net.op("Relu", net.conv(h, 8, 8, group=8))
    h = net.op("Relu", net.conv(h, 8, 8, group=2))
    return net.op("Relu", net.conv(h, 8, 8)), 8


def gated(net: Net, x: ir.Value) -> tuple[ir.Value, int]:
    """A Sigmoid and a product stand in the way of some values."""
    a = net.op("Relu", net.conv(x, 3, 8))
    gate = net.op("Sigmoid", net.conv(a, 8, 8))
    return net.op("Relu", net.conv(net.op("Mul", a, gate), 8, 8)), 8


NETS = (chain, residual, joined, depthwise, gated)


def build(body: Any, seed: int = 0) -> ir.Model:
    net = Net(body.__name__, seed=seed)
    h, channels = body(net, net.input("x", "N", 3, 12, 12))
    return net.model(y=net.dense(net.pooled(h), channels, 5))


@pytest.mark.parametrize("body", NETS)
@settings(max_examples=4, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(seed=st.integers(0, 1000), strength=st.sampled_from([0.5, 1.0]))
def test_nothing_that_is_computed_changes(body: Any, seed: int, strength: float) -> None:
    model, batches = build(body, seed), data((3, 12, 12))
    before = graph.to_bytes(model)
    equal, steps, _ = run_recipe([Equalize(strength=strength)], model, context(model, batches))
    assert "common range" in steps[-1].changes[0]
    assert worst_sqnr(model, equal, data((3, 12, 12), seed=9)) > 90  # float32 rounding alone
    assert graph.to_bytes(model) == before


def spread(model: ir.Model, ctx: Context) -> float:
    """Largest over smallest range of the channels of the first Relu."""
    name = next(n.outputs[0].name or "" for n in model.graph if n.op_type == "Relu")
    reach = ctx.statistics(model, {name: 1})[name].reach
    assert reach is not None
    return float(reach.max() / reach.min())


def test_ranges_come_together() -> None:
    model = skewed(build(chain))
    ctx = context(model, data((3, 12, 12)))
    equal, _, _ = run_recipe([Equalize(strength=1.0)], model, ctx)
    assert spread(model, ctx) > 10
    assert spread(equal, ctx) < 1.01


@pytest.mark.parametrize("body", NETS)
def test_quantized_outputs_come_nearer(body: Any) -> None:
    batches, fresh = data((3, 12, 12)), data((3, 12, 12), seed=9)
    model = build(body, 3)
    worse = skewed(model)
    assert worst_sqnr(model, worse, fresh) > 90
    ctx = context(worse, batches)
    static = Static(plan="everything", observer="minmax")
    found = {
        "skewed": run_recipe([static], worse, ctx)[0],
        "equalized": run_recipe([Equalize(), static], worse, ctx)[0],
    }
    sqnr = {name: worst_sqnr(model, quantized, fresh) for name, quantized in found.items()}
    assert sqnr["equalized"] > sqnr["skewed"] + 3


def test_a_clip_is_passed_only_on_request_and_below_its_bound() -> None:
    net = Net("clip")
    x = net.input("x", "N", 3, 12, 12)
    h = net.op("Clip", net.conv(x, 3, 8), net.const(np.float32(0)), net.const(np.float32(2)))
    model = net.model(y=net.dense(net.pooled(h), 8, 5))
    batches = data((3, 12, 12))
    _, steps, _ = run_recipe([Equalize(strength=1.0)], model, context(model, batches))
    assert "no activation lies between" in (steps[-1].refused or "")
    ctx = context(model, batches)
    equal, _, _ = run_recipe([Equalize(strength=1.0, through_clip=True)], model, ctx)
    assert worst_sqnr(model, equal, batches) > 90  # the channels that reach 2 keep their factor
    assert graph.to_bytes(equal) != graph.to_bytes(model)


def test_shared_weights_and_outputs_keep_their_channels() -> None:
    net = Net("shared")
    x = net.input("x", "N", 8, 6, 6)
    weight = net.weight(8, 8, 1, 1)
    a = net.op("Relu", net.op("Conv", x, weight))
    b = net.op("Relu", net.op("Conv", a, weight))
    model = net.model(y=net.conv(b, 8, 4), z=a)
    channels = Channels(model)
    assert not any(channels.roots(v).any() for v in channels.values())
    _, steps, _ = run_recipe([Equalize()], model, context(model, data((8, 6, 6))))
    assert steps[-1].refused


def test_statistics_of_channels_add_up() -> None:
    rng = np.random.default_rng(0)
    x = rng.normal(size=(6, 3, 5, 5)).astype(np.float32) * np.array([1, 10, 100], "f").reshape(1, 3, 1, 1)
    whole, first, second = (Statistics(axis=1) for _ in range(3))
    whole.add(x, float(x.min()), float(x.max()))
    first.add(x[:2], float(x[:2].min()), float(x[:2].max()))
    second.add(x[2:], float(x[2:].min()), float(x[2:].max()))
    first.merge(second)
    for found in (whole, first):
        np.testing.assert_allclose(found.reach, np.abs(x).max(axis=(0, 2, 3)))
        np.testing.assert_allclose(found.power, (x.astype(np.float64) ** 2).mean(axis=(0, 2, 3)), rtol=1e-5)
        np.testing.assert_allclose(
            found.mean, x.astype(np.float64).mean(axis=(0, 2, 3)), rtol=1e-4, atol=1e-6
        )
