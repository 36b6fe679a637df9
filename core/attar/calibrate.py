"""Measuring a target: times single kernels in float and int8 and fits the cost table that the planner reads.

Each sample is a graph of one operator; the time is that kernel's own, read from the runtime's profile, so
that the conversions around it are charged to themselves.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import ml_dtypes
import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

from attar.costs import CostTable, fit
from attar.progress import Progress, Silent
from attar.runtime import OnnxRuntime, Runtime
from attar.targets import cpu_name


@dataclass(frozen=True)
class Probe:
    """One operator at one size.

    Attributes:
        kind: the operator class of the table.
        op: operator type.
        shapes: shapes of the activation inputs.
        weight: shape of the constant weight, None for none.
        attributes: of the node.
        macs: multiply-accumulates of one run.
    """

    kind: str
    op: str
    shapes: tuple[tuple[int, ...], ...]
    output: tuple[int, ...]
    weight: tuple[int, ...] | None = None
    attributes: tuple[tuple[str, Any], ...] = ()
    macs: int = 0

    @property
    def elements(self) -> int:
        return int(sum(np.prod(s) for s in (*self.shapes, self.output)))


def probes() -> Iterator[Probe]:
    """The sizes that are measured: what networks of 0.1 to 200 ms use."""
    for c, o, hw in [(16, 64, 56), (64, 64, 56), (64, 256, 28), (256, 64, 28), (144, 24, 28), (96, 96, 14),
                     (384, 64, 14), (512, 512, 14), (512, 512, 7), (960, 320, 7), (32, 16, 112),
                     (512, 128, 4)]:  # fmt: skip
        yield _conv("conv.pointwise", c, o, hw, 1, 1, 1)
    for c, o, hw in [(16, 16, 32), (32, 32, 32), (64, 64, 56), (128, 128, 28), (256, 256, 14), (512, 512, 7),
                     (48, 64, 35), (8, 16, 64), (64, 64, 8), (192, 320, 17)]:  # fmt: skip
        yield _conv("conv.spatial", c, o, hw, 3, 1, 1)
    for c, hw, k, s in [(32, 112, 3, 1), (96, 112, 3, 2), (144, 56, 3, 1), (192, 28, 3, 1), (384, 14, 3, 1),
                        (576, 14, 3, 2), (960, 7, 3, 1), (240, 28, 5, 1), (672, 14, 5, 1),
                        (64, 8, 3, 1)]:  # fmt: skip
        yield _conv("conv.depthwise", c, c, hw, k, s, c)
    for c, hw, groups in [(128, 28, 32), (256, 14, 32), (512, 7, 32), (240, 28, 3), (64, 56, 4)]:
        yield _conv("conv.grouped", c, c, hw, 3, 1, groups)
    for c, o, hw, k, s in [(3, 32, 224, 3, 2), (3, 16, 32, 3, 1), (3, 64, 224, 7, 2), (1, 32, 28, 3, 1),
                           (3, 24, 224, 3, 2), (1, 64, 40, 5, 1), (2, 32, 64, 3, 1)]:  # fmt: skip
        yield _conv("conv.thin", c, o, hw, k, s, 1)
    for o, hw, k, s in [(32, 224, 3, 2), (16, 32, 3, 1), (64, 224, 7, 2), (32, 28, 3, 1), (24, 224, 3, 2)]:
        yield _conv("conv.widened", 4, o, hw, k, s, 1)
    for rows, k, n in [(128, 384, 384), (128, 384, 1536), (128, 1536, 384), (64, 768, 768), (32, 256, 256),
                       (197, 192, 576)]:  # fmt: skip
        yield Probe("matmul.rows", "MatMul", ((rows, k),), (rows, n), (k, n), (), rows * k * n)
        yield Probe("gemm.rows", "Gemm", ((rows, k),), (rows, n), (k, n), (), rows * k * n)
    for rows, k, n in [(1, 1280, 1000), (1, 512, 10), (1, 2048, 1000), (4, 384, 384), (8, 768, 768),
                       (1, 64, 10), (1, 512, 512)]:  # fmt: skip
        yield Probe("matmul.row", "MatMul", ((rows, k),), (rows, n), (k, n), (), rows * k * n)
        yield Probe("gemm.row", "Gemm", ((rows, k),), (rows, n), (k, n), (), rows * k * n)
    for heads, rows, k, n in [(12, 128, 32, 128), (12, 128, 128, 32), (6, 64, 64, 64), (3, 197, 64, 197)]:
        shapes = ((1, heads, rows, k), (1, heads, k, n))
        yield Probe(
            "matmul.activations", "MatMul", shapes, (1, heads, rows, n), None, (), heads * rows * k * n
        )
    sizes: list[tuple[int, ...]] = [
        (1, 16, 8, 8), (1, 64, 14, 14), (1, 256, 14, 14), (1, 24, 56, 56), (1, 256, 56, 56), (1, 128, 384),
        (1, 1, 1000),
    ]  # fmt: skip
    for shape in sizes:
        yield Probe("add", "Add", (shape, shape), shape)
        yield Probe("mul", "Mul", (shape, shape), shape)
        yield Probe("sigmoid", "Sigmoid", (shape,), shape)
        yield Probe("leakyrelu", "LeakyRelu", (shape,), shape)
        yield Probe("softmax", "Softmax", (shape,), shape)
        yield Probe("conversion", "Identity", (shape,), shape)
    for c, hw in [(64, 8), (256, 14), (576, 7), (1280, 7), (96, 56), (16, 112)]:
        shape = (1, c, hw, hw)
        yield Probe("globalaveragepool", "GlobalAveragePool", (shape,), (1, c, 1, 1))
        half = (1, c, hw // 2, hw // 2)
        window = (("kernel_shape", [2, 2]), ("strides", [2, 2]))
        yield Probe("averagepool", "AveragePool", (shape,), half, None, window)
        yield Probe("maxpool", "MaxPool", (shape,), half, None, window)
        yield Probe("concat", "Concat", (shape, shape), (1, 2 * c, hw, hw), None, (("axis", 1),))
        yield Probe("layout", "Transpose", (shape,), (1, hw, hw, c), None, (("perm", [0, 2, 3, 1]),))


def calibrate_target(
    runtime: Runtime | None = None, *, runs: int = 15, progress: Progress | None = None
) -> CostTable:
    """Measure this machine, one thread. Takes about two minutes.

    Args:
        runtime: ONNX Runtime unless another one is given.
        runs: timed runs of each sample; the median counts.
    """
    runtime = runtime or OnnxRuntime()
    todo = list(probes())
    samples: dict[tuple[str, str], list[tuple[float, float, float]]] = {}
    with (progress or Silent()).task("measuring kernels", len(todo)) as task:
        for probe in todo:
            kernels = {"float": _FLOAT_KERNELS(probe), "int8": _INT_KERNELS(probe), **_few_bits(probe)}
            for dtype, by_kind in kernels.items():
                for kind, names in by_kind.items():
                    time = _time(runtime, _graph(probe, dtype), names, runs)
                    if time is not None:
                        elements = probe.elements if kind == probe.kind else int(np.prod(probe.shapes[0]))
                        samples.setdefault((kind, dtype), []).append((probe.macs, elements, time))
            task.advance()
    rows = {key: fit(values) for key, values in samples.items()}
    return CostTable(rows, f"{cpu_name()}, {runtime.name} {runtime.version()}, one thread")


def _few_bits(probe: Probe) -> dict[str, dict[str, frozenset[str]]]:
    """Kernels that read weights of 4 and 8 bits in blocks, by the name of their row: nbits<bits>/<block>."""
    if probe.op != "MatMul" or probe.weight is None:
        return {}
    return {
        f"nbits{bits}/{block}": {probe.kind: frozenset({"MatMulNBits"})}
        for bits in (4, 8)
        for block in (32, 128)
        if probe.weight[0] % block == 0
    }


def _FLOAT_KERNELS(probe: Probe) -> dict[str, frozenset[str]]:  # noqa: N802  (a table by role)
    if probe.kind == "conversion":
        return {}
    return {probe.kind: frozenset({probe.op, f"Fused{probe.op}"})}


def _INT_KERNELS(probe: Probe) -> dict[str, frozenset[str]]:  # noqa: N802
    if probe.kind == "conversion":
        return {
            "quantize": frozenset({"QuantizeLinear"}),
            "dequantize": frozenset({"DequantizeLinear"}),
        }
    names = {f"QLinear{probe.op}", "MatMulIntegerToFloat", "QGemm", "NhwcMaxPool"}
    return {probe.kind: frozenset(names | ({probe.op} if probe.op in ("MaxPool", "Transpose") else set()))}


def _conv(  # noqa: PLR0917  (the columns of the lists above)
    kind: str, c: int, o: int, hw: int, k: int, stride: int, groups: int
) -> Probe:
    out = (hw + 2 * (k // 2) - k) // stride + 1
    attributes = (
        ("kernel_shape", [k, k]),
        ("strides", [stride] * 2),
        ("pads", [k // 2] * 4),
        ("group", groups),
    )
    weight = (o, c // groups, k, k)
    return Probe(
        kind,
        "Conv",
        ((1, c, hw, hw),),
        (1, o, out, out),
        weight,
        attributes,
        o * c // groups * k * k * out * out,
    )


def _time(runtime: Runtime, model: onnx.ModelProto, names: frozenset[str], runs: int) -> float | None:
    """Median microseconds of the kernels called `names`, None if the runtime used no such kernel."""
    session: Any = runtime.open(model.SerializeToString(), threads=1, profile=True)
    rng = np.random.default_rng(0)
    feeds = {s.name: rng.standard_normal(s.shape).astype(np.float32) for s in session.inputs}
    kernels = session.profile(feeds, runs=runs)
    times = [k.milliseconds * 1000 for k in kernels if k.op in names and k.milliseconds is not None]
    return times[0] if times else None


def _graph(probe: Probe, dtype: str) -> onnx.ModelProto:
    """`probe` as a model; in int8 every activation passes Q/DQ and so does the output."""
    rng = np.random.default_rng(1)
    nodes: list[onnx.NodeProto] = []
    constants: list[onnx.TensorProto] = []

    def constant(name: str, array: np.ndarray[Any, Any]) -> str:
        constants.append(numpy_helper.from_array(array, name))
        return name

    zero, scale = (
        constant("zero", np.array(128, np.uint8)),
        constant("scale", np.array(0.03, np.float32)),
    )

    def through(value: str) -> str:
        if dtype != "int8":
            return value
        nodes.append(helper.make_node("QuantizeLinear", [value, scale, zero], [f"{value}_q"]))
        nodes.append(helper.make_node("DequantizeLinear", [f"{value}_q", scale, zero], [f"{value}_d"]))
        return f"{value}_d"

    def integer_weight(shape: tuple[int, ...]) -> str:
        # One scale a channel, as networks have it: kernels take another path than for one a tensor.
        axis = 0 if len(shape) > 2 else 1
        name = f"w{len(constants)}"
        arguments = [
            constant(name, rng.integers(-127, 128, shape).astype(np.int8)),
            constant(f"{name}_scale", np.full(shape[axis], 0.01, np.float32)),
            constant(f"{name}_zero", np.zeros(shape[axis], np.int8)),
        ]
        nodes.append(helper.make_node("DequantizeLinear", arguments, [f"{name}_d"], axis=axis))
        return f"{name}_d"

    def blockwise_weight(shape: tuple[int, ...]) -> str:
        bits, block = (int(number) for number in dtype.removeprefix("nbits").split("/"))
        codes = rng.integers(-8, 8, shape).astype(ml_dtypes.int4 if bits == 4 else np.int8)
        arguments = [
            constant("w", codes),
            constant("w_scale", np.full((shape[0] // block, shape[1]), 0.01, np.float32)),
        ]
        nodes.append(helper.make_node("DequantizeLinear", arguments, ["w_d"], axis=0, block_size=block))
        return "w_d"

    inputs = [f"x{i}" for i in range(len(probe.shapes))]
    operands = [through(x) for x in inputs]
    if probe.op == "MaxPool" and dtype == "int8":
        # Integer max-pooling is only quick in channels-last form, which an integer convolution before it
        # brings about.
        c = probe.shapes[0][1]
        nodes.append(helper.make_node("Conv", [operands[0], integer_weight((c, c, 1, 1))], ["before"]))
        operands = [through("before")]
    if probe.weight is not None:
        if dtype.startswith("nbits"):
            operands.append(blockwise_weight(probe.weight))
        elif dtype == "float":
            operands.append(constant("w", rng.standard_normal(probe.weight).astype(np.float32)))
        else:
            operands.append(integer_weight(probe.weight))
    nodes.append(helper.make_node(probe.op, operands, ["y0"], **dict(probe.attributes)))
    result = through("y0")
    graph = helper.make_graph(
        nodes,
        "probe",
        [
            helper.make_tensor_value_info(n, TensorProto.FLOAT, s)
            for n, s in zip(inputs, probe.shapes, strict=True)
        ],
        [helper.make_tensor_value_info(result, TensorProto.FLOAT, probe.output)],
        constants,
    )
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 21)], ir_version=10)
