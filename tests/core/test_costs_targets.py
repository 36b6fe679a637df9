"""Cost tables, their fit to measured times, and the targets that carry them."""

from __future__ import annotations

import json
import platform
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from spine_models import cnn, images

import attar
from attar import graph, targets
from attar.costs import Cost, CostTable, fit
from attar.errors import InputError
from attar.lowering import LOWERINGS

coefficients = st.builds(Cost, st.floats(0, 100), st.floats(0, 1e-2), st.floats(0, 1e-2))
SHAPES = [(m, e) for m in (0.0, 1e3, 1e5, 3e6) for e in (1e2, 5e3, 2e5)]


def times(cost: Cost, shapes: list[tuple[float, float]] = SHAPES) -> list[tuple[float, float, float]]:
    return [(m, e, cost.call + cost.mac * m + cost.element * e) for m, e in shapes]


@given(st.builds(Cost, st.floats(1, 100), st.floats(1e-5, 1e-2), st.floats(1e-4, 1e-2)))
def test_fit_recovers_known_coefficients(cost: Cost) -> None:
    found = fit(times(cost))
    for m, e, t in times(cost):
        assert found.microseconds(m, e) == pytest.approx(t, rel=1e-6)
    np.testing.assert_allclose(
        [found.call, found.mac, found.element], [cost.call, cost.mac, cost.element], rtol=1e-3
    )


@given(st.lists(st.tuples(st.floats(0, 1e9), st.floats(0, 1e7), st.floats(0, 1e6)), min_size=1, max_size=12))
def test_coefficients_are_finite_and_not_negative(samples: list[tuple[float, float, float]]) -> None:
    found = fit(samples)
    assert all(np.isfinite(c) and c >= 0 for c in (found.call, found.mac, found.element))


@given(st.integers(0, 2**32 - 1))
def test_fit_is_the_best_non_negative_one(seed: int) -> None:
    """Against an independent solver of the same problem: projected gradient descent on random times."""
    rng = np.random.default_rng(seed)
    samples = np.stack([rng.uniform(0, 3, 8), rng.uniform(0, 3, 8), rng.uniform(1, 9, 8)], axis=1)
    design = np.stack([np.ones(8), samples[:, 0], samples[:, 1]], axis=1) / samples[:, 2:]
    x = np.zeros(3)
    step = 1 / np.linalg.norm(design.T @ design, 2)
    for _ in range(3000):
        x = np.maximum(0, x - step * design.T @ (design @ x - 1))
    found = fit([tuple(row) for row in samples])
    error = np.sum((design @ [found.call, found.mac, found.element] - 1) ** 2)
    assert error <= np.sum((design @ x - 1) ** 2) + 1e-6


def test_fit_weighs_relative_errors() -> None:
    """One slow sample that is off must not ruin the estimate of the quick ones."""
    samples = [
        *times(Cost(5.0, 0.001, 0.0), [(m, 0.0) for m in (0, 100, 1000.0, 10000.0)]),
        (100000000.0, 0.0, 200000.0),
    ]
    assert fit(samples).microseconds(0, 0) == pytest.approx(5.0, rel=0.2)


def test_fit_without_samples_is_an_error() -> None:
    with pytest.raises(InputError, match="without samples"):
        fit([])


@given(
    st.dictionaries(
        st.tuples(st.text(max_size=8), st.sampled_from(["float", "int8"])), coefficients, max_size=6
    )
)
def test_json_round_trip(rows: dict[tuple[str, str], Cost]) -> None:
    table = CostTable(rows, 'a "processor"')
    back = CostTable.from_json(table.to_json())
    assert back.measured_on == table.measured_on
    assert set(back.rows) == set(rows)
    for key, cost in rows.items():
        one, other = (np.array([c.call, c.mac, c.element]) for c in (cost, back.rows[key]))
        np.testing.assert_allclose(other, one, rtol=1e-3, atol=1e-300)  # four digits are written
    assert CostTable.from_json(back.to_json()).rows == back.rows


def test_estimates() -> None:
    table = CostTable({("add", "int8"): Cost(2.0, 0.5, 0.25)})
    assert table.estimate("add", "int8", macs=4, elements=8) == 2 + 2 + 2
    assert table.estimate("add", "float", elements=8) is None
    assert table.estimate("mul", "int8", elements=8) is None


@pytest.mark.parametrize(
    "text",
    [
        "",
        "{",
        "[]",
        "3",
        "{}",
        '{"costs": 3}',
        '{"costs": {"add": 3}}',
        '{"costs": {"add": {"float": [1, 2]}}}',
        '{"costs": {"add": {"float": [1, 2, 3, 4]}}}',
        '{"costs": {"add": {"float": ["a", 2, 3]}}}',
        '{"costs": {"add": {"float": [-1, 2, 3]}}}',
        '{"costs": {"add": {"float": [NaN, 2, 3]}}}',
        '{"costs": {"add": {"float": [Infinity, 2, 3]}}}',
        '{"costs": {"add": {"float": [1' + "0" * 400 + ", 2, 3]}}}",
    ],
)
def test_bad_tables_are_input_errors(text: str, tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"^here: not a cost table"):
        CostTable.from_json(text, where="here")
    path = tmp_path / "table.json"
    path.write_text(text)
    with pytest.raises(InputError) as caught:
        CostTable.load(path)
    assert str(path) in str(caught.value)


