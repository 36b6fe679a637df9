"""One scale for a whole weight, chosen by what its input lets be heard of it."""

from __future__ import annotations

from typing import Any

import numpy as np
import onnx_ir as ir

from attar_quantize.scheme import QParams, QType, params_of_range

Array = np.ndarray[Any, np.dtype[Any]]
_SHARES = np.geomspace(1.0, 1e-3, 60)
# A channel that was silent on the calibration data may speak on others, so it counts a little.
_LEAST = 1e-6


def heard_params(weight: Array, node: ir.Node, power: Array, qtype: QType) -> QParams:
    """Scale and zero point of a whole weight with the least noise in the layer's output.

    The noise of output o is sum_c E[x_c^2] (W'_oc - W_oc)^2, so a row that reads only silent channels costs
    nothing, however wide it is; folded BatchNormalization leaves such rows, and the range of the extremes
    would spend most codes on them. Shares of the range are tried.

    Args:
        power: E[x_c^2] of each input channel.
    """
    spread = by_weight(weight, node, np.maximum(power, _LEAST * float(power.mean())))
    low, high = float(weight.min(initial=0.0)), float(weight.max(initial=0.0))
    best, chosen = np.inf, params_of_range(low, high, qtype)
    if spread is None:
        return chosen
    wide = np.asarray(weight, np.float64)
    for share in _SHARES:
        params = params_of_range(low * share, high * share, qtype)
        error = float((spread * (params.dequantize(params.quantize(wide)) - wide) ** 2).sum())
        if error < best:
            best, chosen = error, params
        elif error > 100 * best:
            break  # clipping has taken over
    return chosen


def by_weight(weight: Array, node: ir.Node, power: Array) -> Array | None:
    """The power of the channel that each element of the weight is multiplied with, if they fit."""
    if node.op_type == "Conv":
        groups = len(power) // weight.shape[1]
        if groups * weight.shape[1] != len(power) or weight.shape[0] % groups:
            return None
        rows = np.repeat(power.reshape(groups, -1), weight.shape[0] // groups, axis=0)
        return rows.reshape(*rows.shape, *[1] * (weight.ndim - 2))
    if weight.ndim != 2:
        return None
    trans = node.attributes.get("transB")
    turned = trans is not None and bool(trans.value)
    if weight.shape[1 if turned else 0] != len(power):
        return None
    return power[None, :] if turned else power[:, None]
