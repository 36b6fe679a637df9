"""Small networks of all families, for pruning."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import onnx_ir as ir

from attar.testing.build import Net


def act(net: Net, x: ir.Value, kind: str = "Relu") -> ir.Value:
    return net.op(kind, x)


def block(net: Net, x: ir.Value, i: int, o: int, kind: str = "Relu", **options: object) -> ir.Value:
    kernel = options.pop("kernel", (3, 3))
    y = net.batch_norm(net.conv(x, i, o, kernel, bias=False, **options), o)  # type: ignore[arg-type]
    return net.op(kind, y) if kind else y


def image(net: Net) -> ir.Value:
    return net.input("x", "N", 3, 16, 16)


def gate(net: Net, x: ir.Value, c: int, kind: str = "Sigmoid") -> ir.Value:
    s = net.op("GlobalAveragePool", x)
    s = net.op("Relu", net.conv(s, c, c // 4, (1, 1)))
    return net.op("Mul", x, net.op(kind, net.conv(s, c // 4, c, (1, 1))))


def head(net: Net, x: ir.Value, c: int) -> ir.Model:
    return net.model(logits=net.dense(net.pooled(x), c, 5))


def mobilenet_v1() -> ir.Model:
    net = Net("v1", 1)
    x, c = block(net, image(net), 3, 8, stride=2), 8
    for o in (16, 16, 32):
        x = block(net, block(net, x, c, c, group=c), c, o, kernel=(1, 1))
        c = o
    return head(net, x, c)


def mobilenet_v2() -> ir.Model:
    net = Net("v2", 2)
    x, c = block(net, image(net), 3, 8), 8
    for o in (8, 12, 12):
        y = block(net, block(net, x, c, 4 * c, kernel=(1, 1)), 4 * c, 4 * c, group=4 * c)
        y = block(net, y, 4 * c, o, "", kernel=(1, 1))
        x, c = (net.op("Add", x, y) if o == c else y), o
    return head(net, x, c)


def mobilenet_v3() -> ir.Model:
    net = Net("v3", 3)
    x = block(net, image(net), 3, 8, "HardSwish")
    y = block(
        net, block(net, x, 8, 32, "HardSwish", kernel=(1, 1)), 32, 32, "HardSwish", group=32, kernel=(5, 5)
    )
    return head(
        net, net.op("Add", x, block(net, gate(net, y, 32, "HardSigmoid"), 32, 8, "", kernel=(1, 1))), 8
    )


def efficientnet() -> ir.Model:
    net = Net("efficient", 4)

    def swish(v: ir.Value) -> ir.Value:
        return net.op("Mul", v, net.op("Sigmoid", v))

    x = swish(block(net, image(net), 3, 8, ""))
    y = swish(block(net, swish(block(net, x, 8, 24, "", kernel=(1, 1))), 24, 24, "", group=24))
    return head(net, net.op("Add", x, block(net, gate(net, y, 24), 24, 8, "", kernel=(1, 1))), 8)


def resnet(groups: int = 1) -> ir.Model:
    net = Net("resnet", 5)
    x, c = block(net, image(net), 3, 16), 16
    for o in (16, 32):
        y = block(net, block(net, x, c, 16, kernel=(1, 1)), 16, 16, group=groups)
        y = block(net, y, 16, o, "", kernel=(1, 1))
        x, c = net.op("Relu", net.op("Add", y, x if c == o else block(net, x, c, o, "", kernel=(1, 1)))), o
    return head(net, x, c)


def densenet() -> ir.Model:
    net = Net("dense", 6)
    x, c = net.conv(image(net), 3, 8), 8
    for _ in range(3):
        y = net.conv(net.op("Relu", net.batch_norm(x, c)), c, 6, bias=False)
        x, c = net.op("Concat", x, y, axis=1), c + 6
    return head(net, net.op("Relu", net.batch_norm(x, c)), c)


def squeezenet() -> ir.Model:
    net = Net("squeeze", 7)
    x, c = net.op("Relu", net.conv(image(net), 3, 8)), 8
    for o in (8, 12):
        s = net.op("Relu", net.conv(x, c, 6, (1, 1)))
        x = net.op(
            "Concat", net.op("Relu", net.conv(s, 6, o, (1, 1))), net.op("Relu", net.conv(s, 6, o)), axis=1
        )
        c = 2 * o
    return head(net, x, c)


def shuffle(net: Net, x: ir.Value, c: int, g: int = 2) -> ir.Value:
    x = net.op("Reshape", x, net.ints([0, g, c // g, 16, 16]))
    return net.op("Reshape", net.op("Transpose", x, perm=[0, 2, 1, 3, 4]), net.ints([0, c, 16, 16]))


def shufflenet_v2() -> ir.Model:
    net = Net("shuffle2", 8)
    x = block(net, image(net), 3, 16)
    for _ in range(2):
        left, right = net.ops("Split", x, net.ints([8, 8]), count=2, axis=1)
        right = block(net, block(net, right, 8, 8, kernel=(1, 1)), 8, 8, "", group=8)
        right = block(net, right, 8, 8, kernel=(1, 1))
        x = shuffle(net, net.op("Concat", left, right, axis=1), 16)
    return head(net, x, 16)


def shufflenet_v1() -> ir.Model:
    net = Net("shuffle1", 9)
    x = block(net, image(net), 3, 24)
    y = shuffle(net, block(net, x, 24, 24, group=3, kernel=(1, 1)), 24, 3)
    y = block(net, block(net, y, 24, 24, "", group=24), 24, 24, "", group=3, kernel=(1, 1))
    return head(net, net.op("Relu", net.op("Add", x, y)), 24)


def inception() -> ir.Model:
    net = Net("inception", 10)
    x = block(net, image(net), 3, 12)
    pool = net.op("MaxPool", x, kernel_shape=[3, 3], pads=[1, 1, 1, 1])
    a = block(net, x, 12, 8, kernel=(1, 1))
    b = block(net, block(net, x, 12, 6, kernel=(1, 1)), 6, 10, kernel=(1, 7))
    return head(net, net.op("Concat", a, b, block(net, pool, 12, 4, kernel=(1, 1)), axis=1), 22)


def detector() -> ir.Model:
    net = Net("detector", 11)
    fine = block(net, image(net), 3, 12)
    coarse = block(net, fine, 12, 16, stride=2)
    up = net.op("Resize", net.conv(coarse, 16, 12, (1, 1)), None, None, net.const(np.array([1, 12, 16, 16])))
    fine = net.op("Add", fine, up)
    scores = [net.op("Sigmoid", net.conv(f, c, 6, (1, 1))) for f, c in ((fine, 12), (coarse, 16))]
    boxes = [net.op("Transpose", net.conv(f, c, 8), perm=[0, 2, 3, 1]) for f, c in ((fine, 12), (coarse, 16))]
    boxes = [net.op("Reshape", b, net.ints([0, -1, 4])) for b in boxes]
    return net.model(fine=scores[0], coarse=scores[1], boxes=net.op("Concat", *boxes, axis=1))


def layer_norm(net: Net, x: ir.Value, c: int) -> ir.Value:
    return net.op("LayerNormalization", x, net.vector(c, 0.5, 1.5), net.vector(c, -0.3, 0.3), axis=-1)


def attend(net: Net, x: ir.Value, c: int, fused: bool, mask: ir.Value | None = None) -> ir.Value:
    h = 4
    d = c // h
    if fused:
        qkv = net.op("Reshape", net.dense(x, c, 3 * c, gemm=False), net.ints([0, 0, 3, h, d]))
        qkv = net.op("Transpose", qkv, perm=[2, 0, 3, 1, 4])
        q, k, v = (net.op("Gather", qkv, net.const(np.array(i)), axis=0) for i in range(3))
        k = net.op("Transpose", k, perm=[0, 1, 3, 2])
    else:
        q, k, v = (
            net.op(
                "Transpose", net.op("Reshape", net.dense(x, c, c, gemm=False), net.ints([0, 0, h, d])), perm=p
            )
            for p in ([0, 2, 1, 3], [0, 2, 3, 1], [0, 2, 1, 3])
        )
    scores = net.op("Mul", net.op("MatMul", q, k), net.const(np.float32(d**-0.5)))
    scores = scores if mask is None else net.op("Add", scores, mask)
    y = net.op("Transpose", net.op("MatMul", net.op("Softmax", scores, axis=-1), v), perm=[0, 2, 1, 3])
    return net.dense(net.op("Reshape", y, net.ints([0, 0, c])), c, c, gemm=False)


def transformer(net: Net, x: ir.Value, c: int, fused: bool, mask: ir.Value | None = None) -> ir.Value:
    x = net.op("Add", x, attend(net, layer_norm(net, x, c), c, fused, mask))
    y = net.op("Gelu", net.dense(layer_norm(net, x, c), c, 2 * c, gemm=False))
    return net.op("Add", x, net.dense(y, 2 * c, c, gemm=False))


def vit() -> ir.Model:
    net = Net("vit", 12)
    x = net.op("Conv", image(net), net.weight(16, 3, 4, 4), kernel_shape=[4, 4], strides=[4, 4])
    x = net.op("Transpose", net.op("Reshape", x, net.ints([0, 16, 16])), perm=[0, 2, 1])
    x = transformer(net, net.op("Add", x, net.weight(1, 16, 16)), 16, fused=True)
    return net.model(logits=net.dense(net.op("ReduceMean", x, net.ints([1]), keepdims=0), 16, 5))


def gpt() -> ir.Model:
    net = Net("gpt", 13)
    table = net.weight(32, 16, name="wte")
    mask = net.const(np.triu(np.full((6, 6), -1e9, np.float32), 1))
    x = net.op("Gather", table, net.input("tokens", "N", 6, dtype=ir.DataType.INT64))
    x = transformer(net, net.op("Add", x, net.weight(6, 16)), 16, fused=False, mask=mask)
    return net.model(logits=net.op("MatMul", layer_norm(net, x, 16), net.op("Transpose", table, perm=[1, 0])))


def mixer() -> ir.Model:
    net = Net("mixer", 14)
    x = net.op("Conv", image(net), net.weight(12, 3, 4, 4), kernel_shape=[4, 4], strides=[4, 4])
    x = net.op("Transpose", net.op("Reshape", x, net.ints([0, 12, 16])), perm=[0, 2, 1])
    y = net.op("Transpose", layer_norm(net, x, 12), perm=[0, 2, 1])
    y = net.dense(net.op("Gelu", net.dense(y, 16, 20, gemm=False)), 20, 16, gemm=False)
    x = net.op("Add", x, net.op("Transpose", y, perm=[0, 2, 1]))
    y = net.dense(net.op("Gelu", net.dense(layer_norm(net, x, 12), 12, 24, gemm=False)), 24, 12, gemm=False)
    x = net.op("Add", x, y)
    return net.model(logits=net.dense(net.op("ReduceMean", x, net.ints([1]), keepdims=0), 12, 5))


def vgg() -> ir.Model:
    net = Net("vgg", 15)
    x = net.op("PRelu", net.conv(image(net), 3, 8), net.weight(8, 1, 1))
    x = net.op("MaxPool", net.op("LeakyRelu", net.conv(x, 8, 12)), kernel_shape=[2, 2], strides=[2, 2])
    x = net.op(
        "Clip",
        net.dense(net.op("Flatten", x), 12 * 64, 20),
        net.const(np.float32(0)),
        net.const(np.float32(6)),
    )
    return net.model(logits=net.dense(x, 20, 5))


NETS: dict[str, Callable[[], ir.Model]] = {
    "MobileNetV1": mobilenet_v1,
    "MobileNetV2": mobilenet_v2,
    "MobileNetV3": mobilenet_v3,
    "EfficientNet": efficientnet,
    "ResNet": resnet,
    "ResNeXt": lambda: resnet(8),
    "ResNeXt-wide": lambda: resnet(2),
    "DenseNet": densenet,
    "SqueezeNet": squeezenet,
    "ShuffleNetV1": shufflenet_v1,
    "ShuffleNetV2": shufflenet_v2,
    "Inception": inception,
    "detector": detector,
    "ViT": vit,
    "GPT": gpt,
    "MLP-Mixer": mixer,
    "VGG": vgg,
}
