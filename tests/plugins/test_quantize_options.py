"""Every option of `Static` shows in the graph, bad ones are refused, and every set of them conforms."""

from __future__ import annotations

from typing import Any

import numpy as np
import onnx_ir as ir
import pytest
from quantize_models import (
    activation_steps,
    constant,
    dequantize_of,
    is_quantized,
    normal,
    one_layer,
    quantize,
    quantizers,
    run,
    two_layers,
)

from attar import graph
from attar.errors import RecipeError, Refused
from attar.testing import ZOO, conformance
from attar.testing.build import Net
from attar_quantize import Static

Array = np.ndarray[Any, Any]
FEEDS = normal("x", 4, 8, 10, 10)
MODELS = [
    "residual_cnn",
    "depthwise_cnn",
    "concat_split",
    "pad_slice_shortcut",
    "dead_channel",
    "conv1d",
    "mlp",
    "attention",
    "shared_weight",
    "weight_in_if",
    "weight_is_output",
    "several_ports",
    "unnamed_nodes",
    "batch_one",
]


def weights(model: ir.Model) -> list[tuple[Array, Array, Array]]:
    """(codes, scale, zero point) of every weight."""
    found = []
    for node in model.graph:
        if node.op_type in ("Conv", "Gemm") and is_quantized(node):
            codes, scale, zero = (constant(v) for v in dequantize_of(node.inputs[1]).inputs)
            found.append((codes, scale, zero))
    return found


@pytest.mark.parametrize(("kind", "dtype"), [("auto", np.uint8), ("uint8", np.uint8), ("int8", np.int8)])
def test_activation_type(kind: str, dtype: Any) -> None:
    model, _ = quantize(two_layers(), FEEDS, activation=kind)
    assert quantizers(model)
    assert {constant(n.inputs[2]).dtype for n in quantizers(model)} == {np.dtype(dtype)}


@pytest.mark.parametrize(("kind", "dtype"), [("auto", np.int8), ("uint8", np.uint8), ("int8", np.int8)])
def test_weight_type(kind: str, dtype: Any) -> None:
    model, _ = quantize(two_layers(), FEEDS, weight=kind)
    assert {c.dtype for c, _, _ in weights(model)} == {np.dtype(dtype)}
    assert len(weights(model)) == 2
    for _, _, zero in weights(model):
        assert (zero == (128 if kind == "uint8" else 0)).all()


@pytest.mark.parametrize(("kind", "middle"), [("uint8", 128), ("int8", 0)])
def test_symmetric_activations(kind: str, middle: int) -> None:
    model, _ = quantize(two_layers(), FEEDS, activation=kind, symmetric_activations=True)
    assert {int(constant(n.inputs[2])) for n in quantizers(model)} == {middle}
    plain, _ = quantize(two_layers(), FEEDS, activation=kind)
    assert {int(constant(n.inputs[2])) for n in quantizers(plain)} != {middle}


def test_symmetric_weights() -> None:
    def make(net: Net, x: ir.Value) -> ir.Value:
        return net.op("Conv", x, net.const(np.abs(net.array(8, 8, 3, 3))))

    model = one_layer(make, "N", 8, 10, 10)
    (codes, _, zero), *_ = weights(quantize(model, FEEDS)[0])
    assert not zero.any()
    assert codes.min() >= 0
    assert codes.max() == 127
    (codes, _, zero), *_ = weights(quantize(model, FEEDS, symmetric_weights=False)[0])
    assert (zero == -128).all()
    assert codes.max() == 127
    assert codes.min() < -100


def test_granularity() -> None:
    per_channel, _ = quantize(two_layers(), FEEDS)
    assert [s.shape for _, s, _ in weights(per_channel)] == [(8,), (4,)]
    per_tensor, _ = quantize(two_layers(), FEEDS, granularity="per_tensor")
    assert [s.shape for _, s, _ in weights(per_tensor)] == [(), ()]
    for node in per_tensor.graph:
        if node.op_type == "DequantizeLinear":
            assert "axis" not in node.attributes


def test_observer() -> None:
    def make(net: Net, x: ir.Value) -> ir.Value:
        return net.conv(net.op("Tanh", x), 8, 8)

    model = one_layer(lambda net, x: net.conv(x, 8, 8), "N", 8, 10, 10)
    feeds = [{"x": f["x"].copy()} for f in normal("x", 40, 8, 10, 10)]
    feeds[0]["x"][0, 0, 0, 0] = 200.0
    steps = {
        name: activation_steps(quantize(model, feeds, observer=name)[0])[0]
        for name in ("minmax", "percentile", "mse")
    }
    assert steps["minmax"] == pytest.approx((200 - min(f["x"].min() for f in feeds)) / 255, rel=1e-5)
    assert steps["percentile"] < steps["minmax"] / 10
    assert steps["mse"] < steps["minmax"]


