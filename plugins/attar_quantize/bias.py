"""Biases of integer kernels, and their correction for what rounding the weights does to the mean."""

from __future__ import annotations

from typing import Any

import numpy as np
import onnx_ir as ir

Array = np.ndarray[Any, np.dtype[Any]]
_INT32 = 2**31 - 1


def bias_codes(bias: Array, weight_scale: Array, input_scale: Array) -> tuple[Array, Array]:
    """A bias in the accumulator's unit: int32 codes at scale s_x s_w (per channel where s_w is).

    Returns:
        (codes, scale); |bias| / scale beyond 32 bits saturates, which `weight_scales_for_bias` prevents.
    """
    scale = (weight_scale.astype(np.float64) * float(input_scale)).astype(np.float32)
    codes = np.rint(bias / np.maximum(scale.astype(np.float64), np.finfo(np.float32).tiny))
    return np.clip(codes, -_INT32, _INT32).astype(np.int32), scale


def weight_scales_for_bias(scale: Array, bias: Array | None, input_scale: Array) -> Array:
    """Weight scales raised where the bias would not fit into 32 bits beside them.

    |b| <= (2^31 - 1) s_x s_w needs s_w >= |b| / (s_x (2^31 - 1)); a margin of 2 leaves room for the
    products. It happens where a channel's weights are all (nearly) zero and only its bias speaks.
    """
    if bias is None:
        return scale
    reach = np.abs(bias.astype(np.float64)).reshape(-1)
    if scale.ndim == 0:
        reach = reach.max(initial=0.0)
    least = 2 * reach / (_INT32 * float(input_scale))
    return np.maximum(scale.astype(np.float64), least).astype(np.float32)


def correction(node: ir.Node, error: Array, mean: Array) -> Array:
    """What weight rounding adds to the output's mean, per output channel: E[(W' - W) x] = (W' - W) E[x].

    Nagel et al. 2019, "Data-free quantization through weight equalization and bias correction", section
    4.2, with E[x] measured instead of derived. Borders, where padding lowers the mean of x, are not modelled.

    Args:
        error: W' - W in the weight's own layout.
        mean: E[x] per input channel.
    """
    if node.op_type == "Conv":
        per_tap = error.reshape(error.shape[0], error.shape[1], -1).sum(axis=2)
        group = node.attributes.get("group")
        groups = group.value if group is not None else 1
        outputs = error.shape[0] // groups
        means = mean.reshape(groups, -1)
        return np.einsum("goi,gi->go", per_tap.reshape(groups, outputs, -1), means).reshape(-1)
    trans = node.attributes.get("transB")
    matrix = error.T if trans is not None and trans.value else error
    return np.asarray(mean @ matrix)
