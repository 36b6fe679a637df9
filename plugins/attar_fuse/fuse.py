"""The passes: which rules run, in which order, until nothing changes."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Mapping
from types import MappingProxyType
from typing import TYPE_CHECKING, Annotated

import onnx_ir as ir

from attar.errors import Refused
from attar.passes import Doc, Pass

if TYPE_CHECKING:
    from attar.context import Context
    from attar_fuse.edit import Edit, Rule

OLDEST = 13  # axes of Squeeze, ReduceSum and the like are inputs since then, and Softmax has one axis


class Fuse(Pass, name="fuse.inference"):
    """Fuse for inference: fold constants and BatchNormalization, take padding and arithmetic into layers,
    write composed activations and normalisations as one operator, remove what changes nothing."""

    idempotent = True
    tolerance = 1e-4

    batchnorm: Annotated[bool, Doc("fold BatchNormalization and constant arithmetic into weights")] = True
    activations: Annotated[bool, Doc("merge Relu and Clip; recognise Gelu, LayerNormalization, ...")] = True
    pads: Annotated[bool, Doc("fold Pad into Conv and pooling; write plane means as pooling")] = True
    constants: Annotated[bool, Doc("compute what depends on constants and known shapes alone")] = True
    identities: Annotated[bool, Doc("remove needless operators, join transposes, merge equal nodes")] = True

    def apply(self, model: ir.Model, ctx: Context) -> None:
        from attar_fuse import (
            activations,
            algebra,
            batchnorm,
            constants,
            identities,
            norms,
            pads,
            pooling,
            standalone,
        )

        tables: list[Mapping[str, Iterable[Rule]]] = []
        if self.identities:
            tables.append(identities.RULES)
        if self.constants:
            tables.append(constants.RULES)
        if self.activations:
            tables += [activations.RULES, norms.RULES]
        if self.pads:
            tables.append(pads.RULES)
        if self.batchnorm:
            tables += [batchnorm.RULES, algebra.RULES]
        late: dict[str, Iterable[Rule]] = {}
        if self.pads:
            late.update(pooling.RULES)
        if self.batchnorm:
            late.update(standalone.RULES)
        run(model, ctx, tables, late=late, constants=self.constants, equal=self.identities)


class Constants(Pass, name="fuse.constants"):
    """Compute what depends on constants and known shapes alone."""

    idempotent = True
    tolerance = 1e-6

    def apply(self, model: ir.Model, ctx: Context) -> None:
        from attar_fuse import constants

        run(model, ctx, [constants.RULES], constants=True)


class Cleanup(Pass, name="fuse.cleanup"):
    """Remove needless operators, join transposes and reshapes, merge equal nodes, drop what nothing uses."""

    idempotent = True
    tolerance = 1e-6

    def apply(self, model: ir.Model, ctx: Context) -> None:
        from attar_fuse import identities

        run(model, ctx, [identities.RULES], equal=True)


def run(
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
    from attar.graph import refresh_shapes, tidy
    from attar_fuse.algebra import merge_equal_nodes
    from attar_fuse.constants import fold_constants
    from attar_fuse.edit import Edit

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
