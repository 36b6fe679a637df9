"""Quantized graphs: valid, standard, and computing what integer arithmetic by hand computes."""

from __future__ import annotations

from typing import Any

import numpy as np
import onnx
import onnx_ir as ir
import pytest
from onnx.reference import ReferenceEvaluator
from quantize_models import (
    activation_steps,
    constant,
    dequantize_of,
    node_of,
    normal,
    one_layer,
    ops,
    quantize,
    run,
    small_cnn,
    sqnr,
    steps_apart,
)

from attar import graph
from attar.errors import Refused
from attar.testing import ZOO
from attar.testing.build import FLOAT, Net, branch

Array = np.ndarray[Any, Any]


@pytest.mark.parametrize("name", ZOO)
def test_every_model_of_the_zoo(name: str) -> None:
    zoo = ZOO[name]
    model = zoo.build()
    graph.normalize(model)
    feeds = [zoo.inputs(seed=i) for i in range(4)]
    if name == "half":
        with pytest.raises(Refused):
            quantize(model, feeds)
        return
    quantized, ctx = quantize(model, feeds)
    onnx.checker.check_model(onnx.load_from_string(graph.to_bytes(quantized)), full_check=True)
    assert ctx.step.changes
    for node in graph.all_nodes(quantized):
        if node.op_type == "QuantizeLinear":
            assert len(node.inputs) == 3, "zero points are always written"
            assert node.inputs[2] is not None
    for seed in (0, 50):
        feed = zoo.inputs(seed=seed)
        plain, fused = run(quantized, feed, optimize=False), run(quantized, feed)
        for before, a, b in zip(run(model, feed, optimize=False), plain, fused, strict=True):
            assert a.shape == before.shape
            assert a.dtype == before.dtype
            if a.dtype == np.float32:
                # Integer kernels round once where the plain graph rounds sums: some codes differ by one.
                assert np.mean(np.abs(a - b)) <= 0.05 * np.abs(before).max() + 1e-6
                if seed == 0:
                    # The encoder adds -10000 where tokens are masked; a range with that has coarse steps.
                    assert sqnr(before, a) > (5 if name == "encoder" else 12), name
            else:
                np.testing.assert_array_equal(a, before)


# -- against other implementations -----------------------------------------------------------------------


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"granularity": "per_tensor"},
        {"activation": "int8", "symmetric_activations": True},
        {"observer": "minmax"},
    ],
    ids=str,
)
def test_a_convolutional_net_is_what_the_reference_evaluator_computes(options: dict[str, Any]) -> None:
    model, feeds = small_cnn(), normal("x", 4, 3, 8, 8)
    quantized, _ = quantize(model, feeds, **options)
    if not options.get("symmetric_activations"):
        assert ops(quantized)["Relu"] == 0
    expected = ReferenceEvaluator(onnx.load_from_string(graph.to_bytes(quantized))).run(None, feeds[0])
    for optimize in (False, True):
        assert steps_apart(quantized, expected, run(quantized, feeds[0], optimize=optimize)) <= 1.01


def test_a_matmul_net_is_integer_arithmetic_by_hand() -> None:
    """Codes, products in int32, one rescaling: written out in numpy from what the graph stores."""

    def make(net: Net, x: ir.Value) -> ir.Value:
        return net.dense(net.op("Relu", net.dense(x, 16, 24, gemm=False)), 24, 6)

    model, feeds = one_layer(make, "N", 16), normal("x", 32, 16)
    quantized, _ = quantize(model, feeds)

    def codes(node: ir.Node, x: Array) -> tuple[Array, float]:
        quantizer = dequantize_of(node.inputs[0]).inputs[0]
        assert quantizer is not None
        assert quantizer.producer() is not None
        scale, zero = (constant(v) for v in quantizer.producer().inputs[1:])  # type: ignore[union-attr]
        return np.clip(np.rint(x / np.float64(scale)) + int(zero), 0, 255) - int(zero), float(scale)

    def weight(node: ir.Node) -> tuple[Array, Array]:
        stored = dequantize_of(node.inputs[1])
        assert not constant(stored.inputs[2]).any()
        return constant(stored.inputs[0]).astype(np.int64), constant(stored.inputs[1]).astype(np.float64)

    matmul, gemm = node_of(quantized, "MatMul"), node_of(quantized, "Gemm")
    q, s = codes(matmul, feeds[0]["x"])
    w, t = weight(matmul)
    add = node_of(quantized, "Add")
    hidden = q @ w * s * t + next(a for a in map(graph.const_array, add.inputs) if a is not None)
    q, s = codes(gemm, np.maximum(hidden, 0))
    w, t = weight(gemm)
    bias = dequantize_of(gemm.inputs[2])
    np.testing.assert_allclose(constant(bias.inputs[1]), s * t, rtol=1e-6)
    expected = (q @ w.T + constant(bias.inputs[0])) * s * t
    for optimize in (False, True):
        assert steps_apart(quantized, [expected], run(quantized, feeds[0], optimize=optimize)) <= 1
    assert sqnr(run(model, feeds[0])[0], expected) > 30


# -- activations absorbed by saturation ------------------------------------------------------------------


