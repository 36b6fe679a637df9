"""The numbers that quantized weights may become."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np

from attar.errors import InputError

Array = np.ndarray[Any, np.dtype[Any]]


@dataclass(frozen=True, eq=False)
class Grid:
    """The numbers that weights may become: scale * (code - zero), code an integer from `low` to `high`.

    Attributes:
        scale: positive, `[..., rows, B]`; each of the B scales of a row covers K / B neighbouring columns.
        zero: code of zero; broadcasts against `scale`.
        low: smallest code.
        high: largest code.
    """

    scale: Array
    zero: Array | int
    low: int
    high: int

    def codes(self, weight: Array) -> Array:
        """The nearest codes, ties to even; int32."""
        scale, zero = self.along(weight.shape[-1])
        return np.clip(np.rint(weight / scale) + zero, self.low, self.high).astype(np.int32)

    def values(self, codes: Array) -> Array:
        """What codes stand for; float64."""
        scale, zero = self.along(codes.shape[-1])
        return np.asarray((codes - zero) * scale)

    def along(self, columns: int) -> tuple[Array, Array]:
        """Scale and zero as float64, broadcastable against `[..., rows, columns]`.

        Raises:
            InputError: the scales do not divide the columns evenly.
        """
        blocks = self.scale.shape[-1]
        scale = self.scale.astype(np.float64)
        zero = np.broadcast_to(np.asarray(self.zero, np.float64), scale.shape)
        if blocks == 1:
            return scale, zero
        if columns % blocks:
            raise InputError(f"{blocks} scales do not divide {columns} columns evenly")
        return np.repeat(scale, columns // blocks, axis=-1), np.repeat(zero, columns // blocks, axis=-1)
