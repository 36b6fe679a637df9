"""Small models and stand-ins that the tests of the runtime, the transaction and the contract share."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
import onnx_ir as ir

from attar import graph
from attar.hooks import hookimpl
from attar.passes import Pass
from attar.registry import Registry
from attar.report import Kernel
from attar.runtime import OnnxRuntime, Runtime, Session
from attar.specs import TensorSpec
from attar.testing.build import Net

Array = np.ndarray[Any, Any]


def cnn(width: int = 32, size: int = 24, seed: int = 0) -> ir.Model:
    """Three convolutions, pooling and a classifier: a network that integers make quicker."""
    net = Net("cnn", seed=seed)
    h, channels = net.input("x", "N", 3, size, size), 3
    for wide in (width, 2 * width, 2 * width):
        h, channels = net.op("Relu", net.conv(h, channels, wide)), wide
    return net.model(y=net.dense(net.pooled(h), channels, 10))


def images(batches: int = 4, batch: int = 4, size: int = 24) -> list[Array]:
    return [
        np.random.default_rng(i).standard_normal((batch, 3, size, size)).astype(np.float32)
        for i in range(batches)
    ]


def mlp(width: int = 16) -> ir.Model:
    net = Net("mlp")
    x = net.input("x", "N", width)
    return net.model(y=net.dense(net.op("Relu", net.dense(x, width, width)), width, 4))


def adds() -> ir.Model:
    """Nothing but an Add."""
    net = Net("adds")
    return net.model(y=net.op("Add", net.input("x", "N", 8), net.vector(8, 0.0, 1.0)))


def registry_with(*passes: type[Pass], **more: Any) -> Registry:
    """The installed plugins and one that brings `passes` and `more` (hook name -> answer)."""
    registry = Registry.discover()
    registry.register(_Brings(passes), name="brought")
    for name, plugin in more.items():
        registry.register(plugin, name=name)
    return registry


class _Brings:
    def __init__(self, passes: tuple[type[Pass], ...]) -> None:
        self._passes = passes

    @hookimpl
    def attar_passes(self) -> list[type[Pass]]:
        return list(self._passes)


class ScriptedSession(Session):
    """A session that computes with `function`; running it moves `clock` on by what `cost` says."""

    def __init__(
        self,
        clock: Clock | None = None,
        cost: Callable[[int], float] = lambda run: 1.0,
        function: Callable[[Mapping[str, Array]], list[Array]] = lambda feeds: [next(iter(feeds.values()))],
        name: str = "",
        outputs: tuple[str, ...] = ("y",),
    ) -> None:
        self.inputs = (TensorSpec("x", np.dtype(np.float32), None),)
        self.outputs = outputs
        self._clock, self._cost, self._function, self._name = clock, cost, function, name
        self.runs = 0

    def run(self, feeds: Mapping[str, Array]) -> list[Array]:
        if self._clock is not None:
            self._clock.now += self._cost(self.runs)
            self._clock.order.append(self._name)
        self.runs += 1
        return self._function(feeds)


class Clock:
    """A clock that only moves when a `ScriptedSession` runs."""

    def __init__(self) -> None:
        self.now = 0.0
        self.order: list[str] = []

    def perf_counter(self) -> float:
        return self.now


class SlowRuntime(Runtime):
    """ONNX Runtime whose sessions tell `cost(model)` milliseconds to a `Clock` instead of taking time."""

    name = "onnxruntime"

    def __init__(self, clock: Clock, cost: Callable[[ir.Model], float]) -> None:
        self._clock, self._cost = clock, cost
        self._real = OnnxRuntime()

    def version(self) -> str:
        return self._real.version()

    def open(self, model: Any, *, threads: int = 1, optimize: bool = True, profile: bool = False) -> Session:
        if not isinstance(model, ir.Model):
            model = graph.read_model(model)
        real = self._real.open(model, threads=threads, optimize=optimize)
        return _Priced(real, self._clock, self._cost(model) / 1000)


class _Priced(Session):
    def __init__(self, real: Session, clock: Clock, seconds: float) -> None:
        self._real, self._clock, self._seconds = real, clock, seconds
        self.inputs, self.outputs = real.inputs, real.outputs

    def run(self, feeds: Mapping[str, Array]) -> list[Array]:
        self._clock.now += self._seconds
        return self._real.run(feeds)

    def kernels(self) -> tuple[Kernel, ...]:
        return self._real.kernels()

    def profile_of(self, feeds: Mapping[str, Array]) -> tuple[Kernel, ...]:
        return self._real.profile_of(feeds)


def is_quantized(model: ir.Model) -> bool:
    return any(n.op_type in ("QuantizeLinear", "DequantizeLinear") for n in graph.all_nodes(model))
