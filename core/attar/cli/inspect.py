"""`attar inspect`: what is in a model."""

from __future__ import annotations

from collections import Counter
from typing import TYPE_CHECKING, Any

import click

from attar.cli.app import clean, emit, shared_options
from attar.cli.passes import table
from attar.cli.progress import progress

if TYPE_CHECKING:
    import onnx_ir as ir

QUANTIZED = frozenset(
    {
        *("QuantizeLinear", "DequantizeLinear", "DynamicQuantizeLinear", "QLinearConv", "QLinearMatMul"),
        *("ConvInteger", "MatMulInteger", "QGemm", "MatMulNBits", "DynamicQuantizeMatMul"),
    }
)
"""Operators whose presence makes a model quantized."""


@click.command()
@click.argument("model", type=click.Path())
@click.option(
    "--top",
    type=click.IntRange(min=0),
    default=10,
    show_default=True,
    help="How many of the biggest layers to show.",
)
@shared_options
def inspect(model: str, top: int) -> None:
    """Show what is in MODEL.

    Inputs, outputs, operators, parameters, bytes, cost and the biggest layers.

    Multiply-accumulates are those of one run with every symbolic dimension (the batch) at 1.

    \b
    Examples:
      attar inspect model.onnx
      attar inspect model.onnx --json --top 50
    """
    import attar

    with progress().task("reading the model"):
        found = summary(attar.load(model), top)
    emit(found, lambda: _text(model, found))


def summary(model: ir.Model, top: int) -> dict[str, Any]:
    """Everything that `attar inspect` shows, as plain JSON types.

    A layer is a node with the weights that it is the first to use, so a shared weight counts once. Scalars
    (scales, bounds of Clip) are no parameters, here as in a report.
    """
    from attar.graph import all_nodes, byte_size, provenance
    from attar.ops import model_macs, rule_of
    from attar.registry import default_registry
    from attar.specs import input_specs, output_specs

    registry = default_registry()
    nodes = list(all_nodes(model))
    operators = Counter(f"{node.domain}.{node.op_type}" if node.domain else node.op_type for node in nodes)
    types: Counter[str] = Counter()
    seen: set[int] = set()
    layers: list[dict[str, Any]] = []
    for node in nodes:
        rule = rule_of(node, registry)
        parameters = size = 0
        for value in node.inputs:
            tensor = None if value is None else value.const_value
            if value is None or tensor is None or id(value) in seen:
                continue
            seen.add(id(value))
            types[tensor.dtype.name.lower()] += tensor.nbytes
            parameters += tensor.size if tensor.size > 1 else 0
            size += tensor.nbytes
        macs = (rule.macs(node) if rule is not None else None) or 0
        layers.append(
            {
                "name": node.name or "",
                "op": node.op_type,
                "parameters": parameters,
                "bytes": size,
                "macs": macs,
            }
        )
    layers.sort(key=lambda item: (-item["bytes"], -item["macs"]))
    quantized = {op: number for op, number in operators.items() if op.rpartition(".")[2] in QUANTIZED}
    return {
        "inputs": [_spec(s) for s in input_specs(model)],
        "outputs": [_spec(s) for s in output_specs(model)],
        "opset": dict(model.graph.opset_imports),
        "ir_version": model.ir_version,
        "producer": " ".join(filter(None, (model.producer_name, model.producer_version))),
        "provenance": provenance(model),
        "nodes": len(nodes),
        "operators": dict(operators.most_common()),
        "parameters": sum(layer["parameters"] for layer in layers),
        "bytes": byte_size(model),
        "bytes_by_type": dict(types.most_common()),
        "macs": model_macs(model, registry),
        "quantized": bool(quantized),
        "quantized_operators": quantized,
        "layers": [layer for layer in layers if layer["bytes"] or layer["macs"]][:top],
    }


def _spec(spec: Any) -> dict[str, Any]:
    shape = None if spec.shape is None else list(spec.shape)
    return {"name": spec.name, "dtype": str(spec.dtype), "shape": shape, "text": str(spec)}


def _text(source: str, found: dict[str, Any]) -> str:
    opset = ", ".join(f"{domain or 'ai.onnx'} {version}" for domain, version in found["opset"].items())
    quantized = ", ".join(f"{number} {op}" for op, number in found["quantized_operators"].items())
    facts = [
        ("inputs", "; ".join(s["text"] for s in found["inputs"])),
        ("outputs", "; ".join(s["text"] for s in found["outputs"])),
        ("opset", f"{opset} (IR {found['ir_version']})"),
        ("producer", found["producer"] or "-"),
        ("parameters", f"{found['parameters']:,}"),
        ("weights", f"{found['bytes'] / 1e6:,.3f} MB ({_types(found)})"),
        ("MACs", f"{found['macs'] / 1e6:,.2f} M"),
        ("quantized", quantized or "no"),
        ("nodes", f"{found['nodes']:,}"),
        ("operators", ", ".join(f"{number} {op}" for op, number in found["operators"].items())),
        *((f"attar.{key.removeprefix('attar.')}", value) for key, value in found["provenance"].items()),
    ]
    parts = [clean(source), table([(name, clean(value)) for name, value in facts])]
    if found["layers"]:
        rows = [("biggest layers", "operator", "parameters", "KB", "M MACs")]
        rows += [
            (
                clean(layer["name"]),
                layer["op"],
                f"{layer['parameters']:,}",
                f"{layer['bytes'] / 1e3:,.1f}",
                f"{layer['macs'] / 1e6:,.2f}",
            )
            for layer in found["layers"]
        ]
        parts.append(table(rows))
    return "\n\n".join(parts)


def _types(found: dict[str, Any]) -> str:
    whole = sum(found["bytes_by_type"].values())
    shares = (f"{dtype} {size / whole:.1%}" for dtype, size in found["bytes_by_type"].items() if whole)
    return ", ".join(shares) or "none"
