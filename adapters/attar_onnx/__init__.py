"""Reads and writes ONNX: files, bytes, `onnx.ModelProto` and `onnx_ir.Model`."""

from __future__ import annotations

from collections.abc import Sequence

from attar.adapters import Adapter
from attar.hooks import hookimpl


@hookimpl
def attar_adapters() -> Sequence[Adapter]:
    """The adapter for ONNX."""
    from attar_onnx.adapter import OnnxAdapter

    return [OnnxAdapter()]
