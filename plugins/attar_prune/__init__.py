"""Pruning: what a network can do without, removed.

from attar_prune import Channels

attar.compress(model, [Channels(ratio=0.3)], calibration=loader)
"""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

from attar import hookimpl
from attar.passes import Pass
from attar_prune.channels import Channels
from attar_prune.layers import Layers
from attar_prune.weights import Weights

__all__ = ["Channels", "Layers", "Weights"]


@hookimpl
def attar_passes() -> Sequence[type[Pass]]:
    return [Channels, Layers, Weights]


@hookimpl
def attar_importances() -> Mapping[str, Callable[..., Any]]:
    from attar_prune.importance import BUILTIN

    return BUILTIN
