"""Opsets: old ones go up with the same outputs, new ones come down only where that changes nothing."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import onnx_ir as ir
import onnxruntime as ort
import pytest
from onnx import numpy_helper
from onnx.reference import ReferenceEvaluator

from attar import graph
from attar.errors import InputError

RECORDED = Path(onnx.__file__).parent / "backend" / "test" / "data"
# ONNX Runtime builds PRelu of opset 6 not at all; StringNormalizer needs locales that machines may lack.
CASES = sorted(
    p.parent.name
    for kind in ("pytorch-converted", "pytorch-operator")
    for p in (RECORDED / kind).glob("*/model.onnx")
    if "PReLU" not in p.parent.name
)


def normal(proto: onnx.ModelProto) -> tuple[ir.Model, list[str]]:
    own = onnx.ModelProto()
    own.CopyFrom(proto)
    model = graph.from_proto(own)
    notes = graph.normalize(model)
    graph.check(model)
    return model, notes


def run(content: bytes, feeds: dict[str, np.ndarray]) -> list[np.ndarray]:
    options = ort.SessionOptions()
    options.log_severity_level = 4
    return ort.InferenceSession(content, options, providers=["CPUExecutionProvider"]).run(None, feeds)


def tensor(path: Path) -> np.ndarray:
    proto = onnx.TensorProto()
    proto.ParseFromString(path.read_bytes())
    return numpy_helper.to_array(proto)


@pytest.mark.parametrize("name", CASES)
def test_recorded_outputs_of_opset_6_hold_at_21(name: str) -> None:
    folder = next(p for p in RECORDED.glob(f"*/{name}"))
    proto = onnx.load(folder / "model.onnx")
    model, _ = normal(proto)
    assert model.opset_imports[""] == 21
    assert model.ir_version == 10
    feeds = {
        v.name: tensor(folder / f"test_data_set_0/input_{i}.pb") for i, v in enumerate(model.graph.inputs)
    }
    got = run(graph.to_bytes(model), feeds)
    for index, array in enumerate(got):
        np.testing.assert_allclose(
            array, tensor(folder / f"test_data_set_0/output_{index}.pb"), rtol=1e-4, atol=1e-5
        )


@pytest.mark.parametrize(
    "body",
    [
        '<opset_import: ["": 9]> g (float[2, 8] x) => (float[2, 3] y) '
        "{ y = Slice <axes = [1], starts = [2], ends = [5]> (x) }",
        '<opset_import: ["": 11]> g (float[2, 3, 4] x) => (float[2, 3, 4] y) { y = Softmax <axis = 1> (x) }',
        '<opset_import: ["": 11]> g (float[2, 3, 4] x) => (float[2, 3, 4] y) { y = Softmax (x) }',
        '<opset_import: ["": 8]> g (float[1, 2, 3, 3] x) => (float[1, 2, 6, 6] y) '
        '{ y = Upsample <mode = "nearest", scales = [1.0, 1.0, 2.0, 2.0]> (x) }',
        '<opset_import: ["": 10]> g (float[1, 2, 3, 3] x) => (float[1, 2, 7, 3] y) '
        "{ y = Pad <pads = [0, 0, 1, 0, 0, 0, 3, 0], value = 2.0> (x) }",
        '<opset_import: ["": 10]> g (float[2, 6] x) => (float[2, 6] y) '
        "{ y = Clip <min = -0.5, max = 0.5> (x) }",
        '<opset_import: ["": 12]> g (float[2, 1, 6] x) => (float[2, 6] y) { y = Squeeze <axes = [1]> (x) }',
        '<opset_import: ["": 12]> g (float[2, 6] x) => (float[2, 2] a, float[2, 4] b) '
        "{ a, b = Split <axis = 1, split = [2, 4]> (x) }",
        '<opset_import: ["": 12]> g (float[2, 6] x) => (float[2, 1] y) { y = ReduceSum <axes = [1]> (x) }',
        '<opset_import: ["": 13]> g (float[2, 6, 3] x) => (float[2, 3] y) '
        "{ y = ReduceMean <axes = [1], keepdims = 0> (x) }",
        '<opset_import: ["": 7]> g (float[2, 6] x) => (float[2, 6] y) { y = Dropout <ratio = 0.3> (x) }',
        '<opset_import: ["": 9]> g (float[2, 6] x) => (float[2, 3] y, int64[2, 3] i) '
        "{ y, i = TopK <axis = 1, k = 3> (x) }",
        '<opset_import: ["": 13]> g (float[2, 6] x) => (float[2, 3] a, float[2, 3] b) '
        "{ a, b = Split <axis = 1> (x) }",
        '<opset_import: ["": 8]> g (float[1, 2, 3, 3] x) => (float[1, 2, 7, 6] y) '
        '{ y = Upsample <mode = "linear", scales = [1.0, 1.0, 2.5, 2.0]> (x) }',
        '<opset_import: ["": 8]> g (float[1, 2, 3, 3] x) => (float[1, 2, 7, 6] y) '
        '{ y = Upsample <mode = "nearest", scales = [1.0, 1.0, 2.5, 2.0]> (x) }',
        '<opset_import: ["": 10]> g (float[1, 1, 4, 4] x) => (float[1, 1, 10, 8] y) '
        "{ s = Constant <value = float[4] {1.0, 1.0, 2.5, 2.0}> () y = Resize (x, s) }",
        '<opset_import: ["": 10]> g (float[1, 1, 8, 8] x) => (float[1, 1, 2, 2] y) '
        "{ r = Constant <value = float[1, 4] {0.0, 0.0, 6.0, 7.0}> () i = Constant <value = int64[1] {0}> () "
        "y = RoiAlign <output_height = 2, output_width = 2, sampling_ratio = 2> (x, r, i) }",
        '<opset_import: ["": 11]> g (float[2, 3, 4] x) => (float[2, 3, 4] y) '
        "{ y = LogSoftmax <axis = 0> (x) }",
        '<opset_import: ["": 11]> g (float[2, 3, 4] x) => (float[2, 3, 4] y) { y = Hardmax <axis = 1> (x) }',
        '<opset_import: ["": 11]> g (float[2, 3, 4] x) => (int64[2, 1, 4] y) { y = ArgMax <axis = 1> (x) }',
        '<opset_import: ["": 10]> g (float[1, 8, 2, 2] x) => (float[1, 2, 4, 4] y) '
        "{ y = DepthToSpace <blocksize = 2> (x) }",
        '<opset_import: ["": 10]> g (float[2, 3, 4] x) => (float[2, 1, 1] y) '
        "{ y = ReduceL2 <axes = [1, 2]> (x) }",
        '<opset_import: ["": 8]> g (float[2, 3, 4] x) => (float[2, 3, 4] y) '
        "{ s = Constant <value = float[3] {1.0, 2.0, 0.5}> () b = Constant <value = float[3] "
        "{0.5, 0.1, 0.2}> () "
        "m = Constant <value = float[3] {0.3, 0.0, 0.2}> () v = Constant <value = float[3] {1.5, "
        "0.7, 0.9}> () "
        "y = BatchNormalization(x, s, b, m, v) }",
        '<opset_import: ["": 9]> g (float[3, 3] x) => (float[3, 3] y) '
        "{ i = Constant <value = int64[1, 3] {1, 0, 2}> () "
        "u = Constant <value = float[1, 3] {9.0, 8.0, 7.0}> () y = Scatter(x, i, u) }",
        '<opset_import: ["": 10]> g (float[1, 2, 8, 8] x) => (float[1, 2, 4, 4] y) '
        "{ y = AveragePool <kernel_shape = [3, 3], strides = [2, 2], ceil_mode = 1, "
        "count_include_pad = 1> (x) }",
        '<opset_import: ["": 9]> g (float[2, 6] x) => (float[1, 12] y) '
        "{ s = Constant <value = int64[2] {1, 12}> () y = Reshape(x, s) }",
        '<opset_import: ["": 10]> g (float[1, 1, 4, 4] x) => (float[1, 1, 8, 8] y) '
        '{ s = Constant <value = float[4] {1.0, 1.0, 2.0, 2.0}> () y = Resize <mode = "linear"> (x, s) }',
    ],
)
def test_operators_that_changed_meaning(body: str) -> None:
    proto = onnx.parser.parse_model(body.replace("<opset", "<ir_version: 6, opset"))
    model, notes = normal(proto)
    assert model.opset_imports[""] == 21, notes
    shape = [d.dim_value for d in proto.graph.input[0].type.tensor_type.shape.dim]
    feeds = {"x": np.random.default_rng(0).standard_normal(shape).astype(np.float32)}
    for old, new in zip(
        run(proto.SerializeToString(), feeds), run(graph.to_bytes(model), feeds), strict=True
    ):
        np.testing.assert_allclose(new, old, rtol=1e-6, atol=1e-7)


def test_weights_pass_through_a_conversion_unread() -> None:
    weight = np.random.default_rng(0).standard_normal((64, 64)).astype(np.float32)
    proto = onnx.parser.parse_model(
        '<ir_version: 6, opset_import: ["": 9]> g (float[n, 64] x) => (float[n, 64] y) '
        "{ h = MatMul(x, w) y = Clip <min = -1.0> (h) }"
    )
    proto.graph.initializer.append(numpy_helper.from_array(weight, "w"))
    model, _ = normal(proto)
    np.testing.assert_array_equal(graph.const_array(model.graph.initializers["w"]), weight)
    assert [v.name for v in model.graph.inputs] == ["x"]


def test_newest_opset_comes_down_where_nothing_changed() -> None:
    proto = onnx.parser.parse_model(
        '<ir_version: 14, opset_import: ["": 28]> g (float[1, 2, 8, 8] x) => (float[1, 2, 4, 4] y) '
        "{ s = float[1] {0.1} z = Relu(x) q = QuantizeLinear(z, s0, z0) d = DequantizeLinear(q, s0, z0) "
        "y = MaxPool <kernel_shape = [2, 2], strides = [2, 2]> (d) }".replace("s = float[1] {0.1} ", "")
    )
    proto.graph.initializer.append(numpy_helper.from_array(np.float32(0.1), "s0"))
    proto.graph.initializer.append(numpy_helper.from_array(np.uint8(3), "z0"))
    model, notes = normal(proto)
    assert model.opset_imports[""] == 21
    assert model.ir_version == 10
    assert "28 -> 21" in " ".join(notes)
    x = np.random.default_rng(0).standard_normal((1, 2, 8, 8)).astype(np.float32)
    (got,) = run(graph.to_bytes(model), {"x": x})
    (expected,) = ReferenceEvaluator(proto).run(None, {"x": x})
    np.testing.assert_array_equal(got, expected)


def test_newer_operators_keep_the_lowest_opset_that_has_them() -> None:
    proto = onnx.parser.parse_model(
        '<ir_version: 14, opset_import: ["": 28]> g (float[2, 8] x) => (float[2, 8] y) { y = Swish(x) }'
    )
    model, notes = normal(proto)
    assert model.opset_imports[""] == 24
    assert "Swish" in " ".join(notes)


def test_newer_element_types_keep_the_opset() -> None:
    proto = onnx.parser.parse_model(
        '<ir_version: 13, opset_import: ["": 25]> g (bfloat16[1, 2, 8, 8] x) => (bfloat16[1, 2, 4, 4] y) '
        "{ y = AveragePool <kernel_shape = [2, 2], strides = [2, 2]> (x) }"
    )
    model, notes = normal(proto)
    assert model.opset_imports[""] == 22
    assert "AveragePool" in " ".join(notes)


def test_prelu_before_opset_7_is_refused_not_guessed() -> None:
    proto = onnx.parser.parse_model(
        '<ir_version: 3, opset_import: ["": 6]> g (float[1, 2, 2, 2] x, float[2] s) => (float[1, 2, 2, 2] y) '
        "{ y = PRelu(x, s) }"
    )
    with pytest.raises(InputError, match="PRelu"):
        normal(proto)
