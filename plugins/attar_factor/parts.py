"""The layers that stand in for one: their shapes, attributes and costs, by method and rank."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from attar.costs import CostTable
from attar_factor.layers import Layer

Rank = tuple[int, ...]
METHODS = ("svd", "spatial", "tucker", "cp", "separable")


@dataclass(frozen=True)
class Part:
    """One thin layer.

    Attributes:
        name: what is appended to the name of the original.
        shape: of its weight: `[outputs, inputs of a group, *kernel]`, of matrices `[outputs, inputs]`.
        attributes: of a convolution.
        before, after: batch and spatial sizes in a typical run (of matrices the number of rows), one of each
            node.
    """

    name: str
    shape: tuple[int, ...]
    attributes: Mapping[str, Any]
    before: tuple[tuple[int, ...], ...]
    after: tuple[tuple[int, ...], ...]
    operator: str

    @property
    def group(self) -> int:
        return int(self.attributes.get("group", 1))

    @property
    def parameters(self) -> int:
        return math.prod(self.shape)

    @property
    def macs(self) -> int:
        return self.parameters * sum(math.prod(size) for size in self.after)

    @property
    def kind(self) -> str:
        """Its class in the cost table."""
        if self.operator == "Conv":
            if self.group > 1:
                return "conv.depthwise" if self.shape[1] == 1 else "conv.grouped"
            if self.shape[1] < 4:
                return "conv.thin"
            return "conv.pointwise" if math.prod(self.shape[2:]) == 1 else "conv.spatial"
        rows = math.prod(self.after[0])
        return f"{self.operator.lower()}.{'rows' if rows >= 16 else 'row'}"

    def microseconds(self, costs: CostTable) -> float | None:
        """Estimated time of all nodes that share the weight; None if the table does not know the class."""
        total = 0.0
        for before, after in zip(self.before, self.after, strict=True):
            read = math.prod(before) * self.shape[1] * self.group
            written = math.prod(after) * self.shape[0]
            macs = self.parameters * math.prod(after)
            one = costs.estimate(self.kind, "float", macs=macs, elements=read + written)
            if one is None:
                return None
            total += one
        return total


def whole(layer: Layer) -> Part:
    """The layer as it is."""
    before, after = _sizes(layer)
    groups, outputs, depth = layer.rows.shape
    if not layer.is_conv:
        return Part("", (outputs, depth), {}, before, after, layer.node.op_type)
    shape = (groups * outputs, layer.channels, *layer.kernel)
    return Part("", shape, _attributes(layer), before, after, "Conv")


def parts(layer: Layer, method: str, rank: Rank) -> tuple[Part, ...]:
    """The layers that `method` writes in place of `layer`; where a mode keeps its full rank in Tucker-2, core
    and last layer are one."""
    before, after = _sizes(layer)
    groups, outputs, depth = layer.rows.shape
    operator = layer.node.op_type
    if not layer.is_conv:
        (r,) = rank
        return (
            Part("first", (r, depth), {}, before, after, operator),
            Part("second", (outputs, r), {}, before, after, operator),
        )
    axes, whole_attributes, channels = len(layer.kernel), _attributes(layer), layer.channels
    point = _conv([1] * axes)
    ones = (1,) * axes
    if method == "svd":
        (r,) = rank
        return (
            Part("first", (groups * r, channels, *layer.kernel), whole_attributes, before, after, operator),
            Part("second", (groups * outputs, r, *ones), {**point, "group": groups}, after, after, operator),
        )
    if method == "spatial":
        (r,) = rank
        k, width = layer.kernel
        between = tuple((*b[:1], *a[1:2], *b[2:]) for b, a in zip(before, after, strict=True))
        return (
            Part("first", (r, channels, k, 1), _along(layer, 0), before, between, operator),
            Part("second", (outputs, r, 1, width), _along(layer, 1), between, after, operator),
        )
    if method == "tucker":
        inner, outer = rank
        first = Part("first", (inner, channels, *ones), point, before, before, operator)
        if outer >= outputs:
            shape = (outputs, inner, *layer.kernel)
            return first, Part("second", shape, whole_attributes, before, after, operator)
        return (
            first,
            Part("core", (outer, inner, *layer.kernel), whole_attributes, before, after, operator),
            Part("last", (outputs, outer, *ones), point, after, after, operator),
        )
    if method == "cp":
        (r,) = rank
        by_channel = {**whole_attributes, "group": r}
        return (
            Part("first", (r, channels, *ones), point, before, before, operator),
            Part("depthwise", (r, 1, *layer.kernel), by_channel, before, after, operator),
            Part("last", (outputs, r, *ones), point, after, after, operator),
        )
    (multiplier,) = rank
    wide = channels * multiplier
    return (
        Part(
            "depthwise",
            (wide, 1, *layer.kernel),
            {**whole_attributes, "group": channels},
            before,
            after,
            operator,
        ),
        Part("pointwise", (outputs, wide, *ones), point, after, after, operator),
    )


def cost_of(chain: Sequence[Part], of: str, costs: CostTable) -> float | None:
    """What the layers cost: parameters, multiply-accumulates, or estimated microseconds."""
    if of == "parameters":
        return float(sum(part.parameters for part in chain))
    if of == "macs":
        return float(sum(part.macs for part in chain))
    times = [part.microseconds(costs) for part in chain]
    return None if None in times else float(sum(t for t in times if t is not None))


def _sizes(layer: Layer) -> tuple[tuple[tuple[int, ...], ...], tuple[tuple[int, ...], ...]]:
    return tuple(b for b, _ in layer.sizes), tuple(a for _, a in layer.sizes)


def _attributes(layer: Layer) -> dict[str, Any]:
    want = layer.wants[0]
    found: dict[str, Any] = {
        "kernel_shape": list(want.kernel),
        "strides": list(want.strides),
        "dilations": list(want.dilations),
        "group": want.group,
    }
    if want.auto_pad in ("NOTSET", ""):
        found["pads"] = list(want.pads)
    else:
        found["auto_pad"] = want.auto_pad
    return found


def _conv(kernel: list[int]) -> dict[str, Any]:
    axes = len(kernel)
    return {
        "kernel_shape": kernel,
        "strides": [1] * axes,
        "dilations": [1] * axes,
        "pads": [0] * 2 * axes,
        "group": 1,
    }


def _along(layer: Layer, axis: int) -> dict[str, Any]:
    """Attributes of the part of a 2d convolution that runs along one axis."""
    full = _attributes(layer)
    found = _conv([k if i == axis else 1 for i, k in enumerate(layer.kernel)])
    for key in ("strides", "dilations"):
        found[key][axis] = full[key][axis]
    if "auto_pad" in full:
        del found["pads"]
        found["auto_pad"] = full["auto_pad"]
    else:
        found["pads"] = [p if i % 2 == axis else 0 for i, p in enumerate(full["pads"])]
    return found
