"""Models of the zoo that are legal, small and awkward: each holds one thing that breaks careless graph
editing.
"""

from __future__ import annotations

import functools
import tempfile
from pathlib import Path

import ml_dtypes
import numpy as np
import onnx_ir as ir

from attar.testing.build import BOOL, FLOAT, HALF, OPSET, Net, branch, infer


def shared_weight() -> ir.Model:
    """One weight and one bias used by two convolutions, and one matrix used by two MatMuls."""
    net = Net("shared_weight", 40)
    x = net.op("Relu", net.conv(net.input("image", "N", 3, 10, 10), 3, 8))
    weight, bias = net.weight(8, 8, 3, 3, name="shared.weight"), net.vector(8, -0.3, 0.3, "shared.bias")
    for _ in range(2):
        x = net.op("Relu", net.op("Conv", x, weight, bias, kernel_shape=[3, 3], pads=[1, 1, 1, 1]))
    x, matrix = net.pooled(x), net.weight(8, 8, name="shared.matrix")
    return net.model(logits=net.op("MatMul", net.op("Tanh", net.op("MatMul", x, matrix)), matrix))


def weight_in_if() -> ir.Model:
    """A weight of the main graph used only inside an If branch, and one that belongs to the branch itself."""
    net = Net("weight_in_if", 41)
    x = net.dense(net.input("features", "N", 12), 12, 16)
    outer = net.weight(16, 8, name="outer.weight")
    total = net.op("ReduceSum", x, keepdims=0)
    positive = net.op("Greater", total, net.const(np.float32(0)))
    bodies = {}
    for key in ("then", "else"):
        body = Net(f"{key}_branch", 42 if key == "then" else 43)
        weight = outer if key == "then" else body.weight(16, 8, name="inner.weight")
        out = body.op("Relu", body.op("MatMul", x, weight))
        out.type, out.shape = ir.TensorType(FLOAT), ir.Shape(["N", 8])
        bodies[f"{key}_branch"] = branch(body, {f"{key}_out": out})
    return net.model(logits=net.dense(net.op("If", positive, **bodies), 8, 4))


def weight_in_loop() -> ir.Model:
    """A Loop that multiplies its state by a weight of the main graph three times."""
    net = Net("weight_in_loop", 44)
    x = net.dense(net.input("features", "N", 12), 12, 8)
    weight = net.weight(8, 8, name="loop.weight")
    body = Net("body", 45)
    body.input("iteration", dtype=ir.DataType.INT64)
    go = body.input("go", dtype=BOOL)
    state = body.op("Tanh", body.op("MatMul", body.input("state", "N", 8), weight))
    state.type, state.shape = ir.TensorType(FLOAT), ir.Shape(["N", 8])
    still = body.op("Identity", go)
    still.type, still.shape = ir.TensorType(BOOL), ir.Shape([])
    graph = branch(body, {"still": still, "next_state": state})
    trips = net.const(np.int64(3), "trips")
    return net.model(logits=net.dense(net.op("Loop", trips, net.const(True, "start"), x, body=graph), 8, 4))


def weight_is_output() -> ir.Model:
    """An initializer that a layer uses and that is also an output of the graph."""
    net = Net("weight_is_output", 46)
    x = net.input("features", "N", 16)
    weight = net.weight(16, 8, name="weight")
    return net.model(logits=net.op("Relu", net.op("MatMul", x, weight)), weight=weight)


def half() -> ir.Model:
    """Weights, inputs and outputs in float16."""
    net = Net("half", 47, dtype=HALF)
    x = net.op("Relu", net.batch_norm(net.conv(net.input("image", "N", 3, 8, 8), 3, 8), 8))
    return net.model(logits=net.dense(net.pooled(x), 8, 4))


def _quantize(net: Net, x: ir.Value, scale: float, zero: int) -> ir.Value:
    pair = net.const(np.float32(scale)), net.const(np.uint8(zero))
    return net.op("DequantizeLinear", net.op("QuantizeLinear", x, *pair), *pair)


