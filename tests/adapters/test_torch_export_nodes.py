"""ONNX's own node tests, written in PyTorch and read back: never a wrong answer."""

from __future__ import annotations

from collections import Counter

import pytest

torch = pytest.importorskip("torch")

from onnx_cases import every, one_each  # noqa: E402
from torch_writing import ADAPTER  # noqa: E402

from attar.registry import default_registry  # noqa: E402
from attar.testing.node_suite import Tally, run_suite  # noqa: E402


def _none_is_wrong(tally: Tally) -> None:
    assert [f"{o.case.name}: {o.detail}" for o in tally.of("wrong", "broken")] == []
    refused = tally.of("refused")
    reasons = Counter(o.detail.split("\n")[0].split("exactly: ")[-1] for o in refused)
    assert all(reasons)
    assert {o.case.op for o in refused} <= {
        *("Bernoulli", "Cast", "CastLike", "QuantizeLinear", "Dropout", "Resize", "MaxUnpool"),
        *("OptionalGetElement", "Pow", "Unique"),
        *("Scan", "LinearAttention"),  # as opset 8 had it; states whose rank only a run tells
    }


def test_each_operator_is_right_or_refused() -> None:
    tally = run_suite(ADAPTER, one_each(), registry=default_registry())
    _none_is_wrong(tally)
    assert tally.count("passed") >= 135


@pytest.mark.slow
def test_no_node_test_is_answered_wrongly() -> None:
    tally = run_suite(ADAPTER, every(), registry=default_registry())
    _none_is_wrong(tally)
    assert tally.count("passed", core=True) >= 670
    assert tally.count("passed") >= 860


@pytest.mark.slow
def test_what_was_written_is_read_back() -> None:
    tally = run_suite(ADAPTER, one_each(), registry=default_registry(), back=True)
    assert [f"{o.case.name}: {o.detail}" for o in tally.of("wrong", "broken")] == []
    assert tally.count("passed") >= 120
