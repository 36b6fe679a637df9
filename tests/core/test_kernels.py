"""Reading ONNX Runtime's optimized graph: kinds, names, times."""

from __future__ import annotations

import collections

import numpy as np
import pytest
from spine_models import cnn, images

import attar
from attar.kernels import add_times, explained, kind_of, names_of, times_by_name
from attar.report import Kernel
from attar.runtime import OnnxRuntime
from attar.testing import ZOO
from attar_quantize import Static


@pytest.fixture(scope="module")
def quantized() -> attar.Result:
    return attar.compress(cnn(), Static(plan="everything"), calibration=images())


@pytest.mark.parametrize(
    ("op", "kind"),
    [
        ("QLinearConv", "integer"),
        ("QLinearAdd", "integer"),
        ("QGemm", "integer"),
        ("MatMulIntegerToFloat", "integer"),
        ("MatMulNBits", "integer"),
        ("Conv", "float"),
        ("FusedConv", "float"),
        ("LSTM", "float"),
        ("LayerNormalization", "float"),
        ("QuantizeLinear", "conversion"),
        ("DequantizeLinear", "conversion"),
        ("ReorderInput", "conversion"),
        ("Reshape", "data"),
        ("MaxPool", "data"),
    ],
)
def test_kind_by_operator(op: str, kind: str) -> None:
    assert kind_of(op) == kind


def test_a_float_network_has_float_kernels_only() -> None:
    kernels = OnnxRuntime().open(cnn()).kernels()
    compute = [k for k in kernels if k.compute]
    assert len(compute) == 4  # three convolutions and the classifier
    assert {k.kind for k in compute} == {"float"}
    assert not [k for k in kernels if k.kind == "integer"]
    assert all(k.milliseconds is None for k in kernels)


def test_a_quantized_network_has_integer_kernels_and_conversions_at_the_edge(quantized: attar.Result) -> None:
    kernels = OnnxRuntime().open(quantized.runnable).kernels()
    kinds = collections.Counter((k.kind, k.compute) for k in kernels)
    assert kinds["integer", True] == 4
    assert kinds["float", True] == 0
    assert [k.op for k in kernels if k.kind == "conversion"].count("QuantizeLinear") >= 1


def test_optimized_names_lead_back_to_the_model() -> None:
    model = cnn()
    known = {n.name for n in model.graph} | {v.name for n in model.graph for v in n.outputs}
    kernels = OnnxRuntime().open(model).kernels()
    for kernel in kernels:
        if kernel.compute:
            assert known & set(names_of(kernel)), kernel


@pytest.mark.parametrize(
    ("name", "outputs", "want"),
    [
        ("conv_1_nchwc", ("conv_1_out_nchwc",), {"conv_1", "conv_1_nchwc", "conv_1_out", "conv_1_out_nchwc"}),
        ("gemm_quant", ("y",), {"gemm", "gemm_quant", "y"}),
        ("a_nhwc_token_12", ("b",), {"a", "a_nhwc_token_12", "b"}),
        ("", ("z",), {"z"}),
        ("quantum", (), {"quantum"}),
    ],
)
def test_marks_of_the_optimizer_are_taken_off(name: str, outputs: tuple[str, ...], want: set[str]) -> None:
    assert set(names_of(Kernel(name, "Conv", "float", outputs=outputs))) == want


def test_profiled_kernels_have_times_of_the_right_size(quantized: attar.Result) -> None:
    feeds = {"x": images(1, 1)[0]}
    for model in (cnn(), quantized.runnable):
        session = OnnxRuntime().open(model)
        kernels = session.profile_of(feeds)
        assert [k.name for k in kernels[: len(session.kernels())]] == [k.name for k in session.kernels()]
        timed = [k for k in kernels if k.compute]
        assert timed
        assert all(k.milliseconds is not None and 0 <= k.milliseconds < 1000 for k in timed)
        by_name = times_by_name(kernels)
        assert by_name
        for kernel in timed:
            assert kernel.milliseconds is not None
            assert by_name[kernel.outputs[0]] == pytest.approx(kernel.milliseconds * 1000)


def test_times_are_medians_without_the_warm_up_and_types_correct_the_kind() -> None:
    kernels = (
        Kernel("a", "Conv", "float", True),
        Kernel("b", "Sigmoid", "float"),
        Kernel("c", "Relu", "float"),
    )
    seen = {
        "a": {"op_name": "Conv", "input_type_shape": [{"float": [1]}]},
        "b": {"op_name": "Sigmoid", "input_type_shape": [{"uint8": [1]}, {"float": [1]}]},
        "d": {"op_name": "ReorderOutput", "input_type_shape": [{"float": [1]}]},
    }
    times = {"a": [100.0, 100.0, 1.0, 5.0, 3.0], "b": [9.0, 9.0], "d": [0.0, 0.0, 4.0]}
    done = {k.name: k for k in add_times(kernels, times, seen, skip=2)}
    assert done["a"].milliseconds == 3.0
    assert (done["a"].kind, done["b"].kind) == ("float", "integer")
    assert done["b"].milliseconds is None
    assert done["c"] == kernels[2]
    assert (done["d"].op, done["d"].kind, done["d"].milliseconds) == ("ReorderOutput", "conversion", 4.0)


def test_kernels_inside_subgraphs_are_read() -> None:
    zoo = ZOO["weight_in_if"]
    model = attar.load(zoo.build())
    ops = [k.op for k in OnnxRuntime().open(model).kernels()]
    assert "If" in ops
    assert {"Gemm", "MatMul", "FusedGemm"} & set(ops)


def test_reasons_go_to_float_compute_kernels() -> None:
    integer = Kernel("q", "QLinearConv", "integer", True)
    known, unknown = Kernel("fc_nchwc", "Conv", "float", True), Kernel("lstm", "LSTM", "float", True)
    other = Kernel("relu", "Relu", "float")
    done = explained((integer, known, unknown, other), {"fc": "too small"}, "no kernel")
    assert [k.reason for k in done] == ["", "too small", "no kernel", ""]
    done = explained((known, unknown), {"fc": "too small"}, "no kernel")
    assert [k.reason for k in done] == ["too small", ""]  # nothing is quantized: no pattern is to blame


def test_integer_answers_are_those_of_the_portable_form(quantized: attar.Result) -> None:
    """The lowered, optimized integer graph against the stored QDQ form run node by node."""
    x = images(1)[0]
    portable = OnnxRuntime().open(quantized.model, optimize=False)(x)[0]
    measured = OnnxRuntime().open(quantized.runnable)(x)[0]
    error = np.square(portable - measured, dtype=np.float64).sum()
    assert 10 * np.log10(np.square(portable, dtype=np.float64).sum() / max(error, 1e-30)) > 30
