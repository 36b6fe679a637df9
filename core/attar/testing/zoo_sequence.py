"""Models of the zoo that work on vectors and sequences: fully connected, attention, recurrent."""

from __future__ import annotations

import numpy as np
import onnx_ir as ir

from attar.testing.build import INT64, Net

VOCABULARY = 50
WIDTH, HEADS = 32, 4


def mlp() -> ir.Model:
    """Gemm and MatMul layers over flat features."""
    net = Net("mlp", 20)
    x = net.op("Relu", net.dense(net.input("features", "N", 20), 20, 32))
    x = net.op("Tanh", net.dense(x, 32, 24, gemm=False))
    return net.model(logits=net.dense(x, 24, 4))


def _norm(net: Net, x: ir.Value) -> ir.Value:
    scale, bias = net.vector(WIDTH, 0.5, 1.5), net.vector(WIDTH, -0.3, 0.3)
    return net.op("LayerNormalization", x, scale, bias, axis=-1, epsilon=1e-5)


def _block(net: Net, x: ir.Value, mask: ir.Value | None = None) -> ir.Value:
    """A post-norm encoder block; `mask` is added to the attention scores."""
    split = net.ints([0, 0, HEADS, WIDTH // HEADS])
    q, k, v = (
        net.op("Transpose", net.op("Reshape", net.dense(x, WIDTH, WIDTH, gemm=False), split), perm=perm)
        for perm in ([0, 2, 1, 3], [0, 2, 3, 1], [0, 2, 1, 3])
    )
    scores = net.op("Div", net.op("MatMul", q, k), net.const(np.float32(np.sqrt(WIDTH // HEADS))))
    if mask is not None:
        scores = net.op("Add", scores, mask)
    mixed = net.op("Transpose", net.op("MatMul", net.op("Softmax", scores, axis=-1), v), perm=[0, 2, 1, 3])
    mixed = net.op("Reshape", mixed, net.ints([0, 0, WIDTH]))
    x = _norm(net, net.op("Add", x, net.dense(mixed, WIDTH, WIDTH, gemm=False)))
    hidden = net.op("Gelu", net.dense(x, WIDTH, 2 * WIDTH, gemm=False))
    return _norm(net, net.op("Add", x, net.dense(hidden, 2 * WIDTH, WIDTH, gemm=False)))


def attention() -> ir.Model:
    """One encoder block over vectors, with dynamic batch and sequence length."""
    net = Net("attention", 21)
    return net.model(hidden=_block(net, net.input("vectors", "N", "S", WIDTH)))


def encoder() -> ir.Model:
    """Tokens and mask in, hidden states and a mean over the unmasked tokens out."""
    net = Net("encoder", 22)
    tokens, mask = (net.input(name, "N", "S", dtype=INT64) for name in ("tokens", "mask"))
    table = net.const(net.rng.standard_normal((VOCABULARY, WIDTH)).astype(np.float32), "embedding.weight")
    live = net.op("Cast", mask, to=ir.DataType.FLOAT.value)
    penalty = net.op("Mul", net.op("Sub", net.const(np.float32(1)), live), net.const(np.float32(-1e4)))
    penalty = net.op("Unsqueeze", penalty, net.ints([1, 2]))
    hidden = _block(net, _norm(net, net.op("Gather", table, tokens, axis=0)), penalty)
    live = net.op("Unsqueeze", live, net.ints([2]))
    axis = net.ints([1])
    total = net.op("ReduceSum", net.op("Mul", hidden, live), axis, keepdims=0)
    pooled = net.op("Div", total, net.op("ReduceSum", live, axis, keepdims=0))
    return net.model(hidden=hidden, pooled=pooled)


def embedding() -> ir.Model:
    """Token embeddings averaged and classified."""
    net = Net("embedding", 23)
    table = net.const(net.rng.standard_normal((VOCABULARY, 16)).astype(np.float32), "embedding.weight")
    x = net.op("Gather", table, net.input("tokens", "N", "S", dtype=INT64), axis=0)
    mean = net.op("ReduceMean", x, net.ints([1]), keepdims=0)
    return net.model(logits=net.dense(mean, 16, 3))


def tied_embedding() -> ir.Model:
    """One table looked up by Gather and, transposed, used as the output projection."""
    net = Net("tied_embedding", 24)
    table = net.const(net.rng.standard_normal((VOCABULARY, 16)).astype(np.float32) / 4, "embedding.weight")
    x = net.op("Gather", table, net.input("tokens", "N", "S", dtype=INT64), axis=0)
    x = net.op("Tanh", net.dense(x, 16, 16, gemm=False))
    return net.model(logits=net.op("MatMul", x, net.op("Transpose", table, perm=[1, 0])))


def lstm() -> ir.Model:
    """A bidirectional LSTM with an empty sequence-length input and all three outputs."""
    net = Net("lstm", 25)
    features, hidden = 6, 8
    x = net.op("Transpose", net.input("frames", "N", "S", features), perm=[1, 0, 2])
    weights = [
        net.weight(2, 4 * hidden, features, name="lstm.W", gain=4.0),
        net.weight(2, 4 * hidden, hidden, name="lstm.R", gain=4.0),
        net.const(net.rng.uniform(-0.3, 0.3, (2, 8 * hidden)).astype(np.float32), "lstm.B"),
    ]
    y, last, _ = net.ops("LSTM", x, *weights, None, count=3, hidden_size=hidden, direction="bidirectional")
    last = net.op("Transpose", last, perm=[1, 0, 2])
    last = net.op("Reshape", last, net.ints([0, 2 * hidden]))
    y = net.op("ReduceMax", y, net.ints([0, 1]), keepdims=0)
    return net.model(logits=net.dense(last, 2 * hidden, 4), peak=y)


def gru() -> ir.Model:
    """A GRU, whose weights are laid out unlike those of an LSTM."""
    net = Net("gru", 26)
    x = net.op("Transpose", net.input("frames", "N", "S", 6), perm=[1, 0, 2])
    weights = [net.weight(1, 24, 6, name="gru.W", gain=3.0), net.weight(1, 24, 8, name="gru.R", gain=3.0)]
    _, last = net.ops("GRU", x, *weights, count=2, hidden_size=8, linear_before_reset=1)
    return net.model(logits=net.dense(net.op("Squeeze", last, net.ints([0])), 8, 4))
