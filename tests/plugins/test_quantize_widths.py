"""Bits: any number of them, by name and by sensitivity, 16-bit and small-float types, powers of two."""

from __future__ import annotations

from typing import Any

import numpy as np
import onnx_ir as ir
import pytest
from quantize_models import normal, quantize, quantizers, run, two_layers

from attar import graph
from attar.errors import RecipeError
from attar.histogram import Histogram
from attar.passes import Pass
from attar_quantize import Static
from attar_quantize.observers import moving_average

FEEDS = normal("x", 4, 8, 10, 10)


def weight_codes(model: ir.Model) -> list[Any]:
    found = []
    for node in model.graph:
        if node.op_type in ("Conv", "Gemm"):
            found.append(graph.const_array(node.inputs[1].producer().inputs[0]))
    return found


def noise(model: ir.Model, *, optimize: bool = True) -> float:
    before = run(two_layers(), FEEDS[0])[0]
    after = run(model, FEEDS[0], optimize=optimize)[0]
    return float(np.mean((after - before) ** 2) / np.mean(before**2))


@pytest.mark.parametrize("bits", [2, 4, 5, 7, 8, 12, 16])
def test_activations_have_so_many_codes(bits: int) -> None:
    model, _ = quantize(two_layers(), FEEDS, activation_bits=bits, edge_bits=2)
    step = quantizers(model)[-1]
    tap = step.outputs[0]
    users = [user for user, _ in tap.uses()]
    if bits < 8:
        assert [u.op_type for u in users] == ["Clip"]
        tap = users[0].outputs[0]
    model.graph.outputs.append(tap)
    codes = run(model, FEEDS[0])[-1]
    assert len(np.unique(codes)) <= 2**bits
    assert codes.dtype == (np.uint8 if bits <= 8 else np.uint16)


def test_noise_falls_with_the_bits() -> None:
    found = [noise(quantize(two_layers(), FEEDS, activation_bits=b, edge_bits=2)[0]) for b in (3, 5, 8)]
    assert found[0] > 2 * found[1] > 4 * found[2]


@pytest.mark.parametrize(
    ("options", "limit"),
    [
        ({"activation": "uint16"}, 1e-3),
        ({"activation": "int16", "weight": "int16"}, 1e-6),
        ({"weight": "int16", "weight_bits": 12, "activation_bits": 12}, 1e-4),
        ({"activation": "float8e4m3fn", "weight": "float8e4m3fn"}, 1e-2),
        ({"activation": "float8e5m2", "weight": "float8e5m2"}, 4e-2),
    ],
    ids=str,
)
def test_wide_and_small_float_types(options: dict[str, Any], limit: float) -> None:
    model, _ = quantize(two_layers(), FEEDS, **options)
    assert quantizers(model)
    for optimize in (False, True):
        assert noise(model, optimize=optimize) < limit


def test_power_of_two_scales() -> None:
    model, _ = quantize(two_layers(), FEEDS, power_of_two=True)
    scales = [
        graph.const_array(node.inputs[1])
        for node in model.graph
        if node.op_type in ("QuantizeLinear", "DequantizeLinear")
    ]
    assert len(scales) > 4
    for scale in scales:
        mantissa, _ = np.frexp(scale)
        assert (mantissa == 0.5).all()
    assert noise(model) < 1e-3


def test_overrides_by_name() -> None:
    first, second = (n.name for n in two_layers().graph if n.op_type in ("Conv", "Gemm"))
    model, _ = quantize(two_layers(), FEEDS, overrides=(f"{first}=w3", f"{second}=w8a16"), rounding="nearest")
    small, large = weight_codes(model)
    assert np.abs(small).max() <= 4
    assert np.abs(large).max() > 64
    kinds = {graph.const_array(n.inputs[2]).dtype.name for n in quantizers(model)}
    assert kinds == {"uint8", "uint16"}


def test_overrides_survive_a_recipe() -> None:
    step = Static(overrides=("conv*=w4a8",), average_bits=5.0)
    assert Static.from_dict(step.to_dict()) == step
    assert isinstance(step, Pass)


@pytest.mark.parametrize("text", ["conv", "=w4", "conv=", "conv=w1", "conv=a17", "conv=q4", "conv=w"])
def test_bad_overrides(text: str) -> None:
    with pytest.raises(RecipeError):
        Static(overrides=(text,))


def test_a_pattern_that_matches_nothing_is_an_error() -> None:
    with pytest.raises(RecipeError, match="nothing_like_it"):
        quantize(two_layers(), FEEDS, overrides=("nothing_like_it=w4",))


def test_bits_by_sensitivity_keep_the_average() -> None:
    model, ctx = quantize(two_layers(), FEEDS, average_bits=4.0, rounding="nearest")
    told = next(c for c in ctx.step.changes if c.startswith("bits of weights: "))
    used = [int(part.split()[-1]) for part in told.removeprefix("bits of weights: ").split(", ")]
    sizes = [c.size for c in weight_codes(model)]
    assert np.dot(used, sizes) / sum(sizes) <= 4.0
    for bits, codes in zip(used, weight_codes(model), strict=True):
        assert codes.max() - codes.min() < 2**bits


def test_moving_averages_forget_outliers_and_merge() -> None:
    rng = np.random.default_rng(0)
    parts = [rng.uniform(-1, 1, 1000).astype(np.float32) for _ in range(40)]
    parts[7][0] = 50.0
    whole, left, right = Histogram(), Histogram(), Histogram()
    for i, part in enumerate(parts):
        whole.add(part)
        (left if i < 25 else right).add(part)
    left.merge(right)
    low, high = moving_average(whole, 256)
    mean = np.mean([p.max() for p in parts])
    assert np.isclose(high, mean, rtol=1e-6)
    assert np.allclose(moving_average(left, 256), (low, high))
    assert high < 3 < whole.high
