"""ONNX's own node tests, made into a suite for adapters that write models.

A case is one operator with its inputs and recorded outputs. Every input but the first becomes an initializer,
as weights, axes and shapes are in real models.
"""

from __future__ import annotations

import warnings
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np
import onnx
import onnx_ir as ir

from attar.errors import AttarError, ConversionError
from attar.testing.zoo import Array

if TYPE_CHECKING:
    from attar.adapters import Adapter
    from attar.registry import Registry

_CORE = """
Abs Add And ArgMax ArgMin Attention AveragePool BatchNormalization Cast CastLike Ceil Celu Clip
Concat Constant ConstantOfShape Conv ConvTranspose Cos CumSum DepthToSpace DequantizeLinear Div
Dropout Einsum Elu Equal Erf Exp Expand Flatten Floor GRU Gather GatherElements GatherND Gelu Gemm
GlobalAveragePool GlobalMaxPool Greater GreaterOrEqual GroupNormalization HardSigmoid HardSwish
Identity If InstanceNormalization LRN LSTM LayerNormalization LeakyRelu Less LessOrEqual Log
LogSoftmax LpNormalization MatMul Max MaxPool Mean MeanVarianceNormalization Min Mish Mod Mul Neg
Not OneHot Or PRelu Pad Pow QuantizeLinear RMSNormalization RNN Range Reciprocal ReduceL1 ReduceL2
ReduceLogSum ReduceLogSumExp ReduceMax ReduceMean ReduceMin ReduceProd ReduceSum ReduceSumSquare
Relu Reshape Resize RotaryEmbedding Round ScatterElements ScatterND Selu Shape Sigmoid Sign Sin Size
Slice Softmax Softplus Softsign SpaceToDepth Split Sqrt Squeeze Sub Sum Swish Tanh ThresholdedRelu
Tile TopK Transpose Trilu Unsqueeze Upsample Where Xor
"""
CORE = frozenset(_CORE.split())
"""Operators of convolutional networks, transformers and recurrent networks."""


@dataclass(frozen=True)
class NodeCase:
    """One case.

    Attributes:
        name: as ONNX names it.
        op: the operator under test.
        model: in normal form, without the outputs that the case does not record.
        feeds: the input by name; empty where the operator has none.
        wanted: recorded outputs in order.
        rtol: relative tolerance as `numpy.allclose` takes it; ONNX's own.
        atol: absolute tolerance.
    """

    name: str
    op: str
    model: ir.Model
    feeds: dict[str, Array]
    wanted: list[Array]
    rtol: float
    atol: float

    @property
    def core(self) -> bool:
        return self.op in CORE


@dataclass
class Outcome:
    """What became of one case.

    Attributes:
        verdict: "passed", "refused" (a `ConversionError` said no), "wrong" (another answer) or "broken"
            (another error).
        detail: the reason, unless passed.
    """

    case: NodeCase
    verdict: str
    detail: str = ""


@dataclass
class Tally:
    """The outcomes of a run of the suite."""

    outcomes: list[Outcome] = field(default_factory=list)

    def count(self, verdict: str, *, core: bool = False) -> int:
        return sum(o.verdict == verdict and (o.case.core or not core) for o in self.outcomes)

    def of(self, *verdicts: str) -> list[Outcome]:
        return [o for o in self.outcomes if o.verdict in verdicts]


def node_cases(*, expanded: bool = False) -> list[NodeCase]:
    """Every case of ONNX's whose first input is a float32 tensor and whose other values are tensors too.

    Args:
        expanded: also the cases in which ONNX writes an operator by others.

    Cases that plain ONNX IR cannot hold (sequences, optional values, training operators) are left out.
    """
    from onnx.backend.test.loader import load_model_tests

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # the makers of some cases divide by zero on purpose
        loaded = load_model_tests(kind="node")
    cases = []
    for test in loaded:
        if ("_expanded" in test.name and not expanded) or not _fits(test.model):
            continue
        case = _case(test)
        if case is not None:
            cases.append(case)
    return cases


def run_suite(
    adapter: Adapter, cases: Iterable[NodeCase], *, registry: Registry, back: bool = False, **options: Any
) -> Tally:
    """Write every case with `adapter`, run it there, and compare with the recorded outputs.

    Args:
        back: also read what was written into the IR again and run that in ONNX Runtime; a case passes only if
            both answers are right.
        options: for `Adapter.write`.
    """
    return Tally([run_case(adapter, case, registry=registry, back=back, **options) for case in cases])


def run_case(
    adapter: Adapter, case: NodeCase, *, registry: Registry, back: bool = False, **options: Any
) -> Outcome:
    """`run_suite` for one case. Whatever goes wrong is in the outcome; nothing is raised."""
    try:
        exported = adapter.write(case.model, registry=registry, **options)
    except ConversionError as error:
        return Outcome(case, "refused", error.message)
    except Exception as error:
        return Outcome(case, "broken", f"writing: {type(error).__name__}: {error}")
    try:
        got = list(exported.run(case.feeds))
    except Exception as error:
        return Outcome(case, "broken", f"running: {type(error).__name__}: {error}")
    complaint = _compare(case, got)
    if complaint or not back:
        return Outcome(case, "wrong" if complaint else "passed", complaint)
    return _back(adapter, case, exported.native, registry)


