"""Padding, pooling, constants, needless operators and equal nodes."""

from __future__ import annotations

import numpy as np
import onnx_ir as ir
import pytest
from fuse_models import context, f32, feeds_of, fused, i64, model_of, ops, reasons, run, w

from attar.errors import Refused
from attar.graph import byte_size, clone, const_array
from attar_fuse import Cleanup, Constants, Fuse

INFINITY = f32(-np.inf)


# -- padding -------------------------------------------------------------------------------------------------
@pytest.mark.parametrize(
    ("pads", "own"), [((0, 0, 1, 2, 0, 0, 0, 3), (0, 0, 0, 0)), ((0, 0, 0, 1, 0, 0, 1, 0), (1, 1, 1, 1))]
)
def test_pad_into_conv(pads: tuple[int, ...], own: tuple[int, ...]) -> None:
    model = model_of(
        "(float[N,3,7,7] x) => (float[N,C,H,W] y)",
        f"p = Pad(x, pads) y = Conv<strides=[2,2], pads={list(own)}>(p, k)",
        pads=i64(*pads), k=w(4, 3, 3, 3),
    )  # fmt: skip
    result, _ = fused(model)
    assert ops(result) == {"Conv": 1}
    expected = [a + b for a, b in zip((*pads[2:4], *pads[6:8]), own, strict=True)]
    assert next(iter(result.graph)).attributes["pads"].as_ints() == tuple(expected)


def test_pad_with_axes_and_typed_zero() -> None:
    model = model_of(
        "(float[N,3,7,7] x) => (float[N,C,H,W] y)",
        "p = Pad(x, pads, zero, axes) y = Conv(p, k)",
        pads=i64(2, 1), axes=i64(-1), zero=f32(0), k=w(4, 3, 3, 3),
    )  # fmt: skip
    assert ops(fused(model)[0]) == {"Conv": 1}


@pytest.mark.parametrize(
    ("pad", "constants", "reason"),
    [
        ("Pad(x, pads, v)", {"v": f32(1.5)}, "it pads with 1.5"),
        ('Pad<mode="reflect">(x, pads)', {}, "its mode is reflect"),
        ("Pad(x, pads)", {"pads": i64(0, 1, 0, 0, 0, 0, 0, 0)}, "the batch or the channels"),
        ("Pad(x, pads)", {"pads": i64(0, 0, -1, 0, 0, 0, 0, 0)}, "it crops"),
    ],
)
def test_pads_that_no_conv_can_do(pad: str, constants: dict[str, np.ndarray], reason: str) -> None:
    constants = {"pads": i64(0, 0, 1, 1, 0, 0, 1, 1), "k": w(4, 4, 3, 3), **constants}
    channels = 3 if constants["pads"][1] else 4
    model = model_of(
        f"(float[N,{channels},7,7] x) => (float[N,C,H,W] y)", f"p = {pad} y = Conv(p, k)", **constants
    )
    result, step = fused(model)
    assert ops(result) == {"Pad": 1, "Conv": 1}
    assert reason in reasons(step)


def test_pad_of_unknown_amounts_stays() -> None:
    model = model_of(
        "(float[N,3,7,7] x, int64[8] a) => (float[N,C,H,W] y)",
        "p = Pad(x, a) y = Conv(p, k)",
        k=w(4, 3, 1, 1),
    )
    result, ctx = clone(model), context()
    Fuse().apply(result, ctx)
    assert ops(result) == {"Pad": 1, "Conv": 1}
    assert "not constant" in reasons(ctx.step)


POOL_PADS = i64(0, 0, 1, 1, 0, 0, 1, 1)


