"""The context asks by name for what was not given, draws by seed and key alone, and keeps notes."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import numpy as np
import onnx_ir as ir
import pytest

from attar.context import Context
from attar.errors import InputError
from attar.progress import Progress, Silent, Task, track
from attar.registry import Registry
from attar.report import Skip, Step
from attar.runtime import OnnxRuntime
from attar.targets import builtin_targets


def context(seed: int = 0, progress: Progress | None = None) -> Context:
    return Context(
        registry=Registry(),
        target=builtin_targets()[0],
        runtime=OnnxRuntime(),
        seed=seed,
        step=Step("test.step", {}),
        progress=progress or Silent(),
    )


def test_what_was_not_given_is_asked_for_by_the_name_of_the_argument() -> None:
    with pytest.raises(
        InputError, match=r"pass 'test\.step' needs calibration data\n.*compress\(.*calibration="
    ):
        _ = context().calibration
    with pytest.raises(InputError, match=r"pass 'test\.step' needs an evaluation\n.*compress\(.*evaluate="):
        _ = context().evaluate


def test_randomness_depends_on_seed_and_key_alone() -> None:
    draw = context().rng("prune", "conv1").random(4)
    used = context()
    used.rng("other").random(100)
    used.rng("prune", "conv1").random(100)
    np.random.seed(1)
    assert (used.rng("prune", "conv1").random(4) == draw).all()
    for other in (
        context(1).rng("prune", "conv1"),
        context().rng("prune", "conv2"),
        context().rng("prune", 1),
    ):
        assert (other.random(4) != draw).all()
    assert (context().rng(1).random(4) == context().rng("1").random(4)).all()


def test_skips_name_node_operator_and_reason() -> None:
    x = ir.Value(name="x")
    node = ir.node("Conv", [x], num_outputs=1, name="conv1")
    node.outputs[0].name = "y"
    ctx = context()
    ctx.skip(node, "a")
    ctx.skip(node.outputs[0], "b")
    ctx.skip(x, "c")
    assert ctx.step.skipped == [Skip("conv1", "Conv", "a"), Skip("y", "Conv", "b"), Skip("x", "value", "c")]


def test_notes_are_kept_in_order() -> None:
    ctx = context()
    ctx.note("one")
    ctx.note("two")
    assert ctx.step.changes == ["one", "two"]
    ctx.step = Step("next", {})
    assert ctx.step.changes == []


class Recorder:
    """A progress display that remembers."""

    def __init__(self) -> None:
        self.events: list[object] = []

    @contextmanager
    def task(self, description: str, total: float | None = None) -> Iterator[Task]:
        self.events.append((description, total))
        outer = self

        class Bar:
            def advance(self, steps: float = 1) -> None:
                outer.events.append(steps)

        try:
            yield Bar()
        finally:
            outer.events.append("end")


def test_track_advances_after_each_item_and_ends() -> None:
    recorder = Recorder()
    seen = []
    for item in track("ab", recorder, "letters", 2):
        seen.append((item, recorder.events.count(1)))
    assert seen == [("a", 0), ("b", 1)]
    assert recorder.events == [("letters", 2), 1, 1, "end"]


def test_track_ends_its_task_when_the_work_stops_early() -> None:
    recorder = Recorder()
    items = track(iter("abc"), recorder, "letters", None)
    next(items)
    items.close()  # type: ignore[attr-defined]
    assert recorder.events == [("letters", None), "end"]


def test_silence_is_the_default(capsys: pytest.CaptureFixture[str]) -> None:
    with context().progress.task("work", 3) as task:
        task.advance()
        task.advance(0.5)
    assert list(track([1, 2], Silent(), "work", None)) == [1, 2]
    assert capsys.readouterr() == ("", "")
