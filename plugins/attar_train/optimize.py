"""What is optimized and how: groups of weights, optimizers, running averages."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING, Any

from attar_train.options import Options

if TYPE_CHECKING:
    import torch


def groups(parameters: Iterable[torch.nn.Parameter], decay: float) -> list[dict[str, Any]]:
    """Parameter groups: matrices and kernels decay, vectors and numbers (scales, biases, steps) do not."""
    chosen = list({id(p): p for p in parameters if p.requires_grad}.values())
    heavy, light = [p for p in chosen if p.dim() > 1], [p for p in chosen if p.dim() <= 1]
    made = [{"params": heavy, "weight_decay": decay}, {"params": light, "weight_decay": 0.0}]
    return [group for group in made if group["params"]]


def optimizer(parameters: Sequence[torch.nn.Parameter], options: Options) -> torch.optim.Optimizer:
    """AdamW (Loshchilov & Hutter 2019, arXiv:1711.05101) or SGD with Nesterov's momentum."""
    import torch

    made = groups(parameters, options.decay)
    if options.optimizer == "adamw":
        return torch.optim.AdamW(made, lr=options.rate)
    return torch.optim.SGD(
        made, lr=options.rate, momentum=options.momentum, nesterov=options.momentum > 0, foreach=True
    )


class Average:
    """A running average of tensors: a = d a + (1 - d) x, with d = min(decay, (1 + n) / (10 + n)) after n
    steps, so that the beginning does not weigh on it."""

    def __init__(self, tensors: dict[str, torch.Tensor], decay: float) -> None:
        self._live, self._decay = tensors, decay
        self.steps = 0
        self.kept = {name: t.detach().clone() for name, t in tensors.items()}

    def update(self) -> None:
        """Take in what the tensors are now."""
        import torch

        self.steps += 1
        share = 1 - min(self._decay, (1 + self.steps) / (10 + self.steps))
        names = [n for n, t in self.kept.items() if t.is_floating_point()]
        with torch.no_grad():
            torch._foreach_lerp_(
                [self.kept[n] for n in names], [self._live[n].detach() for n in names], share
            )
            for name in self.kept:
                if name not in names:
                    self.kept[name].copy_(self._live[name])


def swap(live: dict[str, torch.Tensor], other: dict[str, torch.Tensor]) -> None:
    """Exchange the contents of tensors."""
    import torch

    with torch.no_grad():
        for name, tensor in live.items():
            held = tensor.detach().clone()
            tensor.copy_(other[name])
            other[name].copy_(held)


def put(live: dict[str, torch.Tensor], content: dict[str, torch.Tensor]) -> None:
    """Give tensors the content of others."""
    import torch

    with torch.no_grad():
        for name, tensor in live.items():
            tensor.copy_(content[name])
