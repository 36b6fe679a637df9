"""Whole networks: the conformance kit's zoo, and real trained ones."""

from __future__ import annotations

import importlib.util
from collections import Counter
from pathlib import Path
from typing import Any

import onnx_ir as ir
import pytest
from fuse_models import context, difference, feeds_of, fused, ops, run

from attar.graph import clone, normalize
from attar.runtime import OnnxRuntime
from attar.testing import conformance
from attar_fuse import Cleanup, Constants, Fuse


@conformance(Fuse())
def test_fuse_conforms(check: Any) -> None:
    check()


@conformance(Constants())
def test_constants_conforms(check: Any) -> None:
    check()


@conformance(Cleanup())
def test_cleanup_conforms(check: Any) -> None:
    check()


def read(path: Path) -> ir.Model:
    if not path.exists():
        pytest.skip(f"{path} is not there")
    model = ir.load(path)
    normalize(model)
    return model


def test_squeezenet(attar_data: Path) -> None:
    model = read(attar_data / "squeezenet11" / "squeezenet11_fp32.onnx")
    result, _ = fused(model, scale=50.0)
    found = ops(result)
    assert found["Conv"] == 26
    assert found["Dropout"] == found["Shape"] == 0


def test_mobilenet_v2(attar_data: Path) -> None:
    model = read(attar_data / "mobilenet_v2_dequant" / "mobilenet_v2_1.0_224_fp32_dequant.onnx")
    result, _ = fused(model)
    # Already fused, but for the classifier, which is a convolution over one pixel.
    assert ops(result) == ops(model) - Counter(["Conv"]) + Counter(["Gemm"])


def mobilenet_v1(data: Path) -> ir.Model:
    """The PyTorch network, exported with BatchNormalization and padding as they are written."""
    torch = pytest.importorskip("torch")
    weights = data / "mobilenet_v1_075" / "mobilenet_v1_075_224.pt"
    source = data / "torch_models.py"
    if not (weights.exists() and source.exists()):
        pytest.skip(f"{weights} is not there")
    spec = importlib.util.spec_from_file_location("torch_models", source)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    net = module.MobileNetV1()
    net.load_state_dict(torch.load(weights, weights_only=True))
    program = torch.onnx.export(
        net.eval(), (torch.randn(2, 3, 224, 224),), dynamo=True, external_data=False, verbose=False,
        optimize=False, opset_version=21, dynamic_shapes=({0: "batch"},),
    )  # fmt: skip
    model = program.model
    normalize(model)
    return model


def test_mobilenet_v1(attar_data: Path) -> None:
    model = mobilenet_v1(attar_data)
    before = ops(model)
    assert before["BatchNormalization"] == 27
    assert before["Pad"] == 5
    result, ctx = clone(model), context()
    Fuse().apply(result, ctx)
    assert ops(result) == {"Conv": 27, "Clip": 27, "GlobalAveragePool": 1, "Flatten": 1, "Gemm": 1}
    assert ctx.step.skipped == []
    assert "27 BatchNormalization folded into the Conv before" in ctx.step.changes
    assert "5 Pad folded into the Conv after" in ctx.step.changes
    feeds = feeds_of(model)
    assert difference(run(model, feeds)[0], run(result, feeds)[0]) < 2e-5
    assert "features.2.conv.weight" in result.graph.initializers
    # The runtime, which has fusions of its own, gets by with fewer kernels, too.
    kernels = [OnnxRuntime().open(m).kernels() for m in (model, result)]
    assert len(kernels[1]) < len(kernels[0])
