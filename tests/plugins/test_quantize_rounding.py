"""Rounding of weights in `quantize.static`: what it does to outputs, biases and whole networks."""

from __future__ import annotations

import itertools
from dataclasses import replace
from typing import Any

import numpy as np
import onnx_ir as ir
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from quantize_models import (
    constant,
    kernels,
    normal,
    one_layer,
    quantize,
    run,
    small_cnn,
    sqnr,
)

from attar import gram, graph, solve
from attar.testing.build import Net
from attar_quantize import Static
from attar_quantize.adaround import adaround
from attar_quantize.rounding import choose_damping, round_layer
from attar_quantize.scheme import QType, weight_params

Array = np.ndarray[Any, Any]
FOUR = QType(signed=True, bits=4, symmetric=True, narrow=True)


def correlated(*shape: int, count: int = 12, seed: int = 0) -> list[dict[str, Array]]:
    """Inputs whose channels go together, with a mean: as behind a ReLU."""
    rng = np.random.default_rng(seed)
    mix = np.random.default_rng(99).standard_normal((max(1, shape[1] // 4), shape[1]))
    out = []
    for _ in range(count):
        few = rng.standard_normal((shape[0], *shape[2:], len(mix)))
        x = few @ mix + 0.2 * rng.standard_normal((shape[0], *shape[2:], shape[1]))
        out.append({"x": np.maximum(np.moveaxis(x, -1, 1), 0).astype(np.float32)})
    return out


LAYERS: dict[str, tuple[Any, tuple[int, ...]]] = {
    "conv": (lambda net, x: net.conv(x, 16, 12), (2, 16, 10, 10)),
    "conv without bias": (lambda net, x: net.conv(x, 16, 12, (1, 1), bias=False), (2, 16, 10, 10)),
    "grouped": (lambda net, x: net.conv(x, 16, 12, group=2), (2, 16, 10, 10)),
    "depthwise": (lambda net, x: net.conv(x, 16, 16, group=16), (2, 16, 10, 10)),
    "gemm": (lambda net, x: net.dense(x, 64, 12), (64, 64)),
    "matmul with bias": (lambda net, x: net.dense(x, 64, 12, gemm=False), (64, 64)),
    "matmul without": (lambda net, x: net.op("MatMul", x, net.weight(64, 12)), (64, 64)),
}


@pytest.mark.parametrize("method", ["hessian", "adaround"])
@pytest.mark.parametrize("name", LAYERS)
def test_outputs_on_other_data_come_nearer(name: str, method: str) -> None:
    make, shape = LAYERS[name]
    model = one_layer(make, "N", *shape[1:])
    feeds, others = correlated(*shape), correlated(*shape, seed=1)
    found = {}
    for rounding in ("nearest", method):
        small, _ = quantize(
            model, feeds, weight_bits=4, edge_bits=4, rounding=rounding, observer="minmax", sequential=False
        )
        found[rounding] = np.mean([sqnr(run(model, f)[0], run(small, f)[0]) for f in others])
    gain = found[method] - found["nearest"]
    # Nine inputs of a depthwise channel, independent of each other, leave little to gain.
    assert gain > (-0.2 if name == "depthwise" else 1.5), found


@pytest.mark.parametrize("name", ["conv", "grouped", "gemm", "matmul with bias"])
def test_the_mean_of_every_output_channel_is_kept(name: str) -> None:
    """Borders included, where padding makes the means of inputs smaller."""
    make, shape = LAYERS[name]
    model = one_layer(make, "N", *shape[1:])
    feeds = correlated(*shape)
    small, _ = quantize(model, feeds, weight_bits=3, edge_bits=3, rounding="hessian", observer="minmax")
    difference = np.concatenate([run(small, f)[0] - run(model, f)[0] for f in feeds])
    axes = tuple(a for a in range(difference.ndim) if a != 1)
    spread = difference.std()
    assert np.abs(difference.mean(axis=axes)).max() < 0.25 * spread


@given(st.integers(0, 2**32 - 1))
@settings(max_examples=20, deadline=None)
def test_without_correlation_rounding_is_to_nearest(seed: int) -> None:
    rng = np.random.default_rng(seed)
    weight = rng.standard_normal((6, 40)).astype(np.float32)
    node = ir.node("Gemm", [None, None], attributes={"transB": 1})
    eye = gram.Gram(np.eye(40)[None] * 100, np.zeros((1, 40)), 100)
    eight = QType(signed=True, symmetric=True, narrow=True)
    params = weight_params(weight, eight, 0)
    found = round_layer(node, weight, eye, params)
    np.testing.assert_array_equal(found.codes, params.quantize(weight))
    np.testing.assert_array_equal(found.params.scale, params.scale)


def problem(seed: int, rows: int, columns: int) -> tuple[Array, Array]:
    rng = np.random.default_rng(seed)
    few = max(1, columns // 4)
    x = rng.standard_normal((200, few)) @ rng.standard_normal((few, columns))
    x += 0.3 * rng.standard_normal(x.shape)
    return rng.standard_normal((rows, columns)), solve.damped(x.T @ x / 200)


def test_adaround_comes_near_what_trying_all_roundings_finds() -> None:
    """Up or down for 8 weights: 256 ways, all tried."""
    ratios, worse = [], []
    for seed in range(10):
        weight, h = problem(seed, 1, 8)
        grid = solve.Grid(np.full((1, 1), 0.4), 0, -20, 20)
        below = np.floor(weight / 0.4)
        every = below + np.array(list(itertools.product((0, 1), repeat=8)))
        best = solve.cost(weight - grid.values(every[None]), h).min()
        codes = adaround(weight, h, grid)
        assert (np.abs(codes - weight / 0.4) < 1).all()
        ratios.append(solve.cost(weight - grid.values(codes), h)[0] / best)
        nearest = solve.cost(weight - grid.values(grid.codes(weight)), h)[0]
        worse.append(nearest / best)
    assert np.median(ratios) < 2.5
    assert np.mean(worse) > 2 * np.mean(ratios)


def test_adaround_is_never_worse_than_where_it_starts() -> None:
    weight, h = problem(3, 20, 32)
    top = np.abs(weight).max(axis=1, keepdims=True)
    grid = solve.Grid(top / 7, 0, -7, 7)
    start = solve.hessian_rounding(weight, h, grid)
    codes = adaround(weight, h, grid, start=start, steps=200)
    for other in (start, grid.codes(weight)):
        mine, theirs = (solve.cost(weight - grid.values(c), h) for c in (codes, other))
        assert (mine <= theirs * (1 + 1e-9)).all()
    alone = adaround(weight, h, grid)
    nearest = solve.cost(weight - grid.values(grid.codes(weight)), h).sum()
    assert solve.cost(weight - grid.values(alone), h).sum() < 0.3 * nearest


def test_the_damping_follows_the_data() -> None:
    """Two samples of many features deserve no trust; many samples do."""
    rng = np.random.default_rng(0)
    mix = rng.standard_normal((10, 64))
    weight = rng.standard_normal((1, 8, 64))
    grid = solve.Grid(np.abs(weight).max(axis=2, keepdims=True) / 7, 0, -7, 7)
    chosen = []
    for count in (40, 4000):
        whole, half = gram.Gram.zeros(1, 64), gram.Gram.zeros(1, 64)
        for part in (whole, half):
            x = rng.standard_normal((count, 10)) @ mix + 0.5 * rng.standard_normal((count, 64))
            part.add(x[None].astype(np.float32))
        whole.merge(half)
        whole.half = half
        chosen.append(choose_damping(weight, whole, grid))
    assert chosen[1] <= chosen[0]
    assert chosen[1] <= 0.2
    whole.half = None
    assert choose_damping(weight, whole, grid) == 1.0


def test_a_bias_that_needs_room_keeps_its_scale() -> None:
    """A channel of tiny weights with a large bias: its scale may not be made smaller."""
    rng = np.random.default_rng(1)
    weight = (rng.standard_normal((3, 40)) * [[1], [1e-9], [1]]).astype(np.float32)
    params = weight_params(weight, FOUR, 0)
    least = np.array([0, 1e-6, 0], np.float32)
    params = replace(params, scale=np.maximum(params.scale, least))
    x = rng.standard_normal((1, 500, 40)).astype(np.float32)
    seen = gram.Gram.zeros(1, 40)
    seen.add(x)
    node = ir.node("Gemm", [None, None], attributes={"transB": 1})
    found = round_layer(node, weight, seen, params, least)
    assert found.params.scale[1] >= least[1]
    assert (found.params.scale > 0).all()


def test_tied_weights_are_rounded_for_both_readers() -> None:
    net = Net("tied")
    x = net.input("x", "N", 24)
    weight = net.weight(24, 24)
    hidden = net.op("Relu", net.op("MatMul", x, weight))
    model = net.model(y=net.op("MatMul", hidden, weight))
    feeds, others = correlated(64, 24), correlated(64, 24, seed=5)
    found = {}
    for rounding in ("nearest", "hessian"):
        small, _ = quantize(model, feeds, weight_bits=4, edge_bits=4, rounding=rounding, observer="minmax")
        found[rounding] = np.mean([sqnr(run(model, f)[0], run(small, f)[0]) for f in others])
        codes = [
            v for v in small.graph.initializers.values() if v.dtype == ir.DataType.INT8 and len(v.shape) == 2
        ]  # type: ignore[arg-type]
        assert len(codes) == 1
    assert found["hessian"] > found["nearest"]


@pytest.mark.parametrize("bits", [2, 4, 6])
def test_codes_stay_within_the_bits(bits: int) -> None:
    small, _ = quantize(small_cnn(), normal("x", 8, 3, 8, 8), weight_bits=bits)
    half = 2 ** (bits - 1)
    weights = [
        constant(n.inputs[0]).astype(int)
        for n in graph.all_nodes(small)
        if n.op_type == "DequantizeLinear" and n.inputs[0] is not None and n.inputs[0].is_initializer()
        and n.inputs[0].dtype == ir.DataType.INT8
    ]  # fmt: skip
    assert len(weights) == 4
    assert all(-half <= w.min() and w.max() < half for w in weights[1:-1])
    assert np.abs(weights[0]).max() == np.abs(weights[-1]).max() == 127
    assert kernels(small)["QLinearConv"] == 3


def deep(seed: int = 3) -> ir.Model:
    net = Net("deep", seed)
    x = net.input("x", "N", 8, 12, 12)
    for _ in range(5):
        x = net.op("Relu", net.conv(x, 8, 8))
    return net.model(y=net.dense(net.pooled(x), 8, 6))


def test_in_sequence_layers_make_good_what_those_before_have_done() -> None:
    model = deep()
    feeds, others = correlated(4, 8, 12, 12, count=24), correlated(4, 8, 12, 12, seed=7)
    found = {}
    before = graph.to_bytes(model)
    for name, options in {
        "nearest": {"rounding": "nearest"},
        "at once": {"sequential": False},
        "in turn": {"sequential": True},
    }.items():
        small, _ = quantize(model, feeds, weight_bits=4, observer="minmax", **options)
        found[name] = np.mean([sqnr(run(model, f)[0], run(small, f)[0]) for f in others])
    assert graph.to_bytes(model) == before
    assert found["nearest"] < found["at once"] < found["in turn"], found


@pytest.mark.parametrize("sequential", [False, True])
def test_the_same_data_give_the_same_bytes_and_the_work_is_kept(
    monkeypatch: pytest.MonkeyPatch, sequential: bool
) -> None:
    model = small_cnn()
    feeds = normal("x", 8, 3, 8, 8)
    first, ctx = quantize(model, feeds, rounding="hessian", sequential=sequential)
    second, _ = quantize(model, feeds, rounding="hessian", sequential=sequential)
    assert graph.to_bytes(first) == graph.to_bytes(second)

    def explode(*_: Any, **__: Any) -> None:
        raise AssertionError("a layer was rounded again")

    monkeypatch.setattr("attar_quantize.rounding.round_layer", explode)
    monkeypatch.setattr("attar_quantize.sequential.round_layer", explode)
    again = graph.clone(model)
    Static(rounding="hessian", plan="everything", sequential=sequential).apply(again, ctx)
    graph.tidy(again)
    graph.refresh_shapes(again)
    assert graph.to_bytes(again) == graph.to_bytes(first)
