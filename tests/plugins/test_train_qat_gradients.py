"""Fake quantization: forward against ONNX bit for bit, gradients against the papers' formulas in float64."""

from __future__ import annotations

from typing import Any

import ml_dtypes
import numpy as np
import onnx
import onnx.reference
import onnxruntime as ort
import pytest
from onnx import TensorProto, helper, numpy_helper

torch = pytest.importorskip("torch")
from attar_train.fake_quantize import fake_quantize, masked, scored, shared  # noqa: E402

Array = np.ndarray[Any, Any]
TYPES = {
    "int8": (TensorProto.INT8, -128, 127, np.int8),
    "uint8": (TensorProto.UINT8, 0, 255, np.uint8),
    "int16": (TensorProto.INT16, -32768, 32767, np.int16),
    "uint16": (TensorProto.UINT16, 0, 65535, np.uint16),
    "int4": (TensorProto.INT4, -8, 7, ml_dtypes.int4),
    "uint4": (TensorProto.UINT4, 0, 15, ml_dtypes.uint4),
}


def pair(  # noqa: PLR0917
    x: Array, scale: Array, zero: Array, kind: str, axis: int, block: int
) -> onnx.ModelProto:
    """QuantizeLinear and DequantizeLinear of x."""
    options: dict[str, int] = {"axis": axis} if scale.ndim else {}
    if block:
        options["block_size"] = block
    code = TYPES[kind][0]
    stored = helper.make_tensor("z", code, zero.shape, zero.reshape(-1).astype(np.int32).tolist())
    nodes = [
        helper.make_node("QuantizeLinear", ["x", "s", "z"], ["q"], **options),
        helper.make_node("DequantizeLinear", ["q", "s", "z"], ["y"], **options),
    ]
    graph = helper.make_graph(
        nodes,
        "pair",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, x.shape)],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, x.shape)],
        [numpy_helper.from_array(scale, "s"), stored],
    )
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 21)], ir_version=10)


CASES = [
    (kind, axis, block, zeros)
    for kind in TYPES
    for axis, block in ((None, 0), (0, 0), (1, 0), (1, 4))
    for zeros in ("middle", "odd")
]


@pytest.mark.parametrize(("kind", "axis", "block", "zeros"), CASES)
def test_the_forward_is_onnxs_to_the_bit(kind: str, axis: int | None, block: int, zeros: str) -> None:
    _, qmin, qmax, _ = TYPES[kind]
    rng = np.random.default_rng(0)
    x = (rng.standard_normal((6, 10, 5)) * 3).astype(np.float32)
    shape = () if axis is None else (x.shape[axis],) if not block else (6, 3, 5)
    scale = np.asarray(rng.uniform(1, 9, shape) / (qmax - qmin), np.float32)
    scale = np.where(rng.random(shape) < 0.3, np.float32(2.0**-4), scale).astype(np.float32)
    x[:, ::2] = np.round(x[:, ::2] * 32) / 32  # halves of 2^-4: ties
    middle = (qmin + qmax + 1) // 2
    zero = np.full(shape, middle) if zeros == "middle" else rng.integers(qmin, qmax + 1, shape)
    proto = pair(x, scale, np.asarray(zero), kind, axis or 0, block)
    made = fake_quantize(
        torch.from_numpy(x), torch.from_numpy(scale), torch.from_numpy(np.asarray(zero)),
        qmin=qmin, qmax=qmax, axis=axis or 0, block=block,
    )  # fmt: skip
    session = ort.InferenceSession(proto.SerializeToString(), providers=["CPUExecutionProvider"])
    np.testing.assert_array_equal(made.numpy(), session.run(None, {"x": x})[0])
    np.testing.assert_array_equal(
        made.numpy(), onnx.reference.ReferenceEvaluator(proto).run(None, {"x": x})[0]
    )


def test_halves_go_to_even_and_the_ends_saturate() -> None:
    x = torch.tensor([0.5, 1.5, 2.5, -0.5, -1.5, 1e9, -1e9, 126.5, 127.5])
    made = fake_quantize(x, torch.tensor(1.0), 0, qmin=-127, qmax=127)
    assert made.tolist() == [0, 2, 2, 0, -2, 127, -127, 126, 127]


def formula(  # noqa: PLR0917
    x: Array, g: Array, s: Array, z: Array, qmin: int, qmax: int
) -> tuple[Array, Array, Array]:
    """dL/dx, and dL/ds and dL/dz by element, as the papers have them, float64, dL/dy = g."""
    v, low, high = x / s, qmin - z, qmax - z
    inside = (v > low) & (v < high)
    by_scale = np.where(inside, np.round(v) - v, np.where(v <= low, low, high))  # Esser et al., equation 3
    return g * inside, g * by_scale, np.where(inside, 0.0, -s * g)


