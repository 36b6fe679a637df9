"""Operators of torch that its exporter writes otherwise than torch computes them."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

import torch


@functools.cache
def translations() -> dict[Callable[..., Any], Callable[..., Any]]:
    """For `torch.onnx.export(custom_translation_table=...)`."""
    import onnx_ir as ir
    from onnxscript.onnx_opset import opset18 as op

    def remainder(self: Any, other: Any) -> Any:
        """As torch computes it: `fmod`, moved by `other` where the signs differ. The exporter's
        `self - floor(self / other) * other` is no number for an infinite divisor, and rounds large quotients.
        """
        if self.dtype.is_integer():
            return op.Mod(self, other)
        rest = op.Mod(self, other, fmod=1)
        zero = ir.tensor(0, dtype=self.dtype)
        apart = op.Xor(op.Less(rest, zero), op.Less(other, zero))
        moves = op.And(apart, op.Not(op.Equal(rest, zero)))
        return op.Where(moves, op.Add(rest, other), rest)

    def by_number(self: Any, other: float) -> Any:
        return remainder(self, ir.tensor(other, dtype=self.dtype))

    def of_number(self: float, other: Any) -> Any:
        return remainder(ir.tensor(self, dtype=other.dtype), other)

    aten = torch.ops.aten.remainder
    return {aten.Tensor: remainder, aten.Scalar: by_number, aten.Scalar_Tensor: of_number}
