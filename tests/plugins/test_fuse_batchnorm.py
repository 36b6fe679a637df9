"""BatchNormalization and constant arithmetic folded into weights."""

from __future__ import annotations

import numpy as np
import pytest
from fuse_models import context, difference, f32, feeds_of, fused, model_of, ops, positive, reasons, run, w
from hypothesis import given, settings
from hypothesis import strategies as st
from onnx.reference import ReferenceEvaluator

from attar.graph import clone, const_array, to_proto
from attar_fuse import Fuse


def statistics(channels: int, dtype: type = np.float32) -> dict[str, np.ndarray]:
    return {
        "gamma": w(channels, dtype=dtype),
        "beta": w(channels, dtype=dtype),
        "mean": w(channels, dtype=dtype),
        "var": positive(channels, dtype=dtype),
    }


BN = "BatchNormalization<epsilon=0.001>({x}, gamma, beta, mean, var)"


@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize(
    ("layer", "weight", "channels"),
    [
        ("Conv<pads=[1,1,1,1]>", (6, 4, 3, 3), 6),
        ("Conv<group=2>", (6, 2, 3, 3), 6),
        ("Conv<group=4>", (4, 1, 3, 3), 4),
        ("Conv<group=4>", (8, 1, 3, 3), 8),
        ("ConvTranspose<strides=[2,2]>", (4, 5, 2, 2), 5),
        ("ConvTranspose<group=2>", (4, 3, 2, 2), 6),
    ],
)
def test_batchnorm_after_conv(layer: str, weight: tuple[int, ...], channels: int, bias: bool) -> None:
    constants = {"k": w(*weight), **statistics(channels)}
    if bias:
        constants["b"] = w(channels)
    model = model_of(
        "(float[N,4,7,7] x) => (float[N,C,H,W] y)",
        f"c = {layer}(x, k{', b' if bias else ''}) y = {BN.format(x='c')}",
        **constants,
    )
    result, step = fused(model)
    assert sum(ops(result).values()) == 1
    assert step.changes == [f"1 BatchNormalization folded into the {layer.split('<', maxsplit=1)[0]} before"]
    assert "k" in result.graph.initializers  # weights keep their names
    assert next(iter(result.graph)).outputs[0].name == "y"


def test_batchnorm_folding_against_float64() -> None:
    """The folded float32 model is nearer to exact arithmetic than, or as near as, the unfolded one."""
    constants = {"k": w(8, 4, 3, 3), **statistics(8)}
    constants["var"] = constants["var"] * 1e-4  # scales of a hundred
    body = f"c = Conv(x, k) y = {BN.format(x='c')}"
    model = model_of("(float[2,4,7,7] x) => (float[N,C,H,W] y)", body, **constants)
    double = {n: a.astype(np.float64) for n, a in constants.items()}
    exact = model_of("(double[2,4,7,7] x) => (double[N,C,H,W] y)", body, **double)
    result, _ = fused(model)
    feeds = feeds_of(model)
    # onnx's own numpy evaluator: the runtime has no convolution in float64
    truth = ReferenceEvaluator(to_proto(exact)).run(None, {"x": feeds["x"].astype(np.float64)})[0]
    assert truth.dtype == np.float64
    folded = difference(truth, run(result, feeds)[0].astype(np.float64))
    unfolded = difference(truth, run(model, feeds)[0].astype(np.float64))
    assert folded < max(2 * unfolded, 1e-6)


@pytest.mark.parametrize("add", [True, False])
def test_batchnorm_after_matmul(add: bool) -> None:
    constants = {"k": w(4, 5), **statistics(5)} | ({"b": w(5)} if add else {})
    middle = "m = MatMul(x, k) c = Add(b, m)" if add else "c = MatMul(x, k)"
    model = model_of("(float[N,4] x) => (float[N,5] y)", f"{middle} y = {BN.format(x='c')}", **constants)
    result, _ = fused(model)
    assert ops(result) == {"Gemm": 1}


@pytest.mark.parametrize("trans", [0, 1])
@pytest.mark.parametrize("c_shape", [(5,), (1, 5), (1,), None])
def test_batchnorm_after_gemm(trans: int, c_shape: tuple[int, ...] | None) -> None:
    constants = {"k": w(5, 4) if trans else w(4, 5), **statistics(5)}
    if c_shape is not None:
        constants["c0"] = w(*c_shape)
    args = "x, k, c0" if c_shape is not None else "x, k"
    model = model_of(
        "(float[N,4] x) => (float[N,5] y)",
        f"c = Gemm<transB={trans}, alpha=0.5, beta=2.0>({args}) y = {BN.format(x='c')}",
        **constants,
    )
    result, _ = fused(model)
    assert ops(result) == {"Gemm": 1}
    gemm = next(iter(result.graph))
    assert gemm.attributes.get("alpha") is None  # folded into the weights
    assert gemm.attributes.get("beta") is None