def test_a_table_that_is_not_there_or_not_text(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="cannot read the cost table"):
        CostTable.load(tmp_path / "none.json")
    (tmp_path / "binary.json").write_bytes(b"\xff\xfe\x00")
    with pytest.raises(InputError, match="cannot read the cost table"):
        CostTable.load(tmp_path / "binary.json")


def test_a_table_is_loaded_from_its_file(tmp_path: Path) -> None:
    table = CostTable({("add", "float"): Cost(1.0, 0.0, 0.5)}, "mine")
    (tmp_path / "t.json").write_text(table.to_json())
    assert CostTable.load(tmp_path / "t.json") == table
    assert json.loads(table.to_json())["measured_on"] == "mine"


# -- targets ---------------------------------------------------------------------------------------------


def test_builtin_targets() -> None:
    found = {t.name: t for t in targets.builtin_targets()}
    assert set(found) == {"cpu", "cpu-vnni", "cpu-avx2", "cpu-arm64", "cpu-qoperator", "microcontroller"}
    assert [t.name for t in found.values() if t.name != "cpu" and t.saturates] == ["cpu-avx2"]
    for target in found.values():
        assert target.description
        assert set(target.lowerings) <= set(LOWERINGS)
        assert {"Conv", "Gemm", "MatMul"} <= set(target.integer_ops)
        if target.elsewhere:  # nothing of it was ever timed, and nothing is made up
            assert target.costs.estimate("conv.spatial", "int8", macs=1e6, elements=1e4) is None
            continue
        for operator in ("conv.pointwise", "conv.spatial", "conv.depthwise", "matmul.rows", "matmul.row"):
            for dtype in ("float", "int8"):
                estimate = target.costs.estimate(operator, dtype, macs=1e6, elements=1e4)
                assert estimate is not None
                assert estimate > 0
        for conversion in ("quantize", "dequantize"):
            assert target.costs.estimate(conversion, "int8", elements=1e4)


def test_compute_operators_need_constant_weights_where_the_kernel_does() -> None:
    rules = targets.CPU_INTEGER_OPS
    assert rules["Conv"].constant_weight
    assert not rules["MatMul"].constant_weight
    assert {k for k, r in rules.items() if r.role == "compute"} == {"Conv", "Gemm", "MatMul"}
    assert rules["Concat"].activations == ()


@pytest.mark.parametrize(
    ("machine", "flags", "expected"),
    [
        ("x86_64", {"avx2", "avx512_vnni"}, "vnni"),
        ("x86_64", {"avx2", "avx_vnni"}, "vnni"),
        ("AMD64", {"avx512vnni"}, "vnni"),
        ("x86_64", {"avx2", "avx512f"}, "avx2"),
        ("x86_64", set(), "avx2"),
        ("aarch64", set(), "arm64"),
        ("arm64", {"avx_vnni"}, "arm64"),
    ],
)
def test_the_instruction_set_follows_the_processor(
    monkeypatch: pytest.MonkeyPatch, machine: str, flags: set[str], expected: str
) -> None:
    monkeypatch.setattr(platform, "machine", lambda: machine)
    monkeypatch.setattr(targets, "_cpu_flags", lambda: frozenset(flags))
    targets.instruction_set.cache_clear()
    try:
        assert targets.instruction_set() == expected
        found = {t.name: t for t in targets.builtin_targets()}
        same = found[f"cpu-{expected}"]
        assert found["cpu"].saturates == same.saturates
        assert found["cpu"].lowerings == same.lowerings
        assert same.description in found["cpu"].description
    finally:
        targets.instruction_set.cache_clear()


CPUINFO = """processor\t: 0
model name\t: Imaginary 9000 @ 5 GHz
flags\t\t: fpu sse2 avx2 avx512_vnni
processor\t: 1
model name\t: Another
flags\t\t: fpu
"""


@pytest.mark.parametrize(("text", "vnni"), [(CPUINFO, True), ("processor: 0\n", False), (None, False)])
def test_the_flags_are_those_of_the_first_processor(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, text: str | None, vnni: bool
) -> None:
    info = tmp_path / "cpuinfo"
    if text is not None:
        info.write_text(text)
    monkeypatch.setattr(targets, "Path", lambda name: info)
    monkeypatch.setattr(platform, "machine", lambda: "x86_64")
    for cached in (targets.instruction_set, targets.cpu_name):
        cached.cache_clear()
    try:
        assert targets.instruction_set() == ("vnni" if vnni else "avx2")
        name = targets.cpu_name()
        assert name == "Imaginary 9000 @ 5 GHz" if text == CPUINFO else isinstance(name, str)
    finally:
        for cached in (targets.instruction_set, targets.cpu_name):
            cached.cache_clear()


def test_a_target_elsewhere_is_not_judged_by_the_time_here() -> None:
    """On a microcontroller every operator is an integer one, whether or not this machine likes it."""
    result = attar.compress(cnn(8), calibration=images(), target="microcontroller")
    report = result.report
    assert report.verdict == "accepted"
    kinds = {node.op_type for node in result.model.graph}
    assert {"QuantizeLinear", "DequantizeLinear", "Conv"} <= kinds
    zeros = [graph.const_array(n.inputs[2]) for n in result.model.graph if n.op_type == "QuantizeLinear"]
    assert {z.dtype.name for z in zeros if z is not None} == {"int8"}
    for node in result.model.graph:  # nothing computes on floats
        if node.op_type in ("Conv", "Gemm", "GlobalAveragePool"):
            assert node.inputs[0].producer().op_type == "DequantizeLinear"
            assert {use.node.op_type for use in node.outputs[0].uses()} <= {"QuantizeLinear", "Relu"}
