"""What the activation behind a layer lets through.

Where a Relu or Clip swallows what a layer made, the layer may make anything that is swallowed, too. A fit
that knows it spends nothing there. With y the wanted and p the present output, the target

    z = min(p, low) where y <= low,    z = max(p, high) where y >= high,    z = y elsewhere

costs no more than y did, and least squares for z costs no more than before: the error behind the activation
falls with every round (majorization; Zhang et al. 2015, arXiv:1505.06798, fit a Relu in this spirit).
"""

from __future__ import annotations

from typing import Any

import numpy as np
import onnx_ir as ir

from attar import graph
from attar_prune import sparse

Array = np.ndarray[Any, np.dtype[Any]]
Bounds = tuple[float, float]
_ROUNDS = 4


def bounds(node: ir.Node) -> Bounds | None:
    """Between which numbers the one reader of a node's output tells differences; None if it tells all."""
    out = node.outputs[0]
    uses = list(out.uses())
    if len(uses) != 1 or out.is_graph_output() or uses[0].idx != 0 or uses[0].node.domain != "":
        return None
    reader = uses[0].node
    if reader.op_type == "Relu":
        return 0.0, float("inf")
    if reader.op_type != "Clip":
        return None
    ends = []
    for index, default in ((1, -np.inf), (2, np.inf)):
        value = reader.inputs[index] if index < len(reader.inputs) else None
        array = graph.const_array(value)
        if value is not None and (array is None or array.size != 1):
            return None
        ends.append(float(default) if array is None else float(array.reshape(-1)[0]))
    return ends[0], ends[1]


def fitted(
    rows: Array, start: Array, h: Array, x: Array, wanted: Array, *, offset: Array, limits: Bounds
) -> tuple[Array, Array]:
    """Rows over the support of `start` that fit what is heard.

    Args:
        rows: the weights that gave `wanted` and that the damping draws to, `[outputs, K]`.
        start: a first solution, with zeros, `[outputs, K]`.
        h: damped covariance, `[K, K]`.
        x: inputs, `[n, K]`, central.
        wanted: outputs before the activation, `[n, outputs]`.
        offset: what `start` is to be shifted by to give outputs, `[outputs]`: at the mean of the inputs.

    Returns:
        The rows, and the outputs at the mean of the inputs.
    """
    low, high = limits
    mask = start == 0
    x = x.astype(np.float32)
    wanted = wanted.astype(np.float32)
    spare = h - (x.T @ x).astype(np.float64) / len(x)  # the damping, and what other vectors told
    swallowed, cut = wanted <= low, wanted >= high
    now, middle = start, offset
    for _ in range(_ROUNDS):
        made = x @ now.T.astype(np.float32) + middle.astype(np.float32)
        target = np.where(swallowed, np.minimum(made, low), np.where(cut, np.maximum(made, high), wanted))
        middle = target.mean(axis=0).astype(np.float64)
        cross = ((target - middle.astype(np.float32)).T @ x).astype(np.float64) / len(x)
        best = np.linalg.solve(h, (cross + rows @ spare).T).T
        now = sparse.settle(best[None], h[None], mask[None], start=now[None], rounds=8)[0]
    return now, middle
