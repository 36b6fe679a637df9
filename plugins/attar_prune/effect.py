"""What a change of a model does to its outputs, measured on a few calibration samples."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
import onnx_ir as ir

from attar.errors import AttarError
from attar.feeds import pieces

if TYPE_CHECKING:
    from attar.context import Context

Array = np.ndarray[Any, np.dtype[Any]]
SAMPLES = 32


class Outputs:
    """The outputs of a model as it is, to hold others against."""

    def __init__(self, model: ir.Model, ctx: Context, samples: int = SAMPLES) -> None:
        self._ctx, self._samples = ctx, samples
        self._wanted = self.of(model)

    def error(self, model: ir.Model) -> float:
        """Squared error of the outputs over their variance, the largest of all outputs; infinite where the
        model does not run or gives other shapes."""
        try:
            found = self.of(model)
        except AttarError:
            return float("inf")
        worst = 0.0
        for mine, theirs in zip(found, self._wanted, strict=True):
            if mine.shape != theirs.shape:
                return float("inf")
            good = np.isfinite(theirs)
            # One sample does not vary: its own numbers do.
            middle = np.where(good, theirs, 0).mean(axis=0 if len(theirs) > 1 else None)
            spread = float(np.where(good, theirs - middle, 0.0).var())
            wrong = np.where(good, mine - theirs, 0.0)
            error = float((wrong**2).mean()) / max(spread, 1e-30)
            worst = max(worst, error if np.isfinite(error) else float("inf"))
        return worst

    def of(self, model: ir.Model) -> list[Array]:
        """Each output of floats, a sample a row."""
        session = self._ctx.runtime.open(model, threads=self._ctx.threads)
        data = self._ctx.calibration
        found = [session.run(f) for b in data.take(self._samples) for f in pieces(b.inputs, data.specs)]
        floats = [i for i, y in enumerate(found[0]) if y.dtype.kind == "f"] or list(range(len(found[0])))
        rows = [
            [np.asarray(ys[i], np.float64).reshape(len(ys[i]) if ys[i].ndim else 1, -1) for i in floats]
            for ys in found
        ]
        # Lengths may differ between batches: each batch is flattened to what all have in common.
        width = [min(part[i].shape[1] for part in rows) for i in range(len(rows[0]))]
        return [np.concatenate([part[i][:, :n] for part in rows]) for i, n in enumerate(width)]
