"""ONNX's node tests written as MXNet, and operators at random against ONNX Runtime: never a wrong answer."""

from __future__ import annotations

import contextlib
import importlib.util
from typing import Any

import numpy as np
import onnx_ir as ir
import pytest
from mxnet_models import normal, one, same_as_onnx
from onnx_cases import every, one_each

from attar.errors import ConversionError
from attar.registry import default_registry
from attar.runtime import OnnxRuntime
from attar.testing.node_suite import run_suite
from attar_mxnet.adapter import MxnetAdapter

pytestmark = pytest.mark.skipif(importlib.util.find_spec("mxnet") is None, reason="runs in MXNet")


def test_each_operator_is_right_or_refused() -> None:
    tally = run_suite(MxnetAdapter(), one_each(), registry=default_registry())
    assert [f"{o.case.name}: {o.detail}" for o in tally.of("wrong", "broken")] == []
    assert tally.count("passed") >= 120


@pytest.mark.slow
def test_no_node_test_is_answered_wrongly() -> None:
    tally = run_suite(MxnetAdapter(), every(), registry=default_registry())
    assert [f"{o.case.name}: {o.detail}" for o in tally.of("wrong", "broken")] == []
    assert tally.count("passed", core=True) >= 600
    assert tally.count("passed") >= 700
    said = ("exactly: ", "no counterpart", "cannot take", "not valid here", "cannot be written from")
    assert [o.detail for o in tally.of("refused") if not any(s in o.detail for s in said)] == []


@pytest.mark.slow
def test_what_was_written_is_read_back() -> None:
    tally = run_suite(MxnetAdapter(), one_each(), registry=default_registry(), back=True)
    assert [f"{o.case.name}: {o.detail}" for o in tally.of("wrong", "broken")] == []
    assert tally.count("passed") >= 110


# -- operators at random -------------------------------------------------------------------------------

FLOATS = ("float32", "float64", "float16")
NUMBERS = (*FLOATS, "int32", "int64", "int8", "uint8")


class Draw:
    """Random choices of one test."""

    def __init__(self, seed: int) -> None:
        self.rng = np.random.default_rng(seed)

    def of(self, *items: Any) -> Any:
        return items[int(self.rng.integers(len(items)))]

    def whole(self, low: int, high: int) -> int:
        return int(self.rng.integers(low, high))

    def shape(self, least: int = 1, most: int = 4, largest: int = 5) -> tuple[int, ...]:
        return tuple(self.whole(1, largest + 1) for _ in range(self.whole(least, most + 1)))

    def like(self, shape: tuple[int, ...]) -> tuple[int, ...]:
        """A shape that broadcasts to `shape`."""
        return tuple(1 if self.rng.random() < 0.3 else n for n in shape[self.whole(0, len(shape) + 1) :])

    def array(self, shape: tuple[int, ...], dtype: str = "float32") -> Any:
        if dtype == "bool":
            return self.rng.random(shape) > 0.5
        if np.dtype(dtype).kind == "f":
            return (self.rng.standard_normal(shape) * self.of(0.5, 3.0)).astype(dtype)
        top = {"int64": self.of(10, 2**40), "int32": self.of(10, 2**28), "int8": 100, "uint8": 200}[dtype]
        return self.rng.integers(0 if dtype == "uint8" else -top, top, size=shape).astype(dtype)


def binary(d: Draw, op: str) -> tuple[Any, ...]:
    shape, dtype = d.shape(), d.of(*NUMBERS)
    other = np.asarray(d.array(d.like(shape), dtype))
    other = np.where(other == 0, 1, other).astype(dtype)
    return [d.array(shape, dtype), other], {}, d.of(1, 2)


def reduction(d: Draw, op: str) -> tuple[Any, ...]:
    shape = d.shape()
    axes = d.rng.permutation(len(shape))[: d.whole(0, len(shape) + 1)].astype(np.int64)
    given = None if d.of(True, False) else axes
    return (
        [d.array(shape, d.of(*FLOATS)), given],
        {"keepdims": d.of(0, 1), "noop_with_empty_axes": d.of(0, 1)},
        1,
    )


def slicing(d: Draw, op: str) -> tuple[Any, ...]:
    shape = d.shape(1, 4, 6)
    count = d.whole(1, len(shape) + 1)
    starts, ends = (d.rng.integers(-8, 9, count) for _ in range(2))
    steps = np.array([d.of(1, 1, 2, -1, -2) for _ in range(count)])
    axes = d.rng.permutation(len(shape))[:count].astype(np.int64)
    return [d.array(shape, d.of(*NUMBERS, "bool")), starts, ends, axes, steps], {}, 1


