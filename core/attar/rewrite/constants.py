"""What can be computed before the model runs is computed once: nodes with constant inputs, and shapes that
are known.

Never folded: quantization (integer weights stay integers), random operators, control flow, and whatever would
make the model larger: a result must be small, or no larger than the constants that it replaces.
"""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import onnx
import onnx_ir as ir

from attar.errors import InputError
from attar.graph import all_nodes, const_array, is_learned
from attar.rewrite.edit import Array, Edit, at, dims, int_of
from attar.rewrite.shape_values import new_sizes, shape_numbers

SMALL = 1 << 16
"""Bytes of a result that is folded whatever it replaces."""
BATCH = 1 << 28
"""Bytes of results computed in one run; the rest waits for the next run, which keeps memory low."""
FEW = 1 << 10
"""Elements up to which a quantized constant may become a float: an epsilon or a mean, not a weight."""

NEVER = frozenset(
    {
        *("QuantizeLinear", "DequantizeLinear", "DynamicQuantizeLinear", "ConvInteger", "MatMulInteger"),
        *("QLinearConv", "QLinearMatMul", "RandomNormal", "RandomNormalLike", "RandomUniform", "Constant"),
        *("RandomUniformLike", "Bernoulli", "Multinomial", "Dropout", "If", "Loop", "Scan", "SequenceMap"),
        *("Optional", "OptionalGetElement", "OptionalHasElement"),
    }
)
NARROW = frozenset(
    {
        ir.DataType.INT8,
        ir.DataType.UINT8,
        ir.DataType.INT4,
        ir.DataType.UINT4,
        ir.DataType.INT16,
        ir.DataType.UINT16,
    }
)
TYPES = frozenset(
    {
        ir.DataType.FLOAT, ir.DataType.DOUBLE, ir.DataType.FLOAT16, ir.DataType.BOOL, ir.DataType.INT8,
        ir.DataType.UINT8, ir.DataType.INT16, ir.DataType.UINT16, ir.DataType.INT32, ir.DataType.UINT32,
        ir.DataType.INT64, ir.DataType.UINT64,
    }
)  # fmt: skip


def fold_constants(edit: Edit) -> bool:
    """Evaluate every node whose inputs are constants, all in one run of the runtime. True if anything
    changed.
    """
    chosen: dict[int, ir.Node] = {}
    computed: set[int] = set()
    size = 0
    for node in ir.traversal.RecursiveGraphIterator(edit.model.graph):
        if _foldable(node, computed, edit):
            chosen[id(node)] = node
            computed.update(id(o) for o in node.outputs)
            size += sum(_bytes(o) or 0 for o in node.outputs)
            if size > BATCH:
                break
    if not chosen:
        return False
    wanted = [
        o
        for node in chosen.values()
        for o in node.outputs
        if any(id(use.node) not in chosen for use in o.uses())
    ]
    results = _evaluate(list(chosen.values()), wanted, edit)
    for value, array in results:
        kind = value.producer().op_type  # type: ignore[union-attr]
        new = edit.constant(value.name or "constant", array)
        value.replace_all_uses_with(new)
        edit.did(f"{kind} of constants computed")
    for node in reversed(list(chosen.values())):
        if node.graph is not None and not any(o.uses() or o.is_graph_output() for o in node.outputs):
            node.graph.remove(node, safe=True)
    return bool(results)


def _foldable(node: ir.Node, computed: set[int], edit: Edit) -> bool:
    if node.domain != "" or node.op_type in NEVER or any(o.is_graph_output() for o in node.outputs):
        return False
    if any(
        a.is_ref() or a.type in (ir.AttributeType.GRAPH, ir.AttributeType.GRAPHS)
        for a in node.attributes.values()
    ):
        return False
    freed, narrow = 0, False
    for value in node.inputs:
        if value is None:
            continue
        if id(value) not in computed and not _is_constant(value):
            return False
        if value.dtype not in TYPES:
            return False
        narrow |= value.dtype in NARROW
        if edit.alone(value):
            freed += _bytes(value) or 0
    for value in node.outputs:
        size = _bytes(value)
        if value.dtype not in TYPES or size is None:
            return False
        if size > max(SMALL, freed):
            return edit.refuse(node, f"its constant result of {size} bytes would make the model larger")
        widened = narrow and value.dtype in (ir.DataType.FLOAT, ir.DataType.FLOAT16, ir.DataType.DOUBLE)
        if widened and size > FEW:
            return edit.refuse(node, "its integers would become floats")
    return True