def _back(adapter: Adapter, case: NodeCase, native: Any, registry: Registry) -> Outcome:
    from attar.runtime import OnnxRuntime

    try:
        inputs = {k: np.array(v) for k, v in case.feeds.items()}
        loaded = adapter.load(native, inputs=inputs, registry=registry)
        session = OnnxRuntime().open(loaded.model)
    except ConversionError as error:
        return Outcome(case, "refused", f"reading back: {error.message}")
    except AttarError as error:
        return Outcome(case, "broken", f"reading back: {type(error).__name__}: {error.message}")
    except Exception as error:
        return Outcome(case, "broken", f"reading back: {type(error).__name__}: {error}")
    if len(session.inputs) != len(case.feeds):
        return Outcome(case, "wrong", "read back: an input is lost")
    feeds = dict(zip([s.name for s in session.inputs], case.feeds.values(), strict=True))
    try:
        complaint = _compare(case, session.run(feeds))
    except AttarError as error:
        complaint = error.message
    except Exception as error:
        return Outcome(case, "broken", f"running what was read back: {type(error).__name__}: {error}")
    if complaint and _right_by_reference(case, loaded.model, feeds):
        complaint = ""
    return Outcome(case, "wrong" if complaint else "passed", complaint and f"read back: {complaint}")


def _right_by_reference(case: NodeCase, model: ir.Model, feeds: dict[str, Array]) -> bool:
    """Whether ONNX's own evaluator gives what was recorded. ONNX Runtime does not hand small floats to numpy,
    and misses the tolerance of some cases itself."""
    from onnx.reference import ReferenceEvaluator

    try:
        return not _compare(case, ReferenceEvaluator(ir.to_proto(model)).run(None, feeds))
    except Exception:  # it lacks operators and raises whatever numpy raises
        return False


def _compare(case: NodeCase, got: Sequence[Any]) -> str:
    """What is wrong with the outputs; empty if nothing is."""
    if len(got) != len(case.wanted):
        return f"{len(got)} outputs, {len(case.wanted)} wanted"
    for index, (ours, theirs) in enumerate(zip(map(np.asarray, got), case.wanted, strict=True)):
        array, wanted = ours, theirs
        if array.shape != wanted.shape:
            return f"output {index} has shape {list(array.shape)}, not {list(wanted.shape)}"
        if array.dtype != wanted.dtype:
            return f"output {index} is {array.dtype}, not {wanted.dtype}"
        if array.dtype.kind == "V":  # element types that numpy lacks: small floats and integers
            array, wanted = array.astype(np.float64), wanted.astype(np.float64)
        if array.dtype.kind in "fc":
            if not np.allclose(array, wanted, rtol=case.rtol, atol=max(case.atol, 1e-6), equal_nan=True):
                with np.errstate(all="ignore"):
                    gap = np.nanmax(np.abs(array.astype(np.float64) - wanted.astype(np.float64)), initial=0)
                return f"output {index} differs by up to {gap:.3g}"
        elif not np.array_equal(array, wanted):
            return f"output {index} differs in {int((array != wanted).sum())} of {wanted.size} elements"
    return ""


_ODD = ("ai.onnx.preview", "ai.onnx.ml", "ai.onnx.training")


def _fits(model: onnx.ModelProto) -> bool:
    values = [*model.graph.input, *model.graph.output]
    if not model.graph.input or any(not v.type.HasField("tensor_type") for v in values):
        return False
    if any(node.domain.startswith(_ODD) for node in model.graph.node):
        return False
    return bool(model.graph.input[0].type.tensor_type.elem_type == onnx.TensorProto.FLOAT)


def _case(test: Any) -> NodeCase | None:
    from attar import graph

    inputs, outputs = ([_array(a) for a in side] for side in test.data_sets[0])
    proto = onnx.ModelProto()
    proto.CopyFrom(test.model)
    first, *others = proto.graph.input
    for info, array in zip(others, inputs[1:], strict=False):
        if array.dtype == object and info.type.tensor_type.elem_type != onnx.TensorProto.STRING:
            return None
        tensor = _tensor(info, array)
        if tensor is None:
            return None
        proto.graph.initializer.append(tensor)
    del proto.graph.input[1:]
    try:
        model = graph.from_proto(proto)
        graph.normalize(model)
    except AttarError:
        return None  # what the normal form does not hold
    op = test.model.graph.node[0].op_type
    return NodeCase(
        test.name, op, model, {first.name: inputs[0]}, outputs, float(test.rtol), float(test.atol)
    )


def _array(recorded: Any) -> Array:
    """Recorded data; element types that numpy lacks are recorded as protobufs."""
    if isinstance(recorded, onnx.TensorProto):
        return np.asarray(onnx.numpy_helper.to_array(recorded))
    return np.asarray(recorded)


def _tensor(info: onnx.ValueInfoProto, array: Array) -> onnx.TensorProto | None:
    kind = info.type.tensor_type.elem_type
    try:
        if kind == onnx.TensorProto.STRING:
            return onnx.helper.make_tensor(
                info.name, kind, array.shape, [str(s).encode() for s in array.ravel()]
            )
        return onnx.numpy_helper.from_array(np.ascontiguousarray(array).reshape(array.shape), info.name)
    except (TypeError, ValueError, KeyError):
        return None
