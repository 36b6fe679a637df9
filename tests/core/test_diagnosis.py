"""Diagnosis: planted faults are found, and what is measured is what was claimed."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import onnx_ir as ir
import pytest
from click.testing import CliRunner
from spine_models import cnn, images

import attar
from attar import graph
from attar.cli import cli
from attar.diagnosis.measure import _is_quantized
from attar.errors import InputError
from attar.runtime import OnnxRuntime
from attar.testing.build import Net

Array = np.ndarray[Any, np.dtype[Any]]
EVERYTHING = '[[pass]]\nname = "quantize.static"\nplan = "everything"\n'


def net(*, first: float = 1.0, wide: bool = False) -> ir.Model:
    """Two convolutions and a classifier.

    Args:
        first: factor on one output channel of the first layer.
        wide: make one output channel of the second layer 200 times as wide as the others.
    """
    made = Net("net")
    h = made.op("Relu", made.conv(made.input("x", "N", 3, 12, 12), 3, 16))
    h = made.op("Relu", made.conv(h, 16, 16))
    model = made.model(y=made.dense(made.pooled(h), 16, 4))
    convs = [n for n in model.graph if n.op_type == "Conv"]
    for node, factor in ((convs[0], first), (convs[1], 200.0 if wide else 1.0)):
        weight = np.array(graph.const_array(node.inputs[1]))
        weight[0] *= factor
        graph.replace_weight(node.inputs[1], weight)
    return model


def data(count: int = 6, scale: float = 1.0) -> list[Array]:
    rng = np.random.default_rng(0)
    return [(scale * rng.normal(size=(4, 3, 12, 12))).astype(np.float32) for _ in range(count)]


def kinds(found: attar.Diagnosis, name: str) -> set[str]:
    layer = next(layer for layer in found.layers if layer.name == name)
    return {cause.kind for cause in layer.causes}


def names(model: ir.Model) -> list[str]:
    return [n.name or "" for n in model.graph if n.op_type in ("Conv", "Gemm")]


def test_a_sound_network_has_nothing_but_rounding() -> None:
    model = net()
    found = attar.diagnose(model, EVERYTHING, calibration=data(), top=0)
    assert sorted(layer.name for layer in found.layers) == sorted(names(model))
    assert {kind for layer in found.layers for c in layer.causes for kind in [c.kind]} == {"rounding"}
    assert all(layer.alone_db > 25 for layer in found.layers)
    assert [layer.alone_db for layer in found.layers] == sorted(layer.alone_db for layer in found.layers)


def test_a_wide_channel_is_found_where_it_is_read() -> None:
    model = net(first=100.0)
    found = attar.diagnose(model, EVERYTHING, calibration=data(), top=0)
    first, second, _ = names(model)
    assert "channel imbalance" in kinds(found, second)
    assert "channel imbalance" not in kinds(found, first)


def test_one_scale_for_uneven_rows_is_found() -> None:
    model = net(wide=True)
    per_tensor = EVERYTHING + 'granularity = "per_tensor"\n'
    second = names(model)[1]
    assert "weight imbalance" in kinds(attar.diagnose(model, per_tensor, calibration=data(), top=0), second)
    per_channel = attar.diagnose(model, EVERYTHING, calibration=data(), top=0)
    assert "weight imbalance" not in kinds(per_channel, second)


def test_an_outlier_is_found() -> None:
    batches = data()
    batches[0][0, 0, 0, 0] = 300.0
    model = net()
    minmax = EVERYTHING + 'observer = "minmax"\n'
    found = attar.diagnose(model, minmax, calibration=batches, top=0)
    assert "range outlier" in kinds(found, names(model)[0])


def test_dead_channels_are_counted() -> None:
    model = net()
    conv = next(n for n in model.graph if n.op_type == "Conv")
    bias = np.array(graph.const_array(conv.inputs[2]))
    bias[:3] = -1e3
    graph.replace_weight(conv.inputs[2], bias)
    found = attar.diagnose(model, EVERYTHING, calibration=data(), top=0)
    layer = next(x for x in found.layers if x.name == names(model)[1])
    assert "3 of 16 channels" in next(c.text for c in layer.causes if c.kind == "dead channels")


def test_what_float_would_give_is_measured() -> None:
    """One scale for a classifier with one wide row: the other classes lose, until it is left in float."""
    model = net()
    gemm = next(n for n in model.graph if n.op_type == "Gemm")
    weight = np.array(graph.const_array(gemm.inputs[1]))
    weight[0] *= 200
    graph.replace_weight(gemm.inputs[1], weight)
    batches = data(12)
    wanted = [OnnxRuntime().open(model)(b)[0] for b in batches]

    def nearness(run: Any) -> float:
        errors = [np.abs(run(b)[0] - w)[:, 1:].mean() for b, w in zip(batches, wanted, strict=True)]
        return -float(np.mean(errors))

    coarse = EVERYTHING + 'granularity = "per_tensor"\nobserver = "minmax"\n'
    found = attar.diagnose(model, coarse, calibration=batches, evaluate=nearness, top=3)
    assert found.before == 0.0  # the same model in the same runtime
    assert found.after is not None
    layer = next(x for x in found.layers if x.op == "Gemm")
    assert "weight imbalance" in kinds(found, layer.name)
    assert layer.gain is not None
    assert layer.cost_ms is not None
    assert 0.5 * -found.after < layer.gain <= -found.after  # most of the loss is this layer's
    assert all(other.gain < layer.gain for other in found.layers if other is not layer)
    assert f"float here: {layer.gain:+.4g}" in str(found)


def test_what_reads_a_quantized_weight_alone_is_not_quantized() -> None:
    made = Net("weights")
    codes = made.const(np.ones((4, 4), np.int8), "codes")
    weight = made.op("DequantizeLinear", codes, made.const(np.float32(0.1), "scale"))
    model = made.model(y=made.op("MatMul", weight, made.input("x", 4, 3)))
    assert not _is_quantized(model)


def test_a_silent_layer_has_no_noise() -> None:
    model = net()
    conv = next(n for n in model.graph if n.op_type == "Conv")
    graph.replace_weight(conv.inputs[1], np.zeros_like(graph.const_array(conv.inputs[1])))
    graph.replace_weight(conv.inputs[2], np.zeros_like(graph.const_array(conv.inputs[2])))
    found = attar.diagnose(model, EVERYTHING, calibration=data(), top=0)
    assert next(x for x in found.layers if x.name == names(model)[0]).propagated_db == np.inf


def test_a_recipe_that_quantizes_nothing_cannot_be_explained() -> None:
    with pytest.raises(InputError, match="no step of the recipe quantizes"):
        attar.diagnose(net(), ["fuse.inference"], calibration=data())


def test_the_command(tmp_path: Path) -> None:
    graph.save(cnn(8), tmp_path / "m.onnx")
    np.savez(tmp_path / "c.npz", x=np.concatenate(images()))
    (tmp_path / "r.toml").write_text(EVERYTHING)
    arguments = [str(tmp_path / "m.onnx"), "--calibration", str(tmp_path / "c.npz"), "--top", "1"]
    done = CliRunner().invoke(cli, ["diagnose", *arguments, "--recipe", str(tmp_path / "r.toml"), "--json"])
    assert done.exit_code == 0, done.output
    told = json.loads(done.stdout)
    assert {"layers", "output_db"} <= set(told)
    assert told["layers"][0]["cost_ms"] is not None
    done = CliRunner().invoke(cli, ["diagnose", *arguments, "--recipe", str(tmp_path / "r.toml")])
    assert "dB alone" in done.stdout
