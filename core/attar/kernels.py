"""Reading ONNX Runtime's optimized graph: which kernels compute on integers, which in float, and how long
each takes."""

from __future__ import annotations

import dataclasses
import re
import statistics
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from attar import graph
from attar.report import Kernel, KernelKind

if TYPE_CHECKING:
    import onnx_ir as ir

# Multiply-accumulate operators: what compression is about.
COMPUTE = frozenset(
    [
        "Conv", "FusedConv", "ConvTranspose", "Gemm", "FusedGemm", "MatMul", "FusedMatMul", "Attention",
        "MultiHeadAttention", "GroupQueryAttention", "LSTM", "GRU", "RNN", "ConvInteger",
        "MatMulInteger", "MatMulIntegerToFloat", "DynamicQuantizeMatMul", "DynamicQuantizeLSTM",
        "QGemm", "QLinearConv", "QLinearMatMul", "QLinearConvTranspose", "QAttention", "MatMulNBits",
        "MatMulBnb4", "NhwcFusedConv", "Einsum", "DeformConv",
    ]
)  # fmt: skip
# Suffixes that ONNX Runtime's graph optimizers give to nodes and values that they rewrite.
_MARKS = re.compile(r"(_nchwc|_token_\d+|_quant|_nhwc)+$")
_INTEGER = frozenset(
    [
        "ConvInteger", "MatMulInteger", "MatMulIntegerToFloat", "DynamicQuantizeMatMul",
        "DynamicQuantizeLSTM", "QGemm", "QAttention", "MatMulNBits", "NhwcMaxPool",
        "QEmbedLayerNormalization", "QOrderedMatMul",
    ]
)  # fmt: skip
_CONVERSION = frozenset(
    ["QuantizeLinear", "DequantizeLinear", "DynamicQuantizeLinear", "ReorderInput", "ReorderOutput", "Cast"]
)
_DATA = frozenset(
    [
        "Transpose", "Reshape", "Flatten", "Squeeze", "Unsqueeze", "Slice", "Gather", "Split", "Concat",
        "Pad", "Shape", "Expand", "Identity", "Constant", "Tile", "DepthToSpace", "SpaceToDepth",
        "Size", "Range", "NonZero", "ConstantOfShape", "MaxPool", "Resize", "ScatterND",
        "GatherElements", "GatherND", "ScatterElements", "OneHot", "If", "Loop", "Scan", "Equal",
        "Less", "Greater", "And", "Or", "Not", "Where",
    ]
)  # fmt: skip

# What ONNX Runtime's CPU provider fuses into the Conv, Gemm or MatMul before it.
_FUSED_BEHIND = frozenset(["Relu", "Clip", "Tanh", "Sigmoid", "LeakyRelu", "HardSigmoid", "Add"])


def kind_of(op: str) -> KernelKind:
    """The kind of a kernel by its operator alone; `add_times` corrects it by the types that were seen."""
    if op.startswith("QLinear") or op in _INTEGER:
        return "integer"
    if op in _CONVERSION:
        return "conversion"
    if op in _DATA:
        return "data"
    return "float"


def read_optimized(path: Path) -> tuple[Kernel, ...]:
    """The kernels of an optimized model that ONNX Runtime saved, in order, subgraphs included."""
    import onnx

    model = onnx.load(str(path), load_external_data=False)
    found: list[Kernel] = []

    def walk(graph: Any) -> None:
        for node in graph.node:
            found.append(
                Kernel(
                    name=node.name,
                    op=node.op_type,
                    kind=kind_of(node.op_type),
                    compute=node.op_type in COMPUTE,
                    outputs=tuple(node.output),
                )
            )
            for attribute in node.attribute:
                if attribute.HasField("g"):
                    walk(attribute.g)

    walk(model.graph)
    return tuple(found)


def names_of(kernel: Kernel) -> tuple[str, ...]:
    """The names under which the model may know a kernel: ONNX Runtime appends marks to node and value
    names."""
    found = {kernel.name, *kernel.outputs}
    found |= {_MARKS.sub("", name) for name in found}
    return tuple(sorted(n for n in found if n))


def times_by_name(kernels: Sequence[Kernel]) -> dict[str, float]:
    """Node or value name -> microseconds of the kernel that stands for it."""
    out: dict[str, float] = {}
    for kernel in kernels:
        if kernel.milliseconds is not None and kernel.kind in ("integer", "float"):
            out.update(dict.fromkeys(names_of(kernel), kernel.milliseconds * 1000))
    return out


def noted_reasons(model: ir.Model) -> dict[str, str]:
    """Node or value name -> why a planning pass left the node in float.

    ONNX Runtime names a kernel after the last operator that it fused into it, so what it can fuse behind a
    node takes the node's reason.
    """
    found: dict[str, str] = {}
    for node in graph.all_nodes(model):
        reason = node.metadata_props.get("attar.float")
        if not reason:
            continue
        found.update(dict.fromkeys((node.name or "", *(v.name or "" for v in node.outputs)), reason))
        after = node.outputs[0].consumers()
        while len(after) == 1 and after[0].op_type in _FUSED_BEHIND:
            for name in (after[0].name or "", after[0].outputs[0].name or ""):
                found.setdefault(name, reason)
            after = after[0].outputs[0].consumers()
    return found


def explained(kernels: Sequence[Kernel], reasons: Mapping[str, str], otherwise: str) -> tuple[Kernel, ...]:
    """`kernels`, the float compute kernels of a quantized model with the reason why they stayed.

    Args:
        reasons: node or value name -> reason.
        otherwise: the reason of those that nobody has explained.
    """
    if not any(k.kind == "integer" for k in kernels):
        otherwise = ""  # nothing was quantized: only what a pass said of an operator explains it
    return tuple(
        dataclasses.replace(k, reason=next((reasons[n] for n in names_of(k) if n in reasons), otherwise))
        if k.kind == "float" and k.compute
        else k
        for k in kernels
    )


def add_times(
    kernels: Sequence[Kernel],
    times: Mapping[str, Sequence[float]],
    seen: Mapping[str, Mapping[str, Any]],
    *,
    skip: int,
) -> tuple[Kernel, ...]:
    """`kernels` with median milliseconds, the first `skip` runs left out, and kinds corrected by the types
    seen.

    A kernel that the runtime executed and the saved graph does not show (it optimizes once more on loading)
    is added.
    """
    out = []
    for kernel in kernels:
        measured = list(times.get(kernel.name, ()))[skip:]
        kind = _kind_by_types(kernel.op, seen[kernel.name]) if kernel.name in seen else kernel.kind
        out.append(
            dataclasses.replace(
                kernel, kind=kind, milliseconds=statistics.median(measured) if measured else None
            )
        )
    known = {k.name for k in kernels}
    for name, arguments in seen.items():
        if name not in known:
            op = str(arguments.get("op_name", "?"))
            measured = list(times[name])[skip:]
            out.append(
                Kernel(
                    name, op, _kind_by_types(op, arguments), op in COMPUTE,
                    milliseconds=statistics.median(measured) if measured else None,
                )
            )  # fmt: skip
    return tuple(out)


def _kind_by_types(op: str, arguments: Mapping[str, Any]) -> KernelKind:
    kind = kind_of(op)
    types = [t for entry in arguments.get("input_type_shape", ()) for t in entry]
    if kind == "float" and types and types[0] in ("uint8", "int8"):
        return "integer"
    return kind
