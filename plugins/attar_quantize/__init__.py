"""Quantization: int8 models that run on integer kernels.

from attar_quantize import Static

attar.compress(model, [Static()], calibration=loader)
"""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

from attar import hookimpl
from attar.passes import Pass
from attar_quantize.dynamic import Dynamic
from attar_quantize.equalize import Equalize
from attar_quantize.half import Half
from attar_quantize.outliers import Outliers
from attar_quantize.smooth import Smooth
from attar_quantize.static import Static
from attar_quantize.weights import Weights

__all__ = ["Dynamic", "Equalize", "Half", "Outliers", "Smooth", "Static", "Weights"]


@hookimpl
def attar_passes() -> Sequence[type[Pass]]:
    return [Dynamic, Equalize, Half, Outliers, Smooth, Static, Weights]


@hookimpl
def attar_observers() -> Mapping[str, Callable[..., Any]]:
    from attar_quantize.observers import OBSERVERS

    return OBSERVERS
