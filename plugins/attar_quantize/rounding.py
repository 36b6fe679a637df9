"""Rounding weights by what it does to the outputs: Hessian rounding and learned rounding, on Gram matrices.

Rounding to nearest makes each weight's error small; what counts is the error of sums over many weights, whose
inputs are correlated. With the covariance C of a layer's inputs the loss of an output is e C e^T, e being the
errors of its weights (the mean's share is made good by the bias afterwards). `attar.solve` minimizes that.

How far C can be trusted depends on the data: what pays on the samples that it was learnt from may cost on
others. So the damping, which draws the solution towards rounding to nearest, is chosen for each layer by
learning from one half of the samples and testing on the other half.
"""

from __future__ import annotations

from collections.abc import Collection, Hashable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np
import onnx_ir as ir

from attar import graph, solve
from attar.context import Context
from attar.gram import Gram, from_rows, layer_input, rows_of
from attar.gram_sums import summed
from attar.invariants import held
from attar_quantize.adaround import adaround
from attar_quantize.bias import weight_scales_for_bias
from attar_quantize.scheme import Array, QParams, is_wide, power_of_two
from attar_quantize.units import Unit

# Dampings to choose from, relative to the mean diagonal. 0.05 where K is so small that nothing is at stake.
_DAMPINGS = (0.03, 0.2, 1.0, 6.0)
_SMALL = 32
# Rows of a weight that the choice looks at, and vectors without which it is not made.
_ROWS, _VECTORS = 64, 16
# Ranges to choose from, as shares of the weights' extremes. 8 bits a channel have no need to clip.
_SHARES = {4: (1.0, 0.9, 0.8, 0.7, 0.6, 0.5), 7: (1.0, 0.9, 0.8, 0.7)}


@dataclass(frozen=True, eq=False)
class Rounded:
    """A weight's codes, with the parameters that they were chosen for.

    Attributes:
        shift: what this adds to the mean of each output channel, for the bias; None where readers differ.
    """

    params: QParams
    codes: Array
    shift: Array | None = None


def round_weights(
    model: ir.Model,
    units: Sequence[Unit],
    params: Mapping[ir.Value, QParams],
    activations: Mapping[ir.Value, QParams],
    ctx: Context,
    *,
    method: str = "hessian",
    corrected: Collection[ir.Value] = (),
) -> dict[ir.Value, Rounded]:
    """Codes of all weights that `units` read, for the inputs that they get in the float model.

    Args:
        params: grid of each weight; where codes are few, finer scales are tried as well.
        activations: parameters of the inputs, which bound the scale of a weight with a bias from below.
        method: "hessian" or "adaround".
        corrected: inputs of which the biases will make good the mean of the error.
    """
    readers = readers_of(units, params)
    least = least_scales(units, params, activations)
    content = graph.fingerprint(model)
    centred = {w: len(users) == 1 and users[0].inputs[0] in corrected for w, users in readers.items()}
    keys = {w: _key(content, w, params[w], least[w], (method, centred[w])) for w in readers}
    out: dict[ir.Value, Rounded] = {w: ctx.cache[key] for w, key in keys.items() if key in ctx.cache}
    with ctx.progress.task("rounding weights", len(readers)) as task:
        task.advance(len(out))
        for weight, gram in _grams(model, {w: r for w, r in readers.items() if w not in out}, ctx):
            node = readers[weight][0].main
            array = graph.const_array(weight)
            assert array is not None
            out[weight] = round_layer(
                node, array, gram, params[weight], least[weight], method=method, centred=centred[weight]
            )
            ctx.cache[keys[weight]] = out[weight]
            task.advance()
    return out


def readers_of(units: Sequence[Unit], params: Mapping[ir.Value, QParams]) -> dict[ir.Value, list[Unit]]:
    """The weights that can be rounded on Gram matrices, with the units that read them.

    Those that were pruned or clustered are rounded to nearest: what is equal stays equal, zero stays zero.
    """
    out: dict[ir.Value, list[Unit]] = {}
    for unit in units:
        weight = unit.weight
        if weight is None or weight not in params or held(weight).kinds or is_wide(params[weight].qtype):
            continue
        if params[weight].block == 0:
            out.setdefault(weight, []).append(unit)
    return {w: users for w, users in out.items() if all(layer_input(u.main) for u in users)}


