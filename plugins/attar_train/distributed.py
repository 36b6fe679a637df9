"""Where a training runs: one process, or several that Hugging Face's `accelerate` started.

attar brings no distribution of its own. A script that is started with `accelerate launch` (or torchrun, with
accelerate installed) trains on all processes: each takes its part of every batch, gradients are averaged, the
first process evaluates and writes.
"""

from __future__ import annotations

import os
from importlib.util import find_spec
from typing import TYPE_CHECKING, Any

from attar.errors import InputError, Refused
from attar_train.options import Options

if TYPE_CHECKING:
    import torch

_TYPES = {"bfloat16": "bf16", "float16": "fp16", "float32": "no"}


class Place:
    """Device, precision and processes of a training.

    Attributes:
        rank: number of this process.
        world: number of processes.
        device: where tensors go.
    """

    def __init__(self, options: Options) -> None:
        import torch

        self._options = options
        self._accelerator: Any = None
        self.rank, self.world = 0, 1
        if int(os.environ.get("WORLD_SIZE", "1") or 1) > 1:
            self._accelerator = _accelerator(options)
            self.rank, self.world = self._accelerator.process_index, self._accelerator.num_processes
            self.device = self._accelerator.device
        else:
            self.device = _device(options.device)
        if options.precision == "float16" and self.device.type != "cuda":
            raise Refused(
                f"float16 needs a scaled loss and a GPU, this trains on {self.device.type}",
                hint='precision="bfloat16" trains on both',
            )
        self._scaler = torch.amp.GradScaler(
            self.device.type, enabled=options.precision == "float16" and self._accelerator is None
        )

    @property
    def main(self) -> bool:
        """Whether this process evaluates, writes and tells."""
        return self.rank == 0

    def wrapped(self, module: Any) -> Any:
        """The module as all processes run it."""
        return module if self._accelerator is None else self._accelerator.prepare_model(module)

    def steers(self, optimizer: torch.optim.Optimizer) -> Any:
        """The optimizer as all processes step it."""
        return optimizer if self._accelerator is None else self._accelerator.prepare_optimizer(optimizer)

    def autocast(self) -> Any:
        """The context in which activations have the wanted type."""
        import torch

        kind = {"bfloat16": torch.bfloat16, "float16": torch.float16}.get(self._options.precision)
        return torch.autocast(self.device.type, dtype=kind or torch.bfloat16, enabled=kind is not None)

    def backward(self, loss: torch.Tensor) -> None:
        if self._accelerator is None:
            self._scaler.scale(loss).backward()
        else:
            self._accelerator.backward(loss)

    def step(self, optimizer: torch.optim.Optimizer, clip: float | None, parameters: list[Any]) -> None:
        """Clip the gradients, make a step, forget the gradients."""
        import torch

        if self._accelerator is not None:
            if clip is not None:
                self._accelerator.clip_grad_norm_(parameters, clip)
            optimizer.step()
        else:
            if clip is not None:
                self._scaler.unscale_(optimizer)
                torch.nn.utils.clip_grad_norm_(parameters, clip)
            self._scaler.step(optimizer)
            self._scaler.update()
        optimizer.zero_grad(set_to_none=True)

    def scale(self) -> dict[str, Any]:
        """State of the loss scaling, for checkpoints."""
        return dict(self._scaler.state_dict())

    def restore_scale(self, state: dict[str, Any]) -> None:
        if state:
            self._scaler.load_state_dict(state)

    def agree(self, value: float) -> float:
        """The first process's number."""
        if self._accelerator is None:
            return value
        import torch
        from accelerate.utils import broadcast

        return float(broadcast(torch.tensor([value], device=self.device, dtype=torch.float64))[0])

    def mean(self, value: torch.Tensor) -> float:
        """The mean of a number over the processes."""
        if self._accelerator is None:
            return float(value)
        return float(self._accelerator.reduce(value.detach().float(), "mean"))

    def wait(self) -> None:
        """Let all processes come to this point."""
        if self._accelerator is not None:
            self._accelerator.wait_for_everyone()


def _accelerator(options: Options) -> Any:
    if find_spec("accelerate") is None:
        raise Refused(
            f"this is one of {os.environ['WORLD_SIZE']} processes, and training on several needs accelerate",
            hint="pip install attar[distributed]",
        )
    from accelerate import Accelerator

    return Accelerator(mixed_precision=_TYPES[options.precision], cpu=options.device == "cpu")


def _device(name: str) -> torch.device:
    import torch

    if name == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        device = torch.device(name)
        torch.empty(1, device=device)
    except (RuntimeError, AssertionError) as error:
        raise InputError(f"cannot train on device {name!r}: {str(error).splitlines()[0]}") from error
    return device
