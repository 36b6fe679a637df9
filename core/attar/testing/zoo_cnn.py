"""Convolutional models of the zoo: the topologies through which channels flow in real image and audio
networks.
"""

from __future__ import annotations

import numpy as np
import onnx_ir as ir

from attar.testing.build import Net


def residual_cnn() -> ir.Model:
    """Two residual blocks, one with a strided projection, BatchNorm after every convolution."""
    net = Net("residual_cnn", 1)
    x = net.input("image", "N", 3, 16, 16)
    x = net.op("Relu", net.batch_norm(net.conv(x, 3, 8, bias=False), 8))
    for c_in, c_out, stride in ((8, 8, 1), (8, 16, 2)):
        y = net.op("Relu", net.batch_norm(net.conv(x, c_in, c_out, stride=stride, bias=False), c_out))
        y = net.batch_norm(net.conv(y, c_out, c_out, bias=False), c_out)
        if stride > 1:
            x = net.batch_norm(net.conv(x, c_in, c_out, (1, 1), stride=stride, bias=False), c_out)
        x = net.op("Relu", net.op("Add", y, x))
    return net.model(logits=net.dense(net.pooled(x), 16, 10))


def depthwise_cnn() -> ir.Model:
    """Inverted residuals with Clip(0, 6), as in MobileNetV2."""
    net = Net("depthwise_cnn", 2)
    low, high = net.const(np.float32(0), "clip_low"), net.const(np.float32(6), "clip_high")
    x = net.input("image", "N", 3, 16, 16)
    x = net.op("Clip", net.batch_norm(net.conv(x, 3, 8, stride=2), 8), low, high)
    for _ in range(2):
        y = net.op("Clip", net.batch_norm(net.conv(x, 8, 24, (1, 1)), 24), low, high)
        y = net.op("Clip", net.batch_norm(net.conv(y, 24, 24, group=24), 24), low, high)
        x = net.op("Add", x, net.batch_norm(net.conv(y, 24, 8, (1, 1)), 8))
    return net.model(logits=net.dense(net.pooled(x), 8, 5))


def concat_split() -> ir.Model:
    """An inception-like Concat, then a Split into unequal parts that go different ways."""
    net = Net("concat_split", 3)
    x = net.op("Relu", net.conv(net.input("image", "N", 3, 12, 12), 3, 8))
    branches = [net.op("Relu", net.conv(x, 8, c, k)) for c, k in ((6, (1, 1)), (8, (3, 3)), (4, (5, 5)))]
    joined = net.op("Concat", *branches, axis=1)
    left, right = net.ops("Split", joined, net.ints([10, 8], "parts"), count=2, axis=1)
    y = net.op("Concat", net.conv(left, 10, 8), net.op("Sigmoid", right), axis=1)
    return net.model(logits=net.dense(net.pooled(y), 16, 4))


def grouped_odd() -> ir.Model:
    """Grouped convolutions and channel counts that fit no vector register."""
    net = Net("grouped_odd", 4)
    x = net.op("Relu", net.conv(net.input("image", "N", 3, 11, 13), 3, 9))
    x = net.op("Relu", net.conv(x, 9, 15, group=3))
    x = net.op("Relu", net.conv(x, 15, 7, (1, 1)))
    return net.model(logits=net.dense(net.pooled(x), 7, 3))


def squeeze_excite() -> ir.Model:
    """A squeeze-excitation gate with HardSwish, HardSigmoid and ReduceMean, as in MobileNetV3."""
    net = Net("squeeze_excite", 5)
    x = net.op("HardSwish", net.batch_norm(net.conv(net.input("image", "N", 3, 14, 14), 3, 16), 16))
    gate = net.op("ReduceMean", x, net.ints([2, 3], "spatial"), keepdims=1)
    gate = net.op("Relu", net.conv(gate, 16, 4, (1, 1)))
    gate = net.op("HardSigmoid", net.conv(gate, 4, 16, (1, 1)), alpha=1 / 6, beta=0.5)
    x = net.op("HardSwish", net.conv(net.op("Mul", x, gate), 16, 12, (1, 1)))
    return net.model(logits=net.dense(net.pooled(x), 12, 6))


def unet() -> ir.Model:
    """Down and up again: MaxPool, ConvTranspose, a skip through Concat, Resize to the input size; dense
    output.
    """
    net = Net("unet", 6)
    skip = net.op("Relu", net.conv(net.input("image", "N", 3, 16, 16), 3, 8))
    x = net.op("MaxPool", skip, kernel_shape=[2, 2], strides=[2, 2])
    x = net.op("Relu", net.conv(x, 8, 16, stride=2))
    up = (net.weight(16, 8, 2, 2, name="up.weight", gain=2.0), net.vector(8, -0.3, 0.3, "up.bias"))
    x = net.op("Relu", net.op("ConvTranspose", x, *up, kernel_shape=[2, 2], strides=[2, 2]))
    scales = net.const(np.array([1, 1, 2, 2], np.float32), "scales")
    nearest = {"mode": "nearest", "coordinate_transformation_mode": "asymmetric", "nearest_mode": "floor"}
    x = net.op("Concat", net.op("Resize", x, None, scales, **nearest), skip, axis=1)
    return net.model(mask=net.op("Sigmoid", net.conv(net.op("Relu", net.conv(x, 16, 8)), 8, 2, (1, 1))))


