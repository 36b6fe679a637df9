"""Axes that are called dynamic are dynamic: modules that loop over one, or fix one, at other sizes."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from torch_nets import ADAPTER, parity, shapes

torch = pytest.importorskip("torch")
nn = torch.nn

DYNAMIC = {"x": {0: "batch", 1: "time"}}


class Last(nn.Module):
    """The last state of a recurrent layer."""

    def __init__(self, layer: type) -> None:
        super().__init__()
        self.layer, self.head = layer(8, 16, batch_first=True), nn.Linear(16, 3)

    def forward(self, x: Any) -> Any:
        return self.head(self.layer(x)[0][:, -1])


class Steps(nn.Module):
    """A loop in Python over the steps, which `take` gives."""

    def __init__(self, take: Callable[[Any], Any]) -> None:
        super().__init__()
        self.take = take

    def forward(self, x: Any) -> Any:
        state = torch.zeros_like(x[:, 0])
        for one in self.take(x):
            state = torch.tanh(0.5 * state + one.mean(1))
        return state


def sliced(x: Any) -> Any:
    return [x[:, k : k + 1] for k in range(x.shape[1])]


def narrowed(x: Any) -> Any:
    return [x.narrow(1, k, 1) for k in range(x.shape[1])]


def split(x: Any) -> Any:
    return torch.split(x, 1, 1)


def chunked(x: Any) -> Any:
    """Torch's exporter refuses this one, and tracing believes any multiple of the example's size."""
    return x.chunk(5, 1)


def inputs(steps: int) -> dict[str, Any]:
    return {"x": np.random.default_rng(steps).normal(size=(3, steps, 8)).astype(np.float32)}


@pytest.mark.parametrize("take", [sliced, narrowed, split, chunked])
def test_loops_over_an_axis_fix_it(take: Callable[[Any], Any]) -> None:
    loaded = ADAPTER.load(Steps(take), inputs=torch.randn(2, 5, 8), dynamic=DYNAMIC)
    assert shapes(loaded) == {"x": ["batch", 5, 8]}
    assert any("x axis 1 (time)" in note for note in loaded.notes)
    parity(loaded, inputs(5))


@pytest.mark.parametrize("steps", [1, 12])
def test_an_example_without_content_tells_unrolled_layers_too(steps: int) -> None:
    """Its states settle, so that more steps change nothing."""
    loaded = ADAPTER.load(Last(nn.RNN).eval(), inputs=torch.zeros(1, steps, 8), dynamic=DYNAMIC)
    assert shapes(loaded) == {"x": ["batch", steps, 8]}
    parity(loaded, inputs(steps))


@pytest.mark.parametrize("steps", [1, 5])
def test_layers_that_onnx_has_follow_any_length(steps: int) -> None:
    loaded = ADAPTER.load(Last(nn.LSTM).eval(), inputs=torch.zeros(2, steps, 8), dynamic=DYNAMIC)
    assert shapes(loaded) == {"x": ["batch", "time", 8]}
    for length in (1, 3, 20):
        parity(loaded, inputs(length))


def test_what_a_program_fixed_is_a_number() -> None:
    auto = torch.export.Dim.AUTO
    program = torch.export.export(
        Steps(sliced), (torch.randn(2, 5, 8),), dynamic_shapes=({0: auto, 1: auto},)
    )
    loaded = ADAPTER.load(program)
    assert shapes(loaded) == {"x": ["batch", 5, 8]}
    parity(loaded, inputs(5))


class Baked(nn.Module):
    """What torch.export refuses, and what holds a number that tracing bakes in."""

    def forward(self, x: Any) -> Any:
        x.detach().numpy()
        return x.reshape(int(x.shape[0]), 40) * 2


def test_a_trace_that_does_not_run_at_other_sizes_is_fixed() -> None:
    loaded = ADAPTER.load(Baked(), inputs=torch.randn(2, 5, 8))
    assert shapes(loaded) == {"x": [2, 5, 8]}
    parity(loaded)
