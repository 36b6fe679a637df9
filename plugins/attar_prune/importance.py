"""How much the network would miss a unit: importances by name.

An importance is a function `(groups, model, ctx) -> [scores of the units of each group]`; higher is more
important. Scores of different groups are compared when channels are ranked over the whole network, so those
that depend on the scale of a layer's weights are divided by the mean of their group.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt
import onnx_ir as ir

from attar import graph, solve
from attar.context import Context
from attar.gram import Gram, LayerInput, collect, layer_input, rows_of, sweeps
from attar_prune.groups import Group, Part, Use
from attar_prune.refit import DENSITY

if TYPE_CHECKING:
    from attar.calibration import Batch, Data

Floats = npt.NDArray[np.float64]
Importance = Callable[[Sequence[Group], ir.Model, Context], list[Floats]]
# So many times the costs of a group's units are computed anew while units go.
_TURNS = 32
_MATRICES = frozenset({"Conv", "ConvTranspose", "Gemm", "MatMul", "Einsum", "LSTM", "GRU", "RNN", "Gather"})


def l1(groups: Sequence[Group], model: ir.Model, ctx: Context) -> list[Floats]:
    """Sum of the magnitudes of the weights that make a unit (Li et al. 2017, arXiv:1608.08710)."""
    return [_relative(_by_rows(g, lambda rows: np.abs(rows).sum(axis=1))) for g in groups]


def l2(groups: Sequence[Group], model: ir.Model, ctx: Context) -> list[Floats]:
    """Euclidean norm of the weights that make a unit."""
    return [_relative(np.sqrt(_by_rows(g, lambda rows: (rows**2).sum(axis=1)))) for g in groups]


def bn(groups: Sequence[Group], model: ir.Model, ctx: Context) -> list[Floats]:
    """Magnitude of the BatchNormalization scales (Liu et al. 2017, arXiv:1708.06519); l1 where there are
    none."""
    found = []
    for group in groups:
        scores = np.zeros(group.size)
        for use in group.makers():
            if use.node.op_type == "BatchNormalization" and use.input == 1:
                np.add.at(scores, use.part.units, np.abs(_rows(use.part))[:, 0])
        found.append(_relative(scores) if scores.any() else l1([group], model, ctx)[0])
    return found


def geometric_median(groups: Sequence[Group], model: ir.Model, ctx: Context) -> list[Floats]:
    """Distance of a unit's weights to those of the others: the most replaceable go first (He et al. 2019,
    arXiv:1811.00250)."""

    def distances(rows: Floats) -> Floats:
        squares = (rows**2).sum(axis=1)
        between = squares[:, None] + squares[None] - 2 * rows @ rows.T
        return np.asarray(np.sqrt(np.maximum(between, 0)).sum(axis=1))

    return [_relative(_by_rows(g, distances)) for g in groups]


def activation(groups: Sequence[Group], model: ir.Model, ctx: Context) -> list[Floats]:
    """Root mean square of what arrives at the readers of a unit, on the calibration data."""
    wanted: dict[str, int] = {}
    places: list[list[tuple[str, Part]]] = []
    for group in groups:
        read = {use.node.inputs[0] for use in group.readers()}
        made = {out for use in group.makers() if use.node.op_type in _MATRICES for out in use.node.outputs}
        mine = [
            (p.value.name or "", p) for p in group.parts if p.value in (read or made) and p.value.producer()
        ]
        mine = [pair for pair in mine if wanted.setdefault(pair[0], pair[1].axis) == pair[1].axis]
        places.append(mine)
    statistics = ctx.statistics(model, wanted)
    found = []
    for group, mine in zip(groups, places, strict=True):
        scores = np.zeros(group.size)
        for name, part in mine:
            power = statistics[name].power
            if power is not None and len(power) > int(part.places.max()):
                np.add.at(scores, part.units, power[part.places])
        found.append(_relative(np.sqrt(scores)) if scores.any() else l1([group], model, ctx)[0])
    return found


def random(groups: Sequence[Group], model: ir.Model, ctx: Context) -> list[Floats]:
    """Uniform: what any other importance has to beat."""
    return [ctx.rng("prune.channels", g.name).random(g.size) for g in groups]


def gram(groups: Sequence[Group], model: ir.Model, ctx: Context) -> list[Floats]:
    """Error that the readers of a unit are left with after their other weights have done what they can.

    With H the Gram matrix of a reader's inputs and S the columns of the unit, removing S and refitting the
    rest costs tr(W_S (H^-1_SS)^-1 W_S^T) (the Optimal Brain Surgeon of a block; Hassibi & Stork 1993). Units
    go one after the other, with H^-1 and W brought up to date, and the score is the cost at that point as a
    share of the reader's signal. Needs calibration data.
    """
    wanted: dict[LayerInput, list[tuple[int, Use]]] = {}
    for number, group in enumerate(groups):
        for use in group.readers():
            item = layer_input(use.node) if use.input == 1 else None
            counts = np.bincount(use.part.units, minlength=group.size)
            if item is not None and item.group == 1 and (counts == counts[0]).all():
                wanted.setdefault(item, []).append((number, use))
    kept: dict[int, list[_Reader]] = {}
    for portion in sweeps(wanted):
        data: Any = Dense(ctx.calibration)
        grams = collect(model, portion, data, ctx.runtime, threads=ctx.threads, seed=ctx.seed)
        for item, found in grams.items():
            for number, use in wanted[item]:
                kept.setdefault(number, []).append(_Reader(use, found))
    plain = l2(groups, model, ctx)
    return [_eliminated(g, kept[k]) if k in kept else plain[k] for k, g in enumerate(groups)]


BUILTIN: Mapping[str, Importance] = {
    "l1": l1,
    "l2": l2,
    "bn": bn,
    "geometric_median": geometric_median,
    "activation": activation,
    "gram": gram,
    "random": random,
}


class Dense:
    """Calibration data that is looked at in more positions."""

    def __init__(self, data: Data, factor: int = DENSITY) -> None:
        self._data, self._factor = data, factor
        self.specs = data.specs

    def __iter__(self) -> Iterator[Batch]:
        return iter(self._data)

    def count(self) -> int | None:
        """Pretends to have fewer samples, each of which must then tell more."""
        count = self._data.count()
        return None if count is None else max(1, count // self._factor)


class _Reader:
    """One layer that reads a group: weights [outputs, K], inverse Gram matrix, the columns of each unit."""

    def __init__(self, use: Use, found: Gram) -> None:
        array: Any = graph.const_array(use.node.inputs[1])
        self.weight = rows_of(use.node, np.asarray(array, np.float64))[0].copy()
        h = solve.damped(found.covariance[0], 1e-3)
        self.signal = max(float(np.einsum("ok,ok->", self.weight @ h, self.weight)), 1e-30)
        self.inverse = np.linalg.inv(h)
        taps = self.weight.shape[1] // max(1, array.shape[use.part.axis])
        columns = use.part.places[:, None] * taps + np.arange(taps)
        order = np.argsort(use.part.units, kind="stable")
        self.columns = columns[order].reshape(int(use.part.units.max()) + 1, -1)

    def costs(self, units: npt.NDArray[np.int64]) -> Floats:
        """What each of these units would cost if it were the next to go, as a share of the signal."""
        s = self.columns[units]  # [units, columns of each]
        if s.shape[1] == 1:
            power: Any = np.einsum("ok,ok->k", self.weight, self.weight)[s[:, 0]]
            return np.asarray(power / np.diagonal(self.inverse)[s[:, 0]] / self.signal)
        blocks = self.inverse[s[:, :, None], s[:, None, :]]
        w = self.weight.T[s]  # [units, columns, outputs]
        second = w @ np.swapaxes(w, 1, 2)  # tr(w^T B^-1 w) = tr(B^-1 w w^T)
        return np.asarray(np.einsum("ukk->u", np.linalg.solve(blocks, second))) / self.signal

    def drop(self, units: npt.NDArray[np.int64]) -> None:
        s = self.columns[units].reshape(-1)
        ratio = np.linalg.solve(self.inverse[np.ix_(s, s)], self.inverse[s])  # [S, K]
        self.weight -= self.weight[:, s] @ ratio
        self.inverse -= self.inverse[:, s] @ ratio
        self.inverse[s, s] = 1.0  # out of the game: its weights are zero, so it costs nothing more
        self.weight[:, s] = 0.0


def _eliminated(group: Group, readers: list[_Reader]) -> Floats:
    """Scores in the order in which units go, a few at a time: the costs of the others are brought up to date
    between."""
    left = np.arange(group.size)
    now: Floats = np.sum([r.costs(left) for r in readers], axis=0)
    scores: Floats = now.copy()
    reached = 0.0
    at_once = max(1, math.ceil(group.size / _TURNS))
    while len(left) > at_once:
        first = np.argsort(now, kind="stable")[:at_once]
        scores[left[first]] = np.maximum.accumulate(np.maximum(now[first], reached))
        reached = float(scores[left[first[-1]]])
        for reader in readers:
            reader.drop(left[first])
        left = np.delete(left, first)
        now = np.sum([r.costs(left) for r in readers], axis=0)
    scores[left] = np.maximum(now, reached)
    return scores


def _relative(scores: Floats) -> Floats:
    mean = scores.mean()
    return scores / mean if mean > 0 else scores


def _rows(part: Part) -> Floats:
    """The slices of a weight at the places of a part, `[places, numbers]`, float64."""
    array: Any = graph.const_array(part.value)
    rows = np.moveaxis(np.asarray(array, np.float64), part.axis, 0)[part.places]
    return rows.reshape(len(part.places), -1)


def _by_rows(group: Group, judge: Callable[[Floats], Floats]) -> Floats:
    """Scores of the weights that make the units, added up over all makers."""
    scores = np.zeros(group.size)
    seen = set()
    for use in group.makers():
        part = use.part
        if (
            use.node.op_type in _MATRICES
            and len(part.value.shape or ()) > 1
            and (part.value, part.axis) not in seen
        ):
            seen.add((part.value, part.axis))
            np.add.at(scores, part.units, judge(_rows(part)))
    return scores