@pytest.mark.parametrize(
    ("body", "folded"),
    [
        ("p = Pad(x, pads) y = AveragePool<kernel_shape=[3,3]>(p)", True),
        (
            "p = Pad(x, pads) y = AveragePool<kernel_shape=[3,3], count_include_pad=1, pads=[1,1,1,1]>(p)",
            True,
        ),
        ("p = Pad(x, pads) y = AveragePool<kernel_shape=[3,3], pads=[1,1,1,1]>(p)", False),
        ("p = Pad(x, pads) y = AveragePool<kernel_shape=[3,3], ceil_mode=1, strides=[2,2]>(p)", False),
        ("p = Pad(x, pads) y = AveragePool<kernel_shape=[1,1]>(p)", False),
        ("p = Pad(x, pads) y = MaxPool<kernel_shape=[3,3]>(p)", False),
        ("r = Relu(x) p = Pad(r, pads) y = MaxPool<kernel_shape=[3,3], strides=[2,2]>(p)", True),
        (
            "r = Relu(x) p = Pad(r, pads) y = MaxPool<kernel_shape=[3,3], strides=[2,2], ceil_mode=1>(p)",
            False,
        ),
        ("p = Pad(x, pads, low) y = MaxPool<kernel_shape=[3,3], strides=[2,2]>(p)", True),
    ],
)
def test_pad_into_pooling(body: str, folded: bool) -> None:
    constants = {"pads": POOL_PADS} | ({"low": INFINITY} if "low" in body else {})
    result, _ = fused(model_of("(float[N,3,7,6] x) => (float[N,C,H,W] y)", body, **constants))
    assert ("Pad" not in ops(result)) is folded


# -- means over the plane ------------------------------------------------------------------------------------
@pytest.mark.parametrize(
    ("shape", "axes", "keep", "left"),
    [
        ("N,3,5,4", (2, 3), 1, {"GlobalAveragePool": 1}),
        ("N,3,5,4", (-1, -2), 0, {"GlobalAveragePool": 1, "Flatten": 1}),
        ("N,3,H,W", (2, 3), 0, {"GlobalAveragePool": 1, "Flatten": 1}),
        ("N,3,5", (2,), 0, {"ReduceMean": 1}),
        ("N,3,5,4,2", (2, 3, 4), 1, {"GlobalAveragePool": 1}),
        ("N,3,5,4", (1, 2), 1, {"ReduceMean": 1}),
        ("N,3,5,4", (3,), 1, {"ReduceMean": 1}),
    ],
)
def test_mean_over_the_plane(shape: str, axes: tuple[int, ...], keep: int, left: dict[str, int]) -> None:
    rank = len(shape.split(",")) - (0 if keep else len(axes))
    out = ",".join(f"D{k}" for k in range(rank))
    model = model_of(
        f"(float[{shape}] x) => (float[{out}] y)",
        f"y = ReduceMean<keepdims={keep}>(x, axes)",
        axes=i64(*axes),
    )
    assert ops(fused(model)[0]) == left


@pytest.mark.parametrize(("kernel", "left"), [([5, 4], "GlobalAveragePool"), ([5, 3], "AveragePool")])
def test_average_pool_over_the_plane(kernel: list[int], left: str) -> None:
    model = model_of("(float[N,3,5,4] x) => (float[N,C,H,W] y)", f"y = AveragePool<kernel_shape={kernel}>(x)")
    assert ops(fused(model)[0]) == {left: 1}


# -- constants -----------------------------------------------------------------------------------------------
def test_constant_arithmetic_is_computed_once() -> None:
    model = model_of(
        "(float[N,4] x) => (float[N,4] y)",
        "s = Sqrt(v) r = Reciprocal(s) t = Transpose(k) m = MatMul(x, t) y = Mul(m, r)",
        v=f32(16), k=w(4, 4),
    )  # fmt: skip
    result, _ = fused(model)
    assert ops(result) == {"MatMul": 1}
    assert byte_size(result) <= byte_size(model)


def test_constants_never_grow_the_model() -> None:
    """A transposed copy of a large shared weight, or an expanded one, would be stored twice."""
    model = model_of(
        "(int64[N] i, float[N,256] x) => (float[N,256] e, float[N,300] y, float[300,64,256] z)",
        "e = Gather(k, i) t = Transpose(k) y = MatMul(x, t) u = Unsqueeze(k, one) "
        "big = Expand(u, shape) z = Neg(big)",
        k=w(300, 256), one=i64(1), shape=i64(300, 64, 256),
    )  # fmt: skip
    result, step = fused(model)
    assert ops(result)["Transpose"] == 1
    assert byte_size(result) <= byte_size(model) + 1000
    assert "make the model larger" in reasons(step)