def test_matmul_of_rank_three_keeps_channels_last() -> None:
    """BatchNormalization works on axis 1, columns of a MatMul are the last: only arithmetic may go in."""
    model = model_of(
        "(float[N,5,4] x) => (float[N,5,5] y)",
        f"m = MatMul(x, k) s = Mul(m, scale) a = Add(s, shift) y = {BN.format(x='a')}",
        k=w(4, 5), scale=w(5), shift=w(5), **statistics(5),
    )  # fmt: skip
    result, step = fused(model)
    assert ops(result) == {"MatMul": 1, "Add": 1, "BatchNormalization": 1}
    assert "axis 1" in reasons(step)


def test_float16() -> None:
    model = model_of(
        "(float16[N,4,5,5] x) => (float16[N,C,H,W] y)",
        f"c = Conv(x, k) y = {BN.format(x='c')}",
        k=w(6, 4, 3, 3, dtype=np.float16), **statistics(6, np.float16),
    )  # fmt: skip
    result, _ = fused(model, tolerance=4e-3, scale=1.0)
    assert ops(result) == {"Conv": 1}
    assert const_array(result.graph.initializers["k"]).dtype == np.float16


def test_float64_stays_exact() -> None:
    model = model_of(
        "(double[N,4] x) => (double[N,5] y)",
        f"c = Gemm(x, k) y = {BN.format(x='c')}",
        k=w(4, 5, dtype=np.float64), **statistics(5, np.float64),
    )  # fmt: skip
    result, _ = fused(model, tolerance=1e-13)
    assert ops(result) == {"Gemm": 1}


def test_float16_overflow_is_refused() -> None:
    constants = statistics(6, np.float16)
    constants["gamma"] = np.full(6, 3e4, np.float16)
    model = model_of(
        "(float16[N,4,5,5] x) => (float16[N,C,H,W] y)",
        f"c = Conv(x, k) y = {BN.format(x='c')}",
        k=np.full((6, 4, 3, 3), 100, np.float16), **constants,
    )  # fmt: skip
    ctx = context()
    result = clone(model)
    Fuse().apply(result, ctx)
    assert ops(result) == {"Conv": 2}  # the second is the BatchNormalization, as a depthwise Conv
    assert "overflow" in reasons(ctx.step)


def test_shared_weights_are_copied() -> None:
    first, second = statistics(6), {f"{n}2": a for n, a in statistics(6).items()}
    model = model_of(
        "(float[N,4,5,5] x, float[N,4,5,5] z) => (float[N,C,H,W] y)",
        "c = Conv(x, k) p = BatchNormalization(c, gamma, beta, mean, var) "
        "d = Conv(z, k) q = BatchNormalization(d, gamma2, beta2, mean2, var2) y = Add(p, q)",
        k=w(6, 4, 3, 3), **first, **second,
    )  # fmt: skip
    result, _ = fused(model)
    assert ops(result) == {"Conv": 2, "Add": 1}


def test_one_layer_used_twice_stays_one_weight() -> None:
    model = model_of(
        "(float[N,4,5,5] x, float[N,4,5,5] z) => (float[N,C,H,W] y)",
        "c = Conv(x, k) p = BatchNormalization(c, gamma, beta, mean, var) "
        "d = Conv(z, k) q = BatchNormalization(d, gamma, beta, mean, var) y = Add(p, q)",
        k=w(6, 4, 3, 3), **statistics(6),
    )  # fmt: skip
    result, _ = fused(model)
    convs = [n for n in result.graph if n.op_type == "Conv"]
    assert convs[0].inputs[1] is convs[1].inputs[1]


@pytest.mark.parametrize(
    ("outputs", "more", "reason"),
    [
        ("float[N,6,H,W] y, float[N,6,H,W] c", "", "is a graph output"),
        ("float[N,6,H,W] y, float[N,6,H,W] r", "r = Relu(c)", "is used elsewhere"),
    ],
)
def test_a_conv_that_others_see_is_left_alone(outputs: str, more: str, reason: str) -> None:
    model = model_of(
        f"(float[N,4,5,5] x) => ({outputs})",
        f"c = Conv(x, k) y = {BN.format(x='c')} {more}",
        k=w(6, 4, 3, 3), **statistics(6),
    )  # fmt: skip
    result, step = fused(model)
    assert ops(result)["Conv"] == 2  # the second is the BatchNormalization, as a depthwise Conv
    assert reason in reasons(step)


