"""Sizes of Resize that are computed because the batch is dynamic."""

from __future__ import annotations

import numpy as np
import onnx_ir as ir
import pytest

import attar
from attar import graph
from attar.conversion.sizes import fix_sizes
from attar.runtime import OnnxRuntime
from attar.testing.build import Net

X = np.random.default_rng(0).standard_normal((2, 8, 8, 8)).astype(np.float32)


def enlarging(**attributes: str) -> ir.Model:
    """A convolution, then a Resize to 16 x 16 whose other sizes are those of its input, then another."""
    net = Net("enlarging")
    h = net.op("Relu", net.conv(net.input("x", "N", 8, 8, 8), 8, 8))
    sizes = net.op("Concat", net.op("Shape", h, start=0, end=2), net.ints([16, 16]), axis=0)
    h = net.op("Resize", h, None, None, sizes, **attributes)
    return net.model(y=net.op("Relu", net.conv(h, 8, 8)))


@pytest.mark.parametrize("mode", ["nearest", "linear"])
def test_a_network_that_enlarges_is_quantized(mode: str) -> None:
    """ONNX Runtime moves Transposes across the Resize then, and loses sizes of named axes."""
    recipe = ["fuse.inference", {"name": "quantize.static", "plan": "everything"}]
    report = attar.compress(enlarging(mode=mode), recipe, calibration=[X]).report
    assert {s.name for s in report.steps if not s.refused} >= {"fuse.inference", "quantize.static"}


@pytest.mark.parametrize(
    ("attributes", "done"), [({}, True), ({"keep_aspect_ratio_policy": "not_larger"}, False)], ids=str
)
def test_numbers_replace_sizes_where_they_mean_the_same(attributes: dict[str, str], done: bool) -> None:
    """With a ratio to keep, the axes that stay count."""
    model = enlarging(**attributes)
    graph.normalize(model)
    fixed = graph.clone(model)
    assert fix_sizes(fixed) is done
    before, after = (OnnxRuntime().open(m, optimize=False).run({"x": X})[0] for m in (model, fixed))
    np.testing.assert_array_equal(after, before)
