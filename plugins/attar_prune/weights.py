"""`prune.weights`: zeros among the weights, one by one, in N:M patterns or in blocks; for size."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import Annotated, Any

import numpy as np
import onnx_ir as ir

from attar import graph, invariants
from attar.context import Context
from attar.errors import InputError, RecipeError, Refused
from attar.passes import Choice, Doc, Pass, Range
from attar.patterns import check_operators, check_patterns, matches
from attar_prune import masks, sparse
from attar_prune.sparse_data import Effect, at_once, curve_of, each_gram, in_sequence
from attar_prune.weights_layers import OPERATORS, Layer, find_layers

Array = np.ndarray[Any, np.dtype[Any]]


class Weights(Pass, name="prune.weights"):
    """Set the least important weights to zero.

    magnitude takes the smallest (Han et al. 2015); wanda weighs them by the size of their inputs (Sun et al.
    2023); sparsegpt, the default, also moves the weights that stay, so that the outputs change least, layer
    after layer (Frantar and Alistarh 2023). The last two need calibration data, no labels.

    Zeros make the `.attar` bundle small. They give no speed: runtimes on CPUs multiply by them all the same.
    """

    aim = "size"
    breaks = ("values",)

    ratio: Annotated[float, Range(0.0, 0.99), Doc("share of the weights that become zero")] = 0.5
    method: Annotated[
        str, Choice("sparsegpt", "wanda", "magnitude"), Doc("which weights go; sparsegpt moves the others")
    ] = "sparsegpt"
    pattern: Annotated[
        str, Doc("N:M instead of `ratio`: of each M neighbouring input channels N stay, e.g. 2:4")
    ] = ""
    dense: Annotated[
        float, Range(0.0, 0.9),
        Doc("pattern, sparsegpt: share of the weights that may stay dense, where zeros would cost most"),
    ] = 0.0  # fmt: skip
    block: Annotated[
        tuple[int, ...], Range(1), Doc("weights that go together, as (outputs, inputs); empty: one by one")
    ] = ()
    threshold: Annotated[
        float, Range(0.0), Doc("instead of `ratio`: smaller magnitudes go (wanda: times the input's)")
    ] = 0.0
    scope: Annotated[
        str, Choice("auto", "row", "layer", "global"),
        Doc("where `ratio` holds: each output, each weight, or over all; auto: over all for sparsegpt, each "
            "output for wanda, each weight for magnitude"),
    ] = "auto"  # fmt: skip
    sequential: Annotated[
        bool, Doc("sparsegpt: each layer for the inputs that the pruned layers before it give")
    ] = True
    damping: Annotated[float, Range(0.0), Doc("sparsegpt: how little the data are trusted")] = 0.03
    depth: Annotated[
        int, Range(1), Doc("weights whose outputs sum over fewer numbers stay dense (depthwise kernels)")
    ] = 16
    keep: Annotated[tuple[str, ...], Doc("patterns of nodes or weights that stay dense")] = ()
    operators: Annotated[
        tuple[str, ...], Doc("operator types whose weights are pruned; empty: all that are known")
    ] = ()

    def __post_init__(self) -> None:
        super().__post_init__()
        check_operators(self.operators, OPERATORS, where=self.name)
        if self.pattern:
            self._n_of_m()
        if self.block and len(self.block) != 2:
            raise RecipeError(f"{self.name}: option 'block' = {self.block!r} must be (outputs, inputs)")
        if sum(map(bool, (self.pattern, self.block, self.threshold))) > 1:
            raise RecipeError(f"{self.name}: of 'pattern', 'block' and 'threshold' only one can be given")
        if self.threshold and self.method == "sparsegpt":
            raise RecipeError(
                f"{self.name}: option 'threshold' goes with method magnitude or wanda",
                hint="sparsegpt moves the weights, so their sizes say little",
            )

    def apply(self, model: ir.Model, ctx: Context) -> None:
        if self.method != "magnitude" and ctx.data is None:
            raise InputError(
                f"pass {self.name!r} with method {self.method!r} needs calibration data",
                hint="give compress(..., calibration=...), or choose method 'magnitude'",
            )
        layers = self._chosen(model, ctx)
        if not layers:
            reasons = [(s.name, s.reason) for s in ctx.step.skipped]
            raise Refused("no weight can be pruned", nodes=reasons)
        before = sum(_zeros(layer) for layer in layers)
        if self.method == "sparsegpt":
            layers = self._spared(model, layers, ctx)
            ratios = self._ratios(model, layers, ctx)
            work = in_sequence if self.sequential and not ctx.probing else at_once
            work(model, layers, ctx, lambda *args: self._thinned(ratios, *args), self.damping)
        else:
            importance = self._importance(model, layers, ctx)
            bound = self._bound(list(importance.values()))
            for layer in layers:
                array = layer.array
                mask = layer.stored(self._mask(importance[layer], bound)) != 0
                graph.replace_weight(layer.weight, np.where(mask, np.zeros((), array.dtype), array))
        for layer in layers:
            self._note(layer)
        numbers, after = sum(layer.array.size for layer in layers), sum(_zeros(layer) for layer in layers)
        if after == before:
            raise Refused("no weight is small enough to become zero")
        ctx.note(f"{after} of {numbers} numbers in {len(layers)} weights are zero ({after / numbers:.1%})")

    def alternatives(self) -> tuple[Pass, ...]:
        """Fewer zeros; of a pattern, in fewer layers."""
        options = {k: v for k, v in self.to_dict().items() if k != "name"}
        if self.pattern and self.method == "sparsegpt":
            more = (share for share in (0.2, 0.4) if share > self.dense)
            return tuple(type(self)(**{**options, "dense": share}) for share in more)
        if self.pattern or self.threshold or self.ratio <= 0.2:
            return ()
        return tuple(type(self)(**{**options, "ratio": round(self.ratio * f, 3)}) for f in (0.75, 0.5))

    # -- which weights ---------------------------------------------------------------------------------------

    def _chosen(self, model: ir.Model, ctx: Context) -> list[Layer]:
        found = find_layers(model, self.operators or tuple(OPERATORS), ctx)
        names = [name for layer in found for name in layer.names]
        check_patterns(self.keep, names, option=f"{self.name}: option 'keep'", of="weight or node")
        out = []
        for layer in found:
            why = self._why_not(layer)
            if why:
                ctx.skip(layer.weight, why, names=layer.names)
            else:
                out.append(layer)
        return out

    def _why_not(self, layer: Layer) -> str:
        if matches(layer.names, self.keep):
            return "kept dense by option keep"
        if layer.depth < self.depth:
            return f"its outputs sum over {layer.depth} numbers only: zeros cost much there and save little"
        if self.pattern and layer.array.shape[layer.axes[1]] % self._n_of_m()[1]:
            return f"{layer.array.shape[layer.axes[1]]} input channels do not divide into {self.pattern}"
        if self.method != "magnitude" and layer.inputs is None:
            return "what it is multiplied with cannot be observed; method magnitude would prune it"
        return ""

    # -- how much of each ------------------------------------------------------------------------------------

    def _n_of_m(self) -> tuple[int, int]:
        match = re.fullmatch(r"(\d{1,4}):(\d{1,4})", self.pattern)
        n, m = (int(g) for g in match.groups()) if match else (0, 0)
        if not 0 < n < m:
            raise RecipeError(
                f"{self.name}: option 'pattern' = {self.pattern!r} is not of the form N:M with 0 < N < M",
                hint="2:4: of each 4 neighbours 2 stay",
            )
        return n, m

    def _ratios(self, model: ir.Model, layers: Sequence[Layer], ctx: Context) -> dict[Layer, float]:
        """The share of each layer, so that what the model's outputs lose is least.

        A layer's loss is known on one half of the data from weights settled on the other, at several shares;
        what it does to the outputs is measured at one of them and taken as proportional.
        """
        wide = self.scope == "global" or (self.scope == "auto" and len(layers) > 1 and not ctx.probing)
        if not wide or self.pattern or self.block:
            return dict.fromkeys(layers, self.ratio)
        sizes = {layer: layer.array.size for layer in layers}
        return sparse.shares(self._losses(model, layers, ctx), sizes, self.ratio)

    def _losses(
        self, model: ir.Model, layers: Sequence[Layer], ctx: Context
    ) -> dict[Layer, dict[float, float]]:
        """Layer -> share of zeros -> what the outputs lose."""
        losses, effect = {}, Effect(model, ctx)
        with ctx.progress.task("measuring what layers can spare", len(layers)) as task:
            for layer, gram in each_gram(layers, graph.clone(model), ctx):
                losses[layer] = curve_of(layer, gram, self.damping, effect)
                task.advance()
        return {layer: losses[layer] for layer in layers}

    def _spared(self, model: ir.Model, layers: list[Layer], ctx: Context) -> list[Layer]:
        """The layers that take the pattern: those whose zeros cost most for their size stay dense,
        as far as `dense` allows."""
        if not self.pattern or not self.dense:
            return layers
        losses = self._losses(model, layers, ctx)
        room = self.dense * sum(layer.array.size for layer in layers)
        out = list(layers)
        for layer in sorted(layers, key=lambda one: -losses[one][0.5] / one.array.size):
            if layer.array.size <= room and len(out) > 1:
                room -= layer.array.size
                out.remove(layer)
                ctx.skip(
                    layer.weight, "stays dense: zeros in it would cost the outputs most", names=layer.names
                )
        return out

    def _thinned(self, ratios: Mapping[Layer, float], layer: Layer, rows: Array, h: Array) -> Array:
        return sparse.best(
            rows,
            h,
            ratios[layer],
            pattern=self._n_of_m() if self.pattern else None,
            block=(self.block[0], self.block[1]) if self.block else None,
            floor=layer.rows(layer.array) == 0,
            by_row=self.scope == "row",
        )

    # -- magnitude and Wanda ---------------------------------------------------------------------------------

    def _importance(self, model: ir.Model, layers: Sequence[Layer], ctx: Context) -> dict[Layer, Array]:
        if self.method == "magnitude":
            return {layer: np.abs(layer.rows(layer.array)) for layer in layers}
        found = {}
        for layer, gram in each_gram(layers, graph.clone(model), ctx):
            power = np.einsum("gkk->gk", gram.moment)[:, layer.order()]
            found[layer] = np.sqrt(np.maximum(power, 0))[:, None, :] * np.abs(layer.rows(layer.array))
        return {layer: found[layer] for layer in layers}

    def _bound(self, importance: Sequence[Array]) -> float:
        """What lies below it goes, where one bound holds for all weights; else -1."""
        if self.threshold:
            return self.threshold
        if self.scope != "global" or self.pattern or self.block:
            return -1.0
        flat = np.concatenate([part.reshape(-1) for part in importance])
        count = round(self.ratio * flat.size)
        return float(np.partition(flat, count)[count]) if count < flat.size else float("inf")

    def _mask(self, importance: Array, bound: float) -> Array:
        if self.pattern:
            return masks.n_of_m(importance, *self._n_of_m())
        if self.block:
            return masks.blocks(importance, (self.block[0], self.block[1]), self.ratio)
        if bound >= 0:
            return importance < bound
        by_row = self.scope == "row" or (self.scope == "auto" and self.method == "wanda")
        return masks.lowest(importance, self.ratio, by_row=by_row)

    def _note(self, layer: Layer) -> None:
        """Tell the driver what later passes have to keep."""
        pattern = None
        if self.pattern:
            n, m = self._n_of_m()
            pattern = (m - n, m, layer.axes[1])
        invariants.hold(layer.weight, zeros=True, pattern=pattern, axis=layer.axes[0])


def _zeros(layer: Layer) -> int:
    array = layer.array
    return int(array.size - np.count_nonzero(array))
