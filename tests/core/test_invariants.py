"""Zeros stay zeros, clusters stay clusters, N:M stays N:M: what the driver lets pass and what it stops."""

from __future__ import annotations

from typing import Any

import numpy as np
import onnx_ir as ir
import pytest

from attar import graph, invariants
from attar.context import Context
from attar.errors import VerifyError
from attar.invariants import Held, held, hold
from attar.passes import Pass
from attar.registry import default_registry
from attar.run import run_pass
from attar.runtime import OnnxRuntime
from attar.testing.build import Net

REGISTRY = default_registry()
CONTEXT = Context(REGISTRY, REGISTRY.get_target("cpu"), OnnxRuntime())
RNG = np.random.default_rng(1)


def model() -> ir.Model:
    net = Net("m")
    x = net.input("x", "N", 16)
    w = RNG.integers(1, 5, (16, 8)).astype(np.float32)
    w[::2] = 0
    made = net.model(y=net.op("MatMul", x, net.const(w, "w")))
    hold(made.graph.initializers["w"], zeros=True, pattern=(1, 2, 0), values=True, axis=1)
    return made


class Change(Pass, name="test.change"):
    """Applies a function to the weight."""

    how: Any = None

    def apply(self, model: ir.Model, ctx: Context) -> None:
        weight = model.graph.initializers["w"]
        graph.replace_weight(weight, self.how(np.array(graph.const_array(weight))))


class Declared(Change, name="test.declared"):
    """The same, and says so."""

    breaks = ("zeros", "pattern")


def plus_small(w: np.ndarray[Any, Any]) -> np.ndarray[Any, Any]:
    w[0, 0] = 1
    return w


def test_the_note_survives_copying_and_saving() -> None:
    want = Held(True, (1, 2, 0), True, 1)
    back = graph.from_proto(graph.parse(graph.to_bytes(graph.clone(model()))))
    assert held(back.graph.initializers["w"]) == want
    assert held(model().graph.initializers["w"]).kinds == ("zeros", "pattern", "values")


@pytest.mark.parametrize(
    "text",
    [
        *("", "[]", "{", '{"pattern": 3}', '{"pattern": [1]}', "null", '{"axis": "x"}'),
        pytest.param("[" * 100_000, id="nested"),
        *('{"pattern": [1, 0, 0]}', '{"pattern": [1, 2, -9]}', '{"values": true, "axis": -9}'),
    ],
)
def test_a_note_that_makes_no_sense_is_none(text: str) -> None:
    value = model().graph.initializers["w"]
    value.metadata_props["attar.holds"] = text
    assert held(value).kinds == ()
    source = model()
    source.graph.initializers["w"].metadata_props["attar.holds"] = text
    run_pass(Change(how=lambda w: w + 1), source, CONTEXT)  # nothing is held, so nothing breaks


def test_a_pass_that_keeps_them_passes_and_the_note_stays() -> None:
    after, record = run_pass(
        Change(how=lambda w: w * np.linspace(1, 2, 8, dtype=np.float32)), model(), CONTEXT
    )
    assert held(after.graph.initializers["w"]) == Held(True, (1, 2, 0), True, 1)
    assert record.changes == []


@pytest.mark.parametrize(
    ("how", "says"),
    [
        (plus_small, "lost 1 of its 64 zeros"),
        (lambda w: w + 1, "lost 64 of its 64 zeros"),
        (lambda w: w * np.linspace(1, 2, 16, dtype=np.float32)[:, None], "distinct values"),
    ],
)
def test_a_pass_that_breaks_them_fails(how: Any, says: str) -> None:
    source = model()
    before = graph.to_bytes(source)
    with pytest.raises(VerifyError, match=rf"test\.change.*'w' .*{says}") as caught:
        run_pass(Change(how=how), source, CONTEXT)
    assert "breaks" in (caught.value.hint or "")
    assert graph.to_bytes(source) == before


def test_a_pattern_is_checked_apart_from_zeros() -> None:
    source = model()
    weight = source.graph.initializers["w"]
    weight.metadata_props.clear()
    hold(weight, pattern=(1, 2, 0))
    run_pass(Change(how=lambda w: np.roll(w, 1, axis=0)), source, CONTEXT)
    with pytest.raises(VerifyError, match="no longer 1:2 sparse"):
        run_pass(Change(how=lambda w: w[np.argsort(np.arange(16) % 2, kind="stable")]), source, CONTEXT)


