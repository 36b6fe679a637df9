"""Small nets and a way to quantize them, for the tests of quantization."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Mapping
from typing import Any

import numpy as np
import onnx_ir as ir

from attar import graph
from attar.calibration import as_data
from attar.context import Context
from attar.passes import Pass
from attar.registry import default_registry
from attar.report import Step
from attar.runtime import OnnxRuntime
from attar.specs import input_specs
from attar.targets import builtin_targets
from attar.testing.build import Net
from attar_quantize import Static

Array = np.ndarray[Any, Any]
Feeds = Mapping[str, Array]
RUNTIME = OnnxRuntime()


def context(model: ir.Model, feeds: Iterable[Feeds], target: str = "cpu-vnni") -> Context:
    chosen = next(t for t in builtin_targets() if t.name == target)
    data = as_data(list(feeds), input_specs(model))
    return Context(
        registry=default_registry(),
        target=chosen,
        runtime=RUNTIME,
        data=data,
        step=Step("quantize.static", {}),
    )


def normal(name: str, *shape: int, batches: int = 2, seed: int = 0) -> list[dict[str, Array]]:
    rng = np.random.default_rng(seed)
    return [{name: rng.standard_normal(shape).astype(np.float32)} for _ in range(batches)]


def quantize(
    model: ir.Model,
    feeds: Iterable[Feeds],
    step: Pass | None = None,
    target: str = "cpu-vnni",
    **options: Any,
) -> tuple[ir.Model, Context]:
    """A quantized copy; everything with an integer kernel becomes integer unless `plan` says otherwise."""
    options.setdefault("plan", "everything")
    copy = graph.clone(model)
    ctx = context(model, feeds, target)
    (step or Static(**options)).apply(copy, ctx)
    graph.tidy(copy)
    graph.refresh_shapes(copy)
    return copy, ctx


def run(model: ir.Model, feeds: Feeds, *, optimize: bool = True) -> list[Array]:
    return RUNTIME.open(model, optimize=optimize).run(feeds)


def ops(model: ir.Model) -> Counter[str]:
    return Counter(n.op_type for n in graph.all_nodes(model))


def kernels(model: ir.Model) -> Counter[str]:
    """Operators of ONNX Runtime's optimized graph."""
    return Counter(k.op for k in RUNTIME.open(model).kernels())


def node_of(model: ir.Model, op_type: str) -> ir.Node:
    (found,) = (n for n in graph.all_nodes(model) if n.op_type == op_type)
    return found


def constant(value: ir.Value | None) -> Array:
    array = graph.const_array(value)
    assert array is not None
    return array


def dequantize_of(value: ir.Value | None) -> ir.Node:
    node = value.producer() if value is not None else None
    assert node is not None, value
    assert node.op_type == "DequantizeLinear", value
    return node


def is_quantized(node: ir.Node) -> bool:
    """Whether both operands come from integers."""
    sources = [v.producer() if v is not None else None for v in node.inputs[:2]]
    return all(source is not None and source.op_type == "DequantizeLinear" for source in sources)


def activation_steps(model: ir.Model) -> list[float]:
    """Scales of all QuantizeLinear nodes."""
    return [float(constant(n.inputs[1]).max()) for n in quantizers(model)]


def one_layer(make: Callable[[Net, ir.Value], ir.Value], *shape: int | str, seed: int = 5) -> ir.Model:
    """A model of input `x` and output `y` around what `make` builds."""
    net = Net("one_layer", seed)
    return net.model(y=make(net, net.input("x", *shape)))


def two_layers() -> ir.Model:
    """Conv without Relu (values of both signs), then a Gemm."""

    def make(net: Net, x: ir.Value) -> ir.Value:
        return net.dense(net.pooled(net.conv(x, 8, 8)), 8, 4)

    return one_layer(make, "N", 8, 10, 10)


def quantizers(model: ir.Model) -> list[ir.Node]:
    return [n for n in graph.all_nodes(model) if n.op_type == "QuantizeLinear"]


def steps_apart(model: ir.Model, left: list[Array], right: list[Array]) -> float:
    """Largest difference between outputs in units of the coarsest activation step."""
    step = max(activation_steps(model))
    return max(
        float(np.abs(a.astype(np.float64) - b).max(initial=0)) / step
        for a, b in zip(left, right, strict=True)
    )


def sqnr(signal: Array, noisy: Array) -> float:
    noise = float(np.mean((signal.astype(np.float64) - noisy) ** 2))
    return 10 * np.log10(float(np.mean(signal.astype(np.float64) ** 2)) / max(noise, 1e-30))


def small_cnn() -> ir.Model:
    net = Net("small_cnn", 31)
    x = net.op("Relu", net.conv(net.input("x", "N", 3, 8, 8), 3, 8))
    x = net.op("MaxPool", x, kernel_shape=[2, 2], strides=[2, 2])
    y = net.op("Relu", net.conv(x, 8, 8, group=8))
    x = net.op("Relu", net.op("Add", net.conv(y, 8, 8, (1, 1)), x))
    return net.model(y=net.dense(net.pooled(x), 8, 4))
