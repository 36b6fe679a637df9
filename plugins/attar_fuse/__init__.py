"""Fuses what a runtime would compute apart: constants, BatchNormalization, padding, activations, needless
operators; and writes what a runtime computes faster in another form so.
"""

from __future__ import annotations

from collections.abc import Sequence

from attar.hooks import hookimpl
from attar.passes import Pass
from attar_fuse.fuse import Cleanup, Constants, Fuse
from attar_fuse.kernels import Kernels

__all__ = ["Cleanup", "Constants", "Fuse", "Kernels"]


@hookimpl
def attar_passes() -> Sequence[type[Pass]]:
    return [Fuse, Constants, Cleanup, Kernels]
