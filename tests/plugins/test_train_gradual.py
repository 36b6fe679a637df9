"""`train.gradual`: zeros that come by and by."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import onnx_ir as ir
import pytest

from attar import graph, invariants
from attar.calibration import as_data
from attar.context import Context
from attar.errors import RecipeError, Refused
from attar.registry import default_registry
from attar.run import run_pass
from attar.runtime import OnnxRuntime
from attar.specs import input_specs
from attar.training import as_training

torch = pytest.importorskip("torch")
from quantize_models import Array, constant, run, small_cnn, sqnr  # noqa: E402

from attar_quantize import Static  # noqa: E402
from attar_train import Gradual  # noqa: E402
from attar_train.gradual import lamp, layers, share  # noqa: E402

REGISTRY, RUNTIME = default_registry(), OnnxRuntime()
RNG = np.random.default_rng(0)
TRAIN = RNG.standard_normal((256, 3, 8, 8)).astype(np.float32)
TEST = RNG.standard_normal((500, 3, 8, 8)).astype(np.float32)


def context(model: ir.Model) -> Context:
    specs = input_specs(model)
    return Context(
        REGISTRY, REGISTRY.get_target("cpu"), RUNTIME, as_data(TRAIN[:64], specs),
        training_data=as_training(TRAIN, specs), original=model,
    )  # fmt: skip


def step(**options: Any) -> Gradual:
    given = {"loss": "mse", "steps": 30, "batch_size": 64, "lr": 3e-3, "threads": 1, "depth": 8, **options}
    return Gradual(**given)


def near(model: ir.Model, original: ir.Model) -> float:
    return sqnr(run(original, {"x": TEST})[0], run(model, {"x": TEST})[0])


def seen(model: ir.Model) -> dict[str, Array]:
    """Weights as their layers see them, by node."""
    found = {}
    for node in model.graph:
        if node.op_type in ("Conv", "Gemm"):
            value = node.inputs[1]
            maker = value.producer() if value is not None else None
            array = (
                constant(value) if maker is None else invariants.dequantized(maker, constant(maker.inputs[0]))
            )
            found[str(node.name)] = array
    return found


def test_the_schedule_is_a_cubic() -> None:
    # Zhu & Gupta: s_t = s_f + (s_i - s_f) (1 - (t - t_0) / (n dt))^3
    assert [share(t, 0.0, 0.8, 0.0, 0.5) for t in (0.0, 0.25, 0.5, 0.9)] == pytest.approx([0, 0.7, 0.8, 0.8])
    assert share(0.1, 0.2, 0.6, 0.1, 0.3) == pytest.approx(0.2)
    assert share(0.2, 0.2, 0.6, 0.1, 0.3) == pytest.approx(0.6 - 0.4 / 8)


def test_lamp_is_its_definition() -> None:
    weight = torch.from_numpy(RNG.standard_normal((5, 7)))
    square = weight.square()
    wanted = torch.stack([v / square[square >= v].sum() for v in square.reshape(-1)]).reshape(5, 7)
    torch.testing.assert_close(lamp(weight), wanted)
    assert float(lamp(weight).max()) == pytest.approx(1.0)


@pytest.mark.parametrize("method", ["magnitude", "movement"])
@pytest.mark.parametrize("scope", ["layer", "global"])
def test_so_many_weights_are_zero_and_held(method: str, scope: str) -> None:
    model = small_cnn()
    result, record = run_pass(step(ratio=0.5, method=method, scope=scope), model, context(model))
    weights = seen(result)
    zeros = sum(int((w == 0).sum()) for w in weights.values())
    size = sum(w.size for w in weights.values())
    assert zeros == pytest.approx(size / 2, abs=2)
    if scope == "layer":
        assert all(int((w == 0).sum()) == round(w.size / 2) for w in weights.values())
    assert f"{zeros} of {size} numbers in {len(weights)} weights are zero" in record.changes[-1]
    held = [v for v in result.graph.initializers.values() if invariants.held(v).zeros]
    assert len(held) == len(weights)
    assert not any(key.startswith("attar.learned") for v in held for key in v.metadata_props)
    assert set(result.graph.initializers) == set(model.graph.initializers)


def test_training_makes_up_for_what_goes() -> None:
    model = small_cnn()
    slow, _ = run_pass(step(ratio=0.6, steps=80), model, context(model))
    quick, _ = run_pass(step(ratio=0.6, steps=1, end=1.0), model, context(model))
    assert all((seen(m)[n] == 0).sum() > 0 for m in (slow, quick) for n in ("conv_4",))
    assert near(slow, model) > near(quick, model) + 3


def test_integers_are_pruned_through_their_rounding() -> None:
    model = small_cnn()
    ctx = context(model)
    integers, _ = run_pass(Static(plan="everything", observer="mse"), model, ctx)
    result, _ = run_pass(step(ratio=0.5, scope="layer"), integers, ctx)
    for weight in seen(result).values():
        assert (weight == 0).sum() >= round(weight.size / 2)  # small ones round to zero besides
    assert [n.op_type for n in result.graph] == [n.op_type for n in integers.graph]
    again, _ = run_pass(step(steps=2), result, ctx)
    assert invariants.recheck(result, again, ()) == []


def test_zeros_that_were_held_stay_where_they_are() -> None:
    model = small_cnn()
    value = model.graph.initializers["layer1.weight"]
    first = np.where(RNG.random(constant(value).shape) < 0.3, np.float32(0), constant(value))
    graph.replace_weight(value, first)
    invariants.hold(value, zeros=True)
    result, _ = run_pass(step(ratio=0.5), model, context(model))
    assert (constant(result.graph.initializers["layer1.weight"])[first == 0] == 0).all()


def test_depthwise_and_kept_weights_stay_dense() -> None:
    model = small_cnn()
    result, record = run_pass(step(ratio=0.5, keep=("layer1.*",)), model, context(model))
    assert (constant(result.graph.initializers["layer1.weight"]) != 0).all()
    assert "kept dense by option keep" in {s.reason for s in record.skipped}
    result, record = run_pass(step(ratio=0.5, depth=9), model, context(model))
    assert (constant(result.graph.initializers["layer12.weight"]) != 0).all()
    assert any("sum over 8 numbers" in s.reason for s in record.skipped)


def test_options_that_contradict_are_refused() -> None:
    with pytest.raises(RecipeError, match="'begin'"):
        Gradual(begin=0.8)
    with pytest.raises(RecipeError, match="best"):
        Gradual(best=True)
    with pytest.raises(RecipeError, match="layr"):
        run_pass(step(keep=("layr*",)), small_cnn(), context(small_cnn()))
    with pytest.raises(Refused, match="no weight"):
        run_pass(step(depth=1000), small_cnn(), context(small_cnn()))


def test_it_goes_on_from_a_checkpoint_to_the_same_zeros(tmp_path: Path) -> None:
    model = small_cnn()
    for method in ("magnitude", "movement"):
        whole, _ = run_pass(step(ratio=0.5, method=method), model, context(model))
        folder = tmp_path / method
        options = {"ratio": 0.5, "method": method, "checkpoint": str(folder), "checkpoint_seconds": 0.0}
        ctx = context(model)

        class Killed(BaseException):
            pass

        from attar_train import gradual

        original = gradual.Pruner.after_step

        def killed(self: Any, at: int, steps: int, original: Any = original) -> None:
            original(self, at, steps)
            if at == 14:
                raise Killed

        gradual.Pruner.after_step = killed  # type: ignore[method-assign]
        try:
            with pytest.raises(Killed):
                run_pass(step(**options), model, ctx)
        finally:
            gradual.Pruner.after_step = original  # type: ignore[method-assign]
        result, record = run_pass(step(**options), model, context(model))
        assert any("taken up again" in change for change in record.changes)
        assert graph.fingerprint(result, annotations=False) == graph.fingerprint(whole, annotations=False)


def test_layers_are_found_with_what_they_sum_over() -> None:
    found = {v.name: depth for v, depth, _ in layers(small_cnn(), REGISTRY)}
    assert found == {"layer1.weight": 27, "layer7.weight": 9, "layer12.weight": 8, "layer20.weight": 8}
