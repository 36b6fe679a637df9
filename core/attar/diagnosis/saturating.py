"""The sums of products that x86 processors without VNNI compute from u8 activations and s8 weights.

Their one instruction for such products, vpmaddubsw, multiplies neighbours and adds them in 16 bits:

    t_p = sat16(a_2p b_2p + a_(2p+1) b_(2p+1))        sat16(t) = min(max(t, -32768), 32767)        sum over p

2 * 255 * 127 = 64770 does not fit, and what is beyond the ends is lost. The codes are multiplied as they are
stored: zero points are made good afterwards, by sums of rows and columns. Neighbours are those along the sum
as ONNX Runtime lays it out: the rows of a matrix, and for a convolution the channels of one tap, tap after
tap (its integer convolutions run channels-last). Depthwise convolutions are computed in 32 bits and lose
nothing.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np

from attar.gram import LayerInput
from attar.layer_inputs import pads_of, vectors

Array = np.ndarray[Any, np.dtype[Any]]
LOW, HIGH = -(1 << 15), (1 << 15) - 1
# Sums of so many products of 8-bit codes are exact in float32: 255 * 128 * 512 < 2^24.
_EXACT = 512
_ROWS = 1 << 15  # rows of patches that are in memory at once


@dataclass
class Lost:
    """What was cut off in the sums of a layer.

    Attributes:
        pairs: pair sums that were computed.
        cut: how many of them did not fit.
    """

    pairs: int = 0
    cut: int = 0

    @property
    def share(self) -> float:
        return self.cut / self.pairs if self.pairs else 0.0


def exact_sums(a: Array, b: Array) -> Array:
    """a @ b of 8-bit codes, `[rows, K]` and `[K, columns]`; int32, as kernels add up. As quick as a product
    of floats."""
    out: Array = np.zeros((a.shape[0], b.shape[1]), np.int32)
    for start in range(0, a.shape[1], _EXACT):
        part = slice(start, start + _EXACT)
        out += (a[:, part].astype(np.float32) @ b[part].astype(np.float32)).astype(np.int32)
    return out


def saturating_sums(a: Array, b: Array, lost: Lost | None = None) -> Array:
    """As `exact_sums`, with neighbouring products added in 16 bits, saturating; equal to the bit to the
    instruction's result.

    Few pairs can saturate at all, which the weights and the largest activations tell; only these are looked
    at, and what they lose is taken from the exact sums.

    Args:
        a: uint8 `[rows, K]`.
        b: int8 `[K, columns]`.
        lost: is told how much was cut off.
    """
    out = exact_sums(a, b)
    if a.shape[1] % 2:
        a, b = np.pad(a, ((0, 0), (0, 1))), np.pad(b, ((0, 1), (0, 0)))
    columns = np.ascontiguousarray(a.T).astype(np.int32)
    first, second = columns[0::2], columns[1::2]
    left, right = b[0::2].astype(np.int32), b[1::2].astype(np.int32)
    most, more = (part.max(axis=1, initial=0)[:, None] for part in (first, second))
    highest = most * np.maximum(left, 0) + more * np.maximum(right, 0)
    lowest = most * np.minimum(left, 0) + more * np.minimum(right, 0)
    risky = (highest > HIGH) | (lowest < LOW)
    cut = 0
    for pair in np.flatnonzero(risky.any(axis=1)):
        at = np.flatnonzero(risky[pair])
        x, y, u, v = first[pair], second[pair], left[pair, at], right[pair, at]
        rows = np.flatnonzero(x * int(np.abs(u).max()) + y * int(np.abs(v).max()) > HIGH)
        sums = x[rows, None] * u + y[rows, None] * v
        excess = sums - np.clip(sums, LOW, HIGH)
        cut += int(np.count_nonzero(excess))
        out[np.ix_(rows, at)] -= excess
    if lost is not None:
        lost.pairs += a.shape[0] * left.size
        lost.cut += cut
    return out


def pair_bound(b: Array) -> int:
    """The largest magnitude that a pair sum of weights `[K, columns]` can have, whatever the activations:
    255 times what neighbours of one sign add up to. Up to 32767 nothing is ever cut off."""
    if b.shape[0] % 2:
        b = np.pad(b, ((0, 1), (0, 0)))
    wide = b.astype(np.int64)
    up = np.maximum(wide[0::2], 0) + np.maximum(wide[1::2], 0)
    down = np.maximum(-wide[0::2], 0) + np.maximum(-wide[1::2], 0)
    return int(255 * max(up.max(initial=0), down.max(initial=0)))


def matrices(weight: Array, groups: int) -> Array:
    """A convolution's weight codes `[O, C, *kernel]` as `[groups, K, O / groups]`, with the K in the order of
    the sums: tap after tap, the channels of each side by side."""
    outputs = weight.shape[0] // groups
    taps_last = np.moveaxis(weight.reshape(groups, outputs, weight.shape[1], -1), 2, 3)
    return np.ascontiguousarray(np.swapaxes(taps_last.reshape(groups, outputs, -1), 1, 2))


def convolution_sums(
    codes: Array,
    weight: Array,
    want: LayerInput,
    zero: int,
    *,
    saturate: bool = True,
    lost: Lost | None = None,
) -> Array:
    """Sums of a convolution of codes, `[N, O, *positions]`, int32. Zero points are not taken off.

    Args:
        codes: uint8 `[N, C, *sizes]`.
        weight: int8 `[O, C / groups, *kernel]`.
        want: geometry of the convolution.
        zero: code that borders are filled with.
    """
    stacked = matrices(weight, want.group)
    depth, outputs = stacked.shape[1:]
    taps = int(np.prod(want.kernel))
    channels = depth // taps
    parts = []
    positions = output_sizes(want, codes.shape[2:])
    at_once = max(1, _ROWS // max(1, int(np.prod(positions))))
    for start in range(0, len(codes), at_once):
        some = codes[start : start + at_once]
        rows = _patches(some, want, zero, channels, taps)
        made = [
            saturating_sums(r, m, lost) if saturate else exact_sums(r, m)
            for r, m in zip(rows, stacked, strict=True)
        ]
        sums = np.stack(made).reshape(want.group, len(some), *positions, outputs)
        sums = np.moveaxis(sums, (1, -1), (0, 2))
        parts.append(sums.reshape(len(some), want.group * outputs, *positions))
    if not parts:
        return np.zeros((0, want.group * outputs, *positions), np.int32)
    return np.concatenate(parts)


def _patches(codes: Array, want: LayerInput, zero: int, channels: int, taps: int) -> Array:
    """`[groups, rows, K]`, in the order of `matrices`."""
    if taps == 1 and not any(pads_of(want, codes.shape[2:])):
        seen = codes[(slice(None), slice(None), *(slice(None, None, s) for s in want.strides))]
        rows = np.moveaxis(seen, 1, -1).reshape(-1, want.group, channels)
        return np.ascontiguousarray(np.swapaxes(rows, 0, 1))
    # Borders are filled with zeros there; shifted codes make these the zero point.
    shifted = codes.astype(np.int16) - np.int16(zero)
    patches = vectors(shifted, want, 1 << 62, np.random.default_rng(0)) + np.int16(zero)
    rows = patches.astype(np.uint8).reshape(want.group, -1, channels, taps)
    return np.ascontiguousarray(np.swapaxes(rows, 2, 3)).reshape(want.group, -1, channels * taps)


def output_sizes(want: LayerInput, sizes: tuple[int, ...]) -> tuple[int, ...]:
    """Positions along each axis of a convolution's result."""
    pads, axes = pads_of(want, sizes), len(want.kernel)
    return tuple(
        (sizes[i] + pads[i] + pads[i + axes] - want.dilations[i] * (want.kernel[i] - 1) - 1)
        // want.strides[i]
        + 1
        for i in range(axes)
    )
