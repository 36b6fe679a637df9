"""The passes: which rules run, in which order, until nothing changes."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import TYPE_CHECKING, Annotated

import onnx_ir as ir

from attar.passes import Doc, Pass

if TYPE_CHECKING:
    from attar.context import Context
    from attar.rewrite.edit import Rule


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
        from attar.rewrite import constants, rewrite
        from attar_fuse import (
            activations,
            algebra,
            batchnorm,
            heads,
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
            late.update(heads.RULES)
        if self.batchnorm:
            late.update(standalone.RULES)
        rewrite(model, ctx, tables, late=late, constants=self.constants, equal=self.identities)


class Constants(Pass, name="fuse.constants"):
    """Compute what depends on constants and known shapes alone."""

    idempotent = True
    tolerance = 1e-6

    def apply(self, model: ir.Model, ctx: Context) -> None:
        from attar.rewrite import constants, rewrite

        rewrite(model, ctx, [constants.RULES], constants=True)


class Cleanup(Pass, name="fuse.cleanup"):
    """Remove needless operators, join transposes and reshapes, merge equal nodes, drop what nothing uses."""

    idempotent = True
    tolerance = 1e-6

    def apply(self, model: ir.Model, ctx: Context) -> None:
        from attar.rewrite import rewrite
        from attar_fuse import identities

        rewrite(model, ctx, [identities.RULES], equal=True)
