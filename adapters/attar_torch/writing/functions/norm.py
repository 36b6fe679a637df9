"""Normalizations in forms that torch's layers do not have."""

from __future__ import annotations

import torch
from torch.nn import functional

from attar_torch.writing.leaf import leaf


def along_channels(vector: torch.Tensor, x: torch.Tensor) -> torch.Tensor:
    return vector.reshape(1, -1, *[1] * (x.dim() - 2)) if x.dim() > 1 else vector


@leaf
def batch_norm(  # noqa: PLR0917
    x: torch.Tensor,
    scale: torch.Tensor,
    bias: torch.Tensor,
    mean: torch.Tensor,
    var: torch.Tensor,
    epsilon: float,
) -> torch.Tensor:
    """Normalization by given statistics."""
    scale, bias, mean, var = (along_channels(v, x) for v in (scale, bias, mean, var))
    return ((x - mean) / torch.sqrt(var + epsilon) * scale + bias).to(x.dtype)


@leaf
def batch_norm_training(  # noqa: PLR0917
    x: torch.Tensor,
    scale: torch.Tensor,
    bias: torch.Tensor,
    mean: torch.Tensor,
    var: torch.Tensor,
    epsilon: float,
    momentum: float,
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """ONNX BatchNormalization in training mode: by the batch's own statistics, which it also averages."""
    axes = [a for a in range(x.dim()) if a != 1]
    own_mean, own_var = x.mean(axes), x.var(axes, correction=0)
    made = batch_norm(x, scale, bias, own_mean, own_var, epsilon)
    return made, mean * momentum + own_mean * (1 - momentum), var * momentum + own_var * (1 - momentum)


@leaf
def instance_norm(x: torch.Tensor, scale: torch.Tensor, bias: torch.Tensor, epsilon: float) -> torch.Tensor:
    """Every plane of every sample by its own statistics."""
    var, mean = torch.var_mean(x, list(range(2, x.dim())), correction=0, keepdim=True)
    return (x - mean) * torch.rsqrt(var + epsilon) * along_channels(scale, x) + along_channels(bias, x)


@leaf
def group_norm(  # noqa: PLR0917
    x: torch.Tensor, scale: torch.Tensor, bias: torch.Tensor, groups: int, repeat: int, epsilon: float
) -> torch.Tensor:
    """Group normalization; before opset 21 the scale was one of a group (`repeat` channels)."""
    return functional.group_norm(
        x, groups, scale.repeat_interleave(repeat), bias.repeat_interleave(repeat), epsilon
    )


@leaf
def layer_norm(
    x: torch.Tensor, scale: torch.Tensor, bias: torch.Tensor | None, axis: int, epsilon: float
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """ONNX LayerNormalization with any scale that broadcasts, its mean and its inverse deviation."""
    wide = x.to(torch.float32) if x.dtype in (torch.float16, torch.bfloat16) else x
    var, mean = torch.var_mean(wide, list(range(axis, x.dim())), correction=0, keepdim=True)
    inverse = torch.rsqrt(var + epsilon)
    made = ((wide - mean) * inverse).to(x.dtype) * scale
    return (made if bias is None else made + bias), mean, inverse


@leaf
def rms_norm(x: torch.Tensor, scale: torch.Tensor, axis: int, epsilon: float) -> torch.Tensor:
    """ONNX RMSNormalization with any scale that broadcasts."""
    wide = x.to(torch.float32) if x.dtype in (torch.float16, torch.bfloat16) else x
    mean = (wide * wide).mean(list(range(axis, x.dim())), keepdim=True)
    return (wide * torch.rsqrt(mean + epsilon)).to(x.dtype) * scale


@leaf
def lp_normalization(x: torch.Tensor, p: int, axis: int) -> torch.Tensor:
    """`x` over its p-norm along `axis`; 0 where the norm is 0."""
    norm = torch.linalg.vector_norm(x, p, axis, True)
    return torch.where(norm == 0, torch.zeros_like(x), x / norm)


@leaf
def mean_variance(x: torch.Tensor, axes: list[int]) -> torch.Tensor:
    """ONNX MeanVarianceNormalization: 1e-9 is added to the deviation."""
    mean = x.mean(axes, keepdim=True)
    deviation = torch.sqrt((x * x).mean(axes, keepdim=True) - mean * mean)
    return (x - mean) / (deviation + 1e-9)
