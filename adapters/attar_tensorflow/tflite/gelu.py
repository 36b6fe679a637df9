"""GELU written out by its error function, x (1 + erf(x / sqrt 2)) / 2, made the one operator that TFLite has
for it."""

from __future__ import annotations

import math

import numpy as np
import onnx_ir as ir

from attar.graph import all_nodes, const_array, tidy


def gather_gelu(model: ir.Model) -> None:
    """Replace every such formula in `model`, in place. Its products may be in any order."""
    if model.opset_imports.get("", 0) < 20:
        return
    changed = False
    for node in list(all_nodes(model)):
        if node.op_type == "Erf" and node.domain == "":
            changed |= _replace(node)
    if changed:
        tidy(model)


def _replace(erf: ir.Node) -> bool:
    x = _scaled(erf.inputs[0], math.sqrt(0.5))
    add = _only_reader(erf.outputs[0], "Add")
    if x is None or add is None or _number(_other(add, erf.outputs[0])) != 1.0:
        return False
    value, factors, last = add.outputs[0], [], add
    while len(factors) < 2:
        product = _only_reader(value, "Mul")
        if product is None:
            break
        other = _other(product, value)
        factors.append(other)
        value, last = product.outputs[0], product
        if _scaled(other, 0.5) is x:
            break
    whole = len(factors) == 1 and _scaled(factors[0], 0.5) is x
    parts = len(factors) == 2 and any(f is x for f in factors) and any(_number(f) == 0.5 for f in factors)
    if not (whole or parts) or last.graph is None:
        return False
    new = ir.node("Gelu", [x], attributes={"approximate": "none"}, name=f"{last.name}_gelu")
    new.outputs[0].type, new.outputs[0].shape = value.type, value.shape
    last.graph.insert_after(last, new)
    result = new.outputs[0]
    name = value.name
    for user, position in list(value.uses()):
        user.replace_input_with(position, result)
    for i, output in enumerate(last.graph.outputs):
        if output is value:
            last.graph.outputs[i] = result
    value.name, result.name = f"{name}_replaced", name
    return True


def _only_reader(value: ir.Value, kind: str) -> ir.Node | None:
    uses = list(value.uses())
    if len(uses) != 1 or value.is_graph_output() or uses[0][0].op_type != kind:
        return None
    return uses[0][0]


def _other(node: ir.Node, value: ir.Value | None) -> ir.Value | None:
    return node.inputs[0] if node.inputs[1] is value else node.inputs[1]


def _number(value: ir.Value | None) -> float | None:
    array = const_array(value)
    return float(np.asarray(array).reshape(-1)[0]) if array is not None and array.size == 1 else None


def _scaled(value: ir.Value | None, factor: float) -> ir.Value | None:
    """The x of `factor * x` or `x / (1 / factor)`; None if `value` is none."""
    node = None if value is None else value.producer()
    if node is None or node.domain != "" or node.op_type not in ("Mul", "Div"):
        return None
    places = (0, 1) if node.op_type == "Mul" else (1,)
    for i in places:
        number = _number(node.inputs[i])
        wanted = factor if node.op_type == "Mul" else 1 / factor
        if number is not None and math.isclose(number, wanted, rel_tol=1e-6):
            return node.inputs[1 - i]
    return None
