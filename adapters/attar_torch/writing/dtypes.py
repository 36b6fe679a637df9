"""Element types and arrays of the IR as torch has them."""

from __future__ import annotations

from typing import Any

import numpy as np
import onnx_ir as ir
import torch

_PLAIN = {
    ir.DataType.FLOAT: torch.float32,
    ir.DataType.DOUBLE: torch.float64,
    ir.DataType.FLOAT16: torch.float16,
    ir.DataType.BFLOAT16: torch.bfloat16,
    ir.DataType.BOOL: torch.bool,
    ir.DataType.INT8: torch.int8,
    ir.DataType.INT16: torch.int16,
    ir.DataType.INT32: torch.int32,
    ir.DataType.INT64: torch.int64,
    ir.DataType.UINT8: torch.uint8,
    ir.DataType.UINT16: torch.uint16,
    ir.DataType.UINT32: torch.uint32,
    ir.DataType.UINT64: torch.uint64,
    ir.DataType.COMPLEX64: torch.complex64,
    ir.DataType.COMPLEX128: torch.complex128,
    ir.DataType.FLOAT8E4M3FN: torch.float8_e4m3fn,
    ir.DataType.FLOAT8E4M3FNUZ: torch.float8_e4m3fnuz,
    ir.DataType.FLOAT8E5M2: torch.float8_e5m2,
    ir.DataType.FLOAT8E5M2FNUZ: torch.float8_e5m2fnuz,
}
NARROW = {ir.DataType.INT4: torch.int8, ir.DataType.UINT4: torch.uint8}
"""Types that torch does not have, and what carries their values inside a graph."""

RANGES = {
    ir.DataType.INT4: (-8, 7),
    ir.DataType.UINT4: (0, 15),
    ir.DataType.INT8: (-128, 127),
    ir.DataType.UINT8: (0, 255),
    ir.DataType.INT16: (-(1 << 15), (1 << 15) - 1),
    ir.DataType.UINT16: (0, (1 << 16) - 1),
    ir.DataType.INT32: (-(1 << 31), (1 << 31) - 1),
}
FLOAT8 = frozenset(
    {
        ir.DataType.FLOAT8E4M3FN,
        ir.DataType.FLOAT8E4M3FNUZ,
        ir.DataType.FLOAT8E5M2,
        ir.DataType.FLOAT8E5M2FNUZ,
    }
)
FLOATING = frozenset({ir.DataType.FLOAT, ir.DataType.DOUBLE, ir.DataType.FLOAT16, ir.DataType.BFLOAT16})


def torch_dtype(kind: ir.DataType | None) -> torch.dtype | None:
    """The torch type that carries values of `kind`; None if there is none."""
    if kind is None:
        return None
    return _PLAIN.get(kind) or NARROW.get(kind)


def to_tensor(array: Any) -> torch.Tensor:
    """A copy of a numpy array; `ml_dtypes` become torch's own types, 4-bit integers 8-bit ones."""
    array = np.asarray(array)
    name = array.dtype.name
    if name in ("int4", "uint4"):
        return torch.from_numpy(array.astype(name.replace("4", "8")))
    if name == "bfloat16":
        return torch.from_numpy(np.array(array.view(np.int16))).view(torch.bfloat16)
    if name.startswith("float8"):
        return torch.from_numpy(np.array(array.view(np.uint8))).view(getattr(torch, name))
    return torch.from_numpy(np.array(array, order="C"))


def to_array(tensor: torch.Tensor) -> np.ndarray[Any, Any]:
    """A copy of `tensor` on the CPU; what numpy does not have comes in the types of `ml_dtypes`."""
    tensor = tensor.detach().to("cpu").contiguous()
    name = str(tensor.dtype).removeprefix("torch.")
    if name == "bfloat16" or name.startswith("float8"):
        import ml_dtypes

        plain = tensor.view(torch.int16 if name == "bfloat16" else torch.uint8)
        return np.array(plain.numpy()).view(getattr(ml_dtypes, name))
    return np.array(tensor.numpy())


def number(array: Any) -> int | float | bool:
    """The one element of `array` as Python has it."""
    item = np.asarray(array).reshape(-1)[0]
    if item.dtype.kind == "b":
        return bool(item)
    if item.dtype.kind in "iu":
        return int(item)
    return float(item)
