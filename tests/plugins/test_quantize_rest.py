"""Weights that integer layers have no use for are stored as 8-bit codes all the same."""

from __future__ import annotations

from typing import Any

import numpy as np
import onnx_ir as ir
import pytest

from attar import graph
from attar.calibration import as_data
from attar.context import Context
from attar.registry import default_registry
from attar.run import run_pass
from attar.runtime import OnnxRuntime
from attar.specs import input_specs
from attar.testing.build import Net
from attar_quantize import Static


def network() -> ir.Model:
    """A recurrent layer, which has no integer kernel, between two that have."""
    net = Net("mixed", 1)
    x = net.input("x", "N", 8, 64)
    wide = net.op("Relu", net.op("MatMul", x, net.weight(64, 256, name="wide")))
    steps = net.op("Transpose", wide, perm=[1, 0, 2])
    weights = net.weight(1, 128, 256, name="w"), net.weight(1, 128, 32, name="r")
    last = net.op("Squeeze", net.ops("LSTM", steps, *weights, count=2, hidden_size=32)[1], net.ints([0]))
    return net.model(y=net.op("MatMul", last, net.weight(32, 64, name="narrow")))


def quantized(**options: Any) -> tuple[ir.Model, ir.Model]:
    model = network()
    data = np.random.default_rng(0).standard_normal((32, 8, 64)).astype(np.float32)
    registry = default_registry()
    batches = as_data(data, input_specs(model))
    ctx = Context(registry, registry.get_target("cpu-vnni"), OnnxRuntime(), batches, feeds={"x": data[:1]})
    return model, run_pass(Static(**options), model, ctx, {"x": data[:1]})[0]


def float_weights(model: ir.Model) -> set[str]:
    """Names of constants of more than a few numbers that are stored as floats."""
    found = {n: v for n, v in model.graph.initializers.items() if v.dtype == ir.DataType.FLOAT}
    return {n for n, v in found.items() if v.const_value.size > 999}


def test_what_stays_in_float_is_stored_in_eight_bits() -> None:
    before, after = quantized(plan="everything")
    _, plain = quantized(plan="everything", rest="float")
    assert float_weights(plain) == {"w", "r"}
    assert not float_weights(after)
    assert graph.byte_size(after) < 0.3 * graph.byte_size(before)
    assert graph.byte_size(after) < 0.6 * graph.byte_size(plain)
    feeds = {"x": np.random.default_rng(1).standard_normal((4, 8, 64)).astype(np.float32)}
    wanted, got, without = (OnnxRuntime().open(m).run(feeds)[0] for m in (before, after, plain))
    noise = [float(np.linalg.norm(y - wanted) / np.linalg.norm(wanted)) for y in (without, got)]
    assert min(noise) > 0
    assert max(noise) < 0.02


@pytest.mark.parametrize(
    ("options", "weight"),
    [
        ({"keep_float": ("matmul_2",)}, "wide"),
        ({"keep_float": ("lstm*",)}, "w"),
        ({"overrides": ("matmul_2=float",)}, "wide"),
        ({"overrides": ("matmul_2_out_quantized=float", "matmul_2=float")}, "wide"),
    ],
    ids=str,
)
def test_what_the_user_keeps_stays_as_it_is(options: dict[str, Any], weight: str) -> None:
    before, after = quantized(plan="everything", **options)
    kept = after.graph.initializers[weight].const_value
    np.testing.assert_array_equal(kept.numpy(), before.graph.initializers[weight].const_value.numpy())
