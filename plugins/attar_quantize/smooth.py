"""`quantize.smooth`: outlier channels of activations moved into weights (SmoothQuant), or factors that make
weights easier to round (AWQ)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, Literal

import numpy as np
import onnx_ir as ir

from attar import graph
from attar.context import Context
from attar.errors import Refused
from attar.passes import Doc, Pass, Range
from attar.statistics import Statistics
from attar_quantize.linear import is_float, is_linear, is_transposed
from attar_quantize.scheme import Array, QType, weight_params

_STRENGTHS = (0.0, 0.25, 0.5, 0.75, 1.0)
# No factor beyond this: a channel that hardly spoke on the calibration data may speak on others.
_MOST = 64.0


class Smooth(Pass, name="quantize.smooth"):
    """Divide channels by factors behind a normalization and multiply the weights that read them.

    Transformers have channels whose values are tens of times larger than the others', always the same ones;
    one scale for all then leaves few codes to the rest. With x' = x / s and W' = W s the layer computes what
    it did. The factors go into the scale and bias of the LayerNormalization, the Mul and Add or the linear
    layer that makes x.

    For activations s_j = max |x_j|^a / max |w_j|^(1-a) (Xiao et al. 2022, arXiv:2211.10438, equation 4); for
    weights s_j = E[x_j^2]^(a/2) (Lin et al. 2023, arXiv:2306.00978, equation 5).
    """

    requires = ("fuse.inference",)
    needs = ("calibration",)
    tolerance = 1e-4

    goal: Annotated[
        Literal["activations", "weights"],
        Doc("activations: even out outliers before 8-bit activations; weights: before few-bit weights"),
    ] = "activations"
    strength: Annotated[
        float | None,
        Range(0.0, 1.0),
        Doc("a of the formula: 0 leaves activations alone; unless given, the least predicted noise"),
    ] = None
    bits: Annotated[int, Range(2, 8), Doc("bits of the weights, for the prediction")] = 8
    block: Annotated[int, Range(0, 1 << 16), Doc("weights that share a scale; 0: a channel")] = 0

    def apply(self, model: ir.Model, ctx: Context) -> None:
        found = []
        for node in model.graph:
            for value in node.outputs:
                place = find_place(value)
                if isinstance(place, str):
                    ctx.skip(value, place)
                elif place is not None:
                    found.append(place)
        if not found:
            raise Refused(
                "no activation lies between a normalization or linear layer and linear layers alone"
            )
        statistics = ctx.statistics(model, {p.value.name or "": -1 for p in found})
        changed = 0
        for place in found:
            factors = self._factors(place, statistics[place.value.name or ""])
            if factors is not None:
                place.scale(model.graph, factors)
                changed += 1
        if not changed:
            raise Refused("no factors lower the predicted noise of quantization")
        ctx.note(f"channels of {changed} activations scaled, for {self.goal}")

    def _factors(self, place: Place, seen: Statistics) -> Array | None:
        """One factor a channel, or None where nothing is gained."""
        if not seen.finite or seen.reach is None or seen.power is None:
            return None
        weights = place.weights()
        reach = np.maximum(seen.reach, 1e-12).astype(np.float64)
        if len(reach) != len(weights[0]):
            return None
        power = np.maximum(seen.power, 1e-24)
        tops = np.maximum(np.max([np.abs(w).max(axis=1) for w in weights], axis=0), 1e-12)
        tried = {}
        for a in _STRENGTHS if self.strength is None else (self.strength,):
            if self.goal == "activations":
                factors = reach**a / tops ** (1 - a) if a else np.ones_like(reach)
            else:
                factors = power ** (a / 2)
            factors = factors / np.exp(np.log(factors).mean())
            # Powers of two: dividing and multiplying by them is exact.
            factors = np.exp2(np.rint(np.log2(np.clip(factors, 1 / _MOST, _MOST))))
            tried[a] = (self._noise(weights, reach, power, factors), factors)
        best = min(tried, key=lambda a: (tried[a][0], a))
        factors = tried[best][1]
        return None if np.all(factors == 1) else factors

    def _noise(self, weights: list[Array], reach: Array, power: Array, factors: Array) -> float:
        """Predicted noise of the outputs: E[x^2] (w - w')^2 of weights, and s^2 / 12 w^2 of activations."""
        qtype = QType(signed=True, bits=self.bits, symmetric=True, narrow=self.bits > 2, block=self.block)
        total = 0.0
        step = (reach / factors).max() / 127.5
        for weight in weights:
            scaled = weight * factors[:, None]
            params = weight_params(scaled, qtype, 0 if self.block else 1)
            error = (params.dequantize(params.quantize(scaled)) - scaled) ** 2
            total += float(((power / factors**2)[:, None] * error).sum())
            if self.goal == "activations":
                total += float(step * step / 12 * (scaled**2).sum())
        return total


@dataclass(frozen=True, eq=False)
class Place:
    """An activation whose channels can be scaled.

    Attributes:
        value: it.
        owners: constants that are divided: (user, position, axis of the channels, or None for a vector).
        readers: linear layers that read it.
    """

    value: ir.Value
    owners: tuple[tuple[ir.Node, int, int], ...]
    readers: tuple[ir.Node, ...]

    def weights(self) -> list[Array]:
        """Weights of the readers, `[channels, outputs]` each, float64."""
        out = []
        for node in self.readers:
            array = graph.const_array(node.inputs[1])
            assert array is not None
            out.append((array.T if is_transposed(node) else array).astype(np.float64))
        return out

    def scale(self, place: ir.Graph, factors: Array) -> None:
        """Divide the activation by `factors`, multiply the weights. Constants are replaced, not edited."""
        for node, position, axis in self.owners:
            _put(place, node, position, 1 / factors, axis)
        for node in self.readers:
            _put(place, node, 1, factors, 1 if is_transposed(node) else 0)


def find_place(value: ir.Value) -> Place | str | None:
    """The place of a value that linear layers read, or why it must be left alone; None if none reads it."""
    users = [user for user, _ in value.uses()]
    readers = tuple(
        dict.fromkeys(user for user, position in value.uses() if is_linear(user) and position == 0)
    )
    if not readers or value.producer() is None:
        return None
    owners = _owners(value)
    if owners is None:
        return None
    if value.is_graph_output() or len(set(users)) != len(readers):
        return "something else than linear layers reads it, such as a residual sum"
    return Place(value, owners, readers)


def _owners(value: ir.Value) -> tuple[tuple[ir.Node, int, int], ...] | None:
    """The constants along whose last axis the value's channels lie; None if there is no such form."""
    node = value.producer()
    size = value.shape[-1] if value.shape is not None and len(value.shape) else None
    if node is None or not isinstance(size, int) or size < 2 or node.domain not in ("", "ai.onnx"):
        return None

    def vector(owner: ir.Node, position: int) -> bool:
        array = graph.const_array(owner.inputs[position]) if position < len(owner.inputs) else None
        return array is not None and array.shape[-1:] == (size,) and array.size == size and is_float(array)

    if node.op_type == "LayerNormalization":
        axis = node.attributes.get("axis")
        last = axis is None or axis.value in (-1, len(value.shape or ()) - 1)
        given = [i for i in (1, 2) if i < len(node.inputs) and node.inputs[i] is not None]
        ok = last and 1 in given and all(vector(node, i) for i in given) and len(node.outputs) == 1
        return tuple((node, i, -1) for i in given) if ok else None
    if node.op_type == "Mul":
        sides = [i for i in (0, 1) if vector(node, i)]
        return ((node, sides[0], -1),) if len(sides) == 1 else None
    if node.op_type in ("MatMul", "Gemm") and is_linear(node):
        own = [(node, 1, 0 if is_transposed(node) else 1)]
        if node.op_type == "Gemm" and len(node.inputs) > 2 and node.inputs[2] is not None:
            if not vector(node, 2):
                return None
            own.append((node, 2, -1))
        return tuple(own)
    if node.op_type == "Add":
        sides = [i for i in (0, 1) if vector(node, i)]
        if len(sides) != 1:
            return None
        before = node.inputs[1 - sides[0]]
        inner = None
        if before is not None and len(list(before.uses())) == 1 and not before.is_graph_output():
            inner = _owners(before)
        return None if inner is None else (*inner, (node, sides[0], -1))
    return None


def _put(place: ir.Graph, node: ir.Node, position: int, factors: Array, axis: int) -> None:
    value = node.inputs[position]
    array = graph.const_array(value)
    assert value is not None
    assert array is not None
    shape = [1] * array.ndim
    shape[axis] = -1
    # A new constant: others may share the old one.
    scaled = (array * factors.reshape(shape)).astype(np.float32)
    node.replace_input_with(position, graph.add_initializer(place, f"{value.name}_smooth", scaled))