def test_quantized_constants_stay_integers() -> None:
    model = model_of(
        "(float[N,64] x) => (float[N,64] y, float[N,64] z)",
        "k = DequantizeLinear(q, s) y = MatMul(x, k) c = Cast<to=1>(q) z = MatMul(x, c)",
        q=(w(64, 64) * 40).astype(np.int8), s=f32(0.02),
    )  # fmt: skip
    result, step = fused(model)
    assert ops(result) == {"DequantizeLinear": 1, "Cast": 1, "MatMul": 2}
    assert "would become floats" in reasons(step)


def test_random_numbers_are_not_constants() -> None:
    model = model_of(
        "(float[2,3] x) => (float[2,3] y)",
        "r = RandomNormal<shape=[2,3]>() s = RandomNormal<shape=[2,3]>() d = Sub(r, s) y = Add(x, d)",
    )
    result, ctx = clone(model), context()
    Fuse().apply(result, ctx)
    assert ops(result) == {"RandomNormal": 2, "Sub": 1, "Add": 1}


def test_shape_arithmetic_with_a_dynamic_batch() -> None:
    """view(b, -1) and view(b, heads, -1) as exporters write them."""
    model = model_of(
        "(float[batch,6,4,4] x) => (float[batch,96] y, float[batch,2,48] z)",
        "s = Shape(x) b = Gather(s, zero) u = Unsqueeze(b, axis) "
        "c1 = Concat<axis=0>(u, minus) f = Reshape(x, c1) "
        "c2 = Concat<axis=0>(u, two, minus) g = Reshape(x, c2) y = Neg(f) z = Abs(g)",
        zero=np.array(0, np.int64), axis=i64(0), minus=i64(-1), two=i64(2),
    )  # fmt: skip
    result, _ = fused(model)
    assert ops(result) == {"Reshape": 2, "Neg": 1, "Abs": 1}


def test_known_entries_of_a_partly_known_shape() -> None:
    model = model_of(
        "(float[batch,6,4,4] x) => (float[batch,6,4,4] y)",
        "s = Shape(x) c = Slice(s, one, two) f = Cast<to=1>(c) y = Mul(x, f)",
        one=i64(1), two=i64(2),
    )  # fmt: skip
    result, _ = fused(model)
    assert ops(result) == {"Mul": 1}


def test_constants_inside_a_loop() -> None:
    model = model_of(
        "(float[2,2] x) => (float[2,2] y)",
        "y = Loop(n, , x)<body = b (int64 i, bool go, float[2,2] s) => (bool on, float[2,2] t) {"
        " on = Identity(go) r = Sqrt(v) t = Mul(s, r) }>",
        n=np.array(3, np.int64), v=f32(4),
    )  # fmt: skip
    result, _ = fused(model)
    assert "Sqrt" not in ops(result)
    assert ops(result)["Loop"] == 1


# -- needless operators --------------------------------------------------------------------------------------
@pytest.mark.parametrize(
    "middle",
    [
        "Identity(a)", "Dropout(a)", "Cast<to=1>(a)", "Transpose<perm=[0,1,2]>(a)", "Reshape(a, same)",
        "Reshape(a, copied)", "Concat<axis=1>(a)", "Slice(a, zeros, far, axes)", "Pad(a, nothing)",
        "Expand(a, ones)", "Tile(a, ones)", "Add(a, zero)", "Add(zero, a)", "Sub(a, zero)", "Mul(a, one)",
        "Div(a, one)", "Pow(a, one)", "Sum(a)", "Max(a)", "Split<axis=1, num_outputs=1>(a)", "CastLike(a, x)",
    ],
)  # fmt: skip
def test_needless_operators_go(middle: str) -> None:
    every = {
        "same": i64(0, 3, 4), "copied": i64(0, 0, -1), "zeros": i64(0, 0), "far": i64(3, 2**62),
        "axes": i64(1, 2),
        "nothing": i64(0, 0, 0, 0, 0, 0), "ones": i64(1, 1, 1), "zero": f32(0), "one": f32(1),
    }  # fmt: skip
    used = {
        n: a
        for n, a in every.items()
        if n in middle.replace(")", ",").replace("(", ",").replace(" ", "").split(",")
    }
    model = model_of("(float[N,3,4] x) => (float[N,3,4] y)", f"a = Neg(x) b = {middle} y = Exp(b)", **used)
    result, _ = fused(model, scale=1.0)
    assert ops(result) == {"Neg": 1, "Exp": 1}


