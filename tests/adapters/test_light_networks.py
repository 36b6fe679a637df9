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
from attar.runtime import OnnxRuntime


def _parameters(framework: str, native: Any) -> int:
    """Trainable numbers in a native model."""
    if framework == "torch":
        return sum(p.numel() for p in native.parameters())
    if framework == "tensorflow":
        return sum(int(np.prod(v.shape)) for v in native.trainable_variables)
    return sum(native.parameters[f"arg:{name}"].size for name in native.trainable)


def _close(got: Any, wanted: Any, most: float) -> None:
    """Within `most` of the largest value."""
    assert got.shape == wanted.shape
    assert np.abs(got - wanted).max() <= most * np.abs(wanted).max()


def _varied(model: Any) -> Any:
    """The network with weights that differ, scaled so that no layer fades: with those it comes with, all its
    outputs are one number, whatever its input."""
    made, rng = graph.clone(model), np.random.default_rng(0)
    for node in [n for n in made.graph if n.op_type == "ConstantOfShape"]:  # which is how they come
        size = graph.const_array(node.inputs[0])
        value = graph.add_initializer(made.graph, node.outputs[0].name, np.zeros(size, np.float32))
        node.outputs[0].replace_all_uses_with(value)
    for node in made.graph:
        if node.op_type == "Softmax":  # which would hide all but the largest value
            node.op_type = "Identity"
            node.attributes.clear()
    graph.tidy(made)
    for value in made.graph.initializers.values():
        if (array := graph.const_array(value)).dtype == np.float32 and array.ndim:
            spread = rng.normal(size=array.shape) * (2 / np.prod(array.shape[1:])) ** 0.5
            new = spread if array.ndim > 1 else rng.uniform(0.5, 1.5, array.shape)
            graph.replace_weight(value, new.astype(np.float32))
    return made


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
    _close(got, wanted, 4e-6)  # sums of one number over up to 121 layers; 1.8e-6 at most, in TensorFlow
    assert _parameters(framework, exported.native) > 0.9 * graph.byte_size(model) / 4
    other = _varied(model)
    x = np.random.default_rng(1).normal(size=shape).astype(np.float32)
    (wanted,) = OnnxRuntime().open(other).run({value.name: x})
    assert wanted.std() > 1e-2 * np.abs(wanted).max()
    (got,) = registry.get_adapter(framework).write(other, registry=registry).run({value.name: x})
    _close(got, wanted, 1e-5)  # float32 through up to 120 layers; 8e-7 in the small ones