def clipped(low: float | None, high: float | None) -> ir.Model:
    def make(net: Net, x: ir.Value) -> ir.Value:
        bounds = [None if b is None else net.const(np.float32(b)) for b in (low, high)]
        return net.conv(net.op("Clip", net.conv(x, 4, 8), *bounds), 8, 8)

    return one_layer(make, "N", 4, 8, 8)


@pytest.mark.parametrize(("low", "high", "stays"), [
    (0.0, 6.0, False), (0.0, 0.5, False), (0.0, None, False),
    (0.5, 6.0, True), (-1.0, 1.0, True), (None, 1.0, True),
])  # fmt: skip
def test_clip_goes_only_where_saturation_does_the_same(
    low: float | None, high: float | None, stays: bool
) -> None:
    model, feeds = clipped(low, high), normal("x", 4, 4, 8, 8)
    quantized, _ = quantize(model, feeds)
    assert (ops(quantized)["Clip"] == 1) == stays
    far = {"x": feeds[0]["x"] * 30}  # beyond everything calibrated: the bound must still hold
    middle = ReferenceEvaluator(onnx.load_from_string(graph.to_bytes(with_inputs_of_last_conv(quantized))))
    (values,) = middle.run(None, far)
    step = max(activation_steps(quantized))
    if low is not None:
        assert values.min() >= low - step / 2
    if high is not None:
        assert values.max() <= high + step / 2


def with_inputs_of_last_conv(model: ir.Model) -> ir.Model:
    copy = graph.clone(model)
    last = [n for n in copy.graph if n.op_type == "Conv"][-1]
    assert last.inputs[0] is not None
    copy.graph.outputs[:] = [last.inputs[0]]
    graph.tidy(copy)
    return copy


@pytest.mark.parametrize("activation", ["uint8", "int8"])
def test_relu_goes_when_the_codes_begin_at_zero(activation: str) -> None:
    def make(net: Net, x: ir.Value) -> ir.Value:
        return net.conv(net.op("Relu", net.conv(x, 4, 8)), 8, 8)

    model, feeds = one_layer(make, "N", 4, 8, 8), normal("x", 4, 4, 8, 8)
    assert ops(quantize(model, feeds, activation=activation)[0])["Relu"] == 0
    kept, _ = quantize(model, feeds, activation=activation, symmetric_activations=True)
    assert ops(kept)["Relu"] == 1, "a symmetric range holds negative codes"


# -- the interface ---------------------------------------------------------------------------------------


def test_output_names_and_a_value_that_is_output_and_input() -> None:
    net = Net("ports", 32)
    x = net.input("x", "N", 4, 8, 8)
    first = net.op("Relu", net.conv(x, 4, 8))
    second = net.conv(first, 8, 8)
    model = net.model(inner=first, last=second, same=net.op("Identity", second))
    quantized, _ = quantize(model, normal("x", 2, 4, 8, 8))
    assert [v.name for v in quantized.graph.outputs] == ["inner", "last", "same"]
    assert [v.name for v in quantized.graph.inputs] == ["x"]
    feed = normal("x", 2, 4, 8, 8)[0]
    for before, after in zip(run(model, feed), run(quantized, feed), strict=True):
        assert sqnr(before, after) > 25


def test_an_input_that_is_an_output_too_stays_as_it_is() -> None:
    net = Net("through", 33)
    x = net.input("x", "N", 4, 8, 8)
    net.conv(x, 4, 8)
    model = net.model(y=net.nodes[-1].outputs[0])
    model.graph.outputs.append(x)
    quantized, _ = quantize(model, normal("x", 2, 4, 8, 8))
    feed = normal("x", 2, 4, 8, 8)[0]
    np.testing.assert_array_equal(run(quantized, feed)[1], feed["x"])


def test_values_and_weights_that_a_subgraph_captures() -> None:
    net = Net("captured", 34)
    x = net.input("x", "N", 8)
    weight = net.weight(8, 8, name="w")
    hidden = net.op("MatMul", x, weight)
    hidden.name = "hidden"
    bodies = {}
    for key in ("then_branch", "else_branch"):
        body = Net(key, 35)
        out = body.op("MatMul", hidden, weight) if key == "then_branch" else body.op("Neg", hidden)
        out.type, out.shape = ir.TensorType(FLOAT), ir.Shape(["N", 8])
        bodies[key] = branch(body, {f"{key}_out": out})
    picked = net.op(
        "If", net.op("Greater", net.op("ReduceSum", x, keepdims=0), net.const(np.float32(0))), **bodies
    )
    model = net.model(y=net.dense(picked, 8, 4), z=net.dense(hidden, 8, 4))
    feeds = normal("x", 16, 8)
    quantized, _ = quantize(model, feeds)
    assert "w" in quantized.graph.initializers, "the branch still reads it in float"
    for sign in (1, -1):
        feed = {"x": (sign * np.abs(feeds[0]["x"])).astype(np.float32)}
        for optimize in (False, True):
            for before, after in zip(run(model, feed), run(quantized, feed, optimize=optimize), strict=True):
                assert sqnr(before, after) > 20
