"""`fuse.kernels` against float64 formulas, and what it refuses; the decisions are tested without a clock."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import onnx_ir as ir
import pytest
from fuse_models import context, difference, f32, i64, model_of, ops, reasons, run, w

from attar.errors import Refused
from attar.graph import clone, to_bytes
from attar.testing import conformance
from attar_fuse import Kernels

BATCH, LENGTH, HEADS, WIDTH = 3, 5, 2, 4
HIDDEN = HEADS * WIDTH
# Sums of a few dozen products in float32: some roundings of the largest value.
ROUNDING = 40 * 2.0**-24
Array = np.ndarray[Any, Any]


MODELS = [
    "attention",
    "encoder",
    "tied_embedding",
    "lstm",
    "half",
    "quantized",
    "weight_in_if",
    "several_ports",
    "constant_output",
]


@conformance(Kernels(plan="everything"), models=MODELS)
def test_conforms(check: Any) -> None:
    check()


@conformance(Kernels(plan="everything", contrib=True), models=["encoder", "residual_cnn", "conv1d", "half"])
def test_contrib_conforms(check: Any) -> None:
    check()


def applied(model: ir.Model, **options: Any) -> ir.Model:
    """`model` after the pass; the model itself stays as it is."""
    original = to_bytes(model)
    result = clone(model)
    Kernels(plan="everything", **options).apply(result, context())
    assert to_bytes(model) == original
    return result


# -- attention -----------------------------------------------------------------------------------------------


def softmax(x: Array) -> Array:
    e = np.exp(x - x.max(-1, keepdims=True))
    return e / e.sum(-1, keepdims=True)


def reference(q: Array, k: Array, v: Array, mask: Array | None = None, scale: float = WIDTH**-0.5) -> Array:
    """softmax(scale q k^T + mask) v in float64, of [batch, length, heads * width]."""
    q, k, v = (a.astype(np.float64).reshape(*a.shape[:2], HEADS, -1).transpose(0, 2, 1, 3) for a in (q, k, v))
    scores = scale * q @ k.transpose(0, 1, 3, 2) + (0 if mask is None else mask)
    return (softmax(scores) @ v).transpose(0, 2, 1, 3).reshape(q.shape[0], q.shape[2], -1)


SPLIT = "".join(
    f"r{n} = Reshape({n}, split) h{n} = Transpose<perm = [0, 2, 1, 3]>(r{n}) " for n in ("q", "k", "v")
)
JOIN = " o = MatMul(p, hv) t = Transpose<perm = [0, 2, 1, 3]>(o) y = Reshape(t, join)"
SIZES = {"split": i64(0, 0, HEADS, WIDTH), "join": i64(0, 0, HIDDEN)}
QKV = ", ".join(f"float[batch, length, {HIDDEN}] {n}" for n in ("q", "k", "v"))
SCALE = f32(WIDTH**-0.5)
ROOT = f32(WIDTH**-0.25)
PLAIN = "kt = Transpose<perm = [0, 1, 3, 2]>(hk) s0 = MatMul(hq, kt) s = Mul(s0, scale) "
TRIANGLE = """
    n = Shape<start = 1, end = 2>(q) square = Concat<axis = 0>(n, n) ones = Expand(true, square)
    below = Trilu<upper = 0>(ones) above = Not(below)
