"""Constants, walking, copying, tidying and strict shapes."""

from __future__ import annotations

import gc

import numpy as np
import onnx
import onnx_ir as ir
import pytest

from attar import graph
from attar.errors import InputError, VerifyError


def model_of(text: str, **weights: np.ndarray) -> ir.Model:
    """A model from ONNX text; `weights` become initializers."""
    proto = onnx.parser.parse_model(text)
    for name, array in weights.items():
        proto.graph.initializer.append(onnx.numpy_helper.from_array(array, name))
    return graph.from_proto(proto)


def linear(n: int = 4) -> ir.Model:
    text = """<ir_version: 10, opset_import: ["": 21]>
    net (float[batch, 3] x) => (float[batch, m] y) { h = MatMul(x, w)  y = Relu(h) }"""
    model = model_of(text, w=np.arange(3 * n, dtype=np.float32).reshape(3, n))
    graph.refresh_shapes(model)
    return model


def value(model: ir.Model, name: str) -> ir.Value:
    return next(v for v in graph.all_values(model) if v.name == name)


def test_replacing_a_weight_updates_shape_and_leaves_clones_alone() -> None:
    model = linear()
    copy = graph.clone(model)
    graph.replace_weight(copy.graph.initializers["w"], np.zeros((3, 2), np.float64))
    w = copy.graph.initializers["w"]
    assert (w.dtype, list(w.shape)) == (ir.DataType.DOUBLE, [3, 2])
    old = model.graph.initializers["w"]
    assert (old.dtype, list(old.shape)) == (ir.DataType.FLOAT, [3, 4])
    assert old.const_value.numpy()[1, 1] == 5


def test_clone_shares_no_types() -> None:
    model = linear()
    copy = graph.clone(model)
    for v in graph.all_values(copy):
        v.dtype = ir.DataType.FLOAT16
    assert {v.dtype for v in graph.all_values(model)} == {ir.DataType.FLOAT}


def test_only_weights_can_be_replaced() -> None:
    model = linear()
    with pytest.raises(VerifyError, match="'h' is not a weight"):
        graph.replace_weight(value(model, "h"), np.zeros(3, np.float32))


def test_constants_are_read_only_and_overridable_inputs_are_none() -> None:
    model = linear()
    array = graph.const_array(model.graph.initializers["w"])
    assert array is not None
    with pytest.raises(ValueError, match="read-only"):
        array[0] = 1
    assert graph.const_array(None) is None
    assert graph.const_array(value(model, "h")) is None
    model.graph.inputs.append(model.graph.initializers["w"])
    assert graph.const_array(model.graph.initializers["w"]) is None


def test_constant_nodes_are_constants() -> None:
    model = model_of(
        """<ir_version: 10, opset_import: ["": 21]> net (float[2] x) => (float[2] y)
        { c = Constant <value = float[2] {3.0, 4.0}> () y = Add(x, c) }"""
    )
    np.testing.assert_array_equal(graph.const_array(value(model, "c")), [3, 4])
    graph.replace_weight(value(model, "c"), np.ones(2, np.float32))
    np.testing.assert_array_equal(graph.const_array(value(model, "c")), [1, 1])


def test_added_initializers_get_fresh_names() -> None:
    model = linear()
    names = [
        graph.add_initializer(model.graph, base, np.ones(2, np.int8)).name for base in ("w", "h", "x", "new")
    ]
    assert names == ["w_1", "h_1", "x_1", "new"]
    taken = graph.taken_names(model.graph)
    assert [graph.fresh_name(model.graph, "w", taken) for _ in range(2)] == ["w_2", "w_3"]


def test_byte_size_counts_every_initializer() -> None:
    model = linear()
    assert graph.byte_size(model) == 48
    graph.add_initializer(model.graph, "half", np.ones(5, np.float16))
    assert graph.byte_size(model) == 58


def test_borrowed_views_are_released_and_stay_right(tmp_path) -> None:
    data = np.arange(100_000, dtype=np.float32)
    (tmp_path / "w.bin").write_bytes(b"\0" * 12 + data.tobytes())
    tensor = ir.ExternalTensor(
        "w.bin", 12, data.nbytes, ir.DataType.FLOAT, shape=ir.Shape([data.size]), name="w", base_dir=tmp_path
    )
    with graph.borrow(tensor) as view:
        assert not view.flags.writeable
        kept = view[5:7]
    np.testing.assert_array_equal(kept, [5, 6])  # the file is mapped as long as somebody looks
    with graph.borrow(tensor) as view:
        assert view[-1] == 99_999
    del view, kept
    gc.collect()
    assert tensor.raw is None  # the shared handle was never opened
    tensor.release()


def test_tidy_removes_the_dead_and_keeps_the_interface() -> None:
    model = model_of(
        """<ir_version: 10, opset_import: ["": 21, "com.unused": 1]>
        net (float[2] x, float[2] unused) => (float[2] y) { a = Relu(x) b = Neg(a) y = Abs(x) }""",
        dead=np.ones(3, np.float32),
    )
    graph.tidy(model)
    assert [n.op_type for n in graph.all_nodes(model)] == ["Abs"]
    assert [v.name for v in model.graph.inputs] == ["x", "unused"]
    assert not model.graph.initializers
    assert set(model.opset_imports) == {""}


