"""Composed activations and normalisations recognised as one operator."""

from __future__ import annotations

import math

import numpy as np
import pytest
from fuse_models import f32, fused, i64, model_of, ops, w

SIGNATURE = "(float[N,4,6] x) => (float[N,4,6] y)"


def constants_in(body: str, **every: np.ndarray) -> dict[str, np.ndarray]:
    words = set(body.replace("(", " ").replace(")", " ").replace(",", " ").split())
    return {n: a for n, a in every.items() if n in words}


CLIPS = {"zero": f32(0), "one": f32(1), "six": f32(6), "five": f32(5), "neg": f32(-1), "nine": f32(9)}


@pytest.mark.parametrize(
    ("body", "left"),
    [
        ("a = Relu(x) y = Relu(a)", {"Relu": 1}),
        ("a = Relu(x) y = Clip(a, neg, six)", {"Clip": 1}),
        ("a = Clip(x, neg, five) y = Clip(a, zero, six)", {"Clip": 1}),
        ("a = Max(x, zero) y = Min(a, six)", {"Clip": 1}),
        ("a = Min(six, x) y = Max(zero, a)", {"Clip": 1}),
        ("y = Max(x, zero)", {"Relu": 1}),
        ("y = Clip(x, zero)", {"Relu": 1}),
        ("a = Clip(x, , five) y = Relu(a)", {"Clip": 1}),
        ("a = Clip(x, zero, one) y = Clip(a, five, nine)", {"Clip": 2}),  # nothing in common: a constant
        ("a = Relu(x) b = Clip(a, zero, six) y = Add(a, b)", {"Relu": 1, "Clip": 1, "Add": 1}),
        ("a = Clip(x, six, zero) y = Relu(a)", {"Clip": 1, "Relu": 1}),  # min above max: everything is max
    ],
)
def test_clips(body: str, left: dict[str, int]) -> None:
    result, _ = fused(model_of(SIGNATURE, body, **constants_in(body, **CLIPS)))
    assert ops(result) == left


def test_clip_keeps_its_bounds() -> None:
    model = model_of(
        SIGNATURE,
        "a = Clip(x, neg, five) y = Clip(a, zero, six)",
        **{k: CLIPS[k] for k in ("neg", "five", "zero", "six")},
    )
    clip = next(iter(fused(model)[0].graph))
    assert [float(v.const_value.numpy()) for v in clip.inputs[1:]] == [0.0, 5.0]


GELU = {
    "half": f32(0.5), "one": f32(1), "root": f32(math.sqrt(2)), "inv": f32(math.sqrt(0.5)), "three": f32(3),
    "cube": f32(0.044715), "c": f32(math.sqrt(2 / math.pi)), "two": f32(2), "wrong": f32(0.6),
}  # fmt: skip


@pytest.mark.parametrize(
    ("body", "found"),
    [
        ("u = Div(x, root) e = Erf(u) a = Add(e, one) h = Mul(x, half) y = Mul(h, a)", True),
        ("u = Mul(x, inv) e = Erf(u) a = Add(one, e) h = Mul(a, half) y = Mul(x, h)", True),
        ("u = Div(x, root) e = Erf(u) a = Add(e, one) h = Mul(x, a) y = Mul(h, half)", True),
        ("u = Div(x, root) e = Erf(u) a = Add(e, one) h = Mul(x, a) y = Div(h, two)", True),
        ("u = Mul(x, wrong) e = Erf(u) a = Add(e, one) h = Mul(x, half) y = Mul(h, a)", False),
        ("n = Neg(x) u = Div(n, root) e = Erf(u) a = Add(e, one) h = Mul(x, half) y = Mul(h, a)", False),
        ("p = Pow(x, three) q = Mul(p, cube) s = Add(x, q) t = Mul(s, c) h = Tanh(t) a = Add(h, one) "
         "g = Mul(x, half) y = Mul(g, a)", True),
        ("p = Mul(x, x) q = Mul(p, x) r = Mul(cube, q) s = Add(r, x) t = Mul(c, s) h = Tanh(t) "
         "a = Add(one, h) g = Mul(a, x) y = Mul(half, g)", True),
        ("p = Mul(x, x) q = Mul(p, cube) r = Add(q, one) v = Mul(x, c) t = Mul(v, r) h = Tanh(t) "
         "a = Add(h, one) g = Mul(x, half) y = Mul(g, a)", True),
        ("p = Pow(x, two) q = Mul(p, cube) s = Add(x, q) t = Mul(s, c) h = Tanh(t) a = Add(h, one) "
         "g = Mul(x, half) y = Mul(g, a)", False),
    ],
)  # fmt: skip
def test_gelu(body: str, found: bool) -> None:
    result, _ = fused(model_of(SIGNATURE, body, **constants_in(body, **GELU)), tolerance=2e-6)
    assert (ops(result) == {"Gelu": 1}) is found


def test_gelu_needs_opset_20() -> None:
    body = "u = Div(x, root) e = Erf(u) a = Add(e, one) h = Mul(x, half) y = Mul(h, a)"
    result, _ = fused(model_of(SIGNATURE, body, opset=19, **constants_in(body, **GELU)))
    assert ops(result)["Gelu"] == 0


HARD = {"three": f32(3), "zero": f32(0), "six": f32(6), "sixth": f32(1 / 6), "five": f32(5)}


