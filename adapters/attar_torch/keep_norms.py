"""What torch's exporter does to a graph, without making BatchNorm part of other layers.

A network that is read keeps its normalization, and its layers go on sharing what they share: training wants
it so, and folding is the same for every framework then (`fuse.inference`). The exporter's optimizer has no
switch for that, so its steps are done here with its rules but those.
"""

from __future__ import annotations

from typing import Any

import onnx_ir as ir
from onnx_ir.passes import common

_ROUNDS = 2  # as many as the exporter itself
_MOVES = frozenset({"Transpose", "Reshape", "Unsqueeze", "Squeeze"})


def _worth_folding(node: ir.Node) -> bool | None:
    """Not a weight turned for one of its readers: it would no longer be the same weight as that of the
    others."""
    source = node.inputs[0] if node.inputs else None
    turned = node.op_type in _MOVES and source is not None and source.is_initializer()
    return False if turned and source is not None and len(source.uses()) > 1 else None


def optimize_around_norms(model: ir.Model) -> None:
    """Fold constants and simplify `model` in place."""
    from onnxscript import optimizer, rewriter

    known: Any = getattr(rewriter, "_DEFAULT_REWRITE_RULES", ())
    rules = [rule for rule in known if "BatchNorm" not in (rule.name or "")]
    common.InlinePass()(model)
    for _ in range(_ROUNDS):
        optimizer.fold_constants(model, onnx_shape_inference=True, should_fold=_worth_folding)
        if rules:
            rewriter.rewrite(model, rules)
    for step in (
        common.RemoveUnusedNodesPass(),
        common.LiftConstantsToInitializersPass(lift_all_constants=True, size_limit=0),
        common.LiftSubgraphInitializersToMainGraphPass(),
        common.CommonSubexpressionEliminationPass(),
        common.OutputFixPass(),
        common.NameFixPass(),
    ):
        step(model)
