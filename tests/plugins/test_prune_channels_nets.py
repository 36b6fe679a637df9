"""Removing channels is exact: a network whose chosen channels are multiplied with zero before every layer
that reads them, and the network without them, compute the same. On architectures of all families, and on
random graphs."""

from __future__ import annotations

import numpy as np
import onnx_ir as ir
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from prune_nets import NETS, gate

from attar import graph
from attar.runtime import OnnxRuntime
from attar.testing.build import Net
from attar.testing.zoo import ZOO
from attar_prune.groups import Grouping
from attar_prune.prepare import split_shared_vectors
from attar_prune.remove import remove, silence

RUNTIME = OnnxRuntime()
READERS = {"Conv", "ConvTranspose", "Gemm", "MatMul"}


def chosen(grouping: Grouping, share: float = 0.4, seed: int = 0) -> np.ndarray:
    rng, gone = np.random.default_rng(seed), grouping.nothing()
    for group in grouping.groups:
        count = min(group.size - 1, max(1, int(group.size * share)))
        gone[rng.choice(group.labels, count, replace=False)] = True
    return gone


def masked(model: ir.Model, grouping: Grouping, gone: np.ndarray) -> None:
    """Multiply with zero, before each layer that reads it, every channel that goes."""
    for node in list(model.graph):
        if node.op_type not in READERS:
            continue
        for index, value in enumerate(node.inputs[:2]):
            if value is None or graph.const_array(value) is not None:
                continue
            for axis in range(len(value.shape)):
                keep = grouping.keep(value, axis, gone)
                if keep is None:
                    continue
                shape = [1] * len(value.shape)
                shape[axis] = -1
                zeros = graph.add_initializer(
                    model.graph, "mask", keep.astype(value.dtype.numpy()).reshape(shape)
                )
                step = ir.node("Mul", [node.inputs[index], zeros])
                step.outputs[0].name = graph.fresh_name(model.graph, "masked")
                model.graph.insert_before(node, step)
                node.replace_input_with(index, step.outputs[0])


def agree(model: ir.Model, feeds: dict[str, np.ndarray], seed: int = 0) -> int:
    """Check both references; the number of groups."""
    graph.normalize(model)
    graph.refresh_shapes(model)
    split_shared_vectors(model)
    quiet, cut = graph.clone(model), graph.clone(model)
    grouping = Grouping(cut)
    if not grouping.groups:
        return 0
    gone = chosen(grouping, seed=seed)
    silence(Grouping(quiet), gone)
    twin = Grouping(model)
    remove(grouping, gone)
    graph.tidy(cut)
    assert graph.byte_size(cut) < graph.byte_size(quiet)
    masked(model, twin, gone)
    # Inside a recurrent cell the state reads itself, where no mask can be put.
    recurrent = any(n.op_type in ("LSTM", "GRU") for n in model.graph)
    results = [RUNTIME.open(m).run(feeds) for m in ((cut, quiet) if recurrent else (cut, quiet, model))]
    for index, ours in enumerate(results[0]):
        assert np.isfinite(ours).all()
        bound = 1e-5 if ours.dtype != np.float16 else 5e-3
        for other in results[1:]:
            scale = max(1.0, float(np.abs(other[index]).max(initial=0)))
            assert np.abs(ours.astype(np.float64) - other[index]).max(initial=0) <= bound * scale
    return len(grouping.groups)


@pytest.mark.parametrize("name", NETS)
def test_removal_equals_zeroing(name: str) -> None:
    model = NETS[name]()
    rng = np.random.default_rng(0)
    if name == "GPT":
        feeds = {"tokens": rng.integers(0, 32, (2, 6))}
    else:
        feeds = {"x": rng.standard_normal((1 if name == "detector" else 2, 3, 16, 16)).astype(np.float32)}
    assert agree(model, feeds) > 0


@pytest.mark.parametrize("name", list(ZOO))
def test_removal_equals_zeroing_in_the_zoo(name: str) -> None:
    agree(ZOO[name].build(), ZOO[name].inputs())


OPS = st.lists(
    st.tuples(st.sampled_from(range(9)), st.integers(0, 99), st.integers(0, 99)), min_size=2, max_size=9
)


@settings(max_examples=25, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(OPS, st.integers(0, 3))
def test_random_graphs(plan: list[tuple[int, int, int]], seed: int) -> None:
    net = Net("random", seed)
    values: list[tuple[ir.Value, int]] = [(net.op("Relu", net.conv(net.input("x", "N", 3, 6, 6), 3, 8)), 8)]
    for kind, a, b in plan:
        (x, c), (y, d) = values[a % len(values)], values[b % len(values)]
        if kind in (0, 1):
            o = 4 + 2 * (b % 4)
            made = net.op("Relu", net.conv(x, c, o)), o
        elif kind == 2:
            made = net.conv(x, c, c, group=c), c
        elif kind == 3:
            made = net.conv(x, c, c, group=2, bias=False), c
        elif kind == 4:
            made = (net.op("Add", x, y) if c == d else net.op("Add", x, net.conv(y, d, c, (1, 1)))), c
        elif kind == 5:
            made = net.op("Concat", x, y, axis=1), c + d
        elif kind == 6:
            made = net.ops("Split", x, net.ints([c - 2, 2]), count=2, axis=1)[0], c - 2
            if c <= 4:
                continue
        elif kind == 7:
            s = net.op("Reshape", x, net.ints([0, 2, c // 2, 36]))
            made = net.op("Reshape", net.op("Transpose", s, perm=[0, 2, 1, 3]), net.ints([0, c, 6, 6])), c
        else:
            made = gate(net, net.batch_norm(x, c), c) if c >= 4 else net.op("Tanh", x), c
        if made[1] % 2 == 0 and made[1] <= 32:
            values.append(made)
    pooled = [net.pooled(v) for v, _ in values[-2:]]
    total = sum(c for _, c in values[-2:])
    model = net.model(logits=net.dense(net.op("Concat", *pooled, axis=1), total, 3))
    agree(model, {"x": np.random.default_rng(seed).standard_normal((2, 3, 6, 6)).astype(np.float32)}, seed)
