"""The refit: last layers are solved again for the inputs that they really get.

Each layer was factored for the inputs of the original network. In the factored one its inputs x are what the
factored layers before it give in place of t. With A = E[x x^T] and B = E[t x^T] the last layer L that
minimizes E |W t - L F x|^2 is W B F^T (F A F^T)^-1: layers that come later make good what those before them
have lost (asymmetric reconstruction, Zhang et al. 2016). Means are handled by the bias.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import onnx_ir as ir

from attar import gram as grams
from attar import graph, solve
from attar.context import Context
from attar.gram import Gram
from attar_factor.layers import Array
from attar_factor.write import Writer, Written

# Layers are refitted from the front to the back in so many runs over the data at most.
STAGES = 8
# Draw the solution to what it was; relative to the mean diagonal.
_DAMPINGS = (1e-4, 1e-3, 1e-2, 0.1, 1.0)


def refit(
    model: ir.Model,
    original: ir.Model,
    written: Sequence[Written],
    ctx: Context,
    writer: Writer,
    *,
    stages: int,
) -> int:
    """Refit the last layers of `written`, in order, against `original`.

    Returns:
        How many were refitted.
    """
    place = {node: i for i, node in enumerate(model.graph)}
    layers = sorted(written, key=lambda w: place[w.node])
    done = 0
    with ctx.progress.task("refitting", len(layers)) as task:
        for stage in np.array_split(np.arange(len(layers)), min(stages, len(layers))):
            mine = [layers[i] for i in stage]
            for portion in grams.sweeps([w.want for w in mine], grams.BUDGET // 2):
                graph.refresh_shapes(model)
                found = grams.collect(
                    model, portion, ctx.calibration, ctx.runtime,
                    reference=original, threads=ctx.threads, seed=ctx.seed, progress=ctx.progress,
                )  # fmt: skip
                for one in mine:
                    if one.want in found:
                        _solve(one, found[one.want], writer)
                        done += 1
            task.advance(len(mine))
    return done


def _solve(one: Written, gram: Gram, writer: Writer) -> None:
    last, bias = solution(one.rows, one.features, one.last, gram, centred=one.bias is not None)
    if not np.isfinite(last).all():
        return
    writer.set_last(one, last)
    if one.bias is not None:
        writer.set_bias(one.bias, bias if one.bias.array is None else one.bias.array + bias)


def solution(rows: Array, features: Array, last: Array, gram: Gram, *, centred: bool) -> tuple[Array, Array]:
    """The new L, and what is added to the original bias `[outputs]`.

    The damping, which draws L to what it was, is the one whose solution on one half of the samples costs
    least on the other half; "as it was" is among what is tried.

    Args:
        gram: of the layer's input, with `cross` and `twin`.
        centred: a bias makes good the means.
    """
    problem = _Problem.of(rows, features, gram, centred)
    damping = _DAMPINGS[0]
    half = gram.half
    if half is not None and 0 < half.count < gram.count:
        learn, test = (_Problem.of(rows, features, g, centred) for g in (_without(gram, half), half))
        costs = [test.cost(learn.solve(last, d)) for d in _DAMPINGS]
        damping = math.inf if test.cost(last) <= min(costs) else _DAMPINGS[int(np.argmin(costs))]
    new = last if damping == math.inf else problem.solve(last, damping)
    assert gram.twin is not None
    shift = np.einsum("gok,gk->go", rows, gram.twin / max(1, gram.count))
    shift = shift - np.einsum("gom,gmk,gk->go", new, features, gram.mean)
    return new, np.asarray(shift.reshape(-1))


@dataclass(frozen=True)
class _Problem:
    """E |W t - L z|^2 as a quadratic in L: -2 tr(target L^T) + tr(L inner L^T) and a constant.

    Attributes:
        inner: E[z z^T], z = F x.
        target: E[W t z^T].
    """

    inner: Array
    target: Array

    @classmethod
    def of(cls, rows: Array, features: Array, gram: Gram, centred: bool) -> _Problem:
        assert gram.cross is not None
        assert gram.twin is not None
        count = max(1, gram.count)
        a, b = gram.moment, gram.cross / count
        if centred:
            a = gram.covariance
            b = b - (gram.twin / count)[..., :, None] * gram.mean[..., None, :]
        z = np.swapaxes(features, -1, -2)
        return cls(features @ a @ z, rows @ b @ z)

    def solve(self, base: Array, damping: float) -> Array:
        """The best L near `base`."""
        change: Array = self.target - base @ self.inner
        solved = np.linalg.solve(solve.damped(self.inner, damping), np.swapaxes(change, -1, -2))
        return np.asarray(base + np.swapaxes(solved, -1, -2))

    def cost(self, last: Array) -> float:
        return float(np.sum(last * (last @ self.inner - 2 * self.target)))


def _without(whole: Gram, part: Gram) -> Gram:
    assert whole.cross is not None
    assert whole.twin is not None
    assert part.cross is not None
    assert part.twin is not None
    return Gram(
        whole.matrix - part.matrix,
        whole.total - part.total,
        whole.count - part.count,
        cross=whole.cross - part.cross,
        twin=whole.twin - part.twin,
    )
