"""`quantize.equalize`: channels of an activation brought to one range, so that one scale serves them all."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, Any

import numpy as np
import numpy.typing as npt
import onnx_ir as ir

from attar import graph
from attar.context import Context
from attar.errors import Refused
from attar.passes import Doc, Pass, Range
from attar.statistics import Statistics
from attar_quantize.channels import Channels

Floats = npt.NDArray[np.float64]
_STRENGTHS = (0.0, 0.25, 0.5, 0.75, 1.0)
# A channel that (nearly) never speaks on the calibration data may speak on others.
_LEAST = 2.0**-8
_GAIN = 0.7
_MARGIN = 1.1
# Kernels take these along with the layer before them.
_ABSORBED = ("Relu", "Clip")


class Equalize(Pass, name="quantize.equalize"):
    """Scale channels so that they share one range, without changing what the network computes.

    A factor on a channel moves from the weights of the layers that make it to those of the layers that read
    it (cross-layer equalization, Nagel et al. 2019, arXiv:1906.04721, section 4.1). The factors come from the
    ranges of the activations on the calibration data, as in SmoothQuant (Xiao et al. 2022,
    arXiv:2211.10438), and go only as far as the predicted noise of 8-bit weights and activations falls.
    """

    requires = ("fuse.inference",)
    needs = ("calibration",)
    tolerance = 1e-4

    strength: Annotated[
        float | None,
        Range(0.0, 1.0),
        Doc("0 leaves the ranges, 1 makes them equal; unless given, what lowers the predicted noise most"),
    ] = None
    through_clip: Annotated[
        bool,
        Doc(
            "let factors pass Clip (ReLU6) on channels that stayed below its bound on the calibration data; "
            "inputs that reach further are clipped there"
        ),
    ] = False

    def apply(self, model: ir.Model, ctx: Context) -> None:
        channels = Channels(model, through_clip=self.through_clip)
        groups = _groups(channels)
        if not groups:
            raise Refused("no activation lies between layers that could take its factors")
        wanted = {v.name or "": 1 for g in groups for v in g.values}
        statistics = ctx.statistics(model, wanted)
        changed = 0
        for group in groups:
            factors = _factors(group, statistics, self.strength)
            if factors is not None:
                factors = _within_bounds(group, channels.bounds, statistics, factors)
            if factors is None:
                continue
            changed += 1
            _scale(group, factors)
        if not changed:
            raise Refused("the ranges of all channels are near enough to each other")
        ctx.note(f"channels of {changed} activations brought to a common range")


@dataclass
class _Group:
    """Values whose channels are scaled together, and the layers at both ends.

    Attributes:
        values: the values, each with its channels' positions in the factor vector; -1 is pinned.
        size: number of factors.
    """

    values: dict[ir.Value, npt.NDArray[np.int64]]
    makers: list[tuple[ir.Node, ir.Value]]
    readers: list[tuple[ir.Node, ir.Value, int]]
    size: int


def _groups(channels: Channels) -> list[_Group]:
    """Components of values that share channel sets."""
    owner: dict[int, int] = {}  # set -> component
    members: dict[int, list[ir.Value]] = {}
    for value in channels.values():
        roots = [int(r) for r in np.unique(channels.roots(value)) if r]
        if not roots:
            continue
        found = sorted({owner[r] for r in roots if r in owner})
        home = found[0] if found else roots[0]
        for other in found[1:]:
            members[home] += members.pop(other)
            owner.update({r: home for r, o in owner.items() if o == other})
        owner.update(dict.fromkeys(roots, home))
        members.setdefault(home, []).append(value)
    groups = []
    for values in members.values():
        roots_of = {v: channels.roots(v) for v in values}
        place = {r: i for i, r in enumerate(sorted({int(r) for a in roots_of.values() for r in a if r}))}
        positions = {v: np.array([place.get(int(r), -1) for r in a]) for v, a in roots_of.items()}
        makers = [m for m in channels.makers if m[1] in positions]
        readers = [r for r in channels.readers if r[1] in positions]
        if makers and readers:
            groups.append(_Group(positions, makers, readers, len(place)))
    return groups


def _factors(group: _Group, statistics: dict[str, Statistics], strength: float | None) -> Floats | None:
    """The factor of each channel set: values are divided by it, the weights that read them multiplied."""
    reach = np.zeros(group.size)
    seen: dict[ir.Value, tuple[Floats, Floats, float]] = {}
    for value, places in group.values.items():
        known = statistics[value.name or ""]
        if known.reach is None or known.power is None or not known.finite or len(known.reach) != len(places):
            return None
        sides = 1.0 if known.histogram.low >= 0 else 2.0
        seen[value] = np.asarray(known.reach, np.float64), np.asarray(known.power, np.float64), sides
        if all(use.node.op_type in _ABSORBED for use in value.uses()):
            continue  # never quantized itself
        free = places >= 0
        np.maximum.at(reach, places[free], known.reach[free])
    largest = float(reach.max(initial=0.0))
    if largest == 0.0:
        return None
    relative = np.where(reach > 0, np.maximum(reach / largest, _LEAST), 1.0)  # the dead stay as they are
    if strength is not None:
        return relative**strength if strength else None
    noise = {s: _noise(group, seen, relative**s) for s in _STRENGTHS}
    best = min(noise, key=lambda s: (noise[s], s))
    return relative**best if noise[best] < _GAIN * noise[0.0] else None


def _within_bounds(
    group: _Group, bounds: dict[ir.Value, float], statistics: dict[str, Statistics], factors: Floats
) -> Floats | None:
    """Factors with which no channel reaches the bound of a Clip that it passes; None if all are 1.

    x / s stays below the bound b where s > max x / b; a channel that reaches b itself keeps the factor 1.
    """
    least = np.zeros(group.size)
    for value, places in group.values.items():
        reach = statistics[value.name or ""].reach
        if value in bounds and reach is not None:
            free = places >= 0
            np.maximum.at(least, places[free], _MARGIN * reach[free] / bounds[value])
    kept = np.where(least >= 1.0, 1.0, np.maximum(factors, least))
    return None if np.all(kept == 1.0) else kept


def _noise(group: _Group, seen: dict[ir.Value, tuple[Floats, Floats, float]], factors: Floats) -> float:
    """Predicted noise over signal of the layers that read the group, with 8-bit weights and activations.

    With x' = x / s and W' = W s, y = W' x'. Rounding x' adds d_x^2 / 12 an element, d_x the step of the one
    scale of all channels: sum_c s_c^2 |W_c|^2 d_x^2 / 12. Rounding row o of W' adds d_o^2 / 12 a weight:
    sum_c E[x_c^2] / s_c^2 d_o^2 / 12, d_o = max_c |W_oc s_c| / 127. The signal is sum_c |W_c|^2 E[x_c^2].
    """
    total = 0.0
    for node, value, _ in group.readers:
        reach, power, sides = seen[value]
        weight = _by_channel(node, len(reach))
        if weight is None:
            continue
        s = _taken(factors, group.values[value])
        step = sides * float((reach / s).max(initial=0.0)) / 255
        energy = (weight**2).sum(axis=(0, 2))  # of each input channel, over outputs and taps
        signal = float((energy * power).sum())
        if signal <= 0.0:
            continue
        rows = np.abs(weight * s[None, :, None]).max(axis=(1, 2)) / 127
        taps = (weight != 0).sum(axis=2)  # [outputs, channels]
        by_weight = float((rows[:, None] ** 2 * taps * (power / s**2)[None, :]).sum())
        total += (step**2 * float((energy * s**2).sum()) + by_weight) / signal
    return total


def _taken(factors: Floats, places: npt.NDArray[np.int64]) -> Floats:
    return np.where(places >= 0, factors[np.maximum(places, 0)], 1.0)


def _by_channel(node: ir.Node, channels: int) -> Floats | None:
    """A layer's weight as [outputs, input channels, taps]; grouped ones are spread, with zeros between."""
    array = graph.const_array(node.inputs[1])
    assert array is not None
    weight = np.asarray(array, np.float64)
    if node.op_type == "Gemm":
        trans = node.attributes.get("transB")
        weight = weight if trans is not None and trans.value else weight.T
        return weight[:, :, None] if weight.shape[1] == channels else None
    weight = weight.reshape(*weight.shape[:2], -1)
    groups = channels // max(1, weight.shape[1])
    if groups == 1:
        return weight
    outputs = weight.shape[0] // groups
    if outputs * weight.shape[1] == 1:  # depthwise: each row has one channel, whatever its number
        spread = np.zeros((1, channels, weight.shape[2]))
        spread[0] = weight[:, 0]
        return spread
    spread = np.zeros((weight.shape[0], channels, weight.shape[2]))
    for g in range(groups):
        rows, columns = (
            slice(g * outputs, (g + 1) * outputs),
            slice(g * weight.shape[1], (g + 1) * weight.shape[1]),
        )
        spread[rows, columns] = weight[rows]
    return spread


