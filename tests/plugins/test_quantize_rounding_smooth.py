"""`quantize.smooth`: outputs stay, outlier channels go."""

from __future__ import annotations

from typing import Any

import numpy as np
import onnx_ir as ir
import pytest
from quantize_models import context, quantize, run, sqnr

from attar import graph
from attar.errors import Refused
from attar.runtime import OnnxRuntime
from attar.testing.build import Net
from attar_quantize import Smooth, Weights

Array = np.ndarray[Any, Any]
WIDTH = 32
RUNTIME = OnnxRuntime()


def outliers(size: float = 30.0) -> Array:
    """Scales of a normalization with three channels far above the others."""
    scale = np.ones(WIDTH, np.float32)
    scale[[3, 11, 20]] = size
    return scale


def block(net: Net, x: ir.Value, norm: str) -> ir.Value:
    """A pre-norm block: a normalization, two layers that read it, and the residual sum."""
    scale, bias = outliers(), net.rng.standard_normal(WIDTH).astype(np.float32)
    if norm == "LayerNormalization":
        y = net.op("LayerNormalization", x, net.const(scale), net.const(bias), axis=-1)
    elif norm == "without bias":
        y = net.op("LayerNormalization", x, net.const(scale))
    elif norm == "Mul and Add":
        y = net.op("Add", net.op("Mul", net.op("Tanh", x), net.const(scale)), net.const(bias))
    else:
        weight = (net.array(WIDTH, WIDTH) * scale).astype(np.float32)
        y = net.op("Add", net.const(bias), net.op("MatMul", x, net.const(weight)))
    weights = [(net.array(WIDTH, WIDTH) / np.sqrt(scale)[:, None]).astype(np.float32) for _ in range(2)]
    left, right = (net.op("MatMul", y, net.const(w)) for w in weights)
    return net.op("Add", net.op("Add", left, net.op("Relu", right)), x)


def model(norm: str = "LayerNormalization") -> ir.Model:
    net = Net("block", 8)
    return net.model(y=block(net, net.input("x", "N", 6, WIDTH), norm))


def feeds(count: int = 4, seed: int = 0) -> list[dict[str, Array]]:
    rng = np.random.default_rng(seed)
    return [{"x": rng.standard_normal((4, 6, WIDTH)).astype(np.float32)} for _ in range(count)]


def smooth(source: ir.Model, data: list[dict[str, Array]] | None = None, **options: Any) -> ir.Model:
    copy = graph.clone(source)
    Smooth(**options).apply(copy, context(source, data or feeds()))
    graph.tidy(copy)
    graph.refresh_shapes(copy)
    return copy


NORMS = ["LayerNormalization", "without bias", "Mul and Add", "linear"]


@pytest.mark.parametrize(
    "options", [{}, {"strength": 0.5}, {"strength": 1.0}, {"goal": "weights", "bits": 4}]
)
@pytest.mark.parametrize("norm", NORMS)
def test_outputs_are_unchanged(norm: str, options: dict[str, Any]) -> None:
    source = model(norm)
    before = graph.to_bytes(source)
    try:
        changed = smooth(source, **options)
    except Refused:
        assert options.get("goal") == "weights" or not options
        return
    assert graph.to_bytes(source) == before
    assert len(changed.graph) == len(source.graph)
    for feed in feeds(seed=1):
        expected = run(source, feed, optimize=False)[0]
        np.testing.assert_allclose(run(changed, feed, optimize=False)[0], expected, rtol=2e-5, atol=2e-5)


@pytest.mark.parametrize("norm", NORMS)
def test_int8_comes_nearer(norm: str) -> None:
    source = model(norm)
    changed = smooth(source)
    found = []
    for form in (source, changed):
        small, _ = quantize(form, feeds(), observer="minmax", operators=("MatMul",))
        found.append(np.mean([sqnr(run(source, f)[0], run(small, f)[0]) for f in feeds(seed=1)]))
    assert found[1] > found[0] + 3, found


