"""If, Loop and Scan."""

from __future__ import annotations

import operator
from typing import Any

import onnx_ir as ir
import torch
import torch.fx

from attar.conversion import NodeView
from attar.graph import const_array
from attar_torch.writing.branches import Choice, Repeat, Sweep
from attar_torch.writing.context import Context
from attar_torch.writing.dtypes import NARROW, torch_dtype
from attar_torch.writing.table import Table

TABLE = Table()


def _free(graph: ir.Graph) -> list[ir.Value]:
    """Values that `graph` takes from around it, constants left out."""
    inside: set[ir.Value] = set()
    for part in (graph, *graph.subgraphs()):
        inside.update(part.inputs)
        inside.update(part.initializers.values())
        for node in part:
            inside.update(node.outputs)
    found: dict[ir.Value, None] = {}
    uses = [v for part in (graph, *graph.subgraphs()) for node in part for v in node.inputs]
    for value in (*uses, *graph.outputs):
        if value is not None and value not in inside and const_array(value) is None:
            found[value] = None
    return list(found)


def body(ctx: Context, view: NodeView, graph: ir.Graph, outer: list[ir.Value]) -> torch.nn.Module:
    """`graph` as a module of its inputs and of the values `outer`; it always gives a tuple."""
    from attar_torch.writing.build import lower_graph

    inner = Context(ctx.store.child(), ctx.table, ctx.opset)
    for k, value in enumerate((*graph.inputs, *outer)):
        if value.dtype is not None and (torch_dtype(value.dtype) is None or value.dtype in NARROW):
            raise view.refuse("its subgraph takes what is no tensor of torch")
        node = inner.graph.placeholder(f"x{k}")
        inner.values[value] = node
        inner.inputs.append(node)
    inner.graph.output(tuple(lower_graph(inner, graph)))
    inner.graph.eliminate_dead_code(is_impure_node=lambda node: node.op in ("placeholder", "output"))
    return inner.store.finish(inner.graph)


def _outer(ctx: Context, values: list[ir.Value]) -> list[Any]:
    return [ctx.as_tensor(ctx.value(v)) for v in values]


def _results(ctx: Context, made: Any, count: int) -> tuple[Any, ...]:
    return tuple(ctx.call(operator.getitem, made, k) for k in range(count))


@TABLE.op("If", any_type=True)
def choice(ctx: Context, view: NodeView) -> Any:
    branches = [view.graph_attr("then_branch"), view.graph_attr("else_branch")]
    outer = list(dict.fromkeys(v for g in branches for v in _free(g)))
    made = [body(ctx, view, g, outer) for g in branches]
    path = ctx.store.add(view, Choice(*made))
    call = ctx.graph.call_module(path, (ctx.tensor(view), *_outer(ctx, outer)))
    return _results(ctx, call, len(view.outputs))


@TABLE.op("Loop", any_type=True)
def loop(ctx: Context, view: NodeView) -> Any:
    graph = view.graph_attr("body")
    outer = _free(graph)
    states = len(view.inputs) - 2
    limit = view.const(0) if view.has(0) else None
    collected = len(view.outputs) - states
    trips = None if limit is None else int(limit.reshape(-1)[0])
    module = Repeat(body(ctx, view, graph, outer), states, collected, trips)
    path = ctx.store.add(view, module)
    first = [None if trips is not None else ctx.optional(view, 0), ctx.optional(view, 1)]
    state = [ctx.tensor(view, k) for k in range(2, len(view.inputs))]
    call = ctx.graph.call_module(path, (*first, *state, *_outer(ctx, outer)))
    return _results(ctx, call, len(view.outputs))


@TABLE.op("Scan", any_type=True)
def scan(ctx: Context, view: NodeView) -> Any:
    graph = view.graph_attr("body")
    count = view.attr("num_scan_inputs")
    states = len(view.inputs) - count
    results = len(view.outputs) - states
    outer = _free(graph)
    in_axes = view.attr("scan_input_axes") or [0] * count
    module = Sweep(
        body(ctx, view, graph, outer), states, in_axes, view.attr("scan_input_directions") or [0] * count,
        view.attr("scan_output_axes") or [0] * results, view.attr("scan_output_directions") or [0] * results,
    )  # fmt: skip
    path = ctx.store.add(view, module)
    operands = [ctx.tensor(view, k) for k in range(len(view.inputs))]
    call = ctx.graph.call_module(path, (*operands, *_outer(ctx, outer)))
    return _results(ctx, call, len(view.outputs))
