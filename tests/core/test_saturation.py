"""Sums that saturate: equal to integer arithmetic and to ONNX Runtime on a processor without VNNI."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnx_ir as ir
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import attar
from attar import graph
from attar.diagnosis import emulate, predict
from attar.diagnosis.saturating import Lost, exact_sums, pair_bound, saturating_sums
from attar.runtime import OnnxRuntime
from attar.testing.build import Net

Array = np.ndarray[Any, np.dtype[Any]]
RUNTIME = OnnxRuntime()
# Models, inputs and outputs of ONNX Runtime 1.32 on a processor with AVX2 and without VNNI.
RECORDED = np.load(Path(__file__).parent / "recorded" / "onnxruntime_avx2.npz")


def by_the_book(a: Array, b: Array) -> Array:
    """vpmaddubsw, vpmaddwd and vpaddd, one number at a time in Python's own integers."""
    out = np.zeros((len(a), b.shape[1]), np.int64)
    for m in range(len(a)):
        for n in range(b.shape[1]):
            for k in range(0, a.shape[1], 2):
                pair = sum(int(a[m, i]) * int(b[i, n]) for i in range(k, min(k + 2, a.shape[1])))
                out[m, n] += min(max(pair, -(2**15)), 2**15 - 1)
    return out


@settings(max_examples=60, deadline=None)
@given(st.integers(1, 5), st.integers(1, 19), st.integers(1, 5), st.integers(0, 2**32 - 1))
def test_sums_are_those_of_the_instruction(rows: int, depth: int, columns: int, seed: int) -> None:
    rng = np.random.default_rng(seed)
    a = rng.choice([0, 1, 127, 128, 254, 255, 200], (rows, depth)).astype(np.uint8)
    b = rng.choice([-128, -127, -65, -64, 0, 63, 64, 65, 127], (depth, columns)).astype(np.int8)
    lost = Lost()
    assert np.array_equal(saturating_sums(a, b, lost), by_the_book(a, b))
    assert np.array_equal(exact_sums(a, b), a.astype(np.int64) @ b.astype(np.int64))
    assert lost.pairs == rows * columns * -(-depth // 2)
    if pair_bound(b) <= 2**15 - 1:
        assert lost.cut == 0


def test_long_sums_are_exact() -> None:
    a, b = np.full((1, 5000), 255, np.uint8), np.full((5000, 1), 127, np.int8)
    assert exact_sums(a, b)[0, 0] == 255 * 127 * 5000
    assert saturating_sums(a, b)[0, 0] == (2**15 - 1) * 2500


@pytest.mark.parametrize("case", sorted({name.split("/")[0] for name in RECORDED}))
def test_kernels_without_vnni_give_the_same_codes(case: str) -> None:
    model = ir.from_proto(onnx.load_model_from_string(RECORDED[f"{case}/model"].tobytes()))
    found = emulate(model, RUNTIME).run({"x": RECORDED[f"{case}/x"]})[0]
    assert np.array_equal(found, RECORDED[f"{case}/y"])


def test_what_was_recorded_saturates() -> None:
    """Else the test above would tell nothing."""
    for case in ("conv_16_8_1_5_1", "conv_16_16_3_5_2", "matmul_7_64_20"):
        model = ir.from_proto(onnx.load_model_from_string(RECORDED[f"{case}/model"].tobytes()))
        exact = emulate(model, RUNTIME, saturate=False).run({"x": RECORDED[f"{case}/x"]})[0]
        assert not np.array_equal(exact, RECORDED[f"{case}/y"])


def network() -> ir.Model:
    """A residual network with a spatial, a grouped, a depthwise and a linear layer."""
    net = Net("net", 7)
    x = net.op("Relu", net.conv(net.input("x", "N", 4, 10, 10), 4, 8))
    y = net.op("Relu", net.conv(x, 8, 8))
    y = net.op("Add", x, net.conv(y, 8, 8))
    return net.model(y=net.dense(net.pooled(net.op("Relu", y)), 8, 4))


def batches(count: int = 4) -> list[Array]:
    rng = np.random.default_rng(0)
    return [np.abs(rng.normal(size=(4, 4, 10, 10))).astype(np.float32) for _ in range(count)]


def quantized(**options: Any) -> tuple[ir.Model, Any]:
    from attar.calibration import as_data
    from attar.context import Context
    from attar.registry import default_registry
    from attar.specs import input_specs
    from attar_quantize import Static

    model, registry = network(), default_registry()
    graph.normalize(model)
    data = as_data(batches(), input_specs(model))
    ctx = Context(registry, registry.get_target("cpu-avx2"), RUNTIME, data)
    Static(plan="everything", observer="minmax", **options).apply(model, ctx)
    graph.tidy(model)
    return model, ctx


def test_exact_sums_give_what_the_runtime_gives() -> None:
    from attar.targets import instruction_set

    if instruction_set() == "avx2":
        pytest.skip("the runtime's own kernels saturate on this processor")
    model, _ = quantized(reduce_range=False)
    before = RUNTIME.open(model).run({"x": batches(1)[0]})[0]
    after = emulate(model, RUNTIME, saturate=False).run({"x": batches(1)[0]})[0]
    assert np.array_equal(before, after)


WEIGHT = "int8[4,4] w = {1,-2,3,4,5,6,-7,8,9,1,2,3,4,5,-6,7}, float s = {0.1}, uint8 z = {128}, int8 wz = {0}"
CODES = "q = QuantizeLinear(x, s, z) d = DequantizeLinear(q, s, z) wd = DequantizeLinear(w, ws, wz) "


@pytest.mark.parametrize(
    ("more", "body", "outputs", "layers"),
    [
        ("", "y = MatMul(d, wd)", "", 1),
        (  # computed from constants alone
            ", uint8[2,4] c = {1,2,3,4,5,6,7,8}",
            "k = DequantizeLinear(c, s, z) m = MatMul(k, wd) r = ReduceSum<keepdims=0>(m) y = Add(d, r)",
            "",
            0,
        ),
        (", float[4] b = {1,2,3,4}", "y = Gemm<beta=0.5>(d, wd, b)", "", 0),
        (", float[3,1] b = {1,2,3}", "y = Gemm(d, wd, b)", "", 0),  # a bias of rows
        (", float[4] b = {1,2,3,4}", "y = Gemm(d, wd, b)", "", 1),
        (", float[2] k = {1,2}", "y = MatMul(d, wd)", ", float[2] k", 1),  # an output that is a constant
    ],
    ids=["plain", "constants", "beta", "rows", "bias", "constant output"],
)
def test_unusual_layers_give_what_the_runtime_gives(more: str, body: str, outputs: str, layers: int) -> None:
    model = ir.from_onnx_text(
        f'<ir_version: 10, opset_import: ["" : 21]> g (float[3,4] x) => (float[3,4] y{outputs}) '
        f"<{WEIGHT}, float ws = {{0.05}}{more}> {{{CODES}{body}}}"
    )
    graph.normalize(model)
    feeds = {"x": np.random.default_rng(0).standard_normal((3, 4)).astype(np.float32)}
    session = emulate(model, RUNTIME)
    assert len(session.layers) == layers
    for found, wanted in zip(session.run(feeds), RUNTIME.open(model).run(feeds), strict=True):
        np.testing.assert_allclose(found, wanted, rtol=0, atol=1e-6 * np.abs(wanted).max())


def test_a_target_that_saturates_gets_weights_that_cannot() -> None:
    model, ctx = quantized()
    assert predict(model, ctx).safe
    assert emulate(model, RUNTIME).safe
    assert any("the same" in change for change in ctx.step.changes)


def test_the_loss_is_predicted_and_told() -> None:
    model, ctx = quantized(reduce_range=False)
    found = predict(model, ctx)
    assert not found.safe
    assert found.share > 0
    assert found.layers
    told = next(change for change in ctx.step.changes if change.startswith("without VNNI"))
    assert "reduce_range" in told


def test_diagnose_predicts_a_quantized_file(tmp_path: Path) -> None:
    model, _ = quantized(reduce_range=False)
    graph.save(model, tmp_path / "int8.onnx")
    found = attar.diagnose(tmp_path / "int8.onnx", calibration=batches(), target="cpu-avx2")
    assert found.saturation is not None
    assert found.saturation.share > 0
    assert "without VNNI" in str(found)
    reduced, _ = quantized()
    assert attar.diagnose(reduced, calibration=batches(), target="cpu-avx2").saturation.safe
