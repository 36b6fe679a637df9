"""A convolution that sees one pixel and is then flattened, written as the Gemm that it is.

Keras and some vision libraries classify with a 1x1 Conv over the pooled [N, C, 1, 1]. As a Gemm it runs on
the kernels of everyone else's classifier, and its int8 form gives float results, which a quantized Conv does
not: one rounding less, where it counts most.
"""

from __future__ import annotations

import onnx_ir as ir

from attar.graph import const_array
from attar.rewrite.edit import Edit, at, dims, int_of, ints_of, is_float, string_of


def flattened_conv(node: ir.Node, edit: Edit) -> bool:
    """Conv over one pixel -> Reshape, Flatten or Squeeze to [N, K]: Flatten -> Gemm."""
    conv = edit.producer(node.inputs[0], "Conv", beside=node)
    if conv is None or not edit.alone(conv.outputs[0]) or not is_float(conv.inputs[0]):
        return False
    before, after = dims(conv.inputs[0]), dims(node.outputs[0])
    weight = const_array(conv.inputs[1])
    if before is None or after is None or weight is None or int_of(conv, "group", 1) != 1:
        return False
    if set(before[2:]) != {1} or set(weight.shape[2:]) != {1} or any(ints_of(conv, "pads") or ()):
        return False
    padded = string_of(conv, "auto_pad", "NOTSET") not in ("NOTSET", "VALID")
    # With one pixel and a batch that stays, [N, K] is the only way to say it in two axes.
    if padded or len(after) != 2 or after[1] != weight.shape[0]:
        return False
    small = (before[0], weight.shape[1])
    flat = edit.before(node, "Flatten", [conv.inputs[0]], {"axis": 1}, like=conv.inputs[0], shape=small)
    edit.reweight(conv, 1, weight.reshape(weight.shape[:2]))
    bias = at(conv, 2)
    inputs = [flat.outputs[0], conv.inputs[1], *([bias] if bias is not None else [])]
    gemm = edit.replace(node, "Gemm", inputs, {"transB": 1})
    gemm.name, conv.name = conv.name, gemm.name  # reports and patterns go on knowing the layer
    return edit.did("Conv over one pixel turned into Gemm")


RULES = {"Reshape": [flattened_conv], "Flatten": [flattened_conv], "Squeeze": [flattened_conv]}
