"""Quantization: int8 models that run on integer kernels.

from attar_quantize import Static

attar.compress(model, [Static()], calibration=loader)
"""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

from attar import hookimpl
from attar.passes import Pass
from attar_quantize.static import Static

__all__ = ["Static"]


@hookimpl
def attar_passes() -> Sequence[type[Pass]]:
    return [Static]


@hookimpl
def attar_observers() -> Mapping[str, Callable[..., Any]]:
    from attar_quantize.observers import OBSERVERS

    return OBSERVERS
