"""What else happens in a training, step by step."""

from __future__ import annotations

from typing import TYPE_CHECKING, Protocol

if TYPE_CHECKING:
    import torch


class Callback(Protocol):
    """What else happens in a training: pruning by and by, regularization. One that inherits from it says only
    what it does otherwise than doing nothing.

    Both are told the number of the step and of all steps. What `before_step` returns, if anything, is added
    to the loss of each batch of the step. `state` are tensors for checkpoints; `load` gets them back.
    """

    def before_step(self, step: int, steps: int) -> torch.Tensor | None:
        return None

    def after_step(self, step: int, steps: int) -> None:
        return None

    def state(self) -> dict[str, torch.Tensor]:
        return {}

    def load(self, tensors: dict[str, torch.Tensor]) -> None:
        return None