def test_bias_correction() -> None:
    biases = {}
    for correct in (True, False):
        model, _ = quantize(two_layers(), FEEDS, bias_correction=correct, observer="minmax")
        (conv,) = (n for n in model.graph if n.op_type == "Conv")
        stored = dequantize_of(conv.inputs[2])
        biases[correct] = constant(stored.inputs[0]) * constant(stored.inputs[1]).astype(np.float64)
    original = constant(next(n for n in two_layers().graph if n.op_type == "Conv").inputs[2])
    np.testing.assert_allclose(biases[False], original, atol=1e-4)
    assert np.abs(biases[True] - original).max() > 1e-6


@pytest.mark.parametrize(
    ("reduce", "target", "largest"),
    [(None, "cpu-vnni", 127), (None, "cpu-avx2", 63), (True, "cpu-vnni", 63), (False, "cpu-avx2", 127)],
)
def test_reduce_range(reduce: bool | None, target: str, largest: int) -> None:
    model, _ = quantize(two_layers(), FEEDS, target=target, reduce_range=reduce)
    assert {int(np.abs(c.astype(int)).max()) for c, _, _ in weights(model)} == {largest}


def test_plan() -> None:
    """Layers this small are quicker in float."""
    model = one_layer(lambda net, x: net.op("Softmax", net.dense(x, 4, 4)), "N", 4)
    feeds = normal("x", 2, 4)
    with pytest.raises(Refused) as refusal:
        quantize(model, feeds, plan="fastest")
    assert "quicker in float" in refusal.value.nodes[0][1]
    assert len(weights(quantize(model, feeds, plan="everything")[0])) == 1


def test_operators() -> None:
    quantized, ctx = quantize(two_layers(), FEEDS, operators=("Conv",))
    done = {n.op_type: is_quantized(n) for n in quantized.graph if n.op_type in ("Conv", "Gemm")}
    assert done == {"Conv": True, "Gemm": False}
    assert [s.reason for s in ctx.step.skipped] == ["not among the operators to quantize"]


def test_the_output_stays_near_under_every_option() -> None:
    model = two_layers()
    before = run(model, FEEDS[0])[0]
    for options in (
        {},
        {"granularity": "per_tensor"},
        {"activation": "int8", "symmetric_activations": True},
        {"weight": "uint8"},
        {"symmetric_weights": False},
        {"reduce_range": True},
        {"observer": "minmax", "bias_correction": False},
    ):
        for optimize in (False, True):
            after = run(quantize(model, FEEDS, **options)[0], FEEDS[0], optimize=optimize)[0]
            noise = np.mean((after - before) ** 2) / np.mean(before**2)
            assert noise < 1e-3, (options, optimize, noise)


@pytest.mark.parametrize(
    "options",
    [
        {"activation": "int4"},
        {"weight": "float"},
        {"granularity": "per_row"},
        {"plan": "slowest"},
        {"symmetric_weights": "perhaps"},
        {"bias_correction": 3.5},
        {"operators": 7},
        {"no_such_option": 1},
    ],
    ids=str,
)
def test_bad_options_are_recipe_errors(options: dict[str, Any]) -> None:
    with pytest.raises(RecipeError) as caught:
        Static(**options)
    assert next(iter(options)) in str(caught.value)


def test_the_input_is_not_touched() -> None:
    model = two_layers()
    before = graph.to_bytes(model)
    quantize(model, FEEDS)
    assert graph.to_bytes(model) == before


def test_the_same_data_gives_the_same_bytes() -> None:
    first, second = (
        graph.to_bytes(quantize(ZOO["depthwise_cnn"].build(), [ZOO["depthwise_cnn"].inputs()])[0])
        for _ in "ab"
    )
    assert first == second


@conformance(Static())
def test_conformance_of_the_defaults() -> None: ...


@conformance(
    Static(plan="everything"),
    Static(plan="everything", granularity="per_tensor", observer="minmax"),
    Static(
        plan="everything",
        activation="int8",
        symmetric_activations=True,
        bias_correction=False,
        observer="percentile",
    ),
    models=MODELS,
)
def test_conformance_of_other_options() -> None: ...


@pytest.mark.slow
@conformance(
    Static(plan="everything", observer="minmax"),
    Static(plan="everything", weight="uint8", symmetric_weights=False),
    Static(plan="everything", reduce_range=True, bias_correction=False),
    target="cpu-avx2",
)
def test_conformance_of_every_model() -> None: ...
