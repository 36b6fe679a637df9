"""Making a network smaller without touching its weights: fewer layers, smaller images."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import onnx_ir as ir

from attar import graph
from attar.context import Context
from attar.errors import AttarError, Refused
from attar.feeds import pieces
from attar.measure import worst_sqnr
from attar.specs import TensorSpec

_SAMPLES = 64


def residuals(model: ir.Model) -> list[tuple[ir.Node, ir.Value]]:
    """Adds of the main graph that add to a value what was computed from it, with that value: layers that the
    network can do without, since the value goes past them."""
    order = {node: place for place, node in enumerate(model.graph)}
    found = []
    for node in model.graph:
        if node.op_type != "Add" or node.domain != "" or node.outputs[0].is_graph_output():
            continue
        for place in (0, 1):
            past, computed = node.inputs[place], node.inputs[1 - place]
            if past is None or computed is None or past.producer() is None or _shape(past) is None:
                continue
            if _shape(past) == _shape(computed) and _reaches(past, computed, order):
                found.append((node, past))
                break
    return found


def _shape(value: ir.Value) -> tuple[object, ...] | None:
    return None if value.shape is None else tuple(str(d) for d in value.shape)


def _reaches(source: ir.Value, target: ir.Value, order: dict[ir.Node, int]) -> bool:
    """Whether `target` is computed from `source`."""
    maker = source.producer()
    first = order.get(maker, -1) if maker is not None else -1
    stack, seen = [target], set()
    while stack:
        value = stack.pop()
        if value is source:
            return True
        node = value.producer()
        if node is None or node in seen or order.get(node, -1) <= first:
            continue
        seen.add(node)
        stack += [v for v in node.inputs if v is not None]
    return False


def drop_layers(model: ir.Model, share: float, ctx: Context) -> list[str]:
    """Leave out a share of the residual layers, one after the other the one whose absence changes the outputs
    least; the names of their sums.

    Raises:
        Refused: there is none, or there are no data to tell which.
    """
    names = [str(node.name) for node, _ in residuals(model)]
    if not names:
        raise Refused("the model has no residual layer that could be left out")
    count = max(1, round(share * len(names)))
    specs, batches = _data(ctx)
    original = ctx.runtime.open(graph.clone(model), threads=ctx.threads)
    dropped: list[str] = []
    with ctx.progress.task("leaving out layers", count) as task:
        for _ in range(count):
            scores = {}
            for name in (n for n in names if n not in dropped):
                trial = graph.clone(model)
                if not _drop(trial, name):
                    continue
                try:
                    session = ctx.runtime.open(trial, threads=ctx.threads)
                    parts = (p for inputs in batches for p in pieces(inputs, specs))
                    scores[name] = worst_sqnr(original, session, parts)
                except AttarError:
                    continue
            if not scores:
                break
            best = max(scores, key=lambda n: (scores[n], -names.index(n)))
            _drop(model, best)
            dropped.append(best)
            task.advance()
    if not dropped:
        raise Refused("no residual layer can be left out")
    return dropped


def _data(ctx: Context) -> tuple[Sequence[TensorSpec], list[Any]]:
    """Input specs and a few batches: of the calibration data, else of the training data."""
    if ctx.data is not None:
        return ctx.data.specs, [b.inputs for b in ctx.data.take(_SAMPLES)]
    return ctx.training.specs, [ctx.training.first().inputs]


def _drop(model: ir.Model, name: str) -> bool:
    """Let the readers of a sum read what went past it."""
    for node, past in residuals(model):
        if node.name == name:
            for user, place in list(node.outputs[0].uses()):
                user.replace_input_with(place, past)
            graph.tidy(model)
            return True
    return False


def lower_resolution(model: ir.Model, factor: float, ctx: Context) -> str:
    """Make images smaller in front of the first convolution; the name of that. By a mean of pixels where a
    whole number of them becomes one, else by linear interpolation.

    Raises:
        Refused: there is no convolution of images, or what follows wants images of one size.
    """
    conv = next((n for n in model.graph if n.op_type == "Conv" and _rank(n.inputs[0]) == 4), None)
    if conv is None or conv.inputs[0] is None:
        raise Refused("the model has no convolution of images")
    source, before = conv.inputs[0], _shapes(model, ctx)
    taken = graph.taken_names(model.graph)
    name = graph.fresh_name(model.graph, f"{conv.name}/smaller", taken)
    whole = round(1 / factor)
    if abs(whole * factor - 1) < 1e-6:
        kernel = [whole, whole]
        node = ir.node("AveragePool", [source], {"kernel_shape": kernel, "strides": kernel}, name=name)
    else:
        scales = np.array([1, 1, factor, factor], np.float32)
        stored = graph.add_initializer(model.graph, f"{name}/scales", scales, taken)
        options = {"mode": "linear", "coordinate_transformation_mode": "half_pixel"}
        node = ir.node("Resize", [source, None, stored], options, name=name)
    node.outputs[0].name = graph.fresh_name(model.graph, f"{source.name}_smaller", taken)
    node.outputs[0].type = ir.TensorType(source.dtype or ir.DataType.FLOAT)
    conv.prepend(node)
    conv.replace_input_with(0, node.outputs[0])
    try:
        graph.refresh_shapes(model)
        after = _shapes(model, ctx)
    except AttarError as error:
        raise Refused(f"what follows wants images of one size: {error.message}") from error
    if before != after:  # a Reshape that takes the rest for samples
        raise Refused(f"what follows wants images of one size: outputs of {before} become {after}")
    return str(conv.name)


def _shapes(model: ir.Model, ctx: Context) -> list[tuple[int, ...]]:
    """Shapes of the outputs on some samples."""
    specs, batches = _data(ctx)
    return [a.shape for a in ctx.runtime.open(model).run(next(iter(pieces(batches[0], specs))))]


def _rank(value: ir.Value | None) -> int | None:
    return None if value is None or value.shape is None else len(value.shape)
