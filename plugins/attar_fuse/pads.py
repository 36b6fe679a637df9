"""Pad nodes taken into the padding of the Conv or pooling that follows."""

from __future__ import annotations

import numpy as np
import onnx_ir as ir

from attar.graph import const_array
from attar.rewrite.edit import Edit, at, dims, float_of, int_of, ints_of, string_of

NOT_NEGATIVE = frozenset(
    {"Relu", "Sigmoid", "HardSigmoid", "Softplus", "Softmax", "Abs", "Exp", "Sqrt", "ThresholdedRelu"}
)


def into_window(node: ir.Node, edit: Edit) -> bool:
    """Pad -> Conv, AveragePool or MaxPool (`node`).

    Zeros around a Conv are its own padding. Around an AveragePool they count as elements, so
    count_include_pad becomes 1. MaxPool pads with minus infinity, which equals zeros only where nothing is
    negative.
    """
    pad = edit.producer(at(node, 0), "Pad", beside=node)
    if pad is None:
        return False
    amounts = _amounts(pad, edit)
    if isinstance(amounts, str):
        return edit.refuse(pad, amounts)
    fill = _fill(pad)
    if fill is None:
        return edit.refuse(pad, "its value is not constant")
    if string_of(node, "auto_pad", "NOTSET") not in ("NOTSET", "VALID"):
        return edit.refuse(pad, f"the {node.op_type} after it chooses its own padding")
    begins, ends = amounts
    spatial = len(begins)
    own = ints_of(node, "pads") or (0,) * (2 * spatial)
    pads = [a + b for a, b in zip((*begins, *ends), own, strict=True)]
    reason = _MAY[node.op_type](node, pad, fill, own, pads)
    if reason:
        return edit.refuse(pad, reason)
    source = pad.inputs[0]
    node.attributes.pop("auto_pad", None)
    node.attributes["pads"] = ir.AttrInt64s("pads", pads)
    if node.op_type == "AveragePool":
        node.attributes["count_include_pad"] = ir.AttrInt64("count_include_pad", 1)
    node.replace_input_with(0, source)
    return edit.did(f"Pad folded into the {node.op_type} after")


def _amounts(pad: ir.Node, edit: Edit) -> tuple[tuple[int, ...], tuple[int, ...]] | str:
    """Spatial (begins, ends)."""
    if string_of(pad, "mode", "constant") != "constant":
        return f"its mode is {string_of(pad, 'mode', 'constant')}"
    shape, pads = dims(pad.inputs[0]), edit.ints(at(pad, 1))
    if shape is None or pads is None:
        return "its amounts are not constant"
    axes: tuple[int, ...] | None = tuple(range(len(shape)))
    if at(pad, 3) is not None:
        axes = edit.ints(at(pad, 3))
    if axes is None or len(pads) != 2 * len(axes):
        return "its axes are not constant"
    before, after = [0] * len(shape), [0] * len(shape)
    for k, axis in enumerate(axes):
        before[axis], after[axis] = pads[k], pads[k + len(axes)]
    if any((*before[:2], *after[:2])):
        return "it pads the batch or the channels"
    if min((*before, *after)) < 0:
        return "it crops"
    return tuple(before[2:]), tuple(after[2:])


def _fill(pad: ir.Node) -> float | None:
    if at(pad, 2) is None:
        return 0.0
    value = const_array(at(pad, 2))
    return None if value is None else float(value.reshape(-1)[0])


def _conv(node: ir.Node, pad: ir.Node, fill: float, own: tuple[int, ...], pads: list[int]) -> str | None:
    return None if fill == 0 else f"it pads with {fill:g}, a Conv with zero"


def _average(node: ir.Node, pad: ir.Node, fill: float, own: tuple[int, ...], pads: list[int]) -> str | None:
    if fill != 0:
        return f"it pads with {fill:g}, an AveragePool with zero"
    if int_of(node, "ceil_mode", 0):
        return "the AveragePool after it rounds its size up"
    if any(own) and not int_of(node, "count_include_pad", 0):
        return "the AveragePool after it does not count its own padding"
    return _fits(node, pads)


def _max(node: ir.Node, pad: ir.Node, fill: float, own: tuple[int, ...], pads: list[int]) -> str | None:
    lowest = pad.inputs[0] is not None and fill <= float(np.finfo(np.float32).min)
    if not lowest and not (fill == 0 and _never_negative(pad.inputs[0])):
        return f"it pads with {fill:g}, a MaxPool with minus infinity"
    if int_of(node, "ceil_mode", 0):
        return "the MaxPool after it rounds its size up"
    if len(node.outputs) > 1 and (node.outputs[1].uses() or node.outputs[1].is_graph_output()):
        return "the MaxPool after it tells indices"
    return _fits(node, pads)


def _fits(node: ir.Node, pads: list[int]) -> str | None:
    """A pool may not have a window of padding alone."""
    kernel = ints_of(node, "kernel_shape") or ()
    if any(p >= k for p, k in zip(pads, (*kernel, *kernel), strict=True)):
        return f"it is wider than the window of the {node.op_type} after it"
    return None


def _never_negative(value: ir.Value | None) -> bool:
    node = None if value is None else value.producer()
    if node is None or node.domain != "":
        return False
    if node.op_type == "ThresholdedRelu":
        return float_of(node, "alpha", 1.0) >= 0
    if node.op_type == "Clip":
        low = const_array(at(node, 1))
        high = const_array(at(node, 2))
        return low is not None and bool((low >= 0).all()) and (high is None or bool((high >= 0).all()))
    if node.op_type in ("MaxPool", "AveragePool", "Identity"):
        return _never_negative(node.inputs[0])
    return node.op_type in NOT_NEGATIVE


_MAY = {"Conv": _conv, "AveragePool": _average, "MaxPool": _max}

RULES = {op: [into_window] for op in _MAY}
