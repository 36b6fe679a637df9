"""One operator of MXNet as a network in files, and comparing what was read with MXNet itself."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from attar.adapters import Loaded
from attar.runtime import OnnxRuntime
from attar_mxnet.params import write_params
from attar_mxnet.symbol_json import Entry, SymbolGraph, write_symbol_file

Array = np.ndarray[Any, np.dtype[Any]]


def rand(*shape: int, seed: int = 0, low: float = -2.0, high: float = 2.0) -> Array:
    return np.random.default_rng([seed, *shape]).uniform(low, high, shape).astype(np.float32)


def ints(*shape: int, high: int = 5, low: int = 0, dtype: Any = np.float32) -> Array:
    return np.random.default_rng([7, *shape]).integers(low, high, shape).astype(dtype)


@dataclass
class Case:
    """One operator: its inputs, of which those from `stored` on are parameters."""

    op: str
    inputs: tuple[Array, ...]
    attrs: dict[str, Any]
    stored: int
    outputs: int = 1
    np_shape: bool = False
    name: str = ""


def case(op: str, *inputs: Array, stored: int | None = None, outputs: int = 1, **attrs: Any) -> Case:
    mode = op.startswith("_np")
    return Case(op, inputs, attrs, len(inputs) if stored is None else stored, outputs, mode)


def build(case: Case, folder: Path) -> tuple[Path, dict[str, Array]]:
    """The files of a network of one operator, and its feeds."""
    graph = SymbolGraph(np_shape=case.np_shape)
    feeds, params, entries = {}, {}, []
    for number, array in enumerate(case.inputs):
        name = f"x{number}" if number < case.stored else f"p{number}_weight"
        state = case.op.startswith("BatchNorm") and number > 2
        (feeds if number < case.stored else params)[name] = array
        entries.append(graph.variable(name)._replace(version=int(state)))
    first = graph.add(case.op, "layer", entries, **{k: str(v) for k, v in case.attrs.items()})
    graph.heads = [Entry(first.node, k) for k in range(case.outputs)]
    write_symbol_file(folder / "net-symbol.json", graph)
    states = {n for i in graph.auxiliary() for n in [graph.nodes[i].name]}
    write_params(
        folder / "net-0000.params", {f"{'aux' if n in states else 'arg'}:{n}": a for n, a in params.items()}
    )
    return folder / "net-symbol.json", feeds


def compare(loaded: Loaded, feeds: dict[str, Array], rtol: float = 4e-6) -> None:
    assert loaded.reference is not None
    wanted = loaded.reference(feeds)
    session = OnnxRuntime().open(loaded.model)
    used = {v.name for v in loaded.model.graph.inputs}
    got = session.run({n: a for n, a in feeds.items() if n in used})
    assert len(wanted) == len(got)
    for a, b in zip(wanted, got, strict=True):
        assert a.shape == b.shape, f"shape {b.shape}, MXNet gives {a.shape}"
        assert a.dtype == b.dtype, f"type {b.dtype}, MXNet gives {a.dtype}"
        scale = max(1e-3, float(np.abs(a[np.isfinite(a)]).max(initial=0))) if a.size else 1.0
        np.testing.assert_allclose(b.astype(np.float64), a.astype(np.float64), rtol=0, atol=rtol * scale)


X = rand(2, 3, 8, 6)
IMAGE = rand(2, 4, 9, 7)
ROIS = np.array([[0, 1, 1, 9, 7], [1, 0, 2, 12, 16], [0, 3, 3, 5, 15]], np.float32)
BOXES = np.concatenate([rand(5, 2), rand(5, 2) + rand(5, 2, seed=9, low=2.0, high=3.0)], 1)
DETECTIONS = np.concatenate(
    [
        ints(2, 12, 1, high=3),
        rand(2, 12, 1, low=0.0, high=1.0),
        np.concatenate([BOXES[:3]] * 4 * 2).reshape(2, 12, 4),
    ],
    2,
) + rand(2, 12, 6, low=0.0, high=0.2) * np.array([0, 0, 1, 1, 1, 1], np.float32)