def convolution(d: Draw, op: str) -> tuple[Any, ...]:
    rank, group = d.of(1, 2, 3), d.of(1, 1, 2)
    channels, filters = group * d.of(1, 2), group * d.of(1, 3)
    size, kernel, stride, dilation = (
        [d.whole(low, high) for _ in range(rank)] for low, high in ((6, 10), (1, 4), (1, 3), (1, 3))
    )
    attrs: dict[str, Any] = {"group": group, "strides": stride, "dilations": dilation, "kernel_shape": kernel}
    if d.rng.random() < 0.3:
        attrs["auto_pad"] = d.of("SAME_UPPER", "SAME_LOWER", "VALID")
    else:
        attrs["pads"] = [d.whole(0, 3) for _ in range(2 * rank)]
    if op == "ConvTranspose":
        attrs["output_padding"] = [d.whole(0, s) for s in stride]
    first = (filters, channels // group) if op == "Conv" else (channels, filters // group)
    bias = d.of(None, d.array((filters,)))
    return [d.array((2, channels, *size)), d.array((*first, *kernel)), bias], attrs, 1


def pooling(d: Draw, op: str) -> tuple[Any, ...]:
    rank = d.of(1, 2, 3)
    kernel = [d.whole(1, 4) for _ in range(rank)]
    attrs: dict[str, Any] = {"kernel_shape": kernel, "strides": [d.whole(1, 4) for _ in range(rank)]}
    attrs |= {"ceil_mode": d.of(0, 1), "pads": [d.whole(0, k) for k in kernel * 2]}
    if d.rng.random() < 0.4:
        attrs["dilations"] = [d.whole(1, 3) for _ in range(rank)]
    if op == "AveragePool":
        attrs["count_include_pad"] = d.of(0, 1)
    return [d.array((2, 3, *(d.whole(5, 10) for _ in range(rank))))], attrs, 1


def product(d: Draw, op: str) -> tuple[Any, ...]:
    inner, batch = d.of(1, 2, 5), d.shape(0, 3, 3)
    left = d.of((inner,), (*batch, d.of(1, 3), inner))
    right = d.of((inner,), (inner, 4), (*d.like(batch), inner, 4))
    return [d.array(left), d.array(right)], {}, d.of(1, 2)


def resizing(d: Draw, op: str) -> tuple[Any, ...]:
    size = [d.whole(2, 8), d.whole(2, 8)]
    mode = d.of("nearest", "linear", "cubic")
    attrs = {
        "mode": mode,
        "coordinate_transformation_mode": d.of(
            "half_pixel", "align_corners", "asymmetric", "pytorch_half_pixel"
        ),
        "nearest_mode": d.of("round_prefer_floor", "round_prefer_ceil", "floor", "ceil"),
    }
    target = np.array([1, 2, d.whole(2, 12), d.whole(2, 12)])
    return [d.array((1, 2, *size)), None, None, target], attrs, 1


def gathering(d: Draw, op: str) -> tuple[Any, ...]:
    shape = d.shape()
    axis = d.whole(-len(shape), len(shape))
    index = d.rng.integers(-shape[axis], shape[axis], size=d.of((), (2,), (2, 3)))
    return [d.array(shape, d.of(*NUMBERS, "bool")), np.asarray(index)], {"axis": axis}, d.of(1, 2)


def scattering(d: Draw, op: str) -> tuple[Any, ...]:
    shape = d.shape(1, 3)
    axis = d.whole(0, len(shape))
    updates = tuple(d.whole(1, n + 1) if a == axis else n for a, n in enumerate(shape))
    index = d.rng.integers(-shape[axis], shape[axis], size=updates)
    attrs = {"axis": axis, "reduction": d.of("add", "mul", "max", "min")}
    return [d.array(shape), index, d.array(updates)], attrs, 1


def layer(d: Draw, op: str) -> tuple[Any, ...]:
    gates = {"LSTM": 4, "GRU": 3, "RNN": 1}[op]
    direction = d.of("forward", "reverse", "bidirectional")
    count, steps, batch, hidden = 2 if direction == "bidirectional" else 1, 3, 2, 4
    inputs = [
        d.array((steps, batch, 3)),
        normal(1, count, gates * hidden, 3, scale=0.3),
        normal(2, count, gates * hidden, hidden, scale=0.3),
        d.of(None, normal(3, count, 2 * gates * hidden, scale=0.3)),
        d.of(None, np.array([steps, steps - 1], np.int32)),
        d.of(None, normal(4, count, batch, hidden)),
    ]
    attrs: dict[str, Any] = {"hidden_size": hidden, "direction": direction}
    if op == "LSTM":
        inputs += [d.of(None, normal(5, count, batch, hidden)), d.of(None, normal(6, count, 3 * hidden))]
    if op == "GRU":
        attrs["linear_before_reset"] = d.of(0, 1)
    return inputs, attrs, 1


KINDS: dict[Any, tuple[str, ...]] = {
    binary: ("Add", "Sub", "Mul", "Div", "Equal", "Greater", "LessOrEqual"),
    reduction: ("ReduceSum", "ReduceMean", "ReduceMax", "ReduceL2", "ReduceLogSumExp"),
    slicing: ("Slice",),
    convolution: ("Conv", "ConvTranspose"),
    pooling: ("MaxPool", "AveragePool", "LpPool"),
    product: ("MatMul",),
    resizing: ("Resize",),
    gathering: ("Gather",),
    scattering: ("ScatterElements",),
    layer: ("LSTM", "GRU", "RNN"),
}
FIXED = {layer, product, resizing, gathering, scattering, slicing}


def drawn(make: Any, op: str, seed: int) -> tuple[ir.Model, dict[str, Any], float] | None:
    """A model, its feeds and a tolerance; None for what the operator or ONNX Runtime does not allow."""
    inputs, attrs, feeds = make(Draw(seed), op)
    outputs = {"LSTM": 3, "GRU": 2, "RNN": 2}.get(op, 1)
    half = any(a is not None and a.dtype == np.float16 for a in inputs)
    with contextlib.suppress(Exception):
        model = one(op, inputs, feeds, outputs, dynamic=make not in FIXED, **attrs)
        fed = {f"i{k}": a for k, a in enumerate(inputs[:feeds])}
        OnnxRuntime().open(model, optimize=False).run(fed)
        return model, fed, 1e-3 if half else 1e-5
    return None


@pytest.mark.parametrize(("make", "op"), [(make, op) for make, ops in KINDS.items() for op in ops])
def test_at_random(make: Any, op: str) -> None:
    said = 0
    for seed in range(12):
        found = drawn(make, op, seed)
        if found is None:
            continue
        with contextlib.suppress(ConversionError):
            same_as_onnx(found[0], found[1], rel=found[2])
            said += 1
    assert said >= 4


def codes(d: Draw, shape: tuple[int, ...], dtype: str) -> Any:
    limits = np.iinfo(dtype)
    return d.rng.integers(limits.min, limits.max + 1, size=shape).astype(dtype)


@pytest.mark.parametrize("op", ["MatMulInteger", "ConvInteger", "QLinearMatMul", "QLinearConv"])
def test_integer_arithmetic_is_exact(op: str) -> None:
    for seed in range(6):
        d = Draw(seed)
        dtype = d.of("uint8", "int8") if op.endswith("MatMul") else "uint8"
        product = "MatMul" in op
        left = codes(d, (2, 5) if product else (2, 4, 6, 6), dtype)
        right = codes(d, (5, 3) if product else (3, 4, 3, 3), dtype if product else "uint8")
        zeros = codes(d, (), left.dtype.name), codes(d, (), right.dtype.name)
        attrs: dict[str, Any] = {} if product else {"pads": [1, 0, 1, 1], "strides": [1, 2]}
        if op.endswith("Integer"):
            inputs = [left, right, *zeros]
        else:
            scales = [np.array(s, np.float32) for s in (0.05, 0.03, 0.7)]
            inputs = [left, scales[0], zeros[0], right, scales[1], zeros[1], scales[2], zeros[0]]
        model = one(op, inputs, **attrs)
        same_as_onnx(model, {"i0": left})


@pytest.mark.parametrize("dtype", ["uint8", "int8"])
def test_quantizing_rounds_to_even(dtype: str) -> None:
    x = np.concatenate([np.arange(-600, 600) * 0.25, [1e6, -1e6]]).astype(np.float32)
    zero = np.array(3, dtype)
    same_as_onnx(one("QuantizeLinear", [x, np.array(0.5, np.float32), zero]), {"i0": x})
    all_codes = np.arange(np.iinfo(dtype).min, np.iinfo(dtype).max + 1).astype(dtype)
    same_as_onnx(one("DequantizeLinear", [all_codes, np.array(0.3, np.float32), zero]), {"i0": all_codes})
