"""`attar inspect`, `profile`, `compare`, `evaluate`."""

from __future__ import annotations

import json
import math
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import onnx
import onnx_ir as ir
import pytest
from click.testing import CliRunner, Result
from onnx import TensorProto, helper, numpy_helper

import attar
from attar.cli import cli
from attar.cli.inspect import summary
from attar.report import Kernel, OutputDiff, Snapshot, Speed


def run(*arguments: str) -> Result:
    return CliRunner().invoke(cli, list(arguments), prog_name="attar")


def small_net() -> onnx.ModelProto:
    """Conv 3->8, 3x3, on 10x10, then a MatMul whose weight a second MatMul shares, and an int8 weight."""
    rng = np.random.default_rng(0)
    weights = {
        "w": rng.normal(size=(8, 3, 3, 3)).astype(np.float32),
        "b": np.zeros(8, np.float32),
        "m": rng.normal(size=(8, 8)).astype(np.float32),
        "q": np.ones((8, 4), np.int8),
        "s": np.float32(0.5).reshape(()),
        "z": np.int8(0).reshape(()),
    }
    nodes = [
        helper.make_node("Conv", ["x", "w", "b"], ["c"], "conv"),
        helper.make_node("GlobalAveragePool", ["c"], ["g"], "pool"),
        helper.make_node("Flatten", ["g"], ["f"], "flat"),
        helper.make_node("MatMul", ["f", "m"], ["h"], "first"),
        helper.make_node("MatMul", ["h", "m"], ["k"], "second"),
        helper.make_node("DequantizeLinear", ["q", "s", "z"], ["d"], "dq"),
        helper.make_node("MatMul", ["k", "d"], ["y"], "last"),
    ]
    graph = helper.make_graph(
        nodes,
        "net",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, ["n", 3, 12, 12])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, ["n", 4])],
        [numpy_helper.from_array(value, name) for name, value in weights.items()],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 21)], ir_version=10)
    return onnx.shape_inference.infer_shapes(model, strict_mode=True, data_prop=True)


def test_the_summary_counts_every_weight_once() -> None:
    found = summary(ir.from_proto(small_net()), top=10)
    elements = [math.prod(t.dims) for t in small_net().graph.initializer]
    sizes = [numpy_helper.to_array(t).nbytes for t in small_net().graph.initializer]
    assert found["parameters"] == sum(e for e in elements if e > 1)
    assert found["bytes"] == sum(sizes) == sum(found["bytes_by_type"].values())
    assert found["bytes_by_type"] == {"float": sum(sizes) - 33, "int8": 33}
    assert found["macs"] == 8 * 3 * 3 * 3 * 10 * 10 + 8 * 8 + 8 * 8 + 8 * 4
    assert found["operators"] == {
        "MatMul": 3,
        "Conv": 1,
        "GlobalAveragePool": 1,
        "Flatten": 1,
        "DequantizeLinear": 1,
    }
    assert found["nodes"] == 7
    assert found["opset"] == {"": 21}
    assert found["quantized"] is True
    assert found["quantized_operators"] == {"DequantizeLinear": 1}
    assert [s["text"] for s in found["inputs"]] == ["x: float32[n, 3, 12, 12]"]
    assert found["outputs"][0]["shape"] == ["n", 4]


def test_the_biggest_layers_come_first_and_a_shared_weight_counts_once() -> None:
    layers = summary(ir.from_proto(small_net()), top=3)["layers"]
    assert [(layer["name"], layer["parameters"], layer["bytes"], layer["macs"]) for layer in layers] == [
        ("conv", 8 * 27 + 8, 4 * (8 * 27 + 8), 21600),
        ("first", 64, 256, 64),
        ("dq", 32, 37, 0),
    ]
    assert summary(ir.from_proto(small_net()), top=0)["layers"] == []


def test_weights_inside_a_branch_count_too() -> None:
    inner = helper.make_graph(
        [helper.make_node("Add", ["x", "k"], ["a"], "add")],
        "then",
        [],
        [helper.make_tensor_value_info("a", TensorProto.FLOAT, [5])],
        [numpy_helper.from_array(np.ones(5, np.float32), "k")],
    )
    other = helper.make_graph(
        [helper.make_node("Identity", ["x"], ["i"], "same")],
        "else",
        [],
        [helper.make_tensor_value_info("i", TensorProto.FLOAT, [5])],
    )
    graph = helper.make_graph(
        [helper.make_node("If", ["c"], ["y"], "choose", then_branch=inner, else_branch=other)],
        "net",
        [
            helper.make_tensor_value_info("c", TensorProto.BOOL, []),
            helper.make_tensor_value_info("x", TensorProto.FLOAT, [5]),
        ],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, [5])],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 21)], ir_version=10)
    found = summary(ir.from_proto(model), top=10)
    assert found["parameters"] == 5
    assert found["operators"] == {"If": 1, "Add": 1, "Identity": 1}
    assert found["quantized"] is False