def test_a_weight_that_is_an_output_keeps_its_content() -> None:
    model = model_of(
        "(float[N,4,5,5] x) => (float[N,6,H,W] y, float[6,4,3,3] copy)",
        f"c = Conv(x, k) y = {BN.format(x='c')} copy = Neg(k)",
        k=w(6, 4, 3, 3), **statistics(6),
    )  # fmt: skip
    result, _ = fused(model, Fuse(constants=False))
    assert ops(result) == {"Conv": 1, "Neg": 1}


def test_quantized_weights_are_left_alone() -> None:
    model = model_of(
        "(float[N,4,5,5] x) => (float[N,C,H,W] y)",
        f"k = DequantizeLinear<axis=0>(q, s) c = Conv(x, k) y = {BN.format(x='c')}",
        q=(w(6, 4, 3, 3) * 30).astype(np.int8), s=positive(6), **statistics(6),
    )  # fmt: skip
    result, step = fused(model)
    assert ops(result) == {"DequantizeLinear": 1, "Conv": 2}
    assert "not constant" in reasons(step)


@pytest.mark.parametrize("pads", [0, 1])
def test_batchnorm_before_conv(pads: int) -> None:
    model = model_of(
        "(float[N,4,6,6] x) => (float[N,C,H,W] y)",
        f"n = {BN.format(x='x')} y = Conv<group=2, pads=[{pads},{pads},{pads},{pads}]>(n, k, b)",
        k=w(6, 2, 3, 3), b=w(6), **statistics(4),
    )  # fmt: skip
    result, step = fused(model)
    if pads:
        assert "pads with zeros" in reasons(step)
    else:
        assert ops(result) == {"Conv": 1}


@pytest.mark.parametrize("trans", [0, 1])
def test_batchnorm_before_gemm(trans: int) -> None:
    model = model_of(
        "(float[N,4] x) => (float[N,5] y)",
        f"n = {BN.format(x='x')} y = Gemm<transB={trans}>(n, k)",
        k=w(5, 4) if trans else w(4, 5), **statistics(4),
    )  # fmt: skip
    result, _ = fused(model)
    assert ops(result) == {"Gemm": 1}


def test_scaling_before_a_padded_conv_goes_in() -> None:
    """Zero padding stays zero under a scale, so x / 255 needs no operator of its own; a shift would."""
    model = model_of(
        "(float[N,3,6,6] x) => (float[N,C,H,W] y)",
        "a = Sub(x, mean) n = Div(a, std) y = Conv<pads=[1,1,1,1]>(n, k)",
        k=w(6, 3, 3, 3), mean=w(1, 3, 1, 1), std=positive(3, 1, 1),
    )  # fmt: skip
    result, _ = fused(model)
    assert ops(result) == {"Sub": 1, "Conv": 1}


@pytest.mark.parametrize(
    ("body", "left"),
    [
        ("c = Conv(x, k) d = Mul(c, s) y = Add(t, d)", {"Conv": 1}),
        ("c = Conv(x, k) d = Div(c, s) y = Sub(d, t)", {"Conv": 1}),
        ("c = Conv(x, k) y = Sub(t, c)", {"Conv": 1}),
        ("c = Conv(x, k) y = Div(t, c)", {"Conv": 1, "Div": 1}),
        ("c = Conv(x, k) y = Mul(c, row)", {"Conv": 1, "Mul": 1}),
        ("c = Conv(x, k) y = Mul(c, wide)", {"Conv": 1, "Mul": 1}),
        ("c = Conv(x, k) d = Mul(c, one) y = Mul(d, c)", {"Conv": 1, "Mul": 2}),
    ],
)
def test_arithmetic_after_conv(body: str, left: dict[str, int]) -> None:
    constants = {"k": w(6, 4, 3, 3), "s": positive(6, 1, 1), "t": w(1, 6, 1, 1), "row": w(3)}
    constants |= {"wide": w(1, 1, 6, 1, 1), "one": f32(2)}
    used = {
        n: a
        for n, a in constants.items()
        if n in body.replace("(", " ").replace(")", " ").replace(",", " ").split()
    }
    rank = "A,N,C,H,W" if "wide" in body else "N,C,H,W"
    result, _ = fused(model_of(f"(float[N,4,5,5] x) => (float[{rank}] y)", body, **used))
    assert ops(result) == left


