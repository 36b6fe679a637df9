"""Memory formats, which ONNX does not have: `as_strided` that changes nothing, and what would end in one."""

from __future__ import annotations

import copy
from typing import Any

import torch


def forget_memory_formats(program: Any, *, own: bool) -> Any:
    """The program without each `as_strided` that gives its input back.

    It is the identity if sizes are the input's and strides differ at most where the size is 1, so that they
    say nothing. Adaptive pooling of a channels-last tensor to one element would be decomposed into a mean and
    such a node; it becomes the mean here.

    Args:
        own: change `program` itself; otherwise it is copied where something is to be changed.
    """
    if not any(node.target in (*_POOLS, *_TARGETS) for node in program.graph_module.graph.nodes):
        return program
    program = program if own else copy.deepcopy(program)
    graph = program.graph_module.graph
    changed = False
    for node in list(graph.nodes):
        if node.op == "call_function" and node.target in _POOLS and set(node.args[1]) == {1}:
            axes = list(range(-len(node.args[1]), 0))
            node.target, node.args = torch.ops.aten.mean.dim, (node.args[0], axes, True)
            changed = True
            continue
        if node.op != "call_function" or node.target not in _TARGETS:
            continue
        source = node.args[0]
        before, after = source.meta.get("val"), node.meta.get("val")
        if before is None or after is None or (len(node.args) > 3 and node.args[3]):
            continue
        if len(before.shape) == len(after.shape) and all(
            _same(a, b) and (_same(b, 1) or _same(s, t))
            for a, b, s, t in zip(before.shape, after.shape, before.stride(), after.stride(), strict=True)
        ):
            node.replace_all_uses_with(source)
            graph.erase_node(node)
            changed = True
    if changed:
        program.graph_module.recompile()
    return program


_POOLS = (
    torch.ops.aten.adaptive_avg_pool1d.default,
    torch.ops.aten.adaptive_avg_pool2d.default,
    torch.ops.aten.adaptive_avg_pool3d.default,
)
_TARGETS = (torch.ops.aten.as_strided.default, torch.ops.aten.as_strided_.default)


def _same(a: Any, b: Any) -> bool:
    """Whether two sizes are certainly equal; symbolic ones by their expression."""
    return str(a) == str(b)