@pytest.mark.parametrize(
    "middle",
    [
        "Slice(a, i1, far, axis)",
        "Pad(a, some)",
        "Tile(a, twice)",
        "Mul(a, wide)",
        "Transpose(a)",
        "Cast<to=11>(a)",
    ],
)
def test_similar_operators_that_do_something_stay(middle: str) -> None:
    every = {
        "i1": i64(1), "far": i64(2**62), "axis": i64(1), "some": i64(0, 0, 0, 0, 1, 0), "twice": i64(1, 1, 2),
        "wide": np.ones((2, 1, 1, 1), np.float32),
    }  # fmt: skip
    used = {
        n: a
        for n, a in every.items()
        if n in middle.replace(")", ",").replace("(", ",").replace(" ", "").split(",")
    }
    out = (
        "double[A,B,C] y"
        if "Cast" in middle
        else "float[A,B,C,D] y"
        if "wide" in middle
        else "float[A,B,C] y"
    )
    model = model_of(f"(float[N,3,4] x) => ({out})", f"a = Neg(x) y = {middle}", **used)
    assert sum(ops(fused(model)[0]).values()) == 2


def test_graph_outputs_keep_their_names() -> None:
    model = model_of(
        "(float[N,3] x) => (float[N,3] x_again, float[N,3] y, float[N,3] z)",
        "x_again = Identity(x) a = Neg(x) y = Identity(a) b = Exp(x) z = Identity(b) ",
    )
    result, step = fused(model, scale=1.0)
    assert ops(result) == {"Identity": 1, "Neg": 1, "Exp": 1}
    assert "between an input or constant and a graph output" in reasons(step)


def test_an_output_beside_a_used_value() -> None:
    model = model_of("(float[N,3] x) => (float[N,3] y, float[N,3] a)", "a = Neg(x) y = Identity(a)")
    result, _ = fused(model)
    assert ops(result) == {"Neg": 1, "Identity": 1}


def test_transposes_and_reshapes_join() -> None:
    model = model_of(
        "(float[N,3,4,5] x) => (float[N,5,3,4] y, float[N,3,4,5] z, float[N,60] r)",
        "a = Transpose<perm=[0,2,3,1]>(x) y = Transpose<perm=[0,2,3,1]>(a) "
        "b = Transpose<perm=[0,3,1,2]>(a) z = Neg(b) "
        "c = Reshape(x, s1) d = Reshape(c, s2) r = Neg(d)",
        s1=i64(0, 12, 5), s2=i64(0, -1),
    )  # fmt: skip
    result, _ = fused(model)
    assert ops(result) == {"Transpose": 1, "Neg": 2, "Reshape": 1}


def test_declared_outputs_are_not_believed() -> None:
    """A file may give two different dimensions one name; ONNX Runtime only warns."""
    model = model_of(
        "(float[N,M] x) => (float[N,M] y)",
        "s = Shape(x) r = Gather(s, swap) y = Reshape(x, r)",
        swap=i64(1, 0),
    )
    result, _ = clone(model), context()
    Fuse().apply(result, context())
    x = w(2, 3)
    np.testing.assert_array_equal(run(result, {"x": x})[0], x.reshape(3, 2))


