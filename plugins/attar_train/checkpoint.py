"""Checkpoints: everything that a training needs to go on as if it had not been stopped.

One file of tensors (safetensors) whose header holds the numbers (JSON). It is written beside and renamed, so
there is a whole one at any moment. Its name says which training it belongs to: the pass, its options, the
model, the data and the seed. No pickle is written or read.

A process that is killed while it writes leaves what it has written beside. The next training of the same name
removes it. A process that lives holds a lock on what it writes, which the system gives up when it dies: of a
living one nothing is removed.
"""

from __future__ import annotations

import contextlib
import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any

from attar.errors import InputError, Refused
from attar.files import replacing

try:
    import fcntl
except ImportError:  # Windows, which keeps a file that is open from being removed
    fcntl = None

if TYPE_CHECKING:
    import torch

_FORMAT = "attar.train.1"


class Checkpoint:
    """The checkpoint of one training in a folder.

    Raises:
        InputError: the folder cannot be made.
        Refused: safetensors is not installed.
    """

    def __init__(self, folder: str | Path, name: str, key: str) -> None:
        from importlib.util import find_spec

        if find_spec("safetensors") is None:
            raise Refused("checkpoints need safetensors", hint="pip install attar[torch]")
        folder = Path(folder)
        try:
            folder.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise InputError(f"cannot make the folder {folder} for checkpoints: {error.strerror}") from error
        self.path = folder / f"{name}-{key[:16]}.safetensors"

    def save(self, tensors: Mapping[str, torch.Tensor], numbers: Mapping[str, Any]) -> None:
        """Write a state in one step: either all of it is there, or what was there before.

        Raises:
            InputError: the place cannot be written.
        """
        from safetensors.torch import save

        content = save(
            {name: t.detach().cpu().contiguous() for name, t in tensors.items()},
            metadata={"format": _FORMAT, "numbers": json.dumps(numbers)},
        )
        with contextlib.ExitStack() as until_renamed, replacing(self.path) as beside:
            file = until_renamed.enter_context(_claimed(beside))
            file.write(content)
            if fcntl is None:  # there a file that is open cannot be renamed either
                file.close()
            else:
                file.flush()

    def load(self) -> tuple[dict[str, torch.Tensor], dict[str, Any]] | None:
        """The last state, None if there is none.

        Raises:
            InputError: the file is no checkpoint.
        """
        self._clean()
        if not self.path.is_file():
            return None
        from safetensors import SafetensorError, safe_open

        try:
            with safe_open(str(self.path), "pt") as file:
                said = file.metadata() or {}
                tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118  not a mapping
            if said.get("format") != _FORMAT:
                raise ValueError(f"its format is {said.get('format')!r}")
            return tensors, json.loads(said["numbers"])
        except (SafetensorError, ValueError, KeyError, OSError) as error:
            raise InputError(
                f"{self.path} is no checkpoint of attar's: {error}", hint="move it away to begin anew"
            ) from error

    def _clean(self) -> None:
        """Remove what trainings that were killed while they wrote have left."""
        for left in self.path.parent.glob("*.part"):
            if self.path.name[:60] not in left.name:
                continue
            # Held by a process that lives, renamed or gone by now, or not ours to remove: it stays.
            with contextlib.suppress(OSError), contextlib.ExitStack() as until_removed:
                if fcntl is not None:
                    file = until_removed.enter_context(left.open("r+b"))
                    fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
                left.unlink()


def _claimed(path: Path) -> IO[bytes]:
    """The file, open to be written and locked for as long as it is open."""
    while True:
        file = path.open("wb")
        if fcntl is None:
            return file
        with contextlib.suppress(OSError):  # a file system without locks, where nothing is ever removed
            fcntl.flock(file, fcntl.LOCK_EX)
        if os.fstat(file.fileno()).st_nlink:
            return file
        file.close()  # taken for one that was left, before it was locked


def optimizer_tensors(optimizer: torch.optim.Optimizer) -> dict[str, torch.Tensor]:
    """The state of an optimizer by number of the parameter and name."""
    import torch

    found = {}
    for index, parameter in enumerate(_parameters(optimizer)):
        for name, value in optimizer.state.get(parameter, {}).items():
            if isinstance(value, torch.Tensor):
                found[f"{index}.{name}"] = value
    return found


def restore_optimizer(optimizer: torch.optim.Optimizer, tensors: Mapping[str, torch.Tensor]) -> None:
    """The inverse of `optimizer_tensors`."""
    for index, parameter in enumerate(_parameters(optimizer)):
        for key, value in tensors.items():
            number, name = key.split(".", 1)
            if int(number) == index:
                # AdamW keeps its counter of steps on the CPU.
                home = value.device if value.dim() == 0 else parameter.device
                optimizer.state[parameter][name] = value.clone().to(home)


def _parameters(optimizer: torch.optim.Optimizer) -> list[Any]:
    return [p for group in optimizer.param_groups for p in group["params"]]
