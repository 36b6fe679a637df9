"""Importances by gradients, and training that makes channels small."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import onnx_ir as ir
import pytest

from attar import graph, invariants
from attar.calibration import as_data
from attar.context import Context
from attar.errors import Refused
from attar.registry import default_registry
from attar.run import run_pass
from attar.runtime import OnnxRuntime
from attar.specs import input_specs
from attar.testing.build import Net
from attar.training import as_training

torch = pytest.importorskip("torch")
from quantize_models import Array, constant, quantize, run, small_cnn  # noqa: E402

from attar_prune import Channels  # noqa: E402
from attar_train import Sparsify  # noqa: E402
from attar_train.constrain import constrain  # noqa: E402
from attar_train.importances import IMPORTANCES, gradient_products  # noqa: E402
from attar_train.module import trainable  # noqa: E402
from attar_train.sparsify import Penalty  # noqa: E402

REGISTRY, RUNTIME = default_registry(), OnnxRuntime()
RNG = np.random.default_rng(0)
TRAIN = RNG.standard_normal((128, 3, 8, 8)).astype(np.float32)


def context(model: ir.Model, x: Array = TRAIN, labels: Any = None, trains: bool = True) -> Context:
    specs = input_specs(model)
    given = as_training(x if labels is None else (x, labels), specs) if trains else None
    return Context(
        REGISTRY,
        REGISTRY.get_target("cpu"),
        RUNTIME,
        as_data(x[:64], specs),
        training_data=given,
        original=model,
    )


@dataclass
class Part:
    value: ir.Value
    axis: int
    places: Array
    units: Array


@dataclass
class Use:
    part: Part


@dataclass
class Group:
    size: int
    uses: list[Use]
    name: str = "layer"

    def makers(self) -> list[Use]:
        return self.uses


def dense() -> ir.Model:
    """Two layers; of the hidden units the last is read by nobody."""
    net = Net("dense", 2)
    hidden = net.op("Relu", net.dense(net.input("x", "N", 6), 6, 5))
    weight = net.array(5, 3)
    weight[4] = 0
    return net.model(y=net.op("MatMul", hidden, net.const(weight, "last")))


def group_of(model: ir.Model) -> Group:
    (gemm,) = (n for n in model.graph if n.op_type == "Gemm")
    every = np.arange(5)
    uses = [Use(Part(v, 0, every, every)) for v in gemm.inputs[1:3] if v is not None]
    return Group(5, uses)


def test_the_names_are_registered() -> None:
    assert {"taylor", "hessian", "snip"} <= set(REGISTRY.importances)


@pytest.mark.parametrize("name", IMPORTANCES)
@pytest.mark.parametrize("labels", [False, True])
def test_what_nobody_reads_is_worth_nothing(name: str, labels: bool) -> None:
    model = dense()
    x = RNG.standard_normal((64, 6)).astype(np.float32)
    ctx = context(model, x, RNG.integers(0, 3, 64) if labels else None)
    (scores,) = IMPORTANCES[name]([group_of(model)], model, ctx)
    assert scores.shape == (5,)
    assert scores[4] == 0
    assert (scores[:4] > 0).all()
    (again,) = IMPORTANCES[name]([group_of(model)], model, ctx)
    np.testing.assert_array_equal(scores, again)


def test_gradients_are_those_of_the_loss_in_the_models_own_layout() -> None:
    model = dense()
    x, y = RNG.standard_normal((32, 6)).astype(np.float32), RNG.integers(0, 3, 32)
    (products,) = gradient_products(model, context(model, x, y))
    weights = {n: constant(v).astype(np.float64) for n, v in model.graph.initializers.items()}

    def loss(changed: dict[str, Array]) -> float:
        (gemm,) = (n for n in model.graph if n.op_type == "Gemm")
        w, b = (changed[str(v.name)] for v in gemm.inputs[1:3] if v is not None)
        scores = np.maximum(x.astype(np.float64) @ w.T + b, 0) @ changed["last"]
        scores = scores - scores.max(1, keepdims=True)
        return float(np.mean(np.log(np.exp(scores).sum(1)) - scores[np.arange(32), y]))

    for name, product in products.items():
        for at in list(np.ndindex(product.shape))[::4]:
            step = {s: {**weights, name: weights[name].copy()} for s in (1, -1)}
            for sign, changed in step.items():
                changed[name][at] += sign * 1e-6
            slope = (loss(step[1]) - loss(step[-1])) / 2e-6
            assert product[at] == pytest.approx(slope * weights[name][at], abs=2e-6)


@pytest.mark.parametrize(("name", "trains"), [("taylor", True), ("hessian", False), ("snip", True)])
def test_they_prune_channels(name: str, trains: bool) -> None:
    model = small_cnn()
    ctx = context(model, trains=trains)
    result, _ = run_pass(Channels(ratio=0.3, importance=name, block=1), model, ctx)
    assert constant(result.graph.initializers["layer1.weight"]).shape[0] < 8
    assert np.isfinite(run(result, {"x": TRAIN[:4]})[0]).all()


def test_weights_without_gradient_are_refused() -> None:
    model = dense()
    part = Part(model.graph.inputs[0], 0, np.arange(5), np.arange(5))
    with pytest.raises(Refused, match="no gradient"):
        IMPORTANCES["taylor"](
            [Group(5, [Use(part)])], model, context(model, RNG.standard_normal((8, 6)).astype(np.float32))
        )


# -- train.sparsify ------------------------------------------------------------------------------------------


def with_norms() -> ir.Model:
    net = Net("norms", 4)
    x = net.op("Relu", net.batch_norm(net.conv(net.input("x", "N", 3, 8, 8), 3, 8, bias=False), 8))
    return net.model(y=net.dense(net.pooled(x), 8, 4))


def rows(model: ir.Model) -> list[float]:
    weight = constant(model.graph.initializers["layer1.weight"])
    return sorted(np.sqrt((weight.reshape(len(weight), -1) ** 2).sum(1)).tolist())


@pytest.mark.parametrize("kind", ["bn", "group"])
def test_channels_become_small(kind: str) -> None:
    model = with_norms() if kind == "bn" else small_cnn()
    options: dict[str, Any] = {"steps": 25, "batch_size": 64, "lr": 1e-2, "loss": "mse", "threads": 1}
    free, _ = run_pass(Sparsify(strength=1e-9, **options), model, context(model))
    pushed, record = run_pass(
        Sparsify(strength=1.0 if kind == "bn" else 0.03, **options), model, context(model)
    )

    def size(made: ir.Model) -> float:
        if kind == "group":
            return sum(rows(made))
        (norm,) = (n for n in made.graph if n.op_type == "BatchNormalization")
        return float(np.abs(constant(norm.inputs[1])).sum())

    assert size(pushed) < 0.9 * size(free)
    told = "scales of BatchNormalization" if kind == "bn" else "norms of channels"
    assert record.changes[-1].startswith(told)


@pytest.mark.parametrize("kind", ["masks", "integers"])
def test_channels_become_small_behind_masks_and_quantizers(kind: str) -> None:
    model = small_cnn()
    if kind == "integers":
        model, _ = quantize(model, [{"x": TRAIN[:32]}], observer="minmax")
    else:
        for value in model.graph.initializers.values():
            if len(value.shape or ()) > 1:
                array = np.array(constant(value))
                array.reshape(-1)[::2] = 0
                graph.replace_weight(value, array)
                invariants.hold(value, zeros=True)
    held = trainable(constrain(model).model)
    penalty = Penalty(held, "group", 1.0)
    weights = {n: p.detach().numpy() for n, p in held.weights.items() if p.dim() > 1}
    assert len(weights) == 4
    wanted = sum(np.sqrt((w.reshape(len(w), -1) ** 2).sum(1) * w[0].size).sum() for w in weights.values())
    # Sums of up to 72 squares in float32.
    assert float(penalty.before_step(0, 1).detach()) == pytest.approx(wanted, rel=72 * 2**-24)


def test_norms_are_asked_for_where_there_are_none() -> None:
    model = small_cnn()
    with pytest.raises(Refused, match="no BatchNormalization"):
        run_pass(Sparsify(penalty="bn", steps=1, loss="mse"), model, context(model))
