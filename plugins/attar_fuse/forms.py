"""Operators, and groups of few, that a runtime may compute faster in another form."""

from __future__ import annotations

import math
from collections.abc import Iterator

import numpy as np
import onnx_ir as ir

from attar.graph import const_array
from attar.rewrite.edit import at, dims, float_of, int_of, ints_of, is_float, string_of
from attar_fuse.attention_forms import OPSET
from attar_fuse.sites import CONTRIB, Finder, Form, Site, Tape, Values, made_by, nodes_of, other_input


def _scalar(value: ir.Value | None) -> float | None:
    array = const_array(value)
    return float(array.reshape(-1)[0]) if array is not None and array.size == 1 else None


# -- normalisation by the root mean square -------------------------------------------------------------------


def rms_norms(model: ir.Model) -> Iterator[Site]:
    """x / sqrt(mean(x^2) + epsilon), with a constant gain: RMSNormalization (Zhang and Sennrich, 2019)."""
    for node in nodes_of(model, "Mul", "Div"):
        found = _normalised(node)
        if found is None:
            continue
        x, epsilon, axes = found
        shape = dims(x)
        inner = shape[-axes:] if shape is not None else (None,)
        if any(not isinstance(d, int) for d in inner):
            continue
        sizes = [d for d in inner if isinstance(d, int)]
        out, gain = _with_gain(node.outputs[0], sizes)

        yield Site("rms", (out,), (_rms_form(x, gain, sizes, epsilon),))


def _rms_form(x: ir.Value, gain: ir.Value | None, sizes: list[int], epsilon: float) -> Form:
    held = None if gain is None else const_array(gain)

    def make(tape: Tape, v: Values) -> list[ir.Value]:
        assert x.dtype is not None
        if gain is not None and held is not None and list(held.shape) == sizes:
            scale = v[gain]
        else:  # none, a scalar, or with axes of 1 in front
            array = np.ones(sizes, x.dtype.numpy()) if held is None else held
            spread = array.reshape(-1 if array.size == 1 else sizes)
            scale = tape.constant("gain", np.broadcast_to(spread, sizes))
        attributes = {"axis": -len(sizes), "epsilon": epsilon}
        return tape.node("RMSNormalization", [v[x], scale], attributes, like=x)

    return Form("RMSNormalization", (x,) if gain is None else (x, gain), make, OPSET)


def _normalised(node: ir.Node) -> tuple[ir.Value, float, int] | None:
    """(x, epsilon, number of last axes) of x / sqrt(mean(x^2) + epsilon), and of x times the reciprocal."""
    pairs = [(at(node, 0), at(node, 1))] if node.op_type == "Div" else [
        (at(node, 0), at(node, 1)), (at(node, 1), at(node, 0)),
    ]  # fmt: skip
    for x, factor in pairs:
        inside = _rooted(factor, inverse=node.op_type == "Mul")
        plus = made_by(inside, "Add")
        if x is None or plus is None or not is_float(x):
            continue
        for mean, other in (plus.inputs, reversed(plus.inputs)):
            epsilon, axes = _scalar(other), _mean_square(mean, x)
            if epsilon is not None and axes is not None:
                return x, epsilon, axes
    return None


def _rooted(value: ir.Value | None, *, inverse: bool) -> ir.Value | None:
    """v of sqrt(v), or with `inverse` of 1 / sqrt(v)."""
    power = made_by(value, "Pow")
    if power is not None:
        return power.inputs[0] if _scalar(at(power, 1)) == (-0.5 if inverse else 0.5) else None
    if inverse:
        over = made_by(value, "Reciprocal", "Div")
        if over is None or (over.op_type == "Div" and _scalar(at(over, 0)) != 1):
            return None
        return _rooted(over.inputs[-1], inverse=False)
    root = made_by(value, "Sqrt")
    return None if root is None else root.inputs[0]