def _scale(group: _Group, factors: Floats) -> None:
    for node, value in group.makers:
        s = _taken(factors, group.values[value])
        for index in (1, 2):
            if index < len(node.inputs) and node.inputs[index] is not None:
                _multiply(node, index, 1 / s, output=True)
    for node, value, _ in group.readers:
        _multiply(node, 1, _taken(factors, group.values[value]), output=False)


def _multiply(node: ir.Node, index: int, factor: Floats, *, output: bool) -> None:
    """Multiply a weight or bias along its output or input channels."""
    value = node.inputs[index]
    assert value is not None
    array: Any = graph.const_array(value)
    wide = np.asarray(array, np.float64)
    if index == 2:
        wide = np.broadcast_to(wide.reshape(-1), factor.shape) * factor if wide.ndim <= 1 else wide * factor
    elif node.op_type == "Gemm":
        trans = node.attributes.get("transB")
        first = bool(trans is not None and trans.value) == output
        wide = wide * (factor[:, None] if first else factor[None, :])
    elif output:
        wide = wide * factor.reshape(-1, *[1] * (wide.ndim - 1))
    else:
        groups = len(factor) // wide.shape[1]
        rows = np.repeat(factor.reshape(groups, -1), wide.shape[0] // groups, axis=0)
        wide = wide * rows.reshape(*rows.shape, *[1] * (wide.ndim - 2))
    graph.replace_weight(value, np.ascontiguousarray(wide, array.dtype))
