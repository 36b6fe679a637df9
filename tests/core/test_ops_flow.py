"""Channel flow against the runtime: change one index of an input axis, see which output indices change."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import numpy as np
import onnx
import onnx_ir as ir
import onnxruntime as ort
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from onnx import TensorProto as T
from onnx import helper as oh
from onnx import numpy_helper as nh

from attar.ops import BUILTIN, OpRule, rule_of
from attar.ops.layout import reshape_links

RNG = np.random.default_rng(0)


def f(*shape: int) -> np.ndarray:
    """Distinct positive values, so that no activation hides a change."""
    return (RNG.permutation(int(np.prod(shape))).reshape(shape) / np.prod(shape) + 0.5).astype(np.float32)


def g(*shape: int) -> np.ndarray:
    """Small values of both signs, so that recurrent units do not saturate."""
    return (f(*shape) - 1) * np.float32(0.5)


def i(*values: int) -> np.ndarray:
    return np.array(values, np.int64)


@dataclass
class Case:
    """One node: `data` are the inputs (None absent); integer ones and `fixed` ones become initializers.

    `loose`: a change may be swallowed (comparisons, rounding), so only unexpected changes are errors.
    """

    op: str
    data: list[np.ndarray | None]
    attributes: dict[str, Any] = field(default_factory=dict)
    outputs: int = 1
    fixed: tuple[int, ...] = ()
    loose: bool = False
    at_least: int = 1
    opset: int = 21

    def model(self) -> onnx.ModelProto:
        names = [f"x{k}" if a is not None else "" for k, a in enumerate(self.data)]
        outs = [f"y{k}" for k in range(self.outputs)]
        node = oh.make_node(self.op, names, outs, **self.attributes)
        feeds, initializers = [], []
        for k, a in enumerate(self.data):
            if a is None:
                continue
            if k in self.fixed or a.dtype == np.int64:
                initializers.append(nh.from_array(a, f"x{k}"))
            else:
                feeds.append(
                    oh.make_tensor_value_info(f"x{k}", oh.np_dtype_to_tensor_dtype(a.dtype), a.shape)
                )
        graph = oh.make_graph(
            [node], "g", feeds, [oh.make_empty_tensor_value_info(o) for o in outs], initializers
        )
        model = oh.make_model(graph, opset_imports=[oh.make_opsetid("", self.opset)], ir_version=10)
        return onnx.shape_inference.infer_shapes(model, strict_mode=True, data_prop=True)


UNARY = (
    *("Relu", "LeakyRelu", "Elu", "Selu", "Celu", "Sigmoid", "HardSigmoid", "HardSwish", "Mish", "Softplus"),
    *("Softsign", "Tanh", "Gelu", "Erf", "Exp", "Log", "Sqrt", "Reciprocal", "Abs", "Neg", "Sin", "Cos"),
    *("Tan", "Atan", "Sinh", "Cosh", "Asinh", "Clip", "Identity", "Dropout"),
)  # fmt: skip
STEPS = ("ThresholdedRelu", "Shrink", "Sign", "Floor", "Ceil", "Round")
CASES = [
    *(Case(op, [f(2, 3, 4)]) for op in UNARY),
    *(Case(op, [f(2, 3, 4)], loose=True) for op in STEPS),
    *(Case(op, [f(2, 3) * 0.3]) for op in ("Acos", "Asin", "Atanh")),
    Case("Acosh", [f(2, 3) + 1]),
    *(Case(op, [f(2, 3, 4), f(3, 1)]) for op in ("Add", "Sub", "Mul", "Div", "Pow", "Sum", "Mean")),
    *(Case(op, [f(2, 3, 4), f(4)], loose=True) for op in ("Max", "Min")),
    Case("Mod", [f(2, 3, 4), f(4)], {"fmod": 1}, loose=True),
    *(Case(op, [f(2, 3), f(2, 3)], loose=True)
      for op in ("Equal", "Greater", "GreaterOrEqual", "Less", "LessOrEqual")),
    *(Case(op, [f(2, 3)], loose=True) for op in ("IsNaN", "IsInf")),
    Case("Cast", [f(2, 3)], {"to": T.DOUBLE}),
    Case("PRelu", [-f(2, 3, 4), f(3, 1)]),
    Case("Where", [np.array([[True], [False]]), f(2, 3), f(3)], fixed=(0,), loose=True),
    Case("BatchNormalization", [f(2, 3, 4, 4), f(3), f(3), f(3), f(3)]),
    Case("InstanceNormalization", [f(2, 3, 4, 4), f(3), f(3)]),
    Case("GroupNormalization", [f(2, 4, 3, 3), f(4), f(4)], {"num_groups": 2}),
    Case("LayerNormalization", [f(2, 5, 4), f(4), f(4)], {"axis": -1}),
    Case("LRN", [f(2, 6, 3, 3)], {"size": 3, "alpha": 0.5}),
    Case("LpNormalization", [f(2, 3, 4)], {"axis": 1}),
    Case("MeanVarianceNormalization", [f(2, 3, 4, 4)], {"axes": [0, 2, 3]}),
    *(Case(op, [f(2, 3, 4)], {"axis": 1}) for op in ("Softmax", "LogSoftmax")),
    Case("Hardmax", [f(2, 3, 4)], {"axis": 1}, loose=True),
    Case("CumSum", [f(2, 3, 4), i(1)], loose=True),
    Case("GlobalAveragePool", [f(2, 3, 4, 4)], at_least=2),
    Case("GlobalMaxPool", [f(2, 3, 4, 4)], at_least=2),
    Case("GlobalLpPool", [f(2, 3, 4, 4)], at_least=2),
    Case("AveragePool", [f(2, 3, 4, 4)], {"kernel_shape": [2, 2]}, at_least=2),
    Case("LpPool", [f(2, 3, 4, 4)], {"kernel_shape": [2, 2]}, at_least=2),
    Case("MaxPool", [f(2, 3, 5, 5)], {"kernel_shape": [3, 3]}, at_least=2),
    *(Case(op, [f(2, 3, 4), i(1)], {"keepdims": keep}) for keep in (0, 1) for op in
      ("ReduceMean", "ReduceSum", "ReduceProd", "ReduceL1", "ReduceL2", "ReduceLogSum", "ReduceLogSumExp",
       "ReduceSumSquare", "ReduceMax", "ReduceMin")),
    *(Case(op, [f(2, 3, 4)], {"axis": 1, "keepdims": 0}, loose=True) for op in ("ArgMax", "ArgMin")),
    Case("TopK", [f(2, 5, 3), i(2)], {"axis": 1}, outputs=2, loose=True),
    Case("Transpose", [f(2, 3, 4)], {"perm": [2, 0, 1]}),
    Case("Transpose", [f(2, 3, 4)]),
    Case("Flatten", [f(2, 3, 4, 5)], {"axis": 1}, at_least=4),
    Case("Flatten", [f(2, 3, 4, 5)], {"axis": 3}, at_least=4),
    Case("Reshape", [f(2, 12, 5), i(0, 3, 4, 5)], at_least=4),
    Case("Reshape", [f(2, 3, 4, 5), i(2, -1, 5)], at_least=4),
    Case("Reshape", [f(4, 6), i(8, 3)], at_least=3),
    Case("Squeeze", [f(2, 1, 3, 1), i(1, 3)], at_least=2),
    Case("Squeeze", [f(2, 1, 3, 1)], at_least=2),
    Case("Unsqueeze", [f(2, 3), i(0, -1)], at_least=2),
    Case("Concat", [f(2, 3), f(2, 1), f(2, 4)], {"axis": 1}, at_least=6),
    Case("Split", [f(2, 7), i(3, 4)], {"axis": 1}, outputs=2, at_least=4),
    Case("Split", [f(2, 6)], {"axis": -1, "num_outputs": 3}, outputs=3, at_least=6),
    Case("Slice", [f(4, 9, 3), i(1, -2), i(8, 9), i(1, 2), i(2, 1)], at_least=3),
    Case("Slice", [f(4, 9), i(-1), i(-(2**62)), i(1), i(-2)], at_least=2),
    Case("Gather", [f(5, 3), i(4, 0, -2, 0)], at_least=2),
    Case("Gather", [f(2, 5, 3), np.array(2, np.int64)], {"axis": 1}, at_least=2),
    Case("Gather", [f(7, 3), np.array([[1, 2], [3, 6]], np.int64)], at_least=1),
    Case("Expand", [f(3, 1), i(2, 3, 4)]),
    Case("Tile", [f(2, 3), i(2, 3)], at_least=2),
    Case("Pad", [f(2, 3, 4), i(0, 1, 0, 0, 2, 0)], at_least=3),
    Case("Pad", [f(2, 5), i(-1, 2), None, i(1)], at_least=2),
    *(Case("Pad", [f(2, 5), i(0, 2, 0, 1)], {"mode": m}, at_least=2) for m in ("reflect", "edge", "wrap")),
    *(Case("DepthToSpace", [f(1, 8, 2, 3)], {"blocksize": 2, "mode": m}, at_least=4) for m in ("DCR", "CRD")),
    Case("SpaceToDepth", [f(1, 3, 4, 6)], {"blocksize": 2}, at_least=4),
    Case("Resize", [f(1, 3, 4, 4), None, np.array([1, 1, 2, 2], np.float32)], fixed=(2,), at_least=2),
    Case("Resize", [f(1, 3, 4, 4), None, None, i(1, 3, 7, 8)], {"mode": "linear"}, at_least=2),
    Case("Upsample", [f(1, 3, 4, 4), np.array([1, 1, 2, 2], np.float32)], fixed=(1,), opset=9, at_least=2),
    Case("Trilu", [f(2, 3, 4)], loose=True),
    Case("Conv", [f(2, 4, 5, 5), f(6, 4, 3, 3), f(6)], at_least=4),
    Case("Conv", [f(2, 4, 5, 5), f(6, 2, 3, 3), f(6)], {"group": 2}, at_least=4),
    Case("Conv", [f(2, 4, 5, 5), f(4, 1, 3, 3)], {"group": 4}, at_least=3),
    Case("Conv", [f(2, 3, 5, 5), f(6, 1, 3, 3)], {"group": 3}, at_least=3),
    Case("Conv", [f(2, 4, 9), f(6, 4, 3)], at_least=3),
    Case("ConvTranspose", [f(2, 4, 5, 5), f(4, 3, 3, 3), f(3)], at_least=4),
    Case("ConvTranspose", [f(2, 4, 5, 5), f(4, 3, 3, 3), f(6)], {"group": 2}, at_least=5),
    Case("ConvTranspose", [f(2, 4, 5, 5), f(4, 1, 3, 3)], {"group": 4}, at_least=4),
    Case("Gemm", [f(3, 4), f(4, 5), f(5)], at_least=5),
    Case("Gemm", [f(4, 3), f(5, 4), f(1, 5)], {"transA": 1, "transB": 1}, at_least=5),
    Case("MatMul", [f(2, 3, 4), f(4, 5)], at_least=5),
    Case("MatMul", [f(2, 6, 3, 4), f(6, 4, 5)], at_least=7),
    Case("MatMul", [f(4), f(2, 4, 5)], at_least=2),
    Case("MatMul", [f(3, 4), f(4)], at_least=2),
    Case("Einsum", [f(2, 3, 4), f(2, 4, 5)], {"equation": "bij,bjk->bik"}, at_least=4),
    Case("Einsum", [f(3, 4), f(5, 4)], {"equation": "ij,kj"}, at_least=2),
    Case("LSTM", [f(4, 2, 3), g(1, 20, 3), g(1, 20, 5), g(1, 40), None, g(1, 2, 5), g(1, 2, 5)],
         {"hidden_size": 5}, outputs=3, at_least=20),
    Case("GRU", [f(4, 2, 3), g(2, 15, 3), g(2, 15, 5), g(2, 30)],
         {"hidden_size": 5, "direction": "bidirectional"}, outputs=2, at_least=10),
    Case("RNN", [f(4, 2, 3), g(1, 5, 3), g(1, 5, 5)], {"hidden_size": 5}, outputs=2, at_least=8),
    Case("Attention", [f(2, 3, 4, 5), f(2, 3, 6, 5), f(2, 3, 6, 7)], opset=23, at_least=8),
    Case("RMSNormalization", [f(2, 5, 4), f(4)], opset=23),
    Case("Swish", [f(2, 3, 4)], opset=24),
]  # fmt: skip


def run(session: ort.InferenceSession, feeds: dict[str, np.ndarray]) -> list[np.ndarray]:
    return session.run(None, feeds)


def ir_node(model: onnx.ModelProto) -> ir.Node:
    return next(iter(ir.from_proto(model).graph))


@pytest.mark.parametrize("case", CASES, ids=lambda c: f"{c.op}-{'x'.join(map(str, c.data[0].shape))}")
def test_links_say_which_outputs_change(case: Case) -> None:
    model = case.model()
    rule = rule_of(ir_node(model))
    assert rule is not None
    links = rule.flow(ir_node(model))
    assert len(links) >= case.at_least
    # All float inputs are fed, also those that the node under test sees as constants.
    feeding = oh.make_model(model.graph, opset_imports=model.opset_import, ir_version=10)
    options = ort.SessionOptions()
    options.graph_optimization_level = ort.GraphOptimizationLevel.ORT_DISABLE_ALL
    try:
        session = ort.InferenceSession(feeding.SerializeToString(), options, ["CPUExecutionProvider"])
    except ort.capi.onnxruntime_pybind11_state.NotImplemented:
        pytest.skip(f"the runtime has no {case.op}")
    names = {i.name for i in session.get_inputs()}
    feeds = {f"x{k}": a for k, a in enumerate(case.data) if a is not None and f"x{k}" in names}
    before = run(session, feeds)
    checked = 0
    for link in links:
        name = f"x{link.input}"
        if name not in names or feeds[name].dtype != np.float32:
            continue
        array, out = feeds[name], before[link.output]
        for index in range(array.shape[link.input_axis]):
            changed = array.copy()
            where = [slice(None)] * array.ndim
            where[link.input_axis] = index
            part = changed[tuple(where)]
            changed[tuple(where)] = part + RNG.uniform(0.05, 0.2, part.shape)
            after = run(session, {**feeds, name: changed})[link.output]
            others = tuple(a for a in range(out.ndim) if a != link.output_axis)
            differs = set(np.flatnonzero((after != out).any(axis=others)))
            expected = set(link.outputs_of(index, out.shape[link.output_axis]))
            if link.exact:
                assert differs <= expected, (link, index)
            if not case.loose:
                assert expected <= differs, (link, index)
            for o in expected:
                assert index in link.inputs_of(int(o), array.shape[link.input_axis])
            checked += 1
    assert checked


def test_every_rule_with_links_was_tried() -> None:
    tried = {case.op for case in CASES}
    with_links = {name for name, rule in BUILTIN.items() if rule.flow is not OpRule("x").flow}
    untried = with_links - tried
    # Bit patterns and quantized types have no float inputs to perturb; they share a rule that was tried.
    shared = {rule.flow for name, rule in BUILTIN.items() if name in tried}
    alone = {n for n in untried if BUILTIN[n].flow not in shared}
    assert alone <= {"QLinearConv", "QLinearMatMul", "QuantizeLinear", "DequantizeLinear"}


def test_quantize_links_scale_to_its_axis() -> None:
    case = Case("QuantizeLinear", [f(2, 3, 4), f(3), np.zeros(3, np.uint8)], {"axis": 1}, fixed=(1, 2))
    links = {
        (k.input, k.input_axis, k.output_axis) for k in BUILTIN["QuantizeLinear"].flow(ir_node(case.model()))
    }
    assert links == {(0, 0, 0), (0, 1, 1), (0, 2, 2), (1, 0, 1), (2, 0, 1)}


def shapes_of_equal_size() -> st.SearchStrategy[tuple[tuple[int, ...], tuple[int, ...]]]:
    primes = st.lists(st.sampled_from([1, 2, 2, 3, 5]), min_size=1, max_size=6)

    def cut(factors: list[int], marks: list[bool]) -> tuple[int, ...]:
        shape, size = [], 1
        for factor, mark in zip(factors, marks, strict=True):
            size *= factor
            if mark:
                shape.append(size)
                size = 1
        return (*shape, size)

    def pair(factors: list[int]) -> st.SearchStrategy[Any]:
        marks = st.lists(st.booleans(), min_size=len(factors), max_size=len(factors))
        other = st.permutations(factors)
        return st.tuples(
            marks.map(lambda m: cut(factors, m)), st.tuples(other, marks).map(lambda t: cut(list(t[0]), t[1]))
        )

    return primes.flatmap(pair)


@settings(max_examples=150, deadline=None)
@given(shapes_of_equal_size())
def test_reshape_links_against_numpy(shapes: tuple[tuple[int, ...], tuple[int, ...]]) -> None:
    shape, out = shapes
    for link in reshape_links(shape, out):
        index = np.indices(shape)[link.input_axis].reshape(out)
        rows = np.moveaxis(index, link.output_axis, 0).reshape(out[link.output_axis], -1)
        for i_ in range(shape[link.input_axis]):
            truth = np.flatnonzero((rows == i_).any(axis=1))
            assert np.array_equal(truth, link.outputs_of(i_, out[link.output_axis])), (shape, out, link)


def test_reshape_keeps_symbolic_batch_and_heads() -> None:
    links = reshape_links(("batch", "seq", 384), ("batch", "seq", 12, 32))
    assert {(k.input_axis, k.output_axis, k.kind) for k in links} == {
        (0, 0, "same"), (1, 1, "same"), (2, 2, "block"), (2, 3, "block")
    }  # fmt: skip
    # What stands between unknown dimensions is pinned; the right end is still known.
    links = reshape_links(("batch", "seq", 8, 32), (None, 8, 32))
    assert {(k.input_axis, k.output_axis) for k in links} == {(2, 1), (3, 2)}


def test_unknown_operator_has_no_rule() -> None:
    assert rule_of(ir.node("Frobnicate", [ir.val("x")])) is None
    assert rule_of(ir.node("Conv", [ir.val("x")], domain="com.example")) is None
    assert rule_of(ir.node("Conv", [ir.val("x")], domain="ai.onnx")) is BUILTIN["Conv"]


def test_table_covers_the_core_operators() -> None:
    assert len(BUILTIN) >= 110
    assert all(rule.op_type == name and rule.domain == "" for name, rule in BUILTIN.items())
    known = {s.name for s in onnx.defs.get_all_schemas() if s.domain == ""}
    assert set(BUILTIN) <= known


def keeps(case: Case) -> bool:
    node = ir_node(case.model())
    return BUILTIN[case.op].keeps_values_of(node)


def test_keeps_values_means_only_input_values_and_zeros() -> None:
    for case in CASES:
        if not keeps(case) or case.op in ("TopK",):
            continue
        session = ort.InferenceSession(case.model().SerializeToString(), providers=["CPUExecutionProvider"])
        names = {k.name for k in session.get_inputs()}
        out = session.run(None, {f"x{k}": a for k, a in enumerate(case.data) if f"x{k}" in names})[0]
        pool = np.concatenate(
            [a.reshape(-1) for a in case.data if a is not None and a.dtype == np.float32] + [np.zeros(1)]
        )
        assert np.isin(out, pool.astype(np.float32)).all(), case.op


@pytest.mark.parametrize(
    ("case", "expected"),
    [
        (Case("Pad", [f(2, 3), i(0, 1, 0, 1), np.array(1.5, np.float32)], fixed=(2,)), False),
        (Case("Pad", [f(2, 3), i(0, 1, 0, 1), np.array(0, np.float32)], fixed=(2,)), True),
        (Case("Resize", [f(1, 1, 2, 2), None, None, i(1, 1, 4, 4)], {"mode": "linear"}), False),
        (Case("Resize", [f(1, 1, 2, 2), None, None, i(1, 1, 4, 4)], {"mode": "nearest"}), True),
        (Case("Relu", [f(2, 3)]), False),
    ],
)
def test_keeps_values_depends_on_attributes(case: Case, expected: bool) -> None:
    assert keeps(case) is expected
