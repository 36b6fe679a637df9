"""The tables of lowerings."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import onnx_ir as ir

Lowering = Callable[..., Any]

ORDINARY = frozenset(
    {
        ir.DataType.FLOAT, ir.DataType.DOUBLE, ir.DataType.FLOAT16, ir.DataType.BFLOAT16, ir.DataType.BOOL,
        ir.DataType.INT8, ir.DataType.INT16, ir.DataType.INT32, ir.DataType.INT64, ir.DataType.UINT8,
    }
)  # fmt: skip
"""Element types that torch computes with. Others it stores, at best."""


class Table(dict[str, Lowering]):
    """Operator -> lowering."""

    def op(self, *names: str, any_type: bool = False) -> Callable[[Lowering], Lowering]:
        """Enter a function for the operators `names`.

        Args:
            any_type: the function itself sees to element types outside `ORDINARY`.
        """

        def enter(function: Lowering) -> Lowering:
            function.ordinary_only = not any_type  # type: ignore[attr-defined]
            for name in names:
                self[name] = function
            return function

        return enter
