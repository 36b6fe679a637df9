"""Constraints as graph: what is held while a model is trained, and what comes out of it."""

from __future__ import annotations

from collections.abc import Callable
from functools import cache
from typing import Any

import numpy as np
import onnx_ir as ir
import pytest

from attar import graph, invariants
from attar.errors import InputError
from attar.testing.build import Net

torch = pytest.importorskip("torch")
from quantize_models import Array, constant, normal, ops, quantize, run, small_cnn  # noqa: E402
from train_data import one_thread  # noqa: E402, F401

from attar_train.constrain import Constrained, constrain  # noqa: E402
from attar_train.held import codebook, released  # noqa: E402
from attar_train.module import trainable  # noqa: E402
from attar_train.operators import DOMAIN  # noqa: E402

pytestmark = pytest.mark.usefixtures("one_thread")


def trained(held: Constrained, steps: int = 25, lr: float = 1e-2, seed: int = 0) -> tuple[Any, ir.Model]:
    """The module after some steps towards a random target, and the model released from it."""
    made = trainable(held.model)
    rng = np.random.default_rng(seed)
    shape = [d if isinstance(d, int) else 64 for d in held.model.graph.inputs[0].shape or ()]
    name = made.inputs[0]
    x = torch.from_numpy(rng.standard_normal(shape).astype(np.float32))
    optimizer = torch.optim.AdamW([p for p in made.weights.values() if p.requires_grad], lr=lr)
    target = None
    for _ in range(steps):
        y = made.train().forward({name: x})[made.outputs[0]]
        if target is None:
            target = torch.from_numpy(rng.standard_normal(y.shape).astype(np.float32))
        loss = (y - target).square().mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    model = held.release(made.eval().finish())
    graph.refresh_shapes(model)
    graph.check(model)
    return made, model


def same(one: Array, other: Array, terms: int) -> None:
    """Two float32 sums of so many terms, and no more apart than their orders make them."""
    np.testing.assert_allclose(one, other, rtol=0, atol=2 * terms * 2.0**-24 * np.abs(other).max())


def outputs(made: Any, x: Array) -> Array:
    with torch.no_grad():
        return made.forward({made.inputs[0]: torch.from_numpy(x)})[made.outputs[0]].numpy()  # type: ignore[no-any-return]


def contents(model: ir.Model) -> dict[str, Any]:
    """Everything in a model, the initializers without their order."""
    nodes = [
        (n.op_type, n.domain, n.name, [v and v.name for v in n.inputs], [v.name for v in n.outputs],
         {k: a.value for k, a in n.attributes.items()}, dict(n.metadata_props))
        for n in graph.all_nodes(model)
    ]  # fmt: skip
    weights = {
        v.name: (v.dtype, constant(v).shape, constant(v).tobytes(), dict(v.metadata_props))
        for v in model.graph.initializers.values()
    }
    return {"nodes": nodes, "weights": weights, "opsets": dict(model.opset_imports)}


QUANTIZED: dict[str, Callable[[], ir.Model]] = {
    "per_channel": lambda: quantized(weight_bits=8),
    "per_tensor": lambda: quantized(granularity="per_tensor"),
    "w4": lambda: quantized(weight_bits=4, edge_bits=4),
    "w4_symmetric": lambda: quantized(weight_bits=4, edge_bits=4, symmetric_weights=True),
    "w4a4": lambda: quantized(weight_bits=4, edge_bits=4, activation_bits=4),
    "w4a6_int8": lambda: quantized(weight_bits=4, activation_bits=6, activation="int8"),
    "w12a12": lambda: quantized(weight="int16", activation="int16", weight_bits=12, activation_bits=12),
    "power_of_two": lambda: quantized(power_of_two=True),
    "int8_activations": lambda: quantized(activation="int8"),
}


def quantized(model: ir.Model | None = None, **options: Any) -> ir.Model:
    if model is None:
        return graph.clone(_quantized(tuple(sorted(options.items()))))
    return quantize(model, normal("x", 8, 3, 8, 8), **{"observer": "mse", **options})[0]


@cache
def _quantized(options: tuple[tuple[str, Any], ...]) -> ir.Model:
    return quantized(small_cnn(), **dict(options))


