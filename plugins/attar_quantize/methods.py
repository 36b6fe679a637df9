"""How weights become codes: the table of methods, and those that need no data.

A method takes a `Layer` and gives codes in the weight's own shape with their parameters. Arithmetic is in
float32 and in pieces that fit the cache: a model of many gigabytes passes through here one weight at a time.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import onnx_ir as ir

from attar_quantize.scheme import Array, QParams, QType, power_of_two

if TYPE_CHECKING:
    from attar.context import Context

_PIECE = 1 << 17  # elements that are worked on at a time, so that buffers stay in the cache
_TINY = np.finfo(np.float32).tiny


@dataclass(frozen=True, eq=False)
class Layer:
    """One weight to quantize, and where it stands.

    Attributes:
        weight: float32, as it will be stored; read-only.
        qtype: the type of the codes; a block of 0 means one scale a channel.
        axis: along it lie the blocks, or with `qtype.block == 0` the channels.
        users: the operators that read it.
        model, ctx: for methods that look at data (`ctx.statistics`).
    """

    weight: Array
    qtype: QType
    axis: int
    users: tuple[ir.Node, ...] = ()
    model: ir.Model | None = None
    ctx: Context | None = None


Method = Callable[[Layer], tuple[Array, QParams]]
Rounded = tuple[Array, Array, Array]
Rounding = Callable[[Array, QType], Rounded]
"""From weights [groups, length, columns] to codes of that shape and to scales and zero points
[groups, columns]."""


def by_groups(layer: Layer, rounding: Rounding) -> tuple[Array, QParams]:
    """Quantize a weight with a method that looks at each group of elements under one scale alone."""
    weight, qtype, axis = layer.weight, layer.qtype, layer.axis % layer.weight.ndim
    size, block = weight.shape[axis], qtype.block
    if block:
        before = int(np.prod(weight.shape[:axis], dtype=np.int64))
        after = int(np.prod(weight.shape[axis + 1 :], dtype=np.int64))
        count = -(-size // block)
        source = weight.reshape(before, size, after)
        if count * block != size:
            # The last element once more moves no range.
            source = np.pad(source, ((0, 0), (0, count * block - size), (0, 0)), mode="edge")
        codes, scale, zero = _in_pieces(source.reshape(before * count, block, after), qtype, rounding)
        codes = codes.reshape(before, count * block, after)[:, :size]
        shape = (*weight.shape[:axis], count, *weight.shape[axis + 1 :])
    else:
        turned = np.moveaxis(weight, axis, 0)
        # The last axis needs no copy: its channels lie side by side.
        last = axis == weight.ndim - 1
        source = weight.reshape(1, -1, size) if last else turned.reshape(size, -1, 1)
        codes, scale, zero = _in_pieces(source, qtype, rounding)
        if not last:
            codes = np.moveaxis(codes.reshape(turned.shape), 0, axis)
        shape = (size,)
    params = QParams(qtype, scale.reshape(shape), zero.reshape(shape), axis)
    return np.ascontiguousarray(codes.reshape(weight.shape)), params


def _in_pieces(source: Array, qtype: QType, rounding: Rounding) -> Rounded:
    groups, length, columns = source.shape
    codes = np.empty(source.shape, qtype.dtype)
    scale = np.empty((groups, columns), np.float32)
    zero = np.empty((groups, columns), qtype.dtype)
    # Squares of weights near the largest float overflow; a method then keeps what it started from.
    with np.errstate(over="ignore", invalid="ignore"):
        for where in _pieces(groups, length, columns):
            piece = np.ascontiguousarray(source[where[0], :, where[1]], np.float32)
            codes[where[0], :, where[1]], scale[where], zero[where] = rounding(piece, qtype)
    return codes, scale, zero


def _pieces(groups: int, length: int, columns: int) -> Iterator[tuple[slice, slice]]:
    wide = max(1, min(columns, _PIECE // max(1, length)))
    high = max(1, _PIECE // max(1, length * wide))
    for g in range(0, groups, high):
        for c in range(0, columns, wide):
            yield slice(g, g + high), slice(c, c + wide)


def nearest(w: Array, qtype: QType) -> Rounded:
    """Every weight to its nearest code; the range is that of its group."""
    return _rounded(w, *_grid(w.min(axis=1), w.max(axis=1), qtype), qtype)


def least_squares(w: Array, qtype: QType, *, steps: int = 10, smallest: float = 0.6) -> Rounded:
    """As `nearest`, but of ranges shrunk by factors from 1 to `smallest` each group takes that of the least
    squared error: few codes are better spent on the many small weights than on one large one.

    A shrunk range has the same zero point, since z = qmin - low / s and both shrink, so that only the scale
    is searched for.
    """
    widest, zero = _grid(w.min(axis=1), w.max(axis=1), qtype)
    centre = zero[:, None, :].astype(np.float32)
    low, high = qtype.qmin - centre, qtype.qmax - centre
    best, scale = np.full(widest.shape, np.inf, np.float32), widest
    ratio, error = np.empty_like(w), np.empty_like(w)
    for factor in np.linspace(1.0, smallest, steps, dtype=np.float32):
        tried = np.maximum(power_of_two(widest * factor, qtype), _TINY).astype(np.float32)
        # In units of the scale, so that every pass over the weights is needed.
        np.multiply(w, (1 / tried)[:, None, :], out=ratio)
        if qtype.format:
            error = np.clip(ratio, qtype.qmin, qtype.qmax).astype(qtype.dtype).astype(np.float32)
        else:
            np.rint(ratio, out=error)
            np.maximum(error, low, out=error)  # np.clip with bounds for each group is 5 times slower
            np.minimum(error, high, out=error)
        error -= ratio
        squares = np.einsum("gbp,gbp->gp", error, error) * tried**2
        better = squares < best
        best, scale = np.where(better, squares, best), np.where(better, tried, scale)
    return _rounded(w, scale, zero, qtype)


def half_quadratic(w: Array, qtype: QType, *, rounds: int = 10) -> Rounded:
    """HQQ (Badri and Shaji 2023, "Half-quadratic quantization of large machine learning models"), with
    integer zero points.

    Minimizes sum |w - s (q - z)|^(1/2), which forgives outliers, by splitting w - s (q - z) into
    e + rest: e is the shrinkage of the error (the prox of |.|^(1/2)), and scale and zero point are fitted to
    w - e. The paper fits a real zero point at a fixed scale; ONNX stores integers, so here z is rounded and s
    is the least-squares fit. Each group keeps the best it has seen.
    """
    if qtype.format:
        return least_squares(w, qtype)
    codes, scale, zero = least_squares(w, qtype, steps=5)
    best_codes, best_scale, best_zero = codes, scale, zero
    error = w - _back(codes, scale, zero)
    best = np.sqrt(np.abs(error)).sum(axis=1)
    # The penalty of the split is relative to the weights' size and grows, as in the paper.
    unit = np.maximum(np.abs(w).mean(axis=1, keepdims=True), _TINY)
    beta = 10.0
    for _ in range(rounds):
        r = np.abs(error) / unit
        shrunk = np.maximum(r - 1 / (beta * np.sqrt(np.maximum(r, 1e-6))), 0)
        target = w - np.copysign(shrunk * unit, error)
        if not qtype.symmetric:
            fitted = np.rint((codes - target / scale[:, None, :]).mean(axis=1))
            zero = np.clip(fitted, qtype.qmin, qtype.qmax)
        centred: Array = codes - zero[:, None, :].astype(np.float32)
        power = np.einsum("gbp,gbp->gp", centred, centred)
        fit = np.einsum("gbp,gbp->gp", centred, target) / np.maximum(power, 1)
        scale = np.where(fit > _TINY, fit, scale).astype(np.float32)
        codes = _codes(w, scale, zero, qtype)
        error = w - _back(codes, scale, zero)
        cost = np.sqrt(np.abs(error)).sum(axis=1)
        better = cost < best
        if not better.any():
            break
        best = np.where(better, cost, best)
        best_scale, best_zero = np.where(better, scale, best_scale), np.where(better, zero, best_zero)
        best_codes = np.where(better[:, None, :], codes, best_codes)
        beta *= 1.05
    return best_codes, best_scale, best_zero.astype(qtype.dtype)


def _grid(low: Array, high: Array, qtype: QType) -> tuple[Array, Array]:
    """Scale and zero point of groups by their extremes, as `params_of_range` has it, in float32."""
    from attar_quantize.scheme import params_of_range

    params = params_of_range(low, high, qtype)
    return params.scale, params.zero_point


def _rounded(w: Array, scale: Array, zero: Array, qtype: QType) -> Rounded:
    codes = _codes(w, scale, zero, qtype)
    return codes.astype(qtype.dtype), scale, zero.astype(qtype.dtype)


def _codes(w: Array, scale: Array, zero: Array, qtype: QType) -> Array:
    """Codes as float32 (integers), or numbers of a small float format."""
    ratio = w / scale[:, None, :]
    if qtype.format:
        inside: Array = np.clip(ratio, qtype.qmin, qtype.qmax, out=ratio)
        return inside.astype(qtype.dtype).astype(np.float32)
    np.rint(ratio, out=ratio)
    if not qtype.symmetric or qtype.middle:
        ratio += zero[:, None, :].astype(np.float32)
    return np.asarray(np.clip(ratio, qtype.qmin, qtype.qmax, out=ratio))


def _back(codes: Array, scale: Array, zero: Array) -> Array:
    return np.asarray((codes - zero[:, None, :].astype(np.float32)) * scale[:, None, :])


def _gptq(layer: Layer) -> tuple[Array, QParams]:
    from attar_quantize.gptq import gptq

    return gptq(layer)


def _awq(layer: Layer) -> tuple[Array, QParams]:
    from attar_quantize.awq import awq

    return awq(layer)


METHODS: dict[str, Method] = {
    "nearest": lambda layer: by_groups(layer, nearest),
    "mse": lambda layer: by_groups(layer, least_squares),
    "hqq": lambda layer: by_groups(layer, half_quadratic),
    "gptq": _gptq,
    "awq": _awq,
}
"""Methods by name. Those that look at data ask `layer.ctx` for it."""


def error_of(layer: Layer, codes: Any, params: QParams) -> float:
    """Relative squared error of a quantized weight: |W' - W|^2 / |W|^2."""
    difference = params.dequantize(codes) - layer.weight
    return float((difference**2).sum() / max(float((layer.weight.astype(np.float64) ** 2).sum()), _TINY))
