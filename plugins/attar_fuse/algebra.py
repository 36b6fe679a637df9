"""Arithmetic with constants merged, matrix products written as Gemm, equal nodes computed once."""

from __future__ import annotations

import numpy as np
import onnx_ir as ir

from attar.graph import const_array
from attar.rewrite.edit import Edit, Rule, at, dims, float_of, is_float
from attar_fuse.affine import cast_back, data_index


def constants_in_a_row(node: ir.Node, edit: Edit) -> bool:
    """(x + a) + b = x + (a + b), (x * a) * b = x * (a * b), with - and / by a constant alike."""
    index = data_index(node)
    value = None if index is None else node.inputs[index]
    pair = ("Add", "Sub") if node.op_type in ("Add", "Sub") else ("Mul", "Div")
    first = edit.producer(value, *pair, beside=node)
    if index is None or first is None or value is None or not is_float(value) or not edit.alone(value):
        return False
    inner = data_index(first)
    if inner is None or (node.op_type == "Sub" and index == 1) or (first.op_type == "Sub" and inner == 1):
        return False
    a, b = const_array(first.inputs[1 - inner]), const_array(node.inputs[1 - index])
    assert a is not None
    assert b is not None
    wide_a, wide_b = a.astype(np.float64), b.astype(np.float64)
    additive = pair == ("Add", "Sub")
    if additive:
        total = (-wide_a if first.op_type == "Sub" else wide_a) + (
            -wide_b if node.op_type == "Sub" else wide_b
        )
        # (x + 2^23) - 2^23 rounds to integers on purpose: constants that cancel are not ours to cancel.
        largest = max(np.abs(wide_a).max(initial=0), np.abs(wide_b).max(initial=0))
        if np.abs(total).max(initial=0) < 1e-3 * largest:
            return edit.refuse(node, f"it cancels the {first.op_type} before it, which may round on purpose")
    else:
        if (first.op_type == "Div" and not wide_a.all()) or (node.op_type == "Div" and not wide_b.all()):
            return False
        total = (1 / wide_a if first.op_type == "Div" else wide_a) * (
            1 / wide_b if node.op_type == "Div" else wide_b
        )
    merged = cast_back(total, a)
    if merged is None or merged.size > max(a.size, b.size):
        return False
    source = first.inputs[inner]
    kind = "Add" if additive else "Mul"
    edit.replace(node, kind, [source, edit.constant(f"{first.name}_{kind}", merged)])
    assert first.graph is not None
    first.graph.remove(first, safe=True)
    return edit.did(f"{kind} of constants in a row merged")


def gemm_of_matmul(node: ir.Node, edit: Edit) -> bool:
    """MatMul + Add of a constant row, rank 2, constant weights -> Gemm."""
    index = data_index(node)
    matmul = None if index is None else edit.producer(node.inputs[index], "MatMul", beside=node)
    if index is None or matmul is None:
        return False
    x, w, bias = matmul.inputs[0], const_array(matmul.inputs[1]), const_array(node.inputs[1 - index])
    shape = dims(x)
    if w is None or bias is None or shape is None or len(shape) != 2 or w.ndim != 2 or not is_float(x):
        return False
    if bias.ndim > 2 or bias.size not in (1, w.shape[1]) or (bias.size > 1 and bias.shape[-1] != w.shape[1]):
        return False
    if not edit.alone(matmul.outputs[0]):
        return edit.refuse(node, edit.why_not_alone(matmul.outputs[0]))
    edit.replace(node, "Gemm", [x, matmul.inputs[1], node.inputs[1 - index]])
    assert matmul.graph is not None
    matmul.graph.remove(matmul, safe=True)
    return edit.did("MatMul and Add joined to Gemm")


def gemm_factors(node: ir.Node, edit: Edit) -> bool:
    """alpha goes into constant weights, beta into a constant bias; integer kernels want both to be 1."""
    alpha, beta, done = float_of(node, "alpha", 1.0), float_of(node, "beta", 1.0), False
    weight, bias = const_array(at(node, 1)), const_array(at(node, 2))
    if alpha != 1 and weight is not None and is_float(node.inputs[1]):
        scaled = cast_back(weight.astype(np.float64) * alpha, weight)
        if scaled is not None:
            edit.reweight(node, 1, scaled)
            node.attributes.pop("alpha")
            done = edit.did("alpha of Gemm folded into its weights")
    if beta != 1 and at(node, 2) is None:
        node.attributes.pop("beta")
    elif beta != 1 and bias is not None and is_float(node.inputs[2]):
        scaled = cast_back(bias.astype(np.float64) * beta, bias)
        if scaled is not None:
            edit.reweight(node, 2, scaled)
            node.attributes.pop("beta")
            done = edit.did("beta of Gemm folded into its bias")
    return done


ARITHMETIC: dict[str, list[Rule]] = {op: [constants_in_a_row] for op in ("Add", "Sub", "Mul", "Div")}
GEMM: dict[str, list[Rule]] = {"Gemm": [gemm_factors], "Add": [gemm_of_matmul]}
RULES: dict[str, list[Rule]] = {**ARITHMETIC, **GEMM, "Add": [constants_in_a_row, gemm_of_matmul]}