def pooling_cnn() -> ir.Model:
    """MaxPool and AveragePool with padding, LeakyRelu and PRelu."""
    net = Net("pooling_cnn", 7)
    x = net.op("LeakyRelu", net.conv(net.input("image", "N", 3, 16, 16), 3, 8), alpha=0.1)
    x = net.op("MaxPool", x, kernel_shape=[3, 3], strides=[2, 2], pads=[1, 1, 1, 1])
    slope = net.const(net.rng.uniform(0.05, 0.3, (12, 1, 1)).astype(np.float32), "slope")
    x = net.op("PRelu", net.conv(x, 8, 12), slope)
    x = net.op("AveragePool", x, kernel_shape=[3, 3], strides=[2, 2], pads=[1, 1, 1, 1], count_include_pad=1)
    return net.model(logits=net.dense(net.op("Flatten", x), 12 * 4 * 4, 10))


def conv1d() -> ir.Model:
    """Convolutions over time: [N, channels, samples]."""
    net = Net("conv1d", 8)
    x = net.op("Relu", net.batch_norm(net.conv(net.input("audio", "N", 4, 48), 4, 12, (9,), stride=2), 12))
    x = net.op("Relu", net.conv(x, 12, 12, (5,), group=12))
    return net.model(logits=net.dense(net.pooled(net.op("Relu", net.conv(x, 12, 8, (1,)))), 8, 5))


def conv3d() -> ir.Model:
    """Convolutions over space and time: [N, channels, frames, rows, columns]."""
    net = Net("conv3d", 9)
    x = net.op("Relu", net.conv(net.input("clip", "N", 2, 4, 8, 8), 2, 6, (3, 3, 3)))
    x = net.op("MaxPool", x, kernel_shape=[2, 2, 2], strides=[2, 2, 2])
    return net.model(logits=net.dense(net.pooled(net.op("Relu", net.conv(x, 6, 8, (3, 3, 3)))), 8, 4))


def pad_slice_shortcut() -> ir.Model:
    """The shortcut without parameters of the CIFAR ResNets: strided Slice, Pad by zero channels, Add."""
    net = Net("pad_slice_shortcut", 10)
    x = net.op("Relu", net.conv(net.input("image", "N", 3, 16, 16), 3, 8))
    window = [[0, 0], [np.iinfo(np.int32).max] * 2, [2, 3], [2, 2]]  # starts, ends, axes, steps
    short = net.op("Slice", x, *(net.ints(a, f"slice_{i}") for i, a in enumerate(window)))
    short = net.op("Pad", short, net.ints([0, 4, 0, 0, 0, 4, 0, 0], "pads"), mode="constant")
    y = net.conv(net.op("Relu", net.conv(x, 8, 16, stride=2)), 16, 16)
    return net.model(logits=net.dense(net.pooled(net.op("Relu", net.op("Add", y, short))), 16, 10))


def channel_shuffle() -> ir.Model:
    """Grouped 1x1 convolutions with channels shuffled by Reshape and Transpose, as in ShuffleNet."""
    net = Net("channel_shuffle", 11)
    x = net.op("Relu", net.conv(net.input("image", "N", 3, 8, 8), 3, 12))
    x = net.conv(x, 12, 12, (1, 1), group=3)
    x = net.op("Reshape", x, net.ints([0, 3, 4, 8, 8], "split_groups"))
    x = net.op("Transpose", x, perm=[0, 2, 1, 3, 4])
    x = net.op("Reshape", x, net.ints([0, 12, 8, 8], "join_groups"))
    x = net.op("Relu", net.conv(x, 12, 12, (1, 1), group=3))
    return net.model(logits=net.dense(net.pooled(x), 12, 4))


def dead_channel() -> ir.Model:
    """Channels that are always zero, and a layer whose weights are all zero: ranges and norms of nothing."""
    net = Net("dead_channel", 12)
    x = net.input("image", "N", 3, 10, 10)
    weight, bias = net.array(8, 3, 3, 3), net.rng.uniform(0.1, 0.3, 8).astype(np.float32)
    weight[2], bias[2], weight[5], bias[5] = 0, 0, 0, -1  # the second is negative everywhere: Relu kills it
    same = {"kernel_shape": [3, 3], "pads": [1, 1, 1, 1]}
    x = net.op(
        "Relu", net.op("Conv", x, net.const(weight, "conv.weight"), net.const(bias, "conv.bias"), **same)
    )
    zero = net.op("Conv", x, net.const(np.zeros((8, 8, 3, 3), np.float32), "zero.weight"), **same)
    return net.model(logits=net.dense(net.pooled(net.op("Add", x, zero)), 8, 4))


def batch_one() -> ir.Model:
    """Every dimension is a number and the batch is 1, with a Reshape that says so."""
    net = Net("batch_one", 13)
    x = net.op("Relu", net.conv(net.input("image", 1, 3, 8, 8), 3, 6, stride=2))
    x = net.op("Reshape", x, net.ints([1, 96], "flat"))
    return net.model(logits=net.op("Softmax", net.dense(x, 96, 5), axis=-1))
