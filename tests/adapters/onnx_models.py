"""Small ONNX models, and comparing what two models compute."""

from __future__ import annotations

import numpy as np
import onnx
import onnx_ir as ir
from onnx import numpy_helper

from attar.runtime import OnnxRuntime


def small(opset: int = 21, ir_version: int = 10) -> onnx.ModelProto:
    proto = onnx.parser.parse_model(
        f'<ir_version: {ir_version}, opset_import: ["": {opset}]> g (float[n, 4] x) => (float[n, 3] y) '
        "{ h = MatMul(x, w) y = Relu(h) }"
    )
    weight = np.random.default_rng(0).standard_normal((4, 3)).astype(np.float32)
    proto.graph.initializer.append(numpy_helper.from_array(weight, "w"))
    return proto


X = np.random.default_rng(1).standard_normal((2, 4)).astype(np.float32)


def same(source: object, feeds: dict[str, np.ndarray], model: ir.Model) -> None:
    runtime = OnnxRuntime()
    for old, new in zip(runtime.open(source).run(feeds), runtime.open(model).run(feeds), strict=True):
        np.testing.assert_array_equal(old, new)