@pytest.fixture
def files(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Two copies of the small net, and `attar.load` that reads ONNX."""
    monkeypatch.chdir(tmp_path)
    for name in ("a.onnx", "b.onnx"):
        onnx.save(small_net(), tmp_path / name)
    monkeypatch.setitem(vars(attar), "load", ir.load)
    return tmp_path


@pytest.mark.usefixtures("files")
def test_inspect_prints_text_and_json() -> None:
    result = run("inspect", "a.onnx")
    assert result.exit_code == 0, result.output
    for word in (
        "x: float32[n, 3, 12, 12]",
        "ai.onnx 21 (IR 10)",
        "0.02 M",
        "1 DequantizeLinear",
        "conv",
        "3 MatMul",
    ):
        assert word in result.stdout
    told = json.loads(run("inspect", "a.onnx", "--json", "--top", "1").stdout)
    assert [layer["name"] for layer in told["layers"]] == ["conv"]
    assert told == summary(ir.load("a.onnx"), 1)


KERNELS = (
    Kernel("conv", "Conv", "float", True, ("c",), 0.25, "too \x1b[2J small"),
    Kernel("mm", "QGemm", "integer", True, ("h",), 0.75),
    Kernel("odd", "Reshape", "data", False, (), None),
)


@pytest.mark.usefixtures("files")
def test_profile(monkeypatch: pytest.MonkeyPatch) -> None:
    calls: list[Any] = []

    def profile(model: ir.Model, *, threads: int, runs: int, inputs: Any) -> Any:
        calls.append((threads, runs, inputs))
        shapes = {"x": (1, 3, 12, 12)}
        return SimpleNamespace(
            latency_ms=1.5,
            kernels=KERNELS,
            shapes=shapes,
            to_dict=lambda: {"latency_ms": 1.5, "bad": math.inf},
        )

    monkeypatch.setitem(vars(attar), "profile", profile)
    result = run("profile", "a.onnx", "--threads", "2", "--runs", "9")
    assert result.exit_code == 0, result.output
    lines = result.stdout.splitlines()
    assert lines[0] == "1.50 ms, median of 9 runs on 2 thread(s), x [1, 3, 12, 12]"
    assert [line.split() for line in lines[2:6]] == [
        ["by", "kind", "kernels", "ms", "share"],
        ["integer", "1", "0.7500", "75.0%"],
        ["float", "1", "0.2500", "25.0%"],
        ["data", "1", "0.0000", "0.0%"],
    ]
    assert lines[8].split() == ["QGemm", "mm", "integer", "0.7500"]
    assert "too \\x1b[2J small" in lines[9]
    np.savez("in.npz", x=np.ones((2, 3, 12, 12), np.float32))
    told = json.loads(run("profile", "a.onnx", "--inputs", "in.npz", "--json").stdout)
    assert told == {"latency_ms": 1.5, "bad": None}
    assert calls[0] == (2, 9, None)
    assert calls[1][2]["x"].shape == (2, 3, 12, 12)


@pytest.mark.usefixtures("files")
def test_compare(monkeypatch: pytest.MonkeyPatch) -> None:
    calls: list[Any] = []
    found = SimpleNamespace(
        before=Snapshot(4_000_000, 10, 5, KERNELS),
        after=Snapshot(1_000_000, 10, 7, KERNELS),
        speed=Speed(4.0, 2.0, 0.5, 0.4, 0.6, 30, 1, {"x": (1,)}),
        outputs=[OutputDiff("y", 0.5, 0.1, 20.0, 0.75, 8)],
        to_dict=lambda: {"speed": {"ratio": 0.5}},
    )

    def compare(a: str, b: str, *, progress: Any, **kwargs: Any) -> Any:
        assert (a, b) == ("a.onnx", "b.onnx")
        calls.append(kwargs)
        return found

    monkeypatch.setitem(vars(attar), "compare", compare)
    result = run("compare", "a.onnx", "b.onnx", "--inputs", "images", "--image-mean", "0.5")
    assert result.exit_code == 0, result.output
    for word in ("4.00x smaller", "2.00x faster", "20.0 dB", "same arg-max 75.0%", "30 interleaved pairs"):
        assert word in result.stdout
    assert calls == [{"data": "images", "preprocess": {"mean": 0.5}, "threads": 1, "runs": 30}]
    assert json.loads(run("compare", "a.onnx", "b.onnx", "--json").stdout) == {"speed": {"ratio": 0.5}}


@pytest.mark.usefixtures("files")
def test_evaluate(monkeypatch: pytest.MonkeyPatch) -> None:
    calls: list[Any] = []

    def evaluate(model: str, *args: Any, progress: Any, **kwargs: Any) -> float:
        assert model == "a.onnx"
        calls.append((args, kwargs))
        return 0.8125

    monkeypatch.setitem(vars(attar), "evaluate", evaluate)
    assert run("evaluate", "a.onnx", "--data", "t.npz").stdout == "top1 0.8125\n"
    told = json.loads(run("evaluate", "a.onnx", "--data", "t.npz", "--metric", "top5", "--json").stdout)
    assert told == {"model": "a.onnx", "data": "t.npz", "metric": "top5", "value": 0.8125}
    assert calls[1] == (("t.npz", "top5"), {"preprocess": None, "threads": 1})