def test_one_channel_is_not_widened() -> None:
    """A constant of 6 channels after a Conv with one filter makes six channels: that is no scale."""
    model = model_of(
        "(float[N,4,5,5] x) => (float[N,C,H,W] y)",
        "c = Conv(x, k) y = Mul(c, s)",
        k=w(1, 4, 3, 3),
        s=w(6, 1, 1),
    )
    result, _ = fused(model)
    assert ops(result) == {"Conv": 1, "Mul": 1}


def test_lonely_batchnorm_says_why() -> None:
    model = model_of(
        "(float[N,4,5,5] x) => (float[N,C,H,W] y)", f"r = Relu(x) y = {BN.format(x='r')}", **statistics(4)
    )
    result, step = fused(model)
    assert "no Conv" in reasons(step)
    assert ops(result) == {"Relu": 1, "Conv": 1}
    conv = next(n for n in result.graph if n.op_type == "Conv")
    assert conv.attributes["group"].value == 4
    assert const_array(conv.inputs[1]).shape == (4, 1, 1, 1)


def test_lonely_batchnorm_of_other_ranks_stays() -> None:
    model = model_of(
        "(float[N,4] x) => (float[N,C] y)", f"r = Relu(x) y = {BN.format(x='r')}", **statistics(4)
    )
    result, _ = fused(model)
    assert ops(result) == {"Relu": 1, "BatchNormalization": 1}


def test_folds_inside_subgraphs() -> None:
    model = model_of(
        "(float[N,4,5,5] x, bool p) => (float[N,6,3,3] y)",
        "y = If(p)<then_branch = t () => (float[N,6,3,3] a) {"
        f"  c = Conv(x, k) a = {BN.format(x='c')} }},"
        "else_branch = e () => (float[N,6,3,3] b) { d = Conv(x, k) b = Relu(d) }>",
        k=w(6, 4, 3, 3), **statistics(6),
    )  # fmt: skip
    result, _ = fused(model)
    assert ops(result) == {"If": 1, "Conv": 2, "Relu": 1}


@settings(max_examples=25, deadline=None)
@given(st.data())
def test_random_chains(data: st.DataObject) -> None:
    """Convolutions, normalisations, arithmetic and activations in any order and with any second use."""
    body, constants, value, channels = [], {}, "x", 4
    outputs = []
    for k in range(data.draw(st.integers(1, 7))):
        kind = data.draw(
            st.sampled_from(["Conv", "Depthwise", "BN", "Mul", "Add", "Div", "Relu", "Clip", "Identity"])
        )
        name = f"v{k}"
        if kind == "Conv":
            out = data.draw(st.sampled_from([1, 3, 4]))
            pad = data.draw(st.integers(0, 1))
            constants[f"k{k}"] = w(out, channels, 1 + 2 * pad, 1 + 2 * pad)
            body.append(f"{name} = Conv<pads=[{pad},{pad},{pad},{pad}]>({value}, k{k})")
            channels = out
        elif kind == "Depthwise":
            constants[f"k{k}"] = w(channels, 1, 3, 3)
            body.append(f"{name} = Conv<group={channels}, pads=[1,1,1,1]>({value}, k{k})")
        elif kind == "BN":
            for part, array in statistics(channels).items():
                constants[f"{part}{k}"] = array
            body.append(f"{name} = BatchNormalization({value}, gamma{k}, beta{k}, mean{k}, var{k})")
        elif kind in ("Mul", "Add", "Div"):
            shape = data.draw(st.sampled_from([(), (1,), (channels, 1, 1), (1, channels, 1, 1), (5,)]))
            constants[f"c{k}"] = positive(*shape)
            swap = kind != "Div" and data.draw(st.booleans())
            body.append(f"{name} = {kind}({f'c{k}, {value}' if swap else f'{value}, c{k}'})")
        elif kind == "Clip":
            constants |= {f"lo{k}": f32(-1), f"hi{k}": f32(6)}
            body.append(f"{name} = Clip({value}, lo{k}, hi{k})")
        else:
            body.append(f"{name} = {kind}({value})")
        value = name
        if data.draw(st.booleans()) and data.draw(st.booleans()):
            outputs.append(value)
    outputs = [*dict.fromkeys([*outputs, value])]
    infos = ", ".join(f"float[N,C{o},H{o},W{o}] {o}" for o in outputs)
    fused(model_of(f"(float[2,4,5,5] x) => ({infos})", " ".join(body), **constants), tolerance=5e-5)