def quantized() -> ir.Model:
    """Already in QDQ form: u8 activations, per-channel s8 weights, int32 bias."""
    net = Net("quantized", 48)
    x = _quantize(net, net.input("image", "N", 3, 8, 8), 0.03, 128)
    for c_in, c_out, scale in ((3, 8, 0.02), (8, 8, 0.02)):
        weight, bias = net.array(c_out, c_in, 3, 3, gain=1.4), net.rng.uniform(-0.3, 0.3, c_out)
        steps = (np.abs(weight).max(axis=(1, 2, 3)) / 127).astype(np.float32)
        codes = np.round(weight / steps[:, None, None, None]).astype(np.int8)
        bias_steps = (steps * (0.03 if c_in == 3 else 0.02)).astype(np.float32)
        inputs = [
            net.op(
                "DequantizeLinear",
                net.const(codes),
                net.const(steps),
                net.const(np.zeros(c_out, np.int8)),
                axis=0,
            ),
            net.op(
                "DequantizeLinear",
                net.const(np.round(bias / bias_steps).astype(np.int32)),
                net.const(bias_steps),
                net.const(np.zeros(c_out, np.int32)),
                axis=0,
            ),
        ]
        x = net.op("Relu", net.op("Conv", x, *inputs, kernel_shape=[3, 3], pads=[1, 1, 1, 1]))
        x = _quantize(net, x, scale, 0)
    return net.model(logits=net.dense(net.pooled(x), 8, 4))


def int4_blockwise() -> ir.Model:
    """A MatMul whose weight is stored as int4 with a scale for every 16 rows."""
    net = Net("int4_blockwise", 49)
    x = net.input("features", "N", 32)
    codes = net.const(net.rng.integers(-8, 8, (32, 24)).astype(ml_dtypes.int4), "codes")
    scales = net.const(net.rng.uniform(0.01, 0.05, (2, 24)).astype(np.float32), "scales")
    weight = net.op("DequantizeLinear", codes, scales, axis=0, block_size=16)
    return net.model(logits=net.dense(net.op("Relu", net.op("MatMul", x, weight)), 24, 4))


def functions() -> ir.Model:
    """A layer written as a model-local function that is called twice with different weights."""
    args = [ir.Value(name=n) for n in ("X", "W", "B")]
    product = ir.node("MatMul", args[:2], name="product")
    total = ir.node("Add", [product.outputs[0], args[2]], name="total")
    active = ir.node("Relu", total.outputs, name="active")
    for node, name in ((product, "p"), (total, "t"), (active, "Y")):
        node.outputs[0].name = name
    body = ir.Graph(
        args, active.outputs, nodes=[product, total, active], opset_imports={"": OPSET}, name="Layer"
    )
    net = Net("functions", 50)
    net.functions.append(ir.Function("zoo.layers", "Layer", graph=body, attributes=[]))
    x = net.input("features", "N", 12)
    for c_in, c_out in ((12, 16), (16, 4)):
        x = net.op("Layer", x, net.weight(c_in, c_out), net.vector(c_out, -0.3, 0.3), domain="zoo.layers")
    return net.model(logits=x)


def unnamed_nodes() -> ir.Model:
    """Nodes without names."""
    net = Net("unnamed_nodes", 51)
    x = net.op("Relu", net.batch_norm(net.conv(net.input("image", "N", 3, 8, 8), 3, 6), 6))
    model = net.model(logits=net.dense(net.pooled(x), 6, 3))
    for node in model.graph:
        node.name = ""
    return model


def empty_optional() -> ir.Model:
    """Optional inputs left out by an empty name: Clip without a minimum, Resize without roi and scales."""
    net = Net("empty_optional", 52)
    x = net.conv(net.input("image", 2, 3, 8, 8), 3, 6)
    x = net.op("Clip", x, None, net.const(np.float32(1.5), "ceiling"))
    sizes = net.ints([2, 6, 12, 12], "sizes")
    x = net.op("Resize", x, None, None, sizes, mode="linear", coordinate_transformation_mode="half_pixel")
    return net.model(logits=net.dense(net.pooled(x), 6, 3))


