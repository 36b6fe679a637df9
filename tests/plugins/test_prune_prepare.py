"""What hides channels is written in another way before they are grouped, and computes the same."""

from __future__ import annotations

import numpy as np
import onnx_ir as ir
import pytest
from prune_zeroing import RUNTIME, distance, removed

from attar import graph
from attar.context import Context
from attar.registry import default_registry
from attar.testing.build import Net
from attar_prune.prepare import prepare


def folded_heads() -> ir.Model:
    """Attention with batch and heads in one axis, as torch.nn.MultiheadAttention has it: [S, N, 16] ->
    [S, N*4, 4] -> [N*4, S, 4] -> [N, 4, S, 4], and the keys once more to be transposed."""
    net = Net("folded", 0)
    x = net.input("x", 5, "N", 16)
    parts = []
    for _ in range(3):
        y = net.op("Reshape", net.dense(x, 16, 16, gemm=False), net.ints([5, -1, 4]))
        parts.append(net.op("Reshape", net.op("Transpose", y, perm=[1, 0, 2]), net.ints([-1, 4, 5, 4])))
    q, k, v = parts
    k = net.op("Transpose", net.op("Reshape", k, net.ints([-1, 5, 4])), perm=[0, 2, 1])
    k = net.op("Reshape", k, net.ints([-1, 4, 4, 5]))
    y = net.op("MatMul", net.op("Softmax", net.op("MatMul", q, k), axis=-1), v)
    y = net.op("Reshape", net.op("Transpose", y, perm=[2, 0, 1, 3]), net.ints([5, -1, 16]))
    return net.model(y=net.dense(y, 16, 3, gemm=False))


def zero_states() -> ir.Model:
    """Two LSTMs that start from slices of the same zeros, as PyTorch writes them."""
    net = Net("states", 0)
    x = net.input("x", 5, "N", 6)
    batch = net.op("Shape", x, start=1, end=2)
    shape = net.op("Concat", net.ints([2]), batch, net.ints([8]), axis=0)
    zeros = net.op("Expand", net.const(np.float32(0)), shape)
    for k in range(2):
        state = net.op("Slice", zeros, net.ints([k]), net.ints([k + 1]), net.ints([0]))
        i = 6 if k == 0 else 8
        y, _, _ = net.ops(
            "LSTM", x, net.weight(1, 32, i), net.weight(1, 32, 8), net.weight(1, 64), None, state, state,
            count=3, hidden_size=8,
        )  # fmt: skip
        x = net.op("Squeeze", y, net.ints([1]))
    return net.model(y=net.dense(x, 8, 3, gemm=False))


def repeated() -> ir.Model:
    """Channels beside those that Expand and ConstantOfShape fill for a batch that is computed."""
    net = Net("repeated", 0)
    x = net.input("x", "N", 6)
    batch = net.op("Shape", x, start=0, end=1)
    sizes = net.op("Concat", batch, net.ints([12]), axis=0)
    y = net.op("Mul", net.dense(x, 6, 12), net.op("Expand", net.const(np.float32([[0.7]])), sizes))
    half = ir.tensor(np.float32([0.5]))
    y = net.op("Mul", net.op("Relu", y), net.op("ConstantOfShape", sizes, value=half))
    return net.model(y=net.dense(y, 12, 3))


def resized() -> ir.Model:
    """A plane brought to the size of another, beside batch and channels of its own, as PyTorch writes it."""
    net = Net("resized", 0)
    x = net.input("x", "N", 3, 8, 8)
    small = net.conv(net.op("MaxPool", x, kernel_shape=[2, 2], strides=[2, 2]), 3, 8)
    sizes = net.op("Concat", net.op("Shape", small, start=0, end=2), net.ints([8, 8]), axis=0)
    wide = net.op("Resize", small, None, None, sizes, mode="linear")
    return net.model(y=net.conv(net.op("Relu", net.op("Add", wide, net.conv(x, 3, 8))), 8, 2))


NETS = {"folded heads": (folded_heads, (5, 2, 16), {4}), "zero states": (zero_states, (5, 2, 6), {8}),
        "repeated": (repeated, (2, 6), {12}), "resized": (resized, (2, 3, 8, 8), {8})}  # fmt: skip


@pytest.mark.parametrize("name", NETS)
def test_nothing_changes_and_channels_can_go(name: str) -> None:
    make, shape, sizes = NETS[name]
    model = make()
    graph.normalize(model)
    graph.refresh_shapes(model)
    rng = np.random.default_rng(0)
    feeds = {"x": rng.standard_normal(shape).astype(np.float32)}
    registry, prepared = default_registry(), graph.clone(model)
    prepare(prepared, Context(registry, registry.get_target("cpu"), RUNTIME))
    assert distance(prepared, model, feeds) <= 1e-6
    less, hand, ctx = removed(model)
    assert hand.zeroed is not None
    for count in (1, 3):  # the batch is still free
        some = {"x": rng.standard_normal([count if d == 2 else d for d in shape]).astype(np.float32)}
        assert distance(less, hand.zeroed, some) <= 1e-5
    assert hand.sizes == sizes
    assert [skip.reason for skip in ctx.step.skipped] == ["its output channels stay: an output of the model"]


def test_two_cells_are_not_tied_by_their_zeros() -> None:
    model = zero_states()
    graph.normalize(model)
    graph.refresh_shapes(model)
    less, _, _ = removed(model)
    cells = [node for node in less.graph if node.op_type == "LSTM"]
    assert all(len(node.inputs) < 6 or node.inputs[5] is None for node in cells)


def test_a_state_that_is_not_zero_stays() -> None:
    net = Net("state", 0)
    x = net.input("x", 5, 2, 6)
    y = net.ops(
        "LSTM", x, net.weight(1, 32, 6), net.weight(1, 32, 8), net.weight(1, 64), None, net.weight(1, 2, 8),
        net.const(np.zeros((1, 2, 8), np.float32)), count=3, hidden_size=8,
    )[0]  # fmt: skip
    model = net.model(y=net.dense(net.op("Squeeze", y, net.ints([1])), 8, 3, gemm=False))
    graph.normalize(model)
    graph.refresh_shapes(model)
    feeds = {"x": np.random.default_rng(0).standard_normal((5, 2, 6)).astype(np.float32)}
    less, hand, _ = removed(model)
    assert hand.zeroed is not None
    assert distance(less, hand.zeroed, feeds) <= 1e-5
    cell = next(node for node in less.graph if node.op_type == "LSTM")
    assert cell.inputs[5] is not None
    assert len(cell.inputs) < 7 or cell.inputs[6] is None
