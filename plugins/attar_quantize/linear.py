"""Linear layers with constant weights: what passes on channels of transformers look for."""

from __future__ import annotations

from typing import Any

import numpy as np
import onnx_ir as ir

from attar import graph

Array = np.ndarray[Any, np.dtype[Any]]


def is_linear(node: ir.Node) -> bool:
    """Whether it is a MatMul or Gemm with a constant float matrix on the right and nothing unusual."""
    if node.op_type not in ("MatMul", "Gemm") or node.domain not in ("", "ai.onnx") or len(node.inputs) < 2:
        return False
    array = graph.const_array(node.inputs[1])
    plain = all(
        name not in node.attributes or node.attributes[name].value == value
        for name, value in (("alpha", 1.0), ("beta", 1.0), ("transA", 0))
    )
    return plain and array is not None and array.ndim == 2 and is_float(array)


def is_float(array: Array) -> bool:
    """Whether it holds finite float32 numbers."""
    return array.dtype == np.float32 and bool(np.isfinite(array).all())


def is_transposed(node: ir.Node) -> bool:
    """Whether the layer's weight is `[outputs, channels]`."""
    trans = node.attributes.get("transB")
    return trans is not None and bool(trans.value)
