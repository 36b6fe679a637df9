"""What a user may get wrong with `compress`: one clear error of attar's own, before the work where
possible."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import onnx_ir as ir
import pytest

import attar
from attar import graph
from attar.calibrate import CostTable
from attar.errors import AttarError, InputError, RecipeError
from attar.runtime import OnnxRuntime
from attar.testing import ZOO
from attar.testing.build import INT64, Net


def network() -> ir.Model:
    net = Net("net")
    x = net.input("x", "N", 3, 16, 16)
    h = net.op("Relu", net.conv(net.op("Relu", net.conv(x, 3, 32)), 32, 64))
    return net.model(y=net.dense(net.pooled(h), 64, 10))


def arrays(count: int = 4) -> list[np.ndarray[Any, Any]]:
    return [np.random.default_rng(i).standard_normal((4, 3, 16, 16)).astype(np.float32) for i in range(count)]


LABELLED = [(x, np.arange(len(x))) for x in arrays()]


@pytest.mark.parametrize(
    ("arguments", "error", "told"),
    [
        ({}, InputError, r"'quantize.static' needs calibration data[\s\S]*calibration="),
        ({"recipe": "int7"}, RecipeError, r"int7[\s\S]*int8"),
        ({"recipe": "quantize.statik"}, RecipeError, r"statik[\s\S]*quantize\.static"),
        ({"recipe": [{"name": "quantize.static", "observr": "mse"}]}, RecipeError, r"observr[\s\S]*observer"),
        ({"recipe": [{"name": "quantize.static", "weight": "int3"}]}, RecipeError, "int3"),
        ({"recipe": 3}, InputError, "recipe|int"),
        ({"recipe": "missing.toml"}, InputError, "missing.toml"),
        ({"target": "cpu-vnnni"}, InputError, r"unknown target 'cpu-vnnni'[\s\S]*did you mean 'cpu-vnni'"),
        ({"target": None}, InputError, "unknown target None"),
        ({"target": ["cpu"]}, InputError, "unknown target"),
        ({"costs": "nowhere.json"}, InputError, "cannot read the cost table nowhere.json"),
        ({"costs": 3}, InputError, "cannot read the cost table 3"),
        ({"calibration": arrays(), "evaluate": "top1"}, InputError, "'top1' needs labels"),
        ({"evaluate": "top1"}, InputError, "'top1' needs data with labels"),
        ({"calibration": arrays(), "evaluate": (arrays(), "topp1")}, InputError, r"topp1[\s\S]*top1"),
        ({"calibration": arrays(), "evaluate": (arrays(),)}, InputError, "tuple of 1"),
        ({"calibration": arrays(), "evaluate": 3}, InputError, "evaluate cannot be int"),
        ({"calibration": arrays(), "max_drop": 0.1}, InputError, "max_drop needs a metric"),
        (
            {"calibration": LABELLED, "evaluate": "top1", "max_drop": -1},
            InputError,
            "max_drop must be at least",
        ),
        (
            {"calibration": LABELLED, "evaluate": "top1", "max_drop": float("nan")},
            InputError,
            "max_drop must be",
        ),
        ({"max_drop": "0.1"}, InputError, "max_drop must be a number, not '0.1'"),
        ({"threads": -1}, InputError, "threads must be at least 0, not -1"),
        ({"threads": 1.5}, InputError, "threads must be a whole number"),
        ({"seed": -1}, InputError, "seed must be at least 0, not -1"),
        ({"seed": "x"}, InputError, "seed must be a whole number, not 'x'"),
        ({"calibration": []}, InputError, "empty|no samples|nothing"),
        ({"calibration": iter([])}, InputError, "empty|no samples|nothing"),
        ({"calibration": 3}, InputError, "int"),
        ({"calibration": "nowhere"}, InputError, "nowhere"),
        ({"calibration": [np.ones((4, 3, 8, 8), np.float32)]}, InputError, r"x.*\[|shape"),
        ({"calibration": [np.ones((4, 3), np.float32)]}, InputError, "x"),
        ({"calibration": [{"image": arrays(1)[0]}]}, InputError, "image"),
        ({"calibration": ["text"]}, InputError, "."),
        ({"calibration": [np.full((4, 3, 16, 16), np.nan, np.float32)]}, InputError, "NaN"),
        ({"calibration": [*arrays(2), np.full((1, 3, 16, 16), np.inf, np.float32)]}, InputError, "NaN|inf"),
    ],
)
def test_a_mistake_is_one_error_that_names_it(
    arguments: dict[str, Any], error: type[AttarError], told: str
) -> None:
    model = network()
    before = graph.to_bytes(model)
    with pytest.raises(error, match=told):
        attar.compress(model, **arguments)
    assert graph.to_bytes(model) == before


def test_a_missing_argument_is_found_before_any_work(monkeypatch: pytest.MonkeyPatch) -> None:
    def never(*args: Any, **options: Any) -> None:
        raise AssertionError("a session was opened")

    monkeypatch.setattr(OnnxRuntime, "open", never)
    with pytest.raises(InputError, match=r"needs calibration data"):
        attar.compress(network())


@pytest.mark.parametrize("content", [b"", b"no model", b"\x00" * 1000])
def test_a_broken_file(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "m.onnx").write_bytes(content)
    with pytest.raises(InputError, match=r"m.onnx"):
        attar.compress(tmp_path / "m.onnx", calibration=arrays())


def test_half_a_file(tmp_path: Path) -> None:
    data = graph.to_bytes(network())
    (tmp_path / "m.onnx").write_bytes(data[: len(data) // 2])
    with pytest.raises(InputError, match=r"m.onnx"):
        attar.compress(tmp_path / "m.onnx", calibration=arrays())


@pytest.mark.parametrize("harm", ["truncate", "remove"])
def test_external_data_that_is_not_whole(tmp_path: Path, harm: str) -> None:
    _, data = graph.save(network(), tmp_path / "m.onnx", external_data=True)
    if harm == "truncate":
        data.write_bytes(data.read_bytes()[:100])
    else:
        data.unlink()
    with pytest.raises(InputError, match=r"m\.onnx"):
        attar.compress(tmp_path / "m.onnx", calibration=arrays())


def test_an_evaluation_that_fails_is_the_callers() -> None:
    def broken(session: Any) -> float:
        raise KeyError("label")

    with pytest.raises(InputError, match=r"the evaluation 'broken' failed: KeyError: 'label'"):
        attar.compress(network(), calibration=arrays(), evaluate=broken)
    with pytest.raises(InputError, match=r"not a number"):
        attar.compress(network(), calibration=arrays(), evaluate=lambda session: "good")


# -- what must work ------------------------------------------------------------------------------------------


def test_a_generator_is_calibration_data_enough() -> None:
    once = attar.compress(network(), calibration=(x for x in arrays()))
    often = attar.compress(network(), calibration=arrays())
    assert once.report.verdict == often.report.verdict == "accepted"
    assert graph.to_bytes(once.model) == graph.to_bytes(often.model)


def test_the_same_seed_gives_the_same_bytes() -> None:
    one, two = (attar.compress(network(), calibration=arrays(), seed=5) for _ in range(2))
    assert graph.to_bytes(one.model) == graph.to_bytes(two.model)
    assert graph.to_bytes(one.runnable) == graph.to_bytes(two.runnable)


def test_several_inputs_and_outputs(tmp_path: Path) -> None:
    zoo = ZOO["several_ports"]
    result = attar.compress(zoo.build(), calibration=[zoo.inputs(i, 4) for i in range(4)])
    result.save(tmp_path / "m.onnx")
    session = OnnxRuntime().open(tmp_path / "m.onnx")
    reference = OnnxRuntime().open(zoo.build(), optimize=False)
    assert session.outputs == reference.outputs
    assert {d.name for d in result.report.outputs} == set(session.outputs)
    feeds = zoo.inputs(9, 3)
    for a, b in zip(session.run(feeds), reference.run(feeds), strict=True):
        assert (a.shape, a.dtype) == (b.shape, b.dtype)


def test_token_models_take_integer_inputs() -> None:
    net = Net("tokens")
    ids = net.input("ids", "N", "T", dtype=INT64)
    h = net.op("Gather", net.weight(50, 32, name="table"), ids)
    model = net.model(y=net.dense(h, 32, 16, gemm=False))
    data = [{"ids": np.random.default_rng(i).integers(0, 50, (2, 5 + i))} for i in range(4)]
    assert attar.compress(model, calibration=data).report.verdict in ("accepted", "unchanged")


@pytest.mark.parametrize("portable", [False, True])
def test_what_is_saved_is_what_was_returned(tmp_path: Path, portable: bool) -> None:
    result = attar.compress(network(), calibration=arrays())
    assert result.report.verdict == "accepted", result.report.headline
    result.save(tmp_path / "m.onnx", portable=portable)
    kept = result.model if portable else result.runnable
    assert (tmp_path / "m.onnx").read_bytes() == graph.to_bytes(kept)
    x = arrays(1)[0]
    saved, held = (OnnxRuntime().open(m)(x)[0] for m in (tmp_path / "m.onnx", kept))
    np.testing.assert_array_equal(saved, held)
    assert (saved.argmax(1) == OnnxRuntime().open(network())(x)[0].argmax(1)).mean() >= 0.75
    assert attar.load(tmp_path / "m.onnx").graph.outputs[0].name == "y"


def test_the_report_is_complete(tmp_path: Path) -> None:
    attar.save(network(), tmp_path / "net.onnx")
    result = attar.compress(tmp_path / "net.onnx", calibration=LABELLED, evaluate="top1", max_drop=1.0)
    report = result.report
    assert (report.model, report.framework, report.metric_name) == ("net.onnx", "onnx", "top1")
    assert report.target.startswith("cpu (this machine")
    assert report.runtime.startswith("onnxruntime 1.")
    assert report.verdict == "accepted", report.headline
    assert report.before.metric is not None
    assert report.after.metric is not None
    assert report.speed is not None
    assert report.speed.low <= report.speed.ratio <= report.speed.high
    assert report.seconds >= sum(s.seconds for s in report.steps) > 0
    assert [s.name for s in report.steps] == ["fuse.inference", "fuse.kernels", "quantize.static"]
    assert {"attar", "onnxruntime", "processor", "integer instructions"} <= set(report.environment)
    assert all(k.milliseconds is not None for k in report.after.kernels if k.compute)
    plain = json.loads(report.to_json())
    assert plain["after"]["bytes"] == report.after.bytes
    assert len(plain["outputs"]) == 1
    assert "quantize.static" in str(report)
    html = report.to_html()
    assert html.lstrip().lower().startswith("<!doctype html")
    assert "quantize.static" in html
    for suffix in (".json", ".html", ".txt"):
        report.save(tmp_path / f"r{suffix}")
        assert (tmp_path / f"r{suffix}").stat().st_size > 500


def test_measured_costs_decide_the_plan(tmp_path: Path) -> None:
    """A table in which integers never pay leaves everything in float; so does the file that holds it."""
    from attar.registry import default_registry

    known = default_registry().get_target("cpu").costs
    dear = CostTable(
        {key: type(c)(1e4, c.mac, c.element) if key[1] == "int8" else c for key, c in known.rows.items()}
    )
    (tmp_path / "costs.json").write_text(dear.to_json())
    for costs in (dear, tmp_path / "costs.json", str(tmp_path / "costs.json")):
        report = attar.compress(network(), calibration=arrays(), costs=costs).report
        assert "no operator is worth quantizing" in report.steps[-1].refused
    (tmp_path / "broken.json").write_text('{"costs": {"conv": {"int8": ["a"]}}}')
    with pytest.raises(InputError, match=r"broken.json: not a cost table"):
        attar.compress(network(), calibration=arrays(), costs=tmp_path / "broken.json")