@pytest.mark.parametrize("kind", QUANTIZED)
@pytest.mark.parametrize("method", ["lsq", "ste"])
def test_untrained_models_come_back_as_they_were(kind: str, method: str) -> None:
    model = QUANTIZED[kind]()
    before = contents(model)
    held = constrain(model, method=method, offsets=True)
    assert contents(model) == before  # the caller's stays untouched
    assert [n for n, _ in held.skipped] == (["scales"] if kind == "power_of_two" and method == "lsq" else [])
    assert "QuantizeLinear" not in ops(held.model)
    assert contents(held.release()) == before


@pytest.mark.parametrize(
    ("kind", "method"), [*((k, "lsq") for k in QUANTIZED), ("per_channel", "pact"), ("w4a4", "pact")]
)
def test_trained_and_deployed_agree(kind: str, method: str) -> None:
    held = constrain(QUANTIZED[kind](), method=method, offsets=method == "lsq")
    made, model = trained(held)
    assert DOMAIN not in {n.domain for n in graph.all_nodes(model)}
    before = made.module.state_dict()
    learned = [float((p - 1).abs().max()) > 1e-3 for n, p in before.items() if n.endswith("_gain")]
    assert any(learned) == (kind != "power_of_two")
    x = np.random.default_rng(9).standard_normal((2000, 3, 8, 8)).astype(np.float32)
    mine, theirs = outputs(made, x), run(model, {"x": x})[0]
    assert (mine.argmax(1) == theirs.argmax(1)).mean() >= 0.999
    # Ties of rounding apart it is the same arithmetic.
    assert (np.abs(mine - theirs).max(axis=1) < 1e-5).mean() > 0.97


def test_codes_stay_within_the_bits_that_were_used() -> None:
    for kind, low, high in (("w4", -8, 7), ("w4_symmetric", -7, 7), ("per_channel", -127, 127)):
        _, model = trained(constrain(QUANTIZED[kind]()), lr=0.05)
        found = [constant(n.inputs[0]) for n in graph.all_nodes(model) if n.op_type == "DequantizeLinear"
                 if n.inputs[0] is not None and n.inputs[0].is_initializer()]  # fmt: skip
        codes = np.concatenate([c.reshape(-1) for c in found if c.dtype == np.int8])
        assert codes.min() >= low
        assert codes.max() <= high


def test_what_moves_integers_goes_on_moving_them() -> None:
    model = quantized()
    pairs = [n for n in graph.all_nodes(model) if n.op_type == "QuantizeLinear"]
    pool = next(n for n in graph.all_nodes(model) if n.op_type == "MaxPool")
    before = next(n for n in pairs if n.outputs[0].uses()[0].node is pool.inputs[0].producer())  # type: ignore[union-attr]
    after = next(n for n in pairs if n.inputs[0] is pool.outputs[0])
    names = [before.inputs[1].name, after.inputs[1].name]  # type: ignore[union-attr]
    _, result = trained(constrain(model))
    scales = [constant(result.graph.initializers[str(n)]) for n in names]
    assert scales[0] == scales[1] != constant(model.graph.initializers[str(names[0])])


def test_ste_learns_weights_only() -> None:
    model = quantized()
    _, result = trained(constrain(model, method="ste"))
    for node in graph.all_nodes(model):
        if node.op_type == "QuantizeLinear":
            name = str(node.inputs[1].name)  # type: ignore[union-attr]
            assert constant(result.graph.initializers[name]) == constant(model.graph.initializers[name])
    name = next(n for n in model.graph.initializers if n.endswith("weight_quantized"))
    assert (constant(result.graph.initializers[name]) != constant(model.graph.initializers[name])).any()


def test_latent_weights_start_from_the_float_ones_without_changing_a_code() -> None:
    original, model = small_cnn(), quantized(rounding="hessian")
    floats = {n: constant(v) for n, v in original.graph.initializers.items()}
    held = constrain(model, latent=floats)
    assert contents(held.release()) == contents(model)
    known = {n: constant(v) for n, v in held.model.graph.initializers.items() if n in floats}
    names = [n for n in known if n.endswith(".weight")]
    assert len(names) == 4
    for name in names:
        near = constant(model.graph.initializers[f"{name}_scale"]).reshape(-1, *[1] * (known[name].ndim - 1))
        assert (np.abs(known[name] - floats[name]) < 1.6 * near).all()
        assert (known[name] == floats[name]).mean() > 0.3


