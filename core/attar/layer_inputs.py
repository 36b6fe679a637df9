"""What a layer's weight is multiplied with: rows of a value, or patches of it as wide as the kernel.

For a Conv, Gemm or MatMul with constant weight the inputs of one output position are a vector x of K numbers,
in the order of the weight's own numbers, so that the layer is y = W x for each of its groups.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import onnx_ir as ir

from attar import graph

Array = np.ndarray[Any, np.dtype[Any]]
# So many vectors in all, or so many for each number of a vector, tell enough; at least so many of a sample.
_ENOUGH, _EACH, _FEW = 2048, 8, 8
# Multiply-accumulates for one layer and sample.
_WORK = 1 << 26


@dataclass(frozen=True)
class LayerInput:
    """What a weight is multiplied with. Layers that read the same value in the same way share it.

    Attributes:
        value: name of the value.
        depth: K, the numbers that one output of one group sums over.
        group: groups of a convolution; each has a matrix of its own.
        kernel: spatial size of patches; empty: rows along the last axis.
        strides, dilations: of the patches.
        pads: begins, then ends, as ONNX has them.
        auto_pad: ONNX's; where it is SAME_*, pads follow from the size.
    """

    value: str
    depth: int
    group: int = 1
    kernel: tuple[int, ...] = ()
    strides: tuple[int, ...] = ()
    pads: tuple[int, ...] = ()
    dilations: tuple[int, ...] = ()
    auto_pad: str = "NOTSET"

    @property
    def nbytes(self) -> int:
        """Size of the Gram matrices, halves included."""
        return 16 * self.group * self.depth * (self.depth + 1)


def layer_input(node: ir.Node) -> LayerInput | None:
    """What the node's constant weight is multiplied with; None where it has none or the form is another one
    (ConvTranspose, a weight on the left, transA, unknown rank)."""
    if node.domain not in ("", "ai.onnx") or len(node.inputs) < 2:
        return None
    data, weight = node.inputs[0], graph.const_array(node.inputs[1])
    if weight is None or data is None or not data.name or graph.const_array(data) is not None:
        return None
    attributes = {k: a.value for k, a in node.attributes.items()}
    if node.op_type == "MatMul" and weight.ndim == 2:
        return LayerInput(data.name, weight.shape[0])
    if node.op_type == "Gemm" and not attributes.get("transA", 0):
        return LayerInput(data.name, weight.shape[1 if attributes.get("transB", 0) else 0])
    if node.op_type == "Conv":
        axes = weight.ndim - 2
        ones = (1,) * axes
        return LayerInput(
            data.name,
            math.prod(weight.shape[1:]),
            attributes.get("group", 1),
            weight.shape[2:],
            tuple(attributes.get("strides", ones)),
            tuple(attributes.get("pads", (0,) * 2 * axes)),
            tuple(attributes.get("dilations", ones)),
            str(attributes.get("auto_pad", "NOTSET")),
        )
    return None


def rows_of(node: ir.Node, weight: Array) -> Array:
    """A weight as `[groups, outputs of a group, K]`, matching the Gram matrices of the node's input."""
    if node.op_type == "Conv":
        group = node.attributes.get("group")
        groups = group.value if group is not None else 1
        return weight.reshape(groups, weight.shape[0] // groups, -1)
    trans = node.attributes.get("transB")
    return (weight if trans is not None and trans.value else weight.T)[None]


def from_rows(node: ir.Node, rows: Array, shape: Sequence[int]) -> Array:
    """Inverse of `rows_of`: rows `[groups, outputs, K]` in the weight's own layout."""
    if node.op_type == "Conv":
        return rows.reshape(tuple(shape))
    trans = node.attributes.get("transB")
    return np.ascontiguousarray(rows[0] if trans is not None and trans.value else rows[0].T)


def positions_of(depth: int, samples: int | None) -> int:
    """How many positions of each sample to look at."""
    enough = math.ceil(max(_ENOUGH, _EACH * depth) / (samples or _FEW * 4))
    return max(_FEW, min(enough, _WORK // (depth * depth)))


def vectors(value: Array, want: LayerInput, few: int, rng: np.random.Generator) -> Array:
    """Vectors x, `[groups, n, K]`, of at most `few` positions of each sample of one batch of a value."""
    if not want.kernel:
        rows = value.reshape(-1, want.depth)
        samples = value.shape[0] if value.ndim > 2 else 1
        limit = few * max(1, samples) if value.ndim > 2 else len(rows)
        if len(rows) > limit:
            rows = rows[np.sort(rng.choice(len(rows), limit, replace=False))]
        return rows[None]
    sizes = value.shape[2:]
    pads = pads_of(want, sizes)
    axes = len(want.kernel)
    reach = [d * (k - 1) + 1 for k, d in zip(want.kernel, want.dilations, strict=True)]
    counts = [(sizes[i] + pads[i] + pads[i + axes] - reach[i]) // want.strides[i] + 1 for i in range(axes)]
    positions = math.prod(counts)
    chosen = np.arange(positions) if positions <= few else np.sort(rng.choice(positions, few, replace=False))
    # Coordinates of every tap of every chosen patch, flattened into one index of the plane.
    starts = np.stack(np.unravel_index(chosen, counts))
    taps = np.stack(np.unravel_index(np.arange(math.prod(want.kernel)), want.kernel))
    index = np.zeros((len(chosen), taps.shape[1]), np.int64)
    inside = np.ones(index.shape, np.bool_)
    for axis in range(axes):
        at = starts[axis][:, None] * want.strides[axis] + taps[axis][None] * want.dilations[axis] - pads[axis]
        inside &= (at >= 0) & (at < sizes[axis])
        index = index * sizes[axis] + np.clip(at, 0, sizes[axis] - 1)
    samples, channels = value.shape[:2]
    patches = value.reshape(samples, channels, -1)[:, :, index]  # [samples, channels, positions, taps]
    if not inside.all():
        patches *= inside
    patches = patches.reshape(samples, want.group, channels // want.group, *index.shape)
    patches = patches.transpose(1, 0, 3, 2, 4)
    return np.ascontiguousarray(patches).reshape(want.group, samples * len(chosen), want.depth)


def pads_of(want: LayerInput, sizes: Sequence[int]) -> tuple[int, ...]:
    """Padding of a convolution's input of those sizes: begins, then ends."""
    if want.auto_pad == "VALID":
        return (0,) * 2 * len(sizes)
    if not want.auto_pad.startswith("SAME"):
        return want.pads
    begins, ends = [], []
    for size, kernel, stride, dilation in zip(sizes, want.kernel, want.strides, want.dilations, strict=True):
        total = max(0, (math.ceil(size / stride) - 1) * stride + dilation * (kernel - 1) + 1 - size)
        small, large = total // 2, total - total // 2
        begins.append(small if want.auto_pad == "SAME_UPPER" else large)
        ends.append(large if want.auto_pad == "SAME_UPPER" else small)
    return (*begins, *ends)
