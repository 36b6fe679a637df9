"""What a newcomer does from end to end: other classes in one recipe, and a loop outside of attar."""

from __future__ import annotations

from typing import Any

import numpy as np
import onnx_ir as ir
import pytest

torch = pytest.importorskip("torch")

from train_data import accuracy, context, images, network, one_thread  # noqa: E402, F401

import attar  # noqa: E402
from attar import graph, invariants  # noqa: E402
from attar.run import run_pass, run_recipe  # noqa: E402
from attar.runtime import OnnxRuntime  # noqa: E402
from attar_prune import Channels, Weights  # noqa: E402
from attar_quantize import Static  # noqa: E402
from attar_train import Distill, FineTune, Qat, head_of, new_head, prepare  # noqa: E402
from attar_train.constrain import constrain  # noqa: E402

TRAIN, TEST = images(320), images(300, seed=9)
HALVES = tuple((x, (y % 2).astype(np.int64)) for x, y in (TRAIN, TEST))
pytestmark = pytest.mark.usefixtures("one_thread")


@pytest.fixture(scope="module")
def base() -> ir.Model:
    """A network trained for four classes."""
    return run_pass(FineTune(epochs=3, batch_size=32, lr=0.01), network(), context(network(), TRAIN))[0]


def weights(model: ir.Model) -> dict[str, Any]:
    arrays = {n: graph.const_array(v) for n, v in model.graph.initializers.items()}
    return {n: a for n, a in arrays.items() if a is not None}


def scores(model: ir.Model, x: Any) -> Any:
    return OnnxRuntime().open(model).run({"x": x})[0]


def test_other_classes_frozen_by_pattern_and_compressed_by_one_recipe(base: ir.Model) -> None:
    """Head alone, then all but the first layer, then fewer channels and integers, trained through both."""
    model = new_head(base, 2)
    early = next(n for n in model.graph if n.op_type == "Conv").inputs[1].name
    assert early is not None
    recipe = [
        FineTune(epochs=2, batch_size=32, lr=0.02, only=head_of(model).names, batch_norm="frozen"),
        FineTune(epochs=2, batch_size=32, lr=0.003, freeze=(f"{early[:-1]}*",)),
        Channels(ratio=0.25, block=1),
        Distill(epochs=2, batch_size=32, lr=0.005, teachers=("trained",)),
        Static(plan="everything"),
        Qat(epochs=1, batch_size=32, teachers=("trained",)),
    ]
    train, test = HALVES
    ctx = context(model, train, calibration=train[0][:64])
    before, _, _ = run_recipe(recipe[:2], model, ctx)
    np.testing.assert_array_equal(weights(before)[early], weights(base)[early])
    moved = [n for n, a in weights(before).items() if n in weights(base) and not n.startswith(early[:-1])]
    assert any((weights(before)[n] != weights(base)[n]).any() for n in moved if n not in head_of(model).names)
    # Whether integers are quicker for so small a network is not asked here.
    done, steps, _ = run_recipe(recipe, model, ctx)
    assert [s.refused for s in steps if not s.implied] == [""] * len(recipe)
    assert accuracy(done, test) > 0.9
    assert graph.byte_size(done) < 0.5 * graph.byte_size(model)


@pytest.fixture(scope="module")
def held_model(base: ir.Model) -> ir.Model:
    """Half of the weights zero, and everything in integers of few bits."""
    recipe = [
        Weights(ratio=0.5, method="magnitude"),
        Static(plan="everything", weight_bits=4, rounding="nearest", observer="mse"),
    ]
    return run_recipe(recipe, base, context(base, TRAIN, calibration=TRAIN[0][:64]))[0]


def outside(module: Any, x: Any, y: Any) -> None:
    """A loop that knows of torch alone."""
    optimizer = torch.optim.Adam([p for p in module.parameters() if p.requires_grad], lr=1e-3)
    module.train()
    for start in 2 * list(range(0, len(x), 32)):
        optimizer.zero_grad()
        out = module(torch.from_numpy(x[start : start + 32]))
        out = out[0] if isinstance(out, tuple | list) else out
        torch.nn.functional.cross_entropy(out, torch.from_numpy(y[start : start + 32])).backward()
        optimizer.step()
    module.eval()


def surprise(model: ir.Model) -> float:
    """Mean cross entropy on the training samples, by ONNX Runtime."""
    z = scores(model, TRAIN[0]).astype(np.float64)
    z -= np.log(np.exp(z).sum(1, keepdims=True))
    return float(-z[np.arange(len(z)), TRAIN[1]].mean())


def zeros_of(model: ir.Model, name: str) -> Any:
    """Where a weight that holds zeros is zero: codes may have a zero point."""
    value = model.graph.initializers[name]
    reader = next(u.node for u in value.uses() if u.node.op_type == "DequantizeLinear")
    return invariants.dequantized(reader, weights(model)[name]) == 0


def check_came_back(done: ir.Model, made: ir.Model, expected: Any) -> None:
    """The same graph, the same zeros, what the trained module computes, and not what it was before."""
    assert [n.op_type for n in done.graph] == [n.op_type for n in made.graph]
    assert set(done.graph.initializers) == set(made.graph.initializers)
    held = [n for n, v in made.graph.initializers.items() if invariants.held(v).zeros]
    zeros = {n: zeros_of(made, n) for n in held}
    assert sum(z.sum() for z in zeros.values()) >= 0.5 * sum(z.size for z in zeros.values()) > 0
    for name, zero in zeros.items():
        assert zeros_of(done, name)[zero].all()
    assert any((a != weights(made)[n]).any() for n, a in weights(done).items())
    assert surprise(done) < 0.9 * surprise(made)  # what the loop made small
    # They may differ where a sum lies exactly between two codes: one step of a few activations.
    got = scores(done, TEST[0])
    assert np.mean((got - expected) ** 2) < 1e-3 * np.var(expected)


def test_what_was_trained_elsewhere_is_read_back_from_its_state(held_model: ir.Model, tmp_path: Any) -> None:
    """The loop runs on the plain module; only its state comes back, into a module that is made anew."""
    content = graph.to_bytes(held_model)
    there = prepare(held_model)
    outside(there.module, *TRAIN)
    torch.save(there.module.state_dict(), tmp_path / "state.pt")
    here = prepare(held_model)
    here.module.load_state_dict(torch.load(tmp_path / "state.pt", weights_only=True))
    done = here.eval().finish()
    assert graph.to_bytes(held_model) == content
    with torch.no_grad():
        expected = there.forward({"x": torch.from_numpy(TEST[0])})["scores"].numpy()
    check_came_back(done, held_model, expected)


def test_a_constrained_file_is_trained_elsewhere_and_released(held_model: ir.Model, tmp_path: Any) -> None:
    """The graph with its masks and quantizers is saved, exported to torch, trained and released."""
    from attar_train import trainable

    held = constrain(held_model)
    attar.save(held.model, tmp_path / "held.onnx")
    loaded = attar.load(tmp_path / "held.onnx")
    there = trainable(loaded)
    outside(there.module, *TRAIN)
    trained = there.finish()
    attar.save(trained, tmp_path / "trained.onnx")
    done = held.release(attar.load(tmp_path / "trained.onnx"))
    with torch.no_grad():
        expected = there.forward({"x": torch.from_numpy(TEST[0])})["scores"].numpy()
    check_came_back(done, held_model, expected)