@functools.cache
def _folder() -> tempfile.TemporaryDirectory[str]:
    """Where external data lives: one folder for the process, removed at exit, since mapped tensors outlive
    models.
    """
    return tempfile.TemporaryDirectory(prefix="attar-zoo-")


def external_data() -> ir.Model:
    """Weights in a file beside the model."""
    path = Path(_folder().name) / "external_data.onnx"
    if not path.exists():
        net = Net("external_data", 53)
        x = net.op("Relu", net.dense(net.input("features", "N", 64), 64, 64))
        x = net.op("Relu", net.dense(x, 64, 32, gemm=False))
        ir.save(
            net.model(logits=net.dense(x, 32, 4)),
            path,
            external_data="external_data.onnx.data",
            size_threshold_bytes=256,
        )
    return ir.load(path)


def several_ports() -> ir.Model:
    """Several inputs and outputs: an input used twice, an int64 output, an output that a node reads."""
    net = Net("several_ports", 54)
    left, right = net.input("left", "N", 10), net.input("right", "N", 6)
    a = net.op("Relu", net.dense(left, 10, 8))
    b = net.op("Sigmoid", net.dense(right, 6, 8))
    middle = net.op("Mul", a, b)
    joined = net.op("Concat", middle, left, axis=1)
    return net.model(
        logits=net.dense(joined, 18, 4),
        middle=middle,
        size=net.op("Shape", left),
        copy=net.op("Identity", right),
    )


def constant_output() -> ir.Model:
    """An output that does not depend on the input, and weights that sit in Constant nodes."""
    net = Net("constant_output", 55)
    x = net.input("features", "N", 8)
    weight, prior = (
        net.op("Constant", value=ir.tensor(net.array(*shape), name=f"held_{i}"))
        for i, shape in enumerate([(8, 6), (6, 6)])
    )
    fixed = net.op("Add", net.op("MatMul", prior, prior), net.const(np.ones((6, 6), np.float32), "ones"))
    return net.model(logits=net.op("Tanh", net.op("MatMul", x, weight)), prior=fixed)


def weight_is_input() -> ir.Model:
    """Initializers that are also listed as inputs, as old exporters wrote them: defaults that a caller may
    replace.
    """
    net = Net("weight_is_input", 56)
    x = net.op("Relu", net.conv(net.input("image", "N", 3, 8, 8), 3, 6))
    model = net.model(logits=net.dense(net.pooled(x), 6, 3))
    model.graph.inputs.extend(model.graph.initializers.values())
    return model


def dead_code() -> ir.Model:
    """A node whose result nobody reads and a weight that no node uses."""
    net = Net("dead_code", 57)
    x = net.input("features", "N", 8)
    net.op("Tanh", net.op("MatMul", x, net.weight(8, 300, name="unread.weight")))
    net.weight(100, 10, name="unused.weight")
    model = net.model(logits=net.dense(x, 8, 4))
    infer(model)
    return model


def redundant() -> ir.Model:
    """What exporters leave behind: Identity, Dropout, twice the same constant and node, Transpose there and
    back."""
    net = Net("redundant", 58)
    x = net.op("Identity", net.input("image", "N", 3, 8, 8))
    x = net.op("Relu", net.conv(x, 3, 8))
    x = net.op("Transpose", net.op("Transpose", x, perm=[0, 2, 3, 1]), perm=[0, 3, 1, 2])
    weight = net.array(8, 8, 1, 1)
    left, right = (
        net.op("Conv", x, net.const(weight, name), kernel_shape=[1, 1])
        for name in ("one.weight", "same.weight")
    )
    x = net.op("Dropout", net.pooled(net.op("Add", left, right)))
    x = net.op("Reshape", x, net.ints([0, 8], "as_it_is"))
    return net.model(logits=net.op("Cast", net.dense(x, 8, 4), to=FLOAT.value))