def test_squeeze_undone_by_unsqueeze() -> None:
    model = model_of(
        "(float[N,3,1] x) => (float[N,3,1] y)",
        "a = Squeeze(x, two) b = Unsqueeze(a, two) y = Neg(b)",
        two=i64(2),
    )
    assert ops(fused(model)[0]) == {"Neg": 1}


def test_training_dropout_stays() -> None:
    model = model_of(
        "(float[N,3] x) => (float[N,3] y)", "a = Dropout(x, r, t) y = Neg(a)", r=f32(0.5), t=np.array(True)
    )
    result, ctx = clone(model), context()
    Fuse().apply(result, ctx)
    assert ops(result) == {"Dropout": 1, "Neg": 1}


def test_equal_nodes_are_computed_once() -> None:
    model = model_of(
        "(float[N,3] x) => (float[N,3] y)",
        "a = LeakyRelu<alpha=0.1>(x) b = LeakyRelu<alpha=0.1>(x) c = LeakyRelu<alpha=0.2>(x) "
        "d = Mul(a, h1) e = Mul(b, h2) s = Add(d, e) y = Sub(s, c)",
        h1=f32(0.3), h2=f32(0.3),
    )  # fmt: skip
    result, _ = fused(model)
    assert ops(result) == {"LeakyRelu": 2, "Mul": 1, "Add": 1, "Sub": 1}


def test_constants_in_a_row() -> None:
    model = model_of(
        "(float[N,3] x) => (float[N,3] y)",
        "a = Add(x, p) b = Sub(a, q) c = Mul(r, b) d = Div(c, s) y = Mul(d, d)",
        p=w(3), q=f32(0.25), r=f32(3), s=f32(7),
    )  # fmt: skip
    result, _ = fused(model)
    assert ops(result) == {"Add": 1, "Mul": 2}


def test_rounding_on_purpose_is_kept() -> None:
    """(x + 1.5 * 2^23) - 1.5 * 2^23 rounds to an integer."""
    magic = f32(12582912)
    model = model_of("(float[N,3] x) => (float[N,3] y)", "a = Add(x, m) y = Sub(a, m)", m=magic)
    result, step = fused(model)
    assert ops(result) == {"Add": 1, "Sub": 1}
    assert "round on purpose" in reasons(step)
    feeds = feeds_of(result)
    np.testing.assert_array_equal(run(result, feeds)[0], np.round(feeds["x"]))


def test_integers_are_not_rescaled() -> None:
    model = model_of(
        "(int64[N,3] x) => (int64[N,3] y)", "a = Div(x, two) y = Mul(a, two)", two=np.array(2, np.int64)
    )
    assert ops(fused(model)[0]) == {"Div": 1, "Mul": 1}


# -- the passes ----------------------------------------------------------------------------------------------
BODY = """s = Sqrt(v) a = Identity(x) m = Mul(a, s) c = Conv(m, k)
    n = BatchNormalization(c, g, g, g, g) r = Relu(n) y = Clip(r, lo, hi)"""


@pytest.mark.parametrize(
    ("step", "left"),
    [
        (Fuse(), "Conv Clip"),
        (Fuse(batchnorm=False), "Mul Conv BatchNormalization Clip"),
        (Fuse(activations=False), "Conv Relu Clip"),
        (Fuse(constants=False), "Sqrt Mul Conv Clip"),
        (Fuse(identities=False), "Identity Conv Clip"),
        (Constants(), "Identity Mul Conv BatchNormalization Relu Clip"),
        (Cleanup(), "Sqrt Mul Conv BatchNormalization Relu Clip"),
    ],
)
def test_options(step: Fuse, left: str) -> None:
    model = model_of(
        "(float[N,3,5,5] x) => (float[N,C,H,W] y)", BODY, v=f32(4), k=w(4, 3, 3, 3),
        g=np.full(4, 0.5, np.float32), lo=f32(-1), hi=f32(6),
    )  # fmt: skip
    assert dict(ops(fused(model, step)[0])) == dict.fromkeys(left.split(), 1)


