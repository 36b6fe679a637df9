"""Creating tensors, and integer arithmetic as ONNX has it."""

from __future__ import annotations

from typing import Any

import torch

from attar_torch.writing.leaf import leaf


def device_of(like: torch.Tensor | None) -> torch.device:
    return torch.device("cpu") if like is None else like.device


@leaf
def int_tensor(items: list[Any], scalar: bool, like: torch.Tensor | None = None) -> torch.Tensor:
    """Integers, some of them sizes, as an int64 tensor of rank 1, or 0 if `scalar`."""
    made = [torch.full((), i, dtype=torch.int64, device=device_of(like)) for i in items]
    if scalar:
        return made[0]
    return torch.stack(made) if made else torch.zeros(0, dtype=torch.int64, device=device_of(like))


@leaf
def arange(start: Any, limit: Any, step: Any, dtype: torch.dtype, like: torch.Tensor | None = None) -> Any:
    """Numbers from `start` up to `limit`, without it, in steps of `step`."""
    return torch.arange(start, limit, step, dtype=dtype, device=device_of(like))


@leaf
def full(shape: list[Any], value: Any, dtype: torch.dtype, like: torch.Tensor | None = None) -> torch.Tensor:
    """A tensor of one number."""
    return torch.full(shape, value, dtype=dtype, device=device_of(like))


@leaf
def truncated(a: Any, b: Any) -> Any:
    """Quotient of two integers, rounded towards zero."""
    return a // b if (a >= 0) == (b > 0) else -(-a // b)


@leaf
def wrapped(indices: torch.Tensor, size: int) -> torch.Tensor:
    """Indices that count from the end where they are negative, as indices from the start."""
    indices = indices.to(torch.int64)
    return torch.where(indices < 0, indices + size, indices)


_FITS = {
    torch.float8_e4m3fn: 464.0,  # half a step above 448, rounded to the even 448
    torch.float8_e4m3fnuz: 247.99998,  # just below half a step above 240
    torch.float8_e5m2: 61439.996,
    torch.float8_e5m2fnuz: 61439.996,
}
"""The largest float32 that is rounded to a finite number."""


@leaf
def saturated(x: torch.Tensor, dtype: torch.dtype, saturate: bool) -> torch.Tensor:
    """`x` as an 8-bit float; what is too large becomes the largest number, or else infinity or NaN."""
    info = torch.finfo(dtype)
    made = x.clamp(info.min, info.max).to(dtype)
    if saturate:
        return made
    over = torch.full_like(x, float("inf") if dtype == torch.float8_e5m2 else float("nan"))
    return torch.where(x.abs() > _FITS[dtype], torch.copysign(over, x), made.to(x.dtype)).to(dtype)
