"""Activations that exporters write as several operators, recognised and written as one."""

from __future__ import annotations

import math

import onnx_ir as ir

from attar.graph import const_array
from attar.rewrite.edit import Edit, at, dims, float_of, is_float

INFINITY = float("inf")
CLOSE = 1e-3
"""Relative distance at which a written constant counts as the one meant: exporters write them in float16,
too.
"""


def bounds(node: ir.Node) -> tuple[float, float] | None:
    """The interval that Relu or Clip, or Min or Max with a scalar, cuts to; None for anything else."""
    if node.op_type == "Relu":
        return 0.0, INFINITY
    if node.op_type == "Clip":
        ends = []
        for index, default in ((1, -INFINITY), (2, INFINITY)):
            value = at(node, index)
            array = const_array(value)
            if value is not None and (array is None or array.size != 1):
                return None
            ends.append(default if array is None else float(array.reshape(-1)[0]))
        return (ends[0], ends[1]) if ends[0] <= ends[1] else None
    if node.op_type in ("Min", "Max") and len(node.inputs) == 2:
        shape, array = dims(node.inputs[0]), const_array(at(node, 1))
        if array is None or array.size != 1 or shape is None or array.ndim > len(shape):
            return None
        limit = float(array.reshape(-1)[0])
        return (-INFINITY, limit) if node.op_type == "Min" else (limit, INFINITY)
    return None


def clips(node: ir.Node, edit: Edit) -> bool:
    """Relu, Clip and Min/Max with a scalar: one Clip, or Relu where that says the same; two in a row become
    one.

    clip(clip(x, a, b), c, d) = clip(x, max(a, c), min(b, d)) if the intervals meet.
    """
    if not is_float(node.outputs[0]):
        return False
    if node.op_type in ("Min", "Max") and const_array(at(node, 0)) is not None and len(node.inputs) == 2:
        first, second = node.inputs
        node.replace_input_with(0, second)
        node.replace_input_with(1, first)
    mine, source = bounds(node), at(node, 0)
    if mine is None or source is None:
        return False
    before = edit.producer(source, "Relu", "Clip", "Min", "Max", beside=node)
    theirs = None if before is None else bounds(before)
    if before is not None and theirs is not None and edit.alone(source):
        low, high = max(mine[0], theirs[0]), min(mine[1], theirs[1])
        if low <= high:
            _write(node, edit, before.inputs[0], low, high)
            if before.graph is not None and not before.outputs[0].uses():
                before.graph.remove(before, safe=True)
            return edit.did(f"{node.op_type} merged with the {before.op_type} before")
    if node.op_type in ("Min", "Max") or (node.op_type == "Clip" and mine == (0.0, INFINITY)):
        old = node.op_type
        new = _write(node, edit, source, *mine)
        return edit.did(f"{old} written as {new.op_type}")
    return False


def _write(node: ir.Node, edit: Edit, source: ir.Value | None, low: float, high: float) -> ir.Node:
    if (low, high) == (0.0, INFINITY):
        return edit.replace(node, "Relu", [source])
    assert source is not None
    assert source.dtype is not None
    kind, name = source.dtype.numpy(), node.outputs[0].name
    ends = [
        None if math.isinf(limit) else edit.constant(f"{name}_{end}", kind.type(limit))
        for limit, end in ((low, "min"), (high, "max"))
    ]
    return edit.replace(node, "Clip", [source, *ends] if ends[1] is not None else [source, ends[0]])


# -- products ------------------------------------------------------------------------------------------------


def factors(value: ir.Value | None, edit: Edit, depth: int = 0) -> tuple[float, list[ir.Value]]:
    """`value` as a number times other values, by following Mul, and Div by a scalar constant, backwards."""
    if value is None:
        return 1.0, []
    number = edit.scalar(value)
    if number is not None:
        return number, []
    node = edit.producer(value, "Mul", "Div")
    if node is None or depth > 4:
        return 1.0, [value]
    if node.op_type == "Div":
        divisor = edit.scalar(at(node, 1))
        if not divisor:
            return 1.0, [value]
        scale, rest = factors(node.inputs[0], edit, depth + 1)
        return scale / divisor, rest
    (a, left), (b, right) = (factors(v, edit, depth + 1) for v in node.inputs)
    return a * b, left + right


def _plus(value: ir.Value, edit: Edit) -> tuple[ir.Value, float] | None:
    """`value` as x + constant scalar."""
    node = edit.producer(value, "Add")
    if node is None:
        return None
    for data, other in (node.inputs, reversed(node.inputs)):
        number = edit.scalar(other)
        if data is not None and number is not None:
            return data, number
    return None


def _near(a: float, b: float) -> bool:
    return math.isclose(a, b, rel_tol=CLOSE)


def _rank_kept(node: ir.Node, x: ir.Value) -> bool:
    """Scalars of shape [1] or [1, 1] may widen a result; the pattern is one operator only if nothing was
    widened.
    """
    before, after = dims(x), dims(node.outputs[0])
    return is_float(x) and before is not None and after is not None and len(before) == len(after)


