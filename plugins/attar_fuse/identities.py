"""Operators that change nothing are removed; runs of transposes, reshapes and casts become one."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import onnx_ir as ir

from attar.graph import const_array
from attar.rewrite.edit import Edit, at, dims, int_of, ints_of, is_float, same_shape, string_of


def _needless(node: ir.Node, edit: Edit) -> bool:
    """Whether input 0 is the result. The tests are by operator; none guesses about unknown dimensions."""
    test = _TESTS[node.op_type]
    if any(o.uses() or o.is_graph_output() for o in node.outputs[1:]):
        return False
    return test(node, edit)


def remove_needless(node: ir.Node, edit: Edit) -> bool:
    source = at(node, 0)
    if source is None or not _needless(node, edit):
        return False
    if node.outputs[0].is_graph_output() and source.producer() is None:
        return edit.refuse(node, "it stands between an input or constant and a graph output")
    # A merge_into gives the source's maker the output's name, so its other users would see another name: only
    # alone.
    if node.outputs[0].is_graph_output() and not edit.alone(source):
        return edit.refuse(node, "it separates a graph output from a value that is used elsewhere")
    if not edit.bypass(node, source):
        return edit.refuse(node, "it carries a value of an outer graph to an output")
    return edit.did(f"needless {node.op_type} removed")


def _dropout(node: ir.Node, edit: Edit) -> bool:
    if at(node, 2) is None:
        return True
    training = const_array(at(node, 2))
    return training is not None and not training.any()


def _cast(node: ir.Node, edit: Edit) -> bool:
    kind = None if node.inputs[0] is None else node.inputs[0].dtype
    return kind is not None and int_of(node, "to", 0) == int(kind)


def _cast_like(node: ir.Node, edit: Edit) -> bool:
    first, second = node.inputs
    return (
        first is not None and second is not None and first.dtype is not None and first.dtype == second.dtype
    )


def _transpose(node: ir.Node, edit: Edit) -> bool:
    perm = ints_of(node, "perm")
    if perm is None:
        shape = dims(node.inputs[0])
        return shape is not None and len(shape) < 2
    return perm == tuple(range(len(perm)))


def _same_shape(node: ir.Node, edit: Edit) -> bool:
    """Names of dimensions that a graph output declares are claims: only its numbers count."""
    out = node.outputs[0]
    if out.is_graph_output() and any(not isinstance(d, int) for d in dims(out) or ()):
        return False
    return same_shape(node.inputs[0], out)


def _reshape(node: ir.Node, edit: Edit) -> bool:
    """Same shape; or a target that copies every dimension but one."""
    if _same_shape(node, edit):
        return True
    target, shape = edit.ints(at(node, 1)), dims(node.inputs[0])
    if target is None or shape is None or len(target) != len(shape) or int_of(node, "allowzero", 0):
        return False
    kept = [t == 0 or (isinstance(d, int) and t == d and d > 0) for t, d in zip(target, shape, strict=True)]
    return kept.count(False) == 0 or (kept.count(False) == 1 and target[kept.index(False)] == -1)


def _one_input(node: ir.Node, edit: Edit) -> bool:
    return len(node.inputs) == 1


def _slice(node: ir.Node, edit: Edit) -> bool:
    shape = dims(node.inputs[0])
    starts, ends = edit.ints(at(node, 1)), edit.ints(at(node, 2))
    if shape is None or starts is None or ends is None:
        return False
    axes = edit.ints(at(node, 3)) if at(node, 3) is not None else tuple(range(len(starts)))
    steps = edit.ints(at(node, 4)) if at(node, 4) is not None else (1,) * len(starts)
    if axes is None or steps is None:
        return False
    for axis, start, end, step in zip(axes, starts, ends, steps, strict=True):
        length = shape[axis]
        whole = end >= (length if isinstance(length, int) else np.iinfo(np.int32).max)
        from_start = start == 0 or (isinstance(length, int) and start <= -length)
        if not (whole and from_start and step == 1):
            return False
    return True


def _pad(node: ir.Node, edit: Edit) -> bool:
    pads = edit.ints(at(node, 1))
    return pads is not None and not any(pads)


def _tile(node: ir.Node, edit: Edit) -> bool:
    repeats = edit.ints(at(node, 1))
    return repeats is not None and all(r == 1 for r in repeats)


def _resize(node: ir.Node, edit: Edit) -> bool:
    if string_of(node, "coordinate_transformation_mode", "") == "tf_crop_and_resize":
        return False
    scales = const_array(at(node, 2))
    if scales is not None and scales.size:
        return bool((scales == 1).all())
    return at(node, 3) is not None and _same_shape(node, edit)


def _arithmetic(node: ir.Node, edit: Edit) -> bool:
    """x + 0, x - 0, x * 1, x / 1, x ** 1, where x keeps its shape."""
    neutral = 0 if node.op_type in ("Add", "Sub") else 1
    constant, data = const_array(at(node, 1)), node.inputs[0]
    shape = dims(data)
    if constant is None or data is None or shape is None or constant.ndim > len(shape):
        return False
    own = shape[len(shape) - constant.ndim :]
    if any(c not in (1, d) for c, d in zip(constant.shape, own, strict=True)):
        return False
    return node.outputs[0].dtype == data.dtype and bool((constant == neutral).all())


def _always(node: ir.Node, edit: Edit) -> bool:
    return True


_TESTS: dict[str, Callable[[ir.Node, Edit], bool]] = {
    "Identity": _always,
    "Dropout": _dropout,
    "Cast": _cast,
    "CastLike": _cast_like,
    "Transpose": _transpose,
    "Reshape": _reshape,
    "Flatten": _same_shape,
    "Squeeze": _same_shape,
    "Unsqueeze": _same_shape,
    "Expand": _same_shape,
    "Concat": _one_input,
    "Sum": _one_input,
    "Max": _one_input,
    "Min": _one_input,
    "Mean": _one_input,
    "Split": _same_shape,
    "Slice": _slice,
    "Pad": _pad,
    "Tile": _tile,
    "Resize": _resize,
    "Add": _arithmetic,
    "Sub": _arithmetic,
    "Mul": _arithmetic,
    "Div": _arithmetic,
    "Pow": _arithmetic,
}


def swap_neutral(node: ir.Node, edit: Edit) -> bool:
    """0 + x, 1 * x: the constant goes to the right, where the other rules look for it."""
    if const_array(at(node, 0)) is None or const_array(at(node, 1)) is not None:
        return False
    first, second = node.inputs
    if node.op_type not in ("Add", "Mul") or not is_float(second):
        return False
    node.replace_input_with(0, second)
    node.replace_input_with(1, first)
    return True


def transposes(node: ir.Node, edit: Edit) -> bool:
    """Transpose(Transpose(x, p), q) = Transpose(x, [p[k] for k in q])."""
    first = edit.producer(at(node, 0), "Transpose", beside=node)
    if first is None:
        return False
    shape = dims(first.inputs[0])
    rank = None if shape is None else len(shape)
    p, q = (ints_of(n, "perm") or (None if rank is None else tuple(range(rank))[::-1]) for n in (first, node))
    if p is None or q is None:
        return False
    node.attributes["perm"] = ir.AttrInt64s("perm", [p[k] for k in q])
    node.replace_input_with(0, first.inputs[0])
    _drop_if_dead(first)
    return edit.did("Transpose joined with the Transpose before")


def reshapes(node: ir.Node, edit: Edit) -> bool:
    """Of two reshaping operators in a row the second decides, if its result does not refer to the shape
    between.
    """
    first = edit.producer(at(node, 0), "Reshape", "Flatten", "Squeeze", "Unsqueeze", beside=node)
    source, out = None if first is None else first.inputs[0], dims(node.outputs[0])
    if first is None or source is None or out is None:
        return False
    if not edit.alone(first.outputs[0]):
        return False  # the first one stays anyway, and this one is as cheap behind it
    target = edit.ints(at(node, 1)) if node.op_type == "Reshape" else None
    if target is not None and 0 not in target:
        node.replace_input_with(0, source)  # counts elements only, whatever was between
    elif node.outputs[0].is_graph_output() or 0 in out:
        return False  # the dimensions that it declares are claims
    elif same_shape(source, node.outputs[0]):
        edit.bypass(node, source)
    elif not _rewrite(node, source, edit):
        return False
    _drop_if_dead(first)
    return edit.did("reshaping joined with the reshaping before")


def _rewrite(node: ir.Node, source: ir.Value, edit: Edit) -> bool:
    """Reshape `source` straight to the inferred result of `node`."""
    before, out, wanted = dims(source), dims(node.outputs[0]) or (), []
    for axis, dim in enumerate(out):
        copied = before is not None and axis < len(before) and dim is not None and before[axis] == dim
        wanted.append(dim if isinstance(dim, int) else 0 if copied else -1)
    if wanted.count(-1) > 1:
        return False
    if (
        node.op_type == "Flatten"
        and int_of(node, "axis", 1) == 1
        and before
        and out[0] == before[0] is not None
    ):
        node.replace_input_with(0, source)  # Flatten stays readable: [N, ...] -> [N, -1]
    else:
        shape = edit.constant(f"{node.outputs[0].name}_shape", np.array(wanted, np.int64))
        edit.replace(node, "Reshape", [source, shape])
    return True


def _drop_if_dead(node: ir.Node) -> None:
    if node.graph is not None and not any(o.uses() or o.is_graph_output() for o in node.outputs):
        node.graph.remove(node, safe=True)


RULES = {op: [remove_needless] for op in _TESTS}
RULES["Transpose"] = [remove_needless, transposes]
for _op in ("Reshape", "Flatten", "Squeeze", "Unsqueeze"):
    RULES[_op] = [remove_needless, reshapes]
for _op in ("Add", "Mul"):
    RULES[_op] = [swap_neutral, remove_needless]