def test_tidy_sorts() -> None:
    model = linear()
    nodes = list(model.graph)
    model.graph.remove(nodes[0])
    model.graph.append(nodes[0])
    graph.tidy(model)
    assert [n.op_type for n in model.graph] == ["MatMul", "Relu"]


def test_provenance_survives_clone_and_save(tmp_path) -> None:
    model = linear()
    graph.set_provenance(model, framework="torch", source="Net")
    graph.save(graph.clone(model), tmp_path / "m.onnx")
    assert graph.provenance(graph.read_model(tmp_path / "m.onnx")) == {"framework": "torch", "source": "Net"}


# -- strict shapes ---------------------------------------------------------------------------------


def test_stale_shapes_are_replaced() -> None:
    model = linear()
    value(model, "y").shape = None
    graph.replace_weight(model.graph.initializers["w"], np.zeros((3, 7), np.float32))
    graph.refresh_shapes(model)
    assert list(value(model, "h").shape) == ["batch", 7]
    assert list(value(model, "y").shape) == ["batch", 7]


def test_contradiction_names_the_node_and_changes_nothing() -> None:
    model = linear()
    next(iter(model.graph)).name = "classifier"
    graph.replace_weight(model.graph.initializers["w"], np.zeros((5, 4), np.float32))
    with pytest.raises(VerifyError, match="'classifier' \\(MatMul\\)"):
        graph.refresh_shapes(model)
    assert list(value(model, "h").shape) == ["batch", 4]


def test_output_that_changed_its_declared_shape_is_an_error() -> None:
    model = linear()
    graph.replace_weight(model.graph.initializers["w"], np.zeros((3, 7), np.float32))
    with pytest.raises(VerifyError):
        graph.refresh_shapes(model)


def test_unknown_domains_and_data_dependent_shapes_stay_unknown() -> None:
    model = model_of(
        """<ir_version: 10, opset_import: ["": 21, "com.microsoft": 1]>
        net (float[2, 4] x) => (int64[2, n] where, float[2, 4] y)
        { h = com.microsoft.Gelu(x) y = Relu(h) where = NonZero(x) }"""
    )
    value(model, "h").type = ir.TensorType(ir.DataType.FLOAT)
    value(model, "h").shape = ir.Shape([9, 9])
    graph.refresh_shapes(model)
    assert value(model, "h").shape is None
    assert value(model, "h").dtype == ir.DataType.FLOAT
    assert list(value(model, "where").shape) == [2, "n"]


@pytest.mark.parametrize(
    "norm",
    ["GroupNormalization<num_groups=2>(x, s, s)", "MeanVarianceNormalization(x)"],
    ids=["group", "mvn"],
)
def test_normalizations_that_onnx_infers_nothing_of(norm: str) -> None:
    model = ir.from_onnx_text(
        '<ir_version: 10, opset_import: ["" : 21]> g (float[N,4,5,5] x, float[4] s) => (float[N,M,P,Q] y) '
        f"{{ n = {norm} y = Identity(n) }}"
    )
    graph.refresh_shapes(model)
    assert str(next(iter(model.graph)).outputs[0].shape) == "[N,4,5,5]"
    assert next(iter(model.graph)).op_type in norm


def test_shapes_inside_subgraphs() -> None:
    model = model_of(
        """<ir_version: 10, opset_import: ["": 21]> net (bool c, float[3, 4] x) => (float[a, b] y) {
        y = If (c) <then_branch = yes () => (t) { t = MatMul(x, w) },
                    else_branch = no () => (e) { e = MatMul(x, w) }> }""",
        w=np.zeros((4, 5000), np.float32),
    )
    graph.refresh_shapes(model)
    assert list(value(model, "t").shape) == [3, 5000]
    assert value(model, "t").dtype == ir.DataType.FLOAT
    graph.normalize(model)
    graph.check(model)


def test_models_beyond_two_gigabytes_are_inferred_without_reading_them(tmp_path) -> None:
    rows, columns = 1 << 15, 1 << 15  # 4 GB of float32 in a sparse file that takes no space
    with (tmp_path / "w.bin").open("wb") as file:
        file.truncate(rows * columns * 4)
    proto = onnx.parser.parse_model(
        f"""<ir_version: 10, opset_import: ["": 21]>
        net (float[n, {rows}] x) => (float[n, m] y) {{ y = MatMul(x, w) }}"""
    )
    tensor = onnx.TensorProto(name="w", data_type=1, dims=[rows, columns], data_location=1)
    tensor.external_data.add(key="location", value="w.bin")
    proto.graph.initializer.append(tensor)
    onnx.save(proto, tmp_path / "m.onnx")
    model = graph.read_model(tmp_path / "m.onnx")
    graph.normalize(model)
    graph.check(model)
    assert list(model.graph.outputs[0].shape) == ["n", columns]
    assert graph.byte_size(model) == rows * columns * 4
    with pytest.raises(InputError, match=r"4\.0 GB"):
        graph.to_bytes(model)
