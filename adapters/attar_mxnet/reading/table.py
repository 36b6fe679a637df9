"""Tables of liftings: which function reads which operator of MXNet."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import onnx_ir as ir

from attar_mxnet.reading.builder import Builder
from attar_mxnet.reading.operation import Operation

Lift = Callable[[Builder, Operation], ir.Value | Sequence[ir.Value]]
"""Writes one node: `lift(ctx, op)` emits ONNX by `ctx` and gives the node's outputs."""


class Table(dict[str, Lift]):
    """Operator -> lifting. `@table("Flatten", "flatten")` above a function enters it under both names."""

    def __call__(self, *names: str) -> Callable[[Lift], Lift]:
        def enter(function: Lift) -> Lift:
            for name in names:
                assert name not in self, name
                self[name] = function
            return function

        return enter