def gelu(node: ir.Node, edit: Edit) -> bool:
    """0.5 * x * (1 + erf(x / sqrt 2)) -> Gelu; with tanh(sqrt(2/pi) * (x + 0.044715 x^3)) -> its tanh form.

    Hendrycks and Gimpel, Gaussian Error Linear Units, 2016. In any order of the factors; opset 20.
    """
    if edit.opset < 20:
        return False
    scale, parts = factors(node.outputs[0], edit)
    if not _near(scale, 0.5) or len(parts) != 2:
        return False
    for x, other in (parts, parts[::-1]):
        one = _plus(other, edit)
        if one is None or not _near(one[1], 1) or not _rank_kept(node, x):
            continue
        inner = edit.producer(one[0], "Erf", "Tanh")
        if inner is None:
            continue
        if inner.op_type == "Erf":
            factor, rest = factors(inner.inputs[0], edit)
            if rest == [x] and _near(factor, math.sqrt(0.5)):
                edit.replace(node, "Gelu", [x])
                return edit.did("Gelu recognised")
        elif _is_cubic(inner.inputs[0], x, edit):
            edit.replace(node, "Gelu", [x], {"approximate": "tanh"})
            return edit.did("Gelu (tanh form) recognised")
    return False


def _is_cubic(value: ir.Value | None, x: ir.Value, edit: Edit) -> bool:
    """sqrt(2/pi) * (x + 0.044715 x^3), or with x drawn out: sqrt(2/pi) * x * (1 + 0.044715 x^2)."""
    scale, parts = factors(value, edit)
    if not _near(scale, math.sqrt(2 / math.pi)):
        return False
    if len(parts) == 1:
        total = edit.producer(parts[0], "Add")
        if total is None:
            return False
        cubes = [v for v in total.inputs if v is not x]
        return len(cubes) == 1 and _power(cubes[0], x, 3, edit)
    if len(parts) == 2 and any(p is x for p in parts):
        other = parts[1] if parts[0] is x else parts[0]
        one = _plus(other, edit)
        return one is not None and _near(one[1], 1) and _power(one[0], x, 2, edit)
    return False


def _power(value: ir.Value | None, x: ir.Value, exponent: int, edit: Edit) -> bool:
    """0.044715 * x^exponent, as Pow or products."""
    scale, parts = factors(value, edit)
    count = 0
    for part in parts:
        power = edit.producer(part, "Pow")
        if part is x:
            count += 1
        elif power is not None and power.inputs[0] is x and (n := edit.scalar(at(power, 1))) is not None:
            count += int(n) if n == int(n) else 100
        else:
            return False
    return count == exponent and _near(scale, 0.044715)


def hard_sigmoid(node: ir.Node, edit: Edit) -> bool:
    """Clip(x + 3, 0, 6) / 6 -> HardSigmoid(alpha=1/6, beta=1/2) (Howard et al., MobileNetV3, 2019)."""
    scale, parts = factors(node.outputs[0], edit)
    if len(parts) != 1 or not _near(scale, 1 / 6):
        return False
    x = _relu6_of_plus3(parts[0], edit)
    if x is None or not _rank_kept(node, x):
        return False
    edit.replace(node, "HardSigmoid", [x], {"alpha": 1 / 6, "beta": 0.5})
    return edit.did("HardSigmoid recognised")


def _relu6_of_plus3(value: ir.Value, edit: Edit) -> ir.Value | None:
    clip = edit.producer(value, "Clip")
    if clip is None or bounds(clip) != (0.0, 6.0) or clip.inputs[0] is None:
        return None
    plus = _plus(clip.inputs[0], edit)
    return plus[0] if plus is not None and _near(plus[1], 3) else None


def hard_swish(node: ir.Node, edit: Edit) -> bool:
    """x * HardSigmoid(x, 1/6, 1/2), or x * Clip(x + 3, 0, 6) / 6 -> HardSwish; opset 14."""
    if edit.opset < 14:
        return False
    scale, parts = factors(node.outputs[0], edit)
    if len(parts) != 2:
        return False
    for x, other in (parts, parts[::-1]):
        if not _rank_kept(node, x):
            continue
        sigmoid = edit.producer(other, "HardSigmoid")
        one = sigmoid is not None and sigmoid.inputs[0] is x and scale == 1
        if one and sigmoid is not None:
            one = _near(float_of(sigmoid, "alpha", 0.2), 1 / 6) and _near(float_of(sigmoid, "beta", 0.5), 0.5)
        if one or (_near(scale, 1 / 6) and _relu6_of_plus3(other, edit) is x):
            edit.replace(node, "HardSwish", [x])
            return edit.did("HardSwish recognised")
    return False


CLIPS = {op: [clips] for op in ("Relu", "Clip", "Min", "Max")}
RULES = {**CLIPS, "Mul": [gelu, hard_swish, hard_sigmoid], "Div": [gelu, hard_swish, hard_sigmoid]}
