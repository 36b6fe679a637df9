"""`quantize.outliers`: a few channels far larger than the others, kept out of an activation's one scale."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Annotated, Literal

import numpy as np
import onnx_ir as ir

from attar import graph
from attar.context import Context
from attar.errors import Refused
from attar.passes import Doc, Pass, Range
from attar.statistics import Statistics
from attar_quantize.linear import is_linear, is_transposed
from attar_quantize.outlier_forms import MARK, beside, split
from attar_quantize.scheme import Array, QType, weight_params
from attar_quantize.units import Shapes, shape_of, size_of

# A form that comes so near to the least noise is as good, and the cheaper one is taken.
_NEAR = 2.0
# Splitting a channel into more copies than this is no bargain in any table.
_MOST_COPIES = 64


class Outliers(Pass, name="quantize.outliers"):
    """Handle outlier channels where nothing can be moved into the layer before.

    Some activations have a few channels whose values are tens of times larger than all others; one scale then
    leaves few codes to the rest. `quantize.smooth` divides such channels in the layer before, which it cannot
    where others read the value too, as residual sums do. Here only what linear layers read changes, in one of
    two forms, chosen by predicted noise and the target's costs:

    - float: the outlier channels go through a thin MatMul of their own, in float, and the others through the
      integer kernel (Dettmers et al. 2022, "LLM.int8()", arXiv:2208.07339);
    - split: an outlier channel becomes 2^k copies of its 2^k-th part, with the weights that read it (Zhao et
      al. 2019, "Improving neural network quantization without retraining using outlier channel splitting",
      arXiv:1901.09504). Its own step stays what it was, that of the others becomes finer.

    In float the network computes what it did, up to the order of sums.
    """

    requires = ("fuse.inference",)
    needs = ("calibration",)
    tolerance = 1e-4

    form: Annotated[
        Literal["auto", "float", "split"], Doc("how outliers are handled; auto: what is cheaper and as good")
    ] = "auto"
    most: Annotated[float, Range(0.0, 0.5, open_low=True), Doc("largest share of outlier channels")] = 0.0625
    gain: Annotated[
        float, Range(0.0, 60.0), Doc("decibels by which the predicted noise of a layer must fall at least")
    ] = 6.0

    def apply(self, model: ir.Model, ctx: Context) -> None:
        values = [*model.graph.inputs, *(v for n in model.graph for v in n.outputs)]
        found = {v: users for v in values if (users := readers_of(v))}
        if not found:
            raise Refused("no activation is read by a MatMul or Gemm with constant weights")
        shapes = ctx.shapes(model)
        statistics = ctx.statistics(model, {v.name or "": -1 for v in found})
        changed = 0
        for value, users in found.items():
            chosen = self._chosen(value, users, statistics[value.name or ""], shapes, ctx)
            if chosen is None:
                continue
            changed += 1
            if chosen.copies is None:
                beside(model.graph, value, users, chosen.channels)
            else:
                split(model.graph, value, users, chosen.channels, chosen.copies)
            ctx.note(f"{value.name}: {chosen}")
        model.graph.sort()
        if not changed:
            raise Refused(
                "no outlier channels: handling the largest lowers no layer's predicted noise by "
                f"{self.gain:g} dB at a cost that integers make good"
            )

    def _chosen(
        self, value: ir.Value, users: tuple[ir.Node, ...], seen: Statistics, shapes: Shapes, ctx: Context
    ) -> Handling | None:
        """How to handle the outliers of an activation, None where nothing is gained."""
        if not seen.finite or seen.reach is None or seen.power is None:
            return None
        weights = [_matrix(user) for user in users]
        reach, power = seen.reach.astype(np.float64), seen.power
        if len(reach) != len(weights[0]) or not reach.max(initial=0.0) > 0:
            return None
        order = np.argsort(-reach, kind="stable")
        base = _rounding_noise(weights, power)
        squares = np.sum([(w * w).sum(axis=1) for w in weights], axis=0)
        plain = base + _noise(reach, squares)
        rows = size_of(value, shapes) // max(1, shape_of(value, shapes)[-1])
        tried = []
        for count in _counts(int(self.most * len(reach))):
            channels = np.sort(order[:count])
            kept = np.ones(len(reach), np.bool_)
            kept[channels] = False
            if self.form in ("auto", "float"):
                noise = base + _noise(reach[kept], squares[kept])
                tried.append(Handling(channels, None, noise / plain, _time_beside(ctx, rows, weights, count)))
            rest = float(reach[kept].max(initial=0.0))
            if self.form in ("auto", "split") and rest > 0:
                copies = np.exp2(np.ceil(np.log2(np.maximum(reach[channels] / rest, 1.0)))).astype(np.int64)
                if copies.max() > _MOST_COPIES:
                    continue
                parts = np.ones(len(reach))
                parts[channels] = copies
                # All copies are off by the same, so that the step of the whole is as it was.
                noise = base + _noise(reach / parts, squares * parts**2)
                more = int((copies - 1).sum())
                tried.append(Handling(channels, copies, noise / plain, _time_split(ctx, rows, weights, more)))
        worth = [
            t for t in tried if t.noise <= 10 ** (-self.gain / 10) and t.time < _saved(ctx, rows, weights)
        ]
        if not worth:
            return None
        least = min(t.noise for t in worth)
        return min((t for t in worth if t.noise <= _NEAR * least), key=lambda t: (t.time, t.noise))


@dataclass(frozen=True, eq=False)
class Handling:
    """One way of handling an activation's outliers.

    Attributes:
        channels: indices of the outliers, rising.
        copies: 2^k of each, or None for a MatMul beside.
        noise: predicted, of the layers that read it, relative to no handling.
        time: microseconds that it adds to a run.
    """

    channels: Array
    copies: Array | None
    noise: float
    time: float

    def __str__(self) -> str:
        how = "in a float MatMul beside" if self.copies is None else f"split into {int(self.copies.sum())}"
        return f"{len(self.channels)} outlier channels {how}, noise {10 * math.log10(self.noise):.1f} dB"


def readers_of(value: ir.Value) -> tuple[ir.Node, ...]:
    """The MatMul and Gemm nodes that multiply the value with a constant matrix."""
    size = value.shape[-1] if value.shape is not None and len(value.shape) > 1 else None
    if not isinstance(size, int) or value.dtype != ir.DataType.FLOAT or graph.const_array(value) is not None:
        return ()
    producer = value.producer()
    if producer is not None and MARK in producer.metadata_props:
        return ()
    here = None if producer is None else producer.graph
    users = (u for u, at in value.uses() if at == 0 and (here is None or u.graph is here))
    users = (u for u in users if is_linear(u) and MARK not in u.metadata_props)
    return tuple(dict.fromkeys(users))


def _matrix(node: ir.Node) -> Array:
    """A reader's weight, `[channels, outputs]`, float64."""
    array = graph.const_array(node.inputs[1])
    assert array is not None
    return (array.T if is_transposed(node) else array).astype(np.float64)


