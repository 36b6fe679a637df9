"""Reads and writes MXNet: `-symbol.json` with `.params`, Gluon blocks and symbols."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

from attar.adapters import Adapter
from attar.hooks import hookimpl


@hookimpl
def attar_adapters() -> Sequence[Adapter]:
    """The adapter for MXNet."""
    from attar_mxnet.adapter import MxnetAdapter

    return [MxnetAdapter()]


@hookimpl
def attar_liftings(framework: str) -> Mapping[str, Callable[..., Any]] | None:
    """The operators of MXNet that attar reads."""
    if framework != "mxnet":
        return None
    from attar_mxnet.reading import LIFTINGS

    return LIFTINGS


@hookimpl
def attar_lowerings(framework: str) -> Mapping[str, Callable[..., Any]] | None:
    """The operators of ONNX that attar writes in MXNet."""
    if framework != "mxnet":
        return None
    from attar_mxnet.writing import LOWERINGS

    return LOWERINGS
