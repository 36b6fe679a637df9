"""Reading ONNX: every kind of source, every kind of model."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import onnx_ir as ir
import pytest
from onnx import TensorProto, helper, numpy_helper
from onnx_models import X, same, small

from attar import graph
from attar.adapters import find_adapter
from attar.errors import InputError
from attar.registry import default_registry
from attar.runtime import OnnxRuntime
from attar_onnx.adapter import OnnxAdapter

ADAPTER = OnnxAdapter()
LIGHT = sorted((Path(onnx.__file__).parent / "backend" / "test" / "data" / "light").glob("*.onnx"))


def test_every_kind_of_source(tmp_path: Path) -> None:
    proto = small()
    onnx.save(proto, tmp_path / "m.onnx")
    content = proto.SerializeToString()
    sources = [
        tmp_path / "m.onnx",
        str(tmp_path / "m.onnx"),
        content,
        bytearray(content),
        proto,
        ir.from_proto(proto),
    ]
    for source in sources:
        assert find_adapter(source, default_registry()).name == "onnx"
        loaded = ADAPTER.load(source)
        same(content, {"x": X}, loaded.model)
        assert loaded.reference is None
        assert graph.provenance(loaded.model)["framework"] == "onnx"


def test_sources_in_memory_are_left_alone_and_not_aliased() -> None:
    proto = small(opset=11)
    before = proto.SerializeToString()
    model = ADAPTER.load(proto).model
    assert proto.SerializeToString() == before
    proto.graph.initializer[0].raw_data = b"\0" * 48
    assert graph.const_array(model.graph.initializers["w"]).any()
    source = ir.from_proto(small(opset=11))
    model = ADAPTER.load(source).model
    assert source.opset_imports[""] == 11
    graph.replace_weight(model.graph.initializers["w"], np.zeros((4, 3), np.float32))
    assert source.graph.initializers["w"].const_value.numpy().any()


def test_export_gives_a_proto_with_everything_inside(tmp_path: Path) -> None:
    graph.save(ADAPTER.load(small()).model, tmp_path / "m.onnx", external_data=True)
    proto = ADAPTER.write(graph.read_model(tmp_path / "m.onnx")).native
    assert isinstance(proto, onnx.ModelProto)
    assert not any(t.external_data for t in proto.graph.initializer)
    same(small().SerializeToString(), {"x": X}, graph.from_proto(proto))


@pytest.mark.parametrize(
    ("file", "shape"),
    [
        ("squeezenet11/squeezenet11_fp32.onnx", (1, 3, 224, 224)),
        ("mobilenet_v2_dequant/mobilenet_v2_1.0_224_fp32_dequant.onnx", (1, 3, 224, 224)),
    ],
)
def test_real_models_compute_the_same(attar_data: Path, file: str, shape: tuple[int, ...]) -> None:
    loaded = ADAPTER.load(attar_data / file)
    assert loaded.model.opset_imports[""] == 21
    name = loaded.model.graph.inputs[0].name
    x = np.random.default_rng(0).standard_normal(shape).astype(np.float32)
    same(str(attar_data / file), {name: x}, loaded.model)


@pytest.mark.parametrize("path", LIGHT, ids=lambda p: p.stem)
def test_old_whole_networks_compute_the_same(path: Path) -> None:
    loaded = ADAPTER.load(path)
    assert loaded.model.opset_imports[""] == 21
    assert all(v.shape is not None for v in graph.all_values(loaded.model) if v.name)
    (spec,) = OnnxRuntime().open(loaded.model).inputs
    x = np.random.default_rng(0).standard_normal(spec.shape).astype(np.float32)
    same(str(path), {spec.name: x}, loaded.model)


# -- models as they come ---------------------------------------------------------------------------


def test_initializers_among_the_inputs_become_constants() -> None:
    proto = small(opset=8, ir_version=3)
    proto.graph.input.append(helper.make_tensor_value_info("w", TensorProto.FLOAT, [4, 3]))
    loaded = ADAPTER.load(proto)
    assert [v.name for v in loaded.model.graph.inputs] == ["x"]
    assert any("initializers" in n for n in loaded.notes)
    same(proto.SerializeToString(), {"x": X}, loaded.model)


def test_models_without_opset_import() -> None:
    proto = small()
    del proto.opset_import[:]
    loaded = ADAPTER.load(proto)
    assert loaded.model.opset_imports[""] == 21
    assert any("no opset" in n for n in loaded.notes)


def test_nodes_get_names_that_are_unique() -> None:
    proto = small()
    proto.graph.node[1].name = proto.graph.node[0].name = "same"
    model = ADAPTER.load(proto).model
    names = [n.name for n in graph.all_nodes(model)]
    assert len(set(names)) == 2
    assert all(names)


def test_the_name_that_one_domain_gives_to_two_is_one() -> None:
    proto = small()
    proto.opset_import[0].domain = "ai.onnx"
    proto.graph.node[0].domain = "ai.onnx"
    model = ADAPTER.load(proto).model
    assert model.opset_imports == {"": 21}
    same(small().SerializeToString(), {"x": X}, model)


def test_functions_are_inlined() -> None:
    proto = onnx.parser.parse_model(
        """<ir_version: 10, opset_import: ["": 21, "local": 1]> g (float[2, 4] x) => (float[2, 4] y)
        { a = local.twice <k = 3.0> (x) y = local.twice <k = 0.5> (a) }
        <opset_import: ["": 21], domain: "local"> twice <k> (t) => (r)
        { c = Constant <value_float: float = @k> () s = Mul(t, c) r = Add(s, t) }"""
    )
    loaded = ADAPTER.load(proto)
    assert {n.domain for n in graph.all_nodes(loaded.model)} == {""}
    assert not loaded.model.functions
    same(proto.SerializeToString(), {"x": X}, loaded.model)


def test_functions_of_another_opset_are_inlined() -> None:
    proto = onnx.parser.parse_model(
        """<ir_version: 10, opset_import: ["": 21, "local": 1]> g (float[2, 4] x) => (float[2, 4] y)
        { y = local.f (x) }
        <opset_import: ["": 18], domain: "local"> f (t) => (r) { r = Relu(t) }"""
    )
    model = ADAPTER.load(proto).model
    np.testing.assert_array_equal(OnnxRuntime().open(model).run({"x": X})[0], np.maximum(X, 0))


def test_subgraphs_with_weights_inside() -> None:
    weight = numpy_helper.from_array(
        np.random.default_rng(0).standard_normal((4, 2000)).astype(np.float32), "w"
    )
    branches = {}
    for branch, op in (("then_branch", "Abs"), ("else_branch", "Neg")):
        out = helper.make_tensor_value_info(f"{branch}_o", TensorProto.FLOAT, None)
        nodes = [helper.make_node("MatMul", ["x", "w"], ["h"]), helper.make_node(op, ["h"], [f"{branch}_o"])]
        branches[branch] = helper.make_graph(nodes, branch, [], [out], [weight])
    proto = helper.make_model(
        helper.make_graph(
            [helper.make_node("If", ["c"], ["y"], **branches)],
            "g",
            [helper.make_tensor_value_info("c", TensorProto.BOOL, []),
             helper.make_tensor_value_info("x", TensorProto.FLOAT, ["n", 4])],
            [helper.make_tensor_value_info("y", TensorProto.FLOAT, ["n", 2000])],
        ),
        opset_imports=[helper.make_opsetid("", 11)],
        ir_version=6,
    )  # fmt: skip
    loaded = ADAPTER.load(proto)
    assert loaded.model.opset_imports[""] == 21
    for flag in (True, False):
        same(proto.SerializeToString(), {"c": np.array(flag), "x": X}, loaded.model)


def test_loops_and_half_precision() -> None:
    proto = onnx.parser.parse_model(
        """<ir_version: 8, opset_import: ["": 15]> g (float16[2, 4] x) => (float16[2, 4] y) {
        n = Constant <value = int64 {3}> ()
        t = Constant <value = bool {1}> ()
        y = Loop (n, t, x) <body = step (int64 i, bool c, float16[2, 4] s) => (bool k, float16[2, 4] r)
            { k = Identity(c) r = Add(s, s) }> }"""
    )
    loaded = ADAPTER.load(proto)
    same(proto.SerializeToString(), {"x": X.astype(np.float16)}, loaded.model)


def test_quantized_models_stay_quantized() -> None:
    proto = onnx.parser.parse_model(
        """<ir_version: 8, opset_import: ["": 13]> g (float[2, 4] x) => (float[2, 3] y) {
        q = QuantizeLinear(x, s, z) d = DequantizeLinear(q, s, z)
        w = DequantizeLinear <axis = 1> (wq, ws, wz) y = MatMul(d, w) }"""
    )
    rng = np.random.default_rng(0)
    for name, array in {
        "s": np.float32(0.02), "z": np.uint8(128), "wq": rng.integers(-127, 128, (4, 3)).astype(np.int8),
        "ws": np.float32([0.01, 0.02, 0.03]), "wz": np.zeros(3, np.int8),
    }.items():  # fmt: skip
        proto.graph.initializer.append(numpy_helper.from_array(np.asarray(array), name))
    loaded = ADAPTER.load(proto)
    assert [n.op_type for n in graph.all_nodes(loaded.model)].count("DequantizeLinear") == 2
    same(proto.SerializeToString(), {"x": X}, loaded.model)


def test_wrongly_declared_outputs_are_corrected_and_told() -> None:
    proto = small()
    proto.graph.output[0].type.tensor_type.shape.dim[1].dim_value = 99
    loaded = ADAPTER.load(proto)
    assert loaded.model.graph.outputs[0].shape[1] == 3
    assert any("'y'" in n or "of y" in n for n in loaded.notes)


# -- examples --------------------------------------------------------------------------------------


def test_examples_are_checked() -> None:
    for example in (X, (X,), {"x": X}, X.astype(np.float64)):
        loaded = ADAPTER.load(small(), inputs=example)
        assert loaded.example is not None
        assert loaded.example["x"].dtype == np.float32
    for example in (X[:, :3], {"z": X}, (X, X), X.astype(str)):
        with pytest.raises(InputError):
            ADAPTER.load(small(), inputs=example)
    with pytest.raises(InputError, match="no option 'opsett'"):
        ADAPTER.load(small(), opsett=1)
