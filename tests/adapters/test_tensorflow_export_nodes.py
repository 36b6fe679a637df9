"""ONNX's own node tests, written in TensorFlow and read back: never a wrong answer."""

from __future__ import annotations

import pytest

pytest.importorskip("tensorflow")

from onnx_cases import every, one_each

from attar.registry import default_registry
from attar.testing.node_suite import run_suite
from attar_tensorflow.adapter import TensorFlowAdapter

ADAPTER = TensorFlowAdapter()


def test_each_operator_is_right_or_refused() -> None:
    tally = run_suite(ADAPTER, one_each(), registry=default_registry())
    assert [f"{o.case.name}: {o.detail}" for o in tally.of("wrong", "broken")] == []
    assert tally.count("passed") >= 135


@pytest.mark.slow
@pytest.mark.parametrize(("form", "core", "least"), [("auto", 650, 850), ("module", 650, 850)])
def test_no_node_test_is_answered_wrongly(form: str, core: int, least: int) -> None:
    tally = run_suite(ADAPTER, every(), registry=default_registry(), form=form)
    assert [f"{o.case.name}: {o.detail}" for o in tally.of("wrong", "broken")] == []
    assert tally.count("passed", core=True) >= core
    assert tally.count("passed") >= least


@pytest.mark.slow
def test_what_was_written_is_read_back() -> None:
    tally = run_suite(ADAPTER, one_each(), registry=default_registry(), back=True)
    assert [f"{o.case.name}: {o.detail}" for o in tally.of("wrong", "broken")] == []
    assert tally.count("passed") >= 130
