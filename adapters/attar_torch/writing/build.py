"""Builds the module: every node by its lowering, in order."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import onnx_ir as ir
import torch
import torch.fx

from attar.adapters import Exported, Placed
from attar.conversion import NodeView, prepare
from attar.conversion.view import op_key
from attar.errors import ConversionError, InputError, Refused
from attar.graph import all_nodes
from attar.registry import Registry
from attar.specs import input_specs
from attar_torch.quiet import quiet
from attar_torch.writing import naming
from attar_torch.writing.context import Context
from attar_torch.writing.dims_ops import lower_dims
from attar_torch.writing.dtypes import NARROW, to_array, to_tensor, torch_dtype
from attar_torch.writing.store import Store
from attar_torch.writing.table import ORDINARY, Lowering
from attar_torch.writing.written import WrittenModule

_ROUNDING = ("QuantizeLinear", "DynamicQuantizeLinear", "QLinearConv", "QLinearMatMul")
_QUANTIZED = 2e-2
"""Tolerance for quantized models: torch multiplies by the inverse of a scale where ONNX divides by it, and
one step of an 8-bit scale is 4e-3 of its range."""


def write_module(model: ir.Model, registry: Registry) -> Exported:
    """See `TorchAdapter.write`."""
    table = registry.op_table("attar_lowerings", "torch")
    try:
        ready = prepare(model, table, "torch", registry=registry)
    except Refused as error:
        raise ConversionError(f"the model cannot be written for torch: {error.message}") from error
    _check_interface(ready)
    module, weights, values = build(ready, table)
    names = [s.name for s in input_specs(ready)]
    kinds = {v.name: v.dtype for v in ready.graph.inputs}

    def run(feeds: Mapping[str, np.ndarray[Any, Any]]) -> Sequence[np.ndarray[Any, Any]]:
        if missing := [n for n in names if n not in feeds]:
            raise InputError(f"no input named {missing[0]!r} was given", hint="inputs: " + ", ".join(names))
        home = next(iter([*module.parameters(), *module.buffers()]), torch.empty(0)).device
        tensors = [to_tensor(feeds[n]).to(home, torch_dtype(kinds[n])) for n in names]
        flags = [(m, m.training) for m in module.modules()]
        module.eval()
        try:
            with torch.no_grad(), quiet():
                result = module(*tensors)
        finally:
            for part, flag in flags:
                part.training = flag
        return [to_array(t) for t in (result if isinstance(result, tuple | list) else (result,))]

    rounds = [n for n in all_nodes(ready) if n.op_type in _ROUNDING]
    if not rounds:
        return Exported(module, run, weights=weights, values=values)
    note = (
        f"{len(rounds)} operators round to integers; what lies halfway between two may be rounded "
        "to the other one, which is one step of a scale"
    )
    return Exported(module, run, notes=(note,), tolerance=_QUANTIZED, weights=weights, values=values)


def build(
    model: ir.Model, table: Mapping[str, Lowering]
) -> tuple[WrittenModule, dict[str, tuple[Placed, ...]], dict[str, str]]:
    """The module of a prepared model, in eval mode; where it holds which initializers, and which node of its
    graph makes which value."""
    store = Store()
    ctx = Context(store, table, model.opset_imports[""])
    taken: set[str] = set()
    for value in _fed(model):
        name = naming.identifier(value.name or "input")
        while name in taken:
            name += "_"
        taken.add(name)
        node = ctx.graph.placeholder(name)
        ctx.values[value] = node
        ctx.inputs.append(node)
    results = lower_graph(ctx, model.graph)
    ctx.graph.output(results[0] if len(results) == 1 else tuple(results))
    ctx.graph.eliminate_dead_code(is_impure_node=lambda node: node.op in ("placeholder", "output"))
    module = store.finish(ctx.graph, naming.identifier(model.graph.name or "Model"))
    # What an export of the module needs: name, type and shape of every input.
    module.meta["attar.inputs"] = tuple(
        (s.name, torch_dtype(v.dtype), s.shape or ())
        for s, v in zip(input_specs(model), _fed(model), strict=True)
    )
    return module.eval(), store.weights(module), _made(ctx)


def _made(ctx: Context) -> dict[str, str]:
    """Value -> node of the graph that makes it."""
    kept = set(ctx.graph.nodes)
    return {
        value.name: node.name
        for value, node in ctx.values.items()
        # A product whose Add became the bias of its layer is computed nowhere.
        if value.name and node in kept and not any(use.node in ctx.done for use in value.uses())
    }


def _fed(model: ir.Model) -> list[ir.Value]:
    return [v for v in model.graph.inputs if v.name not in model.graph.initializers]


def lower_graph(ctx: Context, graph: ir.Graph) -> list[Any]:
    """Write the nodes of `graph`, whose inputs have values already; the nodes of its outputs.

    Raises:
        ConversionError: some nodes cannot be said exactly; all that could be found are named.
    """
    refusals: list[ConversionError] = []
    for node in graph:
        if node in ctx.done:
            continue
        if any(v in ctx.poisoned for v in node.inputs if v is not None):
            ctx.poisoned.update(node.outputs)
            continue
        view = NodeView(node, opset=ctx.opset, framework="torch")
        try:
            lower_node(ctx, view)
        except ConversionError as error:
            refusals.append(error)
            ctx.poisoned.update(node.outputs)
    if refusals:
        raise _together(refusals)
    return [ctx.as_tensor(ctx.value(v)) for v in graph.outputs]


def lower_node(ctx: Context, view: NodeView) -> None:
    """Write one node and note what its outputs are."""
    result = lower_dims(ctx, view)
    if result is None:
        lowering = ctx.table[op_key(view.node)]
        if getattr(lowering, "ordinary_only", False):
            _check_types(view)
        result = lowering(ctx, view)
    outputs = result if isinstance(result, tuple) else (result,)
    for value, made in zip(view.outputs, outputs, strict=False):
        if made is None:
            ctx.poisoned.add(value)
            if view.wants(view.outputs.index(value)):
                raise view.refuse(f"its output {value.name!r} has no counterpart")
        elif made is not ...:
            ctx.values[value] = made
    for index in range(len(outputs), len(view.outputs)):
        if view.wants(index):
            raise view.refuse(f"its output {view.outputs[index].name!r} has no counterpart")


def _check_types(view: NodeView) -> None:
    for value in (*view.inputs, *view.outputs):
        if value is None or not value.name:
            continue
        if value.dtype is None:
            raise view.refuse(f"the element type of {value.name!r} is unknown")
        if value.dtype not in ORDINARY:
            raise view.refuse(f"torch does not compute with {value.dtype.name.lower()}")


def _check_interface(model: ir.Model) -> None:
    for value in (*model.graph.inputs, *model.graph.outputs):
        if torch_dtype(value.dtype) is None or value.dtype in NARROW:
            kind = "no tensor" if value.dtype is None else value.dtype.name.lower()
            raise ConversionError(f"torch has no tensors for {value.name!r}, which is {kind}")


def _together(refusals: list[ConversionError]) -> ConversionError:
    if len(refusals) == 1:
        return refusals[0]
    missing: dict[str, list[str]] = {}
    for error in refusals:
        for op, nodes in error.missing.items():
            missing.setdefault(op, []).extend(nodes)
    reasons = "; ".join(dict.fromkeys(e.message.split("\n")[0] for e in refusals))
    return ConversionError(reasons, missing=missing)
