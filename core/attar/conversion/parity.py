"""Whether two forms of one model compute the same: largest differences, output by output."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from attar.errors import VerifyError

Array = np.ndarray[Any, np.dtype[Any]]
_TINY = 1e-12


@dataclass(frozen=True)
class OutputParity:
    """How one output differs from the reference.

    Attributes:
        name: the output.
        absolute: largest difference.
        relative: largest difference over the largest finite magnitude of the reference.
        rms: root mean square of the difference over that of the reference.
    """

    name: str
    absolute: float
    relative: float
    rms: float


@dataclass(frozen=True)
class Parity:
    """How the outputs of a model differ from those of its reference, on the same inputs."""

    outputs: tuple[OutputParity, ...]

    @property
    def absolute(self) -> float:
        return max((o.absolute for o in self.outputs), default=0.0)

    @property
    def relative(self) -> float:
        return max((o.relative for o in self.outputs), default=0.0)

    @property
    def rms(self) -> float:
        return max((o.rms for o in self.outputs), default=0.0)

    def __str__(self) -> str:
        return f"largest difference {self.absolute:.1e}, {self.relative:.1e} of the largest output"


def compare_outputs(names: Sequence[str], wanted: Sequence[Any], got: Sequence[Any], who: str) -> Parity:
    """Compare outputs with those of a reference. NaN equals NaN, and infinities equal themselves.

    Args:
        who: whose outputs `got` are; errors name it.

    Raises:
        VerifyError: the number, shape or kind of the outputs differ.
    """
    if len(wanted) != len(got):
        raise VerifyError(f"{who} gives {len(got)} outputs, {len(wanted)} are wanted")
    found = []
    for name, theirs, ours in zip(names, map(np.asarray, wanted), map(np.asarray, got), strict=True):
        if theirs.shape != ours.shape:
            raise VerifyError(
                f"output {name!r} of {who} has shape {list(ours.shape)}, not {list(theirs.shape)}"
            )
        if theirs.dtype.kind in "OSU" or ours.dtype.kind in "OSU":
            gap = 0.0 if np.array_equal(theirs, ours) else np.inf
            found.append(OutputParity(name, gap, gap, gap))
            continue
        found.append(_one(name, theirs.astype(np.float64), ours.astype(np.float64)))
    return Parity(tuple(found))


def _one(name: str, wanted: Array, got: Array) -> OutputParity:
    same = (wanted == got) | (np.isnan(wanted) & np.isnan(got))  # masks of -inf stay -inf
    gap = np.where(same, 0.0, np.abs(np.where(same, 0.0, wanted) - np.where(same, 0.0, got)))
    gap[np.isnan(gap)] = np.inf  # a NaN on one side only; max() would pass over it
    finite = wanted[np.isfinite(wanted)]
    largest = float(gap.max(initial=0.0))
    reach = float(np.abs(finite).max(initial=0.0))
    power = float(np.sqrt(np.mean(gap**2))) if gap.size else 0.0
    signal = float(np.sqrt(np.mean(finite**2))) if finite.size else 0.0
    return OutputParity(name, largest, largest / max(reach, _TINY), power / max(signal, _TINY))
