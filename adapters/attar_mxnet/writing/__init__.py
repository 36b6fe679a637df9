"""From the IR to MXNet 1: `-symbol.json` and `.params`, written without MXNet.

A lowering, in the table of the hook `attar_lowerings("mxnet")`, is `lower(ctx: WriteContext, view:
NodeView)`.
It appends MXNet operators through `ctx` and returns the entry of the node's output, or a tuple of entries
(None for an output that nothing uses); it raises `view.refuse(reason)` for what MXNet cannot say exactly.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import onnx_ir as ir

from attar.adapters import Exported
from attar.errors import InputError
from attar.files import place
from attar.registry import Registry
from attar_mxnet.writing.table import LOWERINGS

__all__ = ["LOWERINGS", "save_exported", "write_symbol"]

_SUFFIX = "-symbol.json"
_FOREIGN = (".params", ".onnx", ".pt2", ".pt", ".pth", ".keras", ".h5", ".tflite", ".pb")


def write_symbol(model: ir.Model, *, registry: Registry, **options: Any) -> Exported:
    """`model`, which stays as it is, as an MXNet graph with parameters (`MxnetModel`).

    Raises:
        InputError: an option is given; there are none.
        ConversionError: MXNet cannot say some of its nodes exactly; all are listed.
    """
    if options:
        raise InputError(f"the adapter 'mxnet' has no option {sorted(options)[0]!r} for writing")
    from attar_mxnet.writing.symbol import lower

    native = lower(model, registry)
    return Exported(native, native.run, native.notes)


def save_exported(exported: Exported, path: str | Path) -> tuple[Path, ...]:
    """Write `<name>-symbol.json` and `<name>-0000.params`.

    Args:
        path: the name, with or without `-symbol.json`.

    Raises:
        InputError: the files cannot be written, or `path` has a suffix that is not MXNet's.
    """
    path = place(path)
    name = path.name.removesuffix(_SUFFIX).removesuffix(".json")
    if not name or path.suffix in _FOREIGN:
        raise InputError(f"MXNet models are written as NAME{_SUFFIX}, not {path.name}")
    saved: tuple[Path, ...] = exported.native.save(path.with_name(name))
    return saved
