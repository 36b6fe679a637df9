"""Structured pruning, measured: one shot, no labels, against plain l1 and against the dense network's time.

`python tests/benchmarks/pruning.py [res8] [v1] [resnet20] [layers] [seconds] [speed] [latency]
[grouping]`. Models and data
come from ATTAR_DATA (default: shared/data beside the repository). The keyword spotter is calibrated on one
half of the recordings and judged on the other, both ways round; the others on images that calibration did not
see.
"""

from __future__ import annotations

import argparse
import sys
import time
from typing import Any

import numpy as np
import spine

import attar
from attar import graph
from attar.calibration import as_data
from attar.context import Context
from attar.errors import Refused
from attar.measure import interleaved
from attar.passes import Pass
from attar.registry import default_registry
from attar.runtime import OnnxRuntime
from attar.specs import input_specs

RUNTIME = OnnxRuntime()


def context(model: Any, samples: list[dict[str, np.ndarray]] | None) -> Context:
    registry = default_registry()
    data = None if samples is None else as_data(samples, input_specs(model))
    return Context(registry, registry.get_target("cpu"), RUNTIME, data)


def fused(net: Any, example: Any) -> Any:
    from attar_fuse import Fuse

    model = attar.load(net, inputs=example)
    Fuse().apply(model, context(model, None))
    graph.tidy(model)
    graph.refresh_shapes(model)
    return model


def pruned(model: Any, step: Pass, samples: list[dict[str, np.ndarray]] | None) -> tuple[Any, str, float]:
    copy, ctx, start = graph.clone(model), context(model, samples), time.perf_counter()
    try:
        step.apply(copy, ctx)
    except Refused as refusal:
        return model, str(refusal), time.perf_counter() - start
    graph.tidy(copy)
    return copy, ctx.step.changes[-1], time.perf_counter() - start


def parameters(model: Any) -> int:
    return sum(v.const_value.size for v in model.graph.initializers.values() if v.const_value.dtype == 1)


