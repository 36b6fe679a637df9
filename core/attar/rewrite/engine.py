"""Applies rules to a model until nothing changes."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Mapping
from types import MappingProxyType
from typing import TYPE_CHECKING

import onnx_ir as ir

from attar.errors import Refused
from attar.graph import refresh_shapes, tidy
from attar.rewrite.constants import fold_constants
from attar.rewrite.edit import Edit, Rule
from attar.rewrite.equal import merge_equal_nodes

if TYPE_CHECKING:
    from attar.context import Context

OLDEST = 13  # axes of Squeeze, ReduceSum and the like are inputs since then, and Softmax has one axis


def rewrite(
    model: ir.Model,
    ctx: Context,
    tables: Iterable[Mapping[str, Iterable[Rule]]],
    *,
    late: Mapping[str, Iterable[Rule]] = MappingProxyType({}),
    constants: bool = False,
    equal: bool = False,
) -> None:
    """Apply rules by operator type to all graphs of `model`, in topological order, to a fixed point.

    `late` rules run once the others find nothing: a mean over the plane may belong to a normalisation, which
    the others recognise as a whole. Every rule shrinks the graph or moves it towards one form, so the loop
    ends.

    Raises:
        Refused: the model is of an opset older than 13.
    """
    opset = model.opset_imports.get("", 0)
    if opset < OLDEST:
        raise Refused(
            f"the model is written in opset {opset}; fusing needs {OLDEST} or later",
            hint="attar.graph.normalize(model) raises it",
        )
    rules: dict[str, list[Rule]] = defaultdict(list)
    for table in tables:
        for op_type, some in table.items():
            rules[op_type] += some
    last = {op_type: list(some) for op_type, some in late.items()}
    tidy(model)
    edit = Edit(model, ctx)
    changed = True
    while changed:
        refresh_shapes(model)
        changed = constants and fold_constants(edit)
        if equal:
            changed |= merge_equal_nodes(edit)
        changed |= _sweep(model, edit, rules)
        changed = changed or _sweep(model, edit, last)
        tidy(model)
    edit.tell()


def _sweep(model: ir.Model, edit: Edit, rules: Mapping[str, list[Rule]]) -> bool:
    changed = False
    for node in list(ir.traversal.RecursiveGraphIterator(model.graph)):
        applied = True
        while applied and node.graph is not None and node.domain == "":
            applied = any(node.graph is not None and rule(node, edit) for rule in rules.get(node.op_type, ()))
            changed |= applied
    return changed
