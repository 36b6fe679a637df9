"""Least squares of one layer, from sums over its inputs before and after pruning."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from attar.gram import Gram

Floats = npt.NDArray[np.float64]
Bools = npt.NDArray[np.bool_]


class Moments:
    """E[x x^T] of the inputs that stay and W E[t x^T], central where a bias takes the means; of groups.

    Where there is one group, columns that go are left out of all matrices: with a third of them gone a
    system costs a third.

    Args:
        w: the weights that tell what is wanted, `[groups, outputs, K]`.
        stay: columns, `[groups, K]`.
        centred: whether a bias makes good the means.

    Attributes:
        start: `w` in the columns that matrices have, zero in those that go.
    """

    def __init__(self, w: Floats, found: Gram, stay: Bools, *, centred: bool) -> None:
        count = max(1, found.count)
        assert found.cross is not None
        assert found.twin is not None
        self._shape, self._centred = w.shape, centred
        mean_x, mean_t = found.total / count, found.twin / count
        self._columns = np.flatnonzero(stay[0]) if len(stay) == 1 else None
        xx, tx = found.matrix, found.cross
        start = w
        if self._columns is not None:
            c = self._columns
            xx, tx, start = xx[:, c[:, None], c[None]], tx[:, :, c], w[:, :, c]
            mean_x, stay = mean_x[:, c], stay[:, c]
        self.start, self._stay = start * stay[:, None, :], stay
        self._xx, self._wanted = xx / count, (w @ tx) / count
        self._mean_x, self._offset = mean_x, np.einsum("gok,gk->go", w, mean_t)
        if centred:
            self._xx -= mean_x[..., :, None] * mean_x[..., None, :]
            self._wanted -= self._offset[..., :, None] * mean_x[..., None, :]
        if not stay.all():
            self._xx *= stay[..., :, None] & stay[..., None, :]
            self._wanted *= stay[..., None, :]
        power = np.einsum("gkk->g", self._xx) / np.maximum(1, stay.sum(axis=-1))
        self._power = np.maximum(power, 1e-12)[:, None]

    def solved(self, damping: float) -> Floats:
        """The weights that do best, drawn to `start` by `damping` times the mean power of an input."""
        left = self._xx.copy()
        d = damping * self._power * self._stay  # [groups, K]
        # Columns that go stand alone, with nothing on the right.
        np.einsum("gkk->gk", left)[...] += np.where(self._stay, d, 1.0)
        right = self._wanted + self.start * d[:, None, :]
        return np.asarray(np.swapaxes(np.linalg.solve(left, np.swapaxes(right, -1, -2)), -1, -2))

    def spread(self, rows: Floats) -> Floats:
        """Rows over all columns, zero in those that go."""
        if self._columns is None:
            return rows
        whole = np.zeros(self._shape)
        whole[:, :, self._columns] = rows
        return whole

    def shift(self, rows: Floats) -> Floats:
        """What a bias adds so that the means stay, `[groups, outputs]`."""
        if not self._centred:
            return np.zeros(self._shape[:2])
        return np.asarray(self._offset - np.einsum("gok,gk->go", rows, self._mean_x))

    def loss(self, rows: Floats, shift: Floats) -> float:
        """E |W t - W' x - s|^2 without the part that no W' and s change."""
        around = float(((rows @ self._xx - 2 * self._wanted) * rows).sum())
        return around + (float(((self.shift(rows) - shift) ** 2).sum()) if self._centred else 0.0)
