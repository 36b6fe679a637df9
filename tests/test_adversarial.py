"""Uses that nobody had in mind: odd models, evaluations that break, wrong arguments. What comes out is a
sound result or one clear error of attar's own."""

from __future__ import annotations

import json
import math
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnx_ir as ir
import onnxruntime
import pytest

import attar
from attar import graph
from attar.calibration import as_data
from attar.errors import InputError
from attar.specs import input_specs
from attar.testing.build import Net

Array = np.ndarray[Any, Any]


def head(net: Net, width: int = 64) -> ir.Value:
    x = net.input("x", "N", 3, 24, 24)
    h = net.op("Relu", net.conv(net.op("Relu", net.conv(x, 3, 48)), 48, width))
    return net.dense(net.pooled(h), width, 10)


def classifier() -> ir.Model:
    net = Net("classifier")
    return net.model(y=head(net))


def images(count: int = 6) -> list[Array]:
    return [np.random.default_rng(i).standard_normal((2, 3, 24, 24)).astype(np.float32) for i in range(count)]


def changed(model: Any) -> bool:
    """Whether this is the compressed model: some layers are on integers."""
    return bool(np.abs(model(images(1)[0])[0] - ORIGINAL).max() > 0)


ORIGINAL = onnxruntime.InferenceSession(graph.to_bytes(classifier())).run(None, {"x": images(1)[0]})[0]


def raises(model: Any) -> float:
    if changed(model):
        raise ValueError("negative log")
    return 1.0


@pytest.mark.parametrize(
    ("evaluate", "told"),
    [
        (lambda model: math.nan if changed(model) else 1.0, "'evaluate' is nan"),
        (lambda model: None if changed(model) else 1.0, "returned NoneType"),
        (raises, "ValueError: negative log"),
    ],
    ids=["nan", "none", "raises"],
)
@pytest.mark.parametrize("max_drop", [0.01, math.inf])
def test_a_metric_that_fails_only_on_the_compressed_model_is_a_fault_of_that_model(
    evaluate: Callable[[Any], Any], told: str, max_drop: float
) -> None:
    result = attar.compress(classifier(), calibration=images(), evaluate=evaluate, max_drop=max_drop)
    assert any(told in decision for decision in result.report.decisions)
    metric = result.report.after.metric
    assert metric == 1.0, "what is handed over has a metric"
    assert "NaN" not in result.report.to_json()
    json.loads(result.report.to_json())
    assert "nan" not in result.report.headline


def test_a_metric_that_fails_on_the_original_is_an_error() -> None:
    with pytest.raises(InputError, match="'evaluate' is nan"):
        attar.compress(classifier(), calibration=images(), evaluate=lambda model: math.nan)


@pytest.mark.parametrize("hole", [-np.inf, np.inf, np.nan])
def test_outputs_that_were_never_finite_do_not_forbid_compression(hole: float, tmp_path: Path) -> None:
    """Scores of forbidden classes are often -inf in the network itself."""
    net = Net("masked")
    scores = head(net)
    mask = np.zeros(10, np.float32)
    mask[3] = hole
    result = attar.compress(net.model(y=net.op("Add", scores, net.const(mask))), calibration=images())
    assert result.report.verdict == "accepted", result.report.headline
    assert any(kernel.kind == "integer" for kernel in result.report.after.kernels)
    result.save(tmp_path / "m.onnx")
    ours = onnxruntime.InferenceSession(tmp_path / "m.onnx").run(None, {"x": images(1)[0]})[0]
    finite = np.arange(10) != 3
    assert np.array_equal(ours[:, 3], np.full(len(ours), hole, np.float32), equal_nan=True)
    assert np.isfinite(ours[:, finite]).all()
    difference = result.report.outputs[0]
    assert 10 < difference.sqnr_db < math.inf
    assert difference.max_abs < 1


@pytest.mark.parametrize("batch", [1, 20, 96])
def test_a_fixed_batch_of_any_size(batch: int) -> None:
    """Larger, too, than the numbers of samples that attar itself is content with."""
    net = Net("fixed")
    x = net.input("x", batch, 128)
    model = net.model(y=net.dense(net.op("Relu", net.dense(x, 128, 512)), 512, 64))
    rng = np.random.default_rng(0)
    data = [{"x": rng.standard_normal((batch, 128)).astype(np.float32)} for _ in range(3)]
    assert len(as_data(data, input_specs(model)).take(3).first().inputs["x"]) == batch
    result = attar.compress(model, calibration=data)
    assert result.report.outputs[0].samples >= min(batch, 3)
    assert result.report.outputs[0].sqnr_db > 14
    if batch == 96:
        assert any(kernel.kind == "integer" for kernel in result.report.after.kernels)