def _counts(most: int) -> list[int]:
    """1, 2, 4 ... up to `most`."""
    return [1 << k for k in range(max(0, most).bit_length())]


def _noise(reach: Array, squares: Array) -> float:
    """Of 8-bit activations in the outputs: s^2 / 12 |w|^2, summed, with s from the largest magnitude."""
    step = float(reach.max(initial=0.0)) / 127.5
    return step * step / 12 * float(squares.sum())


def _rounding_noise(weights: list[Array], power: Array) -> float:
    """Of 8-bit weights in the outputs: E[x^2] (w - w')^2, summed."""
    qtype = QType(signed=True, symmetric=True, narrow=True)
    total = 0.0
    for weight in weights:
        params = weight_params(weight, qtype, 1)
        total += float((power[:, None] * (params.dequantize(params.quantize(weight)) - weight) ** 2).sum())
    return max(total, np.finfo(np.float64).tiny)


# -- costs ---------------------------------------------------------------------------------------------------


def _matmul(ctx: Context, kind: str, rows: int, depth: int, width: int) -> float:
    name = "matmul.rows" if rows >= 16 else "matmul.row"
    elements = rows * (depth + width)
    return ctx.target.costs.estimate(name, kind, macs=rows * depth * width, elements=elements) or 0.0


def _passing(ctx: Context, elements: int) -> float:
    """Reading and writing floats once."""
    return ctx.target.costs.estimate("add", "float", elements=elements) or 0.0


def _time_beside(ctx: Context, rows: int, weights: list[Array], count: int) -> float:
    depth = len(weights[0])
    thin = sum(
        _matmul(ctx, "float", rows, count, w.shape[1]) + _passing(ctx, 3 * rows * w.shape[1]) for w in weights
    )
    return thin + _passing(ctx, 2 * rows * depth) + _passing(ctx, 2 * rows * count)


def _time_split(ctx: Context, rows: int, weights: list[Array], more: int) -> float:
    depth = len(weights[0])
    longer = sum(
        _matmul(ctx, "int8", rows, depth + more, w.shape[1]) - _matmul(ctx, "int8", rows, depth, w.shape[1])
        for w in weights
    )
    return longer + 2 * _passing(ctx, 2 * rows * (depth + more))


def _saved(ctx: Context, rows: int, weights: list[Array]) -> float:
    """What integers save: handling outliers may not cost more, else float would be the better choice."""
    gains = (_matmul(ctx, "float", rows, *w.shape) - _matmul(ctx, "int8", rows, *w.shape) for w in weights)
    return math.inf if ctx.probing or ctx.target.elsewhere else sum(gains)
