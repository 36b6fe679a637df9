"""Constraints as graph: what must stay true of a model while it is trained is rewritten into it.

    held = constrain(model)              # QDQ pairs, held zeros, shared values become operators that train
    ... train held.model by any means ...
    finished = held.release(trained)     # plain ONNX again

Masks and codebooks come first, quantizers behind them, so a sparse clustered int8 weight is trained as just
that. Without training, `release` gives the model back as it was.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import onnx_ir as ir

from attar import graph
from attar.errors import InputError, did_you_mean
from attar.graph.learned import is_learned, mark_learned
from attar.registry import Registry, default_registry
from attar_train.held import Holder, Mask, hold_floats
from attar_train.operators import DOMAIN, FAKE_QUANTIZE, VERSION, register
from attar_train.quantizers import Rewriter
from attar_train.release import release

Array = np.ndarray[Any, np.dtype[Any]]
METHODS = ("lsq", "pact", "ste")


@dataclass(frozen=True)
class Constrained:
    """A model that keeps what it holds while it is trained.

    Attributes:
        model: trains; has operators of `attar_train.operators`.
        weights, activations, biases: how many of each are fake-quantized.
        masks, codebooks: how many weights keep their zeros, and their few values.
        pruned: weight of the caller's model -> what holds its mask, where training shall change it.
        skipped: (name, reason) of what stays as it was: no gradient passes it, or it is not trained.
    """

    model: ir.Model
    weights: int = 0
    activations: int = 0
    biases: int = 0
    masks: int = 0
    codebooks: int = 0
    skipped: tuple[tuple[str, str], ...] = ()
    pruned: Mapping[str, Mask] = field(default_factory=dict)

    @property
    def quantized(self) -> bool:
        return self.weights + self.activations > 0

    def release(self, trained: ir.Model | None = None) -> ir.Model:
        """Plain ONNX of `trained`, which is `model` with other numbers; of `model` itself unless given.

        Raises:
            InputError: the graph was changed so that a constraint has lost its note or its numbers.
        """
        return release(self.model if trained is None else trained)

    def __str__(self) -> str:
        parts = {
            "quantized weights": self.weights, "quantized activations": self.activations,
            "masks": self.masks, "codebooks": self.codebooks,
        }  # fmt: skip
        return ", ".join(f"{n} {what}" for what, n in parts.items() if n) or "nothing held"


def constrain(
    model: ir.Model,
    *,
    latent: Mapping[str, Array] | None = None,
    method: str = "lsq",
    offsets: bool = False,
    pruned: Collection[str] = (),
    scored: bool = False,
    registry: Registry | None = None,
) -> Constrained:
    """A copy of `model` in which everything that it must keep is part of the graph.

    Args:
        model: may be quantized (QDQ), and hold zeros, patterns and values (`attar.invariants`).
        latent: float weights by name, of the model before it was quantized. Training starts from them where
            they are known, each moved to within half a step of its code; else from what the codes stand for.
        method: how scales are trained: "lsq" (learned step sizes), "pact" (learned clipping of activations
            whose zero is the lowest code; the others as lsq), or "ste" (scales stay).
        pruned: names of weights (or of their codes) that get a mask in any case, for training to change.
        scored: the movement of these is gathered.
        offsets: zero points of activations are trained, too, where they stand for no Relu.

    Raises:
        InputError: no such method.
    """
    if method not in METHODS:
        raise InputError(f"no way to train scales is called {method!r}", hint=did_you_mean(method, METHODS))
    register()
    copy = graph.clone(model)
    taken = graph.taken_names(copy.graph)
    holder = Holder(taken, pruned, scored)
    rewriter = Rewriter(
        copy, registry or default_registry(), method, offsets, latent or {}, holder.hold, taken
    )
    hold_floats(copy, holder)
    rewriter.rewrite()
    if any(n.domain == DOMAIN for n in graph.all_nodes(copy)):
        copy.opset_imports[DOMAIN] = VERSION
    _learn_added_biases(copy)
    graph.tidy(copy)
    graph.refresh_shapes(copy)
    return Constrained(
        copy,
        rewriter.weights,
        rewriter.activations,
        rewriter.biases,
        holder.masks,
        holder.codebooks,
        tuple(rewriter.skipped),
        holder.made,
    )


def _learn_added_biases(model: ir.Model) -> None:
    """A vector that is added to the product with a fake-quantized weight is a bias: it trains."""
    for node in graph.all_nodes(model):
        if node.op_type != "Add" or node.domain != "":
            continue
        for place, value in enumerate(node.inputs):
            other = node.inputs[1 - place]
            maker = None if other is None else other.producer()
            if (
                value is not None
                and maker is not None
                and maker.op_type == "MatMul"
                and is_learned(value) is None
                and value.dtype == ir.DataType.FLOAT
                and graph.const_array(value) is not None
                and any(
                    v is not None and (p := v.producer()) is not None and p.op_type == FAKE_QUANTIZE
                    for v in maker.inputs
                )
            ):
                mark_learned(value)