def test_ranges_of_channels_come_together() -> None:
    source = model()
    spread = []
    for form in (source, smooth(source, strength=1.0)):
        copy = graph.clone(form)
        value = next(n for n in copy.graph if n.op_type == "LayerNormalization").outputs[0]
        copy.graph.outputs.append(value)
        reach = np.abs(RUNTIME.open(copy).run(feeds()[0])[1]).reshape(-1, WIDTH).max(axis=0)
        spread.append(reach.max() / np.median(reach))
    assert spread[0] > 10
    assert spread[1] < 2.5


def test_weights_in_four_bits_come_nearer() -> None:
    """Inputs of very different size: weights of the large ones are made large, so that they round finely."""
    net = Net("weights", 3)
    x = net.input("x", "N", WIDTH)
    y = net.op("LayerNormalization", x, net.const(outliers(12.0)), axis=-1)
    source = net.model(y=net.op("MatMul", y, net.weight(WIDTH, 64)))
    data = [{"x": f["x"].reshape(-1, WIDTH)} for f in feeds()]
    found = []
    for form in (source, smooth(source, data, goal="weights", bits=4)):
        small = graph.clone(form)
        Weights(type="int4", method="nearest").apply(small, context(form, data))
        graph.tidy(small)
        found.append(np.mean([sqnr(run(source, f)[0], run(small, f)[0]) for f in data]))
    assert found[1] > found[0] + 2, found


def test_shared_constants_are_left_to_their_other_readers() -> None:
    net = Net("shared", 9)
    x = net.input("x", "N", WIDTH)
    scale, weight = net.const(outliers()), net.weight(WIDTH, 8)
    a = net.op("MatMul", net.op("LayerNormalization", x, scale), weight)
    b = net.op("Relu", net.op("LayerNormalization", net.op("Tanh", x), scale))
    source = net.model(a=a, b=b, c=net.op("MatMul", x, weight))
    data = [{"x": f["x"].reshape(-1, WIDTH)} for f in feeds()]
    changed = smooth(source, data, strength=0.5)
    for expected, found in zip(run(source, data[0]), run(changed, data[0]), strict=True):
        np.testing.assert_allclose(found, expected, rtol=2e-5, atol=2e-4)


def test_a_value_that_others_read_is_left_with_the_reason() -> None:
    net = Net("post-norm", 10)
    x = net.op("LayerNormalization", net.input("x", "N", WIDTH), net.const(outliers()))
    source = net.model(y=net.op("Add", net.op("MatMul", x, net.weight(WIDTH, WIDTH)), x))
    data = [{"x": f["x"].reshape(-1, WIDTH)} for f in feeds()]
    ctx = context(source, data)
    with pytest.raises(Refused, match="no activation lies between"):
        Smooth().apply(graph.clone(source), ctx)
    assert [s.reason for s in ctx.step.skipped] == [
        "something else than linear layers reads it, such as a residual sum"
    ]


@pytest.mark.parametrize("axis", [1, -2])
def test_a_normalization_over_more_than_channels_is_left(axis: int) -> None:
    net = Net("wide", 11)
    scale = net.const(np.ones((6, WIDTH), np.float32))
    x = net.op("LayerNormalization", net.input("x", "N", 6, WIDTH), scale, axis=axis)
    source = net.model(y=net.op("MatMul", x, net.weight(WIDTH, 4)))
    with pytest.raises(Refused):
        smooth(source)


def test_even_channels_are_left() -> None:
    net = Net("even", 12)
    x = net.op("LayerNormalization", net.input("x", "N", WIDTH), net.const(np.ones(WIDTH, np.float32)))
    source = net.model(y=net.op("MatMul", x, net.weight(WIDTH, 4)))
    data = [{"x": f["x"].reshape(-1, WIDTH)} for f in feeds(16)]
    with pytest.raises(Refused, match="no factors lower"):
        smooth(source, data, strength=0.0, goal="weights")
