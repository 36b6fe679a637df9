"""How `fuse.kernels` decides: by ratios that are given here, not measured."""

from __future__ import annotations

from typing import Any

import numpy as np
import onnx_ir as ir
import pytest
from fuse_models import context, f32, model_of, ops, positive, reasons, w

from attar.calibration import as_data
from attar.errors import RecipeError, Refused
from attar.graph import clone, to_bytes
from attar.report import Speed
from attar.specs import input_specs
from attar.targets import builtin_targets
from attar_fuse import Kernels, trials
from attar_fuse.regions import Region
from attar_fuse.sites import Form, Site
from attar_fuse.trials import Trials, Verdict, difference


def speed(ratio: float, low: float | None = None, high: float | None = None) -> Speed:
    return Speed(1.0, ratio, ratio, low or ratio, high or ratio, 60, 1, {"x": (1, 2)})


class Clock:
    """Stands in for measuring: ratios in the order in which they are asked for, the last one from then on."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, *ratios: float) -> None:
        self.ratios, self.asked = list(ratios), 0
        monkeypatch.setattr(trials, "interleaved", self)

    def __call__(self, *_: Any, **__: Any) -> Speed:
        self.asked += 1
        return speed(self.ratios.pop(0) if len(self.ratios) > 1 else self.ratios[0])


def mishes(count: int = 3, wide: int = 8) -> ir.Model:
    body = " ".join(f"x{i + 1} = Mish(x{i})" for i in range(count - 1)) + f" y = Mish(x{count - 1})"
    return model_of(f"(float[n, {wide}] x0) => (float[n, {wide}] y)", body)


def test_equal_places_are_timed_once(monkeypatch: pytest.MonkeyPatch) -> None:
    clock, ctx, model = Clock(monkeypatch, 0.5), context(), mishes(4)
    Kernels().apply(model, ctx)
    assert clock.asked == 2  # one place stands for four; and the whole model
    assert "Mish" not in ops(model)
    assert ctx.step.changes[0].startswith("4 mish written as Mish by one exponential: 0.50 [0.50, 0.50]")
    Kernels().apply(mishes(2), ctx)
    assert clock.asked == 3  # known from before; only the whole model is another


def test_other_shapes_are_other_places(monkeypatch: pytest.MonkeyPatch) -> None:
    clock = Clock(monkeypatch, 0.5, 1.2, 0.9)
    model = model_of(
        "(float[n, 8] x) => (float[n, 4] y)", "a = Mish(x) b = MatMul(a, k) y = Mish(b)", k=w(8, 4)
    )
    ctx = context()
    Kernels().apply(model, ctx)
    assert clock.asked == 3
    assert ops(model)["Mish"] == 1
    assert "takes 1.20 [1.20, 1.20] of the time" in reasons(ctx.step)


def test_slower_forms_leave_the_model_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    Clock(monkeypatch, 1.3)
    model, ctx = mishes(), context()
    before = to_bytes(model)
    with pytest.raises(Refused, match="no other form is faster"):
        Kernels().apply(model, ctx)
    assert to_bytes(model) == before
    assert len(ctx.step.skipped) == 3


def test_the_whole_model_has_the_last_word(monkeypatch: pytest.MonkeyPatch) -> None:
    Clock(monkeypatch, 0.5, 1.1)
    model = mishes()
    ctx = context()
    with pytest.raises(Refused, match=r"the whole model takes 1\.10") as caught:
        Kernels().apply(model, ctx)
    assert "cut out: 3 mish written as Mish by one exponential: 0.50" in caught.value.message
    assert not ctx.step.changes
    assert ops(model)["Mish"] == 3


def test_the_opset_is_not_raised_for_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    """A model that loses more by the newer opset than a form gains is done again without."""
    norm = "s = Mul(x, x) m = ReduceMean(s, axes) e = Add(m, eps) r = Sqrt(e) z = Div(x, r) y = Mish(z)"
    constants = {"axes": np.array([-1]), "eps": f32(1e-3)}
    model = model_of("(float[n, 8] x) => (float[n, 8] y)", norm, **constants)
    Clock(
        monkeypatch, 0.5, 0.5, 1.2, 0.5
    )  # the norm, Mish, the whole model; the whole model without the norm
    ctx = context()
    Kernels().apply(model, ctx)
    assert model.opset_imports[""] == 21
    assert ops(model)["RMSNormalization"] == ops(model)["Mish"] == 0
    assert "needs opset 23" in reasons(ctx.step)


def test_verdicts() -> None:
    assert Verdict((speed(0.9, 0.85, 0.95),)).against(0.02) == ""
    assert "0.90 [0.70, 1.01]" in Verdict((speed(0.9, 0.7, 1.01),)).against(0.02)  # may be chance
    assert Verdict((speed(0.99, 0.985, 0.995),)).against(0.02)  # certain, and not worth it
    assert not Verdict((speed(0.99, 0.985, 0.995),)).against(0.0)
    assert "1.20" in Verdict((speed(0.5), speed(1.2))).against(0.02)  # slower on other inputs
    assert not Verdict((speed(0.5), speed(1.2, 0.9, 1.4))).against(0.02)  # perhaps slower there
    assert Verdict(problem="cannot be run").against(0.0) == "cannot be run"
    assert Verdict((Speed(4.0, 2.0, 0.5, 0.5, 0.5, 9, 1, {}),)).saved == pytest.approx(2.0)


def test_a_form_that_differs_is_not_taken() -> None:
    model = mishes(1)
    x, y = model.graph.inputs[0], model.graph.outputs[0]
    for name, problem in (("Tanh", "more than rounding"), ("NoSuchOperator", "cannot be loaded")):
        form = Form(name, (x,), lambda tape, v, name=name: tape.node(name, [v[x]], like=x))
        region = Region.of(Site("test", (y,), (form,)), form)
        assert region is not None
        (verdict,) = Trials(context(), model, 0.01).judge(model, [region], timed=False)
        assert problem in verdict.problem


def test_difference() -> None:
    x = np.array([1.0, -4.0, np.inf, np.nan], np.float32)
    y = np.array([1.5, -4.0, np.inf, np.nan], np.float32)
    assert difference(x, y) == 0.125
    assert difference(x, np.array([1.0, -4.0, 0.0, np.nan], np.float32)) == np.inf
    assert difference(x, y[:3]) == np.inf
    assert difference(x, y.astype(np.float64)) == np.inf
    assert difference(np.zeros(2, np.float32), np.zeros(2, np.float32)) == 0.0
    assert difference(np.array([1, 2]), np.array([1, 3])) == np.inf


def test_lengths_of_the_data_are_tried() -> None:
    model, ctx = mishes(1), context()
    shape = ir.Shape(["n", "length"])
    model.graph.inputs[0].shape = model.graph.outputs[0].shape = shape
    ctx.data = as_data([{"x0": w(2, n)} for n in (5, 3, 9, 4)], input_specs(model))
    ctx.feeds = {"x0": w(1, 4)}
    assert [r["x0"].shape for r in Trials(ctx, model, 0.01).runs] == [(1, 4), (1, 3), (1, 9)]


def test_what_runs_on_integers_stays() -> None:
    """A layer behind DequantizeLinear is an integer kernel, which no float form replaces."""
    model = model_of(
        "(uint8[n, 3, 8] x) => (float[n, 3, 4] y)",
        "f = DequantizeLinear(x, s, z) m = MatMul(f, k) y = Add(m, c)",
        s=f32(0.1), z=np.array(3, np.uint8), k=w(8, 4), c=w(4),
    )  # fmt: skip
    ctx = context()
    with pytest.raises(Refused):
        Kernels(plan="everything").apply(model, ctx)
    assert "runs on integers" in reasons(ctx.step)


def test_other_targets() -> None:
    ctx = context()
    ctx.target = next(t for t in builtin_targets() if t.elsewhere)
    with pytest.raises(Refused, match="times measured here say nothing"):
        Kernels().apply(mishes(), ctx)
    with pytest.raises(Refused, match="ONNX Runtime's own"):
        Kernels(contrib=True, plan="everything").apply(mishes(), ctx)
    with pytest.raises(RecipeError, match="did you mean 'mish'"):
        Kernels(patterns=("mihs",)).apply(mishes(), context())


def test_quantized_afterwards() -> None:
    """quantize.static goes on with the standard operators, and leaves them in float where it must."""
    import attar

    body = """
        a = MatMul(x, k) m = MatMul(a, k2) p = Mul(m, m) r = ReduceMean(p, axes) e = Add(r, eps)
        q = Sqrt(e) z = Div(m, q) h = Mul(z, g) o = Mish(h) y = MatMul(o, k3)
    """
    constants = {"k": w(8, 16), "k2": w(16, 16), "k3": w(16, 4), "axes": np.array([-1]), "eps": f32(1e-3)}
    model = model_of("(float[n, 3, 8] x) => (float[n, 3, 4] y)", body, **constants, g=positive(16))
    batches = [{"x": w(4, 3, 8)} for _ in range(4)]
    ctx = context()
    fused = clone(model)
    Kernels(plan="everything").apply(fused, ctx)
    assert ops(fused)["RMSNormalization"] == 1
    recipe = [{"name": "quantize.static", "plan": "everything"}]
    report = attar.compress(fused, recipe, calibration=batches).report
    assert not [s for s in report.steps if s.name == "quantize.static" and s.refused]


def test_inputs_that_nobody_gave() -> None:
    """What flows in a typical run cannot be known: declined, with the way out."""
    model = mishes(1)
    model.graph.inputs[0].shape = None
    with pytest.raises(Refused, match="inputs at hand") as caught:
        Kernels().apply(model, context())
    assert caught.value.hint == "give example data"
    assert ops(model)["Mish"] == 1
