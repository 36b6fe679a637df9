"""Quantization-aware training and gradual pruning, measured.

`python tests/benchmarks/qat.py [cost] [int8] [w4a4] [sparse] [stacked] [--minutes M] [--threads T]`. Models
and data come from ATTAR_DATA (default: shared/data beside the repository): ResNet-20 on CIFAR-10, trained on
the training images without their labels, judged on the development images, which are used for nothing else.

cost: a training step of the fake-quantized module against one of the float module, interleaved.
int8, w4a4: quantized, then trained for M minutes; accuracy before and after, and on how many images the
    module and the model in ONNX Runtime give the same class.
sparse: 80 % zeros, by and by.
stacked: 16 values a tensor and 4-bit weights: the same steps without training, and trained together.
"""

from __future__ import annotations

import argparse
import sys
import time
from typing import Any

import numpy as np
import spine

import attar
from attar.calibration import as_data
from attar.context import Context
from attar.passes import Pass
from attar.registry import default_registry
from attar.run import run_recipe
from attar.runtime import OnnxRuntime
from attar.specs import input_specs
from attar.training import as_training
from attar_cluster import Weights as Cluster
from attar_quantize import Static

RUNTIME = OnnxRuntime()


def context(model: Any, images: Any, seed: int = 0) -> Context:
    registry, specs = default_registry(), input_specs(model)
    return Context(
        registry, registry.get_target("cpu"), RUNTIME, as_data(images[:512], specs), seed=seed,
        original=model, training_data=as_training(images, specs),
    )  # fmt: skip


def logits(model: Any, images: Any) -> np.ndarray[Any, Any]:
    session = RUNTIME.open(model)
    name = session.inputs[0].name
    return np.concatenate([session.run({name: images[i : i + 250]})[0] for i in range(0, len(images), 250)])


def accuracy(model: Any, test: tuple[Any, Any]) -> float:
    return 100 * float((logits(model, test[0]).argmax(1) == test[1]).mean())


def agreement(model: Any, images: Any) -> float:
    """Share of the images on which the fake-quantized module and ONNX Runtime name the same class."""
    import torch

    from attar_train import prepare

    held = prepare(model).eval()
    with torch.no_grad():
        parts = [
            held.forward({held.inputs[0]: torch.from_numpy(images[i : i + 250])})[held.outputs[0]].numpy()
            for i in range(0, len(images), 250)
        ]
    return 100 * float((np.concatenate(parts).argmax(1) == logits(model, images).argmax(1)).mean())


def steps_in(model: Any, images: Any, minutes: float, threads: int) -> int:
    """Training steps of 128 images that fit into the time, measured."""
    from attar_train import Qat

    probe = Qat(steps=4, batch_size=128, threads=threads, flip=True, crop=4)
    ctx = context(model, images)
    start = time.perf_counter()
    run_recipe([probe], model, ctx)
    return max(10, int(60 * minutes / ((time.perf_counter() - start) / 5)))


def tell(  # noqa: PLR0917
    name: str, model: Any, before: Any, recipe: list[Pass], train: Any, test: tuple[Any, Any]
) -> Any:
    ctx = context(model, train)
    ctx.unquantized = model
    start = time.perf_counter()
    after, steps, _ = run_recipe(recipe, before, ctx)
    seconds = time.perf_counter() - start
    refused = [f"{s.name}: {s.refused}" for s in steps if s.refused]
    print(
        f"  {name:24} {accuracy(before, test):6.2f} -> {accuracy(after, test):6.2f}, {seconds:.0f} s"
        f"{f', refused: {refused}' if refused else ''}",
        flush=True,
    )
    for step in steps:
        print(f"      {step.changes[-1] if step.changes else ''}", flush=True)
    return after


def quantized(model: Any, train: Any, **options: Any) -> Any:
    ctx = context(model, train)
    return run_recipe([Static(plan="everything", **options)], model, ctx)[0]


def cost(model: Any, train: Any, threads: int, pairs: int = 15) -> None:
    import torch

    from attar_train import prepare

    torch.set_num_threads(threads)
    x = torch.from_numpy(train[:128])
    modules = [prepare(model).train(), prepare(quantized(model, train)).train()]
    times: list[list[float]] = [[], []]
    for _ in range(pairs):
        for held, kept in zip(modules, times, strict=True):
            start = time.process_time()
            made = held.forward({held.inputs[0]: x})[held.outputs[0]]
            made.square().mean().backward()
            kept.append(time.process_time() - start)
    ratios = np.divide(times[1], times[0])
    low, middle, high = np.percentile(ratios, [25, 50, 75])
    print(f"  fake-quantized step over float step: {middle:.2f} [{low:.2f}, {high:.2f}]", flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("what", nargs="*", default=["cost", "int8", "w4a4", "sparse", "stacked"])
    parser.add_argument("--minutes", type=float, default=15.0)
    parser.add_argument("--threads", type=int, default=2)
    given = parser.parse_args()
    from attar_train import Gradual, Qat

    model, train, test = resnet20()
    print(f"ResNet-20, CIFAR-10 development images: {accuracy(model, test):.2f}")
    shared = {"batch_size": 128, "flip": True, "crop": 4, "threads": given.threads}
    if "cost" in given.what:
        cost(model, train, given.threads)

    def trained(name: str, before: Any, step: type[Pass] = Qat, **options: Any) -> None:
        steps = steps_in(quantized(model, train, observer="mse"), train, given.minutes, given.threads)
        after = tell(name, model, before, [step(steps=steps, **shared, **options)], train, test)
        if step is Qat:
            print(f"      module and ONNX Runtime agree on {agreement(after, test[0]):.2f} %", flush=True)

    if "int8" in given.what:
        trained("int8", quantized(model, train))
    if "w4a4" in given.what:
        trained("w4a4, edges 8 bits", quantized(model, train, weight_bits=4, activation_bits=4))
    if "sparse" in given.what:
        trained("80 % zeros", model, Gradual, ratio=0.8)
    if "stacked" in given.what:
        recipe: list[Pass] = [Cluster(values=16), Static(plan="everything", weight_bits=4, edge_bits=4)]
        stacked = tell("16 values, 4 bits", model, model, recipe, train, test)
        trained("the same, trained", stacked)


def resnet20() -> tuple[Any, Any, tuple[Any, Any]]:
    """ResNet-20, training images, and development images with labels."""
    import torch

    sys.path.insert(0, str(spine.DATA))
    import load
    import torch_models

    net = torch_models.CifarResNet(3)
    path = spine.DATA / "cifar_models" / "resnet20_cifar10jpeg.pt"
    net.load_state_dict(torch.load(path, weights_only=True))
    train, _ = load.cifar10("train")
    x, y = load.cifar10("dev")
    model = attar.load(net.eval(), inputs=torch.zeros(2, 3, 32, 32))
    return model, load.resnet20(train), (load.resnet20(x), y)


if __name__ == "__main__":
    main()
