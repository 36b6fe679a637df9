"""Where a model will run: provider, instruction set, and which patterns become integer kernels there. Data,
not code.

The facts about ONNX Runtime's kernels were measured on version 1.32; `docs/quantization.md` tells how.
"""

from __future__ import annotations

import functools
import platform
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from importlib import resources
from pathlib import Path
from typing import Literal

from attar.costs import CostTable

Role = Literal["compute", "arithmetic", "move"]


@dataclass(frozen=True)
class IntegerOp:
    """How an operator between DequantizeLinear and QuantizeLinear becomes an integer kernel.

    Attributes:
        role: compute (weights), arithmetic (own output scale), move (output scale is the input's).
        activations: input positions that must be quantized activations; () means all inputs.
        float_output: the kernel may give float, so that no QuantizeLinear is needed behind it.
        absorbs: operators that vanish into the kernel when they follow it.
        constant_weight: the second input must be constant.
    """

    role: Role
    activations: tuple[int, ...] = (0,)
    float_output: bool = False
    absorbs: tuple[str, ...] = ()
    constant_weight: bool = False


# Weights in few bits become what ONNX Runtime runs as quickly as float ones.
_WEIGHTS = ("rows-of-tables", "weights-on-load")
_RELU = ("Relu", "Clip")
# ONNX Runtime's CPU provider, default optimization level.
CPU_INTEGER_OPS: Mapping[str, IntegerOp] = {
    "Conv": IntegerOp("compute", absorbs=_RELU, constant_weight=True),
    "Gemm": IntegerOp("compute", float_output=True, absorbs=_RELU, constant_weight=True),
    "MatMul": IntegerOp("compute", activations=(0, 1), float_output=True, absorbs=_RELU),
    "Add": IntegerOp("arithmetic", activations=(0, 1), absorbs=_RELU),
    "Mul": IntegerOp("arithmetic", activations=(0, 1), absorbs=_RELU),
    "Sigmoid": IntegerOp("arithmetic"),
    "LeakyRelu": IntegerOp("arithmetic"),
    "GlobalAveragePool": IntegerOp("arithmetic"),
    "AveragePool": IntegerOp("arithmetic"),
    "Concat": IntegerOp("arithmetic", activations=()),
    "MaxPool": IntegerOp("move"),
    "Reshape": IntegerOp("move"),
    "Flatten": IntegerOp("move"),
    "Squeeze": IntegerOp("move"),
    "Unsqueeze": IntegerOp("move"),
    "Transpose": IntegerOp("move"),
    "Slice": IntegerOp("move"),
    "Split": IntegerOp("move"),
    "Gather": IntegerOp("move"),
    "Pad": IntegerOp("move"),
    "Expand": IntegerOp("move"),
    "DepthToSpace": IntegerOp("move"),
    "SpaceToDepth": IntegerOp("move"),
    "Resize": IntegerOp("move"),
    "Dropout": IntegerOp("move"),
    "Identity": IntegerOp("move"),
}


@dataclass(frozen=True)
class Target:
    """A place where models run.

    Attributes:
        name: as in `compress(..., target=NAME)`.
        description: one line for the report.
        runtime: name of the runtime that stands for it here.
        activation_type, weight_type: element types of the fastest integer kernels.
        saturates: u8 x s8 products are summed pairwise in 16 bits (no VNNI), so weights keep 7 bits.
        channel_block: channels of the blocked float kernels; pruning rounds to it.
        max_opset: newest default-domain opset with all quantization kernels.
        integer_ops: which operators have integer kernels.
        costs: measured kernel times.
        computes_half: kernels compute in 16-bit floats, so that it pays to keep activations in them.
        lowerings: names of the rewrites that only this target wants, applied last.
        elsewhere: the runtime only stands in for the target, so its times say nothing of it: whatever has an
            integer kernel is put on integers, and a result is not judged by its speed here.
    """

    name: str
    description: str
    runtime: str = "onnxruntime"
    activation_type: Literal["uint8", "int8"] = "uint8"
    weight_type: Literal["uint8", "int8"] = "int8"
    saturates: bool = False
    channel_block: int = 16
    max_opset: int = 27
    integer_ops: Mapping[str, IntegerOp] = field(default_factory=lambda: CPU_INTEGER_OPS)
    costs: CostTable = field(default_factory=lambda: CostTable({}))
    lowerings: tuple[str, ...] = ()
    computes_half: bool = False
    elsewhere: bool = False


def builtin_targets() -> tuple[Target, ...]:
    """`cpu` (this machine), and the instruction sets by name."""
    vnni = Target(
        "cpu-vnni",
        "x86-64 with AVX-512 VNNI or AVX-VNNI, ONNX Runtime CPU",
        costs=_table("cpu-vnni"),
        lowerings=("average-pools-as-convolutions", "widen-thin-convolutions", "integer-pads", *_WEIGHTS),
    )
    avx2 = Target(
        "cpu-avx2",
        "x86-64 without VNNI (8-bit products saturate in 16 bits), ONNX Runtime CPU",
        saturates=True,
        channel_block=8,
        costs=_table("cpu-vnni"),
        lowerings=("average-pools-as-convolutions", "widen-thin-convolutions", "integer-pads", *_WEIGHTS),
    )
    arm = Target(
        "cpu-arm64",
        "64-bit Arm with dot product, ONNX Runtime CPU",
        channel_block=4,
        costs=_table("cpu-vnni"),
        lowerings=("average-pools-as-convolutions", "integer-pads", *_WEIGHTS),
    )
    micro = Target(
        "microcontroller",
        "TFLite on a microcontroller: every operator on int8; ONNX Runtime stands in for it here",
        activation_type="int8",
        integer_ops=_all_integer(),
        elsewhere=True,
    )
    here = {"vnni": vnni, "avx2": avx2, "arm64": arm}[instruction_set()]
    return (
        replace(here, name="cpu", description=f"this machine: {here.description}"),
        replace(
            here,
            name="cpu-qoperator",
            description=f"this machine, integer operators written out (QOperator): {here.description}",
            lowerings=(*here.lowerings, "integer-operators"),
        ),
        vnni,
        avx2,
        arm,
        micro,
    )


def _all_integer() -> Mapping[str, IntegerOp]:
    """The integer operators of a place without float: none gives float, and Softmax is one of them."""
    found = {name: replace(rule, float_output=False) for name, rule in CPU_INTEGER_OPS.items()}
    return {**found, "Softmax": IntegerOp("arithmetic")}


@functools.cache
def instruction_set() -> Literal["vnni", "avx2", "arm64"]:
    """The best integer instructions of this processor: `vnni`, `avx2` (x86 without it) or `arm64`."""
    if platform.machine().lower() in ("arm64", "aarch64"):
        return "arm64"
    flags = _cpu_flags()
    return "vnni" if {"avx512_vnni", "avx_vnni", "avx512vnni"} & flags else "avx2"


@functools.cache
def cpu_name() -> str:
    """The processor's model name, as well as the system tells it."""
    info = Path("/proc/cpuinfo")
    if info.exists():
        for line in info.read_text(errors="replace").splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    return platform.processor() or platform.machine()


def _cpu_flags() -> frozenset[str]:
    info = Path("/proc/cpuinfo")
    if not info.exists():
        return frozenset()
    for line in info.read_text(errors="replace").splitlines():
        if line.startswith("flags"):
            return frozenset(line.partition(":")[2].split())
    return frozenset()


def _table(name: str) -> CostTable:
    file = resources.files("attar") / "target_data" / f"{name}.json"
    return CostTable.from_json(file.read_text("utf-8"), where=f"{name}.json")
