"""ONNX Resize, one axis at a time: which elements of the input make an element of the output.

Formulas: ONNX operator Resize, opset 19, coordinate_transformation_mode and mode.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import torch

from attar_torch.writing.leaf import leaf

Row = list[tuple[int, float]]
"""(index in the input, its weight) of one output element; empty where it lies outside the input."""


@dataclass(frozen=True)
class Rule:
    """How to resize, the same for all axes."""

    mode: str
    coordinates: str
    nearest: str = "round_prefer_floor"
    cubic: float = -0.75
    exclude_outside: bool = False
    antialias: bool = False


def rows(size: int, out: int, scale: float, rule: Rule, roi: tuple[float, float] = (0.0, 1.0)) -> list[Row]:
    """The taps of every output element along one axis.

    Args:
        size: of the input.
        out: of the output.
        scale: of the axis, as given or as `out / size`.
        roi: start and end of the region, normalized; for tf_crop_and_resize.
    """
    return [_taps(_source(k, size, out, scale, rule, roi), size, scale, rule) for k in range(out)]


def _source(k: int, size: int, out: int, scale: float, rule: Rule, roi: tuple[float, float]) -> float:  # noqa: PLR0917
    """Where output element `k` lies in the input."""
    kind = rule.coordinates
    if kind == "asymmetric":
        return k / scale
    if kind == "align_corners":
        return 0.0 if out == 1 else k * (size - 1) / (out - 1)
    if kind == "tf_crop_and_resize":
        start, end = roi
        if out == 1:
            return 0.5 * (start + end) * (size - 1)
        return start * (size - 1) + k * (end - start) * (size - 1) / (out - 1)
    if kind == "pytorch_half_pixel" and out == 1:
        return 0.0
    half = (k + 0.5) / scale - 0.5
    if kind == "half_pixel_symmetric":
        half += size / 2 * (1 - out / (scale * size))
    return half


def _taps(x: float, size: int, scale: float, rule: Rule) -> Row:
    if rule.coordinates == "tf_crop_and_resize" and not 0 <= x <= size - 1:
        return []
    if rule.mode == "nearest":
        at = {
            "floor": math.floor,
            "ceil": math.ceil,
            "round_prefer_floor": lambda v: math.ceil(v - 0.5),
            "round_prefer_ceil": lambda v: math.floor(v + 0.5),
        }[rule.nearest](x)
        return [(min(max(at, 0), size - 1), 1.0)]
    shrink = min(scale, 1.0) if rule.antialias else 1.0
    reach = (1.0 if rule.mode == "linear" else 2.0) / shrink
    taps: dict[int, float] = {}
    for index in range(math.floor(x - reach), math.ceil(x + reach) + 1):
        weight = _kernel((index - x) * shrink, rule)
        if weight == 0 or (rule.exclude_outside and not 0 <= index < size):
            continue
        inside = min(max(index, 0), size - 1)
        taps[inside] = taps.get(inside, 0.0) + weight
    if rule.antialias or rule.exclude_outside:
        total = sum(taps.values())
        taps = {i: w / total for i, w in taps.items()}
    return sorted(taps.items())


def _kernel(x: float, rule: Rule) -> float:
    x = abs(x)
    if rule.mode == "linear":
        return max(1 - x, 0.0)
    a = rule.cubic
    if x <= 1:
        return ((a + 2) * x - (a + 3)) * x * x + 1
    return ((a * x - 5 * a) * x + 8 * a) * x - 4 * a if x < 2 else 0.0


def matrix(taps: list[Row], size: int) -> list[list[float]]:
    """`taps` as an (out, size) matrix."""
    made = [[0.0] * size for _ in taps]
    for line, row in zip(made, taps, strict=True):
        for index, weight in row:
            line[index] += weight
    return made


@leaf
def along(x: torch.Tensor, weights: torch.Tensor, axis: int) -> torch.Tensor:
    """`x` with `axis` replaced by its products with the rows of `weights` (out, size)."""
    return torch.matmul(x.movedim(axis, -1), weights.t()).movedim(-1, axis)


@leaf
def outside(x: torch.Tensor, mask: torch.Tensor, axis: int, value: float) -> torch.Tensor:
    """`x` with `value` where `mask` (along `axis`) is true."""
    shape = [1] * x.dim()
    shape[axis] = -1
    return torch.where(mask.reshape(shape), torch.full_like(x, value), x)


@leaf
def resize_axis(  # noqa: PLR0917
    x: torch.Tensor, axis: int, out: Any, scale: float | None, mode: str, coordinates: str, nearest: str,
    cubic: float, exclude_outside: bool, antialias: bool,
) -> torch.Tensor:  # fmt: skip
    """Resize an axis whose size is known only now, to `out` elements or by `scale`."""
    size = int(x.size(axis))
    out = math.floor(size * scale) if out is None else int(out)  # type: ignore[operator]
    rule = Rule(mode, coordinates, nearest, cubic, exclude_outside, antialias)
    taps = rows(size, out, out / size if scale is None else scale, rule)
    if mode == "nearest":
        chosen = torch.tensor([row[0][0] for row in taps], dtype=torch.int64, device=x.device)
        return x.index_select(axis, chosen)
    weights = torch.tensor(matrix(taps, size), dtype=x.dtype, device=x.device)
    return torch.matmul(x.movedim(axis, -1), weights.t()).movedim(-1, axis)
