"""A small labelled task and networks for it, for tests of training."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np
import onnx_ir as ir
import pytest

from attar.calibration import as_data
from attar.context import Context
from attar.evaluation import as_evaluation
from attar.registry import Registry, default_registry
from attar.runtime import OnnxRuntime
from attar.specs import input_specs
from attar.testing.build import Net
from attar.training import as_training

CLASSES = 4


@pytest.fixture
def one_thread() -> Iterator[None]:
    """Sums in one order, whatever machine the test runs on."""
    import torch

    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


def images(count: int, seed: int = 0, noise: float = 1.2) -> tuple[Any, Any]:
    """(images float32 [count, 3, 8, 8], class of each): a pattern a class, under noise."""
    patterns = np.random.default_rng(123).standard_normal((CLASSES, 3, 8, 8))
    rng = np.random.default_rng(seed)
    labels = rng.integers(0, CLASSES, count)
    made = patterns[labels] + noise * rng.standard_normal((count, 3, 8, 8))
    return made.astype(np.float32), labels.astype(np.int64)


def network(*, norm: bool = True, softmax: bool = False, seed: int = 5) -> ir.Model:
    """Three convolutions, one with a residual sum, and a head."""
    net = Net("task", seed)
    x = net.input("x", "N", 3, 8, 8)

    def block(y: ir.Value, i: int, o: int, **options: Any) -> ir.Value:
        y = net.conv(y, i, o, bias=not norm, **options)
        return net.op("Relu", net.batch_norm(y, o) if norm else y)

    y = block(x, 3, 12)
    y = net.op("Add", y, block(y, 12, 12))
    y = net.dense(net.pooled(block(y, 12, 16, stride=2)), 16, CLASSES)
    return net.model(scores=net.op("Softmax", y, axis=1) if softmax else y)


def mlp(seed: int = 7) -> ir.Model:
    """Two dense layers over 6 features, without normalization."""
    net = Net("mlp", seed)
    y = net.op("Tanh", net.dense(net.input("x", "N", 6), 6, 10))
    return net.model(y=net.dense(y, 10, 3))


def context(model: ir.Model, training: Any = None, evaluate: Any = None, **options: Any) -> Context:
    """A context as `compress` makes it."""
    registry: Registry = options.pop("registry", default_registry())
    specs = input_specs(model)
    data = options.pop("calibration", None)
    return Context(
        registry,
        registry.get_target("cpu"),
        OnnxRuntime(),
        None if data is None else as_data(data, specs),
        as_evaluation(evaluate, specs, registry=registry),
        training_data=None if training is None else as_training(training, specs),
        **{"original": model, **options},
    )


def accuracy(model: ir.Model, data: tuple[Any, Any]) -> float:
    x, y = data
    (scores,) = OnnxRuntime().open(model).run({model.graph.inputs[0].name: x})
    return float((scores.argmax(1) == y).mean())
