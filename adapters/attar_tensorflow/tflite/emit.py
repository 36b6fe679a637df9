"""The `.tflite` file while it grows: tensors, operators and buffers, without any thought of ONNX."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from attar_tensorflow.tflite import schema
from attar_tensorflow.tflite.builder import build
from attar_tensorflow.tflite.file import DTYPES

Array = np.ndarray[Any, np.dtype[Any]]
Dims = tuple[int | None, ...]
_TYPES = {np.dtype(d): t for t, d in reversed(DTYPES.items()) if t not in ("INT4", "UINT4")}

# The first version of each operator that knows 8-bit signed codes
# (`tensorflow/compiler/mlir/lite/tools/versioning`).
_INT8_VERSIONS = {
    "ADD": 2,
    "SUB": 2,
    "MUL": 2,
    "CONV_2D": 3,
    "DEPTHWISE_CONV_2D": 3,
    "FULLY_CONNECTED": 4,
    "TRANSPOSE_CONV": 2,
    "AVERAGE_POOL_2D": 2,
    "MAX_POOL_2D": 2,
    "SOFTMAX": 2,
    "LOGISTIC": 2,
    "TANH": 2,
    "LOG_SOFTMAX": 2,
    "RELU": 2,
    "RELU6": 2,
    "PAD": 2,
    "PADV2": 2,
    "MEAN": 2,
    "REDUCE_MAX": 2,
    "REDUCE_MIN": 2,
    "CONCATENATION": 2,
    "TRANSPOSE": 2,
    "SPLIT": 2,
    "SPLIT_V": 2,
    "SLICE": 2,
    "STRIDED_SLICE": 2,
    "GATHER": 2,
    "TILE": 3,
    "RESIZE_BILINEAR": 2,
    "RESIZE_NEAREST_NEIGHBOR": 2,
    "SPACE_TO_DEPTH": 2,
    "DEPTH_TO_SPACE": 2,
    "MAXIMUM": 2,
    "MINIMUM": 2,
    "L2_NORMALIZATION": 2,
    "LEAKY_RELU": 2,
    "BATCH_MATMUL": 2,
    "ARG_MAX": 2,
    "ARG_MIN": 2,
    "DEQUANTIZE": 2,
    "PRELU": 1,
    "HARD_SWISH": 1,
    "QUANTIZE": 1,
}

_FIRST_VERSIONS = {"BROADCAST_TO": 2}  # which were custom operators before


@dataclass(frozen=True)
class Params:
    """How a tensor's codes stand for real numbers: `scale (code - zero)`; arrays, or one each along
    `axis`."""

    scale: Array
    zero: Array
    axis: int | None = None

    def same(self, other: Params | None) -> bool:
        """Whether equal codes stand for equal numbers."""
        return (
            other is not None
            and self.axis == other.axis
            and np.array_equal(self.scale, other.scale)
            and np.array_equal(self.zero, other.zero)
        )


@dataclass(frozen=True)
class Slot:
    """A tensor of the file. `dims` has None where the caller chooses."""

    index: int
    dims: Dims
    dtype: np.dtype[Any]
    params: Params | None


class Emitter:
    """Collects the parts of a file with one graph."""

    def __init__(self) -> None:
        self.slots: list[Slot] = []
        self._tensors: list[dict[str, Any]] = []
        self._operators: list[dict[str, Any]] = []
        self._codes: dict[tuple[str, int], int] = {}
        self._buffers: list[dict[str, Any]] = [{}]  # buffer 0 is that of everything without content
        self._stored: dict[tuple[Any, ...], int] = {}
        self._names: set[str] = set()
        self.kinds: list[tuple[str, bool]] = []  # (operator, whether it computes in integers)

    def name(self, base: str) -> str:
        name, count = base, 0
        while name in self._names:
            count += 1
            name = f"{base}_{count}"
        self._names.add(name)
        return name

    def rename(self, slot: Slot, name: str) -> None:
        self._tensors[slot.index]["name"] = name

    def tensor(
        self, base: str, dims: Dims, dtype: Any, params: Params | None = None, array: Array | None = None
    ) -> Slot:
        """A tensor; a constant if `array` is given."""
        dtype = np.dtype(dtype)
        record: dict[str, Any] = {
            "shape": [1 if d is None else d for d in dims],
            "type": schema.TYPES.index(_TYPES[dtype]),
            "name": self.name(base),
            "buffer": 0 if array is None else self._store(array),
        }
        if None in dims:
            record["shape_signature"] = [-1 if d is None else d for d in dims]
        if params is not None:
            record["quantization"] = {
                "scale": np.atleast_1d(params.scale),
                "zero_point": np.broadcast_to(params.zero, np.atleast_1d(params.scale).shape),
                "quantized_dimension": params.axis or 0,
            }
        self._tensors.append(record)
        slot = Slot(len(self._tensors) - 1, dims, dtype, params)
        self.slots.append(slot)
        return slot

    def constant(self, base: str, array: Array, params: Params | None = None) -> Slot:
        """A constant tensor; small equal ones are one."""
        array = np.asarray(array, order="C")
        key = (array.dtype.str, array.shape, array.tobytes()) if params is None and array.size <= 64 else None
        if key is not None and key in self._stored:
            return self.slots[self._stored[key]]
        slot = self.tensor(base, array.shape, array.dtype, params, array)
        if key is not None:
            self._stored[key] = slot.index
        return slot

    def _store(self, array: Array) -> int:
        content = array.astype(array.dtype.newbyteorder("<")).tobytes()
        self._buffers.append({"data": content})
        return len(self._buffers) - 1

    def operator(
        self,
        kind: str,
        inputs: Sequence[Slot | None],
        outputs: Sequence[Slot],
        options: Mapping[str, Any] | None = None,
    ) -> None:
        """One operator. Options that it has and that are not given have their defaults."""
        codes = any(
            s is not None and s.dtype == np.int8 and s.params is not None for s in (*inputs, *outputs)
        )
        version = max(_INT8_VERSIONS.get(kind, 1) if codes else 1, _FIRST_VERSIONS.get(kind, 1))
        table = schema.options_of(kind)
        record: dict[str, Any] = {
            "opcode_index": self._codes.setdefault((kind, version), len(self._codes)),
            "inputs": [-1 if s is None else s.index for s in inputs],
            "outputs": [s.index for s in outputs],
        }
        if table != "NONE":
            record["builtin_options_type"] = schema.UNIONS["options"].index(table)
            record["builtin_options"] = (table, dict(options or {}))
        self._operators.append(record)
        real = [s for s in (*inputs, *outputs) if s is not None and s.dtype.kind == "f"]
        self.kinds.append((kind, not real))

    def build(
        self, inputs: Sequence[Slot], outputs: Sequence[Slot], names: Sequence[Sequence[str]], graph: str
    ) -> bytes:
        """The file. `names` are those of inputs and outputs in the signature."""
        codes = [
            {
                "deprecated_builtin_code": min(schema.OPERATORS.index(kind), 127),
                "builtin_code": schema.OPERATORS.index(kind),
                "version": version,
            }
            for kind, version in self._codes
        ]
        maps = [
            [{"name": n, "tensor_index": s.index} for n, s in zip(given, slots, strict=True)]
            for given, slots in zip(names, (inputs, outputs), strict=True)
        ]
        signature = {"inputs": maps[0], "outputs": maps[1], "signature_key": "serving_default"}
        return build(
            {
                "version": schema.VERSION,
                "operator_codes": codes,
                "subgraphs": [
                    {
                        "tensors": self._tensors,
                        "inputs": [s.index for s in inputs],
                        "outputs": [s.index for s in outputs],
                        "operators": self._operators,
                        "name": graph,
                    }
                ],
                "description": "attar",
                "buffers": self._buffers,
                "signature_defs": [signature],
            }
        )
