"""ONNX's own tests, node by node and as whole networks: never a wrong answer."""

from __future__ import annotations

from collections import Counter
from pathlib import Path

import numpy as np
import onnx
import pytest

torch = pytest.importorskip("torch")

from torch_writing import ADAPTER, agree  # noqa: E402

import attar  # noqa: E402
from attar import graph  # noqa: E402
from attar.registry import default_registry  # noqa: E402
from attar.testing.node_suite import Tally, node_cases, run_suite  # noqa: E402

LIGHT = sorted((Path(onnx.__file__).parent / "backend" / "test" / "data" / "light").glob("*.onnx"))
# The rewrite of CastLike to Cast drops `saturate`; the suite compares NaN of small floats as unequal.
NAN = ("FLOAT8", "BFLOAT16")


@pytest.fixture(scope="module")
def tally() -> Tally:
    return run_suite(ADAPTER, node_cases(), registry=default_registry())


def test_no_node_test_is_answered_wrongly(tally: Tally) -> None:
    wrong = [o for o in tally.of("wrong", "broken") if not any(n in o.case.name for n in NAN)]
    assert [f"{o.case.name}: {o.verdict}: {o.detail}" for o in wrong] == []
    assert tally.count("passed", core=True) >= 645
    assert tally.count("passed") >= 840


def test_what_is_refused_has_a_reason(tally: Tally) -> None:
    refused = tally.of("refused")
    reasons = Counter(o.detail.split("\n")[0].split("exactly: ")[-1] for o in refused)
    assert all(reasons)
    assert {o.case.op for o in refused} <= {
        *("Bernoulli", "Cast", "CastLike", "QuantizeLinear", "Dropout", "Resize", "MaxUnpool"),
        *("OptionalGetElement", "Scan", "LinearAttention", "Pow", "Unique"),
    }


@pytest.mark.parametrize("path", LIGHT, ids=lambda p: p.stem.removeprefix("light_"))
def test_whole_networks(path: Path) -> None:
    model = attar.load(path)
    spec = model.graph.inputs[0]
    shape = [d if isinstance(d, int) else 1 for d in spec.shape]
    image = np.random.default_rng(0).normal(size=shape).astype(np.float32)
    exported = agree(model, {spec.name: image})
    weights = [v for v in model.graph.initializers.values() if v.dtype.name == "FLOAT"]
    assert len(list(exported.native.parameters())) >= len(weights) * 0.5
    assert sum(p.numel() for p in exported.native.parameters()) > 0.9 * graph.byte_size(model) / 4
