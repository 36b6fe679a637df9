"""Checkpoints: a training that was killed goes on to the same bits."""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest

torch = pytest.importorskip("torch")
pytest.importorskip("safetensors")

from train_data import context, images, network, one_thread  # noqa: E402, F401

from attar import graph  # noqa: E402
from attar.errors import InputError  # noqa: E402
from attar.run import run_pass  # noqa: E402
from attar_train import Distill, FineTune  # noqa: E402
from attar_train.checkpoint import Checkpoint  # noqa: E402

TRAIN, TEST = images(320), images(200, seed=9)
HERE = Path(__file__).resolve().parent

pytestmark = pytest.mark.usefixtures("one_thread")

# Everything that a checkpoint has to hold.
OPTIONS = {
    "epochs": 6, "batch_size": 32, "lr": 0.01, "ema": 0.95, "best": True, "accumulate": 2, "flip": True,
    "crop": 1, "mixup": 0.3, "cutmix": 0.3, "checkpoint_seconds": 0.0,
}  # fmt: skip

# Pauses between batches leave time to be killed.
SCRIPT = """
import sys, time
sys.path.insert(0, {here!r})
import torch
from train_data import context, images, network
from attar.run import run_pass
from attar_train import FineTune, loop

torch.set_num_threads(1)
plain = loop._Run._loss
def slow(self, samples, extra):
    time.sleep(0.03)
    return plain(self, samples, extra)
loop._Run._loss = slow
model = network()
step = FineTune(**{options!r})
run_pass(step, model, context(model, images(320), (images(200, seed=9), "top1")))
"""


def train(options: dict[str, Any], folder: Path) -> tuple[dict[str, Any], str]:
    """The weights and what the report says."""
    model = network()
    step = FineTune(**options, checkpoint=str(folder))
    result, record = run_pass(step, model, context(model, TRAIN, (TEST, "top1")))
    return {n: graph.const_array(v) for n, v in result.graph.initializers.items()}, record.changes[0]


def written(folder: Path) -> set[tuple[str, int]]:
    """The whole checkpoints of a folder in which a process may be writing one, and when they were made."""
    found = set()
    for file in folder.glob("*.safetensors"):
        with contextlib.suppress(FileNotFoundError):
            found.add((file.name, file.stat().st_mtime_ns))
    return found


def killed(command: list[str], folder: Path, rng: np.random.Generator, longest: float) -> bool:
    """Start, wait for its first checkpoint, kill -9 at a random moment; False if it was done before."""
    before = written(folder)
    process = subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, start_new_session=True
    )
    deadline = time.monotonic() + 120
    while process.poll() is None and time.monotonic() < deadline and not written(folder) - before:
        time.sleep(0.01)
    time.sleep(float(rng.uniform(0, longest)))
    alive = process.poll() is None
    if alive:
        os.kill(process.pid, signal.SIGKILL)
    _, errors = process.communicate()
    assert alive or process.returncode == 0, errors.decode()
    return alive


def _kills(tmp_path: Path, times: int, optimizer: str) -> None:
    rng = np.random.default_rng(times)
    folder, options = tmp_path / "killed", {**OPTIONS, "optimizer": optimizer}
    folder.mkdir()
    program = tmp_path / "program.py"
    own = {**options, "checkpoint": str(folder)}
    program.write_text(SCRIPT.format(here=str(HERE), options=own), encoding="utf-8")
    command = [sys.executable, str(program)]
    count = sum(killed(command, folder, rng, 0.25) for _ in range(times))
    assert count >= max(1, times - 2), "most of them were killed while they trained"
    found, said = train(options, folder)
    assert "before it was taken up again" in said
    whole, said = train(options, tmp_path / "whole")
    assert "before it was taken up again" not in said
    assert whole.keys() == found.keys()
    for name, array in whole.items():
        assert array.tobytes() == found[name].tobytes(), name
    assert not list(folder.glob("*.part")), "what the killed ones left was removed, and no other is writing"


WRITING = """
import os, sys, time
import torch
from attar_train.checkpoint import Checkpoint

def stopped(file):
    print("writing", flush=True)
    time.sleep(600)

os.fsync = stopped
Checkpoint(sys.argv[1], "x", "y").save({"a": torch.zeros(3)}, {})
"""


def test_what_a_killed_process_left_goes_and_what_a_living_one_writes_stays(tmp_path: Path) -> None:
    own, other = Checkpoint(tmp_path, "x", "y"), Checkpoint(tmp_path, "x", "z")
    process = subprocess.Popen([sys.executable, "-c", WRITING, str(tmp_path)], stdout=subprocess.PIPE)
    try:
        assert process.stdout is not None
        assert process.stdout.readline() == b"writing\n"
        (part,) = tmp_path.glob("*.part")
        assert own.load() is None
        assert part.stat().st_size > 0, "it lives"
    finally:
        process.kill()
        process.communicate()
    assert other.load() is None
    assert part.exists(), "of another training"
    assert own.load() is None
    assert not list(tmp_path.iterdir())


def test_two_trainings_of_one_name_write_into_one_folder(tmp_path: Path, monkeypatch: Any) -> None:
    """One writes, the other begins before the first has renamed, and after."""
    first, second = Checkpoint(tmp_path, "x", "y"), Checkpoint(tmp_path, "x", "y")
    plain, seen = Path.replace, []

    def meanwhile(self: Path, target: Path) -> Path:
        monkeypatch.setattr(Path, "replace", plain)
        seen.append(second.load())
        second.save({"a": torch.ones(3)}, {"of": "second"})
        return plain(self, target)

    monkeypatch.setattr(Path, "replace", meanwhile)
    first.save({"a": torch.zeros(3)}, {"of": "first"})
    assert seen == [None]
    tensors, numbers = second.load()
    assert numbers == {"of": "first"}
    assert not tensors["a"].any()
    assert [p.name for p in tmp_path.iterdir()] == [first.path.name]


