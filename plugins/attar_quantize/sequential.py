"""Rounding layers one after the other.

When the layers before have been rounded, a layer's input is x instead of t. Its weights are first fitted so
that W' x is like W t (`solve.transfer`), then rounded for x: each layer makes good what those before it have
done (Frantar et al. 2022 round in this order; the fit is in Li et al. 2025, GPTAQ). The float model and the
one under work run side by side, in as many stages as there are groups of neighbouring layers.
"""

from __future__ import annotations

import math
from collections.abc import Collection, Hashable, Mapping, Sequence

import numpy as np
import onnx_ir as ir

from attar import graph
from attar.context import Context
from attar.gram import collect, layer_input, sweeps
from attar_quantize.rounding import Rounded, least_scales, readers_of, round_layer, round_weights
from attar_quantize.scheme import Array, QParams
from attar_quantize.units import Unit

# More stages follow the errors more closely and take longer: each runs the data through both models once.
_STAGES = 64


def round_in_sequence(
    model: ir.Model,
    units: Sequence[Unit],
    params: Mapping[ir.Value, QParams],
    activations: Mapping[ir.Value, QParams],
    ctx: Context,
    *,
    method: str = "hessian",
    corrected: Collection[ir.Value] = (),
    stages: int = _STAGES,
) -> dict[ir.Value, Rounded]:
    """As `round_weights`, but each stage for the inputs that the rounded stages before it give.

    Args:
        stages: groups of neighbouring layers; those of one group do not see each other's errors.
    """
    key = _key(model, params, activations, (method, stages, *sorted(v.name or "" for v in corrected)))
    if key in ctx.cache:
        known: dict[str, Rounded] = ctx.cache[key]
        return {w: known[w.name or ""] for w in params if w.name in known}
    work = graph.clone(model)
    nodes = dict(zip(model.graph, work.graph, strict=True))
    least = least_scales(units, params, activations)
    readers = readers_of(units, params)
    # Weights with several readers have no one place in the order: they come first, for the float inputs.
    tied = [u for users in readers.values() if len(users) > 1 for u in users]
    out = round_weights(model, tied, params, activations, ctx, method=method, corrected=corrected)
    for unit in tied:
        if unit.weight is not None and unit.weight in out:
            _replace(nodes[unit.main], out[unit.weight], None)
    todo = [users[0] for users in readers.values() if len(users) == 1]
    size = max(1, math.ceil(len(todo) / stages))
    with ctx.progress.task("rounding weights", len(todo)) as task:
        for start in range(0, len(todo), size):
            stage = todo[start : start + size]
            wanted = {item: None for u in stage if (item := layer_input(u.main)) is not None}
            for portion in sweeps(wanted):
                grams = collect(
                    work,
                    portion,
                    ctx.calibration,
                    ctx.runtime,
                    reference=model,
                    threads=ctx.threads,
                    seed=ctx.seed,
                )
                for unit in stage:
                    item, weight = layer_input(unit.main), unit.weight
                    if item is None or item not in grams or weight is None:
                        continue
                    array = graph.const_array(weight)
                    assert array is not None
                    out[weight] = round_layer(
                        unit.main,
                        array,
                        grams[item],
                        params[weight],
                        least[weight],
                        method=method,
                        centred=unit.inputs[0] in corrected,
                    )
                    add = None if unit.bias is None else nodes[unit.nodes[1]]
                    _replace(nodes[unit.main], out[weight], add)
                    task.advance()
    ctx.cache[key] = {w.name or "": rounded for w, rounded in out.items()}
    return out


def _key(
    model: ir.Model,
    params: Mapping[ir.Value, QParams],
    activations: Mapping[ir.Value, QParams],
    how: tuple[Hashable, ...],
) -> tuple[Hashable, ...]:
    """What the result depends on; inputs of layers only by their scales, which bound those of weights."""
    weights = sorted(
        (w.name or "", repr(p.qtype), p.axis is None, p.scale.tobytes(), p.zero_point.tobytes())
        for w, p in params.items()
    )
    inputs = sorted((v.name or "", p.scale.tobytes()) for v, p in activations.items())
    return ("rounding in sequence", graph.fingerprint(model), tuple(weights), tuple(inputs), how)


def _replace(node: ir.Node, rounded: Rounded, add: ir.Node | None) -> None:
    """Put the rounded weight and the bias that goes with it into the model under work."""
    main = node.graph
    assert isinstance(main, ir.Graph)
    weight = node.inputs[1]
    assert weight is not None
    values = rounded.params.dequantize(rounded.codes).astype(np.float32)
    node.replace_input_with(1, graph.add_initializer(main, f"{weight.name}_rounded", values))
    if rounded.shift is None:
        return
    if add is not None:
        position = next(i for i, v in enumerate(add.inputs) if graph.const_array(v) is not None)
        add.replace_input_with(position, _shifted(main, add.inputs[position], rounded.shift))
    elif node.op_type != "MatMul":
        if len(node.inputs) < 3:
            node.resize_inputs(3)
        node.replace_input_with(2, _shifted(main, node.inputs[2], rounded.shift))


def _shifted(main: ir.Graph, bias: ir.Value | None, shift: Array) -> ir.Value:
    old = graph.const_array(bias)
    new = (np.zeros_like(shift) if old is None else old.astype(np.float64).reshape(-1)) - shift
    name = f"{bias.name if bias is not None else 'bias'}_shifted"
    return graph.add_initializer(main, name, new.astype(np.float32))