def _mean_square(value: ir.Value | None, x: ir.Value) -> int | None:
    """How many last axes the mean of x^2 runs over; None if it is something else."""
    mean = made_by(value, "ReduceMean")
    square = made_by(None if mean is None else mean.inputs[0], "Pow", "Mul")
    if mean is None or square is None or square.inputs[0] is not x or not int_of(mean, "keepdims", 1):
        return None
    if not (square.inputs[1] is x if square.op_type == "Mul" else _scalar(at(square, 1)) == 2):
        return None
    given, shape = const_array(at(mean, 1)), dims(x)
    axes = ints_of(mean, "axes") if given is None else tuple(given.reshape(-1).tolist())
    if shape is None or not axes:
        return None
    rank = len(shape)
    return len(axes) if {a % rank for a in axes} == set(range(rank - len(axes), rank)) else None


def _with_gain(value: ir.Value, sizes: list[int]) -> tuple[ir.Value, ir.Value | None]:
    """The product with a constant gain behind `value`, and the gain; `value` itself without one."""
    users = [u for u, _ in value.uses()]
    node = users[0] if len(users) == 1 and not value.is_graph_output() else None
    if node is None or node.op_type != "Mul" or node.domain:
        return value, None
    gain = other_input(node, value)
    array = const_array(gain)
    if gain is None or array is None or array.dtype.kind != "f":
        return value, None
    sizes_fit = array.size == math.prod(sizes) and list(array.shape[-len(sizes) :]) == sizes
    same_rank = array.ndim <= len(dims(value) or ())
    return (node.outputs[0], gain) if same_rank and (array.size == 1 or sizes_fit) else (value, None)


# -- a sum and the normalisation behind it -------------------------------------------------------------------


def added_norms(model: ir.Model) -> Iterator[Site]:
    """LayerNormalization of a sum. Runtimes join the two on loading, which is slower on some processors: a
    sum written as Sum, which is the same, they leave alone.
    """
    for node in nodes_of(model, "LayerNormalization"):
        plus = made_by(node.inputs[0], "Add")
        if plus is None or plus.graph is not node.graph or any(o.uses() for o in node.outputs[1:]):
            continue
        if any(const_array(v) is not None for v in plus.inputs):
            continue
        # Where nothing else reads the sum, it must not be asked for: that alone keeps a runtime from joining.
        inside = len(plus.outputs[0].uses()) == 1 and not plus.outputs[0].is_graph_output()
        outputs = (node.outputs[0],) if inside else (plus.outputs[0], node.outputs[0])
        yield Site("norm", outputs, (_apart(plus, node, inside=inside),))


def _apart(plus: ir.Node, norm: ir.Node, *, inside: bool) -> Form:
    terms = tuple(v for v in plus.inputs if v is not None)
    rest = tuple(v for v in norm.inputs[1:] if v is not None)

    def make(tape: Tape, v: Values) -> list[ir.Value]:
        like = terms[0]
        total = tape.one("Sum", [v[t] for t in terms], like)
        kept = {n: a.value for n, a in norm.attributes.items()}
        out = tape.node("LayerNormalization", [total, *(v[r] for r in rest)], kept, like=like)
        return out if inside else [total, *out]

    return Form("Sum and LayerNormalization apart", (*terms, *rest), make)


# -- activations ---------------------------------------------------------------------------------------------


def mishes(model: ir.Model) -> Iterator[Site]:
    """Mish, and x tanh(softplus(x)) (Misra, 2019), by one exponential instead of two and a logarithm.

    With e = exp(x) and n = e (e + 2): tanh(log(1 + e)) = n / (n + 2). From x = 20 on the quotient is 1 in
    any type up to float32, so that is where e is cut, which keeps it finite.
    """
    for node in nodes_of(model, "Mish", "Mul"):
        x = node.inputs[0] if node.op_type == "Mish" else _mish_of(node)
        if x is None or x.dtype != ir.DataType.FLOAT:
            continue

        def make(tape: Tape, v: Values, x: ir.Value = x) -> list[ir.Value]:
            two = tape.constant("two", np.float32(2))
            cut = tape.one("Min", [v[x], tape.constant("most", np.float32(20))], x)
            e = tape.one("Exp", [cut], x)
            n = tape.one("Mul", [e, tape.one("Add", [e, two], x)], x)
            part = tape.one("Div", [n, tape.one("Add", [n, two], x)], x)
            return [tape.one("Mul", [v[x], part], x)]

        yield Site("mish", (node.outputs[0],), (Form("Mish by one exponential", (x,), make),))


