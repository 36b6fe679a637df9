"""`quantize.float16`: what fits, islands where it does not, and what a CPU makes of it."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import ml_dtypes
import numpy as np
import onnx_ir as ir
import pytest
from hypothesis import given
from hypothesis import strategies as st

import attar
from attar import graph
from attar.calibration import as_data
from attar.context import Context
from attar.errors import RecipeError, Refused
from attar.registry import default_registry
from attar.run import run_pass
from attar.runtime import OnnxRuntime
from attar.specs import input_specs
from attar.testing import ZOO
from attar.testing.build import Net
from attar_quantize.half import Half, fitting

Array = np.ndarray[Any, Any]
RUNTIME, REGISTRY = OnnxRuntime(), default_registry()
HALF, FULL = Half(compute="half"), Half(compute="float32")


def context(model: ir.Model, feeds: dict[str, Array], data: list[dict[str, Array]] | None = None) -> Context:
    source = None if data is None else as_data(data, input_specs(model))
    return Context(REGISTRY, REGISTRY.get_target("cpu-vnni"), RUNTIME, source, feeds=feeds)


def kinds(model: ir.Model) -> dict[str, str]:
    """Operator type -> element type of its first output; the last of each type counts."""
    return {n.op_type: n.outputs[0].dtype.name for n in model.graph if n.outputs[0].dtype is not None}


@given(st.lists(st.floats(-(2.0**20), 2.0**20, width=32), min_size=1, max_size=40))
def test_fitting_arrays_come_back_to_within_half_a_step(numbers: list[float]) -> None:
    array = np.array(numbers, np.float32)
    for kind, dtype, top in (
        (ir.DataType.FLOAT16, np.float16, 65504.0),
        (ir.DataType.BFLOAT16, ml_dtypes.bfloat16, np.inf),
    ):
        small = fitting(array, kind)
        step = float(ml_dtypes.finfo(dtype).eps)
        if small is None:
            # Too large, or so small that a few bits are left.
            assert np.abs(array).max() > min(top, 65504) or np.abs(array[array != 0]).min() < 2.0**-13
        else:
            exact = array.astype(np.float64)
            error = small.astype(np.float64) - exact
            assert np.linalg.norm(error) <= 2 * step * float(np.linalg.norm(exact))


@pytest.mark.parametrize(
    ("numbers", "fits"),
    [([1e-12], False), ([70000.0], False), ([1.0, -np.inf], True), ([0.0], True), ([0.1, 0.2], True)],
)
def test_small_constants_are_all_or_nothing(numbers: list[float], fits: bool) -> None:
    assert (fitting(np.array(numbers, np.float32), ir.DataType.FLOAT16) is not None) == fits


@pytest.mark.parametrize("kind", ["float16", "bfloat16"])
@pytest.mark.parametrize("name", ["residual_cnn", "encoder", "lstm", "weight_in_if", "external_data"])
def test_weights_alone_halve_the_size_and_leave_no_trace_at_run_time(name: str, kind: str) -> None:
    model = ZOO[name].build()
    graph.normalize(model)
    feeds = ZOO[name].inputs(seed=0)
    result, _ = run_pass(Half(type=kind, compute="float32"), model, context(model, feeds), feeds)
    assert graph.byte_size(result) < 0.56 * graph.byte_size(model) + 128
    before, after = RUNTIME.open(model), RUNTIME.open(result)
    assert sorted(k.op for k in before.kernels()) == sorted(k.op for k in after.kernels())  # no Cast left
    for a, b in zip(before.run(feeds), after.run(feeds), strict=True):
        assert np.abs(a - b).max() < (0.002 if kind == "float16" else 0.02) * np.abs(a).max()


@pytest.mark.parametrize("name", ["residual_cnn", "encoder", "unet", "gru", "weight_in_loop", "concat_split"])
def test_networks_compute_in_halves(name: str) -> None:
    model = ZOO[name].build()
    graph.normalize(model)
    feeds = ZOO[name].inputs(seed=0)
    result, record = run_pass(HALF, model, context(model, feeds), feeds)
    assert "FLOAT16" in kinds(result).values()
    assert [v.dtype for v in result.graph.inputs] == [v.dtype for v in model.graph.inputs]
    assert [v.dtype for v in result.graph.outputs] == [v.dtype for v in model.graph.outputs]
    for a, b in zip(RUNTIME.open(model).run(feeds), RUNTIME.open(result).run(feeds), strict=True):
        assert np.abs(a - b).max() < 0.01 * np.abs(a).max()
    assert "operators compute in float16" in " ".join(record.changes)


def overflowing() -> ir.Model:
    """Values of 1e5 between two ordinary layers."""
    net = Net("overflowing", 9)
    x = net.op("Relu", net.op("MatMul", net.input("x", "N", 16), net.weight(16, 16, name="a")))
    x = net.op("Exp", net.op("Mul", x, net.const(np.float32(3.0))))
    x = net.op("Log", net.op("Add", x, net.const(np.float32(1e5))))
    return net.model(y=net.op("MatMul", x, net.weight(16, 4, name="b")))


def test_operators_whose_values_overflow_are_islands() -> None:
    model = overflowing()
    data = [{"x": np.random.default_rng(i).standard_normal((4, 16)).astype(np.float32)} for i in range(6)]
    result, record = run_pass(HALF, model, context(model, data[0], data), data[0])
    found = kinds(result)
    assert found["Add"] == found["Log"] == "FLOAT"
    assert found["Relu"] == found["MatMul"] == "FLOAT16"
    reasons = {s.op: s.reason for s in record.skipped}
    assert "does not fit" in reasons["Add"] or "reaches" in reasons["Add"]
    assert "near the largest half" in reasons["Log"]
    for feeds in data:
        a, b = (RUNTIME.open(m).run(feeds)[0] for m in (model, result))
        assert np.isfinite(b).all()
        assert np.abs(a - b).max() < 0.01 * np.abs(a).max()
    # What the data showed decides, with a margin.
    strict, _ = run_pass(Half(compute="half", margin=1.5e4), model, context(model, data[0], data), data[0])
    assert (found["Mul"], kinds(strict)["Mul"]) == ("FLOAT16", "FLOAT")


def test_epsilons_keep_their_operator_in_float() -> None:
    net = Net("norm", 2)
    x = net.op("Relu", net.op("MatMul", net.input("x", 2, 8), net.weight(8, 8)))
    size = net.op("ReduceL2", x, net.ints([-1]), keepdims=1)
    y = net.op("Div", x, net.op("Max", size, net.const(np.float32(1e-12))))
    model = net.model(y=y)
    zeros = {"x": np.zeros((2, 8), np.float32)}
    result, record = run_pass(HALF, model, context(model, zeros), zeros)
    assert kinds(result)["Max"] == "FLOAT"
    assert "does not fit into float16" in {s.op: s.reason for s in record.skipped}["Max"]


def test_the_runtime_is_asked_for_kernels() -> None:
    model = ZOO["mlp"].build()
    graph.normalize(model)
    feeds = ZOO["mlp"].inputs(seed=0)
    with pytest.raises(Refused) as caught:
        Half(type="bfloat16", compute="half").apply(model, context(model, feeds))
    assert any("no kernel for Gemm on bfloat16" in reason for _, reason in caught.value.nodes)


def test_auto_is_what_the_target_computes_in() -> None:
    model = ZOO["mlp"].build()
    graph.normalize(model)
    feeds = ZOO["mlp"].inputs(seed=0)
    for computes, kind in ((False, "FLOAT"), (True, "FLOAT16")):
        ctx = context(model, feeds)
        ctx.target = replace(ctx.target, computes_half=computes)
        result, _ = run_pass(Half(), model, ctx, feeds)
        assert kinds(result)["Gemm"] == kind


def test_keep_float_and_wrong_patterns() -> None:
    model = ZOO["mlp"].build()
    graph.normalize(model)
    feeds = ZOO["mlp"].inputs(seed=0)
    name = next(n.name or "" for n in model.graph if n.op_type == "Gemm")
    for step in (Half(compute="half", keep_float=(name,)), Half(compute="float32", keep_float=(name,))):
        result, _ = run_pass(step, model, context(model, feeds), feeds)
        kept = next(n for n in result.graph if n.name == name)
        assert kept.inputs[1].is_initializer()
        assert kept.inputs[1].dtype == ir.DataType.FLOAT
    with pytest.raises(RecipeError, match="matches no weight"):
        Half(keep_float=("nothing_*",)).apply(model, context(model, feeds))


def test_the_preset_is_accepted_for_its_size() -> None:
    net = Net("wide", 6)
    x = net.op("Relu", net.op("MatMul", net.input("x", 4, 256), net.weight(256, 512)))
    model = net.model(y=net.op("MatMul", x, net.weight(512, 64)))
    result = attar.compress(model, "fp16")
    assert result.report.verdict == "accepted"
    assert result.report.after.bytes < 0.52 * result.report.before.bytes
