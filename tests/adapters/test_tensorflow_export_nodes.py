"""ONNX's own node tests, written in TensorFlow."""

from __future__ import annotations

from typing import Any

import pytest

pytest.importorskip("tensorflow")

from attar.adapters import Exported
from attar.registry import default_registry
from attar.testing.node_suite import NodeCase, Tally, node_cases, run_case, run_suite
from attar_tensorflow.writing import write_model


class Writer:
    """What the suite asks of an adapter."""

    def write(self, model: Any, *, registry: Any, **options: Any) -> Exported:
        return write_model(model, registry=registry, **options)


CASES = node_cases()
# One case of each operator for every run; all of them with -m slow.
FEW = {case.op: case for case in reversed(CASES)}


def _run(case: NodeCase, **options: Any) -> Any:
    return run_case(Writer(), case, registry=default_registry(), **options)  # type: ignore[arg-type]


@pytest.mark.parametrize("case", FEW.values(), ids=FEW)
def test_each_operator_is_right_or_refused(case: NodeCase) -> None:
    outcome = _run(case)
    assert outcome.verdict in ("passed", "refused"), outcome.detail


@pytest.mark.parametrize("op", ["Conv", "MaxPool", "LSTM", "GRU", "Resize", "Gather", "ScatterND"])
def test_what_networks_use_is_written(op: str) -> None:
    cases = [case for case in CASES if case.op == op]
    assert cases
    tally = Tally([_run(case) for case in cases])
    assert tally.of("wrong", "broken") == []
    assert tally.count("passed") >= 0.8 * len(cases)


@pytest.mark.slow
@pytest.mark.parametrize(("form", "core", "every"), [("auto", 650, 850), ("module", 650, 850)])
def test_no_answer_is_wrong(form: str, core: int, every: int) -> None:
    tally = run_suite(Writer(), CASES, registry=default_registry(), form=form)  # type: ignore[arg-type]
    assert [(o.case.name, o.detail) for o in tally.of("wrong", "broken")] == []
    assert tally.count("passed", core=True) >= core
    assert tally.count("passed") >= every
