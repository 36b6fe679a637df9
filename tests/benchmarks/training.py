"""Training, measured: the cost of a step, fine-tuning and distillation of pruned networks.

`python tests/benchmarks/training.py [steps] [kws] [resnet20]`. Models and data come from ATTAR_DATA (default:
shared/data beside the repository).

steps: a step of the IR's module against one of the module that was written by hand, interleaved in one
process with one thread: forward, loss, backward, SGD; the median over pairs of the ratio, with its quartiles,
of processor time and of time.
kws: the keyword spotter with four fifths of its parameters removed, distilled from itself without labels.
There are no other recordings than those of the development set: one half of them, without their labels
and with others made from them, is trained on and the other half is judged, both ways round.
resnet20: half of the multiply-accumulates removed, distilled on the training images without their labels,
judged on the development images, which are used for nothing else.
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
from attar.context import Context
from attar.ops import model_macs
from attar.registry import default_registry
from attar.run import run_recipe
from attar.runtime import OnnxRuntime
from attar.specs import input_specs
from attar.training import as_training

RUNTIME = OnnxRuntime()


def context(model: Any, training: Any, calibration: Any = None, seed: int = 0) -> Context:
    from attar.calibration import as_data

    registry, specs = default_registry(), input_specs(model)
    data = None if calibration is None else as_data(calibration, specs)
    return Context(
        registry, registry.get_target("cpu"), RUNTIME, data, seed=seed, original=model,
        training_data=as_training(training, specs),
    )  # fmt: skip


def top1(model: Any, x: np.ndarray, y: np.ndarray, batch: int = 100) -> float:
    session = RUNTIME.open(model)
    name = model.graph.inputs[0].name
    hits = sum(
        int((session.run({name: x[i : i + batch]})[0].argmax(1) == y[i : i + batch]).sum())
        for i in range(0, len(x), batch)
    )
    return 100 * hits / len(x)


def parameters(model: Any) -> int:
    arrays = [graph.const_array(v) for v in model.graph.initializers.values()]
    return sum(a.size for a in arrays if a is not None and a.dtype == np.float32)


# -- the cost of a step --------------------------------------------------------------------------------------


def step_of(forward: Callable[[Any], Any], parameters: Any, x: Any, y: Any) -> Callable[[], None]:
    import torch

    optimizer = torch.optim.SGD(parameters, lr=1e-4, momentum=0.9)

    def step() -> None:
        optimizer.zero_grad(set_to_none=True)
        torch.nn.functional.cross_entropy(forward(x), y).backward()
        optimizer.step()

    return step


def steps(pairs: int) -> None:
    import torch
    import torch_models

    from attar_train import trainable

    torch.set_num_threads(1)
    clocks = (time.process_time, time.perf_counter)
    for name, net, size, classes, batch in (
        ("ResNet-20", torch_models.CifarResNet(3), 32, 10, 32),
        ("MobileNetV1 0.75", torch_models.MobileNetV1(), 128, 1000, 8),
    ):
        x, y = torch.randn(batch, 3, size, size), torch.randint(0, classes, (batch,))
        made = trainable(attar.load(net.eval(), inputs=x[:2])).train()
        by_hand = step_of(net.train(), net.parameters(), x, y)
        ours = step_of(
            lambda x, made=made: made.forward({made.inputs[0]: x})[made.outputs[0]],
            made.weights.values(), x, y,
        )  # fmt: skip
        ratios, times = [], []
        for number in range(pairs + 3):
            spent = []
            for one in (by_hand, ours) if number % 2 else (ours, by_hand):
                before = [clock() for clock in clocks]
                one()
                spent.append(np.subtract([clock() for clock in clocks], before))
            hand, own = spent if number % 2 else spent[::-1]
            if number >= 3:
                ratios.append(own / hand)
                times.append(hand)
        low, middle, high = np.percentile(ratios, [25, 50, 75], axis=0)
        print(
            f"{name}, batch {batch} at {size}x{size}: a step takes {middle[0]:.3f} ({low[0]:.3f} to "
            f"{high[0]:.3f}) of the processor time of the hand-written module's, {middle[1]:.3f} "
            f"({low[1]:.3f} to {high[1]:.3f}) of its time; {1000 * np.median(times, axis=0)[0]:.0f} ms, "
            f"{pairs} pairs",
            flush=True,
        )


# -- a keyword spotter ---------------------------------------------------------------------------------------


def other_recordings(x: np.ndarray, count: int, seed: int) -> np.ndarray:
    """Recordings that might have been, of mel cepstra [n, 101, 40]: float32 [count, 101, 40].

    The cepstrum is the orthonormal cosine transform of the logarithm of 40 powers, so it can be undone. Each
    new one is a recording at another time (up to 10 frames), at another pace and pitch (a tenth), through
    another microphone (gain and a smooth curve), and in two of three cases another one is heard behind it.
    Where nothing is recorded powers are 0, and so is what stands for their logarithm. What is said need not
    be known: the teacher says it.
    """
    rng = np.random.default_rng(seed)
    bins = np.arange(x.shape[2])
    cosine = np.sqrt(2 / len(bins)) * np.cos(np.pi * (2 * bins + 1) * bins[:, None] / (2 * len(bins)))
    cosine[0] /= np.sqrt(2)
    logs = x.astype(np.float64) @ cosine
    powers = np.where(np.abs(logs) < 1e-2, 0.0, np.exp(logs))
    frames, middle = np.arange(x.shape[1]), x.shape[1] / 2

    def along(values: np.ndarray, places: np.ndarray, axis: int, ends: float) -> np.ndarray:
        """Between neighbours, in a straight line; zero beyond the ends where `ends` is 0."""
        low = np.floor(places).astype(int)
        part = np.expand_dims(places - low, 1 - axis)
        last = values.shape[axis] - 1
        first, second = (values.take(np.clip(low + k, 0, last), axis) for k in (0, 1))
        made = (1 - part) * first + part * second
        return made if ends else made * np.expand_dims((places >= 0) & (places <= last), 1 - axis)

    def heard(number: int) -> np.ndarray:
        pace, pitch = rng.uniform(0.9, 1.1, 2)
        places = (frames - middle) * pace + middle + rng.uniform(-10, 10)
        made = along(along(powers[number], places, 0, 0.0), bins * pitch, 1, 1.0)
        curve = rng.standard_normal(4) * 2.0 @ cosine[:4] + rng.uniform(-1.5, 1.0)
        return made * np.exp(curve)

    made = np.empty((count, *x.shape[1:]), np.float32)
    for row in range(count):
        sound = heard(rng.integers(len(x)))
        if rng.random() < 2 / 3:
            sound = sound + np.exp(rng.uniform(-7, -1)) * heard(rng.integers(len(x)))
        made[row] = np.log(np.where(sound > 0, sound, 1.0)) @ cosine.T
    return made


def kws(epochs: float, seed: int, threads: int) -> None:
    import load
    import torch
    import torch_models

    from attar_prune import Channels, Weights
    from attar_train import Distill

    recordings, labels = load.kws("dev", torch_models.KWS_LABELS)
    x = recordings["honk"].astype(np.float32)
    weights = torch.load(spine.DATA / "kws" / "torch" / "res8.pt", weights_only=True)
    net = torch_models.KwsRes8(weights).eval()
    model = attar.load(net, inputs=torch.from_numpy(x[:2]))
    print(f"res8: {parameters(model)} parameters, {top1(model, x, labels):.2f} on all recordings", flush=True)
    order = np.random.default_rng(0).permutation(len(x))
    halves = order[: len(x) // 2], order[len(x) // 2 :]
    for name, prune in (
        ("channels", [Channels(by="size", ratio=0.79, block=1, most=0.9, steps=3)]),
        ("weights", [Weights(ratio=0.8)]),
    ):
        found: dict[str, list[float]] = {}
        for part, other in (halves, halves[::-1]):
            start = time.perf_counter()
            more = other_recordings(x[part], 6000, seed)
            training = np.concatenate([x[part]] * 8 + [more])
            ctx = context(
                model, training, {model.graph.inputs[0].name: np.concatenate([x[part], more[:500]])}, seed
            )
            cut, _, _ = run_recipe(prune, model, ctx)
            step = Distill(
                epochs=epochs, batch_size=50, lr=4e-3, temperature=2.0, weight_decay=0.0, warmup=0.05,
                hidden=("auto",), hidden_loss="projection", threads=threads,
            )  # fmt: skip
            done, records, _ = run_recipe([step], cut, ctx)
            left = sum(
                int((a != 0).sum()) for v in done.graph.initializers.values()
                if (a := graph.const_array(v)) is not None and a.dtype == np.float32 and a.ndim > 1
            )  # fmt: skip
            for what, network in (("before", model), ("pruned", cut), ("distilled", done)):
                found.setdefault(what, []).append(top1(network, x[other], labels[other]))
            print(
                f"  {name}: {left} weights that are not zero of {parameters(done)}, "
                f"{time.perf_counter() - start:.0f} s; {records[-1].changes[0]}",
                flush=True,
            )
        print(f"{name}: " + ", ".join(f"{w} {np.mean(v):.2f}" for w, v in found.items()), flush=True)


# -- ResNet-20 -----------------------------------------------------------------------------------------------


def resnet20(epochs: float, seed: int, threads: int) -> None:
    import load
    import torch
    import torch_models

    from attar_prune import Channels
    from attar_train import Distill

    images, _ = load.cifar10("train")
    x = load.resnet20(images)
    test, labels = load.cifar10("dev")
    test = load.resnet20(test)
    net = torch_models.CifarResNet(3)
    path = spine.DATA / "cifar_models" / "resnet20_cifar10jpeg.pt"
    net.load_state_dict(torch.load(path, weights_only=True))
    model = attar.load(net.eval(), inputs=torch.from_numpy(x[:2]))
    ctx = context(model, x, {model.graph.inputs[0].name: x[:1024]}, seed)
    start = time.perf_counter()
    step = Distill(
        epochs=epochs, batch_size=128, optimizer="sgd", lr=0.02, flip=True, crop=4, temperature=4.0,
        threads=threads,
    )  # fmt: skip
    cut, _, _ = run_recipe([Channels(by="macs", ratio=0.5, block=4)], model, ctx)
    done, records, _ = run_recipe([step], cut, ctx)
    share = model_macs(done) / model_macs(model)
    print(
        f"resnet20: {share:.1%} of the multiply-accumulates; {top1(model, test, labels):.2f} before, "
        f"{top1(cut, test, labels):.2f} pruned, {top1(done, test, labels):.2f} distilled on {len(x)} images "
        f"without labels in {time.perf_counter() - start:.0f} s; {records[-1].changes[0]}",
        flush=True,
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("parts", nargs="*", default=["steps", "kws", "resnet20"])
    parser.add_argument("--pairs", type=int, default=40)
    parser.add_argument("--epochs", type=float, default=None)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--threads", type=int, default=2)
    given = parser.parse_args()
    sys.path.insert(0, str(spine.DATA))
    for part in given.parts:
        start = time.perf_counter()
        if part == "steps":
            steps(given.pairs)
        elif part == "kws":
            kws(given.epochs or 2.8, given.seed, given.threads)
        elif part == "resnet20":
            resnet20(given.epochs or 12, given.seed, given.threads)
        else:
            parser.error(f"no part {part!r}")
        print(f"{part}: {time.perf_counter() - start:.0f} s", flush=True)


if __name__ == "__main__":
    main()