"""
CASES: dict[str, tuple[str, str, dict[str, Array]]] = {
    "plain": ("", PLAIN + "p = Softmax<axis = -1>(s)", {"scale": SCALE}),
    "divided": (
        "",
        "kt = Transpose<perm = [0, 2, 3, 1]>(rk) s0 = MatMul(hq, kt) s = Div(s0, root) "
        "p = Softmax<axis = 3>(s)",
        {"root": f32(WIDTH**0.5)},
    ),
    "reshaped": (  # as torch's exporter decomposes scaled_dot_product_attention
        "",
        """
        size = Shape(hk) length = Slice(size, m2, m1) lead = Slice(size, zero, m2)
        flat = Concat<axis = 0>(m1, length, width) k3 = Reshape(hk, flat)
        k3t = Transpose<perm = [0, 2, 1]>(k3) full = Concat<axis = 0>(lead, width, length)
        kt = Reshape(k3t, full) qs = Mul(hq, root) ks = Mul(kt, root) s = MatMul(qs, ks)
        p = Softmax<axis = -1>(s)
        """,
        {"root": ROOT, "m1": i64(-1), "m2": i64(-2), "zero": i64(0), "width": i64(WIDTH)},
    ),
    "padding mask": (
        ", float[batch, 1, 1, length] mask",
        PLAIN + "m = Add(s, mask) p = Softmax<axis = -1>(m)",
        {"scale": SCALE},
    ),
    "guarded": (
        ", bool[batch, 1, 1, length] seen",
        PLAIN
        + """
        mask = Where(seen, zero, least) m = Add(mask, s) p0 = Softmax<axis = -1>(m)
        odd = IsNaN(p0) p = Where(odd, zero, p0)
        """,
        {"scale": SCALE, "zero": f32(0), "least": f32(np.finfo(np.float32).min)},
    ),
    "causal": (
        "",
        TRIANGLE + PLAIN + "m = Where(above, less, s) p = Softmax<axis = -1>(m)",
        {"scale": SCALE, "true": np.array(True), "less": f32(-np.inf)},
    ),
    "causal, added": (
        "",
        TRIANGLE + PLAIN + "mask = Where(below, zero, less) m = Add(s, mask) p = Softmax<axis = -1>(m)",
        {"scale": SCALE, "true": np.array(True), "zero": f32(0), "less": f32(-3e38)},
    ),
    "two masks": (
        ", float[batch, 1, 1, length] mask",
        TRIANGLE + PLAIN + "c = Where(below, s, less) m = Add(c, mask) p = Softmax<axis = -1>(m)",
        {"scale": SCALE, "true": np.array(True), "less": f32(-3e38)},
    ),
}


def attention(name: str) -> ir.Model:
    more, body, constants = CASES[name]
    signature = f"({QKV}{more}) => (float[batch, length, {HIDDEN}] y)"
    return model_of(signature, SPLIT + body + JOIN, **SIZES, **constants)


def attention_feeds(model: ir.Model, batch: int, length: int) -> tuple[dict[str, Array], Array | None]:
    """Inputs, and the mask that they mean in float64."""
    rng = np.random.default_rng(length)
    feeds: dict[str, Array] = {
        n: rng.standard_normal((batch, length, HIDDEN)).astype(np.float32) for n in ("q", "k", "v")
    }
    seen = np.arange(length) < rng.integers(1, length + 1, (batch, 1, 1, 1))
    names = {v.name for v in model.graph.inputs}
    if "seen" in names:
        feeds["seen"] = seen
    if "mask" in names:
        feeds["mask"] = np.where(seen, 0, -1e4).astype(np.float32)
    padded = np.where(seen, 0.0, -1e300) if len(names) > 3 else None
    return feeds, padded


@pytest.mark.parametrize("contrib", [False, True])
@pytest.mark.parametrize("name", CASES)
def test_attention_is_one_operator(name: str, contrib: bool) -> None:
    model = attention(name)
    result = applied(model, contrib=contrib)
    found = ops(result)
    assert found["Attention"] == 1
    assert not {"Softmax", "MatMul", "Transpose", "IsNaN"} & set(found)
    assert result.opset_imports[""] == 23
    causal = "causal" in name or name == "two masks"
    assert ("Trilu" in found) == (name == "two masks")  # the others need no mask
    for batch, length in ((BATCH, LENGTH), (1, 7), (2, 1)):
        feeds, mask = attention_feeds(model, batch, length)
        if causal:
            mask = np.triu(np.full((length, length), -1e300), 1) + (0 if mask is None else mask)
        wanted = reference(*(feeds[n] for n in ("q", "k", "v")), mask).astype(np.float32)
        assert difference(wanted, run(result, feeds)[0]) < ROUNDING


def test_multi_head_attention_of_onnxruntime() -> None:
    """Where the opset may not be raised, ONNX Runtime's own operator is left."""
    for name in ("plain", "padding mask", "causal", "two masks"):
        model = attention(name)
        result = applied(model, contrib=True, raise_opset=False)
        assert ops(result)["MultiHeadAttention"] == 1
        for batch, length in ((BATCH, LENGTH), (1, 7)):
            feeds, _ = attention_feeds(model, batch, length)
            assert difference(run(model, feeds)[0], run(result, feeds)[0]) < ROUNDING


def test_attention_without_detours() -> None:
    """Neither a newer opset nor an operator of one runtime: the plain form is left, for what is not plain."""
    for name in ("reshaped", "guarded"):
        model = attention(name)
        result = applied(model, raise_opset=False)
        assert result.opset_imports[""] == 21
        assert ops(result)["IsNaN"] == 0
        assert ops(result)["Reshape"] == 4
        feeds, _ = attention_feeds(model, BATCH, LENGTH)
        assert difference(run(model, feeds)[0], run(result, feeds)[0]) < ROUNDING
    with pytest.raises(Refused, match="no other form"):
        applied(attention("plain"), raise_opset=False)