def test_a_pass_may_break_what_it_declares_and_the_note_goes() -> None:
    after, record = run_pass(Declared(how=plus_small), model(), CONTEXT)
    assert held(after.graph.initializers["w"]) == Held(values=True, axis=1)
    assert any("lost 1 of its 64 zeros" in change for change in record.changes)
    with pytest.raises(VerifyError, match="distinct values"):  # what it did not declare still holds
        run_pass(Declared(how=lambda w: w * (1 + RNG.random(w.shape, np.float32))), model(), CONTEXT)


class Quantized(Pass, name="test.quantized"):
    """Puts the weight behind a DequantizeLinear; `shift` is added to a code."""

    shift: int = 0
    per_channel: bool = True

    def apply(self, model: ir.Model, ctx: Context) -> None:
        node = next(n for n in model.graph if n.op_type == "MatMul")
        w = np.array(graph.const_array(node.inputs[1]))
        scale = (np.abs(w).max(axis=0) if self.per_channel else np.abs(w).max()) / np.float32(127)
        codes = np.rint(w / scale).astype(np.int8)
        codes[0, 0] += self.shift
        parts = [
            graph.add_initializer(model.graph, name, np.asarray(array))
            for name, array in (
                ("w_q", codes),
                ("w_s", scale.astype(np.float32)),
                ("w_z", np.zeros_like(scale, np.int8)),
            )
        ]
        dequantize = ir.node("DequantizeLinear", parts, {"axis": 1})
        dequantize.outputs[0].type, dequantize.outputs[0].shape = node.inputs[1].type, node.inputs[1].shape
        model.graph.insert_before(node, dequantize)
        node.replace_input_with(1, dequantize.outputs[0])


@pytest.mark.parametrize("per_channel", [False, True])
def test_they_are_followed_through_quantization(per_channel: bool) -> None:
    after, _ = run_pass(Quantized(per_channel=per_channel), model(), CONTEXT)
    assert "w" not in after.graph.initializers
    assert held(after.graph.initializers["w_q"]) == Held(True, (1, 2, 0), True, 1)
    with pytest.raises(VerifyError, match="zeros"):
        run_pass(Quantized(per_channel=per_channel, shift=3), model(), CONTEXT)


def test_removed_channels_are_no_lost_zeros_but_filled_ones_are() -> None:
    old = RNG.random((20, 12)) < 0.4
    array = np.where(old, 0, 1.0)
    kept = np.sort(RNG.choice(20, 9, replace=False)), np.sort(RNG.choice(12, 7, replace=False))
    want = Held(zeros=True)
    assert invariants._broken("zeros", want, array, array[np.ix_(*kept)]) is None
    fewest = np.argsort(-old.sum(axis=1))[11:]  # the sparsest rows go
    assert invariants._broken("zeros", want, array, array[fewest]) is None
    assert "had to keep" in str(invariants._broken("zeros", want, array, np.ones((9, 12))))


def test_a_weight_that_is_gone_is_told() -> None:
    class Gone(Pass, name="test.gone"):
        def apply(self, model: ir.Model, ctx: Context) -> None:
            node = next(n for n in model.graph if n.op_type == "MatMul")
            w = graph.const_array(node.inputs[1])
            halves = [graph.add_initializer(model.graph, n, a) for n, a in (("u", w @ w.T), ("v", w))]  # type: ignore[union-attr]
            first = ir.node("MatMul", [node.inputs[0], halves[0]], name="first")
            second = ir.node("MatMul", [first.outputs[0], halves[1]], name="second")
            model.graph.insert_before(node, [first, second])
            node.outputs[0].name, second.outputs[0].name = "old", "y"
            second.outputs[0].type, second.outputs[0].shape = node.outputs[0].type, node.outputs[0].shape
            model.graph.outputs[0] = second.outputs[0]

    after, record = run_pass(Gone(), model(), CONTEXT)
    assert record.changes == ["w: the weight is gone, and with it its zeros and pattern and values"]
    assert all(not held(v).kinds for v in after.graph.initializers.values())
