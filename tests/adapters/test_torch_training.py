"""What training wants of the adapter: layers kept apart on reading, and where a written module holds what."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from torch_nets import ADAPTER, Recurrent, Tied, parity
from torch_writing import close

torch = pytest.importorskip("torch")
nn = torch.nn

from attar import graph  # noqa: E402
from attar.errors import InputError  # noqa: E402
from attar.registry import default_registry  # noqa: E402
from attar.testing.build import Net  # noqa: E402


def net() -> Any:
    torch.manual_seed(0)
    made = nn.Sequential(nn.Conv2d(3, 4, 3, bias=False), nn.BatchNorm2d(4), nn.ReLU(), nn.Conv2d(4, 4, 1))
    made[1].running_mean.uniform_(-1, 1)
    return made.eval()


def kinds(model: Any) -> list[str]:
    return [n.op_type for n in model.graph]


def test_batch_norm_stays_a_layer() -> None:
    x = torch.randn(2, 3, 6, 6)
    kept = ADAPTER.load(net(), inputs=x)
    parity(kept)
    assert kinds(kept.model) == ["Conv", "BatchNormalization", "Relu", "Conv"]
    assert {"1.weight", "1.running_mean", "0.weight"} <= set(kept.model.graph.initializers)
    program = torch.export.export(net(), (x,))
    assert "BatchNormalization" in kinds(ADAPTER.load(program).model)
    with pytest.raises(InputError, match="it has one: dynamic"):
        ADAPTER.load(net(), inputs=x, fold=False)


def test_the_tracing_exporter_keeps_it_too() -> None:
    script = torch.jit.script(net())
    kept = ADAPTER.load(script, inputs=torch.randn(2, 3, 6, 6))
    assert "BatchNormalization" in kinds(kept.model)
    parity(kept)


def held(exported: Any, model: Any) -> dict[str, Any]:
    """Initializer -> its numbers, put together from what the module holds."""
    tensors = {**dict(exported.native.named_parameters()), **dict(exported.native.named_buffers())}
    found = {}
    for name, places in exported.weights.items():
        if name not in model.graph.initializers:
            continue  # computed from others before the module was made
        array = np.full(graph.const_array(model.graph.initializers[name]).shape, np.nan, np.float32)
        for place in places:
            content = tensors[place.path].detach().numpy()
            where = np.arange(array.size).reshape(array.shape)
            where = where if place.change is None else place.change(where)
            assert where.shape == content.shape
            array.reshape(-1)[where.reshape(-1)] = content.reshape(-1)
        found[name] = array
    return found


@pytest.mark.parametrize(
    "kind",
    ["conv", pytest.param("recurrent", marks=pytest.mark.slow), pytest.param("tied", marks=pytest.mark.slow)],
)
def test_a_written_module_tells_where_its_weights_are(kind: str) -> None:
    module, x = {
        "conv": lambda: (net(), torch.randn(2, 3, 6, 6)),
        "recurrent": lambda: (Recurrent(), torch.randn(2, 5, 8)),
        "tied": lambda: (Tied(), torch.randint(0, 4, (2, 5))),
    }[kind]()
    model = ADAPTER.load(module.eval(), inputs=x).model
    exported = ADAPTER.write(model, registry=default_registry())
    found = held(exported, model)
    assert len(found) >= 3
    for name, array in found.items():
        np.testing.assert_array_equal(array, graph.const_array(model.graph.initializers[name]), err_msg=name)
    trained = {p for places in exported.weights.values() for p in (place.path for place in places)}
    assert {name for name, _ in exported.native.named_parameters()} <= trained
    nodes = {node.name for node in exported.native.graph.nodes}
    assert set(exported.values.values()) <= nodes
    assert {v.name for v in model.graph.outputs} <= set(exported.values)


def test_marks_say_what_is_learned() -> None:
    """A weight turned by a Transpose is a parameter if it is marked so, and a constant may be marked."""
    n = Net("marks", 1)
    w, mask = (
        n.weight(4, 3, name="w"),
        n.const(np.ones((3, 4), np.float32) * 2 + np.eye(3, 4, dtype=np.float32), "mask"),
    )
    turned = n.op("Mul", n.op("Transpose", w, perm=[1, 0]), mask)
    model = n.model(y=n.op("MatMul", n.input("x", "N", 3), turned))
    registry = default_registry()
    folded = ADAPTER.write(model, registry=registry)
    assert "w" not in folded.weights
    graph.mark_learned(model.graph.initializers["w"])
    graph.mark_learned(model.graph.initializers["mask"], False)
    exported = ADAPTER.write(model, registry=registry)
    assert [tuple(p.shape) for p in exported.native.parameters()] == [(4, 3)]
    assert set(exported.weights) == {"w", "mask"}
    assert exported.weights["mask"][0].path in dict(exported.native.named_buffers())
    x = np.random.default_rng(0).standard_normal((2, 3)).astype(np.float32)
    wanted = x @ (graph.const_array(model.graph.initializers["w"]).T * graph.const_array(mask))
    close(exported.run({"x": x})[0], wanted, rel=1e-6)
    copy = graph.clone(model)
    assert graph.is_learned(copy.graph.initializers["w"]) is True
    graph.unmark_learned(copy.graph.initializers["w"])
    assert graph.is_learned(copy.graph.initializers["w"]) is None