def _mish_of(node: ir.Node) -> ir.Value | None:
    for x, other in (node.inputs, reversed(node.inputs)):
        tanh = made_by(other, "Tanh")
        plus = made_by(None if tanh is None else tanh.inputs[0], "Softplus")
        if x is not None and plus is not None and plus.inputs[0] is x:
            return x
    return None


# -- layers --------------------------------------------------------------------------------------------------


def linears(model: ir.Model) -> Iterator[Site]:
    """MatMul of more than two axes by a constant, and a bias: Gemm between two Reshapes."""
    for node in nodes_of(model, "Add"):
        for value, bias in (node.inputs, reversed(node.inputs)):
            times = made_by(value, "MatMul")
            weight = const_array(None if times is None else times.inputs[1])
            added, x = const_array(bias), None if times is None else times.inputs[0]
            shape = dims(x)
            if times is None or weight is None or added is None or x is None or bias is None:
                continue
            if shape is None or len(shape) < 3 or weight.ndim != 2 or added.shape != weight.shape[1:]:
                continue
            held = times.inputs[1]
            assert held is not None
            yield Site("linear", (node.outputs[0],), (_gemm(x, held, bias, len(shape)),))
            break


def _gemm(x: ir.Value, weight: ir.Value, bias: ir.Value, rank: int) -> Form:
    array = const_array(weight)
    assert array is not None
    rows, columns = array.shape

    def make(tape: Tape, v: Values) -> list[ir.Value]:
        flat = tape.one("Reshape", [v[x], tape.ints("rows", -1, rows)], x)
        out = tape.one("Gemm", [flat, v[weight], v[bias]], x)
        lead = tape.node("Shape", [v[x]], {"start": 0, "end": rank - 1})
        sizes = tape.node("Concat", [*lead, tape.ints("columns", columns)], {"axis": 0})
        return [tape.one("Reshape", [out, *sizes], x)]

    return Form("Gemm", (x, weight, bias), make)


_FUSED: dict[str, tuple[tuple[str, float], ...]] = {
    "Relu": (),
    "Tanh": (),
    "Sigmoid": (),
    "LeakyRelu": (("alpha", 0.01),),
    "HardSigmoid": (("alpha", 0.2), ("beta", 0.5)),
}


def convolutions(model: ir.Model) -> Iterator[Site]:
    """Conv and the activation behind it: ONNX Runtime's FusedConv."""
    for node in nodes_of(model, *_FUSED, "Clip"):
        conv = made_by(node.inputs[0], "Conv")
        ends = [_scalar(at(node, i)) for i in (1, 2)] if node.op_type == "Clip" else []
        if conv is None or conv.graph is not node.graph or not is_float(node.outputs[0]) or None in ends:
            continue
        if string_of(conv, "auto_pad", "NOTSET") not in ("NOTSET", ""):
            continue
        numbers = [float_of(node, name, default) for name, default in _FUSED.get(node.op_type, ())]
        numbers += [e for e in ends if e is not None]
        yield Site("conv", (node.outputs[0],), (_fused_conv(conv, node.op_type, numbers),))


def _fused_conv(conv: ir.Node, activation: str, numbers: list[float]) -> Form:
    inputs = tuple(v for v in conv.inputs if v is not None)

    def make(tape: Tape, v: Values) -> list[ir.Value]:
        kept = {n: a.value for n, a in conv.attributes.items() if n != "auto_pad"}
        kept |= {"activation": activation, **({"activation_params": numbers} if numbers else {})}
        return tape.node("FusedConv", [v[i] for i in inputs], kept, like=inputs[0], domain=CONTRIB)

    return Form("FusedConv", inputs, make, contrib=True)


FINDERS = (
    Finder("rms", "x / sqrt(mean(x^2) + epsilon) as RMSNormalization", rms_norms),
    Finder("norm", "Add and LayerNormalization, joined by the runtime or apart", added_norms),
    Finder("mish", "Mish by one exponential", mishes),
    Finder("linear", "MatMul and bias of three axes as Gemm", linears),
    Finder("conv", "Conv and activation as FusedConv", convolutions),
)
