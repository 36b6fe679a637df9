"""What an error of a layer does to the outputs of the network: measured, one layer at a time."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import onnx_ir as ir

from attar import graph
from attar.context import Context
from attar.feeds import Feeds, pieces
from attar.gram import from_rows
from attar_factor.candidates import Factors
from attar_factor.layers import Array, Layer
from attar_factor.write import cast

# Samples that are run for each layer.
SAMPLES = 32


def sensitivities(
    model: ir.Model, probes: Sequence[tuple[Layer, Factors, Array | None]], ctx: Context
) -> list[float]:
    """Energy of the change of the outputs, relative to that of the outputs, with one layer changed at a time.

    Args:
        probes: layers with factors to try, and the means of their inputs, which biases would make good.

    Returns:
        One number a probe; 0 where it cannot be told.
    """
    feeds = _samples(ctx)
    expected = _outputs(model, feeds, ctx)
    found = []
    with ctx.progress.task("measuring sensitivities", len(probes)) as task:
        for layer, factors, mean in probes:
            error: Array = factors.last @ factors.features - layer.rows
            if mean is not None:  # a bias takes the part along the mean: E m = 0
                size = np.maximum(np.sum(mean**2, axis=-1), 1e-30)[:, None, None]
                error = error - (error @ mean[..., None]) * mean[:, None, :] / size
            array = graph.const_array(layer.weight)
            assert array is not None
            copy = graph.clone(model)
            value = next(
                v for n in copy.graph for v in n.inputs if v is not None and v.name == layer.weight.name
            )
            graph.replace_weight(
                value, cast(from_rows(layer.node, layer.rows + error, array.shape), layer.weight.dtype)
            )
            found.append(_distance(expected, _outputs(copy, feeds, ctx)))
            task.advance()
    return found


def _samples(ctx: Context) -> list[Feeds]:
    feeds: list[Feeds] = []
    count = 0
    for batch in ctx.calibration:
        for piece in pieces(batch.inputs, ctx.calibration.specs):
            feeds.append(piece)
            count += max((len(a) for a in piece.values() if a.ndim), default=1)
            if count >= SAMPLES:
                return feeds
    return feeds


def _outputs(model: ir.Model, feeds: Sequence[Feeds], ctx: Context) -> list[list[Array]]:
    session = ctx.runtime.open(model, threads=ctx.threads)
    return [session.run(feed) for feed in feeds]


def _distance(expected: Sequence[Sequence[Array]], got: Sequence[Sequence[Array]]) -> float:
    total = 0.0
    for one, other in zip(zip(*expected, strict=True), zip(*got, strict=True), strict=True):
        if one[0].dtype.kind != "f":
            continue
        noise = signal = 0.0
        for a, b in zip(one, other, strict=True):
            wide = np.asarray(a, np.float64)
            good = np.isfinite(wide) & np.isfinite(b)
            noise += float(np.sum(np.where(good, wide - b, 0.0) ** 2))
            signal += float(np.sum(np.where(good, wide, 0.0) ** 2))
        total += noise / signal if signal > 0 else 0.0
    return total