def test_a_killed_training_goes_on_to_the_same_bits(tmp_path: Path) -> None:
    _kills(tmp_path, 1, "adamw")


@pytest.mark.slow
@pytest.mark.parametrize("optimizer", ["adamw", "sgd"])
def test_ten_kills_change_nothing(tmp_path: Path, optimizer: str) -> None:
    _kills(tmp_path, 10, optimizer)


def test_every_point_of_a_training_is_one_to_go_on_from(tmp_path: Path, monkeypatch: Any) -> None:
    """Stopped by an exception in step 7, 13 and 14, within an epoch and at its end."""
    model = network()
    options = {"epochs": 4, "batch_size": 32, "lr": 0.01, "ema": 0.9, "optimizer": "sgd", "cutmix": 0.5}
    evaluate = (TEST, "top1")
    whole, _ = run_pass(FineTune(**options, best=True), model, context(model, TRAIN, evaluate))
    step = FineTune(**options, best=True, checkpoint=str(tmp_path), checkpoint_seconds=0.0)
    plain = torch.optim.SGD.step
    for more in (7, 6, 1):
        calls = 0

        def failing(self: Any, *args: Any, more: int = more, **kwargs: Any) -> Any:
            nonlocal calls
            calls += 1
            if calls > more:
                raise KeyboardInterrupt
            return plain(self, *args, **kwargs)

        monkeypatch.setattr(torch.optim.SGD, "step", failing)
        with pytest.raises(KeyboardInterrupt):
            run_pass(step, model, context(model, TRAIN, evaluate))
        monkeypatch.setattr(torch.optim.SGD, "step", plain)
    found, record = run_pass(step, model, context(model, TRAIN, evaluate))
    assert "of which 14 before it was taken up again" in record.changes[0]
    for name, value in whole.graph.initializers.items():
        same = graph.const_array(found.graph.initializers[name])
        assert graph.const_array(value).tobytes() == same.tobytes(), name


def test_a_finished_training_is_not_done_again_and_another_one_is(tmp_path: Path) -> None:
    model = network()
    step = FineTune(epochs=1, batch_size=32, checkpoint=str(tmp_path))
    first, _ = run_pass(step, model, context(model, TRAIN))
    again, record = run_pass(step, model, context(model, TRAIN))
    assert "trained 10 steps, of which 10 before" in record.changes[0]
    same = [[graph.const_array(v) for v in m.graph.initializers.values()] for m in (first, again)]
    assert all((a == b).all() for a, b in zip(*same, strict=True))
    for other in (
        FineTune(epochs=1, batch_size=32, lr=0.002, checkpoint=str(tmp_path)),
        FineTune(epochs=1, batch_size=32, label_smoothing=0.1, checkpoint=str(tmp_path)),
    ):
        _, record = run_pass(other, model, context(model, TRAIN))
        assert "before it was taken up" not in record.changes[0]
    _, record = run_pass(step, model, context(model, TRAIN, seed=1))
    assert "before it was taken up" not in record.changes[0]
    _, record = run_pass(step, model, context(model, images(320, seed=4)))
    assert "before it was taken up" not in record.changes[0]
    _, record = run_pass(step, model, context(model, (TRAIN[0], TRAIN[1][::-1].copy())))
    assert "before it was taken up" not in record.changes[0], "other labels"
    assert len(list(tmp_path.glob("*.safetensors"))) == 6


def test_another_teacher_or_another_evaluation_is_another_training(tmp_path: Path) -> None:
    model, one, other = network(), network(seed=6), network(seed=7)
    options = {"epochs": 1, "batch_size": 32, "checkpoint": str(tmp_path)}
    said = []
    for teacher in (one, other, one):
        result, record = run_pass(Distill(**options), model, context(model, TRAIN[0], original=teacher))
        said.append((graph.fingerprint(result), "before it was taken up" in record.changes[0]))
    assert said == [(said[0][0], False), (said[1][0], False), (said[0][0], True)]
    assert said[0][0] != said[1][0]
    top1, other_metric = (TEST, "top1"), lambda session: 0.5
    for evaluate, again in ((top1, False), (other_metric, False), (top1, True)):
        ctx = context(model, TRAIN, evaluate)
        _, record = run_pass(FineTune(**options, best=True), model, ctx)
        assert ("before it was taken up" in record.changes[0]) == again


def test_what_is_no_checkpoint_is_refused(tmp_path: Path) -> None:
    model = network()
    step = FineTune(epochs=1, batch_size=32, checkpoint=str(tmp_path))
    run_pass(step, model, context(model, TRAIN))
    (file,) = tmp_path.glob("*.safetensors")
    content = file.read_bytes()
    for damaged in (b"", content[:100], b"\x80\x04K\x01.", content[:-8]):
        file.write_bytes(damaged)
        with pytest.raises(InputError, match="is no checkpoint"):
            run_pass(step, model, context(model, TRAIN))
    occupied = tmp_path / "file"
    occupied.write_text("")
    with pytest.raises(InputError, match="cannot make the folder"):
        Checkpoint(occupied, "x", "y")
