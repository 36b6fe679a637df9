"""Every promise that a pass can break is caught by the check that is there for it."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import onnx_ir as ir
import pytest
from spine_models import cnn, images, mlp

from attar import graph
from attar.errors import VerifyError
from attar.feeds import sample_feeds
from attar.runtime import OnnxRuntime
from attar.specs import input_specs
from attar.testing import ZOO
from attar.testing.build import FLOAT, Net
from attar.verify import runs, same_interface, sound, verify

RUNTIME = OnnxRuntime()
FEEDS = {"x": images(1, 2)[0]}


def check(change: Callable[[ir.Model], None], model: ir.Model | None = None, feeds: Any = FEEDS) -> None:
    before = cnn(8) if model is None else model
    after = graph.clone(before)
    change(after)
    verify(before, after, RUNTIME, feeds)


def test_a_copy_keeps_every_promise() -> None:
    check(lambda model: None)


@pytest.mark.parametrize("name", sorted(ZOO))
def test_models_of_the_zoo_are_sound(name: str) -> None:
    model = ZOO[name].build()
    graph.normalize(model)
    check(lambda model: None, model, sample_feeds(input_specs(model), length=8))


def rename_output(model: ir.Model) -> None:
    model.graph.outputs[0].name = "z"


def rename_input(model: ir.Model) -> None:
    model.graph.inputs[0].name = "image"


def drop_output(model: ir.Model) -> None:
    model.graph.outputs.clear()


def add_input(model: ir.Model) -> None:
    model.graph.inputs.append(ir.Value(name="more", type=ir.TensorType(FLOAT), shape=ir.Shape([1])))


def half_output(model: ir.Model) -> None:
    out = model.graph.outputs[0]
    cast = ir.node("Cast", [out], attributes={"to": ir.DataType.FLOAT16.value}, name="cast")
    model.graph.append(cast)
    out.name = "inner"
    new = cast.outputs[0]
    new.name, new.shape, new.type = "y", out.shape, ir.TensorType(ir.DataType.FLOAT16)
    model.graph.outputs[0] = new


def fix_batch(model: ir.Model) -> None:
    model.graph.inputs[0].shape = ir.Shape([1, 3, 24, 24])


def fix_output_batch(model: ir.Model) -> None:
    model.graph.outputs[0].shape = ir.Shape([1, 10])


def other_rank(model: ir.Model) -> None:
    model.graph.inputs[0].shape = ir.Shape(["N", 3, 24])


def forget_rank(model: ir.Model) -> None:
    model.graph.outputs[0].shape = None


def other_classes(model: ir.Model) -> None:
    model.graph.outputs[0].shape = ir.Shape(["N", 11])


@pytest.mark.parametrize(
    ("change", "told"),
    [
        (rename_output, "the outputs changed from y to z"),
        (rename_input, "the inputs changed from x to image"),
        (drop_output, "the outputs changed from y to "),
        (add_input, "the inputs changed from x to x, more"),
        (half_output, r"output changed from y: float32\[N, 10\] to y: float16"),
        (fix_batch, r"input changed from x: float32\[N, 3, 24, 24\] to x: float32\[1, 3, 24, 24\]"),
        (fix_output_batch, r"output changed from y: float32\[N, 10\] to y: float32\[1, 10\]"),
        (other_rank, "input changed from"),
        (forget_rank, r"output changed from y: float32\[N, 10\] to y: float32\[\.\.\.\]"),
        (other_classes, "output changed from"),
    ],
)
def test_a_changed_interface(change: Callable[[ir.Model], None], told: str) -> None:
    with pytest.raises(VerifyError, match=told):
        check(change)


def test_an_output_size_that_nobody_chose_may_become_known() -> None:
    """A symbol that no input has is what a converter writes for "unknown"; inference may do better."""
    before, after = mlp(), mlp()
    before.graph.outputs[0].shape = ir.Shape(["N", "unknown_size"])
    same_interface(before, after)


# -- sound ---------------------------------------------------------------------------------------------------


def conv(model: ir.Model) -> ir.Node:
    return next(n for n in model.graph if n.op_type == "Conv")


def unfitting_weight(model: ir.Model) -> None:
    weight = conv(model).inputs[1]
    assert weight is not None
    weight.const_value = ir.tensor(np.ones((8, 5, 3, 3), np.float32), name=weight.name)


def cycle(model: ir.Model) -> None:
    nodes = [n for n in model.graph if n.op_type == "Relu"]
    nodes[0].replace_input_with(0, nodes[1].outputs[0])


def unknown_operator(model: ir.Model) -> None:
    conv(model).op_type = "Convolute"


def unknown_attribute(model: ir.Model) -> None:
    conv(model).attributes["sparkle"] = ir.AttrInt64("sparkle", 1)


def lost_initializer(model: ir.Model) -> None:
    weight = conv(model).inputs[1]
    assert weight is not None
    assert weight.name is not None
    del model.graph.initializers[weight.name]


@pytest.mark.parametrize(
    ("change", "told"),
    [
        (cycle, "not consistent"),
        (lost_initializer, "not consistent"),
        (unknown_operator, "Convolute"),
        (unknown_attribute, "sparkle"),
    ],
)
def test_an_unsound_graph(change: Callable[[ir.Model], None], told: str) -> None:
    model = cnn(8)
    change(model)
    with pytest.raises(VerifyError, match=told):
        sound(model)
    with pytest.raises(VerifyError, match=r".+"):  # also where onnx-ir cannot even copy it
        verify(cnn(8), model, RUNTIME, FEEDS)


def test_a_weight_that_does_not_fit() -> None:
    """Shape inference of Conv does not look at channels; the runtime does."""
    with pytest.raises(VerifyError, match=r".+"):
        check(unfitting_weight)


def test_stale_shapes_are_written_anew() -> None:
    """A pass replaces a weight and forgets the shapes behind it; they are inferred, not believed."""
    model = mlp()
    hidden = next(iter(model.graph)).outputs[0]
    hidden.shape = ir.Shape(["N", 99])
    sound(model)
    assert hidden.shape is not None
    assert list(hidden.shape)[1] == 16


# -- runs ----------------------------------------------------------------------------------------------------


def scale_output(factor: float) -> Callable[[ir.Model], None]:
    def change(model: ir.Model) -> None:
        last = next(n for n in model.graph if n.op_type == "Gemm")
        weight = last.inputs[1]
        array = graph.const_array(weight)
        assert weight is not None
        assert array is not None
        with np.errstate(over="ignore", invalid="ignore"):
            graph.replace_weight(weight, (array * np.float32(factor)).astype(np.float32))

    return change


@pytest.mark.parametrize("factor", [np.nan, np.inf, 3e38])
def test_outputs_that_are_not_finite_any_more(factor: float) -> None:
    with pytest.raises(VerifyError, match=r"output 'y' became NaN or infinite"):
        check(scale_output(factor))


def masked() -> ir.Model:
    """Its second output is -inf wherever x is 0, as attention masks are."""
    net = Net("masked")
    x = net.input("x", "N", 3)
    return net.model(y=net.op("Neg", x), mask=net.op("Log", net.op("Abs", x)))


def test_infinity_of_the_original_may_stay() -> None:
    model, feeds = masked(), {"x": np.array([[0, 1, 2]], np.float32)}
    check(lambda copy: None, model, feeds)
    with pytest.raises(VerifyError, match=r"'mask'"):
        runs(model, RUNTIME, feeds)  # nothing is known of the original

    def spoil(copy: ir.Model) -> None:  # log|x| of x - 1 is infinite elsewhere
        log = next(n for n in copy.graph if n.op_type == "Abs")
        one = graph.add_initializer(copy.graph, "one", np.ones(1, np.float32))
        less = ir.node("Sub", [log.inputs[0], one], name="less")
        less.outputs[0].name = "less"
        copy.graph.insert_before(log, less)
        log.replace_input_with(0, less.outputs[0])

    with pytest.raises(VerifyError, match=r"'mask'"):
        check(spoil, model, feeds)


def test_what_the_runtime_does_not_load() -> None:
    """An operator of a domain that nobody registered."""

    def change(model: ir.Model) -> None:
        first = next(iter(model.graph))
        node = ir.node("Relu", [first.inputs[0]], domain="com.example", name="alien")
        node.outputs[0].name, node.outputs[0].type = "alien", ir.TensorType(FLOAT)
        node.outputs[0].shape = ir.Shape(["N", 3, 24, 24])
        model.opset_imports["com.example"] = 1
        model.graph.insert_before(first, node)
        first.replace_input_with(0, node.outputs[0])

    with pytest.raises(VerifyError, match=r"cannot load the model"):
        check(change)


def test_without_inputs_the_model_is_only_loaded() -> None:
    check(scale_output(np.nan), feeds=None)


def test_a_model_that_fails_while_running() -> None:
    with pytest.raises(VerifyError, match=r"shape"):
        check(lambda model: None, feeds={"x": np.ones((1, 3, 5), np.float32)})
