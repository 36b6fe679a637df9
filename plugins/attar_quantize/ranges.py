"""From a plan to the scale and zero point of every activation."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass

import numpy as np
import onnx_ir as ir

from attar import graph
from attar.errors import Refused
from attar.histogram import Histogram
from attar.statistics import Statistics
from attar_quantize.observers import Observer, minmax
from attar_quantize.scheme import QParams, QType, params_of_range
from attar_quantize.units import Plan, Unit

# Inputs of a Concat share one scale when none of them loses more than this factor of its resolution: the
# integers are then copied instead of rescaled.
_SHARED_CONCAT = 1.2


@dataclass(frozen=True)
class Values:
    """The activations that a plan quantizes, in groups that share scale and zero point.

    Attributes:
        group_of: value -> representative of its group.
        observed: the values whose statistics are needed: those that integer kernels do not merely move.
    """

    group_of: Mapping[ir.Value, ir.Value]
    observed: tuple[ir.Value, ...]


def quantized_values(plan: Plan) -> Values:
    """Collect the values that pass through QuantizeLinear, joining what movers (MaxPool, Reshape...) must
    not rescale."""
    parent: dict[ir.Value, ir.Value] = {}

    def find(value: ir.Value) -> ir.Value:
        parent.setdefault(value, value)
        while parent[value] is not value:
            parent[value] = parent[parent[value]]
            value = parent[value]
        return value

    moved: set[ir.Value] = set()
    for unit in plan.units:
        if unit not in plan.integer:
            continue
        for value in unit.inputs:
            find(value)
        if unit.rule is not None and unit.rule.role == "move":
            for output in unit.outputs:
                parent[find(output)] = find(unit.inputs[0])
                moved.add(output)
        else:
            for output in unit.outputs:
                if needs_codes(output, unit, plan):
                    find(output)
    group_of = {v: find(v) for v in parent}
    observed = tuple(v for v in parent if v not in moved and graph.const_array(v) is None)
    return Values(group_of, observed)


def mean_axes(plan: Plan) -> dict[ir.Value, int]:
    """Input -> channel axis, of the integer units whose biases can be corrected by the mean of their input.

    A value that is read along different axes is left out: one mean cannot serve both.
    """
    axes: dict[ir.Value, set[int]] = {}
    for unit in plan.integer:
        if unit.weight is not None and (unit.main.op_type != "MatMul" or unit.bias is not None):
            axes.setdefault(unit.inputs[0], set()).add(1 if unit.main.op_type == "Conv" else -1)
    return {value: next(iter(found)) for value, found in axes.items() if len(found) == 1}


def needs_codes(value: ir.Value, unit: Unit, plan: Plan) -> bool:
    """Whether an integer unit's output must be written as integers: another one reads it, or the kernel
    cannot do else."""
    if unit.rule is not None and not unit.rule.float_output:
        return True
    readers = {user for user, _ in value.uses()}
    return any(readers & {u.main} and value in u.inputs for u in plan.integer)


def activation_params(
    plan: Plan,
    values: Values,
    statistics: Mapping[str, Statistics],
    observer: Observer,
    types: Mapping[ir.Value, QType],
) -> dict[ir.Value, QParams]:
    """Scale and zero point of every quantized activation.

    Args:
        types: of every value of `values`; equal in a group.

    Raises:
        Refused: a value has no finite range.
    """
    ranges: dict[ir.Value, tuple[float, float]] = {}
    for value in values.group_of:
        array = graph.const_array(value)
        if array is not None:
            ranges[value] = (float(array.min(initial=0)), float(array.max(initial=0)))
        elif value.name in statistics:
            histogram, qtype = statistics[value.name].histogram, types[value]
            # Floats have fine steps where values are small: there is nothing to win by clipping.
            choose = minmax if qtype.format else observer
            low, high = choose(histogram, 256 if qtype.format else qtype.qmax - qtype.qmin + 1)
            if not low <= high:
                raise Refused(f"value {value.name!r} was never seen on the calibration data")
            ranges[value] = (low, high)
    groups: dict[ir.Value, tuple[float, float]] = {}
    for value, root in values.group_of.items():
        if value in ranges:
            groups[root] = _union([ranges[value], *([groups[root]] if root in groups else [])])
    for unit in plan.units:
        if unit in plan.integer and unit.main.op_type == "Concat":
            _share(unit, values, groups)
    made = {v: params_of_range(*groups[root], types[v]) for v, root in values.group_of.items()}
    halved = _halved(values, statistics, made)
    return {v: halved.get(root, made[v]) for v, root in values.group_of.items()}


def _halved(
    values: Values, statistics: Mapping[str, Statistics], made: Mapping[ir.Value, QParams]
) -> dict[ir.Value, QParams]:
    """Parameters of groups whose scale, rounded up to a power of two, is better rounded down: half the steps
    for what is clipped. Both are tried on the histograms."""
    seen: dict[ir.Value, list[Histogram]] = {}
    for value, root in values.group_of.items():
        if value.name in statistics and made[value].qtype.power_of_two and not made[value].qtype.format:
            seen.setdefault(root, []).append(statistics[value.name].histogram)
    found = {}
    for root, histograms in seen.items():
        params = next(made[v] for v, r in values.group_of.items() if r is root)
        low = min(0.0, *(h.low for h in histograms))
        high = max(0.0, *(h.high for h in histograms))
        tried = [params, *_half_scales(params, low, high)]
        found[root] = min(tried, key=lambda p: sum(_expected(h, p) for h in histograms))
    return found


def _half_scales(params: QParams, low: float, high: float) -> list[QParams]:
    """The same codes for half the range: cut at both ends alike, at the upper one, or at the lower one."""
    qtype, scale = params.qtype, (params.scale / 2).astype(np.float32)
    zeros = [int(params.zero_point)]
    if not qtype.symmetric:
        zeros += [round(qtype.qmin - low / float(scale)), round(qtype.qmax - high / float(scale))]
    ended = [min(max(z, qtype.qmin), qtype.qmax) for z in zeros]
    return [
        QParams(qtype, scale, np.asarray(z, params.zero_point.dtype), params.axis)
        for z in dict.fromkeys(ended)
    ]


def _expected(histogram: Histogram, params: QParams) -> float:
    """Mean squared error of what the histogram holds, per element: s^2 / 12 inside, the distance outside."""
    x, n = histogram.centers(), histogram.counts
    scale = float(params.scale)
    beyond = np.maximum(x - params.high, 0.0) + np.maximum(params.low - x, 0.0)
    inside = float(n[(beyond == 0.0) & (x != 0.0)].sum())
    return (inside * scale * scale / 12 + float(n @ (beyond * beyond))) / max(1.0, float(n.sum()))


def _share(unit: Unit, values: Values, groups: dict[ir.Value, tuple[float, float]]) -> None:
    roots = {values.group_of[v] for v in (*unit.inputs, unit.output)}
    union = _union([groups[r] for r in roots])
    widths = [groups[r][1] - groups[r][0] for r in roots]
    if min(widths) * _SHARED_CONCAT >= union[1] - union[0]:
        for root in roots:
            groups[root] = union


def _union(ranges: Iterable[tuple[float, float]]) -> tuple[float, float]:
    pairs = list(ranges)
    return min(low for low, _ in pairs), max(high for _, high in pairs)
