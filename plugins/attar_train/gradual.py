"""`train.gradual`: zeros that come by and by, while the network is trained."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Annotated, Any, ClassVar

import numpy as np
import onnx_ir as ir

from attar import graph, invariants
from attar.context import Context
from attar.errors import RecipeError, Refused
from attar.ops import rule_of
from attar.passes import Choice, Doc, Range
from attar.patterns import check_patterns, matches
from attar.registry import Registry
from attar_train.apply import latent, train
from attar_train.callback import Callback
from attar_train.constrain import constrain
from attar_train.distill import Distill
from attar_train.held import Mask
from attar_train.module import Trainable

if TYPE_CHECKING:
    import torch


class Gradual(Distill, name="train.gradual"):
    """Set more and more weights to zero while the network is trained, by default to give what it gave before.

    The share of zeros follows a cubic (Zhu and Gupta 2017, arXiv:1710.01878): steep while there is much to
    spare, gentle at the end. What goes is what is smallest, or what training moves towards zero (movement
    pruning, Sanh et al. 2020, arXiv:2005.07683). The rest of the steps trains what is left. Weights in
    integers are pruned as they are trained, through their rounding.

    Zeros make the `.attar` bundle small. They give no speed: runtimes on CPUs multiply by them all the same.
    """

    aim: ClassVar[Any] = "size"

    ratio: Annotated[float, Range(0.0, 0.99), Doc("share of the weights that are zero in the end")] = 0.8
    method: Annotated[
        str, Choice("magnitude", "movement"), Doc("the smallest go, or those that move towards zero")
    ] = "magnitude"
    scope: Annotated[
        str, Choice("layer", "global"),
        Doc("where `ratio` holds: each weight, or over all; magnitudes are then compared as by LAMP"),
    ] = "global"  # fmt: skip
    begin: Annotated[float, Range(0.0, 1.0), Doc("share of the steps before the first zeros")] = 0.0
    end: Annotated[float, Range(0.0, 1.0), Doc("share of the steps after which the zeros stay")] = 0.6
    updates: Annotated[int, Range(1), Doc("times at which zeros are chosen")] = 50
    depth: Annotated[
        int, Range(1), Doc("weights whose outputs sum over fewer numbers stay dense (depthwise kernels)")
    ] = 16
    keep: Annotated[tuple[str, ...], Doc("patterns of nodes or weights that stay dense")] = ()

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.begin > self.end:
            raise RecipeError(f"{self.name}: option 'begin' = {self.begin} lies behind 'end' = {self.end}")
        if self.best or self.patience is not None:
            raise RecipeError(
                f"{self.name}: options 'best' and 'patience' would keep weights from before the zeros",
                hint="put train.distill with best = true behind it: it keeps the zeros",
            )

    def apply(self, model: ir.Model, ctx: Context) -> None:
        names = self._chosen(model, ctx)
        held = constrain(
            model, latent=latent(ctx), pruned=names, scored=self.method == "movement", registry=ctx.registry
        )
        if not held.pruned:
            reasons = [(s.name, s.reason) for s in ctx.step.skipped]
            raise Refused("no weight can be pruned", nodes=reasons)
        train(
            self,
            model,
            ctx,
            lambda trainable: self.loss_for(trainable, model, ctx),
            hold=lambda _: held,
            callbacks=lambda trainable: [Pruner(trainable, held.pruned, self)],
        )
        whole = zeros = 0
        for name in held.pruned:
            value = model.graph.initializers[name]
            numbers = _numbers(value)
            whole, zeros = whole + numbers.size, zeros + int((numbers == 0).sum())
            invariants.hold(value, zeros=True, axis=invariants.held(value).axis)
        ctx.note(f"{zeros} of {whole} numbers in {len(held.pruned)} weights are zero ({zeros / whole:.1%})")

    def _chosen(self, model: ir.Model, ctx: Context) -> list[str]:
        found = layers(model, ctx.registry)
        names = [n for _, _, known in found for n in known]
        check_patterns(self.keep, names, option=f"{self.name}: option 'keep'", of="weight or node")
        out = []
        for value, depth, known in found:
            why = ""
            if matches(known, self.keep):
                why = "kept dense by option keep"
            elif depth < self.depth:
                why = f"its outputs sum over {depth} numbers only: zeros cost much there and save little"
            elif invariants.held(value).values:
                why = "its few values are held; prune before clustering"
            if why:
                ctx.skip(value, why, names=known)
            else:
                out.append(str(value.name))
        return out


def layers(model: ir.Model, registry: Registry) -> list[tuple[ir.Value, int, tuple[str, ...]]]:
    """Weights of the main graph that can be pruned, as floats or as codes: (initializer, numbers that one
    output sums over, names by which it may be called)."""
    found: dict[ir.Value, tuple[ir.Value, int, tuple[str, ...]]] = {}
    for node in model.graph:
        rule = rule_of(node, registry)
        for place in () if rule is None or node.op_type == "Gather" else rule.weights:
            value = node.inputs[place] if place < len(node.inputs) else None
            maker = None if value is None else value.producer()
            if maker is not None and maker.op_type == "DequantizeLinear":
                value = maker.inputs[0]
            array = graph.const_array(value)
            if value is None or array is None or array.ndim < 2 or not value.is_initializer():
                continue
            assert rule is not None
            axis = rule.weight_axis(node)
            if node.op_type in ("MatMul", "Gemm"):
                trans = node.attributes.get("transB")
                axis = 0 if trans is not None and trans.value else array.ndim - 1
            known = (str(value.name), str(node.name), *(str(o.name) for o in node.outputs))
            found.setdefault(value, (value, array.size // max(1, array.shape[axis]), known))
    return list(found.values())


def _numbers(value: ir.Value) -> np.ndarray[Any, Any]:
    """What a weight stands for: zero where it is zero."""
    array = graph.const_array(value)
    assert array is not None
    reader = next((u.node for u in value.uses() if u.node.op_type == "DequantizeLinear"), None)
    return array if reader is None else invariants.dequantized(reader, array)


def share(done: float, first: float, last: float, begin: float, end: float) -> float:
    """The share of zeros when the share `done` of the steps is over (Zhu and Gupta 2017, equation 1)."""
    if done <= begin:
        return first
    left = max(0.0, 1 - (done - begin) / (end - begin)) if end > begin else 0.0
    return last + (first - last) * left**3


class Pruner(Callback):
    """Chooses zeros while the network is trained."""

    def __init__(self, trainable: Trainable, masks: Mapping[str, Mask], options: Gradual) -> None:
        self._trainable, self._options = trainable, options
        self._masks = [m for m in masks.values() if m.mask in trainable.state]
        # What is zero from the start, because a pattern or zeros were held, stays so.
        self._first = {m.mask: trainable.state[m.mask].clone().bool() for m in self._masks}
        count = sum(t.numel() for t in self._first.values())
        self._start = 1 - sum(int(t.sum()) for t in self._first.values()) / max(1, count)

    def before_step(self, step: int, steps: int) -> torch.Tensor | None:
        self._trainable.share_state()
        return None

    def after_step(self, step: int, steps: int) -> None:
        options = self._options
        every = max(1, round((options.end - options.begin) * steps / options.updates))
        last = max(1, round(options.end * steps))
        if step <= options.begin * steps or step > last or (step % every and step != last):
            return
        now = options.ratio if step == last else share(
            step / steps, min(self._start, options.ratio), options.ratio, options.begin, options.end
        )  # fmt: skip
        import torch

        with torch.no_grad():
            self._choose(now)

    def _choose(self, ratio: float) -> None:
        import torch

        scores = [self._score(m) for m in self._masks]
        if self._options.scope == "global":
            flat = torch.cat([s.reshape(-1) for s in scores])
            kept = _most(flat, ratio)
            parts = kept.split([s.numel() for s in scores])
        else:
            parts = tuple(_most(s.reshape(-1), ratio) for s in scores)
        for mask, part in zip(self._masks, parts, strict=True):
            stored = self._trainable.state[mask.mask]
            stored.copy_(part.reshape(stored.shape).to(stored.dtype))

    def _score(self, mask: Mask) -> torch.Tensor:
        weight = self._trainable.weights[mask.weight].detach()
        if mask.scores is not None:
            score = self._trainable.state[mask.scores].clone()
        elif self._options.scope == "global":
            score = lamp(weight)
        else:
            score = weight.abs()
        return score.masked_fill(~self._first[mask.mask].to(score.device), -float("inf"))

    def state(self) -> dict[str, torch.Tensor]:
        names = [n for m in self._masks for n in (m.mask, m.scores) if n is not None]
        return {n: self._trainable.state[n] for n in names}

    def load(self, tensors: dict[str, torch.Tensor]) -> None:
        for name, tensor in tensors.items():
            self._trainable.state[name].copy_(tensor)


def _most(scores: torch.Tensor, ratio: float) -> torch.Tensor:
    """True for all but the `ratio` of least score; of equals the earlier ones go."""
    import torch

    kept = torch.ones_like(scores, dtype=torch.bool)
    kept[torch.argsort(scores, stable=True)[: round(ratio * scores.numel())]] = False
    return kept


def lamp(weight: torch.Tensor) -> torch.Tensor:
    """w^2 over the sum of the squares that are no smaller, of one weight (Lee et al. 2021, arXiv:2010.07611):
    magnitudes of different layers can then be compared, and no layer loses everything."""
    import torch

    square = weight.reshape(-1).double() ** 2
    order = torch.argsort(square, descending=True, stable=True)
    made = torch.empty_like(square)
    made[order] = square[order] / square[order].cumsum(0).clamp_min(1e-300)
    return made.reshape(weight.shape)