def data(seed: int, *shape: int) -> tuple[Array, Array]:
    rng = np.random.default_rng(seed)
    return rng.standard_normal(shape).astype(np.float32), rng.standard_normal(shape).astype(np.float32)


@pytest.mark.parametrize(
    ("qmin", "qmax", "zero", "axis"),
    [(-7, 7, 0, None), (-8, 7, 0, 0), (0, 15, 0, None), (0, 15, 6, 1), (-128, 127, -3, 0)],
)
def test_lsq(qmin: int, qmax: int, zero: int, axis: int | None) -> None:
    x, g = data(1, 8, 6, 5)
    shape = () if axis is None else (x.shape[axis],)
    scale = np.asarray(np.random.default_rng(2).uniform(1, 4, shape) / (qmax - qmin), np.float32)
    tensor = torch.from_numpy(x).requires_grad_()
    gain = torch.ones(shape, requires_grad=True)
    made = fake_quantize(
        tensor, torch.from_numpy(scale), zero, gain, qmin=qmin, qmax=qmax, axis=axis or 0, per_sample=False
    )
    made.backward(torch.from_numpy(g))
    wide = scale.astype(np.float64).reshape([-1 if a == axis else 1 for a in range(3)] if shape else ())
    dx, ds, _ = formula(x.astype(np.float64), g, wide, np.float64(zero), qmin, qmax)
    others = tuple(a for a in range(3) if a != axis)
    count = x.size // max(1, scale.size)
    weight = 1 / np.sqrt(count * max(qmax - zero, (qmax - qmin) // 2))
    assert tensor.grad is not None
    np.testing.assert_array_equal(tensor.grad.numpy(), dx.astype(np.float32))
    # A step of gradient descent on the gain moves the scale by g dL/ds.
    wanted = weight * ds.sum(axis=others)
    np.testing.assert_allclose(
        gain.grad.numpy() * scale, wanted, rtol=0, atol=count * 2.0**-24 * np.abs(wanted).max()
    )


def test_lsq_counts_the_features_of_one_sample() -> None:
    x, g = data(3, 16, 10)
    grads = []
    for per_sample in (True, False):
        gain = torch.ones((), requires_grad=True)
        made = fake_quantize(
            torch.from_numpy(x), torch.tensor(0.1), 0, gain, qmin=0, qmax=15, per_sample=per_sample
        )
        made.backward(torch.from_numpy(g))
        grads.append(float(gain.grad))
    assert grads[0] == pytest.approx(grads[1] * np.sqrt(16), rel=1e-5)


def test_lsq_learns_offsets() -> None:
    x, g = data(4, 9, 7)
    scale, zero, qmin, qmax = np.float32(0.11), 5, 0, 15
    gain, shift = torch.ones((), requires_grad=True), torch.full((), 1.2 / 15, requires_grad=True)
    made = fake_quantize(
        torch.from_numpy(x), torch.tensor(scale), zero, gain, shift, qmin=qmin, qmax=qmax, per_sample=False
    )
    wanted = scale * (np.clip(np.round(x / scale) + 6, 0, 15) - 6).astype(np.float32)
    np.testing.assert_array_equal(made.detach().numpy(), wanted)
    made.backward(torch.from_numpy(g))
    _, ds, dz = formula(x.astype(np.float64), g, np.float64(scale), np.float64(6), qmin, qmax)
    assert float(gain.grad * scale) == pytest.approx(ds.sum() / np.sqrt(63 * (15 - 5)), rel=1e-4)
    # beta = -s z (LSQ+): d beta = -s (qmax - qmin) d shift is to be g dL/dbeta = -g (dL/dz) / s.
    moved = float(shift.grad) * -scale * 15
    assert moved == pytest.approx(-dz.sum() / scale / np.sqrt(63 * (15 - 5)), rel=1e-4)


def test_pact() -> None:
    x, g = data(5, 12, 10)
    scale, levels = np.float32(0.08), 15
    tensor, gain = torch.from_numpy(x).requires_grad_(), torch.ones((), requires_grad=True)
    made = fake_quantize(tensor, torch.tensor(scale), 0, gain, qmin=0, qmax=levels, method="pact")
    alpha = float(scale) * levels
    clipped = 0.5 * (np.abs(x) - np.abs(x - alpha) + alpha)  # Choi et al., equations 1 and 2
    wanted = np.round(clipped * levels / alpha) * alpha / levels
    np.testing.assert_allclose(made.detach().numpy(), wanted, atol=1e-6)
    made.backward(torch.from_numpy(g))
    by_alpha = float(g[x >= alpha].astype(np.float64).sum())  # equation 3
    assert float(gain.grad) * alpha == pytest.approx(by_alpha, rel=1e-4)
    assert tensor.grad is not None
    np.testing.assert_array_equal(tensor.grad.numpy(), np.where((x >= 0) & (x < alpha), g, 0))


def test_straight_through_keeps_the_scale_and_feeds_what_lies_on_the_ends() -> None:
    x = torch.tensor([-1.5, -1.0, 0.3, 1.0, 1.5], requires_grad=True)
    made = fake_quantize(x, torch.tensor(0.125), 0, qmin=-8, qmax=8, method="ste")
    made.sum().backward()
    assert x.grad is not None
    assert x.grad.tolist() == [0, 1, 1, 1, 0]


def test_codes_on_the_ends_are_fed() -> None:
    scales = torch.from_numpy(np.random.default_rng(0).uniform(1e-4, 1, 1000).astype(np.float32))
    for qmin, qmax in ((-127, 127), (-32768, 32767)):
        for code in (qmin, qmax):
            x = (scales * code).requires_grad_()
            fake_quantize(x, scales, 0, qmin=qmin, qmax=qmax).sum().backward()
            assert x.grad is not None
            assert (x.grad == 1).all()


def test_blocks_learn_their_own_scales() -> None:
    x, g = data(6, 4, 10)
    scale = np.random.default_rng(0).uniform(0.1, 0.3, (4, 3)).astype(np.float32)
    gain = torch.ones(4, 3, requires_grad=True)
    made = fake_quantize(
        torch.from_numpy(x),
        torch.from_numpy(scale),
        0,
        gain,
        qmin=-7,
        qmax=7,
        axis=1,
        block=4,
        per_sample=False,
    )
    made.backward(torch.from_numpy(g))
    wide = np.repeat(scale.astype(np.float64), 4, axis=1)[:, :10]
    _, ds, _ = formula(x.astype(np.float64), g, wide, np.float64(0), -7, 7)
    sums = np.add.reduceat(ds, [0, 4, 8], axis=1)
    wanted = sums / np.sqrt(40 / 12 * 7)
    np.testing.assert_allclose(
        gain.grad.numpy() * scale, wanted, rtol=0, atol=x.size * 2.0**-24 * np.abs(wanted).max()
    )


def test_a_scale_stays_within_bounds_and_comes_back() -> None:
    gain = torch.tensor(-3.0, requires_grad=True)
    made = fake_quantize(torch.tensor([0.3]), torch.tensor(0.1), 0, gain, qmin=-7, qmax=7)
    assert made.item() == pytest.approx(0.0125 * 7)
    made.sum().backward()
    assert float(gain.grad) != 0


def test_half_precision_around_it_changes_nothing() -> None:
    x, _ = data(7, 8, 8)
    plain = fake_quantize(torch.from_numpy(x), torch.tensor(0.05), 3, qmin=0, qmax=255)
    with torch.autocast("cpu", torch.bfloat16):
        inside = fake_quantize(torch.from_numpy(x), torch.tensor(0.05), 3, qmin=0, qmax=255)
    assert torch.equal(plain, inside)


def test_masked_weights_get_nothing_and_scores_get_movement() -> None:
    x, g = data(8, 5, 4)
    mask = torch.from_numpy((np.random.default_rng(1).random((5, 4)) < 0.5).astype(np.uint8))
    weight = torch.from_numpy(x).requires_grad_()
    scores = torch.zeros(5, 4)
    for made in (masked(weight, mask), scored(weight, mask, scores)):
        weight.grad = None
        np.testing.assert_array_equal(made.detach().numpy(), x * mask.numpy())
        made.backward(torch.from_numpy(g))
        assert weight.grad is not None
        np.testing.assert_array_equal(weight.grad.numpy(), g * mask.numpy())
    np.testing.assert_array_equal(scores.numpy(), -g * x)  # Sanh et al., section 3


@pytest.mark.parametrize("axis", [None, 0, 1])
def test_shared_numbers_move_by_the_mean_of_their_users(axis: int | None) -> None:
    rng = np.random.default_rng(2)
    indices = rng.integers(0, 4, (3, 5))
    book = rng.standard_normal((4,) if axis is None else (indices.shape[axis], 4)).astype(np.float32)
    g = rng.standard_normal(indices.shape).astype(np.float32)
    rows = (
        None
        if axis is None
        else np.arange(indices.shape[axis]).reshape([-1 if a == axis else 1 for a in (0, 1)])
    )
    wanted = book[indices] if rows is None else book[rows, indices]
    counts, sums = np.zeros_like(book), np.zeros_like(book)
    place = indices if rows is None else (np.broadcast_to(rows, indices.shape), indices)
    np.add.at(counts, place, 1)
    np.add.at(sums, place, g)
    tensor = torch.from_numpy(book).requires_grad_()
    made = shared(tensor, torch.from_numpy(indices.astype(np.uint8)), torch.from_numpy(counts), axis or 0)
    np.testing.assert_array_equal(made.detach().numpy(), wanted)
    made.backward(torch.from_numpy(g))
    assert tensor.grad is not None
    np.testing.assert_allclose(tensor.grad.numpy(), sums / np.maximum(counts, 1), rtol=1e-6)
