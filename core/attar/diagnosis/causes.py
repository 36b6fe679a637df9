"""What makes a layer lose more than others when it is quantized, read off its weights and its input."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import onnx_ir as ir

from attar import graph
from attar.rewrite.edit import at, int_of
from attar.statistics import Statistics

Array = np.ndarray[Any, np.dtype[Any]]
_CLIPPED = 1e-3
_OUTLIER = 4.0
_IMBALANCE = 16.0
_INT32 = 2**31 - 1


@dataclass(frozen=True)
class Cause:
    """One finding.

    Attributes:
        kind: "saturation" (of codes), "16-bit saturation" (of sums), "range outlier", "channel imbalance",
            "weight imbalance", "dead channels", "bias overflow" or "rounding".
        text: what was seen, with figures.
        remedy: what to try.
    """

    kind: str
    text: str
    remedy: str


@dataclass(frozen=True)
class Quantized:
    """The codes of one layer as the quantized model has them.

    Attributes:
        low, high: range of the input's codes, in real numbers; None where the input is not quantized.
        scales: of the weight; one, or one an output channel.
        bias: int32 codes, None without one.
    """

    low: float | None
    high: float | None
    scales: Array | None
    bias: Array | None


def find_causes(node: ir.Node, seen: Statistics | None, codes: Quantized) -> tuple[Cause, ...]:
    """What stands out, the gravest first; "rounding" where nothing does.

    Args:
        node: the layer in the float model.
        seen: statistics of its input over the calibration data.
    """
    found = [
        *_saturation(seen, codes),
        *_weight_imbalance(node, codes),
        *_bias_overflow(codes),
        *_outlier(seen),
        *_channel_imbalance(seen),
    ]
    if not found:
        found.append(
            Cause("rounding", "nothing stands out: its values need more steps than 8 bits have", "keep_float")
        )
    return (*found, *_dead(seen))


def saturated_sums(share: float) -> Cause:
    """The cause that only processors without VNNI have."""
    text = f"{share:.2%} of its sums of two products do not fit into 16 bits on a processor without VNNI"
    return Cause("16-bit saturation", text, "reduce_range=True, which target='cpu-avx2' chooses by itself")


def quantized_view(node: ir.Node) -> Quantized:
    """The codes of `node`, a layer of a model in QDQ form."""
    low = high = None
    source = _dequantize(node, 0)
    if source is not None and source.inputs[0] is not None and graph.const_array(source.inputs[0]) is None:
        scale, zero = graph.const_array(source.inputs[1]), graph.const_array(at(source, 2))
        if scale is not None and zero is not None and scale.size == 1:
            info = np.iinfo(zero.dtype)
            low = float(scale) * (info.min - int(zero))
            high = float(scale) * (info.max - int(zero))
    weight, bias = _dequantize(node, 1), _dequantize(node, 2)
    return Quantized(
        low,
        high,
        None if weight is None else graph.const_array(weight.inputs[1]),
        None if bias is None else graph.const_array(bias.inputs[0]),
    )


def _dequantize(node: ir.Node, index: int) -> ir.Node | None:
    value = at(node, index)
    maker = None if value is None else value.producer()
    return maker if maker is not None and maker.op_type == "DequantizeLinear" else None


def _saturation(seen: Statistics | None, codes: Quantized) -> list[Cause]:
    if seen is None or codes.low is None or codes.high is None or seen.histogram.total == 0:
        return []
    histogram = seen.histogram
    centers = histogram.centers()
    beyond = (centers < codes.low - histogram.width) | (centers > codes.high + histogram.width)
    share = float(histogram.counts[beyond].sum() / histogram.total)
    if share < _CLIPPED:
        return []
    text = (
        f"{share:.2%} of its input lies outside the range of its codes, [{codes.low:.3g}, {codes.high:.3g}]"
    )
    return [Cause("saturation", text, "observer='minmax', or calibration data like what will come")]


def _outlier(seen: Statistics | None) -> list[Cause]:
    if seen is None or seen.histogram.width == 0.0:
        return []
    histogram = seen.histogram
    magnitude = np.abs(histogram.centers())
    order = np.argsort(magnitude)
    cumulative = np.cumsum(histogram.counts[order])
    usual = float(magnitude[order][int(np.searchsorted(cumulative, 0.999 * cumulative[-1]))])
    reach = max(abs(histogram.low), abs(histogram.high))
    if usual <= 0.0 or reach < _OUTLIER * usual:
        return []
    text = f"the largest input, {reach:.3g}, is {reach / usual:.1f} times what 99.9 % of them stay below"
    return [
        Cause("range outlier", text, "observer='percentile' or 'mse', quantize.equalize, quantize.smooth")
    ]


def _channel_imbalance(seen: Statistics | None) -> list[Cause]:
    if seen is None or seen.reach is None or len(seen.reach) < 2:
        return []
    live = seen.reach[seen.reach > 0]
    if not live.size or live.max() < _IMBALANCE * np.median(live):
        return []
    text = f"the widest channel of its input is {live.max() / np.median(live):.0f} times the median one"
    return [Cause("channel imbalance", text, "quantize.equalize before, which gives them one range")]


def _weight_imbalance(node: ir.Node, codes: Quantized) -> list[Cause]:
    weight = graph.const_array(at(node, 1))
    if weight is None or weight.ndim < 2 or codes.scales is None or codes.scales.size > 1:
        return []
    axis = 0 if node.op_type == "Conv" or int_of(node, "transB", 0) else weight.ndim - 1
    rows = np.abs(np.moveaxis(weight, axis, 0).reshape(weight.shape[axis], -1)).max(axis=1)
    live = rows[rows > 0]
    if not live.size or live.max() < _IMBALANCE * np.median(live):
        return []
    kind = "depthwise layer" if int_of(node, "group", 1) == weight.shape[0] > 1 else "layer"
    ratio = live.max() / np.median(live)
    text = f"one scale for a {kind} whose widest output channel is {ratio:.0f} times the median one"
    return [Cause("weight imbalance", text, "granularity='per_channel', or quantize.equalize before")]


def _bias_overflow(codes: Quantized) -> list[Cause]:
    if codes.bias is None or codes.bias.dtype != np.int32 or not codes.bias.size:
        return []
    full = int((np.abs(codes.bias.astype(np.int64)) >= _INT32).sum())
    if not full:
        return []
    return [Cause("bias overflow", f"{full} biases do not fit into 32 bits beside its weights", "keep_float")]


def _dead(seen: Statistics | None) -> list[Cause]:
    if seen is None or seen.reach is None:
        return []
    dead = int((seen.reach == 0).sum())
    if not dead:
        return []
    text = f"{dead} of {len(seen.reach)} channels of its input never speak on the calibration data"
    return [Cause("dead channels", text, "more calibration data, or prune.channels")]