def res8() -> None:
    """110 k parameters to 66.6 k; its authors reached 87.6 with training."""
    import load
    import torch
    import torch_models

    from attar_prune import Channels

    recordings, labels = load.kws("dev", torch_models.KWS_LABELS)
    x = recordings["honk"]
    weights = torch.load(spine.DATA / "kws" / "torch" / "res8.pt", weights_only=True)
    model = fused(torch_models.KwsRes8(weights).eval(), torch.from_numpy(x[:1]))
    name = model.graph.inputs[0].name
    order = np.random.default_rng(0).permutation(len(x))
    halves = order[: len(x) // 2], order[len(x) // 2 :]

    def hits(network: Any, part: np.ndarray) -> int:
        session = RUNTIME.open(network)
        return sum(int(session.run({name: x[i : i + 1]})[0].argmax() == labels[i]) for i in part)

    print(f"res8: {parameters(model)} parameters, {100 * hits(model, order) / len(x):.1f}")
    settings = {
        "l1, no refit": Channels(ratio=0.4, by="size", block=1, importance="l1", refit=False),
        "l1, refit": Channels(ratio=0.4, by="size", block=1, importance="l1"),
        "gram, refit": Channels(ratio=0.4, by="size", block=1, scope="global"),
    }
    for label, step in settings.items():
        right = 0
        for seen, unseen in (halves, halves[::-1]):
            result, _, seconds = pruned(model, step, [{name: x[i : i + 1]} for i in seen])
            right += hits(result, unseen)
        print(f"  {label:14} {parameters(result)} parameters, {100 * right / len(x):.1f}, {seconds:.1f} s")


def accuracy(name: str, images: int, block: int | None) -> None:
    """20 % fewer multiply-accumulates: what plain l1 loses, and what the refit leaves of it."""
    from attar_prune import Channels

    network = spine.NETWORKS[name]()
    model = fused(network.model, network.example)
    samples = network.calibration[:images]
    assert network.score is not None
    dense = network.score(RUNTIME.open(model))
    print(f"{name}: {100 * dense:.2f}, {images} images")
    for label, options in {
        "l1, no refit": {"importance": "l1", "refit": False},
        "l1, refit": {"importance": "l1"},
        "gram, refit": {"importance": "gram", "scope": "global"},
    }.items():
        step = Channels(ratio=0.2, by="macs", block=block, **options)
        result, note, seconds = pruned(model, step, samples)
        score = network.score(RUNTIME.open(result))
        print(f"  {label:14} {100 * score:.2f}, {seconds:.1f} s, {note}", flush=True)


def layers(name: str, images: int) -> None:
    """A fifth of the multiply-accumulates less by leaving blocks out, without and with the refit."""
    from attar_prune import Layers

    network = spine.NETWORKS[name]()
    model = fused(network.model, network.example)
    assert network.score is not None
    print(f"{name}: {100 * network.score(RUNTIME.open(model)):.2f}, {images} images")
    for step in (Layers(count=1, refit=False), Layers(count=1), Layers(refit=False), Layers()):
        result, note, seconds = pruned(model, step, network.calibration[:images])
        print(
            f"  {step}: {100 * network.score(RUNTIME.open(result)):.2f}, {seconds:.1f} s, {note}", flush=True
        )


def resnet50() -> Any:
    """The layers of ResNet-50 with random weights: structure and speed are real."""
    from attar.testing.build import Net

    net = Net("resnet50", 0)

    def conv(x: Any, i: int, o: int, k: int, stride: int = 1) -> Any:
        return net.conv(x, i, o, (k, k), stride=stride)

    x = net.op("Relu", conv(net.input("input", "N", 3, 224, 224), 3, 64, 7, 2))
    x = net.op("MaxPool", x, kernel_shape=[3, 3], strides=[2, 2], pads=[1, 1, 1, 1])
    c = 64
    for width, count, stride in ((64, 3, 1), (128, 4, 2), (256, 6, 2), (512, 3, 2)):
        for k in range(count):
            s = stride if k == 0 else 1
            y = net.op("Relu", conv(net.op("Relu", conv(x, c, width, 1)), width, width, 3, s))
            y = conv(y, width, 4 * width, 1)
            x = net.op("Relu", net.op("Add", y, x if k else conv(x, c, 4 * width, 1, s)))
            c = 4 * width
    return net.model(logits=net.dense(net.pooled(x), 2048, 1000))


def speed() -> None:
    """30 % of the channels of MobileNetV2 and ResNet-50, by block and by any number."""
    from attar_prune import Channels

    v2 = spine.NETWORKS["mobilenet_v2"]()
    models = {"mobilenet_v2": fused(v2.model, v2.example), "resnet50": resnet50()}
    for name, model in models.items():
        graph.normalize(model)
        graph.refresh_shapes(model)
        feeds = {"input": np.zeros((1, 3, 224, 224), np.float32)}
        dense = RUNTIME.open(model)
        for label, block in (("any width", 1), ("blocks", None)):
            result, note, seconds = pruned(model, Channels(ratio=0.3, block=block, refit=False), None)
            ratio = interleaved(dense, RUNTIME.open(result), feeds, threads=1, runs=20)
            spread = f"({ratio.low:.2f}-{ratio.high:.2f})"
            print(f"{name} {label:10} time x{ratio.ratio:.2f} {spread}, {seconds:.1f} s, {note}")


def seconds(images: int) -> None:
    """CPU seconds of pruning MobileNetV2 by 30 % of its multiply-accumulates: with the data running through
    it (Gram matrices, outputs), and all else."""
    from attar_prune import Channels, effect, importance, staged

    spent: dict[str, float] = {}

    def timed(owner: Any, name: str) -> None:
        real = getattr(owner, name)

        def run(*args: Any, **options: Any) -> Any:
            start = time.process_time()
            try:
                return real(*args, **options)
            finally:
                spent[name] = spent.get(name, 0.0) + time.process_time() - start

        setattr(owner, name, run)

    timed(staged.Front, "_portion")
    timed(importance, "collect")
    timed(effect.Outputs, "of")
    network = spine.NETWORKS["mobilenet_v2"]()
    model = fused(network.model, network.example)
    start = time.process_time()
    _, note, _ = pruned(model, Channels(ratio=0.3, by="macs"), network.calibration[:images])
    whole, data = time.process_time() - start, sum(spent.values())
    print(f"mobilenet_v2, {images} images: {data:.1f} s of calibration, {whole - data:.1f} s beyond, {note}")


def latency(images: int) -> None:
    """'40 % less latency' of MobileNetV2 and ResNet-50, in float and both quantized after."""
    from attar_prune import Channels
    from attar_quantize import Static

    v2 = spine.NETWORKS["mobilenet_v2"]()
    samples = v2.calibration[:images]
    models = {"mobilenet_v2": fused(v2.model, v2.example), "resnet50": resnet50()}
    for name, model in models.items():
        graph.normalize(model)
        graph.refresh_shapes(model)
        key = model.graph.inputs[0].name or ""
        own = [{key: next(iter(s.values()))} for s in samples]
        less, note, took = pruned(model, Channels(ratio=0.4, by="latency", refit=False), own)
        pairs = {"float": (model, less), "int8": tuple(pruned(m, Static(), own)[0] for m in (model, less))}
        for kind, (before, after) in pairs.items():
            sessions = RUNTIME.open(before), RUNTIME.open(after)
            ratio = interleaved(*sessions, own[0], threads=1, runs=30)
            spread = f"({ratio.low:.2f}-{ratio.high:.2f})"
            print(f"{name} {kind:5} time x{ratio.ratio:.2f} {spread}, {took:.1f} s, {note}", flush=True)


def grouping() -> None:
    """Seconds to find the groups of a graph of 5,000 nodes."""
    from attar.testing.build import Net
    from attar_prune.groups import Grouping

    net = Net("long", 0)
    x = net.conv(net.input("x", "N", 3, 8, 8), 3, 64, (1, 1))
    for _ in range(1249):
        y = net.op("Relu", net.batch_norm(net.conv(x, 64, 64, (1, 1)), 64))
        x = net.op("Add", x, y)
    model = net.model(logits=net.dense(net.pooled(x), 64, 5))
    start = time.perf_counter()
    found = Grouping(model)
    print(f"{len(list(model.graph))} nodes, {len(found.groups)} groups: {time.perf_counter() - start:.2f} s")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("parts", nargs="*", default=["res8", "v1", "resnet20", "layers", "speed", "grouping"])
    parser.add_argument("--images", type=int, default=64)
    options = parser.parse_args()
    sys.path.insert(0, str(spine.DATA))
    for part in options.parts:
        if part == "v1":
            accuracy("mobilenet_v1_075", options.images, None)
        elif part == "layers":
            layers("resnet20", 4 * options.images)
            layers("mobilenet_v2", options.images)
        elif part == "resnet20":
            accuracy("resnet20", 4 * options.images, 4)
        elif part in ("seconds", "latency"):
            {"seconds": seconds, "latency": latency}[part](options.images)
        else:
            {"res8": res8, "speed": speed, "grouping": grouping}[part]()


if __name__ == "__main__":
    main()
