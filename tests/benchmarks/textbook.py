"""The textbook's chain on a MobileNet: pruned, distilled and quantized by one recipe.

    python tests/benchmarks/textbook.py            trains the network (minutes), then compresses it
    python tests/benchmarks/textbook.py speed      size and speed alone, on untrained weights

A MobileNetV1 of half width for images of 32 x 32 is trained on CIFAR-10 in plain PyTorch. Then one recipe,
`prune.channels`, `train.distill` and `quantize.static` through `attar.compress`, makes it small; it sees the
training images without their labels. Three things are told: bytes of the file against those of `torch.save`,
time against the framework's own eager run (batch 1, one thread, the two in turns in one process, the median
of the quotients of neighbours with its quartiles), and accuracy on test images that nothing else has seen.
Seed and time are printed. Images come from ATTAR_DATA (default: shared/data beside the repository).
"""

from __future__ import annotations

import argparse
import os
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

import attar
from attar.runtime import OnnxRuntime

DATA = Path(os.environ.get("ATTAR_DATA", Path(__file__).resolve().parents[3] / "shared" / "data"))
sys.path.insert(0, str(DATA))
Array = np.ndarray[Any, np.dtype[Any]]
# (channels at full width, stride) of the separable blocks: MobileNetV1's, with strides for small images.
PLAN = ((64, 1), (128, 2), (128, 1), (256, 2), (256, 1), (512, 2), *((512, 1),) * 5, (1024, 1), (1024, 1))


def mobilenet(width: float, classes: int = 10) -> Any:
    """MobileNetV1 (Howard et al. 2017, arXiv:1704.04861) for images of 32 x 32: the first convolution has
    stride 2, and there are three further halvings, down to 2 x 2."""
    from torch import nn

    def block(wide: int, out: int, kernel: int, stride: int, groups: int = 1) -> list[Any]:
        pad = kernel // 2
        conv = nn.Conv2d(wide, out, kernel, stride, pad, groups=groups, bias=False)
        return [conv, nn.BatchNorm2d(out), nn.ReLU6()]

    wide = int(32 * width)
    layers = block(3, wide, 3, 2)
    for channels, stride in PLAN:
        out = int(channels * width)
        layers += [*block(wide, wide, 3, stride, groups=wide), *block(wide, out, 1, 1)]
        wide = out
    return nn.Sequential(*layers, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(wide, classes))


def normalized(images: Array) -> Array:
    mean, deviation = np.float32([0.491, 0.482, 0.447]), np.float32([0.247, 0.243, 0.262])
    made = ((images.astype(np.float32) / 255 - mean) / deviation).transpose(0, 3, 1, 2)
    return np.ascontiguousarray(made)


