"""`attar calibrate-target` and `attar compress --costs`."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from click.testing import CliRunner, Result

from attar import calibrate
from attar.cli import cli
from attar.costs import Cost, CostTable


def run(*arguments: str) -> Result:
    return CliRunner().invoke(cli, list(arguments))


@pytest.fixture(autouse=True)
def few_probes(monkeypatch: pytest.MonkeyPatch) -> None:
    """Two convolutions, a matrix product and the conversions, really measured."""
    wanted: dict[str, list[calibrate.Probe]] = {"conv.pointwise": [], "matmul.row": [], "conversion": []}
    for probe in calibrate.probes():
        if probe.kind in wanted and len(wanted[probe.kind]) < 2:
            wanted[probe.kind].append(probe)
    few = [p for group in wanted.values() for p in group]
    monkeypatch.setattr(calibrate, "probes", lambda: iter(few))


ROWS = {
    ("conv.pointwise", "float"),
    ("conv.pointwise", "int8"),
    ("matmul.row", "float"),
    ("matmul.row", "int8"),
    *(("matmul.row", f"nbits{bits}/{block}") for bits in (4, 8) for block in (32, 128)),
    ("quantize", "int8"),
    ("dequantize", "int8"),
}


def test_the_table_is_written_and_read_back(tmp_path: Path) -> None:
    path = tmp_path / "costs.json"
    result = run("calibrate-target", "-o", str(path), "--runs", "3")
    assert result.exit_code == 0, result.output
    table = CostTable.load(path)
    assert set(table.rows) == ROWS
    assert "onnxruntime" in table.measured_on
    for cost in table.rows.values():
        assert min(cost.call, cost.mac, cost.element) >= 0
        assert max(cost.call, cost.mac, cost.element) > 0
    estimate = table.estimate("conv.pointwise", "float", macs=64 * 64 * 56 * 56, elements=2 * 64 * 56 * 56)
    assert estimate is not None
    assert 10 < estimate < 1e6  # 13 M multiply-accumulates: between 0.01 ms and 1 s
    assert "conv.pointwise" in result.stdout
    assert f"output: {path}" in result.stderr


def test_json_is_the_table() -> None:
    result = run("calibrate-target", "--json", "--runs", "3")
    assert result.exit_code == 0, result.output
    plain = json.loads(result.stdout)
    assert set(plain) == {"measured_on", "costs"}
    assert {(kind, dtype) for kind, row in plain["costs"].items() for dtype in row} == ROWS
    assert set(CostTable.from_json(result.stdout).rows) == ROWS


def test_a_place_that_cannot_be_written_is_found_before_measuring(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def never(**options: object) -> None:
        raise AssertionError("it measured")

    monkeypatch.setattr(calibrate, "calibrate_target", never)
    for path, told in ((tmp_path, "it is a folder"), (tmp_path / "no" / "c.json", "there is no folder")):
        result = run("calibrate-target", "-o", str(path))
        assert result.exit_code == 1
        assert told in result.stderr


def test_too_few_runs_is_wrong_usage() -> None:
    assert run("calibrate-target", "--runs", "1").exit_code == 2


def test_compress_plans_with_the_table(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import numpy as np
    from spine_models import cnn, images

    import attar

    monkeypatch.chdir(tmp_path)
    attar.save(cnn(), "m.onnx")
    np.savez("calib.npz", x=np.concatenate(images()))
    dear = CostTable(
        {
            (kind, dtype): Cost(1e4 if dtype == "int8" else 0.1, 0.0, 0.0)
            for kind in ("conv.spatial", "conv.thin", "conv.widened", "matmul.row", "globalaveragepool")
            for dtype in ("float", "int8")
        }
        | {("quantize", "int8"): Cost(1e4, 0, 0), ("dequantize", "int8"): Cost(1e4, 0, 0)}
    )
    Path("costs.json").write_text(dear.to_json())
    command = ("compress", "m.onnx", "--calibration", "calib.npz", "-o", "o.onnx", "--json")
    result = run(*command, "--costs", "costs.json")
    assert "no operator is worth quantizing" in json.loads(result.stdout)["steps"][-1]["refused"]
    assert run(*command, "--costs", "gone.json").exit_code == 1
