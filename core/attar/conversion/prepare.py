"""A model made ready to be written: constants folded, few kinds of operators, everything accounted for."""

from __future__ import annotations

from collections.abc import Container

import onnx_ir as ir

from attar import graph
from attar.context import Context
from attar.conversion.expand import expand_functions, missing
from attar.conversion.sizes import fix_sizes
from attar.conversion.unroll import unroll
from attar.errors import ConversionError
from attar.registry import Registry
from attar.rewrite import constants, rewrite
from attar.rewrite.engine import OLDEST
from attar.runtime import OnnxRuntime


def prepare(model: ir.Model, known: Container[str], framework: str, *, registry: Registry) -> ir.Model:
    """A copy of `model` whose operators are all in `known`.

    Constants and known shapes are folded (quantized weights stay integers), model-local functions are
    inlined, and operators outside `known` are written with the operators that ONNX defines them by; loops
    of a known number of rounds are written out.

    Args:
        known: operators with a lowering: `op_type`, or `domain::op_type` outside the default domain.
        framework: where the model goes; errors name it.

    Raises:
        ConversionError: operators are left that are not in `known`; *all* are listed, with their nodes.
        InputError: the model is not valid.
    """
    copy = graph.clone(model)
    graph.normalize(copy)
    if copy.opset_imports[""] < OLDEST:
        raise ConversionError(
            f"the model stays at opset {copy.opset_imports['']}, which {framework} cannot be written from",
            hint="write it with operators of opset 13 or later",
        )
    fold(copy, registry)
    fix_sizes(copy)
    if expand_functions(copy, known):
        fold(copy, registry)
    if unroll(copy, known):
        fold(copy, registry)
    left = missing(copy, known)
    if left:
        raise ConversionError(
            f"{framework} has no counterpart for {len(left)} operator{'s' * (len(left) > 1)} of the model:",
            missing=left,
            hint=f"a plugin teaches operators through attar_lowerings({framework!r})",
        )
    return copy


def fold(model: ir.Model, registry: Registry) -> None:
    """Compute, in place, what depends on constants and known shapes alone."""
    ctx = Context(registry=registry, target=registry.get_target("cpu"), runtime=OnnxRuntime())
    rewrite(model, ctx, [constants.RULES], constants=True)
