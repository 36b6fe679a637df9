"""Rounding of weights, measured: losses of a trained MobileNetV1, seconds for MobileNetV2, GPTQ on 0.25 GB.

`python tests/benchmarks/rounding.py [v1] [v2] [gptq] [--images N]`. Models and data come from ATTAR_DATA
(default: shared/data beside the repository); calibration images are none of those that are judged. Losses are
in points of top-1, paired on the same photographs; SQNR is that of the logits.
"""

from __future__ import annotations

import argparse
import sys
import time
from collections.abc import Callable
from typing import Any

import numpy as np
import spine

import attar
from attar import graph
from attar.calibration import as_data
from attar.context import Context
from attar.passes import Pass
from attar.registry import default_registry
from attar.runtime import OnnxRuntime
from attar.specs import input_specs

RUNTIME = OnnxRuntime()
Array = np.ndarray[Any, Any]


def prepared(name: str, images: int) -> tuple[Any, Context]:
    """A fused network with `images` calibration images."""
    from attar_fuse import Fuse

    network = spine.NETWORKS[name]()
    model = attar.load(network.model, inputs=network.example)
    registry = default_registry()
    data = as_data(network.calibration[:images], input_specs(model))
    ctx = Context(registry, registry.get_target("cpu-vnni"), RUNTIME, data)
    Fuse().apply(model, ctx)
    graph.tidy(model)
    return model, ctx


def logits(model: Any, images: Array) -> Array:
    session = RUNTIME.open(model)
    name = session.inputs[0].name
    parts = [session.run({name: images[i : i + 25]})[0] for i in range(0, len(images), 25)]
    return np.concatenate([p.reshape(len(p), -1) for p in parts])


def applied(model: Any, steps: list[Pass], ctx: Context) -> tuple[Any, float]:
    """The result and its CPU seconds."""
    copy, start = graph.clone(model), time.process_time()
    fresh = Context(ctx.registry, ctx.target, ctx.runtime, ctx.data)
    for step in steps:
        step.apply(copy, fresh)
        graph.tidy(copy)
    return copy, time.process_time() - start


def v1(count: int) -> None:
    """MobileNetV1 0.75: top-1 lost by each setting."""
    import load

    from attar_quantize import Equalize, Static

    images, labels = load.imagenet("dev")
    images = np.ascontiguousarray(load.mobilenet_v1(images).transpose(0, 3, 1, 2))
    model, ctx = prepared("mobilenet_v1_075", count)
    reference = logits(model, images)
    right = reference.argmax(1) == labels
    print(f"MobileNetV1 0.75, fp32 {100 * right.mean():.1f}, {count} calibration images")
    settings: dict[str, list[Pass]] = {
        "W8A8 nearest": [Static(rounding="nearest")],
        "W8A8 hessian": [Static(rounding="hessian")],
        "W4A8 nearest": [Static(weight_bits=4, rounding="nearest")],
        "W4A8 hessian at once": [Static(weight_bits=4, sequential=False)],
        "W4A8 hessian in sequence": [Static(weight_bits=4)],
        "per tensor W8A8 nearest": [Static(granularity="per_tensor", rounding="nearest")],
        "per tensor W8A8 hessian": [Static(granularity="per_tensor")],
        "per tensor W8A8 equalized, hessian": [
            Equalize(through_clip=True),
            Static(granularity="per_tensor"),
        ],
    }
    for name, steps in settings.items():
        small, seconds = applied(model, steps, ctx)
        found = logits(small, images)
        hits = found.argmax(1) == labels
        noise = found - reference
        noise = noise - noise.mean(1, keepdims=True)
        signal = reference - reference.mean(1, keepdims=True)
        sqnr = 10 * np.log10(np.mean(signal**2) / np.mean(noise**2))
        lost = 100 * (right.mean() - hits.mean())
        print(f"  {name:36} lost {lost:5.1f}  SQNR {sqnr:5.2f} dB  {seconds:5.1f} s", flush=True)


def v2(count: int) -> None:
    """MobileNetV2: seconds for all layers."""
    from attar_quantize import Static

    model, ctx = prepared("mobilenet_v2", count)
    base = applied(model, [Static(rounding="nearest", observer="mse")], ctx)[1]
    for name, options in {"at once": {"sequential": False}, "in sequence": {"sequential": True}}.items():
        seconds = applied(model, [Static(rounding="hessian", observer="mse", **options)], ctx)[1]
        print(
            f"MobileNetV2, {count} images, {name}: {seconds:.1f} CPU s, {base:.1f} of them without rounding"
        )


def gptq(_: int) -> None:
    """GPTQ, int4 in blocks of 32, on 16 layers of 2048 x 2048 (0.25 GB), with data that has structure."""
    from attar.testing.build import Net
    from attar_quantize import Weights

    rng = np.random.default_rng(0)
    width, layers = 2048, 16
    net = Net("stack", 1)
    x = net.input("x", "N", width)
    for _ in range(layers):
        x = net.op("Add", x, net.op("MatMul", net.op("Relu", x), net.weight(width, width, gain=0.5)))
    model = net.model(y=x)
    mix = rng.standard_normal((width // 8, width)) * rng.lognormal(0, 1, width) / 16

    def draw(count: int) -> Array:
        x = rng.standard_normal((count, len(mix))) @ mix + 0.3 * rng.standard_normal((count, width))
        return x.astype(np.float32)

    registry = default_registry()
    data = as_data([draw(256) for _ in range(8)], input_specs(model))
    ctx = Context(registry, registry.get_target("cpu-vnni"), RUNTIME, data)
    test = draw(512)
    reference = RUNTIME.open(model).run({"x": test})[0]
    print(f"{graph.byte_size(model) / 2**30:.2f} GB of linear weights, int4 in blocks of 32")
    for method in ("nearest", "mse", "awq", "gptq"):
        small, seconds = applied(model, [Weights(type="int4", block=32, method=method)], ctx)
        found = RUNTIME.open(small).run({"x": test})[0]
        error = np.mean((found - reference) ** 2) / np.mean((reference - reference.mean(0)) ** 2)
        print(f"  {method:8} relative error on held-out data {error:.5f}  {seconds:6.1f} CPU s")


PARTS: dict[str, Callable[[int], None]] = {"v1": v1, "v2": v2, "gptq": gptq}


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("parts", nargs="*", choices=[*PARTS, []], help="which; all if not given")
    parser.add_argument("--images", type=int, help="calibration images (default: 128 for v1, 32 for v2)")
    options = parser.parse_args()
    sys.path.insert(0, str(spine.DATA))
    for part in options.parts or PARTS:
        PARTS[part](options.images or (32 if part == "v2" else 128))


if __name__ == "__main__":
    main()