def _is_constant(value: ir.Value) -> bool:
    if value.is_graph_input() or is_learned(value):
        return False
    node = value.producer()
    return value.const_value is not None if node is None else node.op_type == "Constant" and node.domain == ""


def _bytes(value: ir.Value) -> int | None:
    """Size of a value; None unless type and all dimensions are known."""
    shape = dims(value)
    if value.dtype is None or shape is None or any(not isinstance(d, int) for d in shape):
        return None
    return math.prod(d for d in shape if isinstance(d, int)) * math.ceil(value.dtype.itemsize)


def _evaluate(nodes: list[ir.Node], wanted: list[ir.Value], edit: Edit) -> list[tuple[ir.Value, Array]]:
    """Values of `wanted`; in one run, or, if the runtime cannot load them together, one by one."""
    try:
        arrays = _run(nodes, wanted, edit)
        return list(zip(wanted, arrays, strict=True))
    except InputError as error:
        if len(nodes) == 1:
            edit.refuse(nodes[0], f"the runtime cannot compute it: {error.message}")
            return []
    done: list[tuple[ir.Value, Array]] = []
    for node in nodes:  # only those that depend on nothing uncomputed; the next sweep takes the others
        if all(v is None or _is_constant(v) for v in node.inputs):
            done += _evaluate([node], [o for o in node.outputs if o.uses()], edit)
    return done


def _run(nodes: list[ir.Node], wanted: list[ir.Value], edit: Edit) -> list[Array]:
    inside = {id(o) for node in nodes for o in node.outputs}
    names: dict[int, str] = {}  # own names: values of different subgraphs may share one
    feeds: dict[str, Array] = {}
    graph = onnx.GraphProto(name="constants")

    def name_of(value: ir.Value | None) -> str:
        if value is None:
            return ""
        if id(value) not in names:
            names[id(value)] = f"v{len(names)}"
            if id(value) not in inside:
                array = const_array(value)
                assert array is not None
                if array.nbytes <= FEW:  # kernels want some of these (axes, pads) constant
                    graph.initializer.append(
                        onnx.numpy_helper.from_array(  # ascontiguousarray makes vectors of scalars
                            np.ascontiguousarray(array).reshape(array.shape), names[id(value)]
                        )
                    )
                else:
                    feeds[names[id(value)]] = array
                    graph.input.append(_info(names[id(value)], value))
        return names[id(value)]

    for node in nodes:
        proto: Any = onnx.NodeProto(op_type=node.op_type)
        proto.input.extend(name_of(v) for v in node.inputs)
        proto.output.extend(name_of(o) if o.name else "" for o in node.outputs)
        proto.attribute.extend(ir.to_proto(a) for a in node.attributes.values())
        graph.node.append(proto)
    graph.output.extend(_info(name_of(o), o) for o in wanted)
    model = onnx.helper.make_model(
        graph, opset_imports=[onnx.helper.make_opsetid("", edit.opset)], ir_version=edit.model.ir_version
    )
    session = edit.ctx.runtime.open(model.SerializeToString(), optimize=False)
    return session.run(feeds)


def _info(name: str, value: ir.Value) -> Any:
    assert value.dtype is not None
    return onnx.helper.make_tensor_value_info(name, int(value.dtype), dims(value))


# -- shapes --------------------------------------------------------------------------------------------------


