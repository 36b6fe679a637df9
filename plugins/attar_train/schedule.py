"""Learning rates over a training."""

from __future__ import annotations

import math


def factor(kind: str, step: int, steps: int, warmup: float) -> float:
    """What the largest learning rate is multiplied by in step `step` (from 0) of `steps`.

    Args:
        kind: "cosine" (Loshchilov & Hutter 2017, arXiv:1608.03983, without restarts), "linear", "step" (a
            tenth from half of the steps on, a hundredth from three quarters), "one_cycle" (Smith 2018,
            arXiv:1803.09820: up over `warmup`, but no less than a quarter, of the steps along a cosine, then
            down along one to nothing), "constant".
        warmup: share of the steps over which the rate rises linearly from nothing.
    """
    if kind == "one_cycle":
        peak = max(warmup, 0.25) * steps
        if step < peak:
            return 0.04 + 0.96 * (1 - math.cos(math.pi * step / peak)) / 2
        return (1 + math.cos(math.pi * (step - peak) / max(1.0, steps - peak))) / 2
    rising = round(warmup * steps)
    if step < rising:
        return (step + 1) / (rising + 1)
    done = (step - rising) / max(1, steps - rising)
    if kind == "cosine":
        return (1 + math.cos(math.pi * done)) / 2
    if kind == "linear":
        return 1 - done
    if kind == "step":
        return 1.0 if done < 0.5 else 0.1 if done < 0.75 else 0.01
    return 1.0