def trained(net: Any, images: Array, labels: Array, epochs: float, seed: int) -> Any:
    """The framework's own loop: SGD with one cycle, images mirrored and shifted."""
    import torch

    rng = np.random.default_rng(seed)
    batch = 128
    steps = int(epochs * len(images) // batch)
    optimizer = torch.optim.SGD(net.parameters(), lr=0.1, momentum=0.9, nesterov=True, weight_decay=5e-4)
    course = torch.optim.lr_scheduler.OneCycleLR(optimizer, 0.2, total_steps=steps, pct_start=0.3)
    net.train()
    start, order = time.perf_counter(), np.empty(0, np.int64)
    for step in range(steps):
        if len(order) < batch:
            order = rng.permutation(len(images))
        chosen, order = order[:batch], order[batch:]
        x = images[chosen]
        if rng.random() < 0.5:
            x = x[..., ::-1]
        down, right = rng.integers(-3, 4, 2)
        x = np.roll(x, (down, right), (2, 3))
        loss = torch.nn.functional.cross_entropy(
            net(torch.from_numpy(np.ascontiguousarray(x))), torch.from_numpy(labels[chosen])
        )
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        optimizer.step()
        course.step()
        if step % 100 == 99:
            spent = time.perf_counter() - start
            print(f"  step {step + 1} of {steps}: loss {loss.item():.3f}, {spent:.0f} s", flush=True)
    return net.eval()


def top1(run: Callable[[Array], Any], images: Array, labels: Array) -> float:
    parts = [np.asarray(run(images[i : i + 250])) for i in range(0, len(images), 250)]
    return 100 * float((np.concatenate(parts).argmax(1) == labels).mean())


def eager(net: Any) -> Callable[[Array], Array]:
    import torch

    def run(x: Array) -> Array:
        with torch.inference_mode():
            return net(torch.from_numpy(x)).numpy()

    return run


def in_turns(slow: Callable[[], Any], quick: Callable[[], Any], pairs: int) -> tuple[Array, Array]:
    """Seconds [pairs, 2] of the two, one after the other, and the quartiles of their quotients."""
    times = np.empty((pairs, 2))
    for row in range(-10, pairs):
        for place, call in enumerate((slow, quick)):
            start = time.perf_counter()
            call()
            if row >= 0:
                times[row, place] = time.perf_counter() - start
    return times, np.percentile(times[:, 0] / times[:, 1], [25, 50, 75])


def judged(net: Any, result: Any, one: Array, pairs: int) -> None:
    """Print size and speed."""
    import torch

    with tempfile.TemporaryDirectory() as name:
        torch.save(net.state_dict(), f"{name}/net.pt")
        result.save(f"{name}/small.onnx")
        result.save(f"{name}/small.attar")
        sizes = [Path(name, f).stat().st_size for f in ("net.pt", "small.onnx", "small.attar")]
    print(
        f"  {sizes[0]} bytes by torch.save, {sizes[1]} as .onnx ({sizes[1] / sizes[0]:.1%}), {sizes[2]} as "
        f".attar ({sizes[2] / sizes[0]:.1%})"
    )
    session = OnnxRuntime().open(result.runnable, threads=1)
    feeds = {session.inputs[0].name: one}
    run = eager(net)
    times, quotients = in_turns(lambda: run(one), lambda: session.run(feeds), pairs)
    slow, quick = 1000 * np.median(times, axis=0)
    print(
        f"  batch 1, one thread: {slow:.3f} ms eager, {quick:.3f} ms compressed, {quotients[1]:.1f} times as "
        f"fast ({quotients[0]:.1f} to {quotients[2]:.1f}), {pairs} pairs",
        flush=True,
    )


def recipe(macs: float, epochs: float) -> list[Any]:
    """The one recipe."""
    from attar_prune import Channels
    from attar_quantize import Static
    from attar_train import Distill

    learn = Distill(epochs=epochs, batch_size=128, lr=2e-3, flip=True, crop=2, threads=1)
    return [Channels(by="macs", ratio=macs), learn, Static()]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("what", nargs="?", choices=["all", "speed"], default="all")
    parser.add_argument("--width", type=float, default=0.5)
    parser.add_argument("--macs", type=float, default=0.4, help="share of the work that is removed")
    parser.add_argument("--epochs", type=float, default=3.0, help="of the network's own training")
    parser.add_argument("--distill", type=float, default=1.5, help="epochs of distillation")
    parser.add_argument("--images", type=int, default=50_000, help="training images")
    parser.add_argument("--pairs", type=int, default=300)
    parser.add_argument("--seed", type=int, default=0)
    given = parser.parse_args()
    import load
    import torch

    torch.set_num_threads(1)
    torch.manual_seed(given.seed)
    start = time.perf_counter()
    net = mobilenet(given.width).eval()
    if given.what == "speed":
        images = normalized(np.random.default_rng(0).integers(0, 256, (256, 32, 32, 3)))
        steps = [step for step in recipe(given.macs, 1) if not step.name.startswith("train.")]
        judged(
            net, attar.compress(net, steps, calibration=images, inputs=images[:2]), images[:1], given.pairs
        )
        return
    images, labels = load.cifar10("train")
    images, labels = normalized(images[: given.images]), labels[: given.images]
    trained(net, images, labels, given.epochs, given.seed)
    between = time.perf_counter()
    result = attar.compress(
        net, recipe(given.macs, given.distill), calibration=images[:512], training=images, inputs=images[:2],
        seed=given.seed,
    )  # fmt: skip
    after = time.perf_counter()
    print(f"{result.report.verdict}: {result.report.headline}")
    for step in result.report.steps:
        print(f"  {step.name}: {step.refused or '; '.join(step.changes)}")
    judged(net, result, images[:1], given.pairs)
    test, answers = load.cifar10("dev")
    test = normalized(test)
    session = OnnxRuntime().open(result.runnable, threads=1)
    before, small = (
        top1(run, test, answers)
        for run in (eager(net), lambda x: session.run({session.inputs[0].name: x})[0])
    )
    print(
        f"  test images: {before:.2f} by the framework, {small:.2f} compressed ({small - before:+.2f})\n"
        f"seed {given.seed}: trained in {between - start:.0f} s, compressed in {after - between:.0f} s"
    )


if __name__ == "__main__":
    main()
