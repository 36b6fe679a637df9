"""Multiply-accumulates against counting loops and against torch's own counter."""

from __future__ import annotations

import itertools

import numpy as np
import onnx
import onnx_ir as ir
import onnxruntime as ort
import pytest
from onnx import TensorProto as T
from onnx import helper as oh
from onnx import numpy_helper as nh

from attar.ops import BUILTIN, model_macs


def model_of(
    op: str,
    inputs: dict[str, tuple[int | str, ...]],
    weights: dict[str, np.ndarray],
    outputs: int = 1,
    **attrs: object,
) -> ir.Model:
    outs = [f"y{k}" for k in range(outputs)]
    graph = oh.make_graph(
        [oh.make_node(op, [*inputs, *weights], outs, **attrs)],
        "g",
        [oh.make_tensor_value_info(n, T.FLOAT, s) for n, s in inputs.items()],
        [oh.make_empty_tensor_value_info(o) for o in outs],
        [nh.from_array(w, n) for n, w in weights.items()],
    )
    model = oh.make_model(graph, opset_imports=[oh.make_opsetid("", 21)], ir_version=10)
    return ir.from_proto(onnx.shape_inference.infer_shapes(model, strict_mode=True))


def count_conv(x: np.ndarray, w: np.ndarray, stride: int, pad: int, groups: int) -> tuple[np.ndarray, int]:
    """Convolution by definition; returns the result and how often two numbers were multiplied and added."""
    x = np.pad(x, [(0, 0), (0, 0), (pad, pad), (pad, pad)])
    n, _, h, wide = x.shape
    m, inside, kh, kw = w.shape
    out = np.zeros((n, m, (h - kh) // stride + 1, (wide - kw) // stride + 1))
    count = 0
    for b, o, r, s in itertools.product(*map(range, out.shape)):
        group = o // (m // groups)
        for ci, i, j in itertools.product(range(inside), range(kh), range(kw)):
            out[b, o, r, s] += x[b, group * inside + ci, r * stride + i, s * stride + j] * w[o, ci, i, j]
            count += 1
    return out, count


@pytest.mark.parametrize(("groups", "stride", "pad"), [(1, 1, 1), (1, 2, 0), (2, 2, 1), (4, 1, 1)])
def test_conv_by_definition(groups: int, stride: int, pad: int) -> None:
    rng = np.random.default_rng(0)
    x = rng.standard_normal((2, 4, 6, 5)).astype(np.float32)
    w = rng.standard_normal((8, 4 // groups, 3, 3)).astype(np.float32)
    model = model_of("Conv", {"x": x.shape}, {"w": w}, group=groups, strides=[stride] * 2, pads=[pad] * 4)
    result, count = count_conv(x, w, stride, pad, groups)
    session = ort.InferenceSession(ir.to_proto(model).SerializeToString(), providers=["CPUExecutionProvider"])
    np.testing.assert_allclose(
        session.run(None, {"x": x})[0], result, rtol=0, atol=5e-7 * np.abs(result).max()
    )
    assert model_macs(model) == count


def test_conv_transpose_scatters_each_input() -> None:
    x, w = (2, 4, 5, 5), np.zeros((4, 3, 2, 2), np.float32)
    model = model_of("ConvTranspose", {"x": x}, {"w": w}, group=2, strides=[2, 2])
    count = sum(1 for _ in itertools.product(*map(range, x), range(3), range(2), range(2)))
    assert model_macs(model) == count


def test_gemm_matmul_einsum() -> None:
    w = np.zeros((4, 5), np.float32)
    assert model_macs(model_of("Gemm", {"x": (4, 3)}, {"w": w}, transA=1)) == 3 * 4 * 5
    assert model_macs(model_of("MatMul", {"x": (2, 6, 3, 4)}, {"w": w})) == 2 * 6 * 3 * 4 * 5
    model = model_of("Einsum", {"x": (2, 3, 4)}, {"w": w}, equation="bij,jk->bik")
    assert model_macs(model) == 2 * 3 * 4 * 5


def test_symbolic_batch_counts_once() -> None:
    assert model_macs(model_of("MatMul", {"x": ("batch", 3, 4)}, {"w": np.zeros((4, 5), np.float32)})) == 60


@pytest.mark.parametrize(("op", "gates"), [("RNN", 1), ("GRU", 3), ("LSTM", 4)])
def test_recurrent(op: str, gates: int) -> None:
    seq, batch, inside, hidden = 7, 2, 3, 5
    w = np.zeros((1, gates * hidden, inside), np.float32)
    r = np.zeros((1, gates * hidden, hidden), np.float32)
    model = model_of(op, {"x": (seq, batch, inside)}, {"w": w, "r": r}, hidden_size=hidden)
    count = 0
    for _ in itertools.product(range(seq), range(batch), range(gates), range(hidden)):
        count += inside + hidden  # one row of W and one of R a unit, a gate, a step
    assert model_macs(model) == count


def test_unknown_rank_is_unknown() -> None:
    node = ir.node("Conv", [ir.val("x"), ir.val("w")])
    assert BUILTIN["Conv"].macs(node) is None
    assert BUILTIN["Relu"].macs(ir.node("Relu", [ir.val("x")])) == 0


def test_subgraphs_count_the_dearer_branch_and_every_trip() -> None:
    w = np.zeros((4, 4), np.float32)
    value = oh.make_tensor_value_info
    once = oh.make_node("MatMul", ["x", "w"], ["a"])
    twice = [once, oh.make_node("MatMul", ["a", "w"], ["b"])]
    cheap = oh.make_graph(
        [oh.make_node("MatMul", ["x", "w"], ["c"])], "cheap", [], [value("c", T.FLOAT, (2, 4))]
    )
    dear = oh.make_graph(twice, "dear", [], [value("b", T.FLOAT, (2, 4))])
    body = oh.make_graph(
        [
            oh.make_node("MatMul", ["s", "w"], ["t"]),
            oh.make_node("Identity", ["go"], ["on"]),
        ],
        "body",
        [value("k", T.INT64, ()), value("go", T.BOOL, ()), value("s", T.FLOAT, (2, 4))],
        [value("on", T.BOOL, ()), value("t", T.FLOAT, (2, 4))],
    )
    graph = oh.make_graph(
        [
            oh.make_node("If", ["p"], ["y"], then_branch=cheap, else_branch=dear),
            oh.make_node("Loop", ["n", "", "y"], ["z"], body=body),
        ],
        "g",
        [value("x", T.FLOAT, (2, 4)), value("p", T.BOOL, ())],
        [value("z", T.FLOAT, (2, 4))],
        [nh.from_array(w, "w"), nh.from_array(np.array(3, np.int64), "n")],
    )
    proto = oh.make_model(graph, opset_imports=[oh.make_opsetid("", 21)], ir_version=10)
    model = ir.from_proto(onnx.shape_inference.infer_shapes(proto, strict_mode=True))
    assert model_macs(model) == 2 * 32 + 3 * 32


def test_against_torch_flop_counter() -> None:
    torch = pytest.importorskip("torch")
    from torch.utils.flop_counter import FlopCounterMode

    class Net(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.stem = torch.nn.Conv2d(3, 16, 7, 2, 3)
            self.depthwise = torch.nn.Conv2d(16, 16, 3, 1, 1, groups=16)
            self.point = torch.nn.Conv2d(16, 32, 1, bias=False)
            self.up = torch.nn.ConvTranspose2d(32, 8, 2, 2)
            self.head = torch.nn.Linear(8, 10)

        def forward(self, x):  # type: ignore[no-untyped-def]
            x = self.up(self.point(self.depthwise(self.stem(x)).relu()))
            return self.head(x.mean((2, 3)))

    net, x = Net().eval(), torch.randn(2, 3, 20, 28)
    with torch.no_grad(), FlopCounterMode(display=False) as counter:
        net(x)
    model = torch.onnx.export(net, (x,), dynamo=True, external_data=False, verbose=False).model
    assert 2 * model_macs(model) == counter.get_total_flops()