def round_layer(
    node: ir.Node,
    weight: Array,
    gram: Gram,
    params: QParams,
    least: Array | None = None,
    *,
    method: str = "hessian",
    centred: bool = True,
) -> Rounded:
    """Codes of one weight in its own layout.

    Args:
        gram: of the node's input; with `cross`, outputs are to be like those of the reference.
        params: per channel or per tensor; no blocks.
    """
    original = rows = rows_of(node, weight).astype(np.float64)
    damping = choose_damping(rows, gram, _grid(params, rows.shape), centred=centred)
    inner = gram.covariance if centred else gram.moment
    h = solve.damped(inner, damping)
    twin = gram.mean if gram.twin is None else gram.twin / max(1, gram.count)
    if gram.cross is not None:
        cross = gram.cross / max(1, gram.count)
        if centred:
            cross = cross - twin[..., :, None] * gram.mean[..., None, :]
        rows = solve.transfer(rows, h, inner, cross)
    factor = solve.upper_factor(h)
    best_codes, best, best_cost = None, params, np.inf
    costs = None
    for share in _shares(params):
        tried = _scaled(params, share, least)
        grid = _grid(tried, rows.shape)
        codes = solve.hessian_rounding(rows, h, grid, factor=factor)
        cost = solve.cost(rows - grid.values(codes), h)
        if params.axis is None:
            if cost.sum() < best_cost:
                best_codes, best, best_cost = codes, tried, cost.sum()
        elif best_codes is None or costs is None:
            best_codes, best, costs = codes, tried, cost
        else:
            better = cost < costs
            costs = np.where(better, cost, costs)
            best_codes = np.where(better[..., None], codes, best_codes)
            best = replace(tried, scale=np.where(better.reshape(-1), tried.scale, best.scale))
    assert best_codes is not None
    grid = _grid(best, rows.shape)
    codes = solve.descend(rows, h, best_codes, grid, sweeps=2)
    # Where the greedy order did badly, descent from the nearest codes is better.
    plain = solve.descend(rows, h, grid.codes(rows), grid, sweeps=2)
    worse = solve.cost(rows - grid.values(plain), h) < solve.cost(rows - grid.values(codes), h)
    codes = np.where(worse[..., None], plain, codes)
    if len(_shares(params)) > 1 and params.axis is not None and not params.qtype.power_of_two:
        # Scale and codes in turn, each the best for the other.
        for _ in range(3):
            scale = solve.best_scale(rows, h, codes, grid).reshape(-1)
            best = replace(best, scale=_at_least(scale, least).astype(np.float32))
            grid = _grid(best, rows.shape)
            codes = solve.descend(rows, h, codes, grid, sweeps=1)
    if method == "adaround":
        codes = adaround(rows, h, grid, start=codes)
    shift = np.einsum("gok,gk->go", grid.values(codes), gram.mean)
    shift = shift - np.einsum("gok,gk->go", original, twin)
    stored = from_rows(node, codes, weight.shape).astype(params.qtype.dtype)
    return Rounded(best, stored, shift.reshape(-1) if centred else None)


def choose_damping(rows: Array, gram: Gram, grid: solve.Grid, *, centred: bool = True) -> float:
    """The damping whose solution, learnt from one half of the data, costs least on the other half.

    One group's worth of rows is enough to tell; convolutions of many groups have too few weights to overfit.
    """
    depth = rows.shape[-1]
    if depth <= _SMALL:
        return 0.05
    halves = gram.halves
    if halves is None or min(h.count for h in halves) < _VECTORS:
        return 1.0
    learn, test = ((h.covariance if centred else h.moment)[0] for h in halves)
    pick = np.linspace(0, rows.shape[1] - 1, min(_ROWS, rows.shape[1])).astype(int)
    some = rows[0, pick]
    zero = np.broadcast_to(grid.zero, grid.scale.shape)
    part = solve.Grid(grid.scale[0, pick], zero[0, pick], grid.low, grid.high)
    test = solve.damped(test, 1e-3)
    costs = []
    for damping in _DAMPINGS:
        h = solve.damped(learn, damping)
        codes = solve.hessian_rounding(some, h, part)
        costs.append(float(solve.cost(some - part.values(codes), test).sum()))
    return _DAMPINGS[int(np.argmin(costs))]


def least_scales(
    units: Sequence[Unit], params: Mapping[ir.Value, QParams], activations: Mapping[ir.Value, QParams]
) -> dict[ir.Value, Array]:
    """The smallest scale of each weight beside which the biases fit into 32 bits."""
    out: dict[ir.Value, Array] = {}
    for unit in units:
        weight = unit.weight
        if weight is None or weight not in params:
            continue
        own = unit.main.inputs[2] if unit.main.op_type != "MatMul" and len(unit.main.inputs) > 2 else None
        nothing = np.zeros_like(params[weight].scale)
        source = activations[unit.inputs[0]]
        bias = None if source.qtype.format else graph.const_array(own)
        bound = weight_scales_for_bias(nothing, bias, source.scale)
        out[weight] = np.maximum(out.get(weight, nothing), np.maximum(bound, np.finfo(np.float32).tiny))
    return out


def _key(
    content: str, weight: ir.Value, params: QParams, least: Array, how: tuple[Hashable, ...]
) -> tuple[Hashable, ...]:
    numbers = (params.scale.tobytes(), params.zero_point.tobytes(), least.tobytes())
    return ("rounding", content, weight.name, params.qtype, params.axis, *numbers, *how)


def _grams(
    model: ir.Model, readers: Mapping[ir.Value, Sequence[Unit]], ctx: Context
) -> Iterator[tuple[ir.Value, Gram]]:
    """Each weight with the Gram matrices of its input, those of all its readers summed."""
    inputs = {w: [i for u in users if (i := layer_input(u.main))] for w, users in readers.items()}
    yield from summed(model, inputs, ctx)


def _shares(params: QParams) -> tuple[float, ...]:
    if params.qtype.power_of_two:
        return (1.0, 0.5, 0.25)
    if params.axis is None:
        return _SHARES[7] if params.qtype.bits > 4 else _SHARES[4]
    return next((shares for bits, shares in _SHARES.items() if params.qtype.bits <= bits), (1.0,))


def _scaled(params: QParams, share: float, least: Array | None) -> QParams:
    scale = power_of_two(_at_least(params.scale * share, least), params.qtype)
    return replace(params, scale=scale.astype(np.float32))


def _at_least(scale: Array, least: Array | None) -> Array:
    return scale if least is None else np.maximum(scale, least)


def _grid(params: QParams, shape: tuple[int, ...]) -> solve.Grid:
    """The grid of rows `[groups, outputs, K]`."""
    groups, outputs, _ = shape
    scale = np.broadcast_to(params.scale.astype(np.float64).reshape(-1), (groups * outputs,))
    zero = np.broadcast_to(params.zero_point.astype(np.int64).reshape(-1), (groups * outputs,))
    return solve.Grid(
        scale.reshape(groups, outputs, 1),
        zero.reshape(groups, outputs, 1),
        int(params.qtype.qmin),
        int(params.qtype.qmax),
    )
