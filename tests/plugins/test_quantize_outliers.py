"""`quantize.outliers`: float outputs stay, outlier channels leave the scale of the others."""

from __future__ import annotations

from typing import Any

import numpy as np
import onnx_ir as ir
import pytest
from quantize_models import context, kernels, ops, quantize, run, sqnr

from attar import graph
from attar.errors import Refused
from attar.testing.build import Net
from attar_quantize import Outliers, Smooth
from attar_quantize.outlier_forms import MARK
from attar_quantize.outliers import _noise

Array = np.ndarray[Any, Any]
WIDTH, TOKENS = 64, 24


def scales(size: float = 30.0) -> Array:
    """Of a normalization with three channels far above the others."""
    scale = np.ones(WIDTH, np.float32)
    scale[[3, 11, 20]] = size
    return scale


def post_norm(kind: str = "MatMul and Add", size: float = 30.0) -> ir.Model:
    """A post-norm block: the residual sum reads the normalized value, too, so that nobody may scale it."""
    net = Net("post norm", 5)
    x = net.input("x", TOKENS, WIDTH) if kind == "Gemm" else net.input("x", "N", TOKENS, WIDTH)
    bias = net.const(net.rng.standard_normal(WIDTH).astype(np.float32))
    y = net.op("LayerNormalization", x, net.const(scales(size)), bias, axis=-1)
    weight, offset = net.weight(WIDTH, WIDTH), net.const(net.rng.standard_normal(WIDTH).astype(np.float32))
    if kind == "Gemm":
        out = net.op("Gemm", y, net.weight(WIDTH, WIDTH), offset, transB=1)
    elif kind == "two readers":
        out = net.op(
            "Add", net.op("Relu", net.op("MatMul", y, weight)), net.op("MatMul", y, net.weight(WIDTH, WIDTH))
        )
    else:
        out = net.op("Add", offset, net.op("MatMul", y, weight))
    if kind == "output":
        return net.model(z=out, y=y)
    return net.model(z=net.op("Add", out, y), out=out)


def feeds(kind: str = "", count: int = 3, seed: int = 0) -> list[dict[str, Array]]:
    rng = np.random.default_rng(seed)
    shape = (TOKENS, WIDTH) if kind == "Gemm" else (2, TOKENS, WIDTH)
    return [{"x": rng.standard_normal(shape).astype(np.float32)} for _ in range(count)]


def handled(source: ir.Model, data: list[dict[str, Array]], **options: Any) -> ir.Model:
    copy = graph.clone(source)
    ctx = context(source, data)
    ctx.probing = True  # the nets are too small for integers to pay
    Outliers(**options).apply(copy, ctx)
    graph.tidy(copy)
    graph.refresh_shapes(copy)
    return copy


KINDS = ["MatMul and Add", "Gemm", "two readers", "output"]


@pytest.mark.parametrize("form", ["float", "split", "auto"])
@pytest.mark.parametrize("kind", KINDS)
def test_float_outputs_are_unchanged(kind: str, form: str) -> None:
    source = post_norm(kind)
    before = graph.to_bytes(source)
    changed = handled(source, feeds(kind), form=form)
    assert graph.to_bytes(source) == before
    assert any(MARK in n.metadata_props for n in changed.graph)
    assert [o.name for o in changed.graph.outputs] == [o.name for o in source.graph.outputs]
    for feed in feeds(kind, seed=1):
        for got, expected in zip(
            run(changed, feed, optimize=False), run(source, feed, optimize=False), strict=True
        ):
            # Sums of K products in another order: K eps of the sum of magnitudes, at most 30 x 4 x 0.5 each.
            np.testing.assert_allclose(got, expected, rtol=0, atol=WIDTH * 2.0**-24 * 3 * 60)


@pytest.mark.parametrize("form", ["float", "split"])
@pytest.mark.parametrize("kind", ["MatMul and Add", "Gemm", "two readers"])
def test_int8_comes_nearer(kind: str, form: str) -> None:
    source = post_norm(kind)
    with pytest.raises(Refused):
        Smooth().apply(graph.clone(source), context(source, feeds(kind)))
    found = []
    for model in (source, handled(source, feeds(kind), form=form)):
        small, _ = quantize(
            model, feeds(kind), observer="minmax", operators=("Gemm" if kind == "Gemm" else "MatMul",)
        )
        assert ops(small)["QuantizeLinear"]
        found.append(
            np.mean(
                [
                    sqnr(run(source, f)[1 if kind != "output" else 0], run(small, f)[1])
                    for f in feeds(kind, seed=1)
                ]
            )
        )
    # What 8-bit activations cost falls by the square of the ranges' ratio where outliers are exact; copies
    # keep their own step, which leaves the others' share of the noise to gain.
    assert found[1] > found[0] + (8 if form == "float" else 1), found


def test_the_rest_stays_on_integers() -> None:
    changed = handled(post_norm(), feeds(), form="float")
    small, _ = quantize(changed, feeds(), operators=("MatMul", "Mul", "Add", "Gather"))
    marked = [n for n in small.graph if MARK in n.metadata_props]
    assert {n.op_type for n in marked} == {"Gather", "Mul", "MatMul", "Add"}
    for node in marked:
        for value in node.inputs:
            producer = None if value is None else value.producer()
            if node.op_type != "Add":
                assert producer is None or producer.op_type != "DequantizeLinear", node.name
    assert any("Integer" in op or op.startswith("QLinear") for op in kernels(small))


@pytest.mark.parametrize("size", [30.0, 5.0])
def test_the_noise_of_activations_is_as_predicted(size: float) -> None:
    """Against quantization to nearest in float64, on values that fill their range evenly."""
    rng = np.random.default_rng(0)
    reach = np.where(np.arange(WIDTH) < 2, size, 1.0)
    x = rng.uniform(-1, 1, (4000, WIDTH)) * reach
    weight = rng.standard_normal((WIDTH, 8))
    step = np.abs(x).max() / 127.5
    measured = (((np.rint(x / step) * step - x) @ weight) ** 2).sum(axis=1).mean()
    assert _noise(reach, (weight**2).sum(axis=1)) == pytest.approx(
        measured, rel=0.1
    )  # few steps are not quite even


def test_without_outliers_nothing_is_done() -> None:
    source = post_norm(size=1.0)
    with pytest.raises(Refused, match="no outlier channels"):
        handled(source, feeds())
    net = Net("none", 1)
    with pytest.raises(Refused, match="no activation is read"):
        handled(
            net.model(y=net.op("Relu", net.input("x", "N", 4, 8))), [{"x": np.ones((1, 4, 8), np.float32)}]
        )


def test_applied_twice_is_applied_once() -> None:
    once = handled(post_norm(), feeds(), form="float")
    with pytest.raises(Refused):
        handled(once, feeds(), form="float")


def test_what_costs_more_than_integers_save_is_left_alone() -> None:
    source = post_norm()
    with pytest.raises(Refused, match="at a cost"):
        Outliers().apply(graph.clone(source), context(source, feeds()))
