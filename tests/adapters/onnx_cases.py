"""ONNX's own node tests, made once for all adapters: one case an operator for every run, all for `slow`."""

from __future__ import annotations

import functools
from pathlib import Path

import onnx

from attar.testing.node_suite import NodeCase, node_cases

LIGHT = sorted((Path(onnx.__file__).parent / "backend" / "test" / "data" / "light").glob("*.onnx"))
"""ONNX's nine whole networks, with made-up weights."""
SMALL = [p for p in LIGHT if any(name in p.stem for name in ("squeezenet", "shufflenet"))]


@functools.cache
def every() -> tuple[NodeCase, ...]:
    return tuple(node_cases())


@functools.cache
def one_each() -> tuple[NodeCase, ...]:
    """The first case of each operator."""
    return tuple({case.op: case for case in reversed(every())}.values())
