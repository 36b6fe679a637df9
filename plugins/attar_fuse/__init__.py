"""Fuses what a runtime would compute apart: constants, BatchNormalization, padding, activations, needless
operators.
"""

from __future__ import annotations

from collections.abc import Sequence

from attar.hooks import hookimpl
from attar.passes import Pass
from attar_fuse.fuse import Cleanup, Constants, Fuse

__all__ = ["Cleanup", "Constants", "Fuse"]


@hookimpl
def attar_passes() -> Sequence[type[Pass]]:
    return [Fuse, Constants, Cleanup]
