"""Files of small MXNet networks, made without MXNet, and what they compute."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np

from attar.adapters import Loaded
from attar.registry import Registry
from attar.runtime import OnnxRuntime
from attar_mxnet.params import write_params
from attar_mxnet.symbol_json import SymbolGraph, write_symbol_file

Array = np.ndarray[Any, np.dtype[Any]]


def rand(*shape: int, seed: int = 0) -> Array:
    return np.random.default_rng([seed, *shape]).uniform(-1, 1, shape).astype(np.float32)


def load(registry: Registry, source: Any, **options: Any) -> Loaded:
    return registry.get_adapter("mxnet").load(source, registry=registry, **options)


def run(loaded: Loaded, *arrays: Array) -> list[Array]:
    names = [v.name for v in loaded.model.graph.inputs]
    return OnnxRuntime().open(loaded.model).run(dict(zip(names, arrays, strict=True)))


def near(got: Array, wanted: Array, rel: float = 1e-6) -> None:
    """Type and shape are the same, values differ by the rounding of float32: `rel` of the largest of them."""
    assert (got.dtype, got.shape) == (wanted.dtype, wanted.shape)
    worst = np.abs(got.astype(np.float64) - wanted).max()
    assert worst <= rel * np.abs(wanted).max(), f"{worst} beside {np.abs(wanted).max()}"


def mlp() -> tuple[SymbolGraph, dict[str, Array]]:
    """Two layers and a softmax with a label."""
    graph = SymbolGraph()
    x = graph.variable("data")
    x = graph.add(
        "FullyConnected", "fc1", [x, graph.variable("fc1_weight"), graph.variable("fc1_bias")], num_hidden="8"
    )
    x = graph.add("Activation", "relu1", [x], act_type="relu")
    x = graph.add(
        "FullyConnected", "fc2", [x, graph.variable("fc2_weight"), graph.variable("fc2_bias")], num_hidden="3"
    )
    x = graph.add("SoftmaxOutput", "softmax", [x, graph.variable("softmax_label")])
    graph.heads = [x]
    return graph, {
        "fc1_weight": rand(8, 5),
        "fc1_bias": rand(8),
        "fc2_weight": rand(3, 8),
        "fc2_bias": rand(3),
    }


def mlp_output(weights: dict[str, Array], x: Array) -> Array:
    hidden = np.maximum(x @ weights["fc1_weight"].T + weights["fc1_bias"], 0)
    scores = hidden @ weights["fc2_weight"].T + weights["fc2_bias"]
    e = np.exp(scores - scores.max(1, keepdims=True))
    return np.asarray(e / e.sum(1, keepdims=True))


def files(
    folder: Path, graph: SymbolGraph, weights: dict[str, Array], name: str = "net", epoch: int = 0
) -> Path:
    write_symbol_file(folder / f"{name}-symbol.json", graph)
    write_params(folder / f"{name}-{epoch:04d}.params", {f"arg:{n}": a for n, a in weights.items()})
    return folder / f"{name}-symbol.json"


def batch_norm_symbol() -> tuple[SymbolGraph, dict[str, Array]]:
    graph = SymbolGraph()
    x, w = graph.variable("data"), graph.variable("conv_weight")
    x = graph.add("Convolution", "conv", [x, w], kernel="(1, 1)", num_filter="3", no_bias="True")
    states = [graph.variable(f"bn_{n}") for n in ("gamma", "beta", "moving_mean", "moving_var")]
    states[2:] = [s._replace(version=1) for s in states[2:]]
    graph.heads = [graph.add("BatchNorm", "bn", [x, *states])]
    weights = {"conv_weight": rand(3, 2, 1, 1), "bn_gamma": rand(3) + 3, "bn_beta": rand(3)}
    weights |= {"bn_moving_mean": rand(3, seed=2), "bn_moving_var": rand(3) + 2}
    return graph, weights
