"""What each operator does to the layout of images. A rule returns whether it wrote the node anew."""

from __future__ import annotations

import numpy as np
import onnx_ir as ir

from attar.graph import const_array
from attar_tensorflow.writing.layout import Layout, Rule, first_to_last, last_to_first, moved_axis, rank_of


def _images(walk: Layout, node: ir.Node) -> bool:
    """Takes and gives images."""
    if rank_of(node.inputs[0]) not in (3, 4, 5):
        return False
    if node.op_type == "MaxPool" and len(node.outputs) > 1:
        return False
    inputs = [walk.in_last(node.inputs[0]), *(v and walk.in_source(v) for v in node.inputs[1:])]
    walk.again(node, inputs, channels_last=1)
    return True


_images.on_images = True  # type: ignore[attr-defined]


def _each(walk: Layout, node: ir.Node) -> bool:
    """Acts on each element of its first input, with constants that are single numbers."""
    if not walk.has_last(node.inputs[0]):
        return False
    rest = node.inputs[1:]
    if any(v is not None and (const_array(v) is None or const_array(v).size != 1) for v in rest):
        return False
    walk.again(node, [walk.in_last(node.inputs[0]), *rest])
    return True


def _broadcast(walk: Layout, node: ir.Node) -> bool:
    """Broadcasts its inputs against each other."""
    rank = rank_of(node.outputs[0])
    if rank not in (3, 4, 5) or not any(walk.has_last(v) for v in node.inputs):
        return False
    if any(v is None or rank_of(v) is None for v in node.inputs):
        return False
    if any(const_array(v) is None and rank_of(v) not in (0, rank) for v in node.inputs):
        return False
    inputs = []
    for value in node.inputs:
        if const_array(value) is not None:
            inputs.append(walk.constant_last(value, rank))
        else:
            inputs.append(walk.in_last(value) if rank_of(value) == rank else walk.in_source(value))
    walk.again(node, inputs)
    return True


def _attribute_axis(default: int) -> Rule:
    """Has one axis as an attribute; all tensor inputs have the same rank, the others are constants."""

    def rule(walk: Layout, node: ir.Node) -> bool:
        rank = rank_of(node.inputs[0])
        tensors = [v for v in node.inputs if v is not None and rank_of(v) == rank]
        if rank not in (3, 4, 5) or not any(walk.has_last(v) for v in tensors):
            return False
        if node.op_type in ("ArgMax", "ArgMin") and not node.attributes.get_int("keepdims", 1):
            return False
        axis = moved_axis(node.attributes.get_int("axis", default), rank)
        inputs = []
        for value in node.inputs:
            if value is None or rank_of(value) != rank:
                inputs.append(value)
            elif const_array(value) is not None:
                whole = np.ascontiguousarray(np.transpose(const_array(value), first_to_last(rank)))
                inputs.append(walk.constant(value.name or "constant", whole))
            else:
                inputs.append(walk.in_last(value))
        walk.again(node, inputs, axis=axis)
        return True

    return rule


def _quantized(walk: Layout, node: ir.Node) -> bool:
    scale = const_array(node.inputs[1])
    if node.attributes.get_int("block_size", 0) or scale is None:
        return False
    rank = rank_of(node.inputs[0])
    if not walk.has_last(node.inputs[0]):
        return False
    axis = node.attributes.get_int("axis", 1) if scale.size > 1 else 1
    walk.again(node, [walk.in_last(node.inputs[0]), *node.inputs[1:]], axis=moved_axis(axis, rank))
    return True


def _reduce(walk: Layout, node: ir.Node) -> bool:
    rank = rank_of(node.inputs[0])
    if not walk.has_last(node.inputs[0]):
        return False
    axes = const_array(node.inputs[1]) if len(node.inputs) > 1 and node.inputs[1] is not None else None
    if axes is None and len(node.inputs) > 1 and node.inputs[1] is not None:
        return False
    if axes is None or not axes.size:
        return False
    keep = bool(node.attributes.get_int("keepdims", 1))
    gone = {int(a) % rank for a in axes}
    left = [a for a in first_to_last(rank) if a not in gone]
    if not keep and left != sorted(left):
        return False
    new = walk.constant("axes", np.array(sorted(moved_axis(a, rank) for a in gone), np.int64))
    walk.again(node, [walk.in_last(node.inputs[0]), new], last=keep)
    return True


def _pad(walk: Layout, node: ir.Node) -> bool:
    rank = rank_of(node.inputs[0])
    pads = const_array(node.inputs[1])
    axes = node.inputs[3] if len(node.inputs) > 3 else None
    if not walk.has_last(node.inputs[0]) or pads is None or (axes is not None and const_array(axes) is None):
        return False
    chosen = list(range(rank)) if axes is None else [int(a) % rank for a in const_array(axes)]
    amounts = {a: (pads[i], pads[i + len(chosen)]) for i, a in enumerate(chosen)}
    turned = [amounts.get(a, (0, 0)) for a in first_to_last(rank)]
    flat = np.array([a for a, _ in turned] + [b for _, b in turned], np.int64)
    value = node.inputs[2] if len(node.inputs) > 2 else None
    walk.again(node, [walk.in_last(node.inputs[0]), walk.constant("pads", flat), value])
    return True