def known_shape(node: ir.Node, edit: Edit) -> bool:
    """A shape computation whose numbers are all known becomes a constant, even if the shape has unknown ones
    beside.
    """
    out = node.outputs[0]
    if out.is_graph_output() or not out.uses() or out.dtype != ir.DataType.INT64:
        return False
    numbers = shape_numbers(out)
    if numbers is None or any(not isinstance(n, int) for n in numbers):
        return False
    array = np.array(numbers, np.int64)
    rank = dims(out)
    if rank is None or len(rank) > 1:
        return False
    array = array.reshape(-1) if rank else array.reshape(())
    out.replace_all_uses_with(edit.constant(out.name or "shape", array))
    assert node.graph is not None
    node.graph.remove(node, safe=True)
    return edit.did(f"{node.op_type} of a known shape computed")


def known_target(node: ir.Node, edit: Edit) -> bool:
    """Reshape and Expand whose computed target shape can be told beforehand: it becomes a constant.

    Reshape may leave one dimension open (-1), and copy (0) those that stay in place.
    """
    if at(node, 1) is None or const_array(at(node, 1)) is not None:
        return False
    wanted = _from_numbers(node) or _from_inference(node)
    if wanted is None:
        return False
    node.replace_input_with(1, edit.constant(f"{node.outputs[0].name}_shape", np.array(wanted, np.int64)))
    return edit.did(f"computed target shape of {node.op_type} made constant")


def _from_numbers(node: ir.Node) -> list[int] | None:
    """The target as its own computation tells it; -1 stands for the one unknown entry of a Reshape."""
    numbers = shape_numbers(at(node, 1))
    if numbers is None:
        return None
    free = 0 if node.op_type == "Expand" else 1
    if numbers.count(None) + numbers.count(-1) > free or (0 in numbers and int_of(node, "allowzero", 0)):
        return None
    return [-1 if n is None else n for n in numbers]


def _from_inference(node: ir.Node) -> list[int] | None:
    """The target from the inferred result. What a graph output declares is a claim, not an inference."""
    shape, out = dims(node.inputs[0]), dims(node.outputs[0])
    if out is None or 0 in out or node.outputs[0].is_graph_output():
        return None
    wanted: list[int] = []
    for axis, dim in enumerate(out):
        stays = dim is not None and shape is not None and axis < len(shape) and shape[axis] == dim
        wanted.append(dim if isinstance(dim, int) else 0 if stays else -1)
    if node.op_type == "Expand":
        return wanted if min(wanted, default=1) >= 1 else None
    return None if wanted.count(-1) > 1 or (0 in wanted and int_of(node, "allowzero", 0)) else wanted


# ONNX Runtime loses the sizes of a Resize with `axes` when it moves a Transpose across it: one of the model,
# or one of those that it puts around layers on images once they are quantized.
_TRANSPOSED = frozenset({"Transpose", "Conv", "ConvTranspose", "MaxPool", "AveragePool", "GlobalAveragePool"})


def known_size(node: ir.Node, edit: Edit) -> bool:
    """Resize whose computed sizes leave some axes as they are: only the others are named, with constants."""
    found = new_sizes(node)
    if found is None or edit.opset < 18 or any(n.op_type in _TRANSPOSED for n in all_nodes(edit.model)):
        return False
    axes, sizes = found
    node.replace_input_with(3, edit.constant(f"{node.outputs[0].name}_size", np.array(sizes, np.int64)))
    node.attributes["axes"] = ir.AttrInt64s("axes", axes)
    return edit.did("computed size of Resize made constant")


def cast_like(node: ir.Node, edit: Edit) -> bool:
    """CastLike to a known type is a Cast, which needs no second operand."""
    like = at(node, 1)
    if like is None or like.dtype is None:
        return False
    kept = {name: attribute.value for name, attribute in node.attributes.items()}  # saturate, round_mode
    edit.replace(node, "Cast", [node.inputs[0]], {**kept, "to": int(like.dtype)})
    return True


RULES = {
    "CastLike": [cast_like],
    **{op: [known_shape] for op in ("Shape", "Gather", "Slice", "Concat", "Squeeze", "Unsqueeze", "Cast")},
    **{op: [known_target] for op in ("Reshape", "Expand")},
    "Resize": [known_size],
}
