"""GPTQ and activation-aware ranges for `quantize.weights`, judged by outputs on data they have not seen."""

from __future__ import annotations

from typing import Any

import numpy as np
import onnx_ir as ir
import pytest
from quantize_models import context, run, sqnr

from attar import gram, graph
from attar.errors import InputError
from attar.testing.build import Net
from attar_quantize import Weights
from attar_quantize.awq import awq
from attar_quantize.gptq import Grams, gptq
from attar_quantize.methods import METHODS, Layer
from attar_quantize.scheme import QType

Array = np.ndarray[Any, Any]
ASYMMETRIC = QType(signed=False, bits=4)


def feeds(*shape: int, count: int = 8, seed: int = 0) -> list[dict[str, Array]]:
    """Inputs whose channels go together; some are much larger than others."""
    rng = np.random.default_rng(seed)
    fixed = np.random.default_rng(99)
    channels = shape[1]
    mix = fixed.standard_normal((max(1, channels // 4), channels))
    size = fixed.lognormal(0, 1, channels)
    rest = [shape[0], *shape[2:]]
    out = []
    for _ in range(count):
        x = rng.standard_normal((*rest, len(mix))) @ mix + 0.3 * rng.standard_normal((*rest, channels))
        out.append({"x": np.moveaxis(x * size, -1, 1).astype(np.float32)})
    return out


def encoder() -> ir.Model:
    """Three MatMuls that share an input, a Gemm with transposed weight, a table that has no Gram matrix."""
    net = Net("encoder", 4)
    x = net.input("x", "N", 64)
    parts = [net.op("MatMul", x, net.weight(64, 64, name=f"w{i}")) for i in range(3)]
    hidden = net.op("Relu", net.op("Add", net.op("Add", parts[0], parts[1]), parts[2]))
    return net.model(y=net.dense(hidden, 64, 96))


def conv() -> ir.Model:
    net = Net("conv", 5)
    return net.model(y=net.conv(net.input("x", "N", 32, 8, 8), 32, 24))


def quantized(model: ir.Model, data: list[dict[str, Array]], **options: Any) -> ir.Model:
    copy = graph.clone(model)
    ctx = context(model, data)
    Weights(**options).apply(copy, ctx)
    graph.tidy(copy)
    return copy


@pytest.mark.parametrize("block", [0, 16, 24, 32])
@pytest.mark.parametrize(("method", "gain"), [("gptq", 2.5), ("awq", 0.2)])
@pytest.mark.parametrize(("make", "shape"), [(encoder, (32, 64)), (conv, (2, 32, 8, 8))])
def test_outputs_on_other_data_come_nearer(
    make: Any, shape: tuple[int, ...], method: str, gain: float, block: int
) -> None:
    model = make()
    seen, others = feeds(*shape), feeds(*shape, seed=1)
    found = {}
    for name in ("nearest", method):
        small = quantized(model, seen, type="int4", block=block, method=name)
        found[name] = np.mean([sqnr(run(model, f)[0], run(small, f)[0]) for f in others])
    assert found[method] > found["nearest"] + gain, found


def test_independent_inputs_give_the_codes_of_least_squared_error() -> None:
    rng = np.random.default_rng(0)
    weight = rng.standard_normal((32, 8)).astype(np.float32)
    node = ir.node("MatMul", [None, None])
    layer = Layer(weight, QType(signed=True, bits=4, symmetric=True, block=8), 0, (node,))
    # Without a context there is no Gram matrix.
    for method in (gptq, awq):
        codes, params = method(layer)
        expected, grid = METHODS["mse"](layer)
        np.testing.assert_array_equal(codes, expected)
        np.testing.assert_array_equal(params.scale, grid.scale)


def test_gptq_is_rounding_to_nearest_where_inputs_are_independent(monkeypatch: pytest.MonkeyPatch) -> None:
    rng = np.random.default_rng(0)
    weight = rng.standard_normal((32, 8)).astype(np.float32)
    eye = gram.Gram(np.eye(32)[None], np.zeros((1, 32)), 1)
    monkeypatch.setattr("attar_quantize.gptq.gram_of", lambda _: eye)
    for block in (0, 8):
        layer = Layer(
            weight, QType(False, 4, block=block), 0 if block else 1, (ir.node("MatMul", [None, None]),)
        )
        codes, params = gptq(layer)
        np.testing.assert_array_equal(codes, params.quantize(weight))


def test_important_channels_get_the_better_range(monkeypatch: pytest.MonkeyPatch) -> None:
    """In a block of one large weight that nothing reaches and many small ones that matter, the large one is
    clipped."""
    weight = np.full((16, 1), 0.3, np.float32) * np.linspace(-1, 1, 16, dtype=np.float32)[:, None]
    weight[5] = 1.0
    power = np.ones(16)
    power[5] = 1e-6
    monkeypatch.setattr(
        "attar_quantize.awq.gram_of", lambda _: gram.Gram(np.diag(power)[None], np.zeros((1, 16)), 1)
    )
    layer = Layer(weight, QType(True, 4, symmetric=True, block=16), 0, (ir.node("MatMul", [None, None]),))
    codes, params = awq(layer)
    assert params.scale.item() < 0.8 * METHODS["nearest"](layer)[1].scale.item()
    error = (params.dequantize(codes) - weight)[:, 0]
    plain = METHODS["nearest"](layer)
    assert (power * error**2).sum() < (power * (plain[1].dequantize(plain[0]) - weight)[:, 0] ** 2).sum()


def test_the_data_runs_through_once_and_through_the_float_model(monkeypatch: pytest.MonkeyPatch) -> None:
    calls = []
    collect = gram.collect

    def counted(model: ir.Model, items: Any, *rest: Any, **options: Any) -> Any:
        calls.append(list(items))
        assert all(n.op_type != "DequantizeLinear" for n in model.graph)
        return collect(model, items, *rest, **options)

    monkeypatch.setattr("attar_quantize.gptq.collect", counted)
    quantized(encoder(), feeds(32, 64), type="int4", block=16, method="gptq")
    assert [len(c) for c in calls] == [2]
    calls.clear()
    monkeypatch.setattr("attar_quantize.gptq.sweeps", lambda items: ([i] for i in items))
    quantized(encoder(), feeds(32, 64), type="int4", block=16, method="gptq")
    assert [len(c) for c in calls] == [1, 1]


def test_without_data_the_way_out_is_told() -> None:
    model = encoder()
    ctx = context(model, feeds(4, 64))
    ctx.data = None
    with pytest.raises(InputError, match="needs calibration data"):
        Weights(type="int4", block=16, method="gptq").apply(graph.clone(model), ctx)


def test_the_grams_of_another_model_are_not_taken() -> None:
    one, other = encoder(), encoder()
    ctx = context(one, feeds(4, 64))
    first = Grams.of(one, ctx)
    assert Grams.of(one, ctx) is first
    assert Grams.of(other, ctx) is not first
