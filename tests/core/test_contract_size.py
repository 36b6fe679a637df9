"""Recipes that are about size: what they may cost in time, and how it is said. Times are scripted."""

from __future__ import annotations

from typing import Any

import numpy as np
import onnx_ir as ir
import pytest
from spine_models import Clock, SlowRuntime, cnn, images, mlp

import attar
from attar import graph, measure
from attar.calibration import as_data
from attar.context import Context
from attar.contract import Contract
from attar.errors import AttarError
from attar.feeds import one_sample
from attar.passes import Pass
from attar.registry import default_registry
from attar.run import Result
from attar.runtime import OnnxRuntime
from attar.specs import input_specs
from attar_fuse import Fuse
from attar_quantize import Static, Weights


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    made = Clock()
    monkeypatch.setattr(measure, "time", made)
    return made


def fulfilled(model: ir.Model, recipe: list[Pass], runtime: OnnxRuntime, data: list[Any]) -> Result:
    registry = default_registry()
    source = as_data(data, input_specs(model))
    feeds = one_sample(source.first().inputs, input_specs(model))
    ctx = Context(registry, registry.get_target("cpu-vnni"), runtime, source, None, feeds)
    return Contract(model, recipe, ctx, feeds, 0.01).fulfil()


def has_codes(model: ir.Model) -> bool:
    return any(v.dtype in (ir.DataType.INT8, ir.DataType.UINT8) for v in model.graph.initializers.values())


def slow_when_small(clock: Clock) -> SlowRuntime:
    return SlowRuntime(clock, lambda m: 3.0 if has_codes(m) else 2.0)


def test_a_recipe_for_size_may_be_slower_and_says_so(clock: Clock) -> None:
    result = fulfilled(attar.load(cnn()), [Fuse(), Weights()], slow_when_small(clock), images())
    report = result.report
    assert report.verdict == "accepted"
    assert report.after.bytes < report.before.bytes
    assert "but 1.50 times the original's time" in report.headline
    assert any("handed over for its size" in line for line in report.decisions)


def test_a_step_for_speed_makes_slowness_a_fault(clock: Clock) -> None:
    recipe = [Static(plan="everything"), Weights(operators=("Gemm",))]
    result = fulfilled(attar.load(cnn()), recipe, slow_when_small(clock), images())
    assert result.report.verdict == "unchanged"
    assert "slower: 3 ms" in result.report.headline


def test_what_is_neither_smaller_nor_quicker_is_no_result(clock: Clock) -> None:
    class Padded(Pass, name="test.padded"):
        """Makes a model larger in the name of size."""

        aim = "size"

        def apply(self, model: ir.Model, ctx: Context) -> None:
            gemm = next(n for n in model.graph if n.op_type == "Gemm")
            zeros = graph.add_initializer(model.graph, "zeros", np.zeros(100_000, np.float32))
            total = ir.node("ReduceSum", [zeros], attributes={"keepdims": 0})
            total.outputs[0].name, total.outputs[0].type = "total", ir.TensorType(ir.DataType.FLOAT)
            added = ir.node("Add", [gemm.inputs[0], total.outputs[0]])
            added.outputs[0].name = "added"
            gemm.prepend([total, added])
            gemm.replace_input_with(0, added.outputs[0])

    runtime = SlowRuntime(clock, lambda m: 3.0 if "zeros" in m.graph.initializers else 2.0)
    model = attar.load(mlp())
    spec = input_specs(model)[0]
    shape = [d if isinstance(d, int) else 1 for d in spec.shape or ()]
    result = fulfilled(model, [Padded()], runtime, [{spec.name: np.ones(shape, np.float32)}])
    assert result.report.verdict == "unchanged"
    assert "slower" in result.report.headline
    assert "larger" in result.report.headline


def test_aims_are_no_options() -> None:
    with pytest.raises((TypeError, AttarError)):

        class Odd(Pass, name="test.odd"):
            aim: str = "size"


class Thin(Pass, name="test.thin"):
    """Many weights become zero, which no file shows, but a bundle does."""

    aim = "size"

    def apply(self, model: ir.Model, ctx: Context) -> None:
        from attar import invariants

        for value in model.graph.initializers.values():
            array = graph.const_array(value)
            if array is not None and array.ndim > 1:
                small = np.abs(array) < np.quantile(np.abs(array), 0.3)
                graph.replace_weight(value, np.where(small, np.float32(0), array))
                invariants.hold(value, zeros=True)


@pytest.mark.parametrize("after", [2.0, 2.2])
def test_what_only_a_bundle_shows_is_not_handed_back(clock: Clock, after: float) -> None:
    def slower(model: ir.Model) -> float:
        arrays = [graph.const_array(v) for v in model.graph.initializers.values()]
        return after if any((a == 0).mean() > 0.2 for a in arrays if a is not None and a.ndim > 1) else 2.0

    result = fulfilled(attar.load(cnn()), [Thin()], SlowRuntime(clock, slower), images())
    assert result.report.verdict == "accepted"
    assert "as a bundle" in result.report.headline
    assert any(line.startswith("file: ") and ".attar bundle: " in line for line in result.report.decisions)
