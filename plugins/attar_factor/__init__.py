"""Reconstruction: layers written as products of thinner layers.

from attar_factor import LowRank

attar.compress(model, [LowRank(ratio=0.7)], calibration=loader)
"""

from __future__ import annotations

from collections.abc import Sequence

from attar.hooks import hookimpl
from attar.passes import Pass
from attar_factor.lowrank import LowRank
from attar_factor.separable import Separable

__all__ = ["LowRank", "Separable"]


@hookimpl
def attar_passes() -> Sequence[type[Pass]]:
    return [LowRank, Separable]