# -- zeros and values ----------------------------------------------------------------------------------------


def sparse(model: ir.Model, share: float = 0.6) -> ir.Model:
    for value in model.graph.initializers.values():
        array = constant(value)
        if array.ndim > 1:
            small = np.abs(array) < np.quantile(np.abs(array), share)
            graph.replace_weight(value, np.where(small, np.float32(0), array))
            invariants.hold(value, zeros=True)
    return model


def clustered(model: ir.Model, by_channel: bool = False, zero: bool = True) -> ir.Model:
    for value in model.graph.initializers.values():
        array = constant(value)
        if array.ndim > 1:
            step = np.abs(array).max() / 3
            few = np.rint(array / step) * step + 0.0
            if by_channel:
                few = few * np.linspace(0.5, 1.5, len(few)).reshape(-1, *[1] * (array.ndim - 1))
            if not zero:
                few = few + 0.01
            graph.replace_weight(value, few.astype(np.float32))
            invariants.hold(value, values=True, zeros=zero)
    return model


def weights_of(model: ir.Model) -> dict[str, Array]:
    """The weights as their layers see them."""
    found = {}
    for node in graph.all_nodes(model):
        if node.op_type in ("Conv", "Gemm", "MatMul"):
            value = node.inputs[1]
            source = value.producer() if value is not None else None
            codes = source.inputs[0] if source is not None else value
            array = constant(codes)
            found[str(node.name)] = array if source is None else invariants.dequantized(source, array)
    return found


MADE: dict[str, Callable[[ir.Model], ir.Model]] = {
    "sparse": sparse,
    "clustered": clustered,
    "clustered_by_channel": lambda m: clustered(m, by_channel=True),
    "clustered_without_zero": lambda m: clustered(m, zero=False),
}


@pytest.mark.parametrize("kind", MADE)
@pytest.mark.parametrize("integers", [False, True])
def test_zeros_and_values_are_kept_by_training(kind: str, integers: bool) -> None:
    model = MADE[kind](small_cnn())
    if integers:
        quantized_model = quantized(model, rounding="nearest")
        invariants.recheck(model, quantized_model, ())
        model = quantized_model
    held = constrain(model)
    assert contents(held.release()) == contents(model)
    assert (held.masks > 0) == (kind != "clustered_without_zero")
    assert (held.codebooks > 0) == (kind != "sparse")
    made, result = trained(held)
    assert invariants.recheck(model, result, ()) == []
    old, new = weights_of(model), weights_of(result)
    for name, array in old.items():
        assert (new[name] != array).any()
        if kind != "clustered_without_zero":
            assert (new[name][array == 0] == 0).all()
        if kind != "sparse":
            whole = len(np.unique(new[name])), len(np.unique(array))
            rows = [len(np.unique(r)) for r in new[name]], [len(np.unique(r)) for r in array]
            assert all(n <= o for n, o in zip(*rows, strict=True))
            assert integers or kind == "clustered_by_channel" or whole[0] <= whole[1]
    x = np.random.default_rng(3).standard_normal((500, 3, 8, 8)).astype(np.float32)
    mine, theirs = outputs(made, x), run(result, {"x": x})[0]
    assert (np.abs(mine - theirs).max(axis=1) < 1e-4).mean() > 0.97


def test_a_pattern_is_kept() -> None:
    model = small_cnn()
    for value in model.graph.initializers.values():
        array = constant(value)
        if array.ndim == 4 and array.shape[1] % 4 == 0:
            kept = np.zeros_like(array)
            kept[:, ::2] = array[:, ::2]
            graph.replace_weight(value, kept)
            invariants.hold(value, zeros=True, pattern=(2, 4, 1))
    held = constrain(model)
    _, result = trained(held)
    assert held.masks == 1
    assert invariants.recheck(model, result, ()) == []


