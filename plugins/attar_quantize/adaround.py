"""AdaRound on Gram matrices (Nagel et al. 2020, "Up or down? Adaptive rounding for post-training
quantization").

Each weight is rounded down or up, f + h with f = floor(w / s) and h in {0, 1}; h is relaxed to a rectified
sigmoid of a free variable V,

    h(V) = clip(sigmoid(V) * 1.2 - 0.1, 0, 1),

and V minimizes the loss of the layer's outputs plus a penalty that drives every h to 0 or 1:

    E = W - s (f + h - z)         sum over rows of  e H e^T  +  lambda * sum(1 - |2 h - 1|^beta)

The loss is quadratic in h given the Gram matrix H, so its gradient is -2 s (E H), in closed form: no
framework, no batches of activations. beta falls from 20 to 2 in the course, Adam takes the steps.
"""

from __future__ import annotations

import numpy as np

from attar import solve
from attar_quantize.scheme import Array

_STRETCH, _SHIFT = 1.2, -0.1


def adaround(
    weight: Array,
    h: Array,
    grid: solve.Grid,
    *,
    start: Array | None = None,
    steps: int = 400,
    rate: float = 0.05,
    strength: float = 3.0,
) -> Array:
    """Codes that round each weight down or up so that the outputs change least.

    Args:
        weight: `[..., rows, K]`.
        h: `[..., K, K]`, positive definite (`solve.damped`).
        grid: scale and zero point of rows.
        start: codes to compare with: of each row the better is returned.
        steps: of Adam; the first fifth without the penalty.
        rate: step size.
        strength: weight of the penalty, in units of the loss of rounding to nearest, per weight.

    Returns:
        Codes, int32; never worse in any row than rounding to nearest, nor than `start`.
    """
    nearest = grid.codes(weight)
    scale, zero = (np.broadcast_to(a, weight.shape) for a in grid.along(weight.shape[-1]))
    below = np.floor(weight / scale) + zero
    # In units of the step every row and layer has numbers of the same size; the loss is scaled to 1 a weight.
    ratio = weight / scale + zero - below
    loss = solve.cost(weight - grid.values(nearest), h).mean(axis=-1)[..., None, None] / weight.shape[-1]
    hessian = (h / np.maximum(loss, np.finfo(np.float64).tiny)).astype(np.float32)
    s = scale.astype(np.float32)
    ratio = ratio.astype(np.float32)
    # V such that h(V) is the real remainder: the search begins at no error at all.
    share = np.clip((ratio - _SHIFT) / _STRETCH, 1e-4, 1 - 1e-4)
    v = np.log(share / (1 - share)).astype(np.float32)
    first, second = np.zeros_like(v), np.zeros_like(v)
    quiet = steps // 5
    for step in range(steps):
        sigmoid = 1 / (1 + np.exp(-v))
        soft = sigmoid * _STRETCH + _SHIFT
        up = np.clip(soft, 0, 1)
        slope = -2 * s * ((s * (ratio - up)) @ hessian)
        if step >= quiet:
            beta = 2 + 18 * (1 - (step - quiet) / max(1, steps - quiet))
            centre = 2 * up - 1
            slope -= strength * 2 * beta * np.sign(centre) * np.abs(centre) ** (beta - 1)
        slope *= sigmoid * (1 - sigmoid) * _STRETCH * ((soft > 0) & (soft < 1))
        first = 0.9 * first + 0.1 * slope
        second = 0.999 * second + 0.001 * slope * slope
        size = rate * np.sqrt(1 - 0.999 ** (step + 1)) / (1 - 0.9 ** (step + 1))
        v -= (size * first / (np.sqrt(second) + 1e-8)).astype(np.float32)
    learned = np.clip(below + (v >= 0), grid.low, grid.high).astype(np.int32)
    best = learned
    for other in (nearest, start):
        if other is not None:
            worse = solve.cost(weight - grid.values(best), h) > solve.cost(weight - grid.values(other), h)
            best = np.where(worse[..., None], other, best)
    return np.asarray(best, np.int32)
