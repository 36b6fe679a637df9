"""What kernels cost on a target: a small linear model an operator class and element type, fitted to measured
times.

    microseconds = call + mac * multiply_accumulates + element * (elements read and written)

All three coefficients are at least 0. `attar calibrate-target` measures them (`attar.calibrate`), the tables
for common processors ship with the package. The planner compares estimates; it never reads a network's name.
"""

from __future__ import annotations

import itertools
import json
import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from attar.errors import InputError


@dataclass(frozen=True)
class Cost:
    """Coefficients in microseconds: per call, per multiply-accumulate, per element read or written."""

    call: float
    mac: float
    element: float

    def microseconds(self, macs: float, elements: float) -> float:
        return self.call + self.mac * macs + self.element * elements


@dataclass(frozen=True)
class CostTable:
    """Costs by operator class and type, e.g. `("conv.pointwise", "int8")`.

    Attributes:
        measured_on: processor and runtime that the figures were measured on, for the report.
    """

    rows: Mapping[tuple[str, str], Cost]
    measured_on: str = ""

    def estimate(self, kind: str, dtype: str, *, macs: float = 0, elements: float = 0) -> float | None:
        """Estimated microseconds on one thread; None for a class that was not measured."""
        row = self.rows.get((kind, dtype))
        return None if row is None else row.microseconds(macs, elements)

    def to_dict(self) -> dict[str, Any]:
        """Plain JSON types; coefficients to 4 digits, which is more than they were measured with."""
        table: dict[str, dict[str, list[float]]] = {}
        for (kind, dtype), cost in sorted(self.rows.items()):
            table.setdefault(kind, {})[dtype] = [
                float(f"{c:.4g}") for c in (cost.call, cost.mac, cost.element)
            ]
        return {"measured_on": self.measured_on, "costs": table}

    def to_json(self) -> str:
        table = self.to_dict()["costs"]
        rows = ",\n".join(f"    {json.dumps(k)}: {json.dumps(v)}" for k, v in table.items())
        measured_on = json.dumps(self.measured_on)
        return f'{{\n  "measured_on": {measured_on},\n  "costs": {{\n{rows}\n  }}\n}}\n'

    @classmethod
    def from_json(cls, text: str, *, where: str = "cost table") -> CostTable:
        """The inverse of `to_json`.

        Raises:
            InputError: the text is not a cost table.
        """
        try:
            data: dict[str, Any] = json.loads(text)
            rows = {
                (kind, dtype): Cost(*(float(c) for c in coefficients))
                for kind, by_type in data["costs"].items()
                for dtype, coefficients in by_type.items()
            }
            for (kind, dtype), cost in rows.items():
                if not all(math.isfinite(c) and c >= 0 for c in (cost.call, cost.mac, cost.element)):
                    raise ValueError(f"{kind} {dtype} has a coefficient that is not a number from 0 up")
            return cls(rows, str(data.get("measured_on", "")))
        except (ValueError, KeyError, TypeError, AttributeError, OverflowError, RecursionError) as error:
            raise InputError(f"{where}: not a cost table: {error}") from error

    @classmethod
    def load(cls, path: str | Path) -> CostTable:
        """Read a table that `attar calibrate-target` wrote.

        Raises:
            InputError: the file is not there or is not a cost table.
        """
        try:
            text = Path(path).read_text("utf-8")
        except (OSError, TypeError, ValueError) as error:  # ValueError: not text, or a NUL in the path
            raise InputError(f"cannot read the cost table {path}: {error}") from error
        return cls.from_json(text, where=str(path))


def fit(samples: Iterable[tuple[float, float, float]]) -> Cost:
    """Fit a `Cost` to (macs, elements, microseconds) samples.

    Minimises the sum of squared *relative* errors under coefficients >= 0. With three unknowns the optimum of
    the non-negative problem is the best feasible least-squares solution over the 7 subsets of active columns.

    Raises:
        InputError: there are no samples.
    """
    data = np.array(list(samples), dtype=np.float64)
    if data.size == 0:
        raise InputError("cannot fit a cost without samples")
    times = data[:, 2]
    # The call itself is bounded by what the quickest sample took; the floor keeps 0 us samples from dividing
    # by zero.
    weights = 1 / np.maximum(times, 0.5)
    design = np.stack([np.ones(len(data)), data[:, 0], data[:, 1]], axis=1) * weights[:, None]
    best: tuple[float, Sequence[float]] = (np.inf, (float(times.mean()), 0.0, 0.0))
    for size in (1, 2, 3):
        for columns in itertools.combinations(range(3), size):
            used = design[:, columns]
            if not used.any(axis=0).all():
                continue
            solution = np.linalg.lstsq(used, times * weights, rcond=None)[0]
            if (solution < 0).any():
                continue
            error = float(np.sum((used @ solution - times * weights) ** 2))
            if error < best[0] - 1e-12:
                full = np.zeros(3)
                full[list(columns)] = solution
                best = (error, full.tolist())
    return Cost(*best[1])
