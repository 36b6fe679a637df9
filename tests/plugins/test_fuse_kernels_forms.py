"""The patterns of `fuse.kernels` other than attention, against float64 formulas."""

from __future__ import annotations

import numpy as np
import onnx_ir as ir
import pytest
from fuse_models import context, difference, f32, i64, model_of, ops, positive, run, w

from attar.errors import Refused
from attar.graph import clone
from attar_fuse import Kernels

# Sums of a few dozen products in float32: some roundings of the largest value.
ROUNDING = 40 * 2.0**-24


def applied(model: ir.Model, **options: object) -> ir.Model:
    result = clone(model)
    Kernels.from_dict({"plan": "everything", **options}).apply(result, context())
    return result


RMS_FORMS = {
    "reciprocal": "s = Pow(x, two) m = ReduceMean(s, axes) e = Add(m, eps) r = Sqrt(e) i = Reciprocal(r) "
    "n = Mul(x, i) y = Mul(gain, n)",
    "division": "s = Mul(x, x) m = ReduceMean(s, axes) e = Add(eps, m) r = Sqrt(e) n = Div(x, r) "
    "y = Mul(n, gain)",
    "power": "s = Mul(x, x) m = ReduceMean(s, axes) e = Add(eps, m) i = Pow(e, half) n = Mul(i, x) "
    "y = Mul(n, gain)",
}


@pytest.mark.parametrize("form", RMS_FORMS)
@pytest.mark.parametrize("gain", [(8,), (1, 1, 8), ()])
def test_rms_norm(form: str, gain: tuple[int, ...]) -> None:
    scale = positive(*gain)
    constants = {"two": f32(2), "axes": i64(-1), "eps": f32(1e-3), "half": f32(-0.5), "gain": scale}
    model = model_of("(float[b, s, 8] x) => (float[b, s, 8] y)", RMS_FORMS[form], **constants)
    result = applied(model)
    assert ops(result) == {"RMSNormalization": 1}
    x = w(3, 5, 8)
    wide = x.astype(np.float64)
    wanted = wide / np.sqrt((wide**2).mean(-1, keepdims=True) + 1e-3) * scale
    assert difference(wanted.astype(np.float32), run(result, {"x": x})[0]) < ROUNDING


@pytest.mark.parametrize("body", ["y = Mish(x)", "s = Softplus(x) t = Tanh(s) y = Mul(t, x)"])
def test_mish_everywhere(body: str) -> None:
    model = model_of("(float[n] x) => (float[n] y)", body)
    result = applied(model)
    assert not {"Mish", "Softplus", "Tanh"} & set(ops(result))
    x = np.concatenate([np.linspace(-100, 100, 4001), [-1e30, 1e30, 0.0]]).astype(np.float32)
    wide = x.astype(np.float64)
    wanted = wide * np.tanh(np.logaddexp(0, wide))
    (got,) = run(result, {"x": x})
    # Each element by itself: some roundings, and what float32 cannot hold.
    assert (np.abs(got - wanted) <= 12 * 2.0**-24 * np.abs(wanted) + 1e-37).all()


def test_sum_and_norm_apart() -> None:
    for more, outputs in (("", 1), ("z = Neg(t)", 2)):  # the sum read by the norm alone, and elsewhere too
        body = f"t = Add(a, b) y = LayerNormalization<axis = -1, epsilon = 0.01>(t, g, c) {more}"
        shown = ", float[n, 8] z" if more else ""
        model = model_of(f"(float[n, 8] a, float[n, 8] b) => (float[n, 8] y{shown})", body, g=w(8), c=w(8))
        result = applied(model)
        assert ops(result)["Sum"] == 1
        assert ops(result)["Add"] == 0
        feeds = {"a": w(4, 8), "b": w(4, 8)}
        pairs = list(zip(run(model, feeds), run(result, feeds), strict=True))
        assert len(pairs) == outputs
        assert all(np.array_equal(a, b) for a, b in pairs)


def test_linear_and_convolution() -> None:
    model = model_of(
        "(float[b, s, 8] x) => (float[b, s, 6] y)", "m = MatMul(x, k) y = Add(c, m)", k=w(8, 6), c=w(6)
    )
    result = applied(model, patterns=("linear",))
    assert ops(result)["Gemm"] == 1
    x = w(2, 3, 8)
    assert difference(run(model, {"x": x})[0], run(result, {"x": x})[0]) < ROUNDING
    for after, constants in (("Relu(c)", {}), ("Clip(c, l, h)", {"l": f32(-1), "h": f32(1)})):
        image = model_of(
            "(float[b, 3, 8, 8] x) => (float[b, 4, 8, 8] y)",
            f"c = Conv<pads = [1, 1, 1, 1]>(x, k, a) y = {after}",
            k=w(4, 3, 3, 3), a=w(4), **constants,
        )  # fmt: skip
        one = applied(image, contrib=True, patterns=("conv",))
        assert ops(one) == {"FusedConv": 1}
        x = w(2, 3, 8, 8)
        assert difference(run(image, {"x": x})[0], run(one, {"x": x})[0]) < ROUNDING


def test_rules_of_onnxscript() -> None:
    pytest.importorskip("onnxscript")
    model = model_of("(float[b, s, 8] x) => (float[b, s, 8] y)", "a = Add(x, c) y = Gelu(a)", c=w(8))
    result = applied(model, contrib=True, patterns=("contrib",))
    assert ops(result) == {"BiasGelu": 1}
    x = w(2, 3, 8)
    assert difference(run(model, {"x": x})[0], run(result, {"x": x})[0]) < ROUNDING
    with pytest.raises(Refused):
        applied(model)  # not without being asked
