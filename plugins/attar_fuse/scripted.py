"""Patterns that onnxscript's rewriter knows, as sites: its rules find and make, measuring decides.

Only its rules for ONNX Runtime's own operators are used; what is standard ONNX is recognised by rules of our
own, which take more ways of writing it.
"""

from __future__ import annotations

import importlib
import logging
from collections.abc import Iterator
from typing import Any

import onnx_ir as ir

from attar.graph import clone
from attar_fuse.sites import CONTRIB, Finder, Form, Site, Tape, Values

_RULES = (
    ("onnxscript.rewriter.ort_fusions.skip_normalization", "skip_layer_normalization_ruleset"),
    ("onnxscript.rewriter.ort_fusions.bias_gelu", "bias_gelu_rules"),
    ("onnxscript.rewriter.ort_fusions.fused_matmul_rule_sets", "fused_matmul_rule_sets"),
)


def find(model: ir.Model) -> Iterator[Site]:
    """Sites of onnxscript's rules for ONNX Runtime, in the main graph."""
    scratch = clone(model)
    own = {v.name: v for n in model.graph for v in n.outputs}
    own |= {v.name: v for v in (*model.graph.inputs, *model.graph.initializers.values())}
    logger = logging.getLogger("onnxscript")
    level = logger.level
    logger.setLevel(logging.ERROR)
    try:
        rules = list(_rules())
        for node in list(scratch.graph):
            for rule in rules:
                site = _site(rule, scratch, node, own)
                if site is not None:
                    yield site
                    break
    finally:
        logger.setLevel(level)


def _rules() -> Iterator[Any]:
    for module, name in _RULES:
        try:
            found = getattr(importlib.import_module(module), name)
        except (ImportError, AttributeError):  # another version of onnxscript keeps them elsewhere
            continue
        yield from (found() if callable(found) else found)


def _site(rule: Any, scratch: ir.Model, node: ir.Node, own: dict[str | None, ir.Value]) -> Site | None:
    made = rule.try_rewrite(scratch, scratch.graph, node)
    if made is None:
        return None
    new = list(made.new_nodes)
    try:
        if len(made.new_initializers) or any(n.domain != CONTRIB for n in new):
            return None
        outputs = [own.get(v.name) for v in made.match.outputs]
        inside = {v for n in new for v in n.outputs}
        read = dict.fromkeys(v for n in new for v in n.inputs if v is not None and v not in inside)
        inputs = {v: own.get(v.name) for v in read}
        if None in outputs or None in inputs.values():
            return None
        steps = [
            (n.op_type, list(n.inputs), list(n.outputs), {k: a.value for k, a in n.attributes.items()})
            for n in new
        ]
        results = list(made.new_outputs)
    finally:
        for extra in reversed(new):  # they hang on the values of the scratch model otherwise
            for index in range(len(extra.inputs)):
                extra.replace_input_with(index, None)
    reals = tuple(v for v in outputs if v is not None)
    names = {v: w for v, w in inputs.items() if w is not None}

    def make(tape: Tape, v: Values) -> list[ir.Value]:
        known = {old: v[real] for old, real in names.items()}
        for op_type, given, made_values, attributes in steps:
            values = tape.node(
                op_type, [None if g is None else known[g] for g in given], attributes,
                like=reals[0], domain=CONTRIB, outputs=len(made_values),
            )  # fmt: skip
            known.update(zip(made_values, values, strict=True))
        return [known[r] for r in results]

    name = new[-1].op_type
    return Site("contrib", reals, (Form(name, tuple(names.values()), make, contrib=True),))


FINDER = Finder("contrib", "what onnxscript's rewriter knows of ONNX Runtime's operators", find)