def test_old_opsets_are_refused() -> None:
    model = ir.from_onnx_text(
        '<ir_version: 7, opset_import: ["" : 11]> g (float[N] x) => (float[N] y) { y = Neg(x) }'
    )
    with pytest.raises(Refused, match="opset 11"):
        Fuse().apply(model, context())


def test_weight_of_a_graph_input_is_no_constant() -> None:
    model = model_of(
        "(float[2,4] x, float[4,4] k) => (float[2,4] y)", "m = MatMul(x, k) y = Mul(m, two)", two=f32(2)
    )
    assert ops(fused(model)[0]) == {"MatMul": 1, "Mul": 1}


def test_nothing_to_do_says_nothing() -> None:
    model = model_of(
        "(float[N,3,5,5] x) => (float[N,C,H,W] y)", "c = Conv(x, k) y = Relu(c)", k=w(4, 3, 3, 3)
    )
    result, step = fused(model)
    assert step.changes == []
    assert step.skipped == []
    np.testing.assert_array_equal(
        const_array(result.graph.initializers["k"]), const_array(model.graph.initializers["k"])
    )


# -- classifiers written as convolutions ---------------------------------------------------------------------
@pytest.mark.parametrize(
    "end", ["Flatten(c)", "Reshape(c, shape)", "Squeeze(c, axes)"], ids=["flatten", "reshape", "squeeze"]
)
def test_a_conv_over_one_pixel_becomes_a_gemm(end: str) -> None:
    model = model_of(
        "(float[N,6,5,5] x) => (float[N,K] y)",
        f"g = GlobalAveragePool(x) c = Conv(g, k, b) y = {end}",
        k=w(4, 6, 1, 1), b=w(4), shape=i64(-1, 4), axes=i64(2, 3),
    )  # fmt: skip
    result, _ = fused(model)
    assert ops(result) == {"GlobalAveragePool": 1, "Flatten": 1, "Gemm": 1}
    wanted, got = run(model, feeds_of(model)), run(result, feeds_of(model))
    np.testing.assert_allclose(got[0], wanted[0], rtol=0, atol=12 * 2.0**-24 * np.abs(wanted[0]).max())


@pytest.mark.parametrize(
    "body",
    [
        "c = Conv(x, k) y = Flatten(c)",  # a plane of 5 x 5
        "g = GlobalAveragePool(x) c = Conv<pads=[1,1,1,1]>(g, k) y = Flatten(c)",  # grows to 3 x 3
        "g = GlobalAveragePool(x) c = Conv<group=2>(g, grouped) y = Flatten(c)",
        "g = GlobalAveragePool(x) c = Conv(g, k) d = Relu(c) e = Flatten(c) f = Flatten(d) y = Add(e, f)",
    ],
)
def test_convs_that_are_no_gemm(body: str) -> None:
    model = model_of("(float[N,6,5,5] x) => (float[N,K] y)", body, k=w(4, 6, 1, 1), grouped=w(4, 3, 1, 1))
    assert ops(fused(model)[0])["Conv"] == 1


@pytest.mark.parametrize(
    ("modes", "axes"),
    [("", [2, 3]), (', coordinate_transformation_mode="tf_crop_and_resize"', None)],
    ids=["as they were", "with a region"],
)
def test_sizes_computed_from_shapes(modes: str, axes: list[int] | None) -> None:
    """PyTorch writes the first two of the sizes as those of the input, whatever the batch."""
    model = model_of(
        "(float[N,3,H,6] x) => (float[N,A,B,C] y)",
        "s = Shape<start=0, end=2>(x) t = Concat<axis=0>(s, plane) "
        f'y = Resize<mode="linear"{modes}>(x, roi, , t)',
        plane=i64(12, 12), roi=np.array([0, 0, 0, 0, 1, 1, 1, 1], np.float32),
    )  # fmt: skip
    result, _ = fused(model)
    resize = next(n for n in result.graph if n.op_type == "Resize")
    assert ("Concat" in ops(result)) == (axes is None)
    assert (list(resize.attributes["axes"].as_ints()) if "axes" in resize.attributes else None) == axes
