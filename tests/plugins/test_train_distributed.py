"""Several processes by accelerate: together they do what one does with their batches in one."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
import pytest

torch = pytest.importorskip("torch")

from train_data import context, mlp  # noqa: E402

from attar import graph  # noqa: E402
from attar.errors import Refused  # noqa: E402
from attar.run import run_pass  # noqa: E402
from attar_train import FineTune  # noqa: E402

HERE = Path(__file__).resolve().parent
ROWS = (
    np.random.default_rng(0).standard_normal((64, 6)).astype(np.float32),
    np.random.default_rng(1).standard_normal((64, 3)).astype(np.float32),
)
OPTIONS = {
    "epochs": 3,
    "optimizer": "sgd",
    "lr": 0.05,
    "clip": 0.5,
    "ema": 0.9,
    "device": "cpu",
    "patience": 9,
}

SCRIPT = """
import sys
sys.path.insert(0, {here!r})
import torch
torch.set_num_threads(1)
from test_train_distributed import OPTIONS, ROWS
from train_data import context, mlp
from attar import graph
from attar.run import run_pass
from attar_train import FineTune

model = mlp()
ctx = context(model, ROWS, evaluate=lambda session: -float(((session(ROWS[0]) - ROWS[1]) ** 2).mean()))
result, record = run_pass(FineTune(**OPTIONS, batch_size=8, checkpoint=sys.argv[2]), model, ctx)
graph.save(result, sys.argv[1])
"""


def content(model: Any) -> dict[str, Any]:
    return {n: graph.const_array(v) for n, v in model.graph.initializers.items()}


@pytest.mark.slow
def test_two_processes_train_as_one(tmp_path: Path) -> None:
    if find_spec("accelerate") is None:
        pytest.skip("accelerate is not installed")
    program = tmp_path / "program.py"
    program.write_text(SCRIPT.format(here=str(HERE)), encoding="utf-8")
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    workers = []
    for rank in range(2):
        own = {
            "RANK": rank, "LOCAL_RANK": rank, "WORLD_SIZE": 2, "LOCAL_WORLD_SIZE": 2,
            "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port,
            "ACCELERATE_USE_CPU": "true", "OMP_NUM_THREADS": 1,
        }  # fmt: skip
        command = [
            sys.executable,
            str(program),
            str(tmp_path / f"{rank}.onnx"),
            str(tmp_path / "checkpoints"),
        ]
        env = {**os.environ, **{k: str(v) for k, v in own.items()}}
        workers.append(subprocess.Popen(command, env=env, stderr=subprocess.PIPE, text=True))
    for worker in workers:
        _, said = worker.communicate(timeout=240)
        assert worker.returncode == 0, said[-3000:]
    zero, one = (content(graph.read_model(tmp_path / f"{rank}.onnx")) for rank in range(2))
    model = mlp()
    ctx = context(model, ROWS, evaluate=lambda session: -float(((session(ROWS[0]) - ROWS[1]) ** 2).mean()))
    alone, _ = run_pass(FineTune(**OPTIONS, batch_size=16), model, ctx)
    for name, array in content(alone).items():
        np.testing.assert_array_equal(zero[name], one[name])
        np.testing.assert_allclose(zero[name], array, rtol=1e-4, atol=1e-6)
    assert len(list((tmp_path / "checkpoints").glob("*.safetensors"))) == 1


def test_without_accelerate_several_processes_are_refused(monkeypatch: Any) -> None:
    monkeypatch.setenv("WORLD_SIZE", "2")
    monkeypatch.setattr("attar_train.distributed.find_spec", lambda name: None)
    model = mlp()
    with pytest.raises(Refused, match="needs accelerate"):
        run_pass(FineTune(epochs=1), model, context(model, ROWS))