def test_one_codebook_where_channels_share_and_many_where_each_has_its_own() -> None:
    rng = np.random.default_rng(0)
    tied = rng.choice([-1.0, 0.0, 0.5, 2.0], (16, 5, 3, 3)).astype(np.float32)
    book, indices, axis = codebook(tied, 0)
    assert book.tolist() == [-1.0, 0.0, 0.5, 2.0]
    assert axis is None
    np.testing.assert_array_equal(book[indices], tied)
    for at in (0, 1):
        scale = rng.uniform(0.5, 2, tied.shape[at]).reshape([-1 if a == at else 1 for a in range(4)])
        own = (tied * scale).astype(np.float32)
        book, indices, axis = codebook(own, at)
        assert axis == at
        assert book.shape == (tied.shape[at], 4)
        rows = np.arange(len(book)).reshape([-1 if a == at else 1 for a in range(4)])
        np.testing.assert_array_equal(book[rows, indices], own)


# -- models that are built otherwise -------------------------------------------------------------------------


def pair(net: Net, x: ir.Value, scale: float = 0.05, zero: int = 128) -> ir.Value:
    s, z = net.const(np.float32(scale)), net.const(np.uint8(zero))
    return net.op("DequantizeLinear", net.op("QuantizeLinear", x, s, z), s, z)


def int8_weight(net: Net, *shape: int) -> tuple[ir.Value, ir.Value, ir.Value]:
    codes = net.rng.integers(-127, 128, shape).astype(np.int8)
    return net.const(codes), net.const(np.float32(0.01)), net.const(np.int8(0))


def test_a_weight_that_two_layers_read_stays_one() -> None:
    net = Net("tied")
    x = pair(net, net.input("x", "N", 8))
    parts = int8_weight(net, 8, 8)
    y = net.op("MatMul", x, net.op("DequantizeLinear", *parts))
    y = net.op("MatMul", pair(net, y), net.op("DequantizeLinear", *parts))
    model = net.model(y=y)
    held = constrain(model)
    assert contents(held.release()) == contents(model)
    made, result = trained(held)
    assert sum(p.dim() == 2 for p in made.weights.values()) == 1
    assert (
        sum(
            v.dtype == ir.DataType.INT8 and len(v.shape or ()) == 2
            for v in result.graph.initializers.values()
        )
        == 1
    )
    x0 = np.random.default_rng(1).standard_normal((50, 8)).astype(np.float32)
    same(outputs(made, x0), run(result, {"x": x0})[0], 8)


def test_an_output_that_is_dequantized_keeps_its_name() -> None:
    net = Net("end")
    x = pair(net, net.input("x", "N", 8))
    y = net.op("MatMul", x, net.op("DequantizeLinear", *int8_weight(net, 8, 4)))
    model = net.model(y=pair(net, y, 0.1))
    held = constrain(model)
    assert [v.name for v in held.model.graph.outputs] == ["y"]
    made, result = trained(held)
    x0 = np.random.default_rng(1).standard_normal((50, 8)).astype(np.float32)
    assert [v.name for v in result.graph.outputs] == ["y"]
    same(outputs(made, x0), run(result, {"x": x0})[0], 8)


def test_one_quantize_with_two_dequantizes_and_a_bias_behind_a_matmul() -> None:
    net = Net("twice")
    s, z = net.const(np.float32(0.05)), net.const(np.uint8(100))
    q = net.op("QuantizeLinear", net.input("x", "N", 8), s, z)
    sides = [net.op("DequantizeLinear", q, s, z) for _ in range(2)]
    bias = net.vector(8, -1, 1, "bias")
    y = net.op("Add", net.op("MatMul", sides[0], net.op("DequantizeLinear", *int8_weight(net, 8, 8))), bias)
    model = net.model(y=net.op("Add", y, sides[1]))
    made, result = trained(constrain(model))
    assert "bias" in made.weights
    assert (constant(result.graph.initializers["bias"]) != constant(model.graph.initializers["bias"])).any()
    x0 = np.random.default_rng(1).standard_normal((50, 8)).astype(np.float32)
    same(outputs(made, x0), run(result, {"x": x0})[0], 8)


