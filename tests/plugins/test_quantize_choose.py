"""Settings are compared on logits, in whatever form the candidate gives its probabilities."""

from __future__ import annotations

import re

import numpy as np
import onnx_ir as ir
import pytest

from attar.calibration import as_data
from attar.context import Context
from attar.measure import worst_sqnr
from attar.registry import default_registry
from attar.run import run_pass
from attar.runtime import OnnxRuntime
from attar.specs import input_specs
from attar.testing.build import Net
from attar_quantize import Static
from attar_quantize.choose import before_squashing


def sure(seed: int = 0) -> ir.Model:
    """A classifier that is sure of nearly everything: its probabilities are 0 and 1."""
    net = Net("sure", seed)
    x = net.op("Relu", net.conv(net.input("x", "N", 3, 8, 8), 3, 8))
    flat = net.op("Flatten", net.op("GlobalAveragePool", x))
    return net.model(y=net.op("Softmax", net.op("Gemm", flat, net.weight(8, 5, gain=60.0)), axis=-1))


@pytest.mark.parametrize("target", ["cpu-vnni", "microcontroller"])
def test_candidates_are_compared_by_their_logits(target: str) -> None:
    registry, model = default_registry(), sure()
    data = [np.random.default_rng(i).normal(size=(4, 3, 8, 8)).astype(np.float32) for i in range(8)]
    source = as_data(data, input_specs(model))
    ctx = Context(registry, registry.get_target(target), OnnxRuntime(), source, feeds={"x": data[0]})
    small, record = run_pass(Static(plan="everything"), model, ctx)
    line = next(c for c in record.changes if c.startswith("observer"))
    scores = [float(n) for n in re.findall(r"(-?[\d.]+) dB", line)]
    assert len(scores) == 3
    assert min(scores) > 10  # the probabilities differ by what they are, not these
    before, after = (OnnxRuntime().open(before_squashing(m)) for m in (model, small))
    assert worst_sqnr(before, after, [{"x": d} for d in data]) > 10
