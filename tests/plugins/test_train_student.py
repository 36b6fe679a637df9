"""`train.student`: smaller networks made from the model itself."""

from __future__ import annotations

from typing import Any

import numpy as np
import onnx_ir as ir
import pytest

from attar import graph
from attar.calibration import as_data
from attar.context import Context
from attar.errors import RecipeError, Refused
from attar.registry import Registry, default_registry
from attar.run import run_pass
from attar.runtime import OnnxRuntime
from attar.specs import input_specs
from attar.testing.build import Net
from attar.training import as_training

torch = pytest.importorskip("torch")
from quantize_models import constant, run, sqnr  # noqa: E402

import attar_train  # noqa: E402
from attar_train import Student  # noqa: E402
from attar_train.shrink import drop_layers, lower_resolution, residuals  # noqa: E402

RUNTIME = OnnxRuntime()
RNG = np.random.default_rng(0)


def drawn(count: int) -> Any:
    """Noise whose strength in each channel differs from sample to sample, so that outputs differ, too."""
    strength = RNG.uniform(0.1, 3, (count, 3, 1, 1))
    return (RNG.standard_normal((count, 3, 12, 12)) * strength).astype(np.float32)


TRAIN, TEST = drawn(256), drawn(200)


def blocks(flat: bool = False) -> ir.Model:
    """Three residual blocks, of which the second adds next to nothing."""
    net = Net("blocks", 5)
    x = net.op("Relu", net.conv(net.input("x", "N", 3, 12, 12), 3, 16))
    for share in (1.0, 0.01, 1.0):
        y = net.conv(net.op("Relu", net.conv(x, 16, 16)), 16, 16)
        x = net.op("Add", net.op("Mul", y, net.const(np.float32(share))), x)
    x = net.op("Relu", x)
    if flat:
        return net.model(y=net.dense(net.op("Reshape", x, net.ints([-1, 16 * 144])), 16 * 144, 4))
    return net.model(y=net.dense(net.pooled(x), 16, 4))


def context(model: ir.Model, registry: Registry | None = None) -> Context:
    registry, specs = registry or default_registry(), input_specs(model)
    return Context(
        registry, default_registry().get_target("cpu"), RUNTIME, as_data(TRAIN[:64], specs),
        training_data=as_training(TRAIN, specs), original=model,
    )  # fmt: skip


def step(**options: Any) -> Student:
    return Student(**{"loss": "mse", "steps": 30, "batch_size": 64, "lr": 3e-3, "threads": 1, **options})


def near(model: ir.Model, original: ir.Model) -> float:
    """Decibels of what varies from sample to sample."""
    signal, made = (run(m, {"x": TEST})[0] for m in (original, model))
    return sqnr(signal - signal.mean(0), made - signal.mean(0))


def sums(model: ir.Model) -> list[str]:
    return [str(n.name) for n, _ in residuals(model)]


def test_residual_layers_are_found() -> None:
    model = blocks()
    found = residuals(model)
    assert len(found) == 3
    assert [past.producer().op_type for _, past in found] == ["Relu", "Add", "Add"]  # type: ignore[union-attr]


def test_the_layer_that_does_least_goes_first() -> None:
    model = blocks()
    names = sums(model)
    dropped = drop_layers(model, 0.3, context(model))
    assert dropped == [names[1]]
    assert len(residuals(model)) == 2
    graph.refresh_shapes(model)
    assert near(model, blocks()) > 15


def test_a_narrower_student_is_taught() -> None:
    model = blocks()
    ctx = context(model)
    student, record = run_pass(step(width=0.5, block=1, steps=60), model, ctx)
    untaught, _ = run_pass(step(width=0.5, block=1, steps=1, lr=1e-9), model, ctx)
    assert constant(student.graph.initializers["layer1.weight"]).shape[0] == 8
    assert graph.byte_size(student) < 0.4 * graph.byte_size(model)
    assert near(student, model) > near(untaught, model) + 0.5
    assert any("of weights" in change for change in record.changes)


def test_dropped_layers_and_smaller_images() -> None:
    model = blocks()
    student, record = run_pass(step(width=1.0, drop=0.34, resolution=0.5), model, context(model))
    assert len(residuals(student)) == 2
    pool = next(n for n in student.graph if n.op_type == "AveragePool")
    assert [str(d) for d in pool.outputs[0].shape or ()] == ["N", "3", "6", "6"]
    assert [s.shape for s in input_specs(student)] == [s.shape for s in input_specs(model)]
    assert any("left out 1 residual" in change for change in record.changes)


def test_a_separable_student() -> None:
    model = blocks()
    student, _ = run_pass(step(width=1.0, separable=True, steps=3), model, context(model))
    convs = [n for n in student.graph if n.op_type == "Conv" and "group" in n.attributes]
    groups = [n.attributes["group"].as_int() for n in convs]
    assert sum(g == 16 for g in groups) >= 4
    assert graph.byte_size(student) < 0.5 * graph.byte_size(model)


def test_odd_factors_are_interpolated() -> None:
    model = blocks()
    lower_resolution(model, 0.75, context(model))
    resize = next(n for n in model.graph if n.op_type == "Resize")
    assert [str(d) for d in resize.outputs[0].shape or ()][2:] == ["9", "9"]
    wanted = torch.nn.functional.interpolate(torch.from_numpy(TEST), scale_factor=0.75, mode="bilinear")
    model.graph.outputs.append(resize.outputs[0])
    np.testing.assert_allclose(run(model, {"x": TEST})[1], wanted.numpy(), rtol=0, atol=64 * 2.0**-24 * 6.4)


def test_what_cannot_be_made_is_refused() -> None:
    with pytest.raises(RecipeError, match="would be the teacher"):
        Student(width=1.0)
    flat = blocks(flat=True)
    with pytest.raises(Refused, match="one size"):
        lower_resolution(flat, 0.5, context(flat))
    net = Net("plain")
    plain = net.model(y=net.dense(net.input("x", "N", 3), 3, 2))
    with pytest.raises(Refused, match="no convolution"):
        lower_resolution(plain, 0.5, context(blocks()))
    with pytest.raises(Refused, match="no residual"):
        drop_layers(plain, 0.5, context(blocks()))
    alone = Registry()
    alone.register(attar_train, name="train")
    model = blocks()
    with pytest.raises(Refused, match=r"'prune\.channels', which no plugin brings"):
        run_pass(step(), model, context(model, alone))