def test_what_cannot_be_trained_is_left_and_named() -> None:
    net = Net("odd")
    x = net.input("x", "N", 8)
    scale = net.op("Add", net.op("ReduceMax", net.op("Abs", x), keepdims=0), net.const(np.float32(1)))
    z = net.const(np.uint8(128))
    dynamic = net.op("DequantizeLinear", net.op("QuantizeLinear", x, scale, z), scale, z)
    s = net.const(np.float32(0.05))
    codes = net.op("QuantizeLinear", x, s, z)
    moved = net.op("DequantizeLinear", net.op("Reshape", codes, net.ints([-1, 8])), s, z)
    weight = net.op("DequantizeLinear", *int8_weight(net, 8, 8))
    model = net.model(y=net.op("MatMul", net.op("Add", dynamic, moved), weight))
    held = constrain(model)
    assert [reason.split(": ")[1] for _, reason in held.skipped] == [
        "its scale is computed",
        "its codes are read by other operators than one kind of DequantizeLinear",
    ]
    assert contents(held.release()) == contents(model)
    trained(held)


def test_weights_inside_a_branch_are_held_too() -> None:
    inner = Net("inner", 3)
    taken = inner.model(b=inner.op("Identity", inner.weight(4, 4, name="dense"))).graph
    for value in taken.initializers.values():
        array = np.array(constant(value))
        array[0] = 0
        graph.replace_weight(value, array)
        invariants.hold(value, zeros=True)
    other = Net("other", 4)
    net = Net("branch")
    x = net.input("x", "N", 4)
    flag = net.op("Greater", net.op("ReduceSum", x, keepdims=0), net.const(np.float32(0)))
    chosen = net.op("If", flag, then_branch=taken, else_branch=other.model(b2=other.weight(4, 4)).graph)
    model = net.model(y=net.op("MatMul", x, chosen))
    held = constrain(model)
    assert held.masks == 1
    assert "Masked" not in ops(held.release())
    (value,) = (v for g in held.release().graphs() for v in g.initializers.values() if v.name == "dense")
    np.testing.assert_array_equal(constant(value), constant(taken.initializers["dense"]))


def test_a_bias_that_outgrows_32_bits_raises_its_weights_scale() -> None:
    net = Net("silent")
    x = pair(net, net.input("x", "N", 4, 5, 5))
    codes = net.rng.integers(-127, 128, (3, 4, 3, 3)).astype(np.int8)
    scale = np.float32([0.01, 1e-12, 0.02])
    weight = net.op(
        "DequantizeLinear", net.const(codes), net.const(scale), net.const(np.zeros(3, np.int8)), axis=0
    )
    stored = net.const(np.int32([5, 7, 9]))
    bias = net.op("DequantizeLinear", stored, net.const(scale * np.float32(0.05)), axis=0)
    model = net.model(y=net.op("Conv", x, weight, bias, kernel_shape=[3, 3]))
    held = constrain(model)
    (node,) = (n for n in held.model.graph if n.op_type == "FakeBias")
    graph.replace_weight(node.inputs[0], np.float32([1.0, 1.0, 1.0]))  # type: ignore[arg-type]
    result = held.release()
    x0 = np.random.default_rng(1).standard_normal((2, 4, 5, 5)).astype(np.float32)
    made = run(result, {"x": x0})[0]
    same(made[:, 1], np.ones_like(made[:, 1]), 36)
    same(made[:, ::2], outputs(trainable(held.model), x0)[:, ::2], 36)


def test_a_model_that_lost_its_notes_is_refused() -> None:
    held = constrain(quantized())
    for node in held.model.graph:
        node.metadata_props.clear()
    with pytest.raises(InputError, match="lost the note"):
        held.release()


def test_an_unknown_method_is_refused() -> None:
    with pytest.raises(InputError, match="'lsr'"):
        constrain(small_cnn(), method="lsr")


def test_a_plain_model_is_left_alone() -> None:
    held = constrain(small_cnn())
    assert str(held) == "nothing held"
    assert not held.quantized
    assert contents(held.release()) == contents(small_cnn())
    assert released(None) is None
