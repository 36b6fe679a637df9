"""For a loop of one's own: the module with all that it must keep, and the model read back from it."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import onnx_ir as ir

from attar.registry import Registry, default_registry
from attar_train.constrain import constrain
from attar_train.module import Trainable, need_torch, trainable


def prepare(
    model: ir.Model, *, latent: Mapping[str, Any] | None = None, registry: Registry | None = None
) -> Trainable:
    """`model`, which stays as it is, as a module to be trained anywhere.

    Zeros, patterns and shared values that passes noted are kept by the module itself, and quantization is
    trained through: its forward is what the finished model computes. `finish()` gives the model back.

    Args:
        latent: float weights by name of the model before it was quantized; training starts from them.

    Raises:
        Refused: torch is not installed, or nothing in the model can be trained.
        ConversionError: torch cannot say some of its operators; all are listed.
    """
    need_torch()
    registry = registry or default_registry()
    held = constrain(model, latent=latent, registry=registry)
    made = trainable(held.model, registry)
    made.release = held.release
    return made
