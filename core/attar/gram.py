"""Gram matrices of what layers multiply their weights with, streamed over data.

For a Conv, Gemm or MatMul with constant weight the inputs of one output position are a vector x of K numbers:
a row of the input, or a patch of it as wide as the kernel. The Gram matrix, the sum of x x^T over positions
and data, tells what any change of the weights does to the outputs (`attar.solve`).

Positions are sampled, evenly at random, so that the cost stays a small multiple of the forward pass:
neighbours in an image tell nearly the same. Products are summed in float32 within a batch and in float64 over
batches.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import onnx_ir as ir

from attar import graph
from attar.errors import InputError
from attar.feeds import batch_of, pieces
from attar.layer_inputs import LayerInput, from_rows, layer_input, positions_of, rows_of, vectors
from attar.progress import Progress, Silent

if TYPE_CHECKING:
    from attar.calibration import Data
    from attar.runtime import Runtime

__all__ = ["BUDGET", "Gram", "LayerInput", "collect", "from_rows", "layer_input", "rows_of", "sweeps"]

Array = np.ndarray[Any, np.dtype[Any]]
# Gram matrices that are gathered in one run over the data may take this many bytes.
BUDGET = 512 << 20
# Samples that run at once: whole activations leave the runtime.
_AT_ONCE = 8
_SHOWN = "/gram"


@dataclass
class Gram:
    """Sums over `count` vectors x of K numbers, per group; float64.

    Attributes:
        matrix: sum of x x^T, `[groups, K, K]`.
        total: sum of x, `[groups, K]`.
        count: number of vectors.
        half: the same over one half of the samples; with it what was learnt on the other half can be tested.
        cross: sum of t x^T, where t is the same input in the reference model; None without one.
        twin: sum of t, `[groups, K]`.
    """

    matrix: Array
    total: Array
    count: int = 0
    half: Gram | None = None
    cross: Array | None = None
    twin: Array | None = None

    @classmethod
    def zeros(cls, groups: int, depth: int, *, paired: bool = False) -> Gram:
        """Sums over nothing."""
        square, vector = (groups, depth, depth), (groups, depth)
        if not paired:
            return cls(np.zeros(square), np.zeros(vector))
        return cls(np.zeros(square), np.zeros(vector), cross=np.zeros(square), twin=np.zeros(vector))

    @property
    def mean(self) -> Array:
        """E[x], `[groups, K]`."""
        return np.asarray(self.total / max(1, self.count))

    @property
    def moment(self) -> Array:
        """E[x x^T], `[groups, K, K]`."""
        return np.asarray(self.matrix / max(1, self.count))

    @property
    def covariance(self) -> Array:
        """E[x x^T] - E[x] E[x]^T: what a change of weights costs when a bias makes good its mean."""
        mean = self.mean
        return np.asarray(self.moment - mean[..., :, None] * mean[..., None, :])

    @property
    def halves(self) -> tuple[Gram, Gram] | None:
        """Sums over two disjoint halves of the samples; None where there was only one sample."""
        if self.half is None or not 0 < self.half.count < self.count:
            return None
        matrix, total = self.matrix - self.half.matrix, self.total - self.half.total
        return Gram(matrix, total, self.count - self.half.count), self.half

    def merge(self, other: Gram) -> None:
        """Take in sums of the same input over other data."""
        self.matrix = self.matrix + other.matrix
        self.total = self.total + other.total
        self.count += other.count
        if self.cross is not None and self.twin is not None and other.cross is not None:
            self.cross, self.twin = self.cross + other.cross, self.twin + other.twin
        if self.half is not None and other.half is not None:
            self.half.merge(other.half)

    def add(self, vectors: Array, twins: Array | None = None) -> None:
        """Count vectors `[groups, n, K]`, and with them those of the reference; those with infinite elements
        are left out."""
        total = vectors.sum(axis=1, dtype=np.float64)
        if not np.isfinite(total).all():
            finite = np.isfinite(vectors).all(axis=(0, 2))
            vectors, twins = vectors[:, finite], None if twins is None else twins[:, finite]
            total = vectors.sum(axis=1, dtype=np.float64)
        self.matrix += np.swapaxes(vectors, 1, 2) @ vectors
        self.total += total
        self.count += vectors.shape[1]
        if twins is not None and self.cross is not None and self.twin is not None:
            self.cross += np.swapaxes(twins, 1, 2) @ vectors
            self.twin += twins.sum(axis=1, dtype=np.float64)


def sweeps(wanted: Iterable[LayerInput], budget: int = BUDGET) -> Iterator[list[LayerInput]]:
    """`wanted` in portions whose matrices fit the budget; what is larger alone comes alone."""
    part: list[LayerInput] = []
    used = 0
    for item in wanted:
        if part and used + item.nbytes > budget:
            yield part
            part, used = [], 0
        part.append(item)
        used += item.nbytes
    if part:
        yield part


def collect(
    model: ir.Model,
    wanted: Iterable[LayerInput],
    data: Data,
    runtime: Runtime,
    *,
    reference: ir.Model | None = None,
    threads: int = 1,
    seed: int = 0,
    progress: Progress | None = None,
) -> dict[LayerInput, Gram]:
    """Run `data` through `model` once and sum up the Gram matrices of `wanted`.

    Args:
        wanted: from `layer_input`; values must be of the main graph.
        reference: the same graph with other weights; gives `Gram.cross` and `Gram.twin`.
        seed: of the positions that are sampled.

    Raises:
        InputError: a value is unknown, or became NaN (named, with the batch).
    """
    wanted = list(dict.fromkeys(wanted))
    if not wanted:
        return {}
    names = {w.value for w in wanted}
    sessions = [runtime.open(_showing(model, names), threads=threads)]
    if reference is not None:
        sessions.append(runtime.open(_showing(reference, names), threads=threads))
    rest, half = (
        {w: Gram.zeros(w.group, w.depth, paired=reference is not None) for w in wanted} for _ in range(2)
    )
    turn = 0
    with (progress or Silent()).task("gathering Gram matrices", data.count()) as task:
        for number, batch in enumerate(data):
            count = batch_of(batch.inputs, data.specs) or 1
            elements = _AT_ONCE * sum(a.size for a in batch.inputs.values()) // count
            for feeds in pieces(batch.inputs, data.specs, min(elements, 1 << 19)):
                samples = batch_of(feeds, data.specs) or 1
                turn += samples
                shown = [dict(zip(s.outputs, s.run(feeds), strict=True)) for s in sessions]
                _check(shown[0], number)
                for place, want in enumerate(wanted):
                    few = positions_of(want.depth, data.count())
                    # The reference is looked at in the same positions.
                    found = [
                        vectors(
                            values[_shown(want.value)].astype(np.float32, copy=False),
                            want,
                            few,
                            np.random.default_rng([seed, turn, place]),
                        )
                        for values in shown
                    ]
                    # Single samples go to the halves in turn, several are cut in two.
                    cut = found[0].shape[1] // samples * (samples // 2) if samples > 1 else None
                    first, second = (rest, half) if turn % 2 else (half, rest)
                    first[want].add(*(f[:, :cut] for f in found))
                    if cut is not None:
                        second[want].add(*(f[:, cut:] for f in found))
            task.advance(batch.size)
    for want, gram in rest.items():
        gram.merge(half[want])
        gram.half = half[want]
    return rest


def _check(values: dict[str, Array], number: int) -> None:
    for name, value in values.items():
        # One sum tells whether to look at every element: infinities of both signs add up to NaN, too.
        if np.isnan(value.sum()) and np.isnan(value).any():
            raise InputError(
                f"value {name.removesuffix(_SHOWN)!r} becomes NaN on calibration batch {number}",
                hint="the model fails on this input; check the data's preprocessing",
            )


def _shown(name: str) -> str:
    return f"{name}{_SHOWN}"


def _showing(model: ir.Model, names: set[str]) -> ir.Model:
    """A copy whose outputs are the named values."""
    copy = graph.clone(model)
    main = copy.graph
    values = {v.name: v for v in main.inputs}
    for node in main:
        values.update({v.name: v for v in node.outputs})
    outputs = []
    for name in sorted(names):
        value = values.get(name)
        if value is None:
            raise InputError(f"the model has no value {name!r} to observe")
        node = ir.node("Identity", [value])
        node.outputs[0].name = _shown(name)
        node.outputs[0].type = ir.TensorType(value.dtype or ir.DataType.FLOAT)
        main.append(node)
        outputs.append(node.outputs[0])
    main.outputs.clear()
    main.outputs.extend(outputs)
    graph.tidy(copy)
    return copy