def test_attention_on_heads_and_without() -> None:
    """q, k and v that come as heads (rotated, say), or as [batch * heads, length, width]."""
    heads = f"[batch, {HEADS}, length, {WIDTH}]"
    body = "kt = Transpose<perm = [0, 1, 3, 2]>(k) s = MatMul(q, kt) p = Softmax(s) y = MatMul(p, v)"
    model = model_of(f"(float{heads} q, float{heads} k, float{heads} v) => (float{heads} y)", body)
    flat = f"[rows, length, {WIDTH}]"
    body = """kt = Transpose<perm = [0, 2, 1]>(k) s0 = MatMul(q, kt) s = Add(s0, mask) p = Softmax(s)
              y = MatMul(p, v)"""
    signature = (
        f"(float{flat} q, float{flat} k, float{flat} v, float[length, length] mask) => (float{flat} y)"
    )
    for one, shape in (
        (model, (BATCH, HEADS, LENGTH, WIDTH)),
        (model_of(signature, body), (6, LENGTH, WIDTH)),
    ):
        result = applied(one)
        assert ops(result)["Attention"] == 1
        feeds = {n: w(*shape) for n in ("q", "k", "v")}
        mask = w(LENGTH, LENGTH)
        q, k, v = (feeds[n].astype(np.float64) for n in ("q", "k", "v"))
        scores = q @ np.swapaxes(k, -1, -2)
        if len(shape) == 3:
            feeds["mask"], scores = mask, scores + mask
        wanted = (softmax(scores) @ v).astype(np.float32)
        assert difference(wanted, run(result, feeds)[0]) < ROUNDING


@pytest.mark.parametrize(
    ("body", "reason"),
    [
        (PLAIN + "m = Where(seen, s, some) p = Softmax<axis = -1>(m)", "leaves them some weight"),
        (
            PLAIN + "a = Where(seen, zero, less) m = Add(s, a) p0 = Softmax<axis = -1>(m) odd = IsNaN(p0) "
            "p = Where(odd, zero, p0)",
            "guards against",
        ),
    ],
)
def test_attention_that_has_to_stay(body: str, reason: str) -> None:
    signature = f"({QKV}, bool[batch, 1, 1, length] seen) => (float[batch, length, {HIDDEN}] y)"
    constants = {"scale": SCALE, "some": f32(-1), "zero": f32(0), "less": f32(-np.inf)}
    model = model_of(signature, SPLIT + body + JOIN, **SIZES, **constants)
    ctx = context()
    with pytest.raises(Refused):
        Kernels(plan="everything").apply(model, ctx)
    assert reason in reasons(ctx.step)


def test_keys_spread_over_the_batch_stay() -> None:
    """MatMul broadcasts one set of keys over all batches; Attention would fail with more than one."""
    heads = f"[batch, {HEADS}, length, {WIDTH}]"
    one = heads.replace("batch", "1")
    body = "kt = Transpose<perm = [0, 1, 3, 2]>(k) s = MatMul(q, kt) p = Softmax(s) y = MatMul(p, v)"
    model = model_of(f"(float{heads} q, float{one} k, float{one} v) => (float{heads} y)", body)
    ctx = context()
    with pytest.raises(Refused):
        Kernels(plan="everything").apply(model, ctx)
    assert "different batches" in reasons(ctx.step)


def test_shown_weights_stay_in_place() -> None:
    """Weights that are an output, too, are computed beside the operator, if at all."""
    model = attention("plain")
    softmax_node = next(n for n in model.graph if n.op_type == "Softmax")
    model.graph.outputs.append(softmax_node.outputs[0])
    try:
        result = applied(model)
    except Refused:
        return
    feeds, _ = attention_feeds(model, BATCH, LENGTH)
    for wanted, got in zip(run(model, feeds), run(result, feeds), strict=True):
        assert difference(wanted, got) < ROUNDING


def test_twice_is_once() -> None:
    names: dict[str, Callable[[], ir.Model]] = {n: (lambda n=n: attention(n)) for n in CASES}
    for make in names.values():
        once = applied(make())
        with pytest.raises(Refused):
            Kernels(plan="everything").apply(clone(once), context())