def _slice(walk: Layout, node: ir.Node) -> bool:
    rank = rank_of(node.inputs[0])
    if not walk.has_last(node.inputs[0]):
        return False
    starts = node.inputs[1]
    axes = node.inputs[3] if len(node.inputs) > 3 else None
    if axes is None:
        if starts.shape is None or not isinstance(starts.shape[0], int):
            return False
        chosen = list(range(starts.shape[0]))
    elif const_array(axes) is not None:
        chosen = [int(a) for a in const_array(axes)]
    else:
        return False
    new = walk.constant("axes", np.array([moved_axis(a, rank) for a in chosen], np.int64))
    rest = [v and walk.in_source(v) for v in node.inputs[1:3]]
    walk.again(node, [walk.in_last(node.inputs[0]), *rest, new, *node.inputs[4:]])
    return True


def _resize(walk: Layout, node: ir.Node) -> bool:
    rank = rank_of(node.inputs[0])
    if rank not in (3, 4, 5):
        return False
    axes = node.attributes.get("axes")
    chosen = list(axes.value) if axes is not None else list(range(rank))
    inputs = [walk.in_last(node.inputs[0]), *(v and walk.in_source(v) for v in node.inputs[1:])]
    walk.again(node, inputs, axes=[moved_axis(a, rank) for a in chosen])
    return True


_resize.on_images = True  # type: ignore[attr-defined]


def _transpose(walk: Layout, node: ir.Node) -> bool:
    """Often only a change of layout, which costs nothing."""
    (x,), (y,) = node.inputs, node.outputs
    rank = rank_of(x)
    if rank is None or rank < 3 or const_array(x) is not None:
        return False
    perm = list(node.attributes["perm"].value) if "perm" in node.attributes else list(reversed(range(rank)))
    done = False
    if perm == first_to_last(rank) and walk.has_last(x):
        walk.source[y] = walk.in_last(x)
        done = True
    if perm == last_to_first(rank) and x in walk.source and rank <= 5:
        walk.last[y] = walk.source[x]
        done = True
    if done:
        return True
    if x not in walk.source and walk.has_last(x):  # two transposes in one
        back = last_to_first(rank)
        walk.again(node, [walk.in_last(x)], last=False, perm=[back[p] for p in perm])
        return True
    return False


def _flat(walk: Layout, node: ir.Node) -> bool:
    """Flatten and Reshape of what has one axis beside the batch: the order of elements is the same."""
    x = node.inputs[0]
    if not walk.has_last(x) or x in walk.source or sum(d != 1 for d in x.shape.dims[1:]) > 1:
        return False
    if node.op_type == "Flatten" and node.attributes.get_int("axis", 1) != 1:
        return False
    if node.op_type == "Reshape":
        shape = const_array(node.inputs[1])
        if shape is None or (shape[1:] == 0).any():
            return False
    walk.again(node, [walk.in_last(x), *node.inputs[1:]], last=False)
    return True


def _squeeze(walk: Layout, node: ir.Node) -> bool:
    x = node.inputs[0]
    axes = const_array(node.inputs[1]) if len(node.inputs) > 1 and node.inputs[1] is not None else None
    if not walk.has_last(x) or axes is None:
        return False
    rank = rank_of(x)
    gone = {int(a) % rank for a in axes}
    left = [a for a in first_to_last(rank) if a not in gone]
    if left != sorted(left):
        return False
    new = walk.constant("axes", np.array(sorted(moved_axis(a, rank) for a in gone), np.int64))
    walk.again(node, [walk.in_last(x), new], last=False)
    return True


_IMAGES = """
AveragePool BatchNormalization Conv ConvInteger ConvTranspose DepthToSpace GlobalAveragePool GlobalLpPool
GlobalMaxPool GroupNormalization InstanceNormalization LRN LpPool MaxPool QLinearConv SpaceToDepth
"""
_EACH = """
Abs Acos Acosh Asin Asinh Atan Atanh BitwiseNot Cast Ceil Celu Clip Cos Cosh Dropout Elu Erf Exp Floor
Gelu HardSigmoid HardSwish Identity IsInf IsNaN LeakyRelu Log Mish Neg Not Reciprocal Relu Round Selu
Shrink Sigmoid Sign Sin Sinh Softplus Softsign Sqrt Swish Tan Tanh ThresholdedRelu
"""
_BROADCAST = """
Add And BitwiseAnd BitwiseOr BitwiseXor Div Equal Greater GreaterOrEqual Less LessOrEqual Max Mean Min
Mod Mul Or PRelu Pow Sub Sum Where Xor
"""
_REDUCE = """
ReduceL1 ReduceL2 ReduceLogSum ReduceLogSumExp ReduceMax ReduceMean ReduceMin ReduceProd ReduceSum
ReduceSumSquare
"""

RULES: dict[str, Rule] = {
    **dict.fromkeys(_IMAGES.split(), _images),
    **dict.fromkeys(_EACH.split(), _each),
    **dict.fromkeys(_BROADCAST.split(), _broadcast),
    **dict.fromkeys(_REDUCE.split(), _reduce),
    **dict.fromkeys(["Softmax", "LogSoftmax", "Hardmax", "LpNormalization"], _attribute_axis(-1)),
    **dict.fromkeys(["ArgMax", "ArgMin", "Split"], _attribute_axis(0)),
    "Concat": _attribute_axis(1),
    "DequantizeLinear": _quantized,
    "Flatten": _flat,
    "Pad": _pad,
    "QuantizeLinear": _quantized,
    "Reshape": _flat,
    "Resize": _resize,
    "Slice": _slice,
    "Squeeze": _squeeze,
    "Transpose": _transpose,
    "attar::FakeQuantize": _each,
}