@pytest.mark.parametrize(
    ("body", "left"),
    [
        ("a = Add(x, three) c = Clip(a, zero, six) y = Div(c, six)", {"HardSigmoid": 1}),
        ("a = Add(three, x) c = Clip(a, zero, six) y = Mul(c, sixth)", {"HardSigmoid": 1}),
        ("a = Add(x, three) c = Clip(a, zero, six) d = Div(c, six) y = Mul(x, d)", {"HardSwish": 1}),
        ("a = Add(x, three) c = Clip(a, zero, six) d = Mul(c, x) y = Div(d, six)", {"HardSwish": 1}),
        ("s = HardSigmoid<alpha=0.16666667, beta=0.5>(x) y = Mul(s, x)", {"HardSwish": 1}),
        ("s = HardSigmoid<alpha=0.2, beta=0.5>(x) y = Mul(s, x)", {"HardSigmoid": 1, "Mul": 1}),
        ("a = Add(x, three) c = Clip(a, zero, five) y = Div(c, six)", {"Add": 1, "Clip": 1, "Div": 1}),
        ("s = Sigmoid(x) y = Mul(x, s)", {"Sigmoid": 1, "Mul": 1}),
    ],
)
def test_hard_activations(body: str, left: dict[str, int]) -> None:
    result, _ = fused(model_of(SIGNATURE, body, **constants_in(body, **HARD)), tolerance=2e-6)
    assert ops(result) == left


NORM = {
    "axis": i64(-1), "both": i64(1, 2), "plane": i64(2, 3), "first": i64(1), "two": f32(2), "eps": f32(1e-5),
    "root": f32(0.5),    "minus": f32(-0.5), "one": f32(1), "gamma": w(6), "beta": w(6), "wide": w(4, 6),
}  # fmt: skip


@pytest.mark.parametrize(
    ("body", "left"),
    [
        ("m = ReduceMean(x, axis) d = Sub(x, m) p = Pow(d, two) v = ReduceMean(p, axis) e = Add(v, eps) "
         "s = Sqrt(e) n = Div(d, s) g = Mul(n, gamma) y = Add(g, beta)", {"LayerNormalization": 1}),
        ("m = ReduceMean(x, axis) d = Sub(x, m) d2 = Sub(x, m) p = Mul(d2, d2) v = ReduceMean(p, axis) "
         "e = Add(eps, v) s = Sqrt(e) r = Reciprocal(s) n = Mul(d, r) y = Mul(gamma, n)",
         {"LayerNormalization": 1}),
        ("m = ReduceMean(x, both) d = Sub(x, m) p = Pow(d, two) v = ReduceMean(p, both) e = Add(v, eps) "
         "r = Pow(e, minus) n = Mul(d, r) y = Mul(n, wide)", {"LayerNormalization": 1}),
        ("m = ReduceMean(x, axis) d = Sub(x, m) p = Pow(d, two) v = ReduceMean(p, axis) e = Add(v, eps) "
         "s = Pow(e, root) y = Div(d, s)", {"LayerNormalization": 1}),
        ("a = Unsqueeze(x, first) m = ReduceMean(a, plane) d = Sub(a, m) p = Mul(d, d) "
         "v = ReduceMean(p, plane) e = Add(v, eps) s = Sqrt(e) n = Div(d, s) y = Squeeze(n, first)",
         {"Unsqueeze": 1, "LayerNormalization": 1, "Squeeze": 1}),
        ("m = ReduceMean(x, first) d = Sub(x, m) p = Pow(d, two) v = ReduceMean(p, first) e = Add(v, eps) "
         "s = Sqrt(e) y = Div(d, s)",
         {"ReduceMean": 2, "Sub": 1, "Pow": 1, "Add": 1, "Sqrt": 1, "Div": 1}),
        ("m = ReduceMean(x, axis) d = Sub(x, m) p = Pow(x, two) v = ReduceMean(p, axis) e = Add(v, eps) "
         "s = Sqrt(e) y = Div(d, s)",
         {"ReduceMean": 2, "Sub": 1, "Pow": 1, "Add": 1, "Sqrt": 1, "Div": 1}),
    ],
)  # fmt: skip
def test_layer_norm(body: str, left: dict[str, int]) -> None:
    result, _ = fused(model_of(SIGNATURE, body, **constants_in(body, **NORM)), tolerance=1e-5)
    assert ops(result) == left


def test_torch_layers_come_out_whole() -> None:
    """MobileNetV3's activations and a transformer block, as torch writes them with its own optimizer off."""
    torch = pytest.importorskip("torch")
    from attar.graph import normalize

    class Net(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.conv = torch.nn.Conv2d(3, 8, 3, bias=False)
            self.bn = torch.nn.BatchNorm2d(8)
            self.norm = torch.nn.LayerNorm(8)
            self.one, self.two = torch.nn.Linear(8, 16), torch.nn.Linear(16, 8)

        def forward(self, x):  # type: ignore[no-untyped-def]
            x = torch.nn.functional.pad(x, (0, 1, 0, 1))
            x = torch.nn.functional.hardswish(self.bn(self.conv(x)))
            x = self.norm(x.flatten(2).transpose(1, 2))
            return self.two(torch.nn.functional.gelu(self.one(x)))

    net = Net().eval()
    with torch.no_grad():
        for parameter in (net.bn.weight, net.bn.bias, net.bn.running_mean):
            parameter.copy_(torch.randn(8))
    program = torch.onnx.export(
        net, (torch.randn(2, 3, 9, 9),), dynamo=True, external_data=False, verbose=False, optimize=False,
        dynamic_shapes=({0: "batch"},), opset_version=21,
    )  # fmt: skip
    model = program.model
    normalize(model)
    assert ops(model)["BatchNormalization"] == 1
    result, _ = fused(model)
    found = ops(result)
    assert found["BatchNormalization"] == found["Pad"] == found["Div"] == found["Erf"] == 0
    assert found["Conv"] == found["HardSwish"] == found["Gelu"] == found["LayerNormalization"] == 1
    assert found["MatMul"] + found["Gemm"] == 2
