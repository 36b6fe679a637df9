"""`prune.layers`: which blocks are found, which go, and that the refit earns its keep."""

from __future__ import annotations

import contextlib

import numpy as np
import onnx_ir as ir
import pytest
from prune_nets import NETS
from test_prune_channels import applied, context, error, images, prepared

from attar import graph
from attar.errors import InputError, RecipeError, Refused
from attar.ops import BUILTIN, model_macs
from attar.runtime import OnnxRuntime
from attar.testing import conformance
from attar.testing.build import Net
from attar.testing.zoo import ZOO
from attar_prune import Layers
from attar_prune.blocks import find_blocks, forget, leave_out

RUNTIME = OnnxRuntime()
BLOCKS = {"MobileNetV2": 3, "ResNet": 2, "ResNeXt": 2, "MobileNetV3": 1, "ViT": 2, "MLP-Mixer": 2, "VGG": 0}


def chain(count: int = 4) -> ir.Model:
    """Residual blocks of which the third adds next to nothing."""
    net = Net("chain", 3)
    x = net.op("Relu", net.conv(net.input("x", "N", 3, 16, 16), 3, 8))
    for k in range(count):
        y = net.conv(net.op("Relu", net.conv(x, 8, 8)), 8, 8)
        scale = net.const(np.float32(1e-3 if k == 2 else 1.0))
        x = net.op("Add", x, net.op("Mul", y, scale))
    return net.model(logits=net.dense(net.pooled(x), 8, 5))


def ready(model: ir.Model) -> ir.Model:
    graph.normalize(model)
    graph.refresh_shapes(model)
    return model


@conformance(Layers(count=1), models=["residual_cnn", "depthwise_cnn", "encoder", "shared_weight"])
def test_conformance(check: object) -> None:
    check()  # type: ignore[operator]


@pytest.mark.parametrize("name", BLOCKS)
def test_branches_between_residual_sums_are_found(name: str) -> None:
    found = find_blocks(prepared(name), BUILTIN)
    assert len(found) == BLOCKS[name]
    assert len({b.layers for b in found}) == len(found)


@pytest.mark.parametrize("name", [n for n, count in BLOCKS.items() if count])
def test_leaving_a_block_out_is_what_the_graph_without_it_computes(name: str) -> None:
    """Against the branch's last layer silenced by hand where a sum ends it."""
    model = prepared(name)
    for block in find_blocks(model, BUILTIN):
        short, quiet = graph.clone(model), graph.clone(model)
        copy = leave_out(short, block)
        graph.tidy(short)
        forget([copy])
        graph.tidy(short)
        assert {n.name for n in model.graph} - {n.name for n in short.graph} >= set(block.layers)
        assert model_macs(model) - model_macs(short) == block.macs
        node = next(n for n in quiet.graph if any(o.name == block.out for o in n.outputs))
        if node.op_type != "Add":
            continue  # a segment of a chain has no sum behind it
        place = next(i for i, v in enumerate(node.inputs) if v is not None and v.name != block.kept)
        zero = graph.add_initializer(quiet.graph, "nothing", np.zeros((), np.float32))
        silent = ir.node("Mul", [node.inputs[place], zero])
        silent.outputs[0].name = "silent"
        quiet.graph.insert_before(node, silent)
        node.replace_input_with(place, silent.outputs[0])
        feeds = {"x": images(4)}
        ours, theirs = (RUNTIME.open(m).run(feeds)[0] for m in (short, quiet))
        # The same operations on the same numbers but for sums with zero: roundings of float32.
        assert np.abs(ours - theirs).max() <= 1e-6 * np.abs(theirs).max()


def test_the_block_that_does_least_goes_first() -> None:
    model = ready(chain())
    blocks = find_blocks(model, BUILTIN)
    assert len(blocks) == 4
    after, ctx = applied(model, Layers(count=1, refit=False), images(16))
    assert model_macs(model) - model_macs(after) == blocks[2].macs
    assert error(model, after) < 1e-4
    assert any(blocks[2].layers[0] in change for change in ctx.step.changes)


@pytest.mark.parametrize("name", ["ResNet", "MobileNetV2", "ViT"])
def test_refit_makes_good_much_of_what_is_lost(name: str) -> None:
    model = prepared(name)
    plain, _ = applied(model, Layers(count=1, refit=False), images(96))
    fitted, ctx = applied(model, Layers(count=1), images(96))
    assert error(model, fitted) < 0.6 * error(model, plain)
    assert any("refitted" in change for change in ctx.step.changes)
    assert not any(n.op_type == "Identity" for n in fitted.graph)


@pytest.mark.parametrize("by", ["macs", "size", "layers"])
def test_aims(by: str) -> None:
    model = ready(chain())
    after, _ = applied(model, Layers(ratio=0.4, by=by, refit=False), images(16))
    gone = 4 - len(find_blocks(after, BUILTIN))
    assert gone == 2
    if by == "macs":
        assert model_macs(after) <= 0.6 * model_macs(model)


def test_by_latency_stops_where_the_clock_says(monkeypatch: pytest.MonkeyPatch) -> None:
    model = ready(chain())
    monkeypatch.setattr("attar_prune.layers._clock", lambda ctx: model_macs)
    after, _ = applied(model, Layers(ratio=0.4, by="latency", refit=False), images(16))
    assert 0.3 * model_macs(model) < model_macs(after) <= 0.6 * model_macs(model)


def test_keep_most_and_refusals() -> None:
    model = ready(chain())
    blocks = find_blocks(model, BUILTIN)
    after, ctx = applied(model, Layers(count=1, keep=(blocks[2].layers[0],), refit=False), images(8))
    assert blocks[2].layers[0] in {n.name for n in after.graph}
    assert any("to be kept" in skip.reason for skip in ctx.step.skipped)
    few, _ = applied(model, Layers(ratio=0.9, most=1e-3, refit=False), images(8))
    assert len(find_blocks(few, BUILTIN)) == 3
    with pytest.raises(RecipeError, match="nowhere"):
        applied(model, Layers(keep=("nowhere",)), images(4))
    with pytest.raises(Refused, match="no block"):
        applied(prepared("VGG"), Layers(), images(4))
    with pytest.raises(InputError, match="calibration"):
        Layers().apply(graph.clone(model), context(model))


@pytest.mark.slow
@pytest.mark.parametrize("name", list(ZOO))
def test_no_model_of_the_zoo_raises(name: str) -> None:
    from attar.calibration import as_data
    from attar.specs import input_specs

    model = ready(ZOO[name].build())
    ctx = context(model)
    ctx.data = as_data([ZOO[name].inputs()], input_specs(model))
    with contextlib.suppress(Refused):
        Layers(count=2).apply(model, ctx)
        RUNTIME.open(model).run(ZOO[name].inputs())


@pytest.mark.slow
@pytest.mark.parametrize("name", list(NETS))
def test_no_architecture_raises(name: str) -> None:
    model = prepared(name)
    if name == "GPT":
        return
    data = images(1 if name == "detector" else 16)
    with contextlib.suppress(Refused):
        after, _ = applied(model, Layers(ratio=0.4), data)
        RUNTIME.open(after).run({"x": images(1)})
