"""One scale a weight: chosen by what the layer's input lets be heard of each element."""

from __future__ import annotations

import numpy as np
import onnx_ir as ir
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from attar import graph
from attar.calibration import as_data
from attar.context import Context
from attar.measure import differences
from attar.registry import default_registry
from attar.run import run_recipe
from attar.runtime import OnnxRuntime
from attar.specs import input_specs
from attar.testing.build import Net
from attar_quantize import Static
from attar_quantize.heard import heard_params
from attar_quantize.scheme import QType, weight_params

INT8 = QType(signed=True, symmetric=True, narrow=True)


def conv(group: int = 1) -> ir.Node:
    return ir.node("Conv", [None, None], attributes={"group": group})


def noise(weight: np.ndarray, power: np.ndarray, params: object, group: int) -> float:
    """sum over outputs, channels and taps of E[x^2] (W' - W)^2, element by element."""
    restored = params.dequantize(params.quantize(weight))
    inside, outside = weight.shape[1], weight.shape[0] // group
    total = 0.0
    for o in range(weight.shape[0]):
        for c in range(inside):
            heard = max(power[(o // outside) * inside + c], 1e-6 * power.mean())
            total += heard * float(((restored[o, c] - weight[o, c]) ** 2).sum())
    return total


@settings(max_examples=20, deadline=None)
@given(seed=st.integers(0, 1000), group=st.sampled_from([1, 2, 6]))
def test_never_noisier_than_the_extremes(seed: int, group: int) -> None:
    rng = np.random.default_rng(seed)
    weight = rng.normal(size=(6, 6 // group, 3, 3)) * 2.0 ** rng.uniform(-4, 4, (6, 1, 1, 1))
    power = rng.uniform(0, 2, 6) * (rng.random(6) > 0.3)
    power[0] += 0.1
    heard = heard_params(weight, conv(group), power, INT8)
    extremes = weight_params(weight, INT8, None)
    assert noise(weight, power, heard, group) <= noise(weight, power, extremes, group) * (1 + 1e-9)


def test_a_wide_row_that_reads_silence_does_not_set_the_scale() -> None:
    rng = np.random.default_rng(0)
    weight = rng.normal(size=(4, 1, 3, 3))
    weight[2] *= 200
    power = np.array([1.0, 1.0, 0.0, 1.0])
    heard = heard_params(weight, conv(4), power, INT8)
    speaking = weight_params(weight[[0, 1, 3]], INT8, None)
    assert heard.scale < 10 * speaking.scale
    assert heard_params(weight, conv(4), np.ones(4), INT8).scale > 50 * speaking.scale


@pytest.mark.parametrize("turned", [False, True])
def test_matrices_in_both_layouts(turned: bool) -> None:
    rng = np.random.default_rng(0)
    weight = rng.normal(size=(5, 8))  # [inputs, outputs]
    weight[3] *= 200
    power = np.array([1.0, 2.0, 1.0, 0.0, 1.0])
    node = ir.node("Gemm", [None, None], attributes={"transB": int(turned)})
    heard = heard_params(weight.T if turned else weight, node, power, INT8)
    assert heard.scale < 0.2 * weight_params(weight, INT8, None).scale


def test_per_tensor_survives_a_dead_channel_with_a_wide_depthwise_row() -> None:
    """What folded BatchNormalization leaves of channels whose variance was next to nothing."""
    net = Net("dead")
    h = net.op(
        "Clip",
        net.conv(net.input("x", "N", 3, 16, 16), 3, 16),
        net.const(np.float32(0)),
        net.const(np.float32(6)),
    )
    h = net.op("Relu", net.conv(h, 16, 16, group=16))
    model = net.model(y=net.dense(net.pooled(h), 16, 6))
    first, second = (n for n in model.graph if n.op_type == "Conv")
    for node, index, row, change in ((first, 2, 5, -100.0), (second, 1, 5, 1.0)):
        array = np.array(graph.const_array(node.inputs[index]))
        array[row] = change if index == 2 else array[row] * 200
        graph.replace_weight(node.inputs[index], array)
    data = [np.random.default_rng(i).normal(size=(4, 3, 16, 16)).astype(np.float32) for i in range(6)]
    registry, runtime = default_registry(), OnnxRuntime()
    ctx = Context(
        registry,
        registry.get_target("cpu-vnni"),
        runtime,
        as_data(data, input_specs(model)),
        feeds={"x": data[0]},
    )
    found = run_recipe([Static(granularity="per_tensor", plan="everything")], model, ctx)[0]
    fresh = [{"x": np.random.default_rng(9).normal(size=(8, 3, 16, 16)).astype(np.float32)}]
    (difference,) = differences(runtime.open(model), runtime.open(found), fresh)
    assert difference.sqnr_db > 25