@pytest.mark.parametrize("place", [None, 3, "a" * 300 + ".onnx", "", "a\0b.onnx", "/nowhere/at/all.onnx"])
def test_a_place_that_cannot_be_written(place: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    result = attar.compress(classifier(), ["fuse.inference"], calibration=images(1))
    for save in (result.save, result.report.save):
        with pytest.raises(InputError, match="cannot write"):
            save(place)
    assert not list(tmp_path.iterdir())


def test_only_models_are_saved(tmp_path: Path) -> None:
    for other in (None, ir.to_proto(classifier()), b"bytes"):
        with pytest.raises(InputError, match=r"cannot save \w+[\s\S]*attar.load"):
            attar.save(other, tmp_path / "m.onnx")  # type: ignore[arg-type]
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("arguments", "told"),
    [
        ({"runs": 0}, "runs must be at least 1, not 0"),
        ({"runs": "x"}, "runs must be a whole number, not 'x'"),
        ({"threads": "2"}, "threads must be a whole number, not '2'"),
        ({"threads": -1}, "threads must be at least 0, not -1"),
        ({"threads": 1.5}, "threads must be a whole number"),
    ],
)
def test_numbers_of_profile_and_compare(arguments: dict[str, Any], told: str) -> None:
    model = classifier()
    example = images(1)[0]
    with pytest.raises(InputError, match=told):
        attar.profile(model, inputs=example, **arguments)
    with pytest.raises(InputError, match=told):
        attar.compare(model, model, data=[example], **arguments)
    if "threads" in arguments:
        with pytest.raises(InputError, match=told):
            attar.evaluate(model, [(example, np.zeros(2, np.int64))], "top1", **arguments)


# Every session takes a second to open, so that there is a middle however late the signal is sent. Where the
# tests run in the background of a shell, interrupts are ignored, and a child would inherit that.
_SLOWLY = """
import signal, time
signal.signal(signal.SIGINT, signal.default_int_handler)
from attar.cli import main
from attar.runtime import OnnxRuntime
plain = OnnxRuntime.open
def slow(*args, **options):
    time.sleep(1)
    return plain(*args, **options)
OnnxRuntime.open = slow
main()
"""


@pytest.mark.skipif(sys.platform == "win32", reason="signals are those of POSIX")
@pytest.mark.parametrize(("number", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_a_signal_in_the_middle_leaves_nothing_behind(number: int, code: int, tmp_path: Path) -> None:
    work, temporary = tmp_path / "work", tmp_path / "temporary"
    work.mkdir()
    temporary.mkdir()
    graph.save(classifier(), work / "m.onnx")
    np.savez(work / "c.npz", x=np.concatenate(images(200)))
    before = sorted(p.name for p in work.iterdir())
    command = [
        sys.executable,
        "-c",
        _SLOWLY,
        "compress",
        "m.onnx",
        "--calibration",
        "c.npz",
        "-o",
        "out.onnx",
    ]
    running = subprocess.Popen(
        command,
        cwd=work,
        env={**os.environ, "TMPDIR": str(temporary)},
        text=True,
        stderr=subprocess.PIPE,
    )
    deadline = time.monotonic() + 60
    while not list(temporary.glob("attar-*")) and running.poll() is None and time.monotonic() < deadline:
        time.sleep(0.01)
    running.send_signal(number)
    told = running.communicate(timeout=60)[1]
    assert running.returncode == code, told
    assert told.strip() == ("interrupted" if number == signal.SIGINT else "")
    assert not list(temporary.glob("attar-*"))
    assert sorted(p.name for p in work.iterdir()) == before


def test_an_interrupt_that_an_extension_module_made_an_import_error_of_is_an_interrupt(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    from click.testing import CliRunner

    from attar.cli import cli

    def interrupted(*args: Any, **options: Any) -> None:
        raise ImportError("initialization failed") from KeyboardInterrupt()

    monkeypatch.setattr("attar.load", interrupted)
    monkeypatch.setattr("attar.api.load_source", interrupted)
    graph.save(classifier(), tmp_path / "m.onnx")
    done = CliRunner().invoke(cli, ["profile", str(tmp_path / "m.onnx")])
    assert (done.exit_code, "interrupted" in done.output) == (130, True)
