"""ONNX's nine whole networks in every framework: the recorded outputs, and weights that a trainer finds."""

from __future__ import annotations

import importlib.util
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from onnx_cases import LIGHT, SMALL

import attar
from attar import graph
from attar.registry import default_registry


def _parameters(framework: str, native: Any) -> int:
    """Trainable numbers in a native model."""
    if framework == "torch":
        return sum(p.numel() for p in native.parameters())
    if framework == "tensorflow":
        return sum(int(np.prod(v.shape)) for v in native.trainable_variables)
    return sum(native.parameters[f"arg:{name}"].size for name in native.trainable)


@pytest.mark.parametrize("framework", ["torch", "tensorflow", "mxnet"])
@pytest.mark.parametrize(
    "path",
    [pytest.param(p, marks=[] if p in SMALL else pytest.mark.slow) for p in LIGHT],
    ids=lambda p: p.stem.removeprefix("light_"),
)
def test_whole_networks(framework: str, path: Path) -> None:
    if importlib.util.find_spec(framework) is None:
        pytest.skip(f"runs in {framework}")
    model = attar.load(path)
    (value,) = model.graph.inputs
    shape = [d if isinstance(d, int) else 1 for d in value.shape]
    x = np.linspace(0, 1, int(np.prod(shape)), dtype=np.float64).reshape(shape).astype(np.float32)
    recorded = path.with_name(f"{path.stem}_output_0.pb").read_bytes()
    wanted = onnx.numpy_helper.to_array(onnx.TensorProto.FromString(recorded))
    registry = default_registry()
    exported = registry.get_adapter(framework).write(model, registry=registry)
    (got,) = exported.run({value.name: x})
    assert got.shape == wanted.shape
    assert np.allclose(got, wanted, rtol=1e-3, atol=1e-7)
    assert _parameters(framework, exported.native) > 0.9 * graph.byte_size(model) / 4
